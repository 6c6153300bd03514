//! Commands that no client issues: sessions and fences, cross-partition transactions, garbage, ranges.
//! The protocol is described in `docs/design/0002-transactions.md`.

use crate::{
    Attr, FileKind, FsError, Hlc, Ino, Mode, Name, ObjectId, Token,
    ids::{OpId, PartitionId, SessionId},
    key::{KeyRange, RangeKey},
    ops::{Caller, Write},
};

/// A transaction: coordinator's group and a number from its replicated counter (never reused).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TxnId {
    /// Coordinating partition.
    pub coordinator: PartitionId,
    /// Number.
    pub seq: u64,
}

/// What a participant is asked to check and lock (prepare) and to do (finish with commit). Messages name keys, never
/// partitions (PROTOCOL 17).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The volume topology lock, kept by the owner of the root: only for directory moves that change the parent.
    Topology,
    /// Name `name` in `parent`, which names `child`, goes. The coordinator's own part of unlink and rename; it travels
    /// only after a split has moved the source directory away from the coordinator's group.
    Remove {
        /// Source directory; locked shared.
        parent: Ino,
        /// Name; locked exclusively.
        name: Name,
        /// Inode that loses the name.
        child: Ino,
        /// Its type.
        kind: FileKind,
    },
    /// Name `name` in `parent` will name `child`; replaces what is there if `replace`.
    Insert {
        /// Target directory; locked shared (rmdir locks it exclusively).
        parent: Ino,
        /// Name; locked exclusively.
        name: Name,
        /// Inode that gets the name; `Ino(0)` in the prepare of a spilled mkdir, whose commit carries the number.
        child: Ino,
        /// Its type.
        kind: FileKind,
        /// Existing entry allowed and replaced.
        replace: bool,
    },
    /// A new directory inode in the partition that owns `near` (spilled mkdir).
    MakeDirectory {
        /// Any key of the chosen partition (e.g. the start of its allocation range).
        near: RangeKey,
        /// Parent directory.
        parent: Ino,
        /// Bits incl. inherited set-gid.
        mode: Mode,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Depth hint.
        depth: u8,
        /// Project id.
        project: u32,
    },
    /// One more name (link).
    AddLink {
        /// Inode.
        ino: Ino,
    },
    /// One name less (unlink, replaced target).
    DropLink {
        /// Inode.
        ino: Ino,
    },
    /// rmdir, or a directory replaced by rename: must be empty; locked exclusively.
    RemoveDirectory {
        /// Inode.
        ino: Ino,
    },
    /// A moved inode: ctime, and the parent pointer of a directory.
    Moved {
        /// Inode.
        ino: Ino,
        /// New parent (directories).
        parent: Ino,
    },
}

impl Part {
    /// Key that routes the part.
    pub fn route(&self) -> RangeKey {
        match self {
            Part::Topology => Ino::ROOT.into(),
            Part::Remove { parent, .. } | Part::Insert { parent, .. } => (*parent).into(),
            Part::MakeDirectory { near, .. } => *near,
            Part::AddLink { ino }
            | Part::DropLink { ino }
            | Part::RemoveDirectory { ino }
            | Part::Moved { ino, .. } => (*ino).into(),
        }
    }
}

/// What a participant answers to prepare, execute and finish.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PartReply {
    /// The effect is durable here. False in the answer to prepare, and to an execute that could only be prepared
    /// (the replaced inode lives elsewhere): then commit or abort must follow.
    pub done: bool,
    /// Existing entry under the name (Insert), if any.
    pub existing: Option<(Ino, FileKind)>,
    /// Inode concerned: made, linked, dropped, moved; attributes now (prepare) or afterwards (finish).
    pub attr: Option<Attr>,
}

/// Message between partitions. `floor`: every transaction of the coordinator below it is finished everywhere, so a late
/// duplicate below it is refused with TooOld (PROTOCOL 18).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnMessage {
    /// Transaction.
    pub txn: TxnId,
    /// Number of the part within the transaction.
    pub part: u32,
    /// Acknowledgement floor of the coordinator.
    pub floor: u64,
    /// Session of the client behind it (attach check is the coordinator's).
    pub session: SessionId,
    /// Step.
    pub step: TxnStep,
}

