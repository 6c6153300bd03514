//! Inode attributes as they travel.

use crate::{Ino, hlc::Hlc};

/// Nanoseconds since 1970-01-01 UTC; negative before. Covers 1677..2262.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Time(pub i64);

impl Time {
    /// Seconds (rounded down) and nanoseconds 0..1e9.
    pub fn split(self) -> (i64, u32) {
        (self.0.div_euclid(1_000_000_000), self.0.rem_euclid(1_000_000_000) as u32)
    }
    /// From seconds and nanoseconds, saturating.
    pub fn join(sec: i64, nsec: u32) -> Time {
        Time(sec.saturating_mul(1_000_000_000).saturating_add(i64::from(nsec)))
    }
}

impl From<Hlc> for Time {
    fn from(h: Hlc) -> Time {
        Time(i64::try_from(h.0).unwrap_or(i64::MAX))
    }
}

/// File type; the discriminant is the `d_type` of readdir.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum FileKind {
    /// FIFO
    Fifo = 1,
    /// Character device
    CharDevice = 2,
    /// Directory
    Directory = 4,
    /// Block device
    BlockDevice = 6,
    /// Regular file
    Regular = 8,
    /// Symbolic link
    Symlink = 10,
    /// Unix socket
    Socket = 12,
}

impl FileKind {
    /// From a `d_type`.
    pub fn from_dtype(t: u8) -> Option<FileKind> {
        Some(match t {
            1 => FileKind::Fifo,
            2 => FileKind::CharDevice,
            4 => FileKind::Directory,
            6 => FileKind::BlockDevice,
            8 => FileKind::Regular,
            10 => FileKind::Symlink,
            12 => FileKind::Socket,
            _ => return None,
        })
    }
    /// The `S_IFMT` bits.
    pub fn mode_bits(self) -> u32 {
        (self as u32) << 12
    }
    /// From the `S_IFMT` bits of a mode; 0 means regular, as in mknod(2).
    pub fn from_mode(mode: u32) -> Option<FileKind> {
        match (mode >> 12) & 0xf {
            0 => Some(FileKind::Regular),
            t => FileKind::from_dtype(t as u8),
        }
    }
}

/// Permission bits with set-uid, set-gid and sticky: 0..=0o7777.
pub type Mode = u16;

/// Attributes of one inode. `change` grows with every change of the inode (PROTOCOL 3, 45).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// File type.
    pub kind: FileKind,
    /// Permission bits 0..=0o7777.
    pub mode: Mode,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Link count; directories: 2 + number of subdirectories.
    pub nlink: u32,
    /// Device number of device nodes.
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// Bytes allocated by extents (st_blocks = ceil / 512).
    pub allocated: u64,
    /// Access time.
    pub atime: Time,
    /// Modification time.
    pub mtime: Time,
    /// Status change time.
    pub ctime: Time,
    /// Birth time.
    pub btime: Time,
    /// Version: HLC stamp of the last change.
    pub change: Hlc,
    /// Files: number of truncations that shrank the file; commits carry the one they saw. Directories: entry version, the
    /// number of commands that changed its entries (each counts once), with which a client proves that it missed nothing.
    pub trunc_seq: u64,
    /// Inode flags (chattr), 0 for now.
    pub flags: u32,
    /// Project (directory quota) id, inherited.
    pub project: u32,
    /// Parent of a directory; `Ino(0)` for other kinds.
    pub parent: Ino,
    /// Whether the inode has any extended attribute (saves a getxattr).
    pub has_xattr: bool,
}
