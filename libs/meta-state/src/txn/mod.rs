//! Operations over several partitions (`docs/design/0002-transactions.md`).

pub mod coordinator;
mod derive;
pub mod locks;
mod participant;
mod reply;
pub mod work;

use crate::{Cx, InternalReply, Partition};
use coordinator::state;
use fusefs_types::{
    FsError, FsResult,
    txn::{Internal, Part, TxnId},
};
pub use work::Work;

/// Bugs planted on purpose, so that tests can show that they are found. All off outside tests.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Stored replies and participants' rows are not looked at.
    pub no_dedupe: bool,
    /// Commands of older tokens are taken.
    pub no_fence: bool,
    /// Bytes that were written before a truncation are not clipped when they are committed after it.
    pub no_clip: bool,
    /// Messages below the coordinator's floor are taken.
    pub ignore_floor: bool,
    /// Prepare does not look at locks.
    pub no_locks: bool,
    /// Directory moves are not checked for cycles.
    pub no_ancestry: bool,
    /// Readers look through locks.
    pub no_block: bool,
}

/// Executes a transaction command.
pub fn apply(p: &mut Partition, cx: &mut Cx, internal: &Internal) -> FsResult<InternalReply> {
    match internal {
        Internal::TxnBegin { caller, write, spill_to } => coordinator::begin(p, cx, caller, write, *spill_to),
        Internal::TxnPrepared { txn, part, result } => {
            mine(p, txn)?;
            coordinator::prepared(p, cx, txn.seq, *part, result)
        }
        Internal::TxnAncestry { txn, cycle } => {
            mine(p, txn)?;
            Ok(coordinator::ancestry(p, cx, txn.seq, *cycle))
        }
        Internal::TxnFinished { txn, part, reply } => {
            mine(p, txn)?;
            coordinator::finished(p, cx, txn.seq, *part, reply)
        }
        Internal::Txn(msg) => participant::step(p, cx, msg).map(InternalReply::Part),
        // Transaction records are the outbox; nothing is delivered twice for want of this.
        Internal::OutboxDone { .. } => Ok(InternalReply::Done),
        _ => Err(FsError::Invalid),
    }
}

fn mine(p: &Partition, txn: &TxnId) -> FsResult<()> {
    if txn.coordinator == p.id { Ok(()) } else { Err(FsError::Invalid) }
}

impl Partition {
    /// What a leader must do for the running transactions, oldest first. Everything is idempotent.
    pub fn txn_work(&self) -> Vec<Work> {
        let floor = coordinator::floor(self);
        let mut out = Vec::new();
        let mut messages = Vec::new();
        for (seq, r) in self.t.txns.iter() {
            coordinator::messages(self, seq, &r, floor, &mut messages);
            out.extend(messages.drain(..).map(Work::SendTxn));
            if r.state == state::ANCESTRY {
                out.extend(r.parts.iter().find_map(|(part, _)| match part {
                    Part::Moved { ino, parent } => Some(Work::CheckAncestry {
                        txn: TxnId { coordinator: self.id, seq },
                        moved: *ino,
                        new_parent: *parent,
                    }),
                    _ => None,
                }));
            }
        }
        out
    }
    /// Running transactions and held locks: both 0 at rest.
    pub fn txn_counts(&self) -> (u64, u64) {
        (self.t.txns.len(), self.t.locks.len())
    }
    /// Commands answered with a stored reply since this replica was opened.
    pub fn repeated(&self) -> u64 {
        self.repeated
    }
    /// Plants bugs.
    #[doc(hidden)]
    pub fn plant(&mut self, faults: Faults) {
        self.faults = faults;
    }
}
