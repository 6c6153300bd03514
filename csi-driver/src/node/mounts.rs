//! What is mounted where, and the few mount calls that never wait for a file system's server.

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::{CString, OsString},
    fs::{self, DirBuilder},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{DirBuilderExt, PermissionsExt},
        },
    },
    path::{Path, PathBuf},
};

/// More mounts than this are never stacked on one path.
const STACK_MAX: usize = 64;
/// Mode of target directories.
const TARGET_MODE: u32 = 0o750;

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `major:minor` of the superblock.
    pub device: String,
    /// Which part of the file system: `/`, or the directory of a bind mount.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// Options of this mount, e.g. `rw,nosuid`.
    pub options: String,
    /// Source as given to mount.
    pub source: String,
}

impl Mount {
    /// Whether an option is set on this mount.
    pub fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|o| o == option)
    }
}

/// All mounts of this namespace, later ones on top.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts(pub Vec<Mount>);

impl Mounts {
    /// Takes a snapshot.
    pub fn read() -> io::Result<Mounts> {
        Ok(Mounts::parse(&fs::read("/proc/self/mountinfo")?))
    }

    /// Parses the file; lines that do not fit are left out.
    pub fn parse(text: &[u8]) -> Mounts {
        Mounts(text.split(|b| *b == b'\n').filter_map(parse_line).collect())
    }

    /// Mounts at exactly this path, the top one last.
    pub fn at(&self, point: &Path) -> Vec<&Mount> {
        self.0.iter().filter(|m| m.point == point).collect()
    }

    /// The top mount at exactly this path.
    pub fn top(&self, point: &Path) -> Option<&Mount> {
        self.0.iter().rev().find(|m| m.point == point)
    }
}

// 36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw,errors=continue
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|b| *b == b' ');
    let path = |w: &[u8]| PathBuf::from(OsString::from_vec(unescape(w)));
    let text = |w: &[u8]| String::from_utf8_lossy(w).into_owned();
    let device = text(words.nth(2)?);
    let root = path(words.next()?);
    let point = path(words.next()?);
    let options = text(words.next()?);
    let source = words.skip_while(|w| *w != b"-").nth(2)?;
    Some(Mount { device, root, point, options, source: text(&unescape(source)) })
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, tail @ ..] = rest {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
                out.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// Flags of a pod's bind mount. `nosuid` and `nodev` always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindFlags {
    /// Refuses writes.
    pub read_only: bool,
    /// Refuses to execute.
    pub no_exec: bool,
}

impl BindFlags {
    /// Whether a mount has all of them.
    pub fn are_set(self, m: &Mount) -> bool {
        m.has("nosuid") && m.has("nodev") && m.has("ro") == self.read_only && m.has("noexec") == self.no_exec
    }
}

/// Binds `from` at `target`, with the flags from the first moment on: flags that are set later are seen in this mount
/// namespace only, while a mount propagates to the node and its pods.
#[allow(unsafe_code)]
pub fn bind(from: BorrowedFd<'_>, target: &Path, flags: BindFlags) -> io::Result<()> {
    const OPEN_TREE_CLONE: libc::c_int = 1;
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_int = 4;
    const RDONLY: u64 = 1;
    const NOSUID: u64 = 2;
    const NODEV: u64 = 4;
    const NOEXEC: u64 = 8;
    let bit = |set: bool, bit: u64| if set { bit } else { 0 };
    let set = NOSUID | NODEV | bit(flags.read_only, RDONLY) | bit(flags.no_exec, NOEXEC);
    // struct mount_attr: set, clear, propagation, user namespace
    let attributes = [set, (RDONLY | NOEXEC) & !set, 0, 0];
    let target = CString::new(target.as_os_str().as_bytes())?;
    let check = |result: libc::c_long| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    let clone = OPEN_TREE_CLONE | libc::AT_EMPTY_PATH | libc::O_CLOEXEC;
    // SAFETY: the path is a C string; the kernel keeps no pointer.
    let tree = check(unsafe { libc::syscall(libc::SYS_open_tree, from.as_raw_fd(), c"".as_ptr(), clone) })?;
    // SAFETY: a new descriptor that nobody else has.
    let tree = unsafe { OwnedFd::from_raw_fd(i32::try_from(tree).map_err(io::Error::other)?) };
    let (fd, size) = (tree.as_raw_fd(), size_of_val(&attributes));
    let attributes = attributes.as_ptr();
    // SAFETY: the structure is as long as is said.
    check(unsafe { libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), libc::AT_EMPTY_PATH, attributes, size) })?;
    let (here, at, how) = (libc::AT_FDCWD, target.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH);
    // SAFETY: both paths are C strings.
    check(unsafe { libc::syscall(libc::SYS_move_mount, fd, c"".as_ptr(), here, at, how) })?;
    Ok(())
}

