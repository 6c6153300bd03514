//! Drives the transactions that a partition coordinates: what to send is derived from durable records, so that any
//! leader continues where the last one died.

use crate::{group::Hosted, node::Metanode};
use fusefs_meta_state::Work;
use fusefs_types::{
    FsError, FsResult, Hlc, Ino,
    txn::{Internal, TxnId, TxnMessage, TxnStep},
};
use parking_lot::Mutex;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Steps under way at once for one partition.
const IN_FLIGHT_MAX: usize = 256;
/// A chain of parents longer than this cannot come from real paths.
const ANCESTORS_MAX: usize = 1 << 16;

/// Name of one piece of work while it is under way.
type Step = (TxnId, u32, u8);

#[derive(Default)]
struct Flight(Mutex<BTreeSet<Step>>);

impl Flight {
    fn take(&self, step: Step) -> bool {
        let mut all = self.0.lock();
        all.len() < IN_FLIGHT_MAX && all.insert(step)
    }
}

/// Lands its step when dropped, whatever became of it.
struct Landing(Arc<Flight>, Step);

impl Drop for Landing {
    fn drop(&mut self) {
        self.0.0.lock().remove(&self.1);
    }
}

/// None: not a transaction's.
fn name(work: &Work) -> Option<Step> {
    Some(match work {
        Work::SendTxn(m) => {
            let kind = match m.step {
                TxnStep::Prepare(_) => 0,
                TxnStep::Execute(_) => 1,
                TxnStep::Commit(_) => 2,
                TxnStep::Abort(_) => 3,
            };
            (m.txn, m.part, kind)
        }
        Work::CheckAncestry { txn, .. } => (*txn, 0, 4),
        Work::AskHolders { .. } | Work::FreeOrphans(_) | Work::DeleteObjects(_) => return None,
    })
}

impl Metanode {
    /// Runs until the replica or the node stops. Woken by every internal command that is applied; the slow tick is for
    /// a new leader and for steps that could not be delivered.
    pub(crate) async fn drive(self: Arc<Self>, hosted: Arc<Hosted>) {
        let mut stopping = self.stopping();
        let mut status = hosted.group.watch();
        let flight = Arc::new(Flight::default());
        let tick = Duration::from_millis(self.settings.background_ms.max(10));
        loop {
            tokio::select! {
                biased;
                _ = stopping.wait_for(|s| *s) => return,
                () = hosted.stop.cancelled() => return,
                () = hosted.shared.txn_wake.notified() => {}
                changed = status.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(Instant::now() + tick) => {}
            }
            if hosted.leads() {
                self.launch(&hosted, &flight);
            }
        }
    }

    fn launch(self: &Arc<Self>, hosted: &Arc<Hosted>, flight: &Arc<Flight>) {
        let (work, seen) = hosted.group.read(|m| m.partition().map(|p| (p.txn_work(), p.last()))).unwrap_or_default();
        for item in work {
            let Some(step) = name(&item) else { continue };
            if !flight.take(step) {
                continue;
            }
            let landing = Landing(flight.clone(), step);
            let (node, hosted) = (self.clone(), hosted.clone());
            tokio::spawn(async move {
                let mut stopping = node.stopping();
                tokio::select! {
                    biased;
                    _ = stopping.wait_for(|s| *s) => {}
                    done = node.perform(&hosted, item, seen) => {
                        drop(landing);
                        if done {
                            // The answer may have arrived while the step still counted as under way.
                            hosted.shared.txn_wake.notify_one();
                        }
                    }
                }
            });
        }
    }

    /// Does one piece of work and logs its result; false = nothing came of it, the tick tries again.
    async fn perform(self: &Arc<Self>, hosted: &Hosted, work: Work, seen: Hlc) -> bool {
        let answer = match work {
            Work::SendTxn(message) => self.send(hosted, message, seen).await,
            Work::CheckAncestry { txn, moved, new_parent } => match self.is_below(hosted, moved, new_parent).await {
                Ok(cycle) => Some((Internal::TxnAncestry { txn, cycle }, Hlc(0))),
                Err(error) => {
                    tracing::debug!(?txn, %error, "ancestry not known yet");
                    None
                }
            },
            Work::AskHolders { .. } | Work::FreeOrphans(_) | Work::DeleteObjects(_) => None,
        };
        let Some((internal, seen)) = answer else { return false };
        match hosted.internal(internal, seen).await {
            Ok(_) => true,
            Err(r) => {
                if r.error == FsError::ClockSkew {
                    tracing::warn!(partition = %hosted.id, "a participant's clock is too far ahead: fix the clocks");
                }
                false
            }
        }
    }

    /// Sends a step; the command that logs its answer, stamped after the participant's.
    async fn send(self: &Arc<Self>, hosted: &Hosted, message: TxnMessage, seen: Hlc) -> Option<(Internal, Hlc)> {
        let (txn, part) = (message.txn, message.part);
        let deciding = matches!(message.step, TxnStep::Prepare(_) | TxnStep::Execute(_));
        match self.deliver(hosted.volume, seen, message).await {
            Ok((reply, at)) if deciding => Some((Internal::TxnPrepared { txn, part, result: Ok(reply) }, at)),
            Ok((reply, at)) => Some((Internal::TxnFinished { txn, part, reply }, at)),
            Err(e) if deciding && (e == FsError::Conflict || e.code() < 1000) => {
                Some((Internal::TxnPrepared { txn, part, result: Err(e) }, Hlc(0)))
            }
            // TooOld: it was finished before. Everything else is sent again.
            Err(error) => {
                tracing::debug!(?txn, part, %error, "step not taken");
                None
            }
        }
    }

    /// Whether `dir` is `top` or below it, by linearizable reads up the chain of parents.
    async fn is_below(self: &Arc<Self>, hosted: &Hosted, top: Ino, dir: Ino) -> FsResult<bool> {
        let mut at = dir;
        for _ in 0..ANCESTORS_MAX {
            if at == top {
                return Ok(true);
            }
            if at == Ino::ROOT || at.0 == 0 {
                return Ok(false);
            }
            at = match self.parent_of(hosted.volume, at).await {
                Ok(parent) => parent,
                // The new parent was removed meanwhile: its own part refuses the move.
                Err(FsError::NotFound) => return Ok(false),
                Err(e) => return Err(e),
            };
        }
        Err(FsError::Loop)
    }
}
