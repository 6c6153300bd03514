//! Three simulated nodes that can crash, restart and be cut off.

use crate::support::{Journal, TestClock, TestRng};
use bytes::Bytes;
use fusefs_raft_host::{
    Components, Disk, Group, GroupSpec, Host, MemNet, MemNetSettings, PeerHandler, Planted, ProposeError, Settings,
    SimDisk,
};
use fusefs_types::{ClusterId, NodeId, PartitionId, ReplicaId, cluster::Member};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::time::Instant;

pub const GROUP: PartitionId = PartitionId(7);

pub struct Node {
    pub id: NodeId,
    pub disk: SimDisk,
    pub host: Option<Arc<Host<Journal>>>,
}

pub struct Cluster {
    pub net: MemNet,
    pub nodes: Vec<Node>,
    pub seed: u64,
    pub checkpoint_bytes: u64,
    pub planted: Planted,
    starts: u64,
}

/// Runs on one thread with paused time.
pub fn simulate<F: Future<Output = ()>>(f: F) {
    // RUST_LOG shows what happened when a seed fails.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).without_time().try_init();
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    rt.block_on(f);
}

pub async fn pause(ms: u64) {
    tokio::time::sleep_until(Instant::now() + Duration::from_millis(ms)).await;
}

pub fn member(i: usize) -> Member {
    Member { replica: ReplicaId(i as u64 + 1), node: NodeId(i as u128 + 1), addr: format!("node{i}") }
}

impl Cluster {
    pub async fn new(n: usize, seed: u64) -> Cluster {
        let mut c = Cluster::empty(n, seed);
        for i in 0..n {
            c.start(i).await;
        }
        for i in 0..n {
            c.create(i, n).await;
        }
        c
    }

    pub fn empty(n: usize, seed: u64) -> Cluster {
        let net = MemNet::new(seed, MemNetSettings::default());
        let nodes = (0..n)
            .map(|i| Node {
                id: NodeId(i as u128 + 1), // Slower than the network on every other seed: what is acknowledged too early is then lost in a crash.
                disk: SimDisk::new(Duration::from_micros(if seed.is_multiple_of(2) { 300 } else { 8_000 })),
                host: None,
            })
            .collect();
        Cluster { net, nodes, seed, checkpoint_bytes: 1 << 20, planted: Planted::default(), starts: 0 }
    }

    pub async fn start(&mut self, i: usize) {
        self.starts += 1;
        let node = &mut self.nodes[i];
        let mut settings = Settings::new(ClusterId(99), node.id);
        settings.segment_bytes = 256 << 10;
        settings.checkpoint_bytes = self.checkpoint_bytes;
        settings.planted = self.planted;
        settings.timers.propose = std::time::Duration::from_secs(1);
        let components = Components {
            disk: Arc::new(node.disk.clone()) as Arc<dyn Disk>,
            net: self.net.endpoint(node.id),
            clock: Arc::new(TestClock::new()),
            rng: Arc::new(TestRng::new(self.seed ^ (self.starts << 32))),
        };
        let host = Host::open(settings, components, Arc::new(|_| Journal::default())).await.unwrap();
        let handler: Arc<dyn PeerHandler> = host.clone();
        self.net.register(node.id, &handler);
        node.host = Some(host);
    }

    pub async fn create(&self, i: usize, n: usize) {
        let spec = GroupSpec {
            group: GROUP,
            replica: ReplicaId(i as u64 + 1),
            members: (0..n).map(member).collect(),
            label: Bytes::from_static(b"label"),
        };
        self.host(i).create_group(spec).await.unwrap();
    }

    pub fn host(&self, i: usize) -> &Arc<Host<Journal>> {
        self.nodes[i].host.as_ref().unwrap()
    }

    pub fn group(&self, i: usize) -> Group<Journal> {
        self.host(i).group(GROUP).unwrap()
    }

    /// Power loss.
    pub fn crash(&mut self, i: usize) {
        let seed = self.seed ^ self.starts;
        let node = &mut self.nodes[i];
        self.net.unregister(node.id);
        if let Some(host) = node.host.take() {
            host.abort();
        }
        node.disk = node.disk.crash(seed);
    }

    pub fn up(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|i| self.nodes[*i].host.is_some()).collect()
    }

    /// The ready leader with the highest term; panics after `ms` of virtual time.
    pub async fn leader(&self, ms: u64) -> usize {
        let until = Instant::now() + Duration::from_millis(ms);
        loop {
            let ready = |i: &usize| {
                self.nodes[*i].host.as_ref().is_some_and(|h| h.group(GROUP).is_some_and(|g| g.status().ready))
            };
            let best = (0..self.nodes.len()).filter(ready).max_by_key(|i| self.group(*i).status().term);
            if let Some(i) = best {
                return i;
            }
            assert!(Instant::now() < until, "no leader within {ms} ms, seed {}: {:?}", self.seed, self.statuses());
            pause(10).await;
        }
    }

    pub fn statuses(&self) -> Vec<String> {
        self.up().into_iter().map(|i| format!("{i}: {:?}", self.group(i).status())).collect()
    }

    /// Proposes until some leader takes it.
    pub async fn write(&self, payload: &str) -> u64 {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            for i in self.up() {
                match self.group(i).propose(Bytes::copy_from_slice(payload.as_bytes())).await {
                    Ok(reply) => return reply,
                    Err(ProposeError::NotLeader(_) | ProposeError::Unavailable | ProposeError::Stopped(_)) => {}
                    Err(e) => panic!("{e}"),
                }
            }
            assert!(Instant::now() < until, "nobody takes a command, seed {}: {:?}", self.seed, self.statuses());
            pause(20).await;
        }
    }

    pub fn texts(&self, i: usize) -> Vec<String> {
        self.group(i).read(|j| j.entries.iter().map(|(_, p)| String::from_utf8_lossy(p).into_owned()).collect())
    }
}
