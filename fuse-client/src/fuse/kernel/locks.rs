//! Where lock requests go.

use super::decode::LockIn;
use crate::vfs::Request;
use async_trait::async_trait;
use fusefs_types::{FsResult, Ino};

/// A lock as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLock {
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive; `i64::MAX` for "to the end".
    pub end: u64,
    /// F_RDLCK, F_WRLCK or F_UNLCK.
    pub kind: i32,
    /// Process that asks or holds.
    pub pid: u32,
}

impl From<LockIn> for FileLock {
    fn from(l: LockIn) -> FileLock {
        FileLock { start: l.start, end: l.end, kind: l.kind as i32, pid: l.pid }
    }
}

/// Locks of applications. Family (flock or fcntl) and owner are in [`Request::lock`].
#[async_trait]
pub trait Locks: Send + Sync + 'static {
    /// F_GETLK: the lock in the way, or the given one with F_UNLCK.
    async fn getlk(&self, rq: &Request, ino: Ino, lock: FileLock) -> FsResult<FileLock>;
    /// Sets or removes a lock. With `wait` it waits for it; the wait ends with Interrupted when [`Request::interrupt`] is
    /// raised. It is never dropped half-way, so it has to look at the token itself.
    async fn setlk(&self, rq: &Request, ino: Ino, lock: FileLock, wait: bool) -> FsResult<()>;
    /// The owner closed a descriptor (fcntl: every close) or the last one (flock): its locks of the inode go.
    async fn closed(&self, rq: &Request, ino: Ino) -> FsResult<()>;
}
