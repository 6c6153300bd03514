//! gRPC between real nodes: one bidirectional stream per ordered pair of nodes carries all groups. A node calls on the
//! stream it opened; the other one calls back on its own.

use super::{NetError, PeerAnswer, PeerHandler, PeerNet, PeerReply, PeerRequest, codec};
use async_trait::async_trait;
use bytes::Bytes;
use fusefs_proto::raft::v1::{
    Call, Hello, PeerFrame,
    peer_client::PeerClient,
    peer_frame::Body,
    peer_server::{Peer, PeerServer},
};
use fusefs_types::{ClusterId, NodeId, cluster::Member, limits};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue, transport::Endpoint};

/// Name of the metadata entry that carries [`GrpcSettings::credential`].
pub const CREDENTIAL_METADATA: &str = "fusefs-cluster-token-bin";

/// Frames waiting for one connection.
const QUEUE: usize = 4096;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection that answers no HTTP/2 ping is given up.
const KEEPALIVE: Duration = Duration::from_secs(2);
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
const WIRE_VERSION: u32 = crate::codec::VERSION as u32;

/// Who calls.
#[derive(Clone)]
pub struct GrpcSettings {
    /// Cluster; a peer of another one refuses.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// Sent in [`CREDENTIAL_METADATA`]; the receiver's own layer checks it.
    pub credential: Option<Bytes>,
}

/// The sending side.
pub struct GrpcNet {
    settings: Arc<GrpcSettings>,
    peers: RwLock<HashMap<String, Arc<Connection>>>,
}

struct Connection {
    addr: String,
    active: RwLock<Option<Arc<Active>>>,
    /// The last failure, while nobody is connecting.
    connecting: tokio::sync::Mutex<Option<(Instant, NetError)>>,
}

type Waiting = HashMap<u64, oneshot::Sender<Bytes>>;

/// One open stream.
struct Active {
    frames: mpsc::Sender<PeerFrame>,
    next: AtomicU64,
    /// `None` once the stream ended.
    waiting: Mutex<Option<Waiting>>,
}

/// Removes a call that nobody waits for any more.
struct Forget<'a> {
    active: &'a Active,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.active.waiting.lock().as_mut() {
            waiting.remove(&self.id);
        }
    }
}

fn net_error(what: impl std::fmt::Display) -> NetError {
    NetError(what.to_string())
}

impl GrpcNet {
    /// A network that connects on first use.
    #[must_use]
    pub fn new(settings: GrpcSettings) -> Arc<GrpcNet> {
        Arc::new(GrpcNet { settings: Arc::new(settings), peers: RwLock::new(HashMap::new()) })
    }

    fn connection(&self, addr: &str) -> Arc<Connection> {
        if let Some(found) = self.peers.read().get(addr) {
            return Arc::clone(found);
        }
        let mut peers = self.peers.write();
        let fresh = || {
            let (active, connecting) = (RwLock::new(None), tokio::sync::Mutex::new(None));
            Arc::new(Connection { addr: addr.to_owned(), active, connecting })
        };
        Arc::clone(peers.entry(addr.to_owned()).or_insert_with(fresh))
    }
}

/// Opens the stream of a connection, once for all who ask meanwhile. Runs as a task of its own: callers give up after a
/// quarter of a second, connecting to a distant node may take longer.
async fn connect(settings: Arc<GrpcSettings>, connection: Arc<Connection>) -> Result<Arc<Active>, NetError> {
    let asked = Instant::now();
    let mut last_failure = connection.connecting.lock().await;
    if let Some(active) = connection.open() {
        return Ok(active);
    }
    if let Some((_, e)) = last_failure.as_ref().filter(|(at, _)| *at >= asked) {
        return Err(e.clone());
    }
    match tokio::time::timeout(2 * CONNECT_TIMEOUT, open(&settings, &connection.addr)).await {
        Ok(Ok((frames, replies))) => {
            let waiting = Mutex::new(Some(HashMap::new()));
            let active = Arc::new(Active { frames, next: AtomicU64::new(1), waiting });
            tokio::spawn(receive(Arc::clone(&active), replies));
            *connection.active.write() = Some(Arc::clone(&active));
            Ok(active)
        }
        failed => {
            let e = match failed {
                Ok(Err(e)) => e,
                _ => net_error("connecting timed out"),
            };
            *last_failure = Some((Instant::now(), e.clone()));
            Err(e)
        }
    }
}

type Opened = (mpsc::Sender<PeerFrame>, Streaming<PeerFrame>);

async fn open(settings: &GrpcSettings, addr: &str) -> Result<Opened, NetError> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(net_error)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let channel = endpoint.connect().await.map_err(net_error)?;
    let mut client = PeerClient::new(channel)
        .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX);
    let (frames, rx) = mpsc::channel(QUEUE);
    frames.try_send(hello(settings)).map_err(net_error)?;
    let mut request = Request::new(ReceiverStream::new(rx));
    if let Some(credential) = &settings.credential {
        request.metadata_mut().insert_bin(CREDENTIAL_METADATA, MetadataValue::from_bytes(credential));
    }
    let replies = client.talk(request).await.map_err(net_error)?.into_inner();
    Ok((frames, replies))
}

