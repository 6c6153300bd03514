//! A mount without anybody who serves it yet: the device fd, and the directory underneath protected.

use super::mount::{MountError, MountSettings, SUBTYPE, Unmounter, explain, mount_directly, prepare, raise_read_ahead};
use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// How long fusermount3 may take to hand over the device.
const HELPER_MS: u16 = 30_000;

/// A fresh mount whose INIT nobody has answered yet.
#[derive(Debug)]
pub struct Attached {
    /// Path as the kernel names it.
    pub point: PathBuf,
    /// Device; the mount lives while any copy of it does.
    pub device: OwnedFd,
    /// The directory underneath was made unwritable by us (and was not before).
    pub protected: bool,
}

/// Detaches a dead mount of ours, protects the directory underneath (when `protect`), and mounts: as root with mount(2),
/// else through fusermount3.
pub fn attach(settings: &MountSettings, protect: bool) -> Result<Attached, MountError> {
    let point = prepare(&settings.mountpoint)?;
    let protected = protect && set_immutable(&point, true).unwrap_or(false);
    let root = nix::unistd::geteuid().is_root();
    let mounted = if root { mount_directly(settings, &point) } else { mount_through_helper(settings, &point) };
    match mounted {
        Ok(device) => {
            raise_read_ahead(&point);
            Ok(Attached { point, device, protected })
        }
        Err(e) => {
            if protected {
                let _ = set_immutable(&point, false); // as it was
            }
            Err(explain(&point, e))
        }
    }
}

/// fusermount3 mounts for ordinary users and sends the device over a socket, here its standard input.
fn mount_through_helper(settings: &MountSettings, point: &Path) -> io::Result<OwnedFd> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let access = if settings.read_only { "ro" } else { "rw" };
    let mut options = OsString::from(format!("{access},default_permissions,subtype={SUBTYPE},fsname="));
    options.push(settings.source.replace(',', "_"));
    if settings.allow_other == Some(true) {
        options.push(",allow_other");
    }
    let child = Command::new("fusermount3")
        .arg("-o")
        .arg(options)
        .arg("--")
        .arg(point)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("fusermount3 cannot be started ({e}); install fuse3")))?;
    let device = receive_device(&ours);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    device.inspect_err(|_| {
        let _ = Unmounter::new(point).detach(); // nobody could serve it
    })
}

fn receive_device(socket: &std::os::unix::net::UnixStream) -> io::Result<OwnedFd> {
    use crate::keeper::sys;
    if sys::readiness(socket.as_fd(), nix::poll::PollFlags::POLLIN, HELPER_MS).is_none() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut byte = [0; 8];
    let (_, mut fds) = sys::receive(socket.as_fd(), &mut byte)?;
    fds.pop().ok_or_else(|| io::Error::other("fusermount3 sent no device"))
}

nix::ioctl_read!(get_flags, b'f', 1, libc::c_long);
nix::ioctl_write_ptr!(set_flags, b'f', 2, libc::c_long);
/// FS_IMMUTABLE_FL: no entry can be made, changed or removed, by nobody.
const IMMUTABLE: libc::c_int = 0x10;

/// Makes a directory unwritable, so that nothing fills the node's disk where a mount belongs, or writable again.
/// True when that changed something. Needs root and a file system that knows the flag (tmpfs, overlay and NFS do not).
/// Must not be called while something is mounted there.
#[allow(unsafe_code)]
pub fn set_immutable(path: &Path, on: bool) -> io::Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(false);
    }
    let directory = std::fs::File::open(path)?;
    // The kernel reads and writes an int in spite of the type in the request's number.
    let mut word: libc::c_long = 0;
    // SAFETY: the kernel writes an int into a long of ours.
    unsafe { get_flags(directory.as_raw_fd(), &raw mut word) }?;
    let flags = word as libc::c_int;
    let wanted = if on { flags | IMMUTABLE } else { flags & !IMMUTABLE };
    if wanted == flags {
        return Ok(false);
    }
    let word = libc::c_long::from(wanted);
    // SAFETY: the kernel reads an int from a long of ours (little-endian, or a long whose low half is meant).
    unsafe { set_flags(directory.as_raw_fd(), &raw const word) }?;
    Ok(true)
}
