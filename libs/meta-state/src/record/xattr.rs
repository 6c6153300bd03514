//! Extended attribute: key = (inode, full name).

use super::Record;
use crate::codec::{Get, Put};
use bytes::Bytes;
use fusefs_types::{FsResult, Ino};

const VERSION: u8 = 1;

/// Which attribute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct XattrKey {
    /// Inode.
    pub ino: Ino,
    /// Full name, e.g. `user.a`.
    pub name: Bytes,
}

/// Its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    /// Bytes.
    pub value: Bytes,
}

impl Record for Xattr {
    const TREE: u8 = 4;
    type Key = XattrKey;
    fn encode_key(key: &XattrKey, out: &mut Vec<u8>) {
        out.key64(key.ino.0).rest(&key.name);
    }
    fn decode_key(bytes: &[u8]) -> FsResult<XattrKey> {
        let mut g = Get(bytes);
        Ok(XattrKey { ino: Ino(g.key64()?), name: Bytes::copy_from_slice(g.rest()) })
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.u8(VERSION).rest(&self.value);
    }
    fn decode(bytes: &[u8]) -> FsResult<Xattr> {
        let mut g = Get(bytes);
        g.version(VERSION)?;
        Ok(Xattr { value: Bytes::copy_from_slice(g.rest()) })
    }
}
