//! The service on real ports: three masters with raft, metanodes behind gRPC, HTTP for people.

use crate::fake::*;
use fusefs_master::{Outside, Server, ServerComponents, Settings};
use fusefs_proto::{
    convert,
    master::v1::master_client::MasterClient,
    metanode::v1::{self as pb, metanode_server},
    raft::v1::{PeerFrame, peer_client::PeerClient},
};
use fusefs_types::{FsError, Hlc, NodeId, auth::ClusterToken, cluster::*, ops};
use std::{path::Path, pin::Pin, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::{Builder, Runtime},
    time::Instant,
};
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

const TOKEN: &str = "token-of-the-test-cluster";

/// A master in its own runtime; dropping the runtime is its death.
struct Master {
    runtime: Option<Runtime>,
    addr: String,
}

impl Master {
    fn start(peers: &[String], i: usize, dir: &Path) -> Master {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let token = dir.join("token");
        std::fs::write(&token, TOKEN).unwrap();
        let settings = Settings {
            listen: peers[i].clone(),
            peers: peers.to_vec(),
            cluster_token_file: Some(token),
            background_ms: 100,
            ..Settings::new(dir.join(format!("m{i}")))
        };
        let end = Instant::now() + Duration::from_secs(20);
        let server = loop {
            let components = ServerComponents { clock: TestClock::new(), rng: TestRng::new(1000 + i as u64) };
            match runtime.block_on(Server::bind(settings.clone(), components)) {
                Ok(server) => break server,
                // The port and the directory of a killed predecessor are free when its last task is gone.
                Err(e) if Instant::now() < end => {
                    eprintln!("master {i} waits: {e}");
                    runtime.block_on(tokio::time::sleep_until(Instant::now() + Duration::from_millis(100)));
                }
                Err(e) => panic!("master {i}: {e}"),
            }
        };
        runtime.spawn(server.run(std::future::pending()));
        Master { runtime: Some(runtime), addr: peers[i].clone() }
    }
    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_ports(n: usize) -> Vec<String> {
    let bound: Vec<_> = (0..n).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    bound.iter().map(|l| l.local_addr().unwrap().to_string()).collect()
}

/// One call to one master; a lost connection is a failure of the test unless `None` is expected.
async fn ask(addr: &str, call: MasterCall) -> Option<Result<MasterReply, MasterRefusal>> {
    let mut client = MasterClient::connect(format!("http://{addr}")).await.ok()?;
    let token = ClusterToken::new(TOKEN.as_bytes()).unwrap();
    let envelope = ops::Envelope { deadline_ms: 15_000, ..envelope(Some(&token)) };
    let answer = client.call(convert::master::request(&envelope, &call, 0)).await.ok()?.into_inner();
    Some(convert::master::from_response(answer).unwrap())
}

async fn ok(addr: &str, call: MasterCall) -> MasterReply {
    let text = format!("{call:?}");
    match ask(addr, call).await {
        Some(Ok(reply)) => reply,
        other => panic!("{addr}: {text}: {other:?}"),
    }
}

/// A fake metanode behind gRPC.
struct Rpc(Arc<FakeNodes>, String);

#[tonic::async_trait]
impl metanode_server::Metanode for Rpc {
    async fn write(&self, _: Request<pb::WriteRequest>) -> Result<Response<pb::WriteResponse>, Status> {
        Err(Status::unimplemented("write"))
    }
    async fn read(&self, _: Request<pb::ReadRequest>) -> Result<Response<pb::ReadResponse>, Status> {
        Err(Status::unimplemented("read"))
    }
    async fn node(&self, request: Request<pb::NodeRequest>) -> Result<Response<pb::NodeResponse>, Status> {
        let (envelope, call) = convert::node::from_node_request(request.into_inner()).unwrap();
        assert_eq!(envelope.credential, TOKEN.as_bytes());
        let result = self.0.node(&self.1, envelope, call).await.map_err(|e| Status::unavailable(e.0))?;
        let reply = ops::Reply { head: ops::ReplyHead { hlc: Hlc(0), map_generation: 0 }, result };
        Ok(Response::new(convert::node::node_response(&reply)))
    }
    async fn peer(&self, _: Request<pb::PeerRequest>) -> Result<Response<pb::PeerResponse>, Status> {
        Err(Status::unimplemented("peer"))
    }
    type StreamStream = Pin<Box<dyn Stream<Item = Result<pb::ServerEvent, Status>> + Send>>;
    async fn stream(&self, _: Request<Streaming<pb::ClientEvent>>) -> Result<Response<Self::StreamStream>, Status> {
        Err(Status::unimplemented("stream"))
    }
}

/// Three metanodes that register and send heartbeats to whichever master answers.
async fn metanodes(masters: Vec<String>) -> Arc<FakeNodes> {
    let nodes = Arc::new(FakeNodes::default());
    nodes.0.lock().inos_left = 1 << 40;
    for id in 1..=3u128 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        nodes.0.lock().nodes.insert(addr.clone(), FakeNode { id, ..FakeNode::default() });
        let service = metanode_server::MetanodeServer::new(Rpc(nodes.clone(), addr.clone()));
        let serving = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        let host = format!("host{id}");
        let record = NodeRecord { id: NodeId(id), addr, host, capacity: 0, memory: 0, feature_level: 1 };
        ok(&masters[id as usize - 1], MasterCall::Register(record)).await;
    }
    let all = nodes.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        loop {
            tick.tick().await;
            for h in heartbeats(&all) {
                for m in &masters {
                    if matches!(ask(m, MasterCall::Heartbeat(h.clone())).await, Some(Ok(_))) {
                        break;
                    }
                }
            }
        }
    });
    nodes
}

