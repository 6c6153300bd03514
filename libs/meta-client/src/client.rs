//! [`MetaClient`]: one session of one volume, and the retry loop.

use crate::{
    acks::Acks,
    calls::{ATTEMPT, Backoff, Identity, Settings, Who},
    counters::Counters,
    events::{self, Holders},
    master::{self, MasterClient},
    routes::Cache,
    session::{self, Lease},
    transport::{CallError, Transport},
};
use fusefs_types::{
    Clock, FsError, FsResult, PartitionId, RangeKey, Rng,
    cluster::{
        MasterCall, MasterRefusal, MasterReply, PartitionInfo, SessionGrant, SessionRequest, VolumeMap, VolumeSpace,
    },
    ids::{AckRange, MountId, OpId, Origin},
    ops::{PartitionUsage, Read, ReadReply, Refusal, Reply, Write, WriteReply},
};
use futures::StreamExt;
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::Instant,
};

/// Bit of a FUSE `unique` that marks a resent request.
const RESEND_BIT: u64 = 1 << 63;

/// The outside world of a client.
#[derive(Clone)]
pub struct Components {
    /// Network.
    pub transport: Arc<dyn Transport>,
    /// Clocks.
    pub clock: Arc<dyn Clock>,
    /// Entropy (jitter).
    pub rng: Arc<dyn Rng>,
}

/// A background task that ends with its owner.
pub(crate) struct Task(JoinHandle<()>);

