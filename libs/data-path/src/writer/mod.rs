//! Buffered writes (PROTOCOL 36-39).
//!
//! `segments`: dirty bytes of one batch; `file`: the queue of one inode; `log`: buffering, waiting, barriers; `upload` and
//! `commit`: the way out; `append`: O_APPEND; `journaled`: what goes to the journal and its room, `replay`: what comes
//! back from it.

mod append;
mod commit;
mod file;
mod journaled;
mod log;
mod reboot;
mod replay;
mod segments;
mod upload;

use crate::{
    journal::{JournalError, JournalSettings, Recovered, ReplayStats},
    object::ObjectStore,
    settings::Settings,
    sink::MetaSink,
};
use async_trait::async_trait;
use bytes::Bytes;
use fusefs_types::{Attr, Clock, FsResult, Hlc, Ino, ObjectId, SessionId, Time, ids::Incarnation};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What the caller knew when it wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteContext {
    /// `trunc_seq` of the newest attributes seen.
    pub trunc_seq: u64,
    /// Clear set-uid/set-gid at commit (a write by a non-owner without privilege).
    pub kill_priv: bool,
    /// Number of the kernel's request without the resend bit; 0 for a write that is not one whole request.
    pub unique: u64,
    /// The kernel sent it again to this client process: if the journal has it, it is not buffered again.
    pub resent: bool,
    /// Newest version of the inode seen, 0 = not known. After a crash of the machine a write is replayed only onto the
    /// version it was made on.
    pub change: Hlc,
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
/// after any crash a file is a prefix of its history. [`MemoryLog`](crate::writer::MemoryLog) is the bounded index in
/// memory; with a [`journal`](crate::journal) below it, what is acknowledged survives the death of the process.
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
    /// size follows, so trailing writes that lie wholly beyond it are put aside instead: [`WriteLog::truncated`] drops
    /// them, without it [`WriteLog::release`] brings them back.
    async fn hold(&self, ino: Ino, cancel_from: Option<u64>) -> FsResult<()>;
    /// The truncation that [`WriteLog::hold`] was for succeeded and gave this `trunc_seq`: what it cancelled must not
    /// come back. Before [`WriteLog::release`], and before the truncation is answered.
    fn truncated(&self, ino: Ino, size: u64, trunc_seq: u64);
    /// Ends a [`WriteLog::hold`].
    fn release(&self, ino: Ino);
    /// An explicit utimens follows: bytes written so far are committed without an mtime. Returns when no commit that
    /// carries one is on its way.
    async fn set_explicit_mtime(&self, ino: Ino);
    /// Commits everything of every file; the first error wins.
    async fn sync_all(&self) -> FsResult<()>;
}

/// Lends without limit and counts (PROTOCOL 35: accounted from the first version).
#[derive(Debug, Default)]
pub struct Unlimited {
    /// Acknowledged bytes that are not committed yet.
    pub lent: AtomicU64,
}

