//! What a master asks of others: metanodes and the other masters. Production speaks gRPC, tests and the simulation
//! memory.

use async_trait::async_trait;
use fusefs_types::{
    cluster::{MasterCall, MasterRefusal, MasterReply, NodeCall, NodeReply},
    ops::{Envelope, Refusal},
};

/// The call did not get through, or its answer was lost: the outcome is unknown. The text is for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(pub String);

/// Calls to the outside. Every call ends by itself within the envelope's deadline.
#[async_trait]
pub trait Outside: Send + Sync + 'static {
    /// An order to the metanode at `addr`.
    async fn node(
        &self,
        addr: &str,
        envelope: Envelope,
        call: NodeCall,
    ) -> Result<Result<NodeReply, Refusal>, Unreachable>;
    /// Forwards a call to the master at `addr`, which must not forward it again.
    async fn master(
        &self,
        addr: &str,
        envelope: Envelope,
        call: MasterCall,
    ) -> Result<Result<MasterReply, MasterRefusal>, Unreachable>;
}
