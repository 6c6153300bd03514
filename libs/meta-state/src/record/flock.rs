//! Application locks (owned by `crate::ops::flock`): key = (inode, family, session, owner, first byte). Ranges of one
//! owner never overlap, and neighbours of the same type are one record.

use super::Record;
use crate::codec::{Get, Put};
use fusefs_types::{
    FsError, FsResult, Ino, SessionId,
    lock::{HeldLock, LockOwner, LockSpace},
};

const VERSION: u8 = 1;

/// Whose lock, and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileLockKey {
    /// Inode.
    pub ino: Ino,
    /// Family.
    pub space: LockSpace,
    /// Session.
    pub session: SessionId,
    /// Owner within the session.
    pub owner: u64,
    /// First byte.
    pub start: u64,
}

impl FileLockKey {
    /// As it travels within a session.
    pub fn owner(&self) -> LockOwner {
        LockOwner { space: self.space, id: self.owner }
    }
    /// The lock in full.
    pub fn held(&self, lock: &FileLock) -> HeldLock {
        HeldLock {
            session: self.session,
            owner: self.owner(),
            start: self.start,
            end: lock.end,
            write: lock.write,
            pid: lock.pid,
        }
    }
}

/// The rest of the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLock {
    /// Last byte, inclusive.
    pub end: u64,
    /// Exclusive.
    pub write: bool,
    /// Process, only shown.
    pub pid: u32,
}

/// Families in the order of their numbers.
fn space(byte: u8) -> FsResult<LockSpace> {
    match byte {
        0 => Ok(LockSpace::Posix),
        1 => Ok(LockSpace::Flock),
        _ => Err(FsError::Corrupt),
    }
}

impl Record for FileLock {
    const TREE: u8 = 16;
    type Key = FileLockKey;
    fn encode_key(key: &FileLockKey, out: &mut Vec<u8>) {
        out.key64(key.ino.0).u8(key.space as u8).key128(key.session.0).key64(key.owner).key64(key.start);
    }
    fn decode_key(bytes: &[u8]) -> FsResult<FileLockKey> {
        let mut g = Get(bytes);
        let (ino, space) = (Ino(g.key64()?), space(g.u8()?)?);
        let (session, owner, start) = (SessionId(g.key128()?), g.key64()?, g.key64()?);
        g.end().map(|()| FileLockKey { ino, space, session, owner, start })
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.u8(VERSION).bool(self.write).u64(self.end).u32(self.pid);
    }
    fn decode(bytes: &[u8]) -> FsResult<FileLock> {
        let mut g = Get(bytes);
        g.version(VERSION)?;
        let (write, end, pid) = (g.bool()?, g.u64()?, g.u32()?);
        g.end().map(|()| FileLock { end, write, pid })
    }
}
