//! What a metanode asks of others: the masters and other metanodes. The transport is gRPC or the simulation's memory.

use fusefs_meta_client::{CallError, MasterClient, Transport};
use fusefs_types::{
    FsError, Hlc, PartitionId,
    cluster::{MasterCall, MasterRefusal, MasterReply},
    ops::{Envelope, Read, ReadReply, Refusal, Reply},
    txn::{PartReply, TxnMessage},
};
use std::{sync::Arc, time::Duration};

/// Longest wait for one answer of a metanode.
const PEER_TIMEOUT: Duration = Duration::from_secs(6);
/// Longest wait for the masters, elections included.
const MASTER_TIMEOUT: Duration = Duration::from_secs(6);

/// Calls to the outside. Every call ends by itself in a few seconds.
pub(crate) struct Outside {
    transport: Arc<dyn Transport>,
    masters: MasterClient,
}

impl Outside {
    pub(crate) fn new(transport: Arc<dyn Transport>, masters: MasterClient) -> Outside {
        Outside { transport, masters }
    }

    /// Asks the masters (whoever leads).
    pub(crate) async fn master(&self, call: MasterCall) -> Result<MasterReply, MasterRefusal> {
        match tokio::time::timeout(MASTER_TIMEOUT, self.masters.call(call)).await {
            Ok(result) => result,
            Err(_) => Err(MasterRefusal {
                error: FsError::Unavailable,
                message: "no master answered in time".into(),
                leader: None,
            }),
        }
    }

    /// Sends a transaction step to a metanode.
    pub(crate) async fn peer(
        &self,
        addr: &str,
        envelope: Envelope,
        message: &TxnMessage,
    ) -> Result<(PartReply, Hlc), Refusal> {
        answered(self.transport.peer(addr, envelope, message)).await
    }

    /// Asks a metanode a linearizable question.
    pub(crate) async fn read(&self, addr: &str, envelope: Envelope, read: &Read) -> Result<ReadReply, Refusal> {
        answered(self.transport.read(addr, envelope, PartitionId(0), read)).await.map(|(reply, _)| reply)
    }
}

async fn answered<T>(call: impl Future<Output = Result<Reply<T>, CallError>>) -> Result<(T, Hlc), Refusal> {
    match tokio::time::timeout(PEER_TIMEOUT, call).await {
        Ok(Ok(reply)) => reply.result.map(|r| (r, reply.head.hlc)),
        Ok(Err(lost)) => Err(lost.error.into()),
        Err(_) => Err(FsError::Unavailable.into()),
    }
}