async fn info(addr: &str) -> ClusterInfo {
    match ok(addr, MasterCall::Info).await {
        MasterReply::Info(i) => i,
        other => panic!("{other:?}"),
    }
}

async fn leader(addr: &str) -> String {
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        if let Some((leader, ..)) = info(addr).await.masters.into_iter().find(|m| m.1) {
            return leader;
        }
        assert!(Instant::now() < end, "no leader is shown");
    }
}

async fn http(addr: &str, method: &str, path: &str, token: Option<&str>, body: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let auth = token.map(|t| format!("Authorization: Bearer {t}\r\n")).unwrap_or_default();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{auth}Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").map(|(_, b)| b.to_owned()).unwrap_or_default())
}

#[test]
fn losing_a_master_is_invisible_to_callers() {
    let dir = tempfile::tempdir().unwrap();
    let peers = free_ports(3);
    let mut masters: Vec<Master> = (0..3).map(|i| Master::start(&peers, i, dir.path())).collect();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let nodes = runtime.block_on(metanodes(peers.clone()));
    let attached = runtime.block_on(async {
        ok(&peers[0], MasterCall::AddStore(memory_store("service"))).await;
        for addr in &peers {
            // The same request at every master: two of them forward.
            let MasterReply::Volume(v) = ok(addr, MasterCall::CreateVolume(spec("vol"))).await else { panic!() };
            assert_eq!(v.redundancy, "3 replicas on 3 hosts: survives 1 node");
        }
        let MasterReply::Session(g) = ok(&peers[1], MasterCall::OpenSession(session_request("vol", 1))).await else {
            panic!()
        };
        ok(&peers[2], MasterCall::AttachSession(g.session, g.map.partitions[0].id, g.token)).await;
        g
    });
    for round in 0..2 {
        let first = masters.iter().position(|m| m.runtime.is_some()).unwrap();
        let old = runtime.block_on(leader(&peers[first]));
        let dead = masters.iter().position(|m| m.addr == old).unwrap();
        let others: Vec<String> = peers.iter().filter(|p| **p != old).cloned().collect();
        masters[dead].kill();
        let began = Instant::now();
        runtime.block_on(async {
            for addr in &others {
                ok(addr, MasterCall::GetVolume("vol".into())).await;
                ok(addr, MasterCall::RenewSession(attached.session, attached.token)).await;
                ok(addr, MasterCall::CreateVolume(spec(&format!("vol-{round}")))).await;
            }
            assert_ne!(leader(&others[0]).await, old);
        });
        println!("round {round}: calls without an error for {:?} around the death of {old}", began.elapsed());
        masters[dead] = Master::start(&peers, dead, dir.path());
        let end = Instant::now() + Duration::from_secs(20);
        while !runtime.block_on(info(&others[0])).masters.iter().all(|m| m.2) {
            assert!(Instant::now() < end, "the restarted master is not seen");
        }
    }
    runtime.block_on(async {
        let MasterReply::Volumes(v) = ok(&peers[0], MasterCall::ListVolumes).await else { panic!() };
        assert_eq!(v.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["vol", "vol-0", "vol-1"]);
        ok(&peers[1], MasterCall::RevokeSession(attached.session)).await;
    });
    assert!(nodes.0.lock().ended.iter().any(|(_, s)| *s == attached.session));
}

