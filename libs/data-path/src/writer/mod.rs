//! Buffered writes (PROTOCOL 36-39).

use async_trait::async_trait;
use bytes::Bytes;
use fusefs_types::{FsResult, Ino, Time};

/// What the caller knew when it wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteContext {
    /// `trunc_seq` of the newest attributes seen.
    pub trunc_seq: u64,
    /// Clear set-uid/set-gid at commit (a write by a non-owner without privilege).
    pub kill_priv: bool,
}

/// What attribute replies must overlay while a file has uncommitted bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyAttr {
    /// End of the furthest uncommitted byte: the size is at least this.
    pub size: u64,
    /// Time of the last write, None after an explicit utimens.
    pub mtime: Option<Time>,
}

/// Space lent to this session (PROTOCOL 35). Called with plain byte counts.
pub trait Credits: Send + Sync + 'static {
    /// Bytes are about to be acknowledged. An error (NoSpace, Quota) refuses the write; nothing was buffered.
    fn take(&self, bytes: u64) -> FsResult<()>;
    /// Bytes were committed, overwritten before their commit, or cancelled.
    fn settle(&self, bytes: u64);
}

/// Uncommitted bytes of a range.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    /// Pieces in write order, later ones on top: (file offset, bytes), clipped to the asked range.
    pub pieces: Vec<(u64, Bytes)>,
    /// End of the furthest uncommitted byte of the file, 0 = the file is clean.
    pub end: u64,
}

/// Acknowledged but uncommitted writes of one mount. One queue per inode; commits go in write order per inode, so that
/// after any crash a file is a prefix of its history. The bounded in-memory log is [`MemoryLog`](crate::writer::MemoryLog);
/// the persistent journal of the crash-proof mount comes behind this trait.
#[async_trait]
pub trait WriteLog: Send + Sync + 'static {
    /// Buffers a write if that needs no waiting; None = call [`WriteLog::write`].
    fn try_write(&self, ino: Ino, offset: u64, data: &Bytes, cx: WriteContext) -> Option<FsResult<()>>;
    /// Buffers a write; waits while the buffer is full or a barrier is held.
    async fn write(&self, ino: Ino, offset: u64, data: Bytes, cx: WriteContext) -> FsResult<()>;
    /// Uncommitted bytes in `[offset, offset + len)`.
    fn overlay(&self, ino: Ino, offset: u64, len: u64) -> Overlay;
    /// Attributes to overlay; None = clean.
    fn dirty_attr(&self, ino: Ino) -> Option<DirtyAttr>;
    /// Waits until everything written so far is committed. Transient failures wait (at most `io_timeout`), permanent
    /// ones fail this and every later call until a retry succeeds.
    async fn fsync(&self, ino: Ino) -> FsResult<()>;
    /// As `fsync`, but waits at most `close_timeout`, then `Io`; the data stays and is retried.
    async fn flush(&self, ino: Ino) -> FsResult<()>;
    /// Drains the queue and holds back later writes until [`WriteLog::release`]. `cancel_from`: a truncation to that
    /// size follows, so trailing writes that lie wholly beyond it are dropped instead.
    async fn hold(&self, ino: Ino, cancel_from: Option<u64>) -> FsResult<()>;
    /// Ends a [`WriteLog::hold`].
    fn release(&self, ino: Ino);
    /// An explicit utimens follows: bytes written so far are committed without an mtime. Returns when no commit that
    /// carries one is on its way.
    async fn set_explicit_mtime(&self, ino: Ino);
    /// Commits everything of every file; the first error wins.
    async fn sync_all(&self) -> FsResult<()>;
}
