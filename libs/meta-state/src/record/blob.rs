//! Inline bytes: key = (log index, n) names one put into the partition's blob file; the bytes themselves are never in a
//! tree (PROTOCOL 34).

use super::Record;
use crate::codec::{Get, Put};
use fusefs_types::FsResult;

const VERSION: u8 = 1;

/// Name of one put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlobKey {
    /// Log index of the command.
    pub index: u64,
    /// Position of the command in its entry << 16 | item of the command.
    pub n: u32,
}

/// Its length and what is still referenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Bytes put.
    pub len: u32,
    /// Bytes referenced by extents, at least 1.
    pub live: u32,
}

impl Record for Blob {
    const TREE: u8 = 7;
    type Key = BlobKey;
    fn encode_key(key: &BlobKey, out: &mut Vec<u8>) {
        out.key64(key.index).key32(key.n);
    }
    fn decode_key(bytes: &[u8]) -> FsResult<BlobKey> {
        let mut g = Get(bytes);
        let key = BlobKey { index: g.key64()?, n: g.key32()? };
        g.end().map(|()| key)
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.u8(VERSION).u32(self.len).u32(self.live);
    }
    fn decode(bytes: &[u8]) -> FsResult<Blob> {
        let mut g = Get(bytes);
        g.version(VERSION)?;
        let blob = Blob { len: g.u32()?, live: g.u32()? };
        g.end().map(|()| blob)
    }
}
