//! The one port: gRPC for clients, masters and peers, and /healthz, /readyz, /metrics. Only conversions here.

use crate::{Metanode, stream::EventStream};
use axum::{
    Router,
    extract::State,
    http::StatusCode,
    routing::{any, get},
};
use fusefs_proto::{
    convert::{node, ops, stream, txn},
    metanode::v1::{self as pb, metanode_server},
    raft::v1::peer_server::PeerServer,
};
use fusefs_raft_host::{CREDENTIAL_METADATA, GrpcServer};
use fusefs_types::{
    FsError, FsResult, Hlc, VolumeId,
    auth::{self, ClusterToken},
    limits,
    ops::{Envelope, Refusal, Reply, ReplyHead},
};
use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
};
use tokio_stream::{Stream, StreamExt};
use tonic::{
    Request, Response, Status, Streaming,
    service::{Interceptor, interceptor::InterceptedService},
};

/// The node behind the port, once its data directory is open.
#[derive(Clone)]
pub(crate) struct Slot {
    pub(crate) node: Arc<OnceLock<Arc<Metanode>>>,
    /// The raft service, which needs the open host.
    pub(crate) peers: Arc<OnceLock<Peers>>,
    pub(crate) token: Option<ClusterToken>,
}

/// Raft between nodes, behind the check of the cluster token.
pub(crate) type Peers = InterceptedService<PeerServer<GrpcServer>, PeerAuth>;

/// Lets only holders of the cluster token talk raft.
#[derive(Clone)]
pub(crate) struct PeerAuth(pub(crate) Option<ClusterToken>);

impl Interceptor for PeerAuth {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(token) = &self.0 else { return Ok(request) };
        let sent = request.metadata().get_bin(CREDENTIAL_METADATA).and_then(|v| v.to_bytes().ok());
        if sent.is_some_and(|c| token.matches(&c)) {
            return Ok(request);
        }
        Err(Status::unauthenticated(FsError::Unauthenticated.text()))
    }
}

impl Slot {
    /// The node. Whoever has no credential learns nothing, not even that it is starting.
    fn node(&self, envelope: &Envelope) -> Result<Arc<Metanode>, Refusal> {
        auth::authenticate(self.token.as_ref(), envelope)?;
        let starting = || Refusal { backoff_ms: 100, ..FsError::Unavailable.into() };
        self.node.get().cloned().ok_or_else(starting)
    }

    fn reply<T>(&self, volume: VolumeId, result: Result<T, Refusal>) -> Reply<T> {
        let refused = matches!(&result, Err(r) if r.error == FsError::Unauthenticated);
        let head = match self.node.get() {
            Some(node) if !refused => ReplyHead { hlc: node.seen(volume), map_generation: node.map_generation(volume) },
            _ => ReplyHead { hlc: Hlc(0), map_generation: 0 },
        };
        Reply { head, result }
    }
}

fn invalid<T>(parsed: FsResult<T>) -> Result<T, Status> {
    parsed.map_err(|e| Status::invalid_argument(e.text()))
}

type Events = Pin<Box<dyn Stream<Item = Result<pb::ServerEvent, Status>> + Send>>;

#[tonic::async_trait]
impl metanode_server::Metanode for Slot {
    async fn write(&self, request: Request<pb::WriteRequest>) -> Result<Response<pb::WriteResponse>, Status> {
        let (envelope, write) = match ops::from_write_request(request.into_inner()) {
            Ok(parsed) => parsed,
            // A request beyond a limit gets its errno, not a transport error.
            Err(e) => return Ok(Response::new(ops::write_response(&self.reply(VolumeId(0), Err(e.into()))))),
        };
        let volume = envelope.volume;
        let result = match self.node(&envelope) {
            Ok(node) => node.write(envelope, write).await,
            Err(r) => Err(r),
        };
        Ok(Response::new(ops::write_response(&self.reply(volume, result))))
    }

    async fn read(&self, request: Request<pb::ReadRequest>) -> Result<Response<pb::ReadResponse>, Status> {
        let (envelope, partition, read) = match ops::from_read_request(request.into_inner()) {
            Ok(parsed) => parsed,
            Err(e) => return Ok(Response::new(ops::read_response(&self.reply(VolumeId(0), Err(e.into()))))),
        };
        let volume = envelope.volume;
        let result = match self.node(&envelope) {
            Ok(node) => node.read(envelope, partition, read).await,
            Err(r) => Err(r),
        };
        Ok(Response::new(ops::read_response(&self.reply(volume, result))))
    }

