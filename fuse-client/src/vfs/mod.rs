//! The file system as the kernel sees it, without a kernel: files, directories, handles and caches over [`Meta`] and
//! [`DataPath`].
//!
//! Costs are given in RPCs to metadata partitions at each operation; "0" means answered from memory. What an answer from
//! memory may lag behind other clients is bounded by the validities of [`Settings`]; own changes are seen at once.
//! Every method may be polled once on the thread that read the request and moved to a runtime if it has to wait.

mod attrs;
mod dcache;
mod dirs;
mod dirver;
mod files;
pub mod handle;
mod handle_file;
mod icache;
mod locks;
mod names;
mod quota;
pub mod request;
mod sink;
mod space;
mod xattrs;

pub use dcache::DENTRY_COST;
pub use icache::INODE_COST;
pub use locks::{FileLock, KernelCaches};
use quota::Quota;
pub use request::{Change, DirItem, Entry, FsStat, Interrupt, LockFlags, Lookup, Opened, Request};
use sink::Sink;
pub use space::{KEEP_SIZE, PUNCH_HOLE, SEEK_DATA, SEEK_HOLE, ZERO_RANGE};

use crate::Meta;
use dcache::DentryCache;
use dirs::Listings;
use fusefs_data_path::{
    DataPath, ObjectStore,
    journal::{JournalError, JournalSettings},
};
use fusefs_types::{
    Attr, Clock, FsError, FsResult, Ino, SessionId,
    ids::{Incarnation, MountId, OpId, Origin},
    limits,
    ops::{Read, ReadReply, Write, WriteReply},
};
use handle::{Creating, OpenTable};
use icache::InodeCache;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Inodes and names cached unless configured otherwise.
pub const CACHE_ENTRIES: usize = 1 << 20;

/// Knobs of one mount.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Kernel connection; names the mutations.
    pub mount: MountId,
    /// Inode that the mount shows as its root.
    pub root: Ino,
    /// Attributes may lag behind other clients this long.
    pub attr_validity: Duration,
    /// Names may lag this long.
    pub entry_validity: Duration,
    /// Absent names may lag this long.
    pub negative_validity: Duration,
    /// Inodes cached at most.
    pub inodes: usize,
    /// Names cached at most.
    pub dentries: usize,
    /// Past the lease, operations fail with EIO after this long; None waits until the lease is renewed.
    pub soft: Option<Duration>,
    /// Refuse every change.
    pub read_only: bool,
    /// An earlier process served this session: locks that it took are not known here yet.
    pub resumed: bool,
}

impl Settings {
    /// Defaults: validities of one second.
    pub fn new(mount: MountId, root: Ino) -> Settings {
        let second = Duration::from_secs(1);
        Settings {
            mount,
            root,
            attr_validity: second,
            entry_validity: second,
            negative_validity: second,
            inodes: CACHE_ENTRIES,
            dentries: CACHE_ENTRIES,
            soft: None,
            read_only: false,
            resumed: false,
        }
    }
    /// Splits a memory bound for cached metadata between inodes and names.
    pub fn cache_bytes(mut self, bytes: u64) -> Settings {
        let entries = usize::try_from(bytes).unwrap_or(usize::MAX) / (INODE_COST + DENTRY_COST);
        (self.inodes, self.dentries) = (entries, entries);
        self
    }
}

/// Counters of the caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Inodes cached now.
    pub inodes: usize,
    /// Names cached now.
    pub dentries: usize,
    /// Inodes dropped for room.
    pub inodes_evicted: u64,
    /// Names dropped for room.
    pub dentries_evicted: u64,
    /// Questions answered from memory.
    pub hits: u64,
    /// Questions that went to a partition.
    pub misses: u64,
    /// Inodes open now.
    pub open: usize,
}

/// One mount's file system.
pub struct Vfs {
    settings: Settings,
    meta: Arc<dyn Meta>,
    data: Arc<DataPath>,
    clock: Arc<dyn Clock>,
    inodes: Arc<InodeCache>,
    names: DentryCache,
    open: Arc<OpenTable>,
    listings: Listings,
    locks: Arc<locks::Locks>,
    /// Until it is known what the kernel sends again.
    resuming: Mutex<Option<Creating>>,
    corrections: tokio::task::JoinHandle<()>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Drop for Vfs {
    fn drop(&mut self) {
        self.corrections.abort();
    }
}

/// Takes back what the cluster was told to be open here and is not: while inodes of unknown numbers are made, every
/// answer is "open". What is lost with this process is asked again by way of its successor.
async fn correct(open: Arc<OpenTable>, meta: Arc<dyn Meta>) {
    loop {
        open.wait_mistaken().await;
        for ino in open.mistaken() {
            if let Err(error) = meta.read(Read::Close { ino }).await {
                tracing::debug!(%ino, %error, "taking a claim on an orphan back");
            }
        }
    }
}

impl Vfs {
    /// A file system over `meta` and `store`. Must be called inside a tokio runtime, whose workers do the background
    /// work of the data path; `owner` names the objects it writes.
    pub fn new(
        settings: Settings,
        meta: Arc<dyn Meta>,
        store: Arc<dyn ObjectStore>,
        data_settings: fusefs_data_path::Settings,
        clock: Arc<dyn Clock>,
        owner: (SessionId, Incarnation),
    ) -> Vfs {
        Vfs::with_handles(settings, meta, store, data_settings, clock, owner, OpenTable::default())
    }

