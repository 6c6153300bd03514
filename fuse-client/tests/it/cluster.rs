//! A cluster of one partition in this process: what a metanode's leader does, without raft and network. It counts what
//! it is asked.

use async_trait::async_trait;
use bytes::Bytes;
use fusefs_data_path::object::MemoryStore;
use fusefs_fuse_client::meta::{Holders, Meta};
use fusefs_fuse_client::{Settings, Vfs};
use fusefs_meta_state::{LogPos, Outcome, Partition, PartitionConfig, record::BlobKey, txn::Work};
use fusefs_types::{
    Clock, FsError, FsResult, Hlc, Ino, KeyRange, PartitionId, SessionId, Source, Token, VolumeId,
    cluster::VolumeSpace,
    ids::{Incarnation, MountId, OpId, Origin},
    ops::*,
    txn::Internal,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A clock that tests push.
#[derive(Default)]
pub struct TestClock(AtomicU64);

/// Wall time at boot: 2026.
const BOOT_WALL_NS: u64 = 1_790_000_000_000_000_000;

impl TestClock {
    pub fn advance_ms(&self, ms: u64) {
        self.0.fetch_add(ms * 1_000_000, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn wall_ns(&self) -> u64 {
        BOOT_WALL_NS + self.boot_ns()
    }
    fn boot_ns(&self) -> u64 {
        // Every look takes a microsecond, so that stamps differ.
        self.0.fetch_add(1000, Ordering::SeqCst)
    }
}

struct State {
    p: Partition,
    index: u64,
    blobs: BTreeMap<BlobKey, Bytes>,
}

pub struct Cluster {
    state: Mutex<State>,
    holders: Mutex<BTreeMap<SessionId, Arc<dyn Holders>>>,
    deaf: AtomicBool,
    pub clock: Arc<TestClock>,
    pub store: Arc<MemoryStore>,
}

impl Cluster {
    pub fn new() -> Arc<Cluster> {
        let p = Partition::new(PartitionConfig {
            volume: VolumeId(1),
            partition: PartitionId(1),
            ranges: vec![KeyRange::inos(1, 1 << 40)],
            hash_key: *b"0123456789abcdef",
        })
        .unwrap();
        Arc::new(Cluster {
            state: Mutex::new(State { p, index: 0, blobs: BTreeMap::new() }),
            holders: Mutex::default(),
            deaf: AtomicBool::new(false),
            clock: Arc::new(TestClock::default()),
            store: Arc::new(MemoryStore::default()),
        })
    }

    /// A client with default validities (1 s).
    pub fn client(self: &Arc<Self>) -> Client {
        self.client_with(|_| {})
    }

    pub fn client_with(self: &Arc<Self>, change: impl FnOnce(&mut Settings)) -> Client {
        let session = SessionId(100 + self.holders.lock().len() as u128);
        self.client_of(session, 1, change)
    }

    /// The process after `client` on the same mount.
    pub fn successor_with(self: &Arc<Self>, client: &Client, change: impl FnOnce(&mut Settings)) -> Client {
        let before = &client.meta;
        let next = self.client_of(before.session, before.token.incarnation.0 + 1, change);
        next.unique.store(client.unique.load(Ordering::Relaxed), Ordering::Relaxed);
        next
    }

    /// The client process `incarnation` of a session.
    pub fn client_of(
        self: &Arc<Self>,
        session: SessionId,
        incarnation: u32,
        change: impl FnOnce(&mut Settings),
    ) -> Client {
        let incarnation = Incarnation(incarnation);
        let token = Token { attach: 0, incarnation };
        let meta = Arc::new(FakeMeta {
            cluster: self.clone(),
            session,
            token,
            counts: Mutex::default(),
            leased: AtomicBool::new(true),
            space: Mutex::default(),
            renewed: tokio::sync::Notify::new(),
            internal: AtomicU64::new((u64::from(incarnation.0) << 32) | 1),
            cut: AtomicBool::new(false),
            healed: tokio::sync::Notify::new(),
            journal: AtomicU64::new(1),
            replied: Mutex::default(),
            held: tokio::sync::watch::Sender::new(Hold::default()),
            lag: AtomicBool::new(false),
        });
        self.internal(Internal::Attach { session, token });
        let mut settings = Settings::new(MountId(session.0), Ino::ROOT);
        change(&mut settings);
        let data = fusefs_data_path::Settings::default();
        let (clock, store) = (self.clock.clone(), self.store.clone());
        let vfs = Vfs::new(settings, meta.clone(), store, data, clock, (session, incarnation));
        Client { vfs: Arc::new(vfs), meta, unique: AtomicU64::new(2) }
    }

    /// Applies a command, and tells everybody which locks went, as the event stream would.
    fn apply(&self, body: Body) -> Outcome {
        let (outcome, unlocked) = self.state.lock().apply(&self.clock, body);
        if !unlocked.is_empty() && !self.deaf.load(Ordering::SeqCst) {
            let all: Vec<_> = self.holders.lock().values().cloned().collect();
            all.iter().for_each(|h| h.locks_freed(&unlocked));
        }
        outcome
    }

    fn internal(&self, internal: Internal) {
        self.apply(Body::Internal(internal));
    }

    /// The master ends a session.
    pub fn end(&self, session: SessionId) {
        self.internal(Internal::EndSession { session, revoked: true });
    }

    /// All locks on an inode.
    pub fn locks(&self, ino: Ino) -> Vec<HeldLock> {
        match self.state.lock().p.read(SessionId(0), &Read::ListLocks { ino }) {
            Ok(ReadReply::Locks(all)) => all,
            other => panic!("{other:?}"),
        }
    }

    /// Loses all events from now on.
    pub fn lose_events(&self) {
        self.deaf.store(true, Ordering::SeqCst);
    }

    /// What the leader's background work does about orphans.
    fn settle(&self) {
        loop {
            let work = self.state.lock().p.gc_work();
            let mut progress = false;
            for w in work {
                let internal = match w {
                    Work::AskHolders { session, inos } => {
                        let holder = self.holders.lock().get(&session).cloned();
                        let (held, released) =
                            inos.into_iter().partition(|i| holder.as_ref().is_some_and(|h| h.holds(*i)));
                        Internal::Pin { session, held, released }
                    }
                    Work::FreeOrphans(inos) => Internal::FreeOrphans { inos },
                    _ => continue,
                };
                progress = true;
                self.internal(internal);
            }
            if !progress {
                return;
            }
        }
    }

    pub fn usage(&self) -> PartitionUsage {
        self.state.lock().p.usage()
    }
}

impl State {
    fn apply(&mut self, clock: &TestClock, body: Body) -> (Outcome, Vec<Ino>) {
        self.index += 1;
        let command = Command { stamp: Hlc(clock.wall_ns()), level: 1, body };
        let done = self.p.apply(LogPos { term: 1, index: self.index, n: 0 }, &command);
        for put in done.blobs {
            self.blobs.insert(put.key, put.bytes);
        }
        for gone in done.freed {
            self.blobs.remove(&gone.key);
        }
        (done.outcome, done.unlocked)
    }

    fn read(&self, session: SessionId, read: &Read) -> FsResult<ReadReply> {
        let mut reply = self.p.read(session, read)?;
        if let ReadReply::Extents { extents, inline, .. } = &mut reply {
            for (i, e) in extents.iter().enumerate() {
                if let Source::Inline { index, n, skip } = e.source {
                    let blob = &self.blobs[&BlobKey { index, n }];
                    inline.push((i as u32, blob.slice(skip as usize..skip as usize + e.len as usize)));
                }
            }
        }
        Ok(reply)
    }
}

pub struct FakeMeta {
    cluster: Arc<Cluster>,
    session: SessionId,
    token: Token,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    leased: AtomicBool,
    pub space: Mutex<VolumeSpace>,
    renewed: tokio::sync::Notify,
    internal: AtomicU64,
    cut: AtomicBool,
    healed: tokio::sync::Notify,
    journal: AtomicU64,
    /// Numbers that may be forgotten.
    pub replied: Mutex<Vec<u64>>,
    held: tokio::sync::watch::Sender<Hold>,
    lag: AtomicBool,
}

/// Turns of the runtime that a call takes with [`FakeMeta::set_lag`].
const LAG: u32 = 20;

/// Where a cluster that does not answer is stuck.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// Questions wait.
    pub reads: bool,
    /// Mutations wait before they are executed.
    pub writes: bool,
    /// Mutations are executed, but their replies wait.
    pub replies: bool,
}

impl FakeMeta {
    /// RPCs by name since the last call.
    pub fn take_counts(&self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut self.counts.lock())
    }
    pub fn set_leased(&self, leased: bool) {
        self.leased.store(leased, Ordering::SeqCst);
        self.renewed.notify_waiters();
    }
    /// Cuts this client off from the cluster, or heals that.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
        self.healed.notify_waiters();
    }
    async fn through(&self) {
        loop {
            let healed = self.healed.notified();
            if !self.cut.load(Ordering::SeqCst) {
                return;
            }
            healed.await;
        }
    }
    pub fn hold(&self, hold: Hold) {
        self.held.send_replace(hold);
    }
    /// From now on every call takes a few turns of the runtime before and after its execution, like a network.
    pub fn set_lag(&self) {
        self.lag.store(true, Ordering::Relaxed);
    }
    async fn pass(&self, stuck: impl Fn(&Hold) -> bool) {
        for _ in 0..if self.lag.load(Ordering::Relaxed) { LAG } else { 0 } {
            tokio::task::yield_now().await;
        }
        let mut held = self.held.subscribe();
        // An error means that this client is gone.
        let _ = held.wait_for(|h| !stuck(h)).await;
    }
    fn count(&self, name: &'static str) {
        *self.counts.lock().entry(name).or_insert(0) += 1;
    }
}

