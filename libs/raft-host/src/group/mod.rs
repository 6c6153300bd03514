//! One replica of one group: proposals, reads, status.

mod elect;
mod handle;
mod propose;
mod read;

use crate::{
    api::{GroupSpec, GroupStats, GroupStatus, Machine, ProposeError, Settings},
    disk::Disk,
    log::{Log, format::Key},
    machine::Cell,
    net::raft_net::Links,
    raft::{PeerNode, Raft},
};
use fusefs_types::cluster::Member;
use openraft::{ServerState, metrics::RaftServerMetrics};
use parking_lot::Mutex;
use propose::Queue;
use read::ReadQueue;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

type ServerMetrics = RaftServerMetrics<u64, PeerNode>;

/// Handle of one replica. Clones share it.
pub struct Group<M: Machine>(pub(crate) Arc<Inner<M>>);

impl<M: Machine> Clone for Group<M> {
    fn clone(&self) -> Self {
        Group(Arc::clone(&self.0))
    }
}

/// Counters, see [`GroupStats`].
#[derive(Default)]
pub(crate) struct Counters {
    proposals: AtomicU64,
    entries: AtomicU64,
    reads: AtomicU64,
    read_rounds: AtomicU64,
    lease_reads: AtomicU64,
    checkpoints: AtomicU64,
}

pub(crate) struct Inner<M: Machine> {
    pub spec: GroupSpec,
    pub key: Key,
    pub raft: Raft,
    pub cell: Arc<Cell<M>>,
    pub log: Log,
    pub disk: Arc<dyn Disk>,
    pub links: Arc<Links>,
    pub settings: Settings,
    metrics: watch::Receiver<ServerMetrics>,
    status: watch::Sender<GroupStatus>,
    queue: Mutex<Queue<M::Reply>>,
    reads: Mutex<ReadQueue>,
    election: Mutex<elect::Election>,
    campaigning: AtomicBool,
    /// Highest term in which this replica voted for somebody else: leases of its own earlier terms are void.
    voted_away: AtomicU64,
    receiving: tokio::sync::Mutex<Option<handle::Receiving>>,
    /// Appended bytes at the last checkpoint, and the checkpoint whose log was last purged.
    checkpoint_base: Mutex<(u64, u64)>,
    counters: Counters,
}

/// What `Host` builds a group from.
pub(crate) struct Parts<M: Machine> {
    pub spec: GroupSpec,
    pub raft: Raft,
    pub cell: Arc<Cell<M>>,
    pub log: Log,
    pub disk: Arc<dyn Disk>,
    pub links: Arc<Links>,
    pub settings: Settings,
    pub seed: u64,
}

impl<M: Machine> Group<M> {
    pub(crate) fn new(parts: Parts<M>) -> Self {
        let key = Key { group: parts.spec.group, replica: parts.spec.replica };
        let metrics = parts.raft.server_metrics();
        // Another node's leadership, as stored: its lease may still run. openraft's metrics are not filled yet.
        let me = Some(parts.spec.replica.0);
        let led = parts.log.vote(key).is_some_and(|v| v.committed && v.leader_id.voted_for != me);
        let group = Group(Arc::new(Inner {
            key,
            spec: parts.spec,
            raft: parts.raft,
            cell: parts.cell,
            log: parts.log,
            disk: parts.disk,
            links: parts.links,
            metrics,
            status: watch::Sender::new(GroupStatus::default()),
            queue: Mutex::new(Queue::default()),
            reads: Mutex::new(ReadQueue::default()),
            election: Mutex::new(elect::Election::new(parts.seed, led)),
            settings: parts.settings,
            campaigning: AtomicBool::new(false),
            voted_away: AtomicU64::new(0),
            receiving: tokio::sync::Mutex::new(None),
            checkpoint_base: Mutex::new((0, 0)),
            counters: Counters::default(),
        }));
        group.0.refresh_status();
        let weak = Arc::downgrade(&group.0);
        tokio::spawn(follow_status(weak, group.0.metrics.clone()));
        group
    }