    /// As [`Vfs::new`] with a table of open handles, e.g. one that an earlier process of this mount left.
    pub fn with_handles(
        settings: Settings,
        meta: Arc<dyn Meta>,
        store: Arc<dyn ObjectStore>,
        data_settings: fusefs_data_path::Settings,
        clock: Arc<dyn Clock>,
        (session, incarnation): (SessionId, Incarnation),
        open: OpenTable,
    ) -> Vfs {
        let inodes = Arc::new(InodeCache::new(settings.inodes));
        let sink = Arc::new(Sink::new(&settings, meta.clone(), inodes.clone(), clock.clone()));
        let close_timeout = data_settings.close_timeout;
        let (owner, quota) = ((session, incarnation), Arc::new(Quota::new(meta.clone())));
        let data = DataPath::with_credits(store, sink, clock.clone(), owner, data_settings, quota);
        Self::over(settings, meta, data, clock, (inodes, open), (session, close_timeout))
    }

    /// As [`Vfs::with_handles`] over a journal: acknowledged writes survive this process, and those of an earlier one are
    /// visible when this returns. Errors: the journal cannot be read; the mount must be poisoned.
    #[allow(clippy::too_many_arguments)] // one call, at the start of a mount
    pub fn with_journal(
        settings: Settings,
        meta: Arc<dyn Meta>,
        store: Arc<dyn ObjectStore>,
        data_settings: fusefs_data_path::Settings,
        clock: Arc<dyn Clock>,
        owner: (SessionId, Incarnation),
        open: OpenTable,
        journal: JournalSettings,
    ) -> Result<Vfs, JournalError> {
        let inodes = Arc::new(InodeCache::new(settings.inodes));
        let sink = Arc::new(Sink::new(&settings, meta.clone(), inodes.clone(), clock.clone()));
        let (close_timeout, quota) = (data_settings.close_timeout, Arc::new(Quota::new(meta.clone())));
        let data = DataPath::with_journal(store, sink, clock.clone(), owner, data_settings, quota, journal)?;
        Ok(Self::over(settings, meta, data, clock, (inodes, open), (owner.0, close_timeout)))
    }

    /// The data path that a file system over a journal of an earlier boot would have, for writing what is in the journal;
    /// see [`DataPath::after_reboot`].
    pub async fn after_reboot(
        settings: &Settings,
        meta: Arc<dyn Meta>,
        store: Arc<dyn ObjectStore>,
        data_settings: fusefs_data_path::Settings,
        clock: Arc<dyn Clock>,
        owner: (SessionId, Incarnation),
        journal: JournalSettings,
    ) -> Result<(Arc<DataPath>, Vec<Ino>), JournalError> {
        let inodes = Arc::new(InodeCache::new(settings.inodes));
        let sink = Arc::new(Sink::new(settings, meta, inodes, clock.clone()));
        DataPath::after_reboot(store, sink, clock, owner, data_settings, journal).await
    }

