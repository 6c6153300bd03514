//! Orphans and pins (owned by `crate::gc`): inodes without a name that somebody may hold open (PROTOCOL 22).

use super::Record;
use crate::codec::{Get, Put};
use fusefs_types::{FsResult, Hlc, Ino, SessionId};

/// Of a pin, and of an inode that had a name.
const VERSION: u8 = 1;
/// With the maker of an inode that never had a name.
const VERSION_MAKER: u8 = 2;

/// Key = inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// When its last name went, or when it was made without one.
    pub since: Hlc,
    /// It never had a name: only this session can hold it, and may give it one.
    pub maker: Option<SessionId>,
}

impl Record for Orphan {
    const TREE: u8 = 11;
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
        match self.maker {
            None => out.u8(VERSION).u64(self.since.0),
            Some(maker) => out.u8(VERSION_MAKER).u64(self.since.0).u128(maker.0),
        };
    }
    fn decode(bytes: &[u8]) -> FsResult<Orphan> {
        let mut g = Get(bytes);
        let version = g.version(VERSION_MAKER)?;
        let since = Hlc(g.u64()?);
        let maker = if version == VERSION_MAKER { Some(SessionId(g.u128()?)) } else { None };
        g.end().map(|()| Orphan { since, maker })
    }
}

/// Answer of one session about one orphan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PinKey {
    /// Orphan.
    pub ino: Ino,
    /// Session.
    pub session: SessionId,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Open there.
    pub held: bool,
}

impl Record for Pin {
    const TREE: u8 = 12;
    type Key = PinKey;
    fn encode_key(key: &PinKey, out: &mut Vec<u8>) {
        out.key64(key.ino.0).key128(key.session.0);
    }
    fn decode_key(bytes: &[u8]) -> FsResult<PinKey> {
        let mut g = Get(bytes);
        let key = PinKey { ino: Ino(g.key64()?), session: SessionId(g.key128()?) };
        g.end().map(|()| key)
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.u8(VERSION).bool(self.held);
    }
    fn decode(bytes: &[u8]) -> FsResult<Pin> {
        let mut g = Get(bytes);
        g.version(VERSION)?;
        let held = g.bool()?;
        g.end().map(|()| Pin { held })
    }
}