    /// As it was created.
    #[must_use]
    pub fn spec(&self) -> &GroupSpec {
        &self.0.spec
    }

    /// Reads the state as it is now, under a shared lock. Not linearizable by itself: see [`Group::read_barrier`].
    pub fn read<T>(&self, f: impl FnOnce(&M) -> T) -> T {
        f(&self.0.cell.machine.read())
    }

    /// What is known now.
    #[must_use]
    pub fn status(&self) -> GroupStatus {
        self.0.status_now()
    }

    /// Follows changes of leader, readiness and stop. `applied` and `last_log` are as of the last such change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<GroupStatus> {
        self.0.status.subscribe()
    }

    /// Counters of this replica.
    #[must_use]
    pub fn stats(&self) -> GroupStats {
        let c = &self.0.counters;
        GroupStats {
            proposals: c.proposals.load(Ordering::Relaxed),
            entries: c.entries.load(Ordering::Relaxed),
            reads: c.reads.load(Ordering::Relaxed),
            read_rounds: c.read_rounds.load(Ordering::Relaxed),
            lease_reads: c.lease_reads.load(Ordering::Relaxed),
            checkpoints: c.checkpoints.load(Ordering::Relaxed),
        }
    }

    /// Writes a checkpoint of everything applied so far and waits until it is durable.
    ///
    /// # Errors
    /// Stopped: the replica or its disk stopped. Unavailable: not done within a minute.
    pub async fn checkpoint(&self) -> Result<(), ProposeError> {
        let applied = *self.0.cell.applied.borrow();
        if !applied.any {
            return Ok(());
        }
        self.0.start_checkpoint().await?;
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        while self.0.cell.checkpointed().is_none_or(|id| id.index < applied.index) {
            if let Some(why) = self.0.stopped() {
                return Err(ProposeError::Stopped(why));
            }
            if Instant::now() > deadline {
                return Err(ProposeError::Unavailable);
            }
            tick.tick().await;
        }
        Ok(())
    }

    /// Hook for hibernation (PROTOCOL 25): without ticks a leader sends no heartbeats and followers campaign for nobody.
    /// The caller must wake all replicas of the group before it uses it again.
    pub fn enable_tick(&self, enabled: bool) {
        self.0.raft.runtime_config().tick(enabled);
        self.0.election.lock().asleep(!enabled);
    }
}

impl<M: Machine> Inner<M> {
    /// Why this replica serves nothing any more.
    pub(crate) fn stopped(&self) -> Option<String> {
        self.cell.stopped.borrow().clone()
    }

    fn member(&self, replica: u64, metrics: &ServerMetrics) -> Option<Member> {
        let node = metrics.membership_config.membership().get_node(&replica)?;
        Some(self.links.addresses.resolve(&node.member(replica)))
    }

    fn status_now(&self) -> GroupStatus {
        let applied = *self.cell.applied.borrow();
        let (_, last) = self.log.ends(self.key);
        let metrics = self.metrics.borrow();
        let stopped = self.stopped();
        let is_leader = metrics.state == ServerState::Leader && stopped.is_none();
        let term = metrics.vote.leader_id.term;
        GroupStatus {
            leader: metrics.current_leader.and_then(|id| self.member(id, &metrics)),
            is_leader,
            ready: is_leader && applied.any && applied.term == term,
            term,
            applied: applied.index,
            last_log: last.map_or(0, |id| id.index),
            stopped,
        }
    }

    fn refresh_status(&self) {
        let now = self.status_now();
        self.status.send_if_modified(|old| {
            let same = old.leader == now.leader
                && old.is_leader == now.is_leader
                && old.ready == now.ready
                && old.term == now.term
                && old.stopped == now.stopped;
            *old = now;
            !same
        });
    }

