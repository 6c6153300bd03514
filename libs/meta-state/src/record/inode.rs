//! Inode: key = inode number. Fields that have their usual value take no space: a fresh empty file packs into 22 bytes.

use super::Record;
use crate::codec::{Get, Put};
use bytes::Bytes;
use fusefs_types::{Attr, FileKind, FsError, FsResult, Hlc, Ino, Mode, Time};

/// Newest version of the encoding.
const VERSION: u8 = 1;

/// Everything stored about an inode (PROTOCOL 9). Extents, dentries and xattrs are keys of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Type.
    pub kind: FileKind,
    /// Permission bits 0..=0o7777.
    pub mode: Mode,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Link count; 0 = orphan.
    pub nlink: u32,
    /// Device number.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// Bytes under extents.
    pub allocated: u64,
    /// Access time.
    pub atime: Time,
    /// Modification time.
    pub mtime: Time,
    /// Change time.
    pub ctime: Time,
    /// Birth time.
    pub btime: Time,
    /// Stamp of the last change.
    pub change: Hlc,
    /// Number of shrinking truncations.
    pub trunc_seq: u64,
    /// Recent truncations (seq after, size), sizes ascending: a commit that saw `s` is clipped to the first size with
    /// `seq > s` (PROTOCOL 36).
    pub trunc_low: Vec<(u64, u64)>,
    /// chattr flags.
    pub flags: u32,
    /// Project id.
    pub project: u32,
    /// Number of extended attributes.
    pub xattrs: u32,
    /// Directories: parent. Others 0.
    pub parent: Ino,
    /// Directories: saturating depth below the root, a hint for spilling (PROTOCOL 21).
    pub depth: u8,
    /// Symlinks: target.
    pub target: Bytes,
}

impl Inode {
    /// A new inode, all times = `stamp`; directories start with 2 links, others with 1.
    pub fn new(kind: FileKind, mode: Mode, uid: u32, gid: u32, stamp: Hlc) -> Inode {
        let now = Time::from(stamp);
        Inode {
            kind,
            mode,
            uid,
            gid,
            nlink: Self::usual_nlink(kind),
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            change: stamp,
            trunc_seq: 0,
            trunc_low: Vec::new(),
            flags: 0,
            project: 0,
            xattrs: 0,
            parent: Ino(0),
            depth: 0,
            target: Bytes::new(),
        }
    }
    fn usual_nlink(kind: FileKind) -> u32 {
        if kind == FileKind::Directory { 2 } else { 1 }
    }
    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }
    /// The inode changed at `stamp`: ctime and version.
    pub fn touch(&mut self, stamp: Hlc) {
        self.ctime = stamp.into();
        self.change = stamp;
    }
    /// A directory's content (or a file's data) changed at `stamp`: mtime too.
    pub fn touch_data(&mut self, stamp: Hlc) {
        self.mtime = stamp.into();
        self.touch(stamp);
    }
    /// As it travels.
    pub fn attr(&self, ino: Ino) -> Attr {
        Attr {
            ino,
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            nlink: self.nlink,
            rdev: self.rdev,
            size: self.size,
            allocated: self.allocated,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
            change: self.change,
            trunc_seq: self.trunc_seq,
            flags: self.flags,
            project: self.project,
            parent: self.parent,
            has_xattr: self.xattrs > 0,
        }
    }
    fn present(&self) -> u16 {
        let now = Time::from(self.change);
        [
            self.nlink != Self::usual_nlink(self.kind),
            self.rdev != 0,
            self.size != 0,
            self.allocated != 0,
            self.atime != now,
            self.mtime != now,
            self.ctime != now,
            self.btime != now,
            self.trunc_seq != 0,
            self.flags != 0,
            self.project != 0,
            self.xattrs != 0,
        ]
        .iter()
        .enumerate()
        .fold(0, |bits, (i, on)| bits | (u16::from(*on) << i))
    }
}

impl Record for Inode {
    const TREE: u8 = 1;
    type Key = Ino;
    fn encode_key(key: &Ino, out: &mut Vec<u8>) {
        out.key64(key.0);
    }
    fn decode_key(bytes: &[u8]) -> FsResult<Ino> {
        let mut g = Get(bytes);
        let ino = Ino(g.key64()?);
        g.end().map(|()| ino)
    }
    fn encode(&self, out: &mut Vec<u8>) {
        let bits = self.present();
        let has = |i: u16| bits >> i & 1 == 1;
        out.u8(VERSION).u8(self.kind as u8).u16(bits).u16(self.mode).u32(self.uid).u32(self.gid).u64(self.change.0);
        for (i, v) in [(0, self.nlink), (1, self.rdev)] {
            if has(i) {
                out.u32(v);
            }
        }
        for (i, v) in [(2, self.size), (3, self.allocated)] {
            if has(i) {
                out.u64(v);
            }
        }
        for (i, t) in [(4, self.atime), (5, self.mtime), (6, self.ctime), (7, self.btime)] {
            if has(i) {
                out.u64(t.0 as u64);
            }
        }
        if has(8) {
            out.u64(self.trunc_seq).u8(self.trunc_low.len() as u8);
            for (seq, size) in &self.trunc_low {
                out.u64(*seq).u64(*size);
            }
        }
        for (i, v) in [(9, self.flags), (10, self.project), (11, self.xattrs)] {
            if has(i) {
                out.u32(v);
            }
        }
        match self.kind {
            FileKind::Directory => _ = out.u64(self.parent.0).u8(self.depth),
            FileKind::Symlink => _ = out.rest(&self.target),
            _ => {}
        }
    }
    fn decode(bytes: &[u8]) -> FsResult<Inode> {
        let mut g = Get(bytes);
        g.version(VERSION)?;
        let kind = FileKind::from_dtype(g.u8()?).ok_or(FsError::Corrupt)?;
        let bits = g.u16()?;
        if bits >> 12 != 0 {
            return Err(FsError::Corrupt);
        }
        let has = |i: u16| bits >> i & 1 == 1;
        let (mode, uid, gid, change) = (g.u16()?, g.u32()?, g.u32()?, Hlc(g.u64()?));
        let mut inode = Inode::new(kind, mode, uid, gid, change);
        for (i, v) in [(0, &mut inode.nlink), (1, &mut inode.rdev)] {
            if has(i) {
                *v = g.u32()?;
            }
        }
        for (i, v) in [(2, &mut inode.size), (3, &mut inode.allocated)] {
            if has(i) {
                *v = g.u64()?;
            }
        }
        let Inode { atime, mtime, ctime, btime, .. } = &mut inode;
        for (i, t) in [(4, atime), (5, mtime), (6, ctime), (7, btime)] {
            if has(i) {
                *t = Time(g.u64()? as i64);
            }
        }
        if has(8) {
            inode.trunc_seq = g.u64()?;
            for _ in 0..g.u8()? {
                inode.trunc_low.push((g.u64()?, g.u64()?));
            }
        }
        let Inode { flags, project, xattrs, .. } = &mut inode;
        for (i, v) in [(9, flags), (10, project), (11, xattrs)] {
            if has(i) {
                *v = g.u32()?;
            }
        }
        match kind {
            FileKind::Directory => (inode.parent, inode.depth) = (Ino(g.u64()?), g.u8()?),
            FileKind::Symlink => inode.target = Bytes::copy_from_slice(g.rest()),
            _ => {}
        }
        g.end().map(|()| inode)
    }
}
