//! A small cluster of metanode cores around a scripted master.

use async_trait::async_trait;
use bytes::Bytes;
use fusefs_meta_client::{CallError, EventStream, MapStream, MasterClient, Transport};
use fusefs_metanode::{Components, Metanode, NodeIdentity, Settings};
use fusefs_raft_host::{MemNet, MemNetSettings, PeerHandler, SimDisk, Timers};
use fusefs_types::{
    Attr, Clock, ClusterId, FsError, FsResult, Hlc, Incarnation, Ino, KeyRange, MountId, Name, NodeId, PartitionId,
    ReplicaId, Rng, SessionId, StoreId, Token, VolumeId,
    auth::ClusterToken,
    cluster::{
        MasterCall, MasterRefusal, MasterReply, Member, NodeCall, NodeReply, PartitionInfo, ReplicaSpec,
        StoreCredentials, StoreKind, StoreRecord, VolumeMap,
    },
    ids::{OpId, Origin},
    ops::{Create, Envelope, NewNode, Read, ReadReply, Refusal, Reply, ReplyHead, Write, WriteReply},
    txn::{PartReply, TxnMessage},
};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

pub const CLUSTER: ClusterId = ClusterId(77);
pub const VOLUME: VolumeId = VolumeId(5);
/// Inodes of one partition.
pub const SPAN: u64 = 1 << 20;

pub struct SimClock(Instant);

impl Clock for SimClock {
    fn wall_ns(&self) -> u64 {
        1_700_000_000_000_000_000 + self.boot_ns()
    }
    fn boot_ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

pub struct SimRng(AtomicU64);

impl SimRng {
    pub fn new(seed: u64) -> Arc<SimRng> {
        Arc::new(SimRng(AtomicU64::new(seed)))
    }
}

impl Rng for SimRng {
    fn next_u64(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 27)
    }
}

/// Nodes by address and what the master knows.
#[derive(Default)]
pub struct Net {
    pub nodes: Mutex<BTreeMap<String, Arc<Metanode>>>,
    pub map: Mutex<VolumeMap>,
    pub attaches: Mutex<Vec<(SessionId, PartitionId)>>,
    /// What AttachSession answers instead of the token.
    pub attach_error: Mutex<Option<FsError>>,
}

impl Net {
    fn node(&self, addr: &str) -> Result<Arc<Metanode>, CallError> {
        self.nodes.lock().get(addr).cloned().ok_or_else(|| CallError::unsent("no such node"))
    }
}

fn reply<T>(result: Result<T, Refusal>) -> Result<Reply<T>, CallError> {
    Ok(Reply { head: ReplyHead::default(), result })
}

#[async_trait]
impl Transport for Net {
    async fn write(&self, addr: &str, envelope: Envelope, write: &Write) -> Result<Reply<WriteReply>, CallError> {
        reply(self.node(addr)?.write(envelope, write.clone()).await)
    }
    async fn read(
        &self,
        addr: &str,
        envelope: Envelope,
        partition: PartitionId,
        read: &Read,
    ) -> Result<Reply<ReadReply>, CallError> {
        reply(self.node(addr)?.read(envelope, partition, read.clone()).await)
    }
    async fn node(&self, addr: &str, envelope: Envelope, call: &NodeCall) -> Result<Reply<NodeReply>, CallError> {
        reply(self.node(addr)?.call(envelope, call.clone()).await)
    }
    async fn peer(&self, addr: &str, envelope: Envelope, message: &TxnMessage) -> Result<Reply<PartReply>, CallError> {
        reply(self.node(addr)?.peer(envelope, message.clone()).await)
    }
    async fn master(
        &self,
        _addr: &str,
        _envelope: Envelope,
        call: &MasterCall,
    ) -> Result<Result<MasterReply, MasterRefusal>, CallError> {
        let refuse = |error| MasterRefusal { error, message: "scripted".into(), leader: None };
        Ok(match call {
            MasterCall::Register(_) => Ok(MasterReply::Registered(CLUSTER)),
            MasterCall::Heartbeat(_) => Ok(MasterReply::Ok),
            MasterCall::GetMap(_) => Ok(MasterReply::Map(self.map.lock().clone())),
            MasterCall::AttachSession(session, partition, token) => {
                // Long enough that everybody who wants the same attach arrives meanwhile.
                tokio::time::sleep_until(Instant::now() + Duration::from_millis(20)).await;
                self.attaches.lock().push((*session, *partition));
                match *self.attach_error.lock() {
                    Some(e) => Err(refuse(e)),
                    None => Ok(MasterReply::Attached(*token)),
                }
            }
            MasterCall::StoreAccess(_) => Ok(MasterReply::StoreAccess(store(), StoreCredentials::default())),
            _ => Err(refuse(FsError::NotSupported)),
        })
    }
    async fn events(&self, _: &str, _: Envelope) -> Result<EventStream, CallError> {
        Err(CallError::unsent("not here"))
    }
    async fn watch_map(&self, _: &str, _: Envelope, _: VolumeId) -> Result<MapStream, CallError> {
        Err(CallError::unsent("not here"))
    }
}

