//! Bodies of replies.

use super::abi::{self, DIRENT, ENTRY, Out, fopen};
use crate::vfs::{DirItem, Entry, FsStat, Opened};
use fusefs_types::{Attr, FsError, Ino, limits};
use std::time::Duration;

/// Preferred I/O size shown by stat.
const BLOCK: u32 = 64 << 10;
/// Block size of statfs.
const STATFS_BLOCK: u64 = 4096;
/// STATX_BASIC_STATS and STATX_BTIME.
const STATX_MASK: u32 = 0x7ff | 0x800;

/// The mount's root inode is the kernel's nodeid 1 (PROTOCOL 2); all others are themselves.
#[derive(Clone, Copy, Debug)]
pub struct Root(pub Ino);

impl Root {
    /// From the kernel.
    pub fn ino(self, node: u64) -> Ino {
        if node == abi::ROOT_NODE { self.0 } else { Ino(node) }
    }
    /// To the kernel.
    pub fn node(self, ino: Ino) -> u64 {
        if ino == self.0 { abi::ROOT_NODE } else { ino.0 }
    }

    /// `fuse_attr`.
    fn attr(self, out: &mut Out, a: &Attr) {
        let (atime, mtime, ctime) = (a.atime.split(), a.mtime.split(), a.ctime.split());
        out.u64(self.node(a.ino)).u64(a.size).u64(a.allocated.div_ceil(512));
        out.u64(atime.0 as u64).u64(mtime.0 as u64).u64(ctime.0 as u64);
        out.u32(atime.1).u32(mtime.1).u32(ctime.1);
        out.u32(a.kind.mode_bits() | u32::from(a.mode)).u32(a.nlink).u32(a.uid).u32(a.gid).u32(a.rdev);
        out.u32(BLOCK).u32(0);
    }

    /// Reply to GETATTR and SETATTR.
    pub fn attr_out(self, a: &Attr, ttl: Duration) -> Out {
        let mut out = Out::default();
        out.u64(ttl.as_secs()).u32(ttl.subsec_nanos()).u32(0);
        self.attr(&mut out, a);
        out
    }

    /// Reply to STATX.
    pub fn statx_out(self, a: &Attr, ttl: Duration) -> Out {
        let mut out = Out::default();
        out.u64(ttl.as_secs()).u32(ttl.subsec_nanos()).u32(0).zeros(16);
        out.u32(STATX_MASK).u32(BLOCK).u64(0).u32(a.nlink).u32(a.uid).u32(a.gid);
        out.u16((a.kind.mode_bits() | u32::from(a.mode)) as u16).zeros(2); // 16 bits by definition
        out.u64(self.node(a.ino)).u64(a.size).u64(a.allocated.div_ceil(512)).u64(0);
        for time in [a.atime, a.btime, a.ctime, a.mtime] {
            let (sec, nsec) = time.split();
            out.u64(sec as u64).u32(nsec).u32(0);
        }
        let (major, minor) = (nix::sys::stat::major(u64::from(a.rdev)), nix::sys::stat::minor(u64::from(a.rdev)));
        out.u32(major as u32).u32(minor as u32).u64(0).zeros(14 * 8);
        out
    }

    /// Reply to LOOKUP, MKDIR, LINK and the like.
    pub fn entry_out(self, e: &Entry) -> Out {
        let mut out = Out::default();
        self.entry(&mut out, e);
        out
    }

    fn entry(self, out: &mut Out, e: &Entry) {
        // Inode numbers are never reused, so generations say nothing.
        out.u64(self.node(e.attr.ino)).u64(0).u64(e.entry_ttl.as_secs()).u64(e.attr_ttl.as_secs());
        out.u32(e.entry_ttl.subsec_nanos()).u32(e.attr_ttl.subsec_nanos());
        self.attr(out, &e.attr);
    }

    /// Reply to CREATE.
    pub fn created_out(self, e: &Entry, o: &Opened) -> Out {
        let mut out = self.entry_out(e);
        opened(&mut out, o);
        out
    }

    /// Appends a readdir entry to `page` of at most `size` bytes; false when it has no room.
    pub fn dirent(self, page: &mut Vec<u8>, size: usize, item: &DirItem, plus: bool) -> bool {
        let head = if plus { ENTRY + DIRENT } else { DIRENT };
        let whole = (head + item.name.len()).next_multiple_of(8);
        if page.len() + whole > size {
            return false;
        }
        let end = page.len() + whole;
        if plus {
            let mut out = Out::default();
            match &item.entry {
                Some(known) => self.entry(&mut out, known),
                // nodeid 0: the kernel keeps nothing and looks the name up when somebody asks.
                None => _ = out.zeros(ENTRY),
            }
            page.extend_from_slice(out.body());
        }
        page.extend_from_slice(&self.node(item.ino).to_ne_bytes());
        page.extend_from_slice(&item.offset.to_ne_bytes());
        page.extend_from_slice(&(item.name.len() as u32).to_ne_bytes()); // at most NAME_MAX
        page.extend_from_slice(&(item.kind as u32).to_ne_bytes());
        page.extend_from_slice(&item.name);
        page.resize(end, 0);
        true
    }
}

