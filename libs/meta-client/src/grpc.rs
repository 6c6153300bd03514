//! [`Transport`] over gRPC: one HTTP/2 connection per address, made on first use and again when it breaks.

use crate::transport::{CallError, EventStream, MapStream, Transport};
use async_trait::async_trait;
use fusefs_proto::{
    convert::{master as master_convert, node as node_convert, ops, stream as stream_convert, txn},
    master::v1::master_client::MasterClient,
    metanode::v1::metanode_client::MetanodeClient,
};
use fusefs_types::{
    FsError, PartitionId, VolumeId,
    cluster::{MasterCall, MasterRefusal, MasterReply, NodeCall, NodeReply},
    limits,
    ops::{Envelope, Read, ReadReply, Reply, Write, WriteReply},
    stream::ClientEvent,
    txn::{PartReply, TxnMessage},
};
use futures::StreamExt;
use parking_lot::RwLock;
use std::{collections::BTreeMap, error::Error, time::Duration};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// A server on the same network accepts within this time or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection that is silent this long is probed,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// and given up when the probe is not answered.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Events queued towards a metanode.
const EVENTS_QUEUE: usize = 64;
/// Flow-control windows: a full message never waits for a window update.
const STREAM_WINDOW: u32 = limits::GRPC_MESSAGE_BYTES_MAX as u32;
const CONNECTION_WINDOW: u32 = 2 * STREAM_WINDOW;

/// Both clients of one address share a connection.
#[derive(Clone)]
struct Clients {
    metanode: MetanodeClient<Channel>,
    master: MasterClient<Channel>,
}

/// The production transport. Cheap calls: no task of its own stands between caller and connection.
#[derive(Default)]
pub struct GrpcTransport {
    pool: RwLock<BTreeMap<String, Clients>>,
}

impl GrpcTransport {
    /// A transport without connections.
    pub fn new() -> GrpcTransport {
        GrpcTransport::default()
    }

    fn clients(&self, addr: &str) -> Result<Clients, CallError> {
        if let Some(clients) = self.pool.read().get(addr) {
            return Ok(clients.clone());
        }
        let made = connect(addr)?;
        Ok(self.pool.write().entry(addr.to_owned()).or_insert(made).clone())
    }
}

fn connect(addr: &str) -> Result<Clients, CallError> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|e| CallError { error: FsError::Invalid, unsent: true, reason: format!("{addr:?}: {e}") })?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let channel = endpoint.connect_lazy();
    let max = limits::GRPC_MESSAGE_BYTES_MAX;
    Ok(Clients {
        metanode: MetanodeClient::new(channel.clone()).max_decoding_message_size(max).max_encoding_message_size(max),
        master: MasterClient::new(channel).max_decoding_message_size(max).max_encoding_message_size(max),
    })
}

/// Innermost cause, which is what people understand ("Connection refused (os error 111)").
fn cause(status: &Status) -> String {
    let mut text = if status.message().is_empty() { status.code().to_string() } else { status.message().to_owned() };
    let mut source = status.source();
    while let Some(e) = source {
        text = e.to_string();
        source = e.source();
    }
    text
}

/// True when the failure is one of making the connection.
fn unsent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(e) = source {
        // hyper-util's connect errors carry no public type through tonic; their kinds do.
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            return matches!(
                io.kind(),
                std::io::ErrorKind::ConnectionRefused
                    | std::io::ErrorKind::HostUnreachable
                    | std::io::ErrorKind::NetworkUnreachable
            );
        }
        source = e.source();
    }
    false
}

fn failed(status: Status) -> CallError {
    let error = match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => FsError::Unauthenticated,
        Code::Unimplemented => FsError::UpgradeNeeded,
        Code::OutOfRange => FsError::TooBig,
        _ => FsError::Unavailable,
    };
    CallError { error, unsent: unsent(&status), reason: cause(&status) }
}

fn undecodable(error: FsError) -> CallError {
    CallError { error, unsent: false, reason: format!("unusable answer: {error}") }
}

#[async_trait]
impl Transport for GrpcTransport {
    async fn write(&self, addr: &str, envelope: Envelope, write: &Write) -> Result<Reply<WriteReply>, CallError> {
        let mut client = self.clients(addr)?.metanode;
        let reply = client.write(ops::write_request(&envelope, write)).await.map_err(failed)?;
        ops::from_write_response(reply.into_inner()).map_err(undecodable)
    }

    async fn read(
        &self,
        addr: &str,
        envelope: Envelope,
        partition: PartitionId,
        read: &Read,
    ) -> Result<Reply<ReadReply>, CallError> {
        let mut client = self.clients(addr)?.metanode;
        let reply = client.read(ops::read_request(&envelope, partition, read)).await.map_err(failed)?;
        ops::from_read_response(reply.into_inner()).map_err(undecodable)
    }

    async fn node(&self, addr: &str, envelope: Envelope, call: &NodeCall) -> Result<Reply<NodeReply>, CallError> {
        let mut client = self.clients(addr)?.metanode;
        let reply = client.node(node_convert::node_request(&envelope, call)).await.map_err(failed)?;
        node_convert::from_node_response(reply.into_inner()).map_err(undecodable)
    }

    async fn peer(&self, addr: &str, envelope: Envelope, message: &TxnMessage) -> Result<Reply<PartReply>, CallError> {
        let mut client = self.clients(addr)?.metanode;
        let reply = client.peer(txn::peer_request(&envelope, message)).await.map_err(failed)?;
        txn::from_peer_response(reply.into_inner()).map_err(undecodable)
    }

    async fn master(
        &self,
        addr: &str,
        envelope: Envelope,
        call: &MasterCall,
    ) -> Result<Result<MasterReply, MasterRefusal>, CallError> {
        let mut client = self.clients(addr)?.master;
        let reply = client.call(master_convert::request(&envelope, call, 0)).await.map_err(failed)?;
        master_convert::from_response(reply.into_inner()).map_err(undecodable)
    }

    async fn events(&self, addr: &str, envelope: Envelope) -> Result<EventStream, CallError> {
        let mut client = self.clients(addr)?.metanode;
        let (send, queue) = mpsc::channel::<ClientEvent>(EVENTS_QUEUE);
        let hello = ClientEvent { envelope: Some(envelope), ack: 0, body: fusefs_types::stream::ClientBody::Nothing };
        let first = futures::stream::once(std::future::ready(hello));
        let outgoing = first.chain(ReceiverStream::new(queue)).map(|e| stream_convert::client_event(&e));
        let incoming = client.stream(outgoing).await.map_err(failed)?.into_inner();
        let receive =
            incoming.map(|e| stream_convert::from_server_event(e.map_err(failed)?).map_err(undecodable)).boxed();
        Ok(EventStream { send, receive })
    }

    async fn watch_map(&self, addr: &str, envelope: Envelope, volume: VolumeId) -> Result<MapStream, CallError> {
        let mut client = self.clients(addr)?.master;
        let request = master_convert::watch_request(&envelope, volume);
        let incoming = client.watch_map(request).await.map_err(failed)?.into_inner();
        let items =
            incoming.map(|r| master_convert::from_watch_response(r.map_err(failed)?).map_err(undecodable)).boxed();
        Ok(items)
    }
}