fn hello(settings: &GrpcSettings) -> PeerFrame {
    let hello = Hello {
        cluster: Bytes::copy_from_slice(&settings.cluster.0.to_be_bytes()),
        node: Bytes::copy_from_slice(&settings.node.0.to_be_bytes()),
        version: WIRE_VERSION,
    };
    PeerFrame { id: 0, body: Some(Body::Hello(hello)) }
}

impl Connection {
    fn open(&self) -> Option<Arc<Active>> {
        let active = self.active.read().clone()?;
        let alive = active.waiting.lock().is_some();
        alive.then_some(active)
    }
}

/// Hands replies to their callers until the stream ends.
async fn receive(active: Arc<Active>, mut replies: Streaming<PeerFrame>) {
    while let Ok(Some(frame)) = replies.message().await {
        let Some(Body::Call(call)) = frame.body else { continue };
        let tx = active.waiting.lock().as_mut().and_then(|w| w.remove(&frame.id));
        if let Some(tx) = tx {
            let _ = tx.send(call.payload);
        }
    }
    *active.waiting.lock() = None;
}

#[async_trait]
impl PeerNet for GrpcNet {
    async fn call(&self, to: &Member, request: PeerRequest) -> Result<PeerReply, NetError> {
        let connection = self.connection(&to.addr);
        let active = match connection.open() {
            Some(active) => active,
            None => {
                let opening = connect(Arc::clone(&self.settings), Arc::clone(&connection));
                tokio::spawn(opening).await.map_err(net_error)??
            }
        };
        let id = active.next.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        match active.waiting.lock().as_mut() {
            Some(waiting) => waiting.insert(id, tx),
            None => return Err(net_error("the connection broke")),
        };
        let _forget = Forget { active: &active, id };
        let payload = codec::encode_request(&request);
        let call = Call { group: request.group.0, to: request.to.0, payload };
        active.frames.try_send(PeerFrame { id, body: Some(Body::Call(call)) }).map_err(net_error)?;
        let payload = rx.await.map_err(|_| net_error("the connection broke"))?;
        codec::decode_reply(payload).map_err(net_error)
    }
}

/// The receiving side, for tonic's router.
pub struct GrpcServer {
    cluster: ClusterId,
    handler: Arc<dyn PeerHandler>,
}

impl GrpcServer {
    /// The service to mount. Authentication is the mounting server's layer; this checks the cluster.
    #[must_use]
    pub fn service(cluster: ClusterId, handler: Arc<dyn PeerHandler>) -> PeerServer<GrpcServer> {
        PeerServer::new(GrpcServer { cluster, handler })
            .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
    }
}

fn id_of(bytes: &[u8]) -> Option<u128> {
    bytes.try_into().ok().map(u128::from_be_bytes)
}

#[async_trait]
impl Peer for GrpcServer {
    type TalkStream = ReceiverStream<Result<PeerFrame, Status>>;

    async fn talk(&self, request: Request<Streaming<PeerFrame>>) -> Result<Response<Self::TalkStream>, Status> {
        let calls = request.into_inner();
        let (tx, rx) = mpsc::channel(QUEUE);
        tokio::spawn(serve(self.cluster, Arc::clone(&self.handler), calls, tx));
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

type Replies = mpsc::Sender<Result<PeerFrame, Status>>;

/// Serves one stream until the caller goes away.
async fn serve(cluster: ClusterId, handler: Arc<dyn PeerHandler>, mut calls: Streaming<PeerFrame>, replies: Replies) {
    let from = match calls.message().await {
        Ok(Some(PeerFrame { body: Some(Body::Hello(hello)), .. })) => match check_hello(cluster, &hello) {
            Ok(node) => node,
            Err(status) => {
                let _ = replies.send(Err(status)).await;
                return;
            }
        },
        _ => {
            let _ = replies.send(Err(Status::invalid_argument("the first frame must be a hello"))).await;
            return;
        }
    };
    while let Ok(Some(frame)) = calls.message().await {
        let Some(Body::Call(call)) = frame.body else { continue };
        if handler.closed() {
            let _ = replies.send(Err(Status::unavailable("this node is shut down"))).await;
            return;
        }
        let (handler, replies) = (Arc::clone(&handler), replies.clone());
        tokio::spawn(async move {
            let reply = match codec::decode_request(call.group, call.to, call.payload) {
                Ok(request) => handler.handle(from, request).await,
                Err(e) => PeerReply(PeerAnswer::Refused(e.to_string())),
            };
            let call = Call { group: call.group, to: call.to, payload: codec::encode_reply(&reply) };
            let _ = replies.send(Ok(PeerFrame { id: frame.id, body: Some(Body::Call(call)) })).await;
        });
    }
}

fn check_hello(cluster: ClusterId, hello: &Hello) -> Result<NodeId, Status> {
    if id_of(&hello.cluster) != Some(cluster.0) {
        return Err(Status::failed_precondition("this node belongs to another cluster"));
    }
    if hello.version < WIRE_VERSION {
        return Err(Status::failed_precondition("the peer's version is too old"));
    }
    id_of(&hello.node).map(NodeId).ok_or_else(|| Status::invalid_argument("node id must be 16 bytes"))
}
