//! The network as the client sees it: plain types in, plain types out.

use async_trait::async_trait;
use fusefs_types::{
    FsError, PartitionId, VolumeId,
    cluster::{MasterCall, MasterRefusal, MasterReply, NodeCall, NodeReply, VolumeMap},
    ops::{Envelope, Read, ReadReply, Reply, Write, WriteReply},
    stream::{ClientEvent, ServerEvent},
    txn::{PartReply, TxnMessage},
};
use futures::stream::BoxStream;
use tokio::sync::mpsc;

/// A call that brought no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    /// Unavailable = try elsewhere or again, the outcome is unknown; anything else is final.
    pub error: FsError,
    /// The request certainly did not reach a server (no connection).
    pub unsent: bool,
    /// For people.
    pub reason: String,
}

impl CallError {
    /// No answer; the request may have been executed.
    pub fn lost(reason: impl Into<String>) -> CallError {
        CallError { error: FsError::Unavailable, unsent: false, reason: reason.into() }
    }
    /// The server was not reached.
    pub fn unsent(reason: impl Into<String>) -> CallError {
        CallError { error: FsError::Unavailable, unsent: true, reason: reason.into() }
    }
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for CallError {}

/// Versions of a partition map as they come; a refusal or an error ends the stream.
pub type MapStream = BoxStream<'static, Result<Result<VolumeMap, MasterRefusal>, CallError>>;

/// Events of one metanode; an error ends the stream.
pub type ServerEvents = BoxStream<'static, Result<ServerEvent, CallError>>;

/// Both directions of the stream with one metanode.
pub struct EventStream {
    /// To the server.
    pub send: mpsc::Sender<ClientEvent>,
    /// From the server.
    pub receive: ServerEvents,
}

/// Calls to masters and metanodes by `host:port`. Implementations do not retry; callers bound the time. Dropping a
/// call's future gives the call up.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// A client's mutation.
    async fn write(&self, addr: &str, envelope: Envelope, write: &Write) -> Result<Reply<WriteReply>, CallError>;
    /// A linearizable question. `partition` 0 = the owner of the question's key (StatFs needs one).
    async fn read(
        &self,
        addr: &str,
        envelope: Envelope,
        partition: PartitionId,
        read: &Read,
    ) -> Result<Reply<ReadReply>, CallError>;
    /// The master's order to a metanode.
    async fn node(&self, addr: &str, envelope: Envelope, call: &NodeCall) -> Result<Reply<NodeReply>, CallError>;
    /// A transaction step between metanodes.
    async fn peer(&self, addr: &str, envelope: Envelope, message: &TxnMessage) -> Result<Reply<PartReply>, CallError>;
    /// A call to a master.
    async fn master(
        &self,
        addr: &str,
        envelope: Envelope,
        call: &MasterCall,
    ) -> Result<Result<MasterReply, MasterRefusal>, CallError>;
    /// The event stream with a metanode; `envelope` says who opens it.
    async fn events(&self, addr: &str, envelope: Envelope) -> Result<EventStream, CallError>;
    /// The partition map of a volume, now and whenever it changes.
    async fn watch_map(&self, addr: &str, envelope: Envelope, volume: VolumeId) -> Result<MapStream, CallError>;
}
