//! What masters and metanodes see of this crate: the state machine trait, group specifications, settings and errors.

use bytes::Bytes;
use fusefs_types::{Clock, ClusterId, NodeId, PartitionId, ReplicaId, Rng, cluster::Member};
use std::{io, sync::Arc, time::Duration};

/// Place of one command in a group's history. `n` counts within the batched entry, so `(index, n)` is unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct LogPos {
    /// Raft term of the entry.
    pub term: u64,
    /// Raft index of the entry.
    pub index: u64,
    /// Command within the entry.
    pub n: u32,
}

/// This replica must stop: its binary is too old, its disk failed, its state is damaged. The reason is for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Stop(pub String);

/// A deterministic state machine replicated by one group.
pub trait Machine: Send + Sync + 'static {
    /// Answer to one command.
    type Reply: Send + 'static;
    /// Applies one command. Must be deterministic and must not block for long: readers wait meanwhile.
    ///
    /// # Errors
    /// [`Stop`] stops this replica for good (until the process restarts); the command counts as not applied.
    fn apply(&mut self, at: LogPos, payload: &[u8]) -> Result<Self::Reply, Stop>;
    /// An O(1) frozen copy that a background thread can write.
    fn freeze(&self) -> Box<dyn Frozen>;
    /// Replaces the state by one that [`Frozen::write_to`] wrote. On error the state may be anything; the replica stops.
    ///
    /// # Errors
    /// Damaged or unknown data.
    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()>;
}

/// A frozen state.
pub trait Frozen: Send + 'static {
    /// Writes the state. Blocking; called once, off the runtime's threads.
    ///
    /// # Errors
    /// Whatever `out` returns.
    fn write_to(&self, out: &mut dyn io::Write) -> io::Result<()>;
}

/// One replica of one group, as persisted in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSpec {
    /// Group.
    pub group: PartitionId,
    /// This node's replica.
    pub replica: ReplicaId,
    /// Initial members in the same order everywhere; must contain `replica`.
    pub members: Vec<Member>,
    /// Opaque to this crate, at most 64 KiB.
    pub label: Bytes,
}

/// What is known about a group on this node.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct GroupStatus {
    /// The leader this replica believes in.
    pub leader: Option<Member>,
    /// This replica leads.
    pub is_leader: bool,
    /// This replica leads and its term's first entry is applied: commands may be prepared.
    pub ready: bool,
    /// Raft term.
    pub term: u64,
    /// Index of the last applied entry.
    pub applied: u64,
    /// Index of the last entry in the log.
    pub last_log: u64,
    /// The replica stopped; why. It serves nothing until the process restarts.
    pub stopped: Option<String>,
}

/// Why a command was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This replica does not lead: surely not executed. The leader, if known.
    #[error("not the leader")]
    NotLeader(Option<Member>),
    /// No answer in time, leadership lost midway or queue lost: the outcome is unknown.
    #[error("no quorum answered in time; the outcome is unknown")]
    Unavailable,
    /// Too many commands wait: surely not executed.
    #[error("too many commands are waiting")]
    Busy,
    /// The payload is larger than `limits::COMMAND_BYTES_MAX`: not executed.
    #[error("the command is too large")]
    TooLarge,
    /// The replica stopped; the outcome is unknown.
    #[error("the replica stopped: {0}")]
    Stopped(String),
}

/// Why a host or a group could not be opened, created or changed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The disk failed, or refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The disk belongs to somebody else.
    #[error("this data directory belongs to {0}; refusing to use it")]
    Foreign(String),
    /// Damage below the synced mark, or a missing file.
    #[error("the log is damaged: {0}")]
    Damaged(String),
    /// The replica was destroyed here before; replica ids are never reused.
    #[error("replica {1} of group {0} was destroyed on this node")]
    Destroyed(PartitionId, ReplicaId),
    /// Contradiction in the arguments.
    #[error("{0}")]
    Invalid(String),
    /// The host is shut down or its disk has failed.
    #[error("stopped: {0}")]
    Stopped(String),
}

/// Timers. The defaults are those of PROTOCOL 25; tests may shorten them together.
#[derive(Clone, Debug)]
pub struct Timers {
    /// openraft's heartbeat of a leader. Also the deadline of one append call.
    pub heartbeat: Duration,
    /// A voter refuses votes for this long after it heard from a leader.
    pub lease: Duration,
    /// Heartbeat between two nodes.
    pub node_heartbeat: Duration,
    /// A node that was silent for longer counts as dead.
    pub node_dead: Duration,
    /// A leader silent for this long (plus up to half of it at random) is replaced although its node answers.
    pub leader_silent: Duration,
    /// How long a proposal or read barrier waits before Unavailable.
    pub propose: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Timers {
            heartbeat: Duration::from_millis(250),
            lease: Duration::from_millis(500),
            node_heartbeat: Duration::from_millis(200),
            node_dead: Duration::from_millis(600),
            leader_silent: Duration::from_millis(1000),
            propose: Duration::from_secs(5),
        }
    }
}

/// Bugs that the simulation plants on purpose, to see that its oracles notice them. All off in production.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Planted {
    /// A restarted leader resumes without an election (PROTOCOL 23).
    pub resume_leader: bool,
    /// Entries are acknowledged before they are on the disk.
    pub ack_before_sync: bool,
}

/// Settings of a host.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Cluster; the disk's superblock must name it.
    pub cluster: ClusterId,
    /// This node; the disk's superblock must name it.
    pub node: NodeId,
    /// Timers.
    pub timers: Timers,
    /// Bytes of a log segment.
    pub segment_bytes: u64,
    /// A checkpoint is cut when this many log bytes would have to be replayed.
    pub checkpoint_bytes: u64,
    /// For tests of the tests.
    #[doc(hidden)]
    pub planted: Planted,
}

impl Settings {
    /// Defaults for one node.
    #[must_use]
    pub fn new(cluster: ClusterId, node: NodeId) -> Self {
        Settings {
            cluster,
            node,
            timers: Timers::default(),
            segment_bytes: fusefs_types::limits::LOG_SEGMENT_BYTES,
            checkpoint_bytes: fusefs_types::limits::CHECKPOINT_LOG_BYTES,
            planted: Planted::default(),
        }
    }
}

/// What a host is built from.
#[derive(Clone)]
pub struct Components {
    /// Disk: [`crate::RealDisk`] or [`crate::SimDisk`].
    pub disk: Arc<dyn crate::Disk>,
    /// Network: [`crate::GrpcNet`] or a node of [`crate::MemNet`].
    pub net: Arc<dyn crate::PeerNet>,
    /// Clock.
    pub clock: Arc<dyn Clock>,
    /// Entropy.
    pub rng: Arc<dyn Rng>,
}

/// Makes the empty state machine of a group.
pub type MakeMachine<M> = Arc<dyn Fn(&GroupSpec) -> M + Send + Sync>;

/// Counters of the log of one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LogStats {
    /// Records appended.
    pub appends: u64,
    /// Bytes written, headers included.
    pub bytes: u64,
    /// fdatasync calls of the committer.
    pub fsyncs: u64,
    /// Segments on disk.
    pub segments: u64,
}

/// Counters of one group on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct GroupStats {
    /// Commands proposed here.
    pub proposals: u64,
    /// Raft entries that carried them.
    pub entries: u64,
    /// Read barriers asked.
    pub reads: u64,
    /// ReadIndex rounds that answered them.
    pub read_rounds: u64,
    /// Reads answered under the leader's lease, without a round.
    pub lease_reads: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
}
