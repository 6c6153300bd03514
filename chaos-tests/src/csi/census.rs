//! What is there: mounts, processes, sockets, files, objects. Counted from mountinfo and /proc.

use super::{
    daemon::Daemon,
    holders::{RUNTIME, entries},
    namespace::Namespace,
    process::Rig,
};
use crate::{replay::nemesis::pause, stack::eventually};
use anyhow::{Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{collections::BTreeSet, fs, path::Path, time::Duration};

/// How long the last flush, the end of processes and the collection of objects may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often open files are looked at before the fewest count.
const LOOKS: usize = 20;

/// Running `fusefs` processes whose command line names something below `root`.
pub fn processes(root: &Path) -> BTreeSet<u32> {
    let pids = entries(Path::new("/proc")).into_iter().filter_map(|p| p.file_name()?.to_str()?.parse::<u32>().ok());
    pids.filter(|pid| names(*pid, root)).collect()
}

/// The first argument of a process.
pub fn role(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let role = line.split(|b| *b == 0).nth(1).unwrap_or_default();
    String::from_utf8_lossy(role).into_owned()
}

fn names(pid: u32, root: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let text = String::from_utf8_lossy(&line);
    let program = text.split('\0').next().unwrap_or_default();
    let ours = program.ends_with("fusefs") || program.starts_with("/proc/self/fd/");
    let dead = fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |s| s.contains(") Z "));
    ours && !dead && text.contains(&*root.to_string_lossy())
}

/// Processes of mounts whose files are below `state` or which are in the namespace.
pub fn of_mounts(node: &Namespace, state: &Path) -> BTreeSet<u32> {
    let own = fs::read_link(format!("/proc/{}/ns/mnt", node.pid())).ok();
    let inside = |pid: &u32| own.is_some() && fs::read_link(format!("/proc/{pid}/ns/mnt")).ok() == own;
    let fusefs = |pid: &u32| ["mount", "keeper", "client", "adopt", "umount", "fuse-pod"].contains(&&*role(*pid));
    let pids = entries(Path::new("/proc")).into_iter().filter_map(|p| p.file_name()?.to_str()?.parse::<u32>().ok());
    let mut all: BTreeSet<u32> = pids.filter(|p| inside(p) && fusefs(p)).collect();
    all.extend(processes(state));
    all
}

/// SIGKILL to all processes of the node's mounts at once; how many. They start each other again, so they are stopped first.
pub fn kill_mounts(node: &Namespace, state: &Path) -> usize {
    let mut killed = BTreeSet::new();
    for _ in 0..100 {
        let now = of_mounts(node, state);
        if now.is_empty() {
            break;
        }
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for pid in &now {
                let _ = kill(Pid::from_raw(*pid as i32), signal); // it may have ended
            }
        }
        killed.extend(now);
        pause(Duration::from_millis(10));
    }
    killed.len()
}

/// The end of a node in whatever state it is: connections aborted, processes killed.
pub fn end_mounts(node: &Namespace, state: &Path) {
    // Only mounts that were made in this namespace.
    for line in node.mounts().unwrap_or_default() {
        if let Some(minor) = line.device.split(':').nth(1) {
            let _ = fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1"); // root only
        }
    }
    kill_mounts(node, state);
    let _ = std::process::Command::new("chattr").args(["-R", "-i"]).arg(state.parent().unwrap_or(state)).output();
}

/// Nothing is mounted twice, and everything mounted is among `expected`.
pub fn nothing_stacked(node: &Namespace) -> Result<usize> {
    let lines = node.mounts()?;
    let points: BTreeSet<_> = lines.iter().map(|l| &l.point).collect();
    ensure!(points.len() == lines.len(), "stacked mounts: {lines:#?}");
    Ok(lines.len())
}

/// Open files of plugins, node keepers and mountds at rest: the fewest that were seen within a while, since a call that has been answered holds
/// its connection for a moment more.
pub fn fds(rig: &Rig) -> Result<Vec<usize>> {
    let look = || -> Result<Vec<usize>> { rig.daemons().into_iter().map(Daemon::fds).collect() };
    let mut fewest = look()?;
    for _ in 0..LOOKS {
        pause(Duration::from_millis(50));
        let now = look()?;
        fewest.iter_mut().zip(now).for_each(|(least, n)| *least = n.min(*least));
    }
    Ok(fewest)
}

/// After the last volume was deleted nothing may be left. What was counted, in words.
pub fn nothing_left(rig: &Rig, fds_before: &[usize]) -> Result<String> {
    for node in &rig.nodes {
        let mounts = node.namespace.mounts()?;
        ensure!(mounts.is_empty(), "left on {}: {mounts:#?}", node.name);
        eventually(PATIENCE, || {
            let left = of_mounts(&node.namespace, &node.state.join("mounts"));
            ensure!(
                left.is_empty(),
                "processes left on {}: {:?}",
                node.name,
                left.iter().map(describe).collect::<Vec<_>>()
            );
            let sockets = entries(&node.namespace.path(Path::new(RUNTIME)));
            ensure!(sockets.is_empty(), "left in {RUNTIME}: {sockets:?}");
            let records = entries(&node.state.join("records"));
            ensure!(records.is_empty(), "records left: {records:?}");
            let journals: Vec<_> = entries(&node.state.join("mounts"));
            ensure!(journals.is_empty(), "state of mounts left: {journals:?}");
            if let Some(handed) = &node.handed {
                let (served, kept) = (handed.served(), handed.kept()?);
                ensure!(served.is_empty() && kept.is_empty(), "left on {}: {served:?} {kept:?}", node.name);
            }
            for dir in ["pods", "plugins/kubernetes.io/csi/csi.fusefs.io"] {
                let left = entries(&node.kubelet.join(dir));
                ensure!(left.is_empty(), "left below kubelet's directory: {left:?}");
            }
            Ok(true)
        })?;
    }
    let own = fs::read_to_string("/proc/self/mountinfo")?;
    let root = rig.stack.tmp().display().to_string();
    ensure!(!own.lines().any(|l| l.contains(&root) && l.contains(" fusefs\\043")), "mounts came out of the namespaces");
    eventually(PATIENCE, || {
        let now = fds(rig)?;
        ensure!(
            now.iter().zip(fds_before).all(|(n, b)| n <= b),
            "open files of the daemons: {fds_before:?} before, {now:?} now"
        );
        Ok(true)
    })?;
    eventually(PATIENCE, || {
        let objects = rig.stack.objects()?;
        ensure!(objects.is_empty(), "{} objects left: {:?}", objects.len(), &objects[..objects.len().min(5)]);
        Ok(true)
    })?;
    let pid1: usize = rig.nodes.iter().map(|n| of_mounts(&n.namespace, &n.state.join("mounts")).len()).sum();
    Ok(format!(
        "0 mounts, {pid1} processes, 0 sockets, 0 records, 0 journals, 0 objects; open files not above {fds_before:?}"
    ))
}

fn describe(pid: &u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    format!("{pid} {}", String::from_utf8_lossy(&line).replace('\0', " "))
}
