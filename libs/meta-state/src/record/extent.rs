//! Extent: key = (inode, file offset). Extents of an inode never overlap.

use super::Record;
use crate::codec::{Get, Put};
use fusefs_types::{Extent, FsError, FsResult, Hlc, Ino, ObjectId, SessionId, Source, ids::Incarnation};

const VERSION: u8 = 1;

/// Where an extent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExtentKey {
    /// File.
    pub ino: Ino,
    /// First byte.
    pub offset: u64,
}

/// The rest of an [`Extent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredExtent {
    /// Bytes, at least 1.
    pub len: u64,
    /// Codec flags.
    pub codec: u16,
    /// Where the bytes are.
    pub source: Source,
    /// Birth (PROTOCOL 32: snapshot deadlists later).
    pub birth: Hlc,
}

impl StoredExtent {
    /// As it travels.
    pub fn at(&self, offset: u64) -> Extent {
        Extent { offset, len: self.len, codec: self.codec, source: self.source }
    }
}

impl Record for StoredExtent {
    const TREE: u8 = 3;
    type Key = ExtentKey;
    fn encode_key(key: &ExtentKey, out: &mut Vec<u8>) {
        out.key64(key.ino.0).key64(key.offset);
    }
    fn decode_key(bytes: &[u8]) -> FsResult<ExtentKey> {
        let mut g = Get(bytes);
        let key = ExtentKey { ino: Ino(g.key64()?), offset: g.key64()? };
        g.end().map(|()| key)
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.u8(VERSION).u64(self.len).u16(self.codec).u64(self.birth.0);
        match self.source {
            Source::Object { id, home, skip } => {
                out.u8(1).u128(id.session.0).u32(id.incarnation.0).u64(id.counter).u64(home.0).u64(skip)
            }
            Source::Inline { index, n, skip } => out.u8(2).u64(index).u32(n).u32(skip),
            Source::Zero => out.u8(3),
        };
    }
    fn decode(bytes: &[u8]) -> FsResult<StoredExtent> {
        let mut g = Get(bytes);
        g.version(VERSION)?;
        let (len, codec, birth) = (g.u64()?, g.u16()?, Hlc(g.u64()?));
        let source = match g.u8()? {
            1 => Source::Object {
                id: ObjectId { session: SessionId(g.u128()?), incarnation: Incarnation(g.u32()?), counter: g.u64()? },
                home: Ino(g.u64()?),
                skip: g.u64()?,
            },
            2 => Source::Inline { index: g.u64()?, n: g.u32()?, skip: g.u32()? },
            3 => Source::Zero,
            _ => return Err(FsError::Corrupt),
        };
        if len == 0 {
            return Err(FsError::Corrupt);
        }
        g.end().map(|()| StoredExtent { len, codec, source, birth })
    }
}
