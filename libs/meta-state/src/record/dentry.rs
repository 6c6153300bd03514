//! Directory entry: key = (parent, cookie). The name is in the value; (parent, cookie) is unique because the cookie
//! holds the collision rank, so the order is that of (parent, cookie, name) (PROTOCOL 5).

use super::Record;
use crate::codec::{Get, Put};
use bytes::Bytes;
use fusefs_types::{FileKind, FsError, FsResult, Ino, Name};

const VERSION: u8 = 1;

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DentryKey {
    /// Directory.
    pub parent: Ino,
    /// Name hash << 4 | collision rank.
    pub cookie: u64,
}

/// What a name names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dentry {
    /// Inode, perhaps of another partition.
    pub ino: Ino,
    /// Its type.
    pub kind: FileKind,
    /// Name.
    pub name: Name,
}

impl Record for Dentry {
    const TREE: u8 = 2;
    type Key = DentryKey;
    fn encode_key(key: &DentryKey, out: &mut Vec<u8>) {
        out.key64(key.parent.0).key64(key.cookie);
    }
    fn decode_key(bytes: &[u8]) -> FsResult<DentryKey> {
        let mut g = Get(bytes);
        let key = DentryKey { parent: Ino(g.key64()?), cookie: g.key64()? };
        g.end().map(|()| key)
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.u8(VERSION).u8(self.kind as u8).u64(self.ino.0).rest(self.name.as_bytes());
    }
    fn decode(bytes: &[u8]) -> FsResult<Dentry> {
        let mut g = Get(bytes);
        g.version(VERSION)?;
        let kind = FileKind::from_dtype(g.u8()?).ok_or(FsError::Corrupt)?;
        let ino = Ino(g.u64()?);
        let name = Name::new(Bytes::copy_from_slice(g.rest())).map_err(|_| FsError::Corrupt)?;
        Ok(Dentry { ino, kind, name })
    }
}
