//! Commands: the only way a partition changes. Deterministic, synchronous, total.

use crate::{
    gc, ops,
    partition::Partition,
    record::{BlobKey, wire::fingerprint},
    session, txn,
};
use bytes::Bytes;
use fusefs_types::{
    FsError, FsResult, Hlc, Ino, ObjectId,
    ops::{Body, Caller, Command, Write, WriteReply},
    txn::{Internal, PartReply, TxnId},
};
use std::collections::BTreeSet;

/// Newest feature level this binary executes.
pub const LEVEL: u32 = 1;

/// Position of a command in the log; `n` = place inside a batched entry (below 65,536).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct LogPos {
    /// Raft term.
    pub term: u64,
    /// Log index.
    pub index: u64,
    /// Place in the entry.
    pub n: u32,
}

/// Bytes to write into the partition's blob file under their name before the reply goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobPut {
    /// Name: (log index, n), as in `Source::Inline`.
    pub key: BlobKey,
    /// Bytes.
    pub bytes: Bytes,
}

/// A put that nothing references any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobRef {
    /// Name.
    pub key: BlobKey,
    /// Its length.
    pub len: u32,
}

/// Answer of an internal command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InternalReply {
    /// Done (or was already).
    Done,
    /// TxnBegin: the transaction runs (or ran before and still does); its reply comes with the command that finishes it.
    Begun(TxnId),
    /// TxnBegin of an operation that has an answer, and the command that finished a transaction: the client's reply.
    Answer {
        /// Whose operation.
        op: Option<TxnId>,
        /// Stored reply.
        result: FsResult<WriteReply>,
    },
    /// Participant's answer.
    Part(PartReply),
    /// Digest at this index.
    Digest(u128),
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A client's mutation: its reply, fresh or stored.
    Client(FsResult<WriteReply>),
    /// An internal command.
    Internal(FsResult<InternalReply>),
    /// The command needs a newer binary: this replica must stop, nothing was changed (PROTOCOL 4).
    UpgradeNeeded,
}

/// Result of [`Partition::apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Effective stamp.
    pub stamp: Hlc,
    /// Reply.
    pub outcome: Outcome,
    /// Bytes for the blob file, in order.
    pub blobs: Vec<BlobPut>,
    /// Puts to free.
    pub freed: Vec<BlobRef>,
    /// Inodes on which a lock went or shrank: whoever waits for one should try again.
    pub unlocked: Vec<Ino>,
}

/// Context of one command while it executes.
#[derive(Clone, Debug)]
pub struct Cx {
    /// Effective stamp: ctime, version.
    pub stamp: Hlc,
    /// Position.
    pub at: LogPos,
    /// Whose command; None for internal ones.
    pub caller: Option<Caller>,
    /// Blob puts so far.
    pub blobs: Vec<BlobPut>,
    /// Freed puts so far.
    pub freed: Vec<BlobRef>,
    /// Inodes on which a lock went or shrank.
    pub(crate) unlocked: BTreeSet<Ino>,
    /// Objects whose references changed: those without any die at the end of the command.
    pub(crate) touched: BTreeSet<ObjectId>,
    /// Inline puts whose references changed.
    pub(crate) touched_blobs: BTreeSet<BlobKey>,
}

impl Cx {
    /// Context of a command.
    pub fn new(stamp: Hlc, at: LogPos) -> Cx {
        Cx {
            stamp,
            at,
            caller: None,
            blobs: Vec::new(),
            freed: Vec::new(),
            unlocked: BTreeSet::new(),
            touched: BTreeSet::new(),
            touched_blobs: BTreeSet::new(),
        }
    }
}

/// How the leader must execute a client's mutation. Advisory: `apply` re-validates and answers Conflict when the
/// advice was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// One command here: `Body::Client`.
    Local,
    /// Several partitions: `Internal::TxnBegin` with `spill_to: None`.
    Transaction,
    /// A new directory near the root (PROTOCOL 21): the leader may choose another partition and begin a transaction with
    /// `spill_to`, or execute it here.
    MaySpill {
        /// Depth the directory will have.
        depth: u8,
    },
}

impl Partition {
    /// Applies one command. Nothing outside `self` is read.
    pub fn apply(&mut self, at: LogPos, command: &Command) -> Applied {
        if command.level > LEVEL || self.meta.level > LEVEL {
            let outcome = Outcome::UpgradeNeeded;
            let (blobs, freed, unlocked) = (Vec::new(), Vec::new(), Vec::new());
            return Applied { stamp: self.meta.last, outcome, blobs, freed, unlocked };
        }
        if self.meta.last == Hlc(0) {
            self.date_root(command.stamp);
        }
        let stamp = Hlc(command.stamp.0.max(self.meta.last.0.saturating_add(1)));
        self.meta.last = stamp;
        self.t.at(at.index);
        let mut cx = Cx::new(stamp, at);
        let outcome = match &command.body {
            Body::Client(caller, write) => Outcome::Client(self.client(&mut cx, caller, write)),
            Body::Internal(internal) => Outcome::Internal(self.internal(&mut cx, internal)),
        };
        self.settle(&mut cx);
        let unlocked = cx.unlocked.into_iter().collect();
        Applied { stamp, outcome, blobs: cx.blobs, freed: cx.freed, unlocked }
    }
    /// The root is born with the first command: a partition has no clock of its own.
    fn date_root(&mut self, stamp: Hlc) {
        if let Some(mut root) = self.t.inodes.get(&Ino::ROOT) {
            (root.atime, root.btime) = (stamp.into(), stamp.into());
            root.touch_data(stamp);
            self.t.inodes.put(&Ino::ROOT, &root);
        }
    }
    fn client(&mut self, cx: &mut Cx, caller: &Caller, write: &Write) -> FsResult<WriteReply> {
        if !self.owns(write.route()) {
            return Err(FsError::WrongRange);
        }
        let print = fingerprint(write);
        if let Some(stored) = session::admit(self, caller, print)? {
            return stored;
        }
        cx.caller = Some(caller.clone());
        let result = ops::write(self, cx, write);
        if !matches!(result, Err(e) if e.is_retryable()) {
            self.meta.operations += 1;
            session::remember(self, caller, print, &result);
        }
        result
    }
    fn internal(&mut self, cx: &mut Cx, internal: &Internal) -> FsResult<InternalReply> {
        match internal {
            Internal::TermStart => {}
            Internal::GrantRange { range, generation } => self.grant_range(*range, *generation)?,
            Internal::Credit { bytes, inodes } => self.meta.credit = (*bytes, *inodes),
            Internal::SetLevel { level } => self.meta.level = self.meta.level.max(*level),
            Internal::Digest { .. } => return Ok(InternalReply::Digest(self.digest())),
            Internal::Attach { .. } | Internal::Fence { .. } | Internal::EndSession { .. } => {
                return session::apply(self, cx, internal);
            }
            Internal::TxnBegin { .. }
            | Internal::TxnPrepared { .. }
            | Internal::TxnAncestry { .. }
            | Internal::TxnFinished { .. }
            | Internal::Txn(_)
            | Internal::OutboxDone { .. } => return txn::apply(self, cx, internal),
            Internal::Pin { .. } | Internal::FreeOrphans { .. } | Internal::ObjectsDeleted { .. } => {
                return gc::apply(self, cx, internal);
            }
        }
        Ok(InternalReply::Done)
    }
}