pub fn store() -> StoreRecord {
    StoreRecord {
        id: StoreId(1),
        name: "mem".into(),
        kind: StoreKind::Memory,
        endpoint: format!("metanode-it-{:?}", std::thread::current().id()),
        region: String::new(),
        bucket: String::new(),
        prefix: "t".into(),
        path_style: true,
        credential: String::new(),
        probe: Vec::new(),
    }
}

pub struct World {
    pub net: Arc<Net>,
    pub raft_net: MemNet,
    pub disks: Vec<SimDisk>,
    pub token: Option<ClusterToken>,
    pub rng: Arc<SimRng>,
    handlers: Mutex<BTreeMap<NodeId, Arc<dyn PeerHandler>>>,
    clock: Arc<SimClock>,
}

pub fn addr(node: usize) -> String {
    format!("node{node}:1")
}

pub fn node_id(node: usize) -> NodeId {
    NodeId(100 + node as u128)
}

impl World {
    /// `nodes` metanodes, `partitions` groups with a replica on each of them.
    pub async fn new(nodes: usize, partitions: u64) -> World {
        World::with_token(nodes, partitions, None).await
    }

    pub async fn with_token(nodes: usize, partitions: u64, token: Option<ClusterToken>) -> World {
        let seed = 0x5eed;
        let world = World {
            net: Arc::default(),
            raft_net: MemNet::new(seed, MemNetSettings::default()),
            disks: (0..nodes).map(|_| SimDisk::new(Duration::from_millis(1))).collect(),
            token,
            rng: SimRng::new(seed),
            handlers: Mutex::default(),
            clock: Arc::new(SimClock(Instant::now())),
        };
        for node in 0..nodes {
            world.start(node).await;
        }
        let members = |p: u64| -> Vec<Member> {
            (0..nodes)
                .map(|n| Member { replica: ReplicaId(p * 10 + n as u64 + 1), node: node_id(n), addr: addr(n) })
                .collect()
        };
        let info = |p: u64| PartitionInfo {
            id: PartitionId(p),
            volume: VOLUME,
            ranges: vec![KeyRange::inos((p - 1) * SPAN, p * SPAN)],
            members: members(p),
            leader: None,
        };
        *world.net.map.lock() =
            VolumeMap { volume: VOLUME, generation: 3, partitions: (1..=partitions).map(info).collect() };
        for p in 1..=partitions {
            for n in 0..nodes {
                let spec = ReplicaSpec {
                    partition: PartitionId(p),
                    replica: members(p)[n].replica,
                    volume: VOLUME,
                    members: members(p),
                    ranges: info(p).ranges,
                    hash_key: [9; 16],
                    store: store(),
                    credentials: StoreCredentials::default(),
                };
                world.order(n, NodeCall::CreateReplica(spec)).await.unwrap();
            }
        }
        for p in 1..=partitions {
            world.leader(PartitionId(p)).await;
        }
        world
    }

