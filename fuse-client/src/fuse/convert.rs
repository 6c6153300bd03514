//! Between the kernel's words and ours.

use crate::vfs::{Entry, Request};
use bytes::Bytes;
use fusefs_types::{Attr, FileKind, FsError, Ino, Time, ops::SetTime};
use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bit that the kernel sets in `unique` of a resent request.
const RESEND: u64 = 1 << 63;

/// Preferred I/O size shown by stat.
const BLOCK: u32 = 64 << 10;

/// The mount's root inode is the kernel's nodeid 1 (PROTOCOL 2); all others are themselves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Root(pub Ino);

impl Root {
    /// From the kernel.
    pub fn ino(self, node: INodeNo) -> Ino {
        if node.0 == 1 { self.0 } else { Ino(node.0) }
    }
    /// To the kernel.
    pub fn node(self, ino: Ino) -> INodeNo {
        INodeNo(if ino == self.0 { 1 } else { ino.0 })
    }
    /// Attributes to the kernel.
    pub fn attr(self, a: &Attr) -> FileAttr {
        FileAttr {
            ino: self.node(a.ino),
            size: a.size,
            blocks: a.allocated.div_ceil(512),
            atime: system_time(a.atime),
            mtime: system_time(a.mtime),
            ctime: system_time(a.ctime),
            crtime: system_time(a.btime),
            kind: file_type(a.kind),
            perm: a.mode,
            nlink: a.nlink,
            uid: a.uid,
            gid: a.gid,
            rdev: a.rdev,
            blksize: BLOCK,
            flags: 0,
        }
    }
    /// For replies with one validity for name and attributes.
    pub fn entry(self, e: &Entry) -> (FileAttr, Duration) {
        (self.attr(&e.attr), e.attr_ttl.min(e.entry_ttl))
    }
}

/// An answer without an inode: "no such name, remember that", or a directory entry that the kernel must not keep.
pub(super) fn no_inode(kind: FileKind) -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: file_type(kind),
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::Directory => FileType::Directory,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Socket => FileType::Socket,
    }
}

/// Every error that reaches the kernel passes here. ENOSYS is latched by the kernel for the life of the connection, so it
/// never leaves (PROTOCOL 43).
pub(super) fn errno(e: FsError) -> Errno {
    match e {
        FsError::NotImplemented => Errno::EOPNOTSUPP,
        #[cfg(target_os = "linux")]
        e => Errno::from_i32(e.errno()),
        #[cfg(not(target_os = "linux"))]
        e => Errno::from_i32(portable_errno(e)),
    }
}

/// `FsError::errno` speaks Linux; other systems number some errors differently.
#[cfg(not(target_os = "linux"))]
fn portable_errno(e: FsError) -> i32 {
    use FsError as E;
    match e {
        E::WouldBlock | E::Overloaded => libc::EAGAIN,
        E::NameTooLong => libc::ENAMETOOLONG,
        E::NotEmpty => libc::ENOTEMPTY,
        E::Loop => libc::ELOOP,
        E::NoData => libc::ENODATA,
        E::NotSupported => libc::EOPNOTSUPP,
        E::TimedOut => libc::ETIMEDOUT,
        E::Stale | E::NotAttached | E::Fenced => libc::ESTALE,
        E::Quota => libc::EDQUOT,
        e => e.errno(),
    }
}

pub(super) fn system_time(t: Time) -> SystemTime {
    let ns = Duration::from_nanos(t.0.unsigned_abs());
    if t.0 >= 0 { UNIX_EPOCH + ns } else { UNIX_EPOCH - ns }
}

/// A time that fuser decoded. It maps (sec, nsec) with sec < 0 to `epoch - (|sec| + nsec)`; the kernel means
/// `epoch + sec + nsec`, so the fraction is taken to the other side again.
pub(super) fn time_from_fuser(t: SystemTime) -> Time {
    match t.duration_since(UNIX_EPOCH) {
        Ok(d) => Time::join(i64::try_from(d.as_secs()).unwrap_or(i64::MAX), d.subsec_nanos()),
        Err(e) => {
            let d = e.duration();
            Time::join(i64::try_from(d.as_secs()).map_or(i64::MIN, |s| -s), d.subsec_nanos())
        }
    }
}

pub(super) fn set_time(t: TimeOrNow) -> SetTime {
    match t {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => SetTime::At(time_from_fuser(t)),
    }
}

pub(super) fn bytes(s: &OsStr) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

/// The request's head in our own words.
pub(super) fn head(rq: &fuser::Request) -> Request {
    let unique = rq.unique().0;
    let mut head = Request::new(unique & !RESEND, rq.uid(), rq.gid());
    head.resent = unique & RESEND != 0;
    head.pid = rq.pid();
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_survive_fuser() {
        // What fuser makes of tv_sec = -2, tv_nsec = 800_000_000 (1.2 s before the epoch).
        let decoded = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(time_from_fuser(decoded), Time(-1_200_000_000));
        assert_eq!(time_from_fuser(UNIX_EPOCH + Duration::new(3, 7)), Time(3_000_000_007));
        assert_eq!(system_time(Time(-1_200_000_000)), UNIX_EPOCH - Duration::from_millis(1200));
    }

    #[test]
    fn no_error_becomes_enosys() {
        for e in FsError::ALL {
            assert_ne!(errno(*e).code(), libc::ENOSYS, "{e:?}");
        }
    }

    #[test]
    fn a_subdirectory_root_is_node_one() {
        let root = Root(Ino(77));
        assert_eq!(root.ino(INodeNo(1)), Ino(77));
        assert_eq!(root.node(Ino(77)), INodeNo(1));
        assert_eq!(root.ino(INodeNo(5)), Ino(5));
    }
}
