//! `fusefs volume`.

use crate::{
    args::VolumeCommand,
    cluster::Cluster,
    show::{self, json},
};
use anyhow::{Result, bail, ensure};
use fusefs_types::cluster::{MasterCall, MasterReply, SessionStatus, VolumeRecord, VolumeSpec};
use std::io::{IsTerminal, Write};

/// Executes the command.
pub async fn run(command: VolumeCommand) -> Result<()> {
    match command {
        VolumeCommand::Create { name, store, capacity, inodes, partitions, replicas, cluster, output } => {
            let spec = VolumeSpec { name, store, capacity, inodes, partitions, replicas, labels: Vec::new() };
            let volume = expect_volume(Cluster::new(&cluster)?.call(MasterCall::CreateVolume(spec)).await?)?;
            if output.json {
                return json(&show::volume(&volume));
            }
            println!("volume {} is ready: {}", volume.name, volume.redundancy);
            println!("mount it with: fusefs mount {} DIRECTORY --master {}", volume.name, cluster.master.join(","));
        }
        VolumeCommand::List { cluster, output } => {
            let MasterReply::Volumes(volumes) = Cluster::new(&cluster)?.call(MasterCall::ListVolumes).await? else {
                bail!("unexpected answer")
            };
            if output.json {
                return json(&volumes.iter().map(show::volume).collect::<Vec<_>>());
            }
            println!("{:<24}{:<10}{:>12}{:>12}{:>12}  REDUNDANCY", "NAME", "STATE", "CAPACITY", "USED", "INODES");
            for v in &volumes {
                println!(
                    "{:<24}{:<10}{:>12}{:>12}{:>12}  {}",
                    v.name,
                    show::state(v.state),
                    show::capacity(v.capacity),
                    show::bytes(v.usage.bytes),
                    v.usage.inodes,
                    v.redundancy
                );
            }
        }
        VolumeCommand::Show { name, cluster, output } => {
            return show_one(&name, &Cluster::new(&cluster)?, output.json).await;
        }
        VolumeCommand::Expand { name, capacity, inodes, cluster, output } => {
            let call = MasterCall::ExpandVolume(name, capacity, inodes);
            let volume = expect_volume(Cluster::new(&cluster)?.call(call).await?)?;
            if output.json {
                return json(&show::volume(&volume));
            }
            println!("volume {} holds {} now", volume.name, show::capacity(volume.capacity));
        }
        VolumeCommand::Delete { name, yes, force, cluster } => {
            if !yes {
                confirm(&name)?;
            }
            Cluster::new(&cluster)?.call(MasterCall::DeleteVolume(name.clone(), force)).await?;
            println!("volume {name} is deleted; its objects are being removed in the background");
        }
    }
    Ok(())
}

/// The volume in an answer.
pub fn expect_volume(reply: MasterReply) -> Result<VolumeRecord> {
    match reply {
        MasterReply::Volume(v) => Ok(v),
        _ => bail!("unexpected answer"),
    }
}

fn confirm(name: &str) -> Result<()> {
    ask_for(name, &format!("Delete volume {name} and everything in it?"))
}

/// Goes on only when somebody at a terminal types `word`.
pub fn ask_for(word: &str, question: &str) -> Result<()> {
    ensure!(std::io::stdin().is_terminal(), "this needs --yes when nobody can be asked");
    print!("{question} Type `{word}`: ");
    std::io::stdout().flush()?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    ensure!(line.trim() == word, "nothing was done");
    Ok(())
}

async fn show_one(name: &str, cluster: &Cluster, as_json: bool) -> Result<()> {
    let volume = expect_volume(cluster.call(MasterCall::GetVolume(name.to_owned())).await?)?;
    let MasterReply::Map(map) = cluster.call(MasterCall::GetMap(volume.id)).await? else { bail!("unexpected answer") };
    let MasterReply::Sessions(sessions) = cluster.call(MasterCall::ListSessions(volume.id)).await? else {
        bail!("unexpected answer")
    };
    let store = super::store::list(cluster).await?.into_iter().find(|s| s.id == volume.store);
    let usage = cluster.partition_usage(&map).await;
    if as_json {
        let mut value = show::volume(&volume);
        value["partitions"] = map.partitions.iter().zip(&usage).map(|(p, u)| show::partition(p, u.as_ref())).collect();
        value["sessions"] = sessions.iter().map(show::session).collect();
        value["store"] = store.as_ref().map(show::store).into();
        return json(&value);
    }
    println!(
        "name:        {}\nstate:       {}\nredundancy:  {}",
        volume.name,
        show::state(volume.state),
        volume.redundancy
    );
    println!(
        "capacity:    {}\nused:        {} in {} inodes",
        show::capacity(volume.capacity),
        show::bytes(volume.usage.bytes),
        volume.usage.inodes
    );
    println!(
        "\n{:<12}{:<8}{:>10}{:>12}{:>12}{:>8}  REPLICAS",
        "PARTITION", "LEADER", "INODES", "OPERATIONS", "ACROSS", "ORPHANS"
    );
    for (p, u) in map.partitions.iter().zip(&usage) {
        let leader = p.leader.map_or("none".to_owned(), |l| l.to_string());
        let u = u.unwrap_or_default();
        let members: Vec<_> = p.members.iter().map(|m| format!("{}@{}", m.replica, m.addr)).collect();
        println!(
            "{:<12}{:<8}{:>10}{:>12}{:>12}{:>8}  {}",
            p.id.to_string(),
            leader,
            u.inodes,
            u.operations,
            u.transactions,
            u.orphans,
            members.join(" ")
        );
    }
    print_sessions(&sessions);
    if let Some(store) = store {
        println!("\nstore {}: {}", store.name, show::place(&store));
        show::print_probe(&store.probe);
    }
    Ok(())
}

fn print_sessions(sessions: &[SessionStatus]) {
    println!("\n{} session(s)", sessions.len());
    for s in sessions {
        let state = match (s.ending, s.leased) {
            (true, _) => "ending",
            (false, true) => "alive",
            (false, false) => "silent",
        };
        println!("  {}  {:<8}{}", s.session, state, s.client);
    }
}
