//! The process around the core: one real port on loopback, a scripted master over gRPC, clear refusals.

use crate::world::{Net, SimRng, VOLUME, create, name, store};
use bytes::Bytes;
use fusefs_meta_client::{GrpcTransport, Transport};
use fusefs_metanode::{Server, ServerComponents, Settings, StartError};
use fusefs_proto::{
    convert::master as convert,
    master::v1::{self as pb, master_server},
};
use fusefs_types::{
    Clock, ClusterId, FsError, Incarnation, Ino, KeyRange, MountId, NodeId, PartitionId, ReplicaId, SessionId, Token,
    auth::ClusterToken,
    cluster::{MasterReply, Member, NodeCall, NodeReply, ReplicaSpec, StoreCredentials},
    ids::{OpId, Origin},
    ops::{Envelope, NewNode, Read, ReadReply, WriteReply},
    stream::{ClientBody, ClientEvent, ServerBody},
};
use futures::StreamExt;
use std::{path::Path, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tonic::{Request, Response, Status};

const TOKEN: &[u8] = b"0123456789abcdef0123";

struct Wall;

impl Clock for Wall {
    #[allow(clippy::disallowed_methods)] // the servers of this test run in real time
    fn wall_ns(&self) -> u64 {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
    }
    fn boot_ns(&self) -> u64 {
        self.wall_ns()
    }
}

/// The answers of [`Net`] over gRPC, in the name of one cluster.
struct Scripted(Net, ClusterId);

#[tonic::async_trait]
impl master_server::Master for Scripted {
    async fn call(&self, request: Request<pb::MasterRequest>) -> Result<Response<pb::MasterResponse>, Status> {
        let (envelope, call, _) = convert::from_request(request.into_inner()).unwrap();
        let mut answer = self.0.master("", envelope, &call).await.unwrap();
        if let Ok(MasterReply::Registered(_)) = answer {
            answer = Ok(MasterReply::Registered(self.1));
        }
        Ok(Response::new(convert::response(&answer)))
    }
    type WatchMapStream = futures::stream::Pending<Result<pb::WatchMapResponse, Status>>;
    async fn watch_map(&self, _: Request<pb::WatchMapRequest>) -> Result<Response<Self::WatchMapStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

async fn master(cluster: ClusterId) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let service = master_server::MasterServer::new(Scripted(Net::default(), cluster));
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    addr
}

fn settings(dir: &Path, master: &str) -> Settings {
    let token = dir.join("token");
    std::fs::write(&token, TOKEN).unwrap();
    Settings {
        listen: "127.0.0.1:0".into(),
        masters: vec![master.into()],
        cluster_token_file: Some(token),
        log_segment_bytes: 1 << 20,
        ..Settings::new(dir.join("data"))
    }
}

fn components() -> ServerComponents {
    ServerComponents { clock: Arc::new(Wall), rng: SimRng::new(std::process::id().into()) }
}

struct Running {
    addr: String,
    node: NodeId,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), StartError>>,
}

async fn run(settings: Settings) -> Running {
    let server = Server::bind(settings, components()).await.unwrap();
    let addr = server.address().to_string();
    let node = server.node();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(server.run(async move { drop(stopped.await) }));
    while node.get().is_none() && !task.is_finished() {
        tokio::task::yield_now().await;
    }
    let node = node.get().map_or(NodeId(0), |n| n.identity().node);
    Running { addr, node, stop: Some(stop), task }
}

impl Running {
    async fn end(mut self) -> Result<(), StartError> {
        drop(self.stop.take());
        self.task.await.unwrap()
    }
}

fn cluster_envelope() -> Envelope {
    Envelope { volume: VOLUME, credential: Bytes::from_static(TOKEN), deadline_ms: 5_000, ..Envelope::default() }
}

fn session_envelope(session: SessionId, op: u64) -> Envelope {
    let secret = ClusterToken::new(TOKEN).unwrap().session_secret(session, VOLUME);
    Envelope {
        session,
        token: Token { attach: 0, incarnation: Incarnation(1) },
        op: Some(OpId { mount: MountId(1), origin: Origin::Fuse, number: op, step: 0 }),
        credential: Bytes::copy_from_slice(&secret),
        ..cluster_envelope()
    }
}

fn replica(running: &Running) -> ReplicaSpec {
    ReplicaSpec {
        partition: PartitionId(1),
        replica: ReplicaId(1),
        volume: VOLUME,
        members: vec![Member { replica: ReplicaId(1), node: running.node, addr: running.addr.clone() }],
        ranges: vec![KeyRange::inos(0, 1 << 20)],
        hash_key: [3; 16],
        store: store(),
        credentials: StoreCredentials::default(),
    }
}

