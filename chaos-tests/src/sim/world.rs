//! Three metanodes with simulated disks, one volume of three partitions, and the ways to kill them.

use crate::sim::{
    env::{SimClock, SimRng, pause_ms},
    lock,
    master::store,
    net::{Live, Net, Who, addr},
};
use async_trait::async_trait;
use bytes::Bytes;
use fusefs_meta_client::{Components as ClientParts, Holders, MasterClient, MetaClient};
use fusefs_metanode::{Components, Metanode, NodeIdentity, Planted, Settings};
use fusefs_raft_host::{
    MemNet, MemNetSettings, NetError, PeerHandler, PeerNet, PeerReply, PeerRequest, SimDisk, Timers,
};
use fusefs_types::{
    ClusterId, Incarnation, Ino, KeyRange, MountId, NodeId, PartitionId, ReplicaId, Rng, StoreId, Token, VolumeId,
    cluster::{
        Member, NodeCall, NodeReply, PartitionInfo, ReplicaSpec, SessionRequest, StoreCredentials, VolumeMap,
        VolumeRecord, VolumeState,
    },
    ops::{Envelope, PartitionUsage},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The cluster.
pub const CLUSTER: ClusterId = ClusterId(77);
/// Its volume.
pub const VOLUME: VolumeId = VolumeId(5);
/// Metanodes; each has a replica of every partition.
pub const NODES: usize = 3;
/// Partitions.
pub const PARTITIONS: u64 = 3;
/// Inodes of one partition.
pub const SPAN: u64 = 1 << 20;
/// Clocks differ by less than this: below `limits::CLOCK_SKEW_MAX_NS`.
const SKEW_NS: u64 = 300_000_000;

/// Raft's name of a metanode.
pub fn node_id(node: usize) -> NodeId {
    NodeId(100 + node as u128)
}

/// Record of the volume.
pub fn volume() -> VolumeRecord {
    VolumeRecord {
        id: VOLUME,
        name: "sim".into(),
        state: VolumeState::Ready,
        store: StoreId(1),
        capacity: 0,
        inodes: 0,
        replicas: NODES as u32,
        hash_key: [9; 16],
        redundancy: String::new(),
        labels: Vec::new(),
        usage: PartitionUsage::default(),
    }
}

fn members(p: u64) -> Vec<Member> {
    let member = |n| Member { replica: ReplicaId(p * 10 + n as u64 + 1), node: node_id(n), addr: addr(n) };
    (0..NODES).map(member).collect()
}

fn info(p: u64) -> PartitionInfo {
    let ranges = vec![KeyRange::inos((p - 1) * SPAN, p * SPAN)];
    PartitionInfo { id: PartitionId(p), volume: VOLUME, ranges, members: members(p), leader: None }
}

/// Partition of an inode.
pub fn home(ino: Ino) -> u64 {
    ino.0 / SPAN + 1
}

/// Raft's door of one process: nothing passes once it is dead.
struct Gate<T: ?Sized> {
    inner: Arc<T>,
    life: CancellationToken,
}

#[async_trait]
impl PeerNet for Gate<dyn PeerNet> {
    async fn call(&self, to: &Member, request: PeerRequest) -> Result<PeerReply, NetError> {
        if self.life.is_cancelled() {
            return std::future::pending().await;
        }
        self.inner.call(to, request).await
    }
}

#[async_trait]
impl PeerHandler for Gate<dyn PeerHandler> {
    async fn handle(&self, from: NodeId, request: PeerRequest) -> PeerReply {
        let reply = self.inner.handle(from, request).await;
        if self.life.is_cancelled() {
            return std::future::pending().await;
        }
        reply
    }
    fn closed(&self) -> bool {
        self.inner.closed()
    }
}

struct Machine {
    disk: SimDisk,
    handler: Option<Arc<dyn PeerHandler>>,
    clock: Arc<SimClock>,
    starts: u64,
}

/// The cluster.
pub struct World {
    /// Calls.
    pub net: Arc<Net>,
    /// Raft.
    pub raft: MemNet,
    seed: u64,
    planted: Planted,
    machines: Mutex<BTreeMap<usize, Machine>>,
    start: Instant,
}

/// A mount that never keeps a file open for longer than it takes to create it.
struct NothingOpen;

impl Holders for NothingOpen {
    fn holds(&self, _: Ino) -> bool {
        false
    }
}

impl World {
    /// Starts the nodes and creates the volume, in fair weather.
    pub async fn new(seed: u64, planted: Planted) -> Result<Arc<World>, String> {
        let (start, rng) = (Instant::now(), SimRng::new(seed ^ 0x0c10_c000));
        let machine = |n: usize| {
            let clock = SimClock::new(start, rng.below(SKEW_NS));
            // From a fast SSD to a slow one.
            let disk = SimDisk::new(Duration::from_micros(200 + rng.below(4_000)));
            (n, Machine { disk, handler: None, clock, starts: 0 })
        };
        let world = Arc::new(World {
            net: Net::new(seed ^ 0x0e7),
            raft: MemNet::new(seed ^ 0x4af7, MemNetSettings::default()),
            seed,
            planted,
            machines: Mutex::new((0..NODES).map(machine).collect()),
            start,
        });
        for node in 0..NODES {
            world.boot(node).await?;
        }
        let partitions = (1..=PARTITIONS).map(info).collect();
        world.net.master.publish(VolumeMap { volume: VOLUME, generation: 1, partitions });
        for p in 1..=PARTITIONS {
            for n in 0..NODES {
                let spec = ReplicaSpec {
                    partition: PartitionId(p),
                    replica: members(p)[n].replica,
                    volume: VOLUME,
                    members: members(p),
                    ranges: info(p).ranges,
                    hash_key: volume().hash_key,
                    store: store(),
                    credentials: StoreCredentials::default(),
                };
                world.order(n, NodeCall::CreateReplica(spec)).await?;
            }
        }
        for p in 1..=PARTITIONS {
            world.leader(PartitionId(p)).await?;
        }
        Ok(world)
    }

    /// Starts a node from its disk.
    pub async fn boot(&self, node: usize) -> Result<(), String> {
        let life = CancellationToken::new();
        let (disk, clock, starts) = {
            let mut machines = lock(&self.machines);
            let machine = machines.get_mut(&node).ok_or("no such machine")?;
            machine.starts += 1;
            (machine.disk.clone(), machine.clock.clone(), machine.starts)
        };
        let rng = SimRng::new(self.seed ^ (starts << 32) ^ ((node as u64) << 56));
        let settings = Settings {
            masters: vec!["master:1".into()],
            background_ms: 100,
            log_segment_bytes: 256 << 10,
            checkpoint_bytes: 6 << 10,
            planted: self.planted,
            ..Settings::new("")
        };
        let transport = self.net.endpoint(Who::Node(node), life.clone());
        let masters = fusefs_meta_client::Settings::new(settings.masters.clone(), Bytes::new());
        let net: Arc<dyn PeerNet> = Arc::new(Gate { inner: self.raft.endpoint(node_id(node)), life: life.clone() });
        let components = Components {
            raft: fusefs_raft_host::Components { disk: Arc::new(disk), net, clock, rng: rng.clone() },
            timers: Timers { propose: Duration::from_secs(2), ..Timers::default() },
            transport: transport.clone(),
            masters: MasterClient::new(masters, transport, rng),
            blob_dir: None,
            token: None,
        };
        let identity = NodeIdentity { cluster: CLUSTER, node: node_id(node) };
        let core = Metanode::open(settings, identity, components)
            .await
            .map_err(|e| format!("node {node} does not open its disk again: {e}"))?;
        let inner: Arc<dyn PeerHandler> = core.host().clone();
        let handler: Arc<dyn PeerHandler> = Arc::new(Gate { inner, life: life.clone() });
        self.raft.register(node_id(node), &handler);
        if let Some(machine) = lock(&self.machines).get_mut(&node) {
            machine.handler = Some(handler);
        }
        self.net.join(node, Live { core, life });
        Ok(())
    }

    /// Ends a node's process. With `power` its machine loses what was not synced, as that seed decides.
    pub fn kill(&self, node: usize, power: Option<u64>) {
        let Some(live) = self.net.leave(node) else { return };
        for group in live.core.host().groups() {
            self.net.counts.more("checkpoints", group.stats().checkpoints);
        }
        live.life.cancel();
        self.raft.unregister(node_id(node));
        if let Some(machine) = lock(&self.machines).get_mut(&node) {
            machine.disk = power.map_or_else(|| machine.disk.kill(), |seed| machine.disk.crash(seed));
            machine.handler = None;
        }
        live.core.abort();
    }

    /// An order of the masters to a node.
    pub async fn order(&self, node: usize, call: NodeCall) -> Result<NodeReply, String> {
        let live = self.net.live(node).ok_or("the node is down")?;
        let envelope = Envelope { cluster: CLUSTER, volume: VOLUME, deadline_ms: 5_000, ..Envelope::default() };
        live.core.call(envelope, call).await.map_err(|r| format!("node {node}: {:?}", r.error))
    }

    /// Node that leads a partition and is ready now.
    pub fn leads(&self, partition: PartitionId) -> Option<usize> {
        (0..NODES).find(|n| {
            let live = self.net.live(*n);
            live.is_some_and(|l| l.core.host().group(partition).is_some_and(|g| g.status().ready))
        })
    }

    /// Waits for a leader.
    pub async fn leader(&self, partition: PartitionId) -> Result<usize, String> {
        for _ in 0..6_000 {
            if let Some(node) = self.leads(partition) {
                return Ok(node);
            }
            pause_ms(5).await;
        }
        Err(format!("partition {partition} has no leader for 30 s"))
    }

    /// Opens a session.
    pub async fn mount(&self, n: usize) -> Result<Arc<MetaClient>, String> {
        let rng = SimRng::new(self.seed ^ (0xc11e << 32) ^ n as u64);
        let mount = MountId(0x1000 + n as u128);
        let components = ClientParts {
            transport: self.net.endpoint(Who::Client(n), CancellationToken::new()),
            clock: SimClock::new(self.start, rng.below(SKEW_NS)),
            rng: rng.clone(),
        };
        let request = SessionRequest {
            volume: "sim".into(),
            mount,
            session: fusefs_types::SessionId(0),
            token: Token { attach: 0, incarnation: Incarnation(1) },
            client: format!("client {n}"),
            read_only: false,
        };
        let settings = fusefs_meta_client::Settings::new(vec!["master:1".into()], Bytes::new());
        let _ = rng.next_u64();
        let client = MetaClient::connect(settings, components, request).await.map_err(|e| e.message)?;
        client.set_holders(Arc::new(NothingOpen));
        Ok(client)
    }

    /// Takes everything down, so that nothing keeps anything alive.
    pub fn end(&self) {
        for node in 0..NODES {
            self.kill(node, None);
        }
    }
}
