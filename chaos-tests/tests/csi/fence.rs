//! Who may have a volume, and that who lost it cannot write any more.

use super::{on, seconds};
use anyhow::{Context, Result, anyhow, bail, ensure};
use fusefs_chaos_tests::{
    csi::{
        driver::{Driver, Staged},
        pod::View,
        process::Rig,
    },
    replay::{nemesis::pause, now_ns},
};
use fusefs_proto::csi::{
    ControllerPublishVolumeRequest, controller_client::ControllerClient, node_client::NodeClient,
    volume_capability::access_mode::Mode,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{collections::BTreeSet, time::Duration};
use tonic::Code;

/// What the second node gets while the first has the volume, and a second target on one node.
struct Row {
    mode: Mode,
    second_node: Result<&'static str, Code>,
    second_target: Result<(), Code>,
}

const TABLE: &[Row] = &[
    Row {
        mode: Mode::SingleNodeWriter,
        second_node: Err(Code::FailedPrecondition),
        second_target: Err(Code::FailedPrecondition),
    },
    Row {
        mode: Mode::SingleNodeSingleWriter,
        second_node: Err(Code::FailedPrecondition),
        second_target: Err(Code::FailedPrecondition),
    },
    Row { mode: Mode::SingleNodeMultiWriter, second_node: Err(Code::FailedPrecondition), second_target: Ok(()) },
    Row {
        mode: Mode::SingleNodeReaderOnly,
        second_node: Err(Code::FailedPrecondition),
        second_target: Err(Code::FailedPrecondition),
    },
    Row { mode: Mode::MultiNodeReaderOnly, second_node: Ok("ro"), second_target: Ok(()) },
    Row { mode: Mode::MultiNodeSingleWriter, second_node: Ok("ro"), second_target: Ok(()) },
    Row { mode: Mode::MultiNodeMultiWriter, second_node: Ok("rw"), second_target: Ok(()) },
];

/// ControllerPublish for the second node: what it may, or the code.
fn attach_once(rig: &Rig, staged: &Staged, node: usize) -> Result<Result<String, tonic::Status>> {
    let request = ControllerPublishVolumeRequest {
        volume_id: staged.volume.id.clone(),
        node_id: rig.nodes[node].name.clone(),
        volume_capability: Rig::stage_request(staged).volume_capability,
        ..Default::default()
    };
    let publish = async |c| ControllerClient::new(c).controller_publish_volume(request.clone()).await;
    let reply = rig.caller.settled("ControllerPublish", &rig.controller, publish)?;
    Ok(reply.map(|r| r.publish_context.get("fusefs.io/access").cloned().unwrap_or_default()))
}

/// The table of access modes, between nodes and on one, with real mounts, also after both plugins were killed.
pub fn access_modes_hold_between_nodes() -> Result<()> {
    on(2, |rig| {
        for (i, row) in TABLE.iter().enumerate() {
            one_row(rig, i, row).with_context(|| format!("{:?}", row.mode))?;
        }
        println!("{} access modes between two nodes and two targets", TABLE.len());
        Ok(())
    })
}

fn one_row(rig: &Rig, i: usize, row: &Row) -> Result<()> {
    let volume = rig.create(&format!("mode-{i}"), row.mode)?;
    let staged = rig.stage(&volume, 0)?;
    let first = rig.publish(&staged, "first", false)?;
    // What is promised does not depend on anybody's memory.
    rig.kill_plugin(None)?;
    rig.kill_plugin(Some(0))?;
    rig.plugin_ready(None)?;
    rig.plugin_ready(Some(0))?;
    match (attach_once(rig, &staged, 1)?, &row.second_node) {
        (Ok(access), Ok(want)) => ensure!(access == **want, "the second node may {access}"),
        (Err(status), Err(code)) => {
            ensure!(status.code() == *code && status.message().contains("node-0"), "{status:?} should name the holder");
        }
        (have, want) => bail!("the second node: {have:?} instead of {want:?}"),
    }
    let target = rig.target(0, &volume.id, "second");
    let mut second = first.clone();
    (second.pod, second.target) = ("second".into(), target);
    std::fs::create_dir_all(second.target.parent().context("a parent")?)?;
    let request = rig.publish_request(&second);
    let publish = async |c| NodeClient::new(c).node_publish_volume(request.clone()).await;
    let answer = rig.caller.settled("NodePublish", &rig.nodes[0].plugin, publish)?.map(|_| ()).map_err(|s| s.code());
    ensure!(answer == row.second_target, "a second target: {answer:?} instead of {:?}", row.second_target);
    rig.unpublish(&second)?; // also of what was refused
    rig.unpublish(&first)?;
    rig.unstage(&staged)?;
    // Free again: the other node may have it now.
    let other = rig.stage(&volume, 1)?;
    rig.unstage(&other)?;
    rig.delete(&volume)
}

/// Processes of the mounts of node 0.
fn holders(rig: &Rig, staged: &Staged) -> Result<BTreeSet<u32>> {
    Ok(rig.whole(staged).context("the mount is not whole")?.pids().into_iter().collect())
}

fn signal(pids: &BTreeSet<u32>, signal: Signal) -> Result<()> {
    pids.iter().try_for_each(|p| kill(Pid::from_raw(*p as i32), signal)).context("signal")
}

/// The old node is frozen, loses the volume by force, and wakes up when the new node has written: nothing of it lands.
pub fn a_detached_node_that_comes_back_cannot_write() -> Result<()> {
    on(2, |rig| {
        let volume = rig.create("fenced", Mode::SingleNodeMultiWriter)?;
        let old = rig.stage(&volume, 0)?;
        let published = rig.publish(&old, "old", false)?;
        let pod = rig.pod(&published, View::Private)?;
        pod.writes("file", "old").map_err(|e| anyhow!(e))?;
        // Written and not synced: it must not land later either.
        let (done, said) =
            pod.namespace.run(&["sh", "-c", &format!("printf dirty >'{}/dirty'", pod.data.display())])?;
        ensure!(done, "{said}");
        let frozen = holders(rig, &old)?;
        signal(&frozen, Signal::SIGSTOP)?;
        let result = frozen_node(rig, &old, &pod, &frozen);
        if result.is_err() {
            let _ = signal(&frozen, Signal::SIGCONT); // so that everything can end
        }
        result?;
        drop(pod);
        rig.unpublish(&published)?;
        rig.unstage(&old)?;
        rig.delete(&volume)
    })
}

fn frozen_node(rig: &Rig, old: &Staged, pod: &fusefs_chaos_tests::csi::pod::Pod, frozen: &BTreeSet<u32>) -> Result<()> {
    let start = now_ns();
    rig.detach(&old.volume.id, 0)?; // by force: nothing was unstaged
    let fenced = seconds(start);
    let new = rig.stage(&old.volume, 1)?;
    let published = rig.publish(&new, "new", false)?;
    let fresh = rig.pod(&published, View::Private)?;
    println!("fenced after {fenced:.1} s; on the other node after {:.1} s", seconds(start));
    let dirty = fresh.reads("dirty").unwrap_or_default();
    fresh.writes("file", "new").map_err(|e| anyhow!("the new node cannot write: {e}"))?;
    let file = pod.data.join("file").display().to_string();
    signal(frozen, Signal::SIGCONT)?;
    let mut refused = BTreeSet::new();
    for i in 0..10 {
        let word = format!("late-{i}");
        match pod.writes("file", &word) {
            Ok(()) => bail!("the old node could write {word} to {file}"),
            Err(e) => refused.insert(e.rsplit(": ").next().unwrap_or_default().to_owned()),
        };
        pause(Duration::from_millis(300));
    }
    println!("the old node's writes after it woke up: {refused:?}");
    let allowed = |e: &String| e.contains("Stale file handle") || e.contains("Input/output error");
    ensure!(refused.iter().all(allowed), "refused with {refused:?}");
    let text = fresh.reads("file").map_err(|e| anyhow!(e))?;
    ensure!(text == "new", "the file has {text:?}");
    let later = fresh.reads("dirty").unwrap_or_default();
    ensure!(later == dirty, "unsynced data of the old node landed later: {dirty:?}, then {later:?}");
    drop(fresh);
    rig.unpublish(&published)?;
    rig.unstage(&new)
}