/// Step of a [`TxnMessage`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnStep {
    /// Check, lock, remember. Answer: PartReply or the error that aborts. Errors are remembered, too: a late duplicate
    /// gets the same answer.
    Prepare(Part),
    /// Prepare and commit in one: sent to the only remote participant when everything else is prepared, so that its
    /// answer is the decision of the transaction.
    Execute(Part),
    /// Do it and unlock. Carries the part again, so that the message is self-contained for routing.
    Commit(Part),
    /// Unlock. Also sent for parts whose prepare never arrived: then it only leaves a tombstone.
    Abort(RangeKey),
}

impl TxnMessage {
    /// Key whose owner executes the step.
    pub fn route(&self) -> RangeKey {
        match &self.step {
            TxnStep::Prepare(p) | TxnStep::Execute(p) | TxnStep::Commit(p) => p.route(),
            TxnStep::Abort(key) => *key,
        }
    }
}

/// Commands of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Internal {
    /// First command of a new leader: later `prepare`s build on it; background work of the old term is void.
    TermStart,
    /// The master recorded (session, this partition); mutations of the session are accepted from now on.
    Attach {
        /// Session.
        session: SessionId,
        /// Token at that time.
        token: Token,
    },
    /// Raises the token (force-detach, sweeper); older tokens are Fenced.
    Fence {
        /// Session.
        session: SessionId,
        /// Lowest token still accepted.
        token: Token,
    },
    /// Ends the session: replies, pins and locks go, its orphans become free, later mutations are Stale. Its undecided
    /// transactions are aborted; the answer is Conflict (send it again) until none of its transactions is left, so that
    /// an OK means: nothing of this session changes this volume through this coordinator any more.
    EndSession {
        /// Session.
        session: SessionId,
        /// Fenced by somebody else (its unreferenced objects may be swept) rather than a clean unmount.
        revoked: bool,
    },
    /// Client command that spans partitions: validate, lock and record the intent.
    TxnBegin {
        /// Who asked; the final reply is stored under its op id.
        caller: Caller,
        /// The request (Create of a spilled directory, Link, Unlink, Rename).
        write: Write,
        /// Partition choice of the leader for a spilled directory: recorded, so a retry keeps it.
        spill_to: Option<RangeKey>,
    },
    /// Coordinator: a participant answered prepare or execute of part `part`.
    TxnPrepared {
        /// Transaction.
        txn: TxnId,
        /// Part.
        part: u32,
        /// Answer.
        result: Result<PartReply, FsError>,
    },
    /// Coordinator: the leader's ancestry check (directory moves) found `new_parent` below the moved directory or not.
    TxnAncestry {
        /// Transaction.
        txn: TxnId,
        /// The move would make a cycle.
        cycle: bool,
    },
    /// Coordinator: a participant finished (commit or abort) part `part`.
    TxnFinished {
        /// Transaction.
        txn: TxnId,
        /// Part.
        part: u32,
        /// Attributes after the effect.
        reply: PartReply,
    },
    /// Participant: a step of somebody's transaction.
    Txn(TxnMessage),
    /// A session answered which orphans it holds open (the leader may answer for a session that it knows not to hold
    /// any). The last answer counts: the last close of a held orphan moves it from `held` to `released`.
    Pin {
        /// Who answered.
        session: SessionId,
        /// Open there: pinned until released or the session ends.
        held: Vec<Ino>,
        /// Not open there (any more).
        released: Vec<Ino>,
    },
    /// Leader's background work: free orphans that nobody pins, all asked sessions having answered or ended.
    FreeOrphans {
        /// Inodes.
        inos: Vec<Ino>,
    },
    /// Object bodies deleted from the store: their records and outbox entries go.
    ObjectsDeleted {
        /// Objects.
        objects: Vec<ObjectId>,
    },
    /// Outbox records that were delivered.
    OutboxDone {
        /// Sequence numbers.
        seqs: Vec<u64>,
    },
    /// The master granted another range of inode numbers.
    GrantRange {
        /// Range.
        range: KeyRange,
        /// Map generation that contains it.
        generation: u64,
    },
    /// Space credit that the master has lent to this partition, in total (PROTOCOL 35); `u64::MAX` = unlimited.
    Credit {
        /// Bytes of extents.
        bytes: u64,
        /// Inodes.
        inodes: u64,
    },
    /// Raises the group's feature level.
    SetLevel {
        /// New level.
        level: u32,
    },
    /// Compare replicas: every replica computes its digest at this index and reports it.
    Digest {
        /// Cut time.
        at: Hlc,
    },
}

/// Id of a client operation that waits for a transaction's end.
pub type Waiting = (OpId, TxnId);
