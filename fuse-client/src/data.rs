//! What the vfs needs from file data.

use async_trait::async_trait;
use bytes::Bytes;
use fusefs_data_path::{DirtyAttr, WriteContext};
use fusefs_types::{Attr, FsResult, Ino};

/// File bytes of one mount: buffered writes, verified reads (PROTOCOL 36-39).
#[async_trait]
pub trait Data: Send + Sync + 'static {
    /// Buffers a write if that needs no waiting; None = call [`Data::write`].
    fn try_write(&self, ino: Ino, offset: u64, data: &Bytes, cx: WriteContext) -> Option<FsResult<()>>;
    /// Buffers a write; waits while the buffer is full or a barrier is held.
    async fn write(&self, ino: Ino, offset: u64, data: Bytes, cx: WriteContext) -> FsResult<()>;
    /// O_APPEND: synchronous, the partition assigns the offset. Returns it with the attributes afterwards.
    async fn append(&self, ino: Ino, data: Bytes, cx: WriteContext) -> FsResult<(u64, Attr)>;
    /// Up to `len` bytes from `offset`, uncommitted writes included; fewer only at the end of the file.
    async fn read(&self, ino: Ino, offset: u64, len: u64) -> FsResult<Bytes>;
    /// Size and mtime of uncommitted bytes; None = clean.
    fn dirty_attr(&self, ino: Ino) -> Option<DirtyAttr>;
    /// Waits until everything written so far is committed.
    async fn fsync(&self, ino: Ino) -> FsResult<()>;
    /// As `fsync` but waits at most the close timeout, then Io; the data stays.
    async fn flush(&self, ino: Ino) -> FsResult<()>;
    /// Drains the queue and holds back later writes until [`Data::release`]. `cancel_from`: a truncation to that size
    /// follows, so writes wholly beyond it may be dropped.
    async fn hold(&self, ino: Ino, cancel_from: Option<u64>) -> FsResult<()>;
    /// Ends a [`Data::hold`].
    fn release(&self, ino: Ino);
    /// An explicit utimens follows: bytes written so far are committed without an mtime.
    async fn set_explicit_mtime(&self, ino: Ino);
    /// Newer attributes were seen: cached extents of an older version are dropped.
    fn observe(&self, attr: &Attr);
    /// Commits everything of every file.
    async fn sync_all(&self) -> FsResult<()>;
}