#[test]
fn two_of_three_masters_gone_is_said_within_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let peers = free_ports(3);
    let mut masters: Vec<Master> = (0..3).map(|i| Master::start(&peers, i, dir.path())).collect();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(ok(&peers[0], MasterCall::ListVolumes));
    masters[1].kill();
    masters[2].kill();
    let began = Instant::now();
    let answer = runtime.block_on(ask(&peers[0], MasterCall::CreateVolume(spec("vol"))));
    let refusal = answer.expect("the living master answers").unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(15));
    assert_eq!(refusal.error, FsError::Unavailable);
    assert!(refusal.message.contains("no quorum") && refusal.message.contains(&peers[2]), "{refusal:?}");
}

#[test]
fn people_use_http_and_strangers_get_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let peers = free_ports(1);
    let _master = Master::start(&peers, 0, dir.path());
    let addr = peers[0].as_str();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let nodes = metanodes(vec![addr.into(); 3]).await;
        for (method, path) in [
            ("GET", "/v1/cluster"),
            ("GET", "/v1/stores"),
            ("POST", "/v1/stores"),
            ("POST", "/v1/stores/st/probe"),
            ("GET", "/v1/volumes"),
            ("POST", "/v1/volumes"),
            ("GET", "/v1/volumes/vol"),
            ("DELETE", "/v1/volumes/vol"),
            ("POST", "/v1/volumes/vol/expand"),
            ("GET", "/v1/volumes/vol/map"),
            ("GET", "/v1/sessions"),
            ("DELETE", "/v1/sessions/00"),
            ("GET", "/metrics"),
        ] {
            for token in [None, Some("token-of-the-test-clusteR")] {
                let (status, body) = http(addr, method, path, token, "{}").await;
                assert_eq!(status, 401, "{method} {path}: {body}");
                assert!(body.contains("\"error\":\"Unauthenticated\"") && !body.contains("host1"), "{body}");
            }
        }
        assert_eq!(http(addr, "GET", "/healthz", None, "").await, (200, "ok\n".into()));
        assert_eq!(http(addr, "GET", "/readyz", None, "").await, (200, "ready\n".into()));
        let t = Some(TOKEN);
        let dir_store = dir.path().join("objects");
        std::fs::create_dir(&dir_store).unwrap();
        let store = format!("{{\"name\":\"st\",\"kind\":\"dir\",\"endpoint\":\"{}\"}}", dir_store.display());
        let (status, body) = http(addr, "POST", "/v1/stores", t, &store).await;
        assert!(status == 200 && body.contains("\"name\":\"marker\""), "{status} {body}");
        let volume = "{\"name\":\"vol\",\"capacity\":1000,\"labels\":{\"a\":\"b\"}}";
        let (status, body) = http(addr, "POST", "/v1/volumes", t, volume).await;
        assert!(status == 200 && body.contains("survives 1 node"), "{status} {body}");
        assert!(!body.contains("hash_key"));
        for (body, code, text) in [
            ("{\"name\":\"vol\",\"capacity\":2000}", 409, "Exists"),
            ("{\"name\":\"V\"}", 400, "2 to 63 characters"),
            ("{\"name\":\"vol2\",\"replicas\":5}", 400, "only 3 metanode(s)"),
            ("{\"nam\":\"vol\"}", 400, "unknown field"),
            ("nonsense", 400, "request body"),
        ] {
            let (status, answer) = http(addr, "POST", "/v1/volumes", t, body).await;
            assert!(status == code && answer.contains(text), "{body}: {status} {answer}");
        }
        let (status, body) = http(addr, "POST", "/v1/volumes/vol/expand", t, "{\"capacity\":5000}").await;
        assert!(status == 200 && body.contains("\"capacity\":5000"), "{status} {body}");
        let (_, body) = http(addr, "GET", "/v1/volumes/vol/map", t, "").await;
        assert!(body.contains("\"ranges\":[{\"end\":1099511627776,\"start\":1}]"), "{body}");
        let MasterReply::Session(g) = ok(addr, MasterCall::OpenSession(session_request("vol", 1))).await else {
            panic!()
        };
        let (status, body) = http(addr, "GET", "/v1/sessions?volume=vol", t, "").await;
        assert!(status == 200 && body.contains(&g.session.to_string()), "{status} {body}");
        assert_eq!(http(addr, "DELETE", "/v1/volumes/vol", t, "").await.0, 409);
        assert_eq!(http(addr, "DELETE", &format!("/v1/sessions/{}", g.session), t, "").await.0, 204);
        let (_, metrics) = http(addr, "GET", "/metrics", t, "").await;
        assert!(
            metrics.contains("fusefs_master_leader 1") && metrics.contains("error=\"Unauthenticated\""),
            "{metrics}"
        );
        let (_, body) = http(addr, "GET", "/v1/cluster", t, "").await;
        assert!(body.contains("host1") && body.contains("\"name\":\"vol\""), "{body}");
        assert_eq!(http(addr, "DELETE", "/v1/volumes/vol", t, "").await.0, 204);
        assert_eq!(http(addr, "GET", "/v1/volumes/vol", t, "").await.0, 404);
        drop(nodes);
    });
    runtime.block_on(strangers_on_grpc(addr));
}

