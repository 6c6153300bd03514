//! Messages between hosts and the two networks that carry them.

pub(crate) mod codec;
mod grpc;
mod mem;
pub(crate) mod raft_net;

pub use grpc::{CREDENTIAL_METADATA, GrpcNet, GrpcServer, GrpcSettings};
pub use mem::{MemNet, MemNetSettings};

use crate::raft::{AppendReply, AppendRequest, LogId, SnapshotMeta, Vote, VoteReply, VoteRequest};
use async_trait::async_trait;
use bytes::Bytes;
use fusefs_types::{NodeId, PartitionId, ReplicaId, cluster::Member};

/// A message to one replica. Opaque outside this crate: networks carry [`PeerRequest::encode`]d bytes.
#[derive(Clone, Debug)]
pub struct PeerRequest {
    /// Group.
    pub group: PartitionId,
    /// Receiving replica; 0 = the node itself.
    pub to: ReplicaId,
    pub(crate) body: PeerBody,
}

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) enum PeerBody {
    /// Node heartbeat.
    Ping,
    /// Log entries.
    Append(AppendRequest),
    /// Vote.
    Vote(VoteRequest),
    /// Would you vote for me? Changes nothing.
    PreVote(PreVote),
    /// Part of a checkpoint file.
    Snapshot(SnapshotChunk),
}

/// Question before an election (PROTOCOL 24).
#[derive(Clone, Debug)]
pub(crate) struct PreVote {
    /// Term the candidate would use.
    pub term: u64,
    /// End of its log.
    pub last_log: Option<LogId>,
}

/// Part of a checkpoint on its way to a follower.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotChunk {
    /// Vote of the sending leader.
    pub vote: Vote,
    /// Which snapshot.
    pub meta: SnapshotMeta,
    /// Bytes of the whole file.
    pub total: u64,
    /// Place of `data`. `data` empty and `offset` 0 asks where to start.
    pub offset: u64,
    /// CRC32C of `data`.
    pub crc: u32,
    /// Bytes.
    pub data: Bytes,
}

/// Answer to a [`PeerRequest`].
#[derive(Debug)]
pub struct PeerReply(pub(crate) PeerAnswer);

/// What is answered.
#[derive(Debug)]
pub(crate) enum PeerAnswer {
    Pong,
    Append(AppendReply),
    Vote(VoteReply),
    /// Granted, and the receiver's term.
    PreVote(bool, u64),
    /// Next offset the receiver wants.
    SnapshotNext(u64),
    /// The snapshot is installed, or the sender is outdated: the receiver's vote.
    SnapshotDone(Vote),
    /// Not served; the reason is for people.
    Refused(String),
}

/// Why a call got no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NetError(pub String);

/// Sends a message to the node of a member and waits for its answer.
#[async_trait]
pub trait PeerNet: Send + Sync + 'static {
    /// One call. The future may be dropped at any time (the caller's timeout).
    ///
    /// # Errors
    /// Unreachable, or the connection broke before the answer.
    async fn call(&self, to: &Member, request: PeerRequest) -> Result<PeerReply, NetError>;
}

/// The receiving side: implemented by [`crate::Host`].
#[async_trait]
pub trait PeerHandler: Send + Sync + 'static {
    /// Serves one message of another node.
    async fn handle(&self, from: NodeId, request: PeerRequest) -> PeerReply;
    /// Shut down: its streams end, so that callers look for its successor.
    fn closed(&self) -> bool {
        false
    }
}