/// Sends until the answer is not about waiting.
async fn write(t: &GrpcTransport, addr: &str, envelope: &Envelope, text: &str) -> Result<WriteReply, FsError> {
    loop {
        let reply = t.write(addr, envelope.clone(), &create(Ino::ROOT, text, NewNode::File)).await.unwrap();
        match reply.result {
            Err(r) if r.error.is_retryable() => tokio::task::yield_now().await,
            other => {
                assert!(other.is_err() || reply.head.hlc.0 > 0);
                return other.map_err(|r| r.error);
            }
        }
    }
}

async fn http(addr: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn one_port_serves_clients_masters_and_people_across_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(ClusterId(8)).await;
    let running = run(settings(dir.path(), &master)).await;
    let t = GrpcTransport::new();
    let spec = replica(&running);
    let made = t.node(&running.addr, cluster_envelope(), &NodeCall::CreateReplica(spec)).await.unwrap().result;
    assert_eq!(made, Ok(NodeReply::Ok));
    let session = SessionId(7);
    let first = write(&t, &running.addr, &session_envelope(session, 1), "a").await.unwrap();

    let stranger = Envelope { credential: Bytes::new(), ..session_envelope(session, 2) };
    assert_eq!(write(&t, &running.addr, &stranger, "b").await, Err(FsError::Unauthenticated));
    let order = NodeCall::Fsck(PartitionId(1));
    let refused = t.node(&running.addr, session_envelope(session, 3), &order).await.unwrap();
    assert_eq!(refused.result, Err(FsError::Unauthenticated.into()));
    assert_eq!(refused.head.hlc.0, 0, "a stranger learns nothing, not even the time");

    let mut events = t.events(&running.addr, session_envelope(session, 4)).await.unwrap();
    let nothing = ClientEvent { envelope: None, ack: 0, body: ClientBody::Nothing };
    events.send.send(nothing).await.unwrap();
    let hello = events.receive.next().await.unwrap().unwrap();
    assert_eq!((hello.id, hello.body), (1, ServerBody::Hello));

    assert!(http(&running.addr, "/healthz").await.contains("200 OK"));
    assert!(http(&running.addr, "/readyz").await.contains("200 OK"));
    let metrics = http(&running.addr, "/metrics").await;
    assert!(metrics.contains("fusefs_partition_operations{volume=\"5\",partition=\"1\"} 1"), "{metrics}");

    let addr = running.addr.clone();
    tokio::time::timeout(Duration::from_secs(8), running.end()).await.expect("ends in order").unwrap();
    let mut again = settings(dir.path(), &master);
    again.listen = addr;
    let running = run(again).await;
    let retried = write(&t, &running.addr, &session_envelope(session, 1), "a").await.unwrap();
    assert_eq!(retried, first, "the stored reply survived the process");
    let lookup = Read::Lookup { parent: Ino::ROOT, name: name("a") };
    let found = t.read(&running.addr, session_envelope(session, 5), PartitionId(0), &lookup).await.unwrap();
    assert!(matches!(found.result, Ok(ReadReply::Entry { entry: Some(_), .. })), "{found:?}");
    running.end().await.unwrap();
}

#[tokio::test]
async fn what_cannot_work_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let first = master(ClusterId(8)).await;
    let running = run(settings(dir.path(), &first)).await;

    let busy = Server::bind(settings(dir.path(), &first), components()).await.err().unwrap();
    assert!(busy.to_string().contains("in use by another process"), "{busy}");
    let elsewhere = tempfile::tempdir().unwrap();
    let mut taken = settings(elsewhere.path(), &first);
    taken.listen.clone_from(&running.addr);
    let taken = Server::bind(taken, components()).await.err().unwrap();
    assert!(taken.to_string().contains("cannot bind"), "{taken}");
    let mut open = settings(elsewhere.path(), &first);
    (open.listen, open.cluster_token_file) = ("0.0.0.0:0".into(), None);
    let open = Server::bind(open, components()).await.err().unwrap();
    assert!(open.to_string().contains("cluster token is required"), "{open}");
    let mut nobody = settings(elsewhere.path(), &first);
    nobody.masters.clear();
    assert!(Server::bind(nobody, components()).await.err().unwrap().to_string().contains("--master"));
    running.end().await.unwrap();

    let other = master(ClusterId(9)).await;
    let server = Server::bind(settings(dir.path(), &other), components()).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), server.run(std::future::pending())).await.unwrap();
    let text = ended.unwrap_err().to_string();
    assert!(text.contains("belongs to cluster") && text.contains("--data-dir"), "{text}");
}