    pub async fn start(&self, node: usize) {
        let settings = Settings {
            masters: vec!["master:1".into()],
            object_grace_ms: 2_000,
            background_ms: 50,
            blob_segment_bytes: 64 << 10,
            log_segment_bytes: 1 << 20,
            ..Settings::new("")
        };
        let masters = fusefs_meta_client::Settings::new(settings.masters.clone(), Bytes::new());
        let components = Components {
            raft: fusefs_raft_host::Components {
                disk: Arc::new(self.disks[node].clone()),
                net: self.raft_net.endpoint(node_id(node)),
                clock: self.clock.clone(),
                rng: self.rng.clone(),
            },
            timers: Timers::default(),
            transport: self.net.clone(),
            masters: MasterClient::new(masters, self.net.clone(), self.rng.clone()),
            blob_dir: None,
            token: self.token.clone(),
        };
        let identity = NodeIdentity { cluster: CLUSTER, node: node_id(node) };
        let started = Metanode::open(settings, identity, components).await.unwrap();
        let handler: Arc<dyn PeerHandler> = started.host().clone();
        self.raft_net.register(node_id(node), &handler);
        self.handlers.lock().insert(node_id(node), handler);
        self.net.nodes.lock().insert(addr(node), started);
    }

    pub async fn stop(&self, node: usize) {
        let running = self.net.nodes.lock().remove(&addr(node)).unwrap();
        self.raft_net.unregister(node_id(node));
        running.shutdown().await;
        self.handlers.lock().remove(&node_id(node));
    }

    pub fn node(&self, node: usize) -> Arc<Metanode> {
        self.net.nodes.lock()[&addr(node)].clone()
    }

    pub fn envelope(&self) -> Envelope {
        Envelope {
            cluster: CLUSTER,
            volume: VOLUME,
            credential: self.token.as_ref().map(ClusterToken::credential).unwrap_or_default(),
            deadline_ms: 5_000,
            ..Envelope::default()
        }
    }

    pub async fn order(&self, node: usize, call: NodeCall) -> Result<NodeReply, Refusal> {
        self.node(node).call(self.envelope(), call).await
    }

    /// Node that leads a partition and is ready.
    pub async fn leader(&self, partition: PartitionId) -> usize {
        for _ in 0..2_000 {
            let nodes: Vec<(String, Arc<Metanode>)> =
                self.net.nodes.lock().iter().map(|(a, n)| (a.clone(), n.clone())).collect();
            for (address, node) in nodes {
                let ready = node.host().group(partition).is_some_and(|g| g.status().ready);
                if ready {
                    return address.trim_start_matches("node").trim_end_matches(":1").parse().unwrap();
                }
            }
            tokio::time::sleep_until(Instant::now() + Duration::from_millis(5)).await;
        }
        panic!("partition {partition} has no leader");
    }

    /// Problems found by the partitions' own checks.
    pub async fn fsck(&self) -> Vec<String> {
        let ids: Vec<PartitionId> = self.net.map.lock().partitions.iter().map(|p| p.id).collect();
        let mut all = Vec::new();
        for id in ids {
            let leader = self.leader(id).await;
            match self.order(leader, NodeCall::Fsck(id)).await.unwrap() {
                NodeReply::Problems(problems) => all.extend(problems),
                other => panic!("{other:?}"),
            }
        }
        all
    }
}

/// A client that finds the leader by itself.
pub struct Client<'a> {
    pub world: &'a World,
    pub session: SessionId,
    pub token: Token,
    next: AtomicU64,
}

