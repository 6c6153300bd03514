//! openraft's types as this crate instantiates them. Nothing outside this crate names openraft.

use crate::api::ProposeError;
use bytes::Bytes;
use fusefs_types::{NodeId, ReplicaId, cluster::Member};
use openraft::{TokioRuntime, raft::responder::Responder};
use std::{any::Any, fmt, sync::Arc};

openraft::declare_raft_types!(
    /// One configuration for all groups; replies travel in [`Batch::waiters`], not through openraft.
    pub(crate) Types:
        D = Batch,
        R = (),
        NodeId = u64,
        Node = PeerNode,
        Entry = openraft::Entry<Types>,
        SnapshotData = crate::checkpoint::SnapshotFile,
        AsyncRuntime = TokioRuntime,
        Responder = BatchResponder,
);

pub(crate) type Raft = openraft::Raft<Types>;
pub(crate) type Entry = openraft::Entry<Types>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type Membership = openraft::Membership<u64, PeerNode>;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, PeerNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, PeerNode>;
pub(crate) type AppendRequest = openraft::raft::AppendEntriesRequest<Types>;
pub(crate) type AppendReply = openraft::raft::AppendEntriesResponse<u64>;
pub(crate) type VoteRequest = openraft::raft::VoteRequest<u64>;
pub(crate) type VoteReply = openraft::raft::VoteResponse<u64>;
pub(crate) type StorageError = openraft::StorageError<u64>;
type WriteResult = Result<openraft::raft::ClientWriteResponse<Types>, openraft::error::ClientWriteError<u64, PeerNode>>;

/// Where a replica runs; openraft carries it in the membership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerNode {
    pub(crate) node: NodeId,
    pub(crate) addr: String,
}

impl PeerNode {
    pub(crate) fn member(&self, replica: u64) -> Member {
        Member { replica: ReplicaId(replica), node: self.node, addr: self.addr.clone() }
    }
}

impl From<&Member> for PeerNode {
    fn from(m: &Member) -> Self {
        PeerNode { node: m.node, addr: m.addr.clone() }
    }
}

/// Commands of one raft entry.
#[derive(Clone, Default)]
pub struct Batch {
    pub(crate) payloads: Vec<Bytes>,
    /// Those who wait for the replies; only on the node that proposed, only in memory.
    pub(crate) waiters: Option<Arc<dyn Waiters>>,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} commands)", self.payloads.len())
    }
}

/// The proposers of one batch, whatever their reply type.
pub(crate) trait Waiters: Send + Sync + 'static {
    /// Tells all that still wait.
    fn fail(&self, error: ProposeError);
    /// For the downcast in `apply`.
    fn as_any(&self) -> &dyn Any;
}

/// openraft's answer to a proposal. Success was already told by `apply`; failure and loss are told here.
pub(crate) struct BatchResponder(Option<Arc<dyn Waiters>>);

impl Responder<Types> for BatchResponder {
    type Receiver = ();

    fn from_app_data(data: Batch) -> (Batch, Self, ()) {
        let responder = BatchResponder(data.waiters.clone());
        (data, responder, ())
    }

    fn send(mut self, result: WriteResult) {
        let Some(waiters) = self.0.take() else { return };
        match result {
            Ok(_) => waiters.fail(ProposeError::Unavailable), // a no-op after apply told them
            Err(openraft::error::ClientWriteError::ForwardToLeader(to)) => {
                let leader = to.leader_id.zip(to.leader_node).map(|(id, node)| node.member(id));
                waiters.fail(ProposeError::NotLeader(leader));
            }
            Err(openraft::error::ClientWriteError::ChangeMembershipError(_)) => waiters.fail(ProposeError::Unavailable),
        }
    }
}

impl Drop for BatchResponder {
    fn drop(&mut self) {
        if let Some(waiters) = self.0.take() {
            waiters.fail(ProposeError::Unavailable);
        }
    }
}
