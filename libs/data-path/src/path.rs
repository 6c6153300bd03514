//! Everything a mount needs for file data.

use crate::{
    journal::{Journal, JournalError, JournalSettings, ReplayStats},
    object::ObjectStore,
    pace::until,
    reader::{ReadStats, Reader},
    settings::Settings,
    sink::MetaSink,
    writer::{Credits, DirtyAttr, MemoryLog, Parts, Unlimited, WriteContext, WriteLog, WriteStats},
};
use bytes::Bytes;
use fusefs_types::{
    Attr, Clock, FsError, FsResult, Ino, SessionId,
    ids::{Incarnation, OpId},
    ops::Piece,
};
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
    size: u64,
}

impl Barrier {
    /// The truncation of [`DataPath::truncate_barrier`] succeeded; the file has this `trunc_seq` now. To be called before
    /// the truncation is answered: what it cancelled does not come back from the journal then.
    pub fn truncated(&self, trunc_seq: u64) {
        self.path.log.truncated(self.ino, self.size, trunc_seq);
    }
}

impl Drop for Barrier {
    fn drop(&mut self) {
        self.path.reader.invalidate(self.ino);
        self.path.log.release(self.ino);
    }
}

impl DataPath {
    /// Starts the data path with unlimited, accounted space and no journal. Must be called inside a tokio runtime, whose
    /// workers do the background work; dropping it stops that.
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
        let journal = None;
        let parts = Parts { store, sink, clock, session, incarnation, credits, listener, settings, journal };
        Arc::new(DataPath { log: MemoryLog::in_memory(parts), reader })
    }

    /// As [`DataPath::new`] over a journal: acknowledged writes survive the death of the process. What an earlier client
    /// process left is visible when this returns, and on its way to the cluster. Reads the journal's files (a few
    /// milliseconds; up to 256 MiB when nothing could be committed).
    ///
    /// Errors: those of [`Journal::recover`]; the mount must be poisoned then (PROTOCOL 41).
    pub fn with_journal(
        store: Arc<dyn ObjectStore>,
        sink: Arc<dyn MetaSink>,
        clock: Arc<dyn Clock>,
        (session, incarnation): (SessionId, Incarnation),
        settings: Settings,
        credits: Arc<dyn Credits>,
        journal: JournalSettings,
    ) -> Result<Arc<DataPath>, JournalError> {
        let reader = Reader::new(store.clone(), sink.clone(), settings.clone());
        let (listener, journal) = (reader.clone(), Some(journal));
        let parts = Parts { store, sink, clock, session, incarnation, credits, listener, settings, journal };
        Ok(Arc::new(DataPath { log: MemoryLog::new(parts)?, reader }))
    }

    /// As [`DataPath::with_journal`] for a journal of an earlier boot (use [`Mode::Prefix`](crate::journal::Mode)), under
    /// its session and mount id and before any other use of them. Only bytes of inodes that nobody changed since come
    /// back: after a power loss the journal may not know that a write was committed and overwritten. Returns the
    /// inodes whose bytes stay in the journal. Then: [`DataPath::sync_all`], and `discard` or `park` the journal.
    pub async fn after_reboot(
        store: Arc<dyn ObjectStore>,
        sink: Arc<dyn MetaSink>,
        clock: Arc<dyn Clock>,
        (session, incarnation): (SessionId, Incarnation),
        settings: Settings,
        journal: JournalSettings,
    ) -> Result<(Arc<DataPath>, Vec<Ino>), JournalError> {
        let reader = Reader::new(store.clone(), sink.clone(), settings.clone());
        let (listener, credits, journal) = (reader.clone(), Arc::new(Unlimited::default()), Some(journal));
        let parts = Parts { store, sink, clock, session, incarnation, credits, listener, settings, journal };
        let (log, left) = MemoryLog::after_reboot(parts).await?;
        Ok((Arc::new(DataPath { log, reader }), left))
    }

    /// What came back from the journal at the start.
    pub fn replayed(&self) -> ReplayStats {
        self.log.replayed()
    }
    /// The journal below, for its counters and header.
    pub fn journal(&self) -> Option<&Arc<Journal>> {
        self.log.journal()
    }
    /// Buffers a write when that needs no waiting (no full buffer, no barrier); None = call [`DataPath::write`].
    pub fn try_write(&self, ino: Ino, offset: u64, data: &Bytes, cx: WriteContext) -> Option<FsResult<()>> {
        self.log.try_write(ino, offset, data, cx)
    }
    /// Buffers a write; it is committed by fsync, flush, or within 5 s. With a journal it survives the process once this
    /// returns; waits while the journal is full.
    pub async fn write(&self, ino: Ino, offset: u64, data: Bytes, cx: WriteContext) -> FsResult<()> {
        self.log.write(ino, offset, data, cx).await
    }
    /// O_APPEND: the partition assigns the offset, which is returned with the attributes; durable when it returns. `op` is
    /// the operation of the kernel's request, the same when it is sent again.
    pub async fn append(&self, ino: Ino, data: Bytes, op: OpId) -> FsResult<(u64, Attr)> {
        self.log.append(ino, data, op).await
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
        Ok(Barrier { path: self.clone(), ino, size: u64::MAX })
    }
    /// As [`DataPath::barrier`] before a truncation to `size`: dirty data that lies wholly behind it may be dropped.
    pub async fn truncate_barrier(self: &Arc<Self>, ino: Ino, size: u64) -> FsResult<Barrier> {
        self.log.hold(ino, Some(size)).await?;
        Ok(Barrier { path: self.clone(), ino, size })
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
        let deadline = self.log.io_deadline();
        let barrier = self.barrier(ino).await?;
        let this = self.clone();
        // A caller that goes away (an interrupted request, its time is up) must not leave a commit of unknown outcome behind: the journal
        // would send it again, behind writes that came after it.
        let commit = tokio::spawn(async move {
            let done = this.log.commit_pieces(ino, pieces, grow_to, cx).await;
            drop(barrier);
            done
        });
        until(deadline, commit).await.and_then(Result::ok).unwrap_or(Err(FsError::Io))
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