    /// Stops the replica for good: nobody is answered OK after this.
    pub(crate) async fn stop(&self, why: &str) {
        self.cell.stopped.send_if_modified(|s| {
            let first = s.is_none();
            s.get_or_insert_with(|| why.to_owned());
            first
        });
        self.fail_queue(&ProposeError::Stopped(why.to_owned()));
        let _ = self.raft.shutdown().await;
        self.refresh_status();
    }

    /// Has a quorum answered this leader lately? A leader cut off from its followers must not keep callers waiting.
    pub(crate) fn quorum_fresh(&self) -> bool {
        let metrics = self.metrics.borrow();
        let limit = self.settings.timers.lease * 3;
        let now = Instant::now();
        let acked = self.links.acked.lock();
        let fresh = |id: &u64| *id == self.key.replica.0 || acked.get(id).is_some_and(|(at, _)| now - *at < limit);
        let configs = metrics.membership_config.membership().get_joint_config();
        let answered = configs.iter().all(|c| c.iter().filter(|id| fresh(id)).count() * 2 > c.len());
        answered || self.election.lock().changed_within(limit)
    }

    /// Cuts a checkpoint when enough log would have to be replayed, and purges what the last one covers.
    pub(crate) async fn tend_checkpoint(&self) {
        let appended = self.log.appended_bytes(self.key);
        let due = appended.saturating_sub(self.checkpoint_base.lock().0) >= self.settings.checkpoint_bytes;
        if due && self.cell.applied.borrow().any {
            let _ = self.start_checkpoint().await;
        }
        self.purge_covered().await;
    }

    async fn start_checkpoint(&self) -> Result<(), ProposeError> {
        if let Some(why) = self.stopped() {
            return Err(ProposeError::Stopped(why));
        }
        self.checkpoint_base.lock().0 = self.log.appended_bytes(self.key);
        self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.raft.trigger().snapshot().await.map_err(|e| ProposeError::Stopped(e.to_string()))
    }

    /// Keeps an eighth of a checkpoint's worth of log, so that a follower that lags a little needs no snapshot.
    async fn purge_covered(&self) {
        // As RaftCore knows it: it refuses to purge what it does not know to be covered.
        let Some(covered) = self.raft.data_metrics().borrow().snapshot else { return };
        if std::mem::replace(&mut self.checkpoint_base.lock().1, covered.index) == covered.index {
            return;
        }
        let keep = self.settings.checkpoint_bytes / 8;
        if let Some(upto) = self.log.purge_point(self.key, covered.index, keep) {
            let _ = self.raft.trigger().purge_log(upto).await;
        }
    }
}

/// Keeps the status watch current for as long as the group lives.
async fn follow_status<M: Machine>(weak: std::sync::Weak<Inner<M>>, mut metrics: watch::Receiver<ServerMetrics>) {
    let Some(inner) = weak.upgrade() else { return };
    let mut applied = inner.cell.applied.subscribe();
    let mut stopped = inner.cell.stopped.subscribe();
    let mut all = inner.raft.metrics();
    drop(inner);
    loop {
        let Some(inner) = weak.upgrade() else { return };
        let before = inner.status.borrow().clone();
        inner.refresh_status();
        let now = inner.status.borrow().clone();
        if now.is_leader != before.is_leader || now.term != before.term {
            inner.election.lock().changed();
            if before.is_leader {
                inner.fail_sent();
            }
        }
        let waiting_ready = now.is_leader && !now.ready;
        drop(inner);
        tokio::select! {
            biased;
            changed = metrics.changed() => if changed.is_err() {
                break;
            },
            _ = stopped.changed() => {}
            _ = applied.changed(), if waiting_ready => {}
        }
    }
    // RaftCore ended: by shutdown, or by an error that must be shown.
    let why = match &all.borrow_and_update().running_state {
        Err(e) => e.to_string(),
        Ok(()) => "raft ended".to_owned(),
    };
    if let Some(inner) = weak.upgrade() {
        inner.stop(&why).await;
    }
}