/// "No such name, and that may be remembered".
pub fn absent_out(ttl: Duration) -> Out {
    let mut out = Out::default();
    out.zeros(16).u64(ttl.as_secs()).zeros(8).u32(ttl.subsec_nanos());
    out.zeros(ENTRY - 36);
    out
}

fn opened(out: &mut Out, o: &Opened) {
    let keep = if o.keep_cache { fopen::KEEP_CACHE } else { 0 };
    let direct = if o.direct_io { fopen::DIRECT_IO } else { 0 };
    out.u64(o.fh).u32(keep | direct).u32(0);
}

/// Reply to OPEN and OPENDIR.
pub fn opened_out(o: &Opened) -> Out {
    let mut out = Out::default();
    opened(&mut out, o);
    out
}

/// Reply to STATFS.
pub fn statfs_out(s: &FsStat) -> Out {
    let free = s.bytes_free / STATFS_BLOCK;
    let mut out = Out::default();
    out.u64(s.bytes / STATFS_BLOCK).u64(free).u64(free).u64(s.inodes).u64(s.inodes_free);
    out.u32(STATFS_BLOCK as u32).u32(limits::NAME_MAX as u32).u32(STATFS_BLOCK as u32).zeros(4 + 24);
    out
}

/// A reply of one word and padding: WRITE, GETXATTR's size, POLL.
pub fn word_out(v: u32) -> Out {
    let mut out = Out::default();
    out.u32(v).u32(0);
    out
}

/// A reply of one long word: LSEEK, COPY_FILE_RANGE_64.
pub fn long_out(v: u64) -> Out {
    let mut out = Out::default();
    out.u64(v);
    out
}

/// Every error that reaches the kernel passes here. ENOSYS is latched by the kernel for the life of the connection, so it
/// never leaves (PROTOCOL 43).
pub fn errno(e: FsError) -> i32 {
    match e {
        FsError::NotImplemented => libc::EOPNOTSUPP,
        e => e.errno(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use fusefs_types::{FileKind, Hlc, Time};

    fn attr() -> Attr {
        Attr {
            ino: Ino(7),
            kind: FileKind::Regular,
            mode: 0o640,
            uid: 1,
            gid: 2,
            nlink: 3,
            rdev: 0,
            size: 1000,
            allocated: 513,
            atime: Time(-1_200_000_000),
            mtime: Time(5),
            ctime: Time(6),
            btime: Time(7),
            change: Hlc(9),
            trunc_seq: 0,
            flags: 0,
            project: 0,
            parent: Ino(0),
            has_xattr: false,
        }
    }

    #[test]
    fn replies_have_the_kernels_sizes() {
        let root = Root(Ino(1));
        let e = Entry { attr: attr(), attr_ttl: Duration::from_secs(1), entry_ttl: Duration::from_secs(2) };
        let o = Opened { fh: 1, keep_cache: true, direct_io: false };
        for (out, size) in [
            (root.attr_out(&attr(), Duration::ZERO), 104),
            (root.statx_out(&attr(), Duration::ZERO), 288),
            (root.entry_out(&e), 128),
            (root.created_out(&e, &o), 144),
            (absent_out(Duration::from_millis(1500)), 128),
            (opened_out(&o), 16),
            (statfs_out(&FsStat::default()), 80),
            (word_out(1), 8),
            (long_out(1), 8),
        ] {
            assert_eq!(out.body().len(), size);
        }
    }

    #[test]
    fn times_before_the_epoch_keep_their_fraction() {
        let out = Root(Ino(1)).attr_out(&attr(), Duration::ZERO);
        let word = |at: usize| i64::from_ne_bytes(out.body()[at..at + 8].try_into().unwrap());
        let half = |at: usize| u32::from_ne_bytes(out.body()[at..at + 4].try_into().unwrap());
        assert_eq!((word(16 + 24), half(16 + 48)), (-2, 800_000_000));
    }

    #[test]
    fn an_absent_name_is_valid_for_its_time() {
        let out = absent_out(Duration::from_millis(1500));
        let mut f = abi::Fields(out.body());
        assert_eq!((f.u64(), f.u64(), f.u64(), f.u64()), (Ok(0), Ok(0), Ok(1), Ok(0)));
        assert_eq!((f.u32(), f.u32()), (Ok(500_000_000), Ok(0)));
    }

    #[test]
    fn directory_entries_stop_at_the_room_and_hide_unknown_inodes() {
        let item =
            DirItem { name: Bytes::from_static(b"abc"), ino: Ino(9), kind: FileKind::Regular, offset: 5, entry: None };
        let mut page = Vec::new();
        let root = Root(Ino(1));
        assert!(root.dirent(&mut page, 64, &item, false) && root.dirent(&mut page, 64, &item, false));
        assert!(!root.dirent(&mut page, 64, &item, false));
        assert_eq!(page.len(), 64);
        let mut plus = Vec::new();
        assert!(root.dirent(&mut plus, 160, &item, true));
        assert_eq!((&plus[..ENTRY], plus.len()), (&[0u8; ENTRY][..], 160));
    }

    #[test]
    fn no_error_becomes_enosys() {
        for e in FsError::ALL {
            assert_ne!(errno(*e), libc::ENOSYS, "{e:?}");
        }
    }
}