impl Task {
    pub fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Task {
        Task(tokio::spawn(future))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the background tasks share with the calls.
pub(crate) struct Inner {
    pub transport: Arc<dyn Transport>,
    pub rng: Arc<dyn Rng>,
    pub identity: Arc<Identity>,
    pub master: MasterClient,
    pub cache: Cache,
    pub lease: Lease,
    /// Generation of the map, for those who wait for a newer one.
    pub generations: watch::Sender<u64>,
    io_timeout: Option<Duration>,
    counters: Arc<Counters>,
    grant: SessionGrant,
    /// The volume's space as last heard.
    pub space: Mutex<VolumeSpace>,
    /// When it was last asked for ahead of time, on CLOCK_BOOTTIME.
    pub recounted_ns: AtomicU64,
    mount: MountId,
    internal: AtomicU64,
    journal: AtomicU64,
    acks: Mutex<Acks>,
    refreshing: tokio::sync::Mutex<()>,
    map_wanted: Notify,
}

/// Metadata of one volume as one session sees it. Dropping it stops the background tasks; the session stays until
/// [`MetaClient::close`] or until the cluster ends it.
pub struct MetaClient {
    pub(crate) inner: Arc<Inner>,
    tasks: Mutex<Vec<Task>>,
}

/// One operation on its way.
enum Ask<'a> {
    /// The id the caller knows and the one it is sent under.
    Write(OpId, OpId, &'a Write),
    Read(&'a Read),
}

enum Answer {
    Write(WriteReply),
    Read(ReadReply),
}

/// Where an operation goes.
#[derive(Clone, Copy)]
enum Route {
    Key(RangeKey),
    Partition(PartitionId),
}

/// What the loop does after an attempt that brought no result.
enum Next {
    /// Another address may help, at once.
    Elsewhere,
    /// The same again after a pause of at least this many milliseconds.
    Later(u32),
    /// After a look at a newer map.
    Refresh,
}

impl MetaClient {
    /// Opens (or resumes) a session and starts its keeper.
    ///
    /// Errors: those of the master for the request, else a sentence that names every master address and why it did not
    /// help, within `Settings::master_timeout`.
    pub async fn connect(
        settings: Settings,
        components: Components,
        request: SessionRequest,
    ) -> Result<Arc<MetaClient>, MasterRefusal> {
        let Components { transport, clock, rng } = components;
        let counters = Arc::<Counters>::default();
        let identity = Arc::new(Identity::new(settings.credential.clone(), &*rng));
        let (io_timeout, hold, mount) = (settings.io_timeout, settings.ack_hold, request.mount);
        let resuming = request.session.0 != 0;
        let credential = settings.credential.clone();
        let master = MasterClient::with(settings, transport.clone(), rng.clone(), identity.clone(), counters.clone());
        let lease = Lease::new(clock);
        let asked = lease.now_ns();
        let grant = match master.call(MasterCall::OpenSession(request)).await? {
            MasterReply::Session(grant) => *grant,
            _ => return Err(master::refusal(FsError::Io, "the master answered with something else than a session")),
        };
        lease.extend(asked, grant.lease_ms);
        identity.set(Who {
            cluster: grant.cluster,
            volume: grant.volume.id,
            session: grant.session,
            token: grant.token,
            credential: if grant.secret.is_empty() { credential } else { grant.secret.clone() },
        });
        let inner = Arc::new(Inner {
            transport,
            rng,
            identity,
            master,
            cache: Cache::default(),
            lease,
            generations: watch::Sender::new(0),
            io_timeout,
            counters,
            mount,
            internal: AtomicU64::new((u64::from(grant.token.incarnation.0) << 32) | 1),
            acks: Mutex::new(Acks::new(mount, resuming, hold)),
            journal: AtomicU64::new((u64::from(grant.token.incarnation.0) << 32) | 1),
            refreshing: tokio::sync::Mutex::new(()),
            map_wanted: Notify::new(),
            space: Mutex::new(grant.volume.space()),
            recounted_ns: AtomicU64::new(0),
            grant,
        });
        inner.put_map(inner.grant.map.clone());
        let keeper = Task::spawn(session::keep(inner.clone(), inner.grant.lease_ms));
        let watcher = Task::spawn(watch_map(inner.clone()));
        Ok(Arc::new(MetaClient { inner, tasks: Mutex::new(vec![keeper, watcher]) }))
    }

    /// What the master granted: volume, store, credentials, root, credit.
    pub fn grant(&self) -> &SessionGrant {
        &self.inner.grant
    }
    /// RPCs sent so far.
    pub fn counters(&self) -> &Counters {
        &self.inner.counters
    }
    /// The newest partition map.
    pub fn map(&self) -> VolumeMap {
        self.inner.cache.routes().map.clone()
    }

    /// Id of the mutation that a kernel request asks for.
    pub fn fuse_op(&self, unique: u64) -> OpId {
        OpId { mount: self.inner.mount, origin: Origin::Fuse, number: unique & !RESEND_BIT, step: 0 }
    }
    /// Id of the mutation of a journal record.
    pub fn journal_op(&self, lsn: u64) -> OpId {
        OpId { mount: self.inner.mount, origin: Origin::Journal, number: lsn, step: 0 }
    }
    /// Id of the next commit of this client process, noted as outstanding in the same step: acknowledgements of higher
    /// numbers never cover it. Numbers of one session never repeat: the incarnation is in their upper half.
    pub fn next_journal_op(&self) -> OpId {
        let mut acks = self.inner.acks.lock();
        let op = self.journal_op(self.inner.journal.fetch_add(1, Ordering::Relaxed));
        acks.begin(op);
        op
    }
    /// Commits of an earlier client process that will be sent again: outstanding until [`MetaClient::ack`]. To be called
    /// before the first [`MetaClient::next_journal_op`].
    pub fn resume_journal(&self, unfinished: &[u64]) {
        let mut acks = self.inner.acks.lock();
        for number in unfinished {
            acks.begin(self.journal_op(*number));
        }
    }
    /// A fresh id for a mutation of our own.
    pub fn next_internal_op(&self) -> OpId {
        self.inner.next_internal_op()
    }

    /// One mutation, exactly once under `op`: retried with the same id until there is a result. Without `io_timeout` it
    /// waits for ever; with one, [`FsError::Unavailable`] means that the outcome is unknown and that the same call may be
    /// repeated. [`FsError::Stale`] when the session has ended.
    ///
    /// The caller says [`MetaClient::ack`] when the result has reached its own caller (FUSE), or when it is recorded
    /// (journal); for our own operations a final error needs no acknowledgement.
    pub async fn write(&self, op: OpId, write: Write) -> FsResult<WriteReply> {
        let result = self.write_under(op, &write).await;
        // The kernel waits for the answer of a request of its own, and the journal records answers before they are
        // acknowledged; a final error ends all others here.
        if op.origin == Origin::Internal && matches!(result, Err(e) if !e.is_retryable()) {
            self.ack(op);
        }
        result
    }

    async fn write_under(&self, op: OpId, write: &Write) -> FsResult<WriteReply> {
        let inner = &self.inner;
        let id = inner.acks.lock().begin(op);
        let route = Route::Key(write.route());
        let mut result = inner.run(route, Ask::Write(op, id, write)).await;
        if matches!(result, Err(FsError::TooOld)) && op.origin == Origin::Journal {
            // Numbers of the journal begin before higher ones can be acknowledged: it was executed and acknowledged.
            return Err(FsError::TooOld);
        }
        if matches!(result, Err(FsError::TooOld)) {
            // The number lay below an acknowledgement that was sent before this operation began. One that an earlier
            // process of this mount had begun too was executed and answered by it: for that one this is the end.
            let fresh = inner.next_internal_op();
            if !inner.acks.lock().substitute(op, fresh) {
                tracing::warn!(?op, "an acknowledged operation was asked for again");
                return Err(FsError::TooOld);
            }
            result = inner.run(route, Ask::Write(op, fresh, write)).await;
        }
        match result? {
            Answer::Write(reply) => Ok(reply),
            Answer::Read(_) => Err(FsError::Io),
        }
    }

    /// A mutation of our own under a fresh id, acknowledged at once.
    pub async fn write_internal(&self, write: Write) -> FsResult<WriteReply> {
        let op = self.next_internal_op();
        let result = self.write(op, write).await;
        if result.is_ok() {
            self.ack(op);
        }
        result
    }

    /// The kernel sent this request (`resent`: to an earlier process of this mount, too). Its number is not acknowledged
    /// before [`MetaClient::ack`].
    pub fn register(&self, op: OpId, resent: bool) {
        self.inner.acks.lock().register(op, resent);
    }

    /// A client that took over a mount has registered everything the kernel sent again, and its journal's commits: stored
    /// replies of older requests may be acknowledged from now on. Until then none is.
    pub fn resumed(&self) {
        self.inner.acks.lock().resumed();
    }

    /// The result of `op` reached whoever asked (the kernel): its stored reply may go. Also for operations that failed;
    /// not for those whose outcome is unknown and that will be repeated.
    pub fn ack(&self, op: OpId) {
        self.inner.acks.lock().done(op);
    }

    /// One question, linearizable. [`Read::StatFs`] is the sum over all partitions.
    pub async fn read(&self, read: Read) -> FsResult<ReadReply> {
        if matches!(read, Read::StatFs) {
            return self.statfs().await.map(ReadReply::StatFs);
        }
        match self.inner.run(Route::Key(read.route()), Ask::Read(&read)).await? {
            Answer::Read(reply) => Ok(reply),
            Answer::Write(_) => Err(FsError::Io),
        }
    }

    /// Counters summed over all partitions.
    pub async fn statfs(&self) -> FsResult<PartitionUsage> {
        let routes = self.inner.cache.routes();
        let asked =
            routes.map.partitions.iter().map(|p| self.inner.run(Route::Partition(p.id), Ask::Read(&Read::StatFs)));
        let mut sum = PartitionUsage::default();
        for answer in futures::future::join_all(asked).await {
            let Answer::Read(ReadReply::StatFs(u)) = answer? else { return Err(FsError::Io) };
            sum.inodes = sum.inodes.saturating_add(u.inodes);
            sum.bytes = sum.bytes.saturating_add(u.bytes);
            sum.inline_bytes = sum.inline_bytes.saturating_add(u.inline_bytes);
            sum.transactions = sum.transactions.saturating_add(u.transactions);
            sum.operations = sum.operations.saturating_add(u.operations);
            sum.orphans = sum.orphans.saturating_add(u.orphans);
            sum.objects = sum.objects.saturating_add(u.objects);
        }
        Ok(sum)
    }

    /// A call to the masters on behalf of this session.
    pub async fn master(&self, call: MasterCall) -> Result<MasterReply, MasterRefusal> {
        self.inner.master.call(call).await
    }

    /// Whether the lease is valid now, by CLOCK_BOOTTIME (PROTOCOL 13).
    pub fn lease_valid(&self) -> bool {
        self.inner.lease.valid()
    }
    /// Waits until the lease is valid. [`FsError::Stale`] when the session has ended.
    pub async fn wait_lease(&self) -> FsResult<()> {
        self.inner.lease.wait().await
    }
    /// The cluster ended the session: nothing works any more.
    pub fn ended(&self) -> bool {
        self.inner.lease.ended()
    }

    /// Registers who answers holder questions, and opens the event streams. Call it once, before the first open:
    /// without an answer, orphans wait.
    pub fn set_holders(&self, holders: Arc<dyn Holders>) {
        let manager = Task::spawn(events::manage(self.inner.clone(), holders));
        self.tasks.lock().push(manager);
    }

    /// Clean end: everything is flushed, `leftovers` objects may be unreferenced (0 skips the sweep). The client is of
    /// no use afterwards.
    pub async fn close(&self, leftovers: u64) -> Result<(), MasterRefusal> {
        let tasks = std::mem::take(&mut *self.tasks.lock());
        drop(tasks);
        let who = self.inner.identity.who();
        let result = self.inner.master.call(MasterCall::CloseSession(who.session, who.token, leftovers)).await;
        self.inner.lease.end();
        result.map(drop)
    }
}

impl Inner {
    fn next_internal_op(&self) -> OpId {
        let number = self.internal.fetch_add(1, Ordering::Relaxed);
        OpId { mount: self.mount, origin: Origin::Internal, number, step: 0 }
    }

    fn put_map(&self, map: VolumeMap) {
        let generation = map.generation;
        if self.cache.put(map) {
            self.generations.send_replace(generation);
        }
    }

    /// Somebody mentioned this generation of the map.
    pub fn newer_map(&self, generation: u64) {
        if generation > self.cache.generation() {
            self.map_wanted.notify_one();
        }
    }

    /// Gets a newer map than `had`, unless somebody else just did.
    /// True when a master answered, or the map is newer already.
    async fn refresh(&self, had: u64) -> bool {
        let _one = self.refreshing.lock().await;
        if self.cache.generation() > had {
            return true;
        }
        let volume = self.identity.who().volume;
        match self.master.call_within(MasterCall::GetMap(volume), ATTEMPT).await {
            Ok(MasterReply::Map(map)) => {
                self.put_map(map);
                return true;
            }
            Ok(_) => {}
            Err(e) => tracing::warn!("partition map not refreshed: {}", e.message),
        }
        false
    }

    /// THE retry loop: route, send, learn, again.
    async fn run(&self, route: Route, ask: Ask<'_>) -> FsResult<Answer> {
        let end = self.io_timeout.map(|t| Instant::now() + t);
        let (mut attempt, mut backoff, mut looked) = (0usize, Backoff::new(4, 250), false);
        loop {
            if self.lease.ended() {
                return Err(FsError::Stale);
            }
            let routes = self.cache.routes();
            let partition = match route {
                Route::Key(key) => routes.owner(key),
                Route::Partition(id) => routes.partition(id),
            };
            let next = match partition {
                Some(partition) => {
                    let Some(addr) = self.cache.target(partition, attempt) else { return Err(FsError::Io) };
                    match self.attempt(partition, &addr, &ask, routes.map.generation, end).await {
                        Ok(result) => return result,
                        Err(next) => next,
                    }
                }
                // Nobody owns the key, not even in a map fetched for this operation: no such inode was ever made.
                None if looked => return Err(FsError::Stale),
                None => Next::Refresh,
            };
            attempt += 1;
            if end.is_some_and(|e| Instant::now() >= e) {
                return Err(FsError::Unavailable);
            }
            let members = partition.map_or(1, |p| p.members.len());
            match next {
                // After a round over all members nobody leads yet: wait for the election.
                Next::Elsewhere if attempt % (members + 1) != 0 => {}
                Next::Elsewhere => backoff.pause(&*self.rng, 0, end).await,
                Next::Later(least) => backoff.pause(&*self.rng, least, end).await,
                Next::Refresh => {
                    // Without an answer nothing is known about the key: an operation must not be refused for that.
                    let fresh = self.refresh(routes.map.generation).await;
                    looked |= fresh;
                    if !fresh || (self.cache.generation() == routes.map.generation && partition.is_some()) {
                        backoff.pause(&*self.rng, 0, end).await;
                    }
                }
            }
        }
    }

    /// One attempt at one address. The outer result: over, or what to do next.
    async fn attempt(
        &self,
        partition: &PartitionInfo,
        addr: &Arc<str>,
        ask: &Ask<'_>,
        generation: u64,
        end: Option<Instant>,
    ) -> Result<FsResult<Answer>, Next> {
        let limit = end.map_or(ATTEMPT, |e| ATTEMPT.min(e.saturating_duration_since(Instant::now())));
        let mut envelope = self.identity.envelope(generation, limit);
        let mut acks = Vec::new();
        let called = match ask {
            Ask::Write(_, op, write) => {
                self.counters.add(write.name());
                envelope.op = Some(*op);
                acks = self.acks.lock().take(partition.id);
                envelope.acks = acks.clone();
                let call = self.transport.write(addr, envelope, write);
                flat(tokio::time::timeout(limit, call).await, Answer::Write)
            }
            Ask::Read(read) => {
                self.counters.add(read.name());
                // Only StatFs names its partition; a key finds its owner even when the map here is old.
                let named = if matches!(read, Read::StatFs) { partition.id } else { PartitionId(0) };
                let call = self.transport.read(addr, envelope, named, read);
                flat(tokio::time::timeout(limit, call).await, Answer::Read)
            }
        };
        match called {
            Ok(reply) => {
                self.identity.observe(reply.head.hlc);
                self.newer_map(reply.head.map_generation);
                self.learn(partition, addr, ask, &acks, reply.result)
            }
            Err(e) => {
                if let (Ask::Write(op, ..), false) = (ask, e.unsent) {
                    self.acks.lock().unknown(*op);
                }
                self.cache.drop_leader(partition.id, addr);
                tracing::debug!(%addr, partition = %partition.id, "no answer: {e}");
                if e.error == FsError::Unavailable { Err(Next::Elsewhere) } else { Ok(Err(e.error)) }
            }
        }
    }

    /// What an answer says beyond itself.
    fn learn(
        &self,
        partition: &PartitionInfo,
        addr: &Arc<str>,
        ask: &Ask<'_>,
        acks: &[AckRange],
        result: Result<Answer, Refusal>,
    ) -> Result<FsResult<Answer>, Next> {
        let refusal = match result {
            Ok(answer) => {
                self.cache.set_leader(partition.id, addr);
                if matches!(ask, Ask::Write(..)) {
                    let mut table = self.acks.lock();
                    table.confirm(partition.id, acks);
                    table.stored(partition.id);
                }
                return Ok(Ok(answer));
            }
            Err(refusal) => refusal,
        };
        match refusal.error {
            FsError::NotLeader => {
                match refusal.leader {
                    Some(leader) if *leader != **addr => self.cache.set_leader(partition.id, &leader.into()),
                    _ => self.cache.drop_leader(partition.id, addr),
                }
                Err(Next::Elsewhere)
            }
            FsError::WrongRange => {
                // The replica may have left this node, too.
                self.cache.drop_leader(partition.id, addr);
                Err(Next::Refresh)
            }
            FsError::Unavailable => {
                if let Ask::Write(op, ..) = ask {
                    self.acks.lock().unknown(*op);
                }
                self.cache.drop_leader(partition.id, addr);
                Err(Next::Later(refusal.backoff_ms))
            }
            // A server behind the stamp that we carry from another one catches up by itself.
            FsError::ClockSkew => Err(Next::Later(refusal.backoff_ms.max(20))),
            error if error.is_retryable() => Err(Next::Later(refusal.backoff_ms)),
            FsError::Fenced => {
                self.lease.end();
                Ok(Err(FsError::Stale))
            }
            error => {
                if error == FsError::Stale {
                    // Either the inode or the session; the master knows.
                    self.lease.poke();
                }
                if matches!(ask, Ask::Write(..)) && error.code() < 1000 {
                    self.acks.lock().stored(partition.id);
                }
                Ok(Err(error))
            }
        }
    }
}

/// Timeouts are lost calls.
fn flat<T>(
    result: Result<Result<Reply<T>, CallError>, tokio::time::error::Elapsed>,
    wrap: impl FnOnce(T) -> Answer,
) -> Result<Reply<Answer>, CallError> {
    let reply = result.unwrap_or_else(|_| Err(CallError::lost("no answer in time")))?;
    Ok(Reply { head: reply.head, result: reply.result.map(wrap) })
}

/// Keeps the map fresh: the masters' stream, and whenever somebody mentions a newer generation.
async fn watch_map(inner: Arc<Inner>) {
    let volume = inner.identity.who().volume;
    let mut backoff = Backoff::new(100, 5_000);
    loop {
        if let Some(mut maps) = inner.master.watch(volume).await {
            loop {
                tokio::select! {
                    biased;
                    () = inner.map_wanted.notified() => drop(inner.refresh(inner.cache.generation()).await),
                    item = maps.next() => match item {
                        Some(Ok(Ok(map))) => {
                            backoff = Backoff::new(100, 5_000);
                            inner.put_map(map);
                        }
                        Some(Ok(Err(_)) | Err(_)) | None => break,
                    },
                }
            }
        }
        let pause = backoff.next(&*inner.rng, Duration::ZERO);
        if tokio::time::timeout(pause, inner.map_wanted.notified()).await.is_ok() {
            let _ = inner.refresh(inner.cache.generation()).await; // logged there
        }
    }
}