impl<'a> Client<'a> {
    pub fn new(world: &'a World, session: u128) -> Client<'a> {
        let token = Token { attach: 0, incarnation: Incarnation(1) };
        Client { world, session: SessionId(session), token, next: AtomicU64::new(1) }
    }

    pub fn op(&self) -> OpId {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        OpId { mount: MountId(self.session.0), origin: Origin::Fuse, number, step: 0 }
    }

    pub fn envelope(&self, op: Option<OpId>) -> Envelope {
        let credential =
            self.world.token.as_ref().map(|t| Bytes::copy_from_slice(&t.session_secret(self.session, VOLUME)));
        Envelope {
            session: self.session,
            token: self.token,
            op,
            hlc: Hlc(0),
            credential: credential.unwrap_or_default(),
            ..self.world.envelope()
        }
    }

    async fn route(&self, key: fusefs_types::RangeKey) -> usize {
        let owner = self.world.net.map.lock().partitions.iter().find(|p| p.ranges[0].contains(key)).map(|p| p.id);
        self.world.leader(owner.unwrap()).await
    }

    pub async fn try_write(&self, op: OpId, write: Write) -> Result<WriteReply, Refusal> {
        let node = self.route(write.route()).await;
        self.world.node(node).write(self.envelope(Some(op)), write).await
    }

    pub async fn write_as(&self, op: OpId, write: Write) -> FsResult<WriteReply> {
        for _ in 0..200 {
            match self.try_write(op, write.clone()).await {
                Err(r) if r.error.is_retryable() => {
                    tokio::time::sleep_until(Instant::now() + Duration::from_millis(20)).await;
                }
                other => return other.map_err(|r| r.error),
            }
        }
        panic!("no answer to {write:?}");
    }

    pub async fn write(&self, write: Write) -> FsResult<WriteReply> {
        self.write_as(self.op(), write).await
    }

    pub async fn read(&self, read: Read) -> FsResult<ReadReply> {
        for _ in 0..200 {
            let node = self.route(read.route()).await;
            match self.world.node(node).read(self.envelope(None), PartitionId(0), read.clone()).await {
                Err(r) if r.error.is_retryable() => {
                    tokio::time::sleep_until(Instant::now() + Duration::from_millis(20)).await;
                }
                other => return other.map_err(|r| r.error),
            }
        }
        panic!("no answer to {read:?}");
    }

    pub async fn create(&self, parent: Ino, name: &str, node: NewNode) -> FsResult<Attr> {
        let is_file = node == NewNode::File;
        let attr = match self.write(create(parent, name, node)).await? {
            WriteReply::Created { attr, .. } => attr,
            other => panic!("{other:?}"),
        };
        if is_file {
            // A file is born open.
            self.read(Read::Close { ino: attr.ino }).await?;
        }
        Ok(attr)
    }

    pub async fn lookup(&self, parent: Ino, text: &str) -> FsResult<Option<Ino>> {
        match self.read(Read::Lookup { parent, name: name(text) }).await? {
            ReadReply::Entry { entry, .. } => Ok(entry.map(|(ino, _)| ino)),
            other => panic!("{other:?}"),
        }
    }

    pub async fn getattr(&self, ino: Ino) -> FsResult<Attr> {
        match self.read(Read::GetAttr { ino }).await? {
            ReadReply::Attr(attr) => Ok(attr),
            other => panic!("{other:?}"),
        }
    }

    /// A directory below the root that lives in the wanted partition.
    pub async fn directory_in(&self, partition: u64, prefix: &str) -> Ino {
        for i in 0..200 {
            let attr = self.create(Ino::ROOT, &format!("{prefix}{i}"), NewNode::Directory).await.unwrap();
            if attr.ino.0 / SPAN + 1 == partition {
                return attr.ino;
            }
        }
        panic!("no directory spilled to partition {partition}");
    }
}

pub fn name(text: &str) -> Name {
    Name::new(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

pub fn create(parent: Ino, text: &str, node: NewNode) -> Write {
    Write::Create(Create { parent, name: name(text), node, mode: 0o755, uid: 1, gid: 2, exclusive: true })
}

/// Waits until `f` holds; simulated time makes it cheap.
pub async fn eventually<F: Future<Output = bool>>(what: &str, f: impl Fn() -> F) {
    for _ in 0..400 {
        if f().await {
            return;
        }
        tokio::time::sleep_until(Instant::now() + Duration::from_millis(25)).await;
    }
    panic!("never: {what}");
}
