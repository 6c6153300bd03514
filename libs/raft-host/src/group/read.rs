//! Linearizable reads (PROTOCOL 26): under the leader's lease where it holds, else by batched ReadIndex, where one round
//! confirms the leadership for every read that waited when it began.
//!
//! The lease. A voter that accepts an append refuses everybody's vote, its own included, for `Timers::lease` from then on
//! (openraft's vote lease, kept over a restart; `elect.rs` for its own). An append is sent before it is accepted, so for a
//! quorum of voters that accepted appends sent after `now - lease` nobody else can lead. The leader counts 3/5 of that
//! time, on CLOCK_BOOTTIME: room for clocks that run at different speeds. It ends when this replica votes for somebody.
//! What this leader acknowledged is applied here, and so is all older once an entry of its own term is.

use super::{Group, Inner};
use crate::api::{Machine, ProposeError};
use openraft::{
    ServerState,
    error::{CheckIsLeaderError, RaftError},
};
use std::sync::{Arc, atomic::Ordering};
use tokio::sync::oneshot;

type Answer = oneshot::Sender<Result<(), ProposeError>>;

/// Reads that wait for the next round.
#[derive(Default)]
pub(crate) struct ReadQueue {
    waiting: Vec<Answer>,
    running: bool,
}

/// Part of the voters' promise that a leader relies on.
const LEASE_PART: (u32, u32) = (3, 5);

impl<M: Machine> Group<M> {
    /// A linearizable read without a round trip, if the leader's lease holds; None = use [`Group::read_barrier`].
    pub fn read_leased<T>(&self, f: impl FnOnce(&M) -> T) -> Option<T> {
        if !self.0.leased() {
            return None;
        }
        let value = self.read(f);
        // Looked at again: this thread may have slept since. The state was read before now, hence inside the lease.
        self.0.leased().then(|| {
            self.0.counters.lease_reads.fetch_add(1, Ordering::Relaxed);
            value
        })
    }

    /// When this returns, [`Group::read`] sees everything that was acknowledged before this call.
    ///
    /// # Errors
    /// NotLeader, Unavailable (no quorum in time), Stopped. Reads change nothing: all may be retried.
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        self.0.check_leader()?;
        self.0.counters.reads.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        let start = {
            let mut reads = self.0.reads.lock();
            reads.waiting.push(tx);
            !std::mem::replace(&mut reads.running, true)
        };
        if start {
            tokio::spawn(rounds(Arc::clone(&self.0)));
        }
        match tokio::time::timeout(self.0.settings.timers.propose, rx).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(self.0.stopped().map_or(ProposeError::Unavailable, ProposeError::Stopped)),
        }
    }
}

/// Runs rounds until nobody waits.
async fn rounds<M: Machine>(inner: Arc<Inner<M>>) {
    loop {
        let waiting = {
            let mut reads = inner.reads.lock();
            if reads.waiting.is_empty() {
                reads.running = false;
                return;
            }
            std::mem::take(&mut reads.waiting)
        };
        inner.counters.read_rounds.fetch_add(1, Ordering::Relaxed);
        let limit = inner.settings.timers.propose;
        let answer = match tokio::time::timeout(limit, round(&inner)).await {
            Ok(answer) => answer,
            Err(_) => Err(ProposeError::Unavailable),
        };
        for tx in waiting {
            let _ = tx.send(answer.clone());
        }
    }
}

async fn round<M: Machine>(inner: &Inner<M>) -> Result<(), ProposeError> {
    let (read, _) = match inner.raft.get_read_log_id().await {
        Ok(ids) => ids,
        Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to))) => {
            let leader = to.leader_id.zip(to.leader_node).map(|(id, node)| node.member(id));
            return Err(ProposeError::NotLeader(leader));
        }
        Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => return Err(ProposeError::Unavailable),
        Err(RaftError::Fatal(e)) => return Err(ProposeError::Stopped(e.to_string())),
    };
    let Some(read) = read else { return Ok(()) };
    let mut applied = inner.cell.applied.subscribe();
    let reached = applied.wait_for(|a| a.any && a.index >= read.index).await;
    reached.map(|_| ()).map_err(|_| ProposeError::Unavailable)
}

impl<M: Machine> Inner<M> {
    /// This replica voted for another leader of `term`.
    pub(crate) fn voted_away(&self, term: u64) {
        self.voted_away.fetch_max(term, Ordering::SeqCst);
    }

    /// Whether nobody else can be leader now, and everything acknowledged so far is applied here.
    fn leased(&self) -> bool {
        let metrics = self.metrics.borrow();
        let term = metrics.vote.leader_id.term;
        let applied = *self.cell.applied.borrow();
        if metrics.state != ServerState::Leader || !applied.any || applied.term != term || self.stopped().is_some() {
            return false;
        }
        if self.voted_away.load(Ordering::SeqCst) > term {
            return false;
        }
        let limit = u64::try_from((self.settings.timers.lease * LEASE_PART.0 / LEASE_PART.1).as_nanos()).unwrap_or(0);
        let now = self.links.clock.boot_ns();
        let acked = self.links.acked.lock();
        let promised = |id: &u64| {
            *id == self.key.replica.0 || acked.get(id).is_some_and(|(_, sent)| now < sent.saturating_add(limit))
        };
        let configs = metrics.membership_config.membership().get_joint_config();
        configs.iter().all(|c| c.iter().filter(|id| promised(id)).count() * 2 > c.len())
    }
}
