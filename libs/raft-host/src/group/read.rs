//! Batched ReadIndex (PROTOCOL 26): one round confirms the leadership for every read that waited when it began.

use super::{Group, Inner};
use crate::api::{Machine, ProposeError};
use openraft::error::{CheckIsLeaderError, RaftError};
use std::sync::{Arc, atomic::Ordering};
use tokio::sync::oneshot;

type Answer = oneshot::Sender<Result<(), ProposeError>>;

/// Reads that wait for the next round.
#[derive(Default)]
pub(crate) struct ReadQueue {
    waiting: Vec<Answer>,
    running: bool,
}

impl<M: Machine> Group<M> {
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