/// Neither raft nor a map watch is open to strangers.
async fn strangers_on_grpc(addr: &str) {
    let mut raft = PeerClient::connect(format!("http://{addr}")).await.unwrap();
    let refused = raft.talk(tokio_stream::iter(vec![PeerFrame { id: 0, body: None }])).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::Unauthenticated);
    let mut client = MasterClient::connect(format!("http://{addr}")).await.unwrap();
    let request = convert::master::watch_request(&ops::Envelope::default(), fusefs_types::VolumeId(1));
    let item = client.watch_map(request).await.unwrap().into_inner().message().await.unwrap().unwrap();
    let refusal = convert::master::from_watch_response(item).unwrap().unwrap_err();
    assert_eq!(refusal.error, FsError::Unauthenticated);
}

#[test]
fn a_map_watch_follows_the_leader_and_every_change() {
    let dir = tempfile::tempdir().unwrap();
    let peers = free_ports(3);
    let _masters: Vec<Master> = (0..3).map(|i| Master::start(&peers, i, dir.path())).collect();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let nodes = metanodes(peers.clone()).await;
        ok(&peers[0], MasterCall::AddStore(memory_store("watch"))).await;
        let MasterReply::Volume(v) = ok(&peers[0], MasterCall::CreateVolume(spec("vol"))).await else { panic!() };
        let led = leader(&peers[0]).await;
        let follower = peers.iter().find(|p| **p != led).unwrap();
        let token = ClusterToken::new(TOKEN.as_bytes()).unwrap();
        let request = convert::master::watch_request(&envelope(Some(&token)), v.id);
        let mut at_follower = MasterClient::connect(format!("http://{follower}")).await.unwrap();
        let item = at_follower.watch_map(request.clone()).await.unwrap().into_inner().message().await.unwrap().unwrap();
        let refusal = convert::master::from_watch_response(item).unwrap().unwrap_err();
        assert_eq!((refusal.error, refusal.leader), (FsError::NotLeader, Some(led.clone())));
        let mut at_leader = MasterClient::connect(format!("http://{led}")).await.unwrap();
        let mut items = at_leader.watch_map(request).await.unwrap().into_inner();
        let mut next = async || {
            let item = tokio::time::timeout(Duration::from_secs(20), items.message()).await;
            convert::master::from_watch_response(item.expect("no news").unwrap().unwrap()).unwrap().unwrap()
        };
        let first = next().await;
        assert_eq!(first.partitions.len(), 3);
        let old = first.partitions[0].leader.unwrap();
        let addr = first.partitions[0].members.iter().find(|m| m.replica == old).unwrap().addr.clone();
        nodes.0.lock().nodes.get_mut(&addr).unwrap().down = true; // another member leads now
        while next().await.partitions[0].leader == Some(old) {}
    });
}
