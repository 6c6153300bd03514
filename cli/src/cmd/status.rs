//! `fusefs status`: is everything running, and is the data safe?

use crate::{
    args::StatusArgs,
    cluster::Cluster,
    show::{self, json},
};
use anyhow::{Result, bail};
use fusefs_types::cluster::{ClusterInfo, MasterCall, MasterReply};
use std::process::ExitCode;

/// Exit code of `fusefs status` when there are problems.
const PROBLEMS: u8 = 2;

/// Executes the command. Exit code 0: all safe; 2: the cluster answers and has problems; 1: it does not answer.
pub async fn run(args: StatusArgs) -> Result<ExitCode> {
    let MasterReply::Info(info) = Cluster::new(&args.cluster)?.call(MasterCall::Info).await? else {
        bail!("unexpected answer")
    };
    if args.output.json {
        json(&show::info(&info))?;
    } else {
        print(&info);
    }
    Ok(if info.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(PROBLEMS) })
}

fn print(info: &ClusterInfo) {
    println!("cluster {}", info.cluster);
    println!("\nmasters");
    for (addr, leader, reachable) in &info.masters {
        println!("  {addr:<24}{}{}", if *reachable { "up" } else { "DOWN" }, if *leader { ", leader" } else { "" });
    }
    println!("\nmetanodes");
    for n in &info.nodes {
        let state = if n.alive { "up".to_owned() } else { format!("DOWN, silent for {} s", n.silent_ms / 1000) };
        println!(
            "  {:<24}{state}; {} replicas, {} leaders, {} memory, {} disk",
            n.record.addr,
            n.replicas,
            n.leaders,
            show::bytes(n.memory_used),
            show::bytes(n.disk_used)
        );
    }
    println!("\nvolumes");
    for v in &info.volumes {
        println!(
            "  {:<24}{}; {} in {} inodes; {}",
            v.name,
            show::state(v.state),
            show::bytes(v.usage.bytes),
            v.usage.inodes,
            v.redundancy
        );
    }
    if info.problems.is_empty() {
        println!("\nno problems: every partition has a leader and all its replicas");
    } else {
        println!("\n{} problem(s)", info.problems.len());
        for p in &info.problems {
            println!("  ! {p}");
        }
    }
}
