//! Real sockets, real disks, real time: three nodes in this process.

use crate::{
    cluster::{GROUP, member},
    support::{Journal, TestClock, TestRng},
};
use bytes::Bytes;
use fusefs_raft_host::{
    Components, Group, GroupSpec, GrpcNet, GrpcServer, GrpcSettings, Host, HostError, PeerHandler, RealDisk, Settings,
};
use fusefs_types::{ClusterId, NodeId, ReplicaId, cluster::Member};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_stream::wrappers::TcpListenerStream;

const CLUSTER: ClusterId = ClusterId(5);

struct Running {
    host: Arc<Host<Journal>>,
    server: JoinHandle<()>,
}

async fn open(dir: &Path, i: usize) -> Result<Arc<Host<Journal>>, HostError> {
    let node = NodeId(i as u128 + 1);
    let net = GrpcNet::new(GrpcSettings { cluster: CLUSTER, node, credential: Some(Bytes::from_static(b"token")) });
    let mut settings = Settings::new(CLUSTER, node);
    settings.segment_bytes = 4 << 20;
    let components = Components {
        disk: RealDisk::open(dir.join(format!("n{i}")))?,
        net,
        clock: Arc::new(TestClock::new()),
        rng: Arc::new(TestRng::new(i as u64)),
    };
    Host::open(settings, components, Arc::new(|_| Journal::default())).await
}

async fn start(dir: &Path, i: usize, listener: TcpListener) -> Running {
    let host = open(dir, i).await.unwrap();
    let handler: Arc<dyn PeerHandler> = host.clone();
    let service = GrpcServer::service(CLUSTER, handler);
    let server = tokio::spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        let _ = tonic::transport::Server::builder()
            .tcp_nodelay(true)
            .add_service(service)
            .serve_with_incoming(incoming)
            .await;
    });
    Running { host, server }
}

async fn members(n: usize) -> (Vec<Member>, Vec<TcpListener>) {
    let (mut members, mut listeners) = (Vec::new(), Vec::new());
    for i in 0..n {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        members.push(Member { addr: listener.local_addr().unwrap().to_string(), ..member(i) });
        listeners.push(listener);
    }
    (members, listeners)
}

async fn leader(nodes: &[Running]) -> (usize, Group<Journal>) {
    let until = Instant::now() + Duration::from_secs(10);
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    loop {
        for (i, node) in nodes.iter().enumerate() {
            if let Some(group) = node.host.group(GROUP).filter(|g| g.status().ready) {
                return (i, group);
            }
        }
        assert!(Instant::now() < until, "no leader");
        tick.tick().await;
    }
}

async fn create(node: &Running, i: usize, members: &[Member]) {
    let label = Bytes::new();
    let spec = GroupSpec { group: GROUP, replica: ReplicaId(i as u64 + 1), members: members.to_vec(), label };
    node.host.create_group(spec).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_over_grpc() {
    let dir = tempfile::tempdir().unwrap();
    let (members, listeners) = members(3).await;
    let mut nodes = Vec::new();
    for (i, listener) in listeners.into_iter().enumerate() {
        nodes.push(start(dir.path(), i, listener).await);
    }
    for (i, node) in nodes.iter().enumerate() {
        create(node, i, &members).await;
    }
    let (l, group) = leader(&nodes).await;
    let before = nodes[l].host.log_stats();
    let begun = Instant::now();
    for n in 0..100 {
        group.propose(Bytes::from(format!("{n}"))).await.unwrap();
    }
    println!("lone propose: {:?}", begun.elapsed() / 100);
    println!("leader log: {:?} -> {:?}", before, nodes[l].host.log_stats());
    let begun = Instant::now();
    for _ in 0..100 {
        group.read_barrier().await.unwrap();
    }
    println!("lone read barrier: {:?}", begun.elapsed() / 100);
    let before = nodes[l].host.log_stats();
    let begun = Instant::now();
    let tasks: Vec<_> = (0..8)
        .map(|t| {
            let group = group.clone();
            tokio::spawn(async move {
                for n in 0..100 {
                    group.propose(Bytes::from(format!("{t}.{n}"))).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let after = nodes[l].host.log_stats();
    println!("8 x 100 proposals: {:?}, fsyncs {}", begun.elapsed(), after.fsyncs - before.fsyncs);
    assert!(after.fsyncs - before.fsyncs < 600, "parallel proposals share fsyncs");
    assert_eq!(group.read(|j| j.entries.len()), 900);
    // Kill the leader; the others go on; it comes back with everything.
    let Running { host, server } = nodes.remove(l);
    server.abort();
    let _ = server.await;
    host.shutdown().await;
    drop(host);
    let begun = Instant::now();
    let (_, next) = leader(&nodes).await;
    next.propose(Bytes::from_static(b"after")).await.unwrap();
    println!("healed after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(3));
    drop(group);
    let listener = TcpListener::bind(&members[l].addr).await.unwrap();
    let back = start(dir.path(), l, listener).await;
    let until = Instant::now() + Duration::from_secs(10);
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    while back.host.group(GROUP).unwrap().read(|j| j.entries.len()) < 901 {
        assert!(Instant::now() < until, "the returning node does not catch up");
        tick.tick().await;
    }
    nodes.push(back);
    for node in &nodes {
        node.host.shutdown().await;
        node.server.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let host = open(dir.path(), 0).await.unwrap();
    assert!(matches!(open(dir.path(), 0).await, Err(HostError::Io(e)) if e.kind() == std::io::ErrorKind::WouldBlock));
    host.shutdown().await;
    drop(host);
    std::fs::rename(dir.path().join("n0"), dir.path().join("n1")).unwrap();
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        match open(dir.path(), 1).await {
            Err(HostError::Foreign(_)) => return,
            Err(HostError::Io(e)) if e.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(Instant::now() < until, "the lock outlives the host");
                tokio::task::yield_now().await;
            }
            Ok(_) => panic!("opened somebody else's disk"),
            Err(e) => panic!("{e}"),
        }
    }
}
