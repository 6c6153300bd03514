//! Batching of proposals in front of raft: while a batch is on its way, new commands wait and share the next entry.

use super::{Group, Inner};
use crate::{
    api::{Machine, ProposeError},
    machine::Proposers,
    raft::{Batch, Waiters},
};
use bytes::Bytes;
use fusefs_types::limits;
use futures::FutureExt;
use openraft::ServerState;
use std::{
    collections::VecDeque,
    sync::{Arc, Weak, atomic::Ordering},
};
use tokio::sync::oneshot;

/// Entries of one group on their way at once. One would leave the disk idle while replies travel; more would only make
/// batches smaller.
const BATCHES_IN_FLIGHT: usize = 2;

type Answer<R> = oneshot::Sender<Result<R, ProposeError>>;

/// Commands that wait for their turn.
pub(crate) struct Queue<R> {
    waiting: VecDeque<(Bytes, Answer<R>)>,
    in_flight: usize,
    /// Batches sent and perhaps not told yet.
    sent: Vec<Weak<Proposers<R>>>,
}

impl<R> Default for Queue<R> {
    fn default() -> Self {
        Queue { waiting: VecDeque::new(), in_flight: 0, sent: Vec::new() }
    }
}

impl<M: Machine> Group<M> {
    /// Replicates one command and answers what the machine replied.
    ///
    /// # Errors
    /// See [`ProposeError`]: NotLeader, Busy and TooLarge mean surely not executed, the others that nobody knows.
    pub async fn propose(&self, payload: Bytes) -> Result<M::Reply, ProposeError> {
        if payload.len() > limits::COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge);
        }
        self.0.check_leader()?;
        let (tx, rx) = oneshot::channel();
        {
            let mut queue = self.0.queue.lock();
            if queue.waiting.len() >= limits::PROPOSAL_QUEUE_MAX {
                return Err(ProposeError::Busy);
            }
            queue.waiting.push_back((payload, tx));
        }
        self.0.counters.proposals.fetch_add(1, Ordering::Relaxed);
        self.0.dispatch();
        match tokio::time::timeout(self.0.settings.timers.propose, rx).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(self.0.stopped().map_or(ProposeError::Unavailable, ProposeError::Stopped)),
        }
    }
}

impl<M: Machine> Inner<M> {
    /// Does this replica lead, as far as it can know without asking anybody?
    pub(crate) fn check_leader(&self) -> Result<(), ProposeError> {
        if let Some(why) = self.stopped() {
            return Err(ProposeError::Stopped(why));
        }
        let leader = {
            let metrics = self.metrics.borrow();
            let other = metrics.current_leader.filter(|id| *id != self.key.replica.0);
            if metrics.state == ServerState::Leader {
                None
            } else {
                Some(other.and_then(|id| self.member(id, &metrics)))
            }
        };
        match leader {
            Some(leader) => Err(ProposeError::NotLeader(leader)),
            None if !self.quorum_fresh() => Err(ProposeError::NotLeader(None)),
            None => Ok(()),
        }
    }

    /// Sends batches while there is something to send and room on the way.
    pub(crate) fn dispatch(self: &Arc<Self>) {
        loop {
            let (payloads, senders) = {
                let mut queue = self.queue.lock();
                if queue.in_flight >= BATCHES_IN_FLIGHT || queue.waiting.is_empty() {
                    return;
                }
                let taken = take(&mut queue.waiting);
                if taken.0.is_empty() {
                    return;
                }
                queue.in_flight += 1;
                taken
            };
            self.counters.entries.fetch_add(1, Ordering::Relaxed);
            let weak = Arc::downgrade(self);
            let done = Box::new(move || batch_done(&weak));
            let waiters = Arc::new(Proposers::new(senders, done));
            {
                let mut queue = self.queue.lock();
                queue.sent.retain(|old| old.upgrade().is_some_and(|p| p.waiting()));
                queue.sent.push(Arc::downgrade(&waiters));
            }
            let batch = Batch { payloads, waiters: Some(waiters) };
            // Only queues in RaftCore's channel. When the core is gone, the dropped responder tells the proposers.
            let _ = self.raft.client_write_ff(batch).now_or_never();
        }
    }

    /// Tells everybody whose batch is on its way that the outcome is unknown. openraft forgets proposals of an earlier
    /// leadership that come back inside a snapshot; without this their batches would fill the way for ever.
    pub(crate) fn fail_sent(&self) {
        let sent = std::mem::take(&mut self.queue.lock().sent);
        for waiters in sent.iter().filter_map(Weak::upgrade) {
            waiters.fail(ProposeError::Unavailable);
        }
    }

    /// Tells everybody who waits in the queue.
    pub(crate) fn fail_queue(&self, error: &ProposeError) {
        let waiting = std::mem::take(&mut self.queue.lock().waiting);
        for (_, tx) in waiting {
            let _ = tx.send(Err(error.clone()));
        }
    }
}

fn batch_done<M: Machine>(weak: &Weak<Inner<M>>) {
    if let Some(inner) = weak.upgrade() {
        let mut queue = inner.queue.lock();
        queue.in_flight = queue.in_flight.saturating_sub(1);
        drop(queue);
        inner.dispatch();
    }
}

fn take<R>(waiting: &mut VecDeque<(Bytes, Answer<R>)>) -> (Vec<Bytes>, Vec<Answer<R>>) {
    let (mut payloads, mut senders, mut bytes) = (Vec::new(), Vec::new(), 0);
    while let Some((payload, _)) = waiting.front() {
        let full = payloads.len() >= limits::PROPOSAL_BATCH_MAX
            || (!payloads.is_empty() && bytes + payload.len() > limits::PROPOSAL_BATCH_BYTES_MAX);
        if full {
            break;
        }
        if let Some((payload, tx)) = waiting.pop_front() {
            if tx.is_closed() {
                continue; // the caller gave up before it was sent
            }
            bytes += payload.len();
            payloads.push(payload);
            senders.push(tx);
        }
    }
    (payloads, senders)
}