    async fn node(&self, request: Request<pb::NodeRequest>) -> Result<Response<pb::NodeResponse>, Status> {
        let (envelope, call) = invalid(node::from_node_request(request.into_inner()))?;
        let volume = envelope.volume;
        let result = match self.node(&envelope) {
            Ok(node) => node.call(envelope, call).await,
            Err(r) => Err(r),
        };
        Ok(Response::new(node::node_response(&self.reply(volume, result))))
    }

    async fn peer(&self, request: Request<pb::PeerRequest>) -> Result<Response<pb::PeerResponse>, Status> {
        let (envelope, message) = invalid(txn::from_peer_request(request.into_inner()))?;
        let volume = envelope.volume;
        let result = match self.node(&envelope) {
            Ok(node) => node.peer(envelope, message).await,
            Err(r) => Err(r),
        };
        Ok(Response::new(txn::peer_response(&self.reply(volume, result))))
    }

    type StreamStream = Events;

    async fn stream(&self, request: Request<Streaming<pb::ClientEvent>>) -> Result<Response<Events>, Status> {
        let mut from = request.into_inner();
        let first = from.message().await?.ok_or_else(|| Status::invalid_argument("empty stream"))?;
        let first = invalid(stream::from_client_event(first))?;
        let envelope = first.envelope.ok_or_else(|| Status::invalid_argument("the first event names the session"))?;
        let node = self.node(&envelope).map_err(|r| status(&r))?;
        let opened = node.open_stream(&envelope).map_err(|r| status(&r))?;
        let answers = opened.answers();
        let mut stop = node.stopping();
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    biased;
                    _ = stop.wait_for(|s| *s) => return,
                    event = from.message() => event,
                };
                let Ok(Some(event)) = event else { return };
                match stream::from_client_event(event) {
                    Ok(event) => answers.take(event.body).await,
                    Err(_) => return,
                }
            }
        });
        let out = Outgoing { opened, stopping: Box::pin(stopped(node)) };
        Ok(Response::new(Box::pin(out.map(|e| Ok(stream::server_event(&e))))))
    }
}

fn status(refusal: &Refusal) -> Status {
    match refusal.error {
        FsError::Unauthenticated => Status::unauthenticated(refusal.error.text()),
        FsError::Unavailable => Status::unavailable(refusal.error.text()),
        e => Status::failed_precondition(e.text()),
    }
}

async fn stopped(node: Arc<Metanode>) {
    let mut stopping = node.stopping();
    drop(node);
    let _ = stopping.wait_for(|s| *s).await;
}

/// Events of one stream until the client goes or the node stops.
struct Outgoing {
    opened: EventStream,
    stopping: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Stream for Outgoing {
    type Item = fusefs_types::stream::ServerEvent;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        if self.stopping.as_mut().poll(cx).is_ready() {
            return std::task::Poll::Ready(None);
        }
        self.opened.events.poll_recv(cx)
    }
}

/// The gRPC service.
pub(crate) fn service(slot: Slot) -> metanode_server::MetanodeServer<Slot> {
    metanode_server::MetanodeServer::new(slot)
        .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
}

/// /healthz, /readyz, /metrics: no secrets and no names of files, so open to everybody who reaches the port.
pub(crate) fn http(slot: Slot) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/fusefs.raft.v1.Peer/{method}", any(raft))
        .with_state(slot)
}

async fn ready(State(slot): State<Slot>) -> (StatusCode, String) {
    let why = slot.node.get().map_or_else(|| "starting: waiting for the masters".into(), |n| n.not_ready());
    if why.is_empty() { (StatusCode::OK, "ready\n".into()) } else { (StatusCode::SERVICE_UNAVAILABLE, why + "\n") }
}

async fn raft(State(slot): State<Slot>, request: axum::extract::Request) -> axum::response::Response {
    use tonic::codegen::Service;
    let Some(mut peers) = slot.peers.get().cloned() else {
        return Status::unavailable("starting").into_http::<axum::body::Body>().map(axum::body::Body::new);
    };
    match peers.call(request.map(tonic::body::Body::new)).await {
        Ok(response) => response.map(axum::body::Body::new),
        Err(never) => match never {},
    }
}

async fn metrics(State(slot): State<Slot>) -> String {
    slot.node.get().map(|n| n.metrics()).unwrap_or_default()
}
