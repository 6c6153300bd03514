//! Who keeps a mount alive: the processes that have its connection open. Read from their own sockets and /proc, never from
//! what we believe.

use super::namespace::Namespace;
use fusefs_fuse_client::{
    keeper::Channel,
    supervise::{ClientRecord, Phase, dirs, names, processes},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What a process must hold for a successor.
pub(super) const NEEDED: &[&str] = &[names::FUSE, names::INIT, names::SESSION, names::SPEC, names::CLIENT];
/// Where nodes keep their mounts' sockets; a tmpfs of each node.
pub const RUNTIME: &str = "/run/fusefs";

/// The processes of a mount that is whole: each is there and has the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holders {
    /// Keeper: the mount's own, or the node's.
    pub keeper: u32,
    /// Supervisor.
    pub supervisor: u32,
    /// Client, serving.
    pub client: u32,
    /// The node's plugin, where it holds mounts.
    pub plugin: Option<u32>,
}

impl Holders {
    /// All.
    pub fn pids(self) -> Vec<u32> {
        [self.keeper, self.supervisor, self.client].into_iter().chain(self.plugin).collect()
    }

    /// Those of whom one has to live. A client goes on alone and starts the others again only where these are its own.
    pub fn lasting(self) -> [u32; 3] {
        [self.keeper, self.supervisor, self.plugin.unwrap_or(self.client)]
    }
}

/// Directory of sockets of the mount at `point`, as seen from outside; the newest. None when nobody is there.
pub fn runtime_dir(node: &Namespace, point: &Path) -> Option<PathBuf> {
    let hash = point
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    let hash = format!("{hash:016x}");
    let mut found: Vec<PathBuf> = entries(&node.path(Path::new(RUNTIME)))
        .into_iter()
        .filter(|d| d.file_name().is_some_and(|n| n.to_string_lossy().contains(&hash)))
        .filter(|d| [dirs::keeper_socket(d), dirs::supervisor_socket(d)].iter().any(|s| Channel::connect(s).is_ok()))
        .collect();
    found.sort();
    found.pop()
}

/// Entries of a directory; none when it is not there.
pub fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map_or_else(|_| Vec::new(), |list| list.filter_map(|e| Some(e.ok()?.path())).collect())
}

/// FUSE connections that the process has open.
pub fn connections(pid: u32) -> usize {
    let fuse = |fd: &PathBuf| fs::read_link(fd).is_ok_and(|to| to == Path::new("/dev/fuse"));
    entries(Path::new(&format!("/proc/{pid}/fd"))).iter().filter(|fd| fuse(fd)).count()
}

/// Whether the process has a FUSE connection open.
pub fn has_connection(pid: u32) -> bool {
    connections(pid) > 0
}

/// The processes of the mount at `point`, when all three are there, each has the connection, both holders have
/// everything that a successor needs, and the client serves.
pub fn whole(node: &Namespace, point: &Path) -> Option<Holders> {
    let runtime = runtime_dir(node, point)?;
    let p = processes(&runtime);
    let holders = Holders { keeper: p.keeper?, supervisor: p.supervisor?, client: p.client?, plugin: None };
    let complete = |socket: &Path| {
        let Ok(channel) = Channel::connect(socket) else { return false };
        let Ok(have) = channel.list() else { return false };
        let serving = channel.get(names::CLIENT).ok().flatten().and_then(|i| ClientRecord::decode(&i.bytes));
        NEEDED.iter().all(|n| have.iter().any(|h| h == n))
            && serving.is_some_and(|c| c.pid == holders.client && c.phase == Phase::Serving)
    };
    let all = complete(&dirs::keeper_socket(&runtime)) && complete(&dirs::supervisor_socket(&runtime));
    (all && holders.pids().into_iter().all(has_connection)).then_some(holders)
}
