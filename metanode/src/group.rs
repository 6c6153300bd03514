//! One replica as the service sees it: stamping, proposing, attaching, and the memory of a leader's reign.

use crate::{
    holders::Holders,
    machine::{PartitionMachine, Shared, encode_command},
};
use fusefs_meta_state::{InternalReply, LEVEL, Outcome};
use fusefs_raft_host::{Group, GroupStatus, ProposeError};
use fusefs_types::{
    Clock, FsError, FsResult, Hlc, HlcClock, PartitionId, SessionId, VolumeId,
    cluster::Member,
    ops::{Body, Caller, Command, Refusal, Write, WriteReply},
    txn::Internal,
};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Counters of one replica since the process started.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) writes: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) proposals: AtomicU64,
    pub(crate) transactions: AtomicU64,
    pub(crate) messages: AtomicU64,
    pub(crate) conflicts: AtomicU64,
    pub(crate) attaches: AtomicU64,
    pub(crate) objects_deleted: AtomicU64,
    pub(crate) lock_events: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
    /// (name, value) in a fixed order.
    pub(crate) fn list(&self) -> [(&'static str, u64); 9] {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        [
            ("writes", get(&self.writes)),
            ("reads", get(&self.reads)),
            ("proposals", get(&self.proposals)),
            ("transactions", get(&self.transactions)),
            ("messages", get(&self.messages)),
            ("conflicts", get(&self.conflicts)),
            ("attaches", get(&self.attaches)),
            ("objects_deleted", get(&self.objects_deleted)),
            ("lock_events", get(&self.lock_events)),
        ]
    }
}

/// A hosted replica.
pub(crate) struct Hosted {
    pub(crate) group: Group<PartitionMachine>,
    pub(crate) id: PartitionId,
    pub(crate) volume: VolumeId,
    pub(crate) shared: Arc<Shared>,
    status: watch::Receiver<GroupStatus>,
    clock: Arc<dyn Clock>,
    hlc: Mutex<HlcClock>,
    pub(crate) holders: Mutex<Holders>,
    /// One attach per session at a time; everybody else waits for it.
    pub(crate) attaching: Mutex<BTreeMap<SessionId, Arc<tokio::sync::Mutex<()>>>>,
    /// The slow rounds (orphans, dead objects) have something to look at.
    pub(crate) slow_wake: Notify,
    /// Ends this replica's tasks.
    pub(crate) stop: CancellationToken,
    pub(crate) counters: Counters,
}

impl Hosted {
    pub(crate) fn new(
        group: Group<PartitionMachine>,
        volume: VolumeId,
        shared: Arc<Shared>,
        clock: Arc<dyn Clock>,
    ) -> Hosted {
        Hosted {
            id: group.spec().group,
            status: group.watch(),
            group,
            volume,
            shared,
            clock,
            hlc: Mutex::default(),
            holders: Mutex::default(),
            attaching: Mutex::default(),
            slow_wake: Notify::new(),
            stop: CancellationToken::new(),
            counters: Counters::default(),
        }
    }

    /// Ok(term) when commands may be prepared here, otherwise where to go. As of a moment ago: cheap enough for every
    /// request, and whatever is proposed or read meets the real leadership.
    pub(crate) fn lead(&self) -> Result<u64, Refusal> {
        self.judge(&self.status.borrow())
    }

    /// The same as of now.
    pub(crate) fn reign(&self) -> Result<u64, Refusal> {
        self.judge(&self.group.status())
    }

    fn judge(&self, status: &GroupStatus) -> Result<u64, Refusal> {
        if status.stopped.is_some() {
            return Err(not_leader(None));
        }
        if !status.is_leader {
            return Err(not_leader(status.leader.as_ref()));
        }
        if !status.ready {
            return Err(Refusal { backoff_ms: 20, ..FsError::Unavailable.into() });
        }
        self.holders.lock().enter(status.term);
        Ok(status.term)
    }

    pub(crate) fn leads(&self) -> bool {
        self.lead().is_ok()
    }

    /// A stamp above everything this group and the sender have seen (PROTOCOL 3).
    pub(crate) fn stamp(&self, seen: Hlc) -> FsResult<Hlc> {
        let now = self.clock.wall_ns();
        let mut hlc = self.hlc.lock();
        let applied = self.shared.last();
        if applied > hlc.last() {
            *hlc = HlcClock::new(applied);
        }
        hlc.observe(seen, now)?;
        Ok(hlc.stamp(now))
    }

    /// Proposes one command and waits until it is applied here.
    async fn propose(&self, body: Body, seen: Hlc) -> Result<Outcome, Refusal> {
        self.lead()?;
        let command = Command { stamp: self.stamp(seen)?, level: LEVEL, body };
        Counters::add(&self.counters.proposals);
        self.group.propose(encode_command(&command)).await.map_err(|e| refusal(&e))
    }

    /// A client's mutation.
    pub(crate) async fn client(&self, caller: Caller, write: Write, seen: Hlc) -> Result<WriteReply, Refusal> {
        match self.propose(Body::Client(caller, write), seen).await? {
            Outcome::Client(result) => Ok(result?),
            Outcome::Internal(_) | Outcome::UpgradeNeeded => Err(FsError::Io.into()),
        }
    }

    /// A command of our own.
    pub(crate) async fn internal(&self, internal: Internal, seen: Hlc) -> Result<InternalReply, Refusal> {
        match self.propose(Body::Internal(internal), seen).await? {
            Outcome::Internal(result) => Ok(result?),
            Outcome::Client(_) | Outcome::UpgradeNeeded => Err(FsError::Io.into()),
        }
    }

    /// Waits until reads here are linearizable.
    pub(crate) async fn barrier(&self) -> Result<(), Refusal> {
        self.lead()?;
        self.group.read_barrier().await.map_err(|e| refusal(&e))
    }

    pub(crate) fn attach_lock(&self, session: SessionId) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self.attaching.lock();
        if all.len() > 256 {
            all.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        all.entry(session).or_default().clone()
    }
}

/// A refusal that sends the caller to the leader.
pub(crate) fn not_leader(leader: Option<&Member>) -> Refusal {
    Refusal { leader: leader.map(|m| m.addr.clone()), ..FsError::NotLeader.into() }
}

fn refusal(e: &ProposeError) -> Refusal {
    match e {
        ProposeError::NotLeader(leader) => not_leader(leader.as_ref()),
        ProposeError::Unavailable | ProposeError::Stopped(_) => FsError::Unavailable.into(),
        ProposeError::Busy => Refusal { backoff_ms: 10, ..FsError::Overloaded.into() },
        ProposeError::TooLarge => FsError::TooBig.into(),
    }
}