#[async_trait]
impl Meta for FakeMeta {
    async fn write(&self, op: OpId, write: Write) -> FsResult<WriteReply> {
        self.count(write.name());
        self.pass(|h| h.writes).await;
        // These processes have no journal whose numbers would go on from one to the next.
        let apart = if op.origin == Origin::Journal { u64::from(self.token.incarnation.0) << 40 } else { 0 };
        let op = OpId { number: op.number | apart, ..op };
        let caller = Caller { session: self.session, token: self.token, op, acks: vec![] };
        self.through().await;
        let outcome = self.cluster.apply(Body::Client(caller, write));
        self.cluster.settle();
        self.pass(|h| h.replies).await;
        match outcome {
            Outcome::Client(result) => result,
            other => panic!("{other:?}"),
        }
    }
    async fn write_internal(&self, write: Write) -> FsResult<WriteReply> {
        let number = self.internal.fetch_add(1, Ordering::SeqCst);
        self.write(OpId { mount: MountId(self.session.0), origin: Origin::Internal, number, step: 0 }, write).await
    }
    async fn read(&self, read: Read) -> FsResult<ReadReply> {
        self.count(read.name());
        self.through().await;
        self.pass(|h| h.reads).await;
        let mut state = self.cluster.state.lock();
        let reply = state.read(self.session, &read);
        if let Read::Close { ino } = read
            && state.p.must_log_close(self.session, ino)
        {
            let pin = Internal::Pin { session: self.session, held: vec![], released: vec![ino] };
            state.apply(&self.cluster.clock, Body::Internal(pin));
        }
        drop(state);
        self.cluster.settle();
        reply
    }
    async fn usage(&self) -> FsResult<PartitionUsage> {
        self.count("statfs");
        Ok(self.cluster.usage())
    }
    fn space(&self) -> VolumeSpace {
        *self.space.lock()
    }
    fn recount(&self) -> bool {
        self.count("recount");
        true
    }
    fn leased(&self) -> bool {
        self.leased.load(Ordering::SeqCst)
    }
    async fn lease(&self) -> FsResult<()> {
        loop {
            let renewed = self.renewed.notified();
            if self.leased() {
                return Ok(());
            }
            renewed.await;
        }
    }
    fn replied(&self, op: OpId) {
        self.replied.lock().push(op.number);
    }
    fn begin_journal(&self) -> u64 {
        self.journal.fetch_add(1, Ordering::Relaxed)
    }
    fn resume_journal(&self, _unfinished: &[u64]) {}
    fn set_holders(&self, holders: Arc<dyn Holders>) {
        self.cluster.holders.lock().insert(self.session, holders.clone());
        // A session with a new stream is asked again.
        let claimed = self.cluster.state.lock().p.claims().remove(&self.session).unwrap_or_default();
        let (held, released) = claimed.into_iter().partition(|i| holders.holds(*i));
        self.cluster.internal(Internal::Pin { session: self.session, held, released });
        self.cluster.settle();
    }
}

/// One mount without a kernel.
pub struct Client {
    pub vfs: Arc<Vfs>,
    pub meta: Arc<FakeMeta>,
    unique: AtomicU64,
}

impl Client {
    pub fn rq(&self) -> fusefs_fuse_client::vfs::Request {
        fusefs_fuse_client::vfs::Request::new(self.unique.fetch_add(2, Ordering::Relaxed), 0, 0)
    }
    pub fn session(&self) -> SessionId {
        self.meta.session
    }
    /// RPCs since the last call, all kinds together.
    pub fn rpcs(&self) -> u64 {
        self.meta.take_counts().values().sum()
    }
}

pub const NOT_FOUND: FsError = FsError::NotFound;
