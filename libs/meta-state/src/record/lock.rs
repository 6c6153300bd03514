//! Locks of transactions (owned by `crate::txn`): a name, a directory's entries, an inode's link, or the topology.

use super::{Record, wire::Wire};
use crate::codec::{Get, Put};
use bytes::Bytes;
use fusefs_types::{FsError, FsResult, Ino, Name, txn::TxnId};

const VERSION: u8 = 1;

/// What is locked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockKey {
    /// The volume's topology.
    Topology,
    /// A name, exclusively.
    Name(Ino, Name),
    /// Entries of a directory: shared by inserts and removes, exclusive for its removal.
    Entries(Ino),
    /// Link count and parent of an inode, exclusively.
    Link(Ino),
}

/// Who holds it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Lock {
    /// Exclusive holder.
    pub exclusive: Option<TxnId>,
    /// Shared holders, once per part.
    pub shared: Vec<TxnId>,
}

impl Record for Lock {
    const TREE: u8 = 10;
    type Key = LockKey;
    fn encode_key(key: &LockKey, out: &mut Vec<u8>) {
        match key {
            LockKey::Topology => out.u8(0),
            LockKey::Name(ino, name) => out.u8(1).key64(ino.0).rest(name.as_bytes()),
            LockKey::Entries(ino) => out.u8(2).key64(ino.0),
            LockKey::Link(ino) => out.u8(3).key64(ino.0),
        };
    }
    fn decode_key(bytes: &[u8]) -> FsResult<LockKey> {
        let mut g = Get(bytes);
        let key = match g.u8()? {
            0 => LockKey::Topology,
            1 => {
                let ino = Ino(g.key64()?);
                let name = Name::new(Bytes::copy_from_slice(g.rest())).map_err(|_| FsError::Corrupt)?;
                LockKey::Name(ino, name)
            }
            2 => LockKey::Entries(Ino(g.key64()?)),
            3 => LockKey::Link(Ino(g.key64()?)),
            _ => return Err(FsError::Corrupt),
        };
        g.end().map(|()| key)
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.u8(VERSION);
        self.exclusive.put(out);
        self.shared.put(out);
    }
    fn decode(bytes: &[u8]) -> FsResult<Lock> {
        let mut g = Get(bytes);
        g.version(VERSION)?;
        let lock = Lock { exclusive: Wire::get(&mut g)?, shared: Wire::get(&mut g)? };
        g.end().map(|()| lock)
    }
}