    fn over(
        settings: Settings,
        meta: Arc<dyn Meta>,
        data: Arc<DataPath>,
        clock: Arc<dyn Clock>,
        (inodes, open): (Arc<InodeCache>, OpenTable),
        (session, close_timeout): (SessionId, Duration),
    ) -> Vfs {
        let open = Arc::new(open);
        let locks = locks::Locks::new((meta.clone(), data.clone()), session, close_timeout, settings.resumed);
        let listener = locks::Listener { open: open.clone(), locks: Arc::downgrade(&locks) };
        // Before the first question: a create that is sent again may have made any inode.
        let resuming = settings.resumed.then(|| open.creating());
        meta.set_holders(Arc::new(listener));
        let corrections = tokio::spawn(correct(open.clone(), meta.clone()));
        Vfs {
            names: DentryCache::new(settings.dentries),
            settings,
            meta,
            data,
            clock,
            inodes,
            open,
            listings: Listings::default(),
            locks,
            resuming: Mutex::new(resuming),
            corrections,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// The data path, for its counters and for the end of the mount.
    pub fn data(&self) -> &Arc<DataPath> {
        &self.data
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Counters.
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            inodes: self.inodes.len(),
            dentries: self.names.len(),
            inodes_evicted: self.inodes.evicted(),
            dentries_evicted: self.names.evicted(),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            open: self.open.len(),
        }
    }

    /// A request was read from the kernel: before anything is done for it, and before the next one is read by anybody while
    /// a resume is under way (PROTOCOL 16). 0 RPCs.
    pub fn register(&self, rq: &Request) {
        rq.set_registered();
        if rq.resent {
            rq.set_maker(self.open.creating());
        }
        let op = OpId { mount: self.settings.mount, origin: Origin::Fuse, number: rq.unique, step: 0 };
        self.meta.register(op, rq.resent);
    }

    /// The request issues no mutations under its own number, and may take long: it must not hold back what others
    /// acknowledge (PROTOCOL 16: lock waits are never pending).
    fn withdraw(&self, rq: &Request) {
        if rq.take_registered() {
            self.meta.replied(OpId { mount: self.settings.mount, origin: Origin::Fuse, number: rq.unique, step: 0 });
        }
    }

    /// Every request that an earlier process left unanswered has been registered.
    pub fn resumed(&self) {
        self.meta.resumed();
        self.resuming.lock().take();
    }

    /// The reply of this request reached the kernel: its stored replies may be dropped (PROTOCOL 16).
    pub fn replied(&self, rq: &Request) {
        if let Some(op) = rq.to_acknowledge(self.settings.mount) {
            self.meta.replied(op);
        }
    }

    /// The kernel did not take the answer: a handle that was made for the request belongs to nobody.
    pub fn unheard(&self, rq: &Request) {
        self.open.disown(rq.unique);
    }

    /// Commits everything that is dirty: before a clean unmount.
    pub async fn sync_all(&self) -> FsResult<()> {
        self.data.sync_all().await
    }

    /// PROTOCOL 13: nothing is acknowledged or answered from memory past the lease. 0 RPCs while it is valid.
    async fn gate(&self) -> FsResult<()> {
        if self.meta.leased() {
            return Ok(());
        }
        let renewed = match self.settings.soft {
            None => self.meta.lease().await,
            Some(limit) => tokio::time::timeout(limit, self.meta.lease()).await.unwrap_or(Err(FsError::Io)),
        };
        if renewed == Err(FsError::Stale) {
            // The session has ended: what is dirty can never be committed.
            self.data.fence();
        }
        renewed
    }

    /// As [`Vfs::gate`], for operations that change something.
    async fn gate_change(&self) -> FsResult<()> {
        if self.settings.read_only {
            return Err(FsError::ReadOnly);
        }
        self.gate().await
    }

    /// One mutation of a request.
    async fn mutate(&self, rq: &Request, write: Write) -> FsResult<WriteReply> {
        let op: OpId = rq.next_op(self.settings.mount);
        let reply = self.meta.write(op, write).await?;
        Ok(if rq.resent { self.renewed(reply).await } else { reply })
    }

    /// An earlier process may have had a request executed that is sent again: then the reply is a stored one, and this
    /// mount's own later operations have changed the attributes in it since. They are asked for again: 1 RPC per inode.
    async fn renewed(&self, mut reply: WriteReply) -> WriteReply {
        let attrs: Vec<&mut Attr> = match &mut reply {
            WriteReply::Created { attr, parent, .. } | WriteReply::Linked { attr, parent } => vec![attr, parent],
            WriteReply::Unlinked { parent, .. } => vec![parent],
            WriteReply::Attr(attr) | WriteReply::Locked(attr) | WriteReply::Appended { attr, .. } => vec![attr],
            WriteReply::Committed(all) => all.iter_mut().collect(),
            WriteReply::Renamed { .. } | WriteReply::LockBlocked(_) => Vec::new(),
        };
        for attr in attrs {
            // What is gone by now stays as it was told.
            if let Ok(ReadReply::Attr(newer)) = self.meta.read(Read::GetAttr { ino: attr.ino }).await {
                *attr = newer;
            }
        }
        reply
    }

    /// When a mutation is sent, for the validity of what its reply says; long ago for one that may have been executed by
    /// an earlier process.
    fn sent(&self, rq: &Request) -> u64 {
        if rq.resent { 0 } else { self.now() }
    }

    fn now(&self) -> u64 {
        self.clock.boot_ns()
    }

    fn hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }

    fn miss(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// Attributes that were asked for before now are not used any more.
    fn expire(&self, ino: Ino) {
        self.inodes.expire(ino, self.attr_until(self.now()));
    }

    fn attr_until(&self, sent: u64) -> u64 {
        sent.saturating_add(ns(self.settings.attr_validity))
    }

    fn entry_until(&self, sent: u64) -> u64 {
        sent.saturating_add(ns(self.settings.entry_validity))
    }

    fn negative_until(&self, sent: u64) -> u64 {
        sent.saturating_add(ns(self.settings.negative_validity))
    }
}

/// Nanoseconds of a duration, saturating.
fn ns(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// What is left of a validity.
fn left(until: u64, now: u64) -> Duration {
    Duration::from_nanos(until.saturating_sub(now))
}

/// Range check of a write of `len` bytes at `offset`.
fn check_size(offset: u64, len: u64) -> FsResult<u64> {
    let end = offset.checked_add(len).ok_or(FsError::FileTooBig)?;
    if end > limits::FILE_SIZE_MAX { Err(FsError::FileTooBig) } else { Ok(end) }
}

/// A partition answered something else than what was asked: a bug on one of the two sides, never a panic.
fn unexpected(what: &str) -> FsError {
    tracing::error!(what, "a partition's reply does not fit the request");
    FsError::Io
}
