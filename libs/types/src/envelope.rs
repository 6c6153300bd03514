//! What surrounds every request and answer between our processes.

use crate::{
    FsError, Hlc, Token,
    ids::{AckRange, OpId, SessionId, VolumeId},
};
use bytes::Bytes;

/// Envelope of every RPC (PROTOCOL 4).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Envelope {
    /// Cluster; 0 = not known yet (first contact).
    pub cluster: crate::ClusterId,
    /// Volume, 0 where none applies.
    pub volume: VolumeId,
    /// Session, 0 where none applies.
    pub session: SessionId,
    /// Fencing token.
    pub token: Token,
    /// Mutation id.
    pub op: Option<OpId>,
    /// Highest stamp the sender has seen.
    pub hlc: Hlc,
    /// Generation of the sender's partition map.
    pub map_generation: u64,
    /// Feature level of the sender's binary.
    pub feature_level: u32,
    /// Cluster token or session secret; empty on loopback without a token.
    pub credential: Bytes,
    /// Milliseconds the sender will wait.
    pub deadline_ms: u32,
    /// Trace id.
    pub trace: u64,
    /// Stored replies that may be dropped.
    pub acks: Vec<AckRange>,
}

/// A refused request, with what the retry loop needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub error: FsError,
    /// NotLeader: where the leader probably is (`host:port`).
    pub leader: Option<String>,
    /// WrongRange: generation of the newest map the server knows; refresh at least to it.
    pub map_generation: u64,
    /// Wait at least this long before the retry.
    pub backoff_ms: u32,
}

impl From<FsError> for Refusal {
    fn from(error: FsError) -> Self {
        Refusal { error, leader: None, map_generation: 0, backoff_ms: 0 }
    }
}

/// What every reply carries beside its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ReplyHead {
    /// Highest stamp of the server.
    pub hlc: Hlc,
    /// Generation of the newest partition map of the volume that the server knows, 0 = none.
    pub map_generation: u64,
}

/// A reply of a metanode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply<T> {
    /// Clock and map.
    pub head: ReplyHead,
    /// Answer or refusal.
    pub result: Result<T, Refusal>,
}
