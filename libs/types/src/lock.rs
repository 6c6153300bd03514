//! Advisory locks of applications: flock(2) and fcntl(2) POSIX locks (`docs/design/0007-file-locks.md`).

use crate::{Ino, ids::SessionId};

/// Largest offset a lock names (Linux' OFFSET_MAX): "to the end of the file, wherever that will be".
pub const LOCK_END: u64 = i64::MAX as u64;

/// Which of the two families; locks of different families never conflict, as in Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum LockSpace {
    /// fcntl(2) byte ranges. Locks of open file descriptions (F_OFD_SETLK) are of this family with owners of their own.
    Posix = 0,
    /// flock(2): the whole file.
    Flock = 1,
}

/// Who holds a lock within its session: numbers that the client's kernel gives (per process, or per open file).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockOwner {
    /// Family.
    pub space: LockSpace,
    /// The kernel's number.
    pub id: u64,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockOp {
    /// Shared (F_RDLCK, LOCK_SH).
    Read,
    /// Exclusive (F_WRLCK, LOCK_EX).
    Write,
    /// None (F_UNLCK, LOCK_UN).
    Unlock,
}

/// Sets or removes a lock of one owner. Reply: [`crate::ops::WriteReply::Locked`] or
/// [`crate::ops::WriteReply::LockBlocked`] (an outcome, stored like any other; the next attempt is another mutation).
///
/// Repeating it is harmless: an owner never conflicts with itself. Errors: NotFound, Invalid (`start > end`, an end beyond
/// [`LOCK_END`], a flock that is not the whole file), NoLocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetLock {
    /// Inode.
    pub ino: Ino,
    /// Owner within the caller's session.
    pub owner: LockOwner,
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive.
    pub end: u64,
    /// What to set in the range.
    pub op: LockOp,
    /// Process, as the client's kernel names it; only shown (F_GETLK).
    pub pid: u32,
    /// The caller waits: tell its session when a lock on the inode goes. A flock that is being converted is dropped when
    /// the new one is not free, as in Linux; otherwise two converting holders would wait for each other for ever.
    pub wait: bool,
}

/// A lock that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLock {
    /// Session.
    pub session: SessionId,
    /// Owner within the session.
    pub owner: LockOwner,
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive.
    pub end: u64,
    /// Exclusive.
    pub write: bool,
    /// Process as that client's kernel names it.
    pub pid: u32,
}
