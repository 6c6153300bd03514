//! What a leader must do. Derived from durable records: any leader of any term derives the same, and everything is
//! idempotent.

use crate::Partition;
use fusefs_types::{
    Hlc, Ino, ObjectId, SessionId,
    txn::{TxnId, TxnMessage},
};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Send to the owner of `route()` as `Internal::Txn`. The answer to Prepare and Execute is proposed here as `TxnPrepared`
    /// if it is Ok, an errno-like error (code below 1000) or Conflict; the answer to Commit and Abort as `TxnFinished` if
    /// it is Ok. On everything else (WrongRange, NotLeader, Unavailable ...) send again later; TooOld needs nothing.
    SendTxn(TxnMessage),
    /// Walk from `new_parent` up to the root by GetAttr (`parent`); propose `TxnAncestry` with `cycle` = `moved` was met.
    /// Compare before reading: the moved directory itself is locked.
    CheckAncestry {
        /// Transaction.
        txn: TxnId,
        /// Directory that moves.
        moved: Ino,
        /// Where to.
        new_parent: Ino,
    },
    /// Ask a session which of these it holds open; log its answer as `Pin`. The leader may log `released` for a session
    /// of which it has seen every open.
    AskHolders {
        /// Whom.
        session: SessionId,
        /// About what, at most `gc::orphans::ORPHAN_BATCH`.
        inos: Vec<Ino>,
    },
    /// Propose `FreeOrphans`.
    FreeOrphans(Vec<Ino>),
    /// Delete the bodies of those that died longer than the grace ago, then propose `ObjectsDeleted`. In order of death, at most
    /// `gc::DELETE_BATCH`.
    DeleteObjects(Vec<(ObjectId, Hlc)>),
}

impl Partition {
    /// Everything a leader must do now. After a transaction command only [`Partition::txn_work`] can have changed.
    pub fn work(&self) -> Vec<Work> {
        let mut out = self.txn_work();
        out.extend(self.gc_work());
        out
    }
}