/// Sets the flags of the bind mount on top at `target`, in this mount namespace.
pub fn set_flags(target: &Path, flags: BindFlags) -> io::Result<()> {
    let mut bits =
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RELATIME;
    bits.set(MsFlags::MS_RDONLY, flags.read_only);
    bits.set(MsFlags::MS_NOEXEC, flags.no_exec);
    Ok(mount(None::<&str>, target, None::<&str>, bits, None::<&str>)?)
}

/// Takes `count` mounts off the top of `point`, without waiting for anybody who uses them. A path where nothing is
/// mounted (any more) is fine.
pub fn detach(point: &Path, count: usize) -> io::Result<()> {
    for _ in 0..count.min(STACK_MAX) {
        match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Makes the directory that a bind mount goes on. Only for paths where nothing is mounted. A symbolic link is refused.
pub fn make_target(target: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(TARGET_MODE).create(target) {
        Ok(()) => fs::set_permissions(target, fs::Permissions::from_mode(TARGET_MODE)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(target)?;
            if found.is_dir() { Ok(()) } else { Err(io::Error::other("it exists and is not a directory")) }
        }
        Err(e) => Err(e),
    }
}

/// Makes a directory refuse entries (or accept them again), so that a pod that starts while the volume is not mounted fails
/// instead of filling the node's disk. Only for paths where nothing is mounted. File systems that cannot are left alone.
pub fn protect(dir: &Path, on: bool) -> io::Result<()> {
    use rustix::fs::{IFlags, Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match rustix::fs::open(dir, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => return Ok(()),
        other => other?,
    };
    let Ok(now) = rustix::fs::ioctl_getflags(&dir) else { return Ok(()) };
    let wanted = if on { now | IFlags::IMMUTABLE } else { now - IFlags::IMMUTABLE };
    if wanted == now { Ok(()) } else { Ok(rustix::fs::ioctl_setflags(&dir, wanted)?) }
}

/// Removes a target directory, only when it is empty. Only for paths where nothing is mounted. Absent is fine.
pub fn remove_target(target: &Path) -> io::Result<()> {
    protect(target, false)?;
    match fs::remove_dir(target) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let text =
            b"36 35 98:0 / /mnt\\0402 rw,noatime master:1 shared:2 - fuse.fusefs fusefs#a\\134b rw,x=1\nrubbish\n\
            37 36 0:55 /sub /mnt\\0402 ro,nosuid - tmpfs t rw\n";
        let mounts = Mounts::parse(text);
        assert_eq!(mounts.0.len(), 2);
        let at = mounts.at(Path::new("/mnt 2"));
        assert_eq!((&*at[0].device, &*at[0].source), ("98:0", "fusefs#a\\b"));
        assert_eq!(mounts.top(Path::new("/mnt 2")).map(|m| &*m.root), Some(Path::new("/sub")));
        assert!(at[1].has("ro") && at[1].has("nosuid") && !at[1].has("rw"));
        assert_eq!(mounts.top(Path::new("/mnt")), None);
        for cut in 0..text.len() {
            Mounts::parse(&text[..cut]);
        }
        assert!(Mounts::read().unwrap().top(Path::new("/")).is_some());
    }

    #[test]
    fn escapes_are_undone() {
        for (from, to) in
            [("a", "a"), ("\\040", " "), ("a\\134b", "a\\b"), ("\\", "\\"), ("\\04", "\\04"), ("\\999", "\\999")]
        {
            assert_eq!(unescape(from.as_bytes()), to.as_bytes());
        }
    }

    #[test]
    fn target_directories_are_made_once_and_removed_only_when_empty() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("t");
        make_target(&target).unwrap();
        make_target(&target).unwrap();
        fs::write(target.join("precious"), b"x").unwrap();
        assert!(remove_target(&target).is_err());
        fs::remove_file(target.join("precious")).unwrap();
        remove_target(&target).unwrap();
        remove_target(&target).unwrap();
        std::os::unix::fs::symlink("/etc", &target).unwrap();
        assert!(make_target(&target).is_err());
        assert!(remove_target(&target).is_err());
    }
}
