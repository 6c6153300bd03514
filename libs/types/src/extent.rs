//! Where file bytes live (PROTOCOL 30, 31).

use crate::{Ino, SessionId, ids::Incarnation, limits};

/// Name of an immutable object: unique by construction, because an incarnation number is never reused in a session.
/// Objects that a metanode writes use (group, term, counter) in the same shape, with `session` = group id and the top
/// bit set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// Session (or group) that wrote it.
    pub session: SessionId,
    /// Incarnation (or term) that wrote it.
    pub incarnation: Incarnation,
    /// Counter within the incarnation.
    pub counter: u64,
}

impl ObjectId {
    /// Key below the store's prefix: `<2 hex>/<session>.<incarnation>-<counter>`; the 2 hex digits hash the counter so
    /// that prefixes spread.
    pub fn key(&self) -> String {
        format!("{:02x}/{}.{}-{}", self.shard(), self.session, self.incarnation, self.counter)
    }
    /// The two hex digits.
    pub fn shard(&self) -> u8 {
        (self.counter.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
    }
    /// Inverse of [`ObjectId::key`]; None for anything else.
    pub fn parse(key: &str) -> Option<ObjectId> {
        let (shard, rest) = key.split_once('/')?;
        let (session, rest) = rest.split_once('.')?;
        let (incarnation, counter) = rest.split_once('-')?;
        let id = ObjectId {
            session: session.parse().ok().filter(|_| session.len() == 32)?,
            incarnation: incarnation.parse().ok()?,
            counter: counter.parse().ok()?,
        };
        (id.key() == key && shard.len() == 2).then_some(id)
    }
}

/// Where the bytes of an extent are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// In an object: `skip` bytes into the plain data of the object (frame = skip / 64 KiB).
    Object {
        /// The object.
        id: ObjectId,
        /// Inode whose partition is the object's home (PROTOCOL 32).
        home: Ino,
        /// First byte used, in plain object data.
        skip: u64,
    },
    /// In the partition's blob file: (log index, n) names the put, `skip` bytes into it.
    Inline {
        /// Log index of the command that carried the bytes.
        index: u64,
        /// Position of the item in that command.
        n: u32,
        /// First byte used.
        skip: u32,
    },
    /// Allocated zeroes (fallocate); no bytes stored.
    Zero,
}

/// A run of file bytes `[offset, offset + len)` and where they are. Extents of a file never overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes, at least 1.
    pub len: u64,
    /// Codec flags, 0 = plain. An unknown codec is refused.
    pub codec: u16,
    /// Where the bytes are.
    pub source: Source,
}

impl Extent {
    /// First byte behind the extent.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }
    /// The part of the extent inside `[from, to)`, or None.
    pub fn slice(&self, from: u64, to: u64) -> Option<Extent> {
        let (a, b) = (self.offset.max(from), self.end().min(to));
        if a >= b {
            return None;
        }
        let d = a - self.offset;
        let source = match self.source {
            Source::Object { id, home, skip } => Source::Object { id, home, skip: skip + d },
            Source::Inline { index, n, skip } => Source::Inline { index, n, skip: skip + d as u32 },
            Source::Zero => Source::Zero,
        };
        Some(Extent { offset: a, len: b - a, codec: self.codec, source })
    }
}

/// Frame of an object: 64 KiB of plain data with its own CRC.
pub const FRAME: u64 = limits::FRAME_BYTES as u64;
