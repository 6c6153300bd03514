//! Runtime `mountd`: those who serve are children of one unprivileged daemon on the node (bare hosts, Nomad, a DaemonSet in
//! Kubernetes) instead of a pod each. Everything else is the runtime `pod`.
//!
//! The two sides agree through a directory: the node plugin makes `VOLUME-HASH/`, the daemon runs `fusefs fuse-pod` in it as
//! long as it is there. Nothing has to be said again after a restart of either.

use super::pod::{HostFinder, dial::SOCKET};
use crate::node::paths::hashed;
use async_trait::async_trait;
use nix::unistd::{Gid, Uid, chown};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsString,
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Between two looks of the daemon at the directory: a pause of a mount that nobody serves.
const LOOK: Duration = Duration::from_millis(20);
/// A process that ends this soon after its start is started again only after [`AGAIN`].
const STEADY: Duration = Duration::from_secs(1);
/// See [`STEADY`].
const AGAIN: Duration = Duration::from_millis(500);

/// The plugin's side. The name of a volume's directory is the volume's [`super::MountSpec::key`].
#[derive(Clone, Debug)]
pub struct HostDirs {
    root: PathBuf,
    owner: (Uid, Gid),
    /// Directories that nobody wanted the last time.
    unwanted: Arc<Mutex<HashSet<String>>>,
}

impl HostDirs {
    /// Makes the directory (0755: the daemon lists it) and gives what is in it to the daemon's user.
    pub fn new(root: &Path, owner: (u32, u32)) -> io::Result<HostDirs> {
        DirBuilder::new().recursive(true).mode(0o755).create(root)?;
        Ok(HostDirs {
            root: root.to_owned(),
            owner: (Uid::from_raw(owner.0), Gid::from_raw(owner.1)),
            unwanted: Arc::default(),
        })
    }
}

#[async_trait]
impl HostFinder for HostDirs {
    async fn find(&self, volume: &str) -> Result<Option<PathBuf>, String> {
        let name = hashed(volume.as_bytes());
        let dir = self.root.join(&name);
        let made = match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => chown(&dir, Some(self.owner.0), Some(self.owner.1)).map_err(io::Error::from),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(e),
        };
        made.map_err(|e| format!("{}: {e}", dir.display()))?;
        Ok(Some(Path::new(&name).join(SOCKET)))
    }

    async fn release(&self, volume: &str) {
        self.remove(&hashed(volume.as_bytes()));
    }

    async fn collect(&self, wanted: &HashSet<String>) {
        let there = names(&self.root).unwrap_or_default(); // there is another time
        let there = there.into_iter().filter_map(|n| n.into_string().ok());
        let unwanted: HashSet<String> = there.filter(|n| !wanted.contains(n)).collect();
        let before = std::mem::replace(&mut *self.unwanted.lock(), unwanted.clone());
        unwanted.intersection(&before).for_each(|name| self.remove(name));
    }
}

impl HostDirs {
    fn remove(&self, name: &str) {
        let dir = self.root.join(name);
        if let Err(error) = std::fs::remove_dir_all(&dir) {
            tracing::warn!(%error, dir = %dir.display(), "the process that served a volume stays");
        }
    }
}

/// One process of the daemon.
struct Host {
    child: Child,
    since: Instant,
}

/// The daemon: runs one `fusefs fuse-pod` for each directory below `root`, until `stop` says so. The mounts go on without
/// it: the plugin holds them.
pub fn serve(root: &Path, program: &Path, common: &[OsString], stop: impl Fn() -> bool) -> io::Result<()> {
    let (mut hosts, mut wait) = (BTreeMap::<OsString, Host>::new(), BTreeMap::<OsString, Instant>::new());
    while !stop() {
        let wanted = names(root)?;
        for (name, mut host) in hosts.extract_if(.., |name, _| !wanted.contains(name)) {
            let _ = host.child.kill(); // it may have ended
            let _ = host.child.wait();
            tracing::info!(?name, "let go");
        }
        for (name, host) in hosts.extract_if(.., |_, host| !matches!(host.child.try_wait(), Ok(None))) {
            let pause = if host.since.elapsed() < STEADY { AGAIN } else { Duration::ZERO };
            tracing::warn!(?name, "the process ended; it is started again");
            wait.insert(name, Instant::now() + pause);
        }
        wait.retain(|name, at| wanted.contains(name) && *at > Instant::now());
        for name in wanted.into_iter().filter(|n| !wait.contains_key(n)) {
            if let std::collections::btree_map::Entry::Vacant(free) = hosts.entry(name) {
                let child = start(&root.join(free.key()), program, common)?;
                free.insert(Host { child, since: Instant::now() });
            }
        }
        super::pause(LOOK);
    }
    for mut host in hosts.into_values() {
        let _ = host.child.kill();
        let _ = host.child.wait();
    }
    Ok(())
}

fn names(root: &Path) -> io::Result<Vec<OsString>> {
    match std::fs::read_dir(root) {
        Ok(entries) => Ok(entries.filter_map(|e| e.ok()).map(|e| e.file_name()).collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()), // the plugin has not made it yet
        Err(e) => Err(e),
    }
}

fn start(runtime: &Path, program: &Path, common: &[OsString]) -> io::Result<Child> {
    // The host ends when its input does: nobody would start it again, and its successor could not have its directory.
    Command::new(program).arg("fuse-pod").arg("--runtime").arg(runtime).args(common).stdin(Stdio::piped()).spawn()
}
