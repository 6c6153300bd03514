//! Everything a mount needs for file data.

use crate::{
    object::ObjectStore,
    reader::{ReadStats, Reader},
    settings::Settings,
    sink::MetaSink,
    writer::{Credits, DirtyAttr, MemoryLog, Parts, Unlimited, WriteContext, WriteLog, WriteStats},
};
use bytes::Bytes;
use fusefs_types::{Attr, Clock, FsResult, Ino, SessionId, ids::Incarnation, ops::Piece};
use std::sync::Arc;

/// File data of one mount: buffered ordered writes, cached verified reads. Signatures are listed in `API.md`.
pub struct DataPath {
    log: MemoryLog,
    reader: Arc<Reader>,
}

/// What was left when the data path ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// Bytes (with bookkeeping) that could not be committed and are lost.
    pub unflushed: u64,
    /// Objects that may lie in the store unreferenced; 0 needs no sweep.
    pub leftovers: u64,
}

/// While it lives, the file's queue is empty and its writes wait (so its holder must not write). Dropping it lets them go on; the file's cached extents
/// are forgotten then.
pub struct Barrier {
    path: Arc<DataPath>,
    ino: Ino,
}

impl Drop for Barrier {
    fn drop(&mut self) {
        self.path.reader.invalidate(self.ino);
        self.path.log.release(self.ino);
    }
}

impl DataPath {
    /// Starts the data path with unlimited, accounted space. Must be called inside a tokio runtime, whose workers do the
    /// background work; dropping it stops that.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        sink: Arc<dyn MetaSink>,
        clock: Arc<dyn Clock>,
        session: SessionId,
        incarnation: Incarnation,
        settings: Settings,
    ) -> Arc<DataPath> {
        Self::with_credits(store, sink, clock, (session, incarnation), settings, Arc::new(Unlimited::default()))
    }

    /// As [`DataPath::new`] with the session's space accounting.
    pub fn with_credits(
        store: Arc<dyn ObjectStore>,
        sink: Arc<dyn MetaSink>,
        clock: Arc<dyn Clock>,
        (session, incarnation): (SessionId, Incarnation),
        settings: Settings,
        credits: Arc<dyn Credits>,
    ) -> Arc<DataPath> {
        let reader = Reader::new(store.clone(), sink.clone(), settings.clone());
        let listener = reader.clone();
        let log = MemoryLog::new(Parts { store, sink, clock, session, incarnation, credits, listener, settings });
        Arc::new(DataPath { log, reader })
    }

    /// Buffers a write when that needs no waiting (no full buffer, no barrier); None = call [`DataPath::write`].
    pub fn try_write(&self, ino: Ino, offset: u64, data: &Bytes, cx: WriteContext) -> Option<FsResult<()>> {
        self.log.try_write(ino, offset, data, cx)
    }
    /// Buffers a write; it is committed by fsync, flush, or within 5 s.
    pub async fn write(&self, ino: Ino, offset: u64, data: Bytes, cx: WriteContext) -> FsResult<()> {
        self.log.write(ino, offset, data, cx).await
    }
    /// O_APPEND: the partition assigns the offset, which is returned with the attributes; durable when it returns.
    pub async fn append(&self, ino: Ino, data: Bytes) -> FsResult<(u64, Attr)> {
        self.log.append(ino, data).await
    }
    /// Reads from memory only; None = call [`DataPath::read`].
    pub fn try_read(&self, ino: Ino, offset: u64, len: usize) -> Option<Bytes> {
        let over = self.log.overlay(ino, offset, len as u64);
        self.reader.try_read(ino, offset, len, &over)
    }
    /// Reads; short at the end of the file. Uncommitted bytes are seen.
    pub async fn read(&self, ino: Ino, offset: u64, len: usize) -> FsResult<Bytes> {
        // The overlay first: bytes that leave it meanwhile are in every extent map fetched later.
        let over = self.log.overlay(ino, offset, len as u64);
        match self.reader.try_read(ino, offset, len, &over) {
            Some(b) => Ok(b),
            None => self.reader.read(ino, offset, len, &over).await,
        }
    }
    /// What attribute replies must overlay: size = max(size, this), mtime = this if given. None = clean.
    pub fn dirty_attr(&self, ino: Ino) -> Option<DirtyAttr> {
        self.log.dirty_attr(ino)
    }
    /// Waits until everything written so far is in the store and committed.
    pub async fn fsync(&self, ino: Ino) -> FsResult<()> {
        self.log.fsync(ino).await
    }
    /// As fsync, for close: waits at most `close_timeout`, then `Io`; the data stays and is retried.
    pub async fn flush(&self, ino: Ino) -> FsResult<()> {
        self.log.flush(ino).await
    }
    /// Drains the file's queue; its writes wait until the guard is dropped.
    pub async fn barrier(self: &Arc<Self>, ino: Ino) -> FsResult<Barrier> {
        self.log.hold(ino, None).await?;
        Ok(Barrier { path: self.clone(), ino })
    }
    /// As [`DataPath::barrier`] before a truncation to `size`: dirty data that lies wholly behind it may be dropped.
    pub async fn truncate_barrier(self: &Arc<Self>, ino: Ino, size: u64) -> FsResult<Barrier> {
        self.log.hold(ino, Some(size)).await?;
        Ok(Barrier { path: self.clone(), ino })
    }
    /// Punches holes ([`Piece::Hole`]) or allocates zeroes (a [`Piece::Extent`] of `Source::Zero`); `grow_to` = smallest
    /// size afterwards, 0 keeps the size. Takes the barrier itself.
    pub async fn commit_pieces(
        self: &Arc<Self>,
        ino: Ino,
        pieces: Vec<Piece>,
        grow_to: u64,
        cx: WriteContext,
    ) -> FsResult<Attr> {
        let _barrier = self.barrier(ino).await?;
        self.log.commit_pieces(ino, pieces, grow_to, cx).await
    }
    /// An explicit utimens follows: bytes written so far are committed without an mtime (PROTOCOL 37).
    pub async fn set_explicit_mtime(&self, ino: Ino) {
        self.log.set_explicit_mtime(ino).await;
    }
    /// Attributes that came from the cluster: a newer `change` makes the cached extents void.
    pub fn observe(&self, attr: &Attr) {
        self.reader.observe(attr);
    }
    /// The cached extents of a file are void.
    pub fn invalidate(&self, ino: Ino) {
        self.reader.invalidate(ino);
    }
    /// Commits everything of every file.
    pub async fn sync_all(&self) -> FsResult<()> {
        self.log.sync_all().await
    }
    /// The cluster ended the session: dirty data is dropped, everything fails with `Stale`.
    pub fn fence(&self) {
        self.log.fence();
    }
    /// Commits everything, waiting at most `close_timeout`, and tells what is left. Drop the data path afterwards.
    pub async fn shutdown(&self, patience: std::time::Duration) -> Shutdown {
        let _ = tokio::time::timeout(patience, self.log.sync_all()).await; // what is left is counted below
        Shutdown { unflushed: self.log.dirty_bytes(), leftovers: self.log.leftovers() }
    }
    /// Memory charged for uncommitted data.
    pub fn dirty_bytes(&self) -> u64 {
        self.log.dirty_bytes()
    }
    /// Counters of the write path.
    pub fn write_stats(&self) -> &WriteStats {
        self.log.stats()
    }
    /// Counters of the read path.
    pub fn read_stats(&self) -> &ReadStats {
        self.reader.stats()
    }
}
