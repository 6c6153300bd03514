//! Where a mount keeps its journal (survives reboots) and its sockets (do not).

use crate::keeper::Channel;
use nix::{
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};
use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Locked while somebody works in a state directory.
pub const LOCK: &str = "lock";
/// Mounts that may exist for one mount point at once: detached ones live on until their last file is closed.
const GENERATIONS: u32 = 8;
/// Letters of the mount point's name in the directory's name, for people.
const LABEL_CHARS: usize = 24;

/// Directories of one mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// Journal files.
    pub state: PathBuf,
    /// Sockets of keeper and supervisor.
    pub runtime: PathBuf,
}

impl Dirs {
    /// Socket of the keeper.
    pub fn keeper_socket(&self) -> PathBuf {
        keeper_socket(&self.runtime)
    }
    /// Socket of the supervisor.
    pub fn supervisor_socket(&self) -> PathBuf {
        supervisor_socket(&self.runtime)
    }
}

/// Socket of the keeper in a runtime directory.
pub fn keeper_socket(runtime: &Path) -> PathBuf {
    runtime.join("keeper.sock")
}

/// Socket of the supervisor in a runtime directory.
pub fn supervisor_socket(runtime: &Path) -> PathBuf {
    runtime.join("supervisor.sock")
}

/// Held while a supervisor works in the directory.
pub type Claim = Flock<File>;

/// Takes the directories of a new mount at `point` (canonical), made with mode 0700. An earlier mount at the same place
/// that was detached and is still in use keeps its own.
pub fn claim(point: &Path, state: Option<&Path>) -> io::Result<(Dirs, Claim)> {
    for n in 0..GENERATIONS {
        let dirs = Dirs {
            state: state.map_or_else(|| Ok(state_root()?.join(key(point, n))), |s| Ok::<_, io::Error>(s.to_owned()))?,
            runtime: runtime_root().join(key(point, n)),
        };
        make(&dirs.state)?;
        let claim = match lock(&dirs.state)? {
            Some(claim) => claim,
            None if state.is_some() => return Err(in_use(&dirs.state)),
            None => continue,
        };
        if Channel::connect(&dirs.keeper_socket()).is_ok() {
            continue; // its supervisor is just being started again
        }
        let _ = std::fs::remove_dir_all(&dirs.runtime); // sockets of processes that are gone
        make(&dirs.runtime)?;
        return Ok((dirs, claim));
    }
    Err(io::Error::other(format!("{GENERATIONS} earlier mounts at {} are still in use", point.display())))
}

fn in_use(state: &Path) -> io::Error {
    io::Error::other(format!(
        "another mount uses the state directory {}; wait for its end or choose another --state-dir",
        state.display()
    ))
}

/// Locks a state directory; None when somebody else has it.
pub fn lock(state: &Path) -> io::Result<Option<Claim>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(state.join(LOCK))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(claim) => Ok(Some(claim)),
        Err((_, nix::errno::Errno::EAGAIN)) => Ok(None),
        Err((_, e)) => Err(e.into()),
    }
}

/// Runtime directories of live mounts at `point`, the newest last.
pub fn find(point: &Path) -> Vec<PathBuf> {
    let all = (0..GENERATIONS).map(|n| runtime_root().join(key(point, n)));
    all.filter(|d| Channel::connect(&supervisor_socket(d)).is_ok() || Channel::connect(&keeper_socket(d)).is_ok())
        .collect()
}

/// State directory that a mount at `point` uses unless told otherwise.
pub fn default_state(point: &Path) -> io::Result<PathBuf> {
    Ok(state_root()?.join(key(point, 0)))
}

/// Where this user's mounts keep their state unless told otherwise.
pub fn state_root() -> io::Result<PathBuf> {
    if geteuid().is_root() {
        return Ok("/var/lib/fusefs/mounts".into());
    }
    let var = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    var("XDG_STATE_HOME")
        .or_else(|| Some(var("HOME")?.join(".local/state")))
        .map(|p| p.join("fusefs/mounts"))
        .ok_or_else(|| io::Error::other("neither XDG_STATE_HOME nor HOME is set; give --state-dir"))
}

/// The same for every shell of a user: root's never depends on the environment.
fn runtime_root() -> PathBuf {
    let uid = geteuid();
    if uid.is_root() {
        return "/run/fusefs".into();
    }
    let var = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_absolute());
    var.map_or_else(|| PathBuf::from(format!("/tmp/fusefs-{uid}")), |p| p.join("fusefs"))
}

/// A directory for us alone, parents included; refused when somebody else owns it.
pub(super) fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let found = std::fs::symlink_metadata(path)?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() {
        return Err(io::Error::other(format!("{} is not a directory of this user", path.display())));
    }
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))
}

/// Directory name of the mount point: a readable part and a hash of the whole path (FNV-1a: it only has to be the same
/// in every version).
fn key(point: &Path, n: u32) -> String {
    let bytes = point.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    let name = point.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let label: String = name.chars().filter(|c| c.is_ascii_alphanumeric()).take(LABEL_CHARS).collect();
    let base = format!("{label}-{hash:016x}");
    if n == 0 { base } else { format!("{base}-{n}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_fit_into_a_socket_address() {
        assert_eq!(key(Path::new("/mnt/home"), 0), "home-7809156d81d58d63".to_owned());
        let long = PathBuf::from("/").join("x".repeat(255));
        let socket = supervisor_socket(&PathBuf::from("/run/user/4294967295/fusefs").join(key(&long, 7)));
        assert!(socket.as_os_str().len() < 108, "{}", socket.display());
    }

    #[test]
    fn a_state_directory_has_one_supervisor() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap().unwrap();
        assert!(lock(dir.path()).unwrap().is_none());
        drop(first);
        assert!(lock(dir.path()).unwrap().is_some());
    }
}