impl Credits for Unlimited {
    fn take(&self, bytes: u64) -> FsResult<()> {
        self.lent.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
    fn settle(&self, bytes: u64) {
        self.lent.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Told when the extents of a file changed; called before the bytes leave the overlay.
pub trait CommitListener: Send + Sync + 'static {
    /// Attributes after the commit; None when the outcome is that the inode is gone.
    fn committed(&self, ino: Ino, attr: Option<&Attr>);
}

/// Counters of the write path.
#[derive(Debug, Default)]
pub struct WriteStats {
    /// Commit calls sent.
    pub commits: AtomicU64,
    /// Objects stored.
    pub puts: AtomicU64,
    /// Plain bytes stored in objects.
    pub put_bytes: AtomicU64,
    /// Plain bytes committed inline.
    pub inline_bytes: AtomicU64,
    /// Waits after failed attempts.
    pub retries: AtomicU64,
}

/// What a [`MemoryLog`] is made of.
pub struct Parts {
    /// Where objects go.
    pub store: Arc<dyn ObjectStore>,
    /// Where commits go.
    pub sink: Arc<dyn MetaSink>,
    /// Stamps mtimes.
    pub clock: Arc<dyn Clock>,
    /// Session and incarnation name the objects.
    pub session: SessionId,
    /// See `session`.
    pub incarnation: Incarnation,
    /// Space accounting.
    pub credits: Arc<dyn Credits>,
    /// Reader to be told about commits.
    pub listener: Arc<dyn CommitListener>,
    /// Knobs.
    pub settings: Settings,
    /// Where records go before writes are acknowledged; None = memory only.
    pub journal: Option<JournalSettings>,
}

pub(crate) struct Shared {
    store: Arc<dyn ObjectStore>,
    sink: Arc<dyn MetaSink>,
    clock: Arc<dyn Clock>,
    session: SessionId,
    incarnation: Incarnation,
    credits: Arc<dyn Credits>,
    listener: Arc<dyn CommitListener>,
    settings: Settings,
    counter: AtomicU64,
    journal: Option<journaled::Journaled>,
    files: Mutex<BTreeMap<Ino, Arc<file::File>>>,
    /// Memory charged for dirty data.
    dirty: AtomicU64,
    space: Notify,
    uploads: Semaphore,
    inline_off_until: Mutex<Option<Instant>>,
    /// The session was ended by the cluster: nothing of it will ever be committed.
    fenced: AtomicBool,
    /// Files whose last attempt failed for good.
    failing: AtomicU64,
    /// Objects that may lie in the store unreferenced.
    leftovers: AtomicU64,
    aging: Mutex<VecDeque<(Instant, Ino)>>,
    aging_wake: Notify,
    cancel: CancellationToken,
    runtime: Handle,
    stats: WriteStats,
}

impl Shared {
    fn now(&self) -> Time {
        Time(i64::try_from(self.clock.wall_ns()).unwrap_or(i64::MAX))
    }
    fn next_object(&self) -> ObjectId {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        ObjectId { session: self.session, incarnation: self.incarnation, counter }
    }
    /// Deletes an object that was never committed, best effort.
    fn discard(self: &Arc<Self>, id: ObjectId) {
        let this = self.clone();
        self.runtime.spawn(async move {
            let key = [id.key()];
            let deleted = tokio::select! {
                biased;
                () = this.cancel.cancelled() => false,
                r = this.store.delete(&key) => r.is_ok(),
            };
            if !deleted {
                this.leftovers.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
}

/// Bounded write log, obeying PROTOCOL 36-39: lost when the process dies, unless a journal lies below it.
pub struct MemoryLog {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

impl MemoryLog {
    /// Starts the log; must be called inside a tokio runtime, whose workers do the uploads and commits. Dropping it stops
    /// them. What the journal has pending is back in the queues when this returns, and on its way.
    ///
    /// Errors: those of [`Journal::recover`](crate::journal::Journal::recover); none without a journal.
    pub fn new(mut p: Parts) -> Result<MemoryLog, JournalError> {
        Ok(match p.journal.take().map(|j| journaled::Journaled::recover(j, p.session)).transpose()? {
            Some((journal, recovered)) => Self::start(p, Some(journal), recovered),
            None => Self::in_memory(p),
        })
    }
    /// As [`MemoryLog::new`] after a reboot: only what no one else can have changed meanwhile comes back; the inodes
    /// whose bytes stay in the journal are returned.
    pub async fn after_reboot(mut p: Parts) -> Result<(MemoryLog, Vec<Ino>), JournalError> {
        let Some(journal) = p.journal.take() else { return Ok((Self::in_memory(p), Vec::new())) };
        let (journal, mut recovered) = journaled::Journaled::recover(journal, p.session)?;
        let left = reboot::screen(&*p.sink, &mut recovered).await;
        Ok((Self::start(p, Some(journal), recovered), left))
    }
    /// As [`MemoryLog::new`] without a journal.
    pub fn in_memory(p: Parts) -> MemoryLog {
        Self::start(p, None, Recovered::default())
    }
    fn start(p: Parts, journal: Option<journaled::Journaled>, recovered: Recovered) -> MemoryLog {
        let cancel = CancellationToken::new();
        let shared = Arc::new(Shared {
            uploads: Semaphore::new(p.settings.uploads_max.max(1)),
            store: p.store,
            sink: p.sink,
            clock: p.clock,
            session: p.session,
            incarnation: p.incarnation,
            credits: p.credits,
            listener: p.listener,
            settings: p.settings,
            counter: AtomicU64::new(1),
            journal,
            files: Mutex::default(),
            dirty: AtomicU64::new(0),
            space: Notify::new(),
            inline_off_until: Mutex::default(),
            fenced: AtomicBool::new(false),
            failing: AtomicU64::new(0),
            // Objects that an earlier client process had not committed are nowhere named.
            leftovers: AtomicU64::new(u64::from(p.incarnation.0 > 1)),
            aging: Mutex::default(),
            aging_wake: Notify::new(),
            cancel: cancel.clone(),
            runtime: Handle::current(),
            stats: WriteStats::default(),
        });
        if shared.journal.is_some() {
            shared.replay(recovered);
            shared.runtime.spawn(shared.clone().tend());
        }
        shared.runtime.spawn(shared.clone().age());
        MemoryLog { shared, _stop: cancel.drop_guard() }
    }
    /// What came back from the journal.
    pub fn replayed(&self) -> ReplayStats {
        self.shared.journal.as_ref().map(|j| j.replayed).unwrap_or_default()
    }
    /// The journal below.
    pub fn journal(&self) -> Option<&Arc<crate::journal::Journal>> {
        self.shared.journal.as_ref().map(|j| &j.journal)
    }
    /// When an operation that begins now must have come to its end.
    pub(crate) fn io_deadline(&self) -> Option<Instant> {
        self.shared.io_deadline()
    }
    /// Counters.
    pub fn stats(&self) -> &WriteStats {
        &self.shared.stats
    }
    /// Memory charged for uncommitted data, in bytes.
    pub fn dirty_bytes(&self) -> u64 {
        self.shared.dirty.load(Ordering::Acquire)
    }
    /// Objects of this incarnation that may lie in the store without a reference; 0 needs no sweep.
    pub fn leftovers(&self) -> u64 {
        self.shared.leftovers.load(Ordering::Acquire) + self.shared.uncommitted_objects()
    }
    /// The cluster ended the session: everything fails with `Stale` from now on and dirty data is dropped.
    pub fn fence(&self) {
        self.shared.fence();
    }
}
