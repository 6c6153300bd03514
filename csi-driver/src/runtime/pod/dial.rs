//! The way into a fuse pod: its directory below kubelet's, found by the pod's uid. Nothing in it is trusted: no symbolic
//! link is followed, neither on the way nor at its end (PROTOCOL 47).

use fusefs_fuse_client::keeper::Channel;
use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::Mode,
};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

/// Volume of the pod with the socket, as its manifest names it.
pub const SOCKET_VOLUME: &str = "comm";
/// Socket of the supervisor in it.
pub const SOCKET: &str = "supervisor.sock";

/// Where a pod's socket lies, relative to kubelet's directory. None when `uid` is no uid.
pub fn socket_path(uid: &str) -> Option<PathBuf> {
    let plain = !uid.is_empty() && uid.len() <= 64 && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    plain.then(|| {
        let volume = Path::new("pods").join(uid).join("volumes/kubernetes.io~empty-dir").join(SOCKET_VOLUME);
        volume.join(SOCKET)
    })
}

/// Connects to the socket at `path`, a relative path, below the directory `base`, which is trusted.
pub fn dial(base: &Path, path: &Path) -> io::Result<Channel> {
    let base = open(base, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let socket: OwnedFd = openat2(&base, path, how)?;
    // The path of a pod's socket is longer than an address may be; this one is not.
    Channel::connect(Path::new(&format!("/proc/self/fd/{}", socket.as_raw_fd())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fusefs_fuse_client::keeper::sys;

    #[test]
    fn a_pod_cannot_lead_us_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = socket_path("9b2a0c1e-0000-4000-8000-000000000001").unwrap();
        let whole = dir.path().join(&path);
        std::fs::create_dir_all(whole.parent().unwrap()).unwrap();
        let other = dir.path().join("other.sock");
        let _listener = sys::listener(&other).unwrap();
        assert!(dial(dir.path(), &path).is_err(), "nothing there");
        std::os::unix::fs::symlink(&other, &whole).unwrap();
        assert!(dial(dir.path(), &path).is_err(), "a link to another socket");
        std::fs::remove_file(&whole).unwrap();
        std::fs::rename(&other, &whole).unwrap();
        assert!(dial(dir.path(), &path).is_ok());
        assert!(dial(dir.path(), Path::new("../x.sock")).is_err());
        for bad in ["", "..", "a/b", "../../x", &"a".repeat(65)] {
            assert_eq!(socket_path(bad), None, "{bad:?}");
        }
    }
}
