//! Metanodes in memory, and a core around them.

use async_trait::async_trait;
use fusefs_cluster_state::ClusterState;
use fusefs_master::{
    Core, Outside, Settings, Unreachable,
    log::{Log, Solo, view},
};
use fusefs_types::{
    Clock, FsError, NodeId, ObjectId, PartitionId, ReplicaId, Rng, SessionId,
    auth::ClusterToken,
    cluster::*,
    ops::{Envelope, PartitionUsage, Refusal},
    txn::Internal,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::time::Instant;

/// Follows tokio's (paused) time.
pub struct TestClock(Instant);

impl TestClock {
    pub fn new() -> Arc<TestClock> {
        Arc::new(TestClock(Instant::now()))
    }
}

impl Clock for TestClock {
    fn wall_ns(&self) -> u64 {
        1_700_000_000_000_000_000 + self.boot_ns()
    }
    fn boot_ns(&self) -> u64 {
        5_000_000_000 + self.0.elapsed().as_nanos() as u64
    }
}

/// splitmix64.
pub struct TestRng(AtomicU64);

impl TestRng {
    pub fn new(seed: u64) -> Arc<TestRng> {
        Arc::new(TestRng(AtomicU64::new(seed)))
    }
}

impl Rng for TestRng {
    fn next_u64(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// One fake metanode.
#[derive(Default)]
pub struct FakeNode {
    pub id: u128,
    pub down: bool,
    pub replicas: BTreeMap<ReplicaId, ReplicaSpec>,
}

/// All fake metanodes. A partition is led by its first member whose node is up.
#[derive(Default)]
pub struct Fake {
    pub nodes: BTreeMap<String, FakeNode>,
    pub objects: BTreeMap<PartitionId, BTreeSet<ObjectId>>,
    pub ended: Vec<(PartitionId, SessionId)>,
    pub granted: Vec<(PartitionId, fusefs_types::KeyRange)>,
    pub inos_left: u64,
    pub credentials: Vec<bytes::Bytes>,
}

#[derive(Default)]
pub struct FakeNodes(pub Mutex<Fake>);

impl Fake {
    fn leads(&self, addr: &str, p: PartitionId) -> Option<bool> {
        let spec = self.nodes[addr].replicas.values().find(|r| r.partition == p)?;
        let up = |m: &&Member| self.nodes.get(&m.addr).is_some_and(|n| !n.down && n.replicas.contains_key(&m.replica));
        Some(spec.members.iter().find(up).is_some_and(|m| m.addr == addr))
    }

    fn serve(&mut self, addr: &str, call: NodeCall) -> Result<NodeReply, Refusal> {
        let group = match &call {
            NodeCall::Command(p, _) | NodeCall::ListObjects(p, ..) => Some(*p),
            _ => None,
        };
        match group.map(|p| self.leads(addr, p)) {
            Some(None) => return Err(FsError::NotFound.into()),
            Some(Some(false)) => return Err(FsError::NotLeader.into()),
            Some(Some(true)) | None => {}
        }
        match call {
            NodeCall::CreateReplica(spec) => {
                self.nodes.get_mut(addr).unwrap().replicas.insert(spec.replica, spec);
            }
            NodeCall::DestroyReplica(_, r) => {
                self.nodes.get_mut(addr).unwrap().replicas.remove(&r);
            }
            NodeCall::Command(p, Internal::EndSession { session, .. }) => self.ended.push((p, session)),
            NodeCall::Command(p, Internal::GrantRange { range, .. }) => self.granted.push((p, range)),
            NodeCall::ListObjects(p, after, limit) => {
                let all = self.objects.entry(p).or_default().iter().copied();
                let page = all.filter(|o| after.is_none_or(|a| *o > a)).take(limit as usize).collect();
                return Ok(NodeReply::Objects(page));
            }
            other => panic!("unexpected {other:?}"),
        }
        Ok(NodeReply::Ok)
    }
}

#[async_trait]
impl Outside for FakeNodes {
    async fn node(
        &self,
        addr: &str,
        envelope: Envelope,
        call: NodeCall,
    ) -> Result<Result<NodeReply, Refusal>, Unreachable> {
        let mut fake = self.0.lock();
        fake.credentials.push(envelope.credential);
        match fake.nodes.get(addr) {
            Some(n) if !n.down => Ok(fake.serve(addr, call)),
            _ => Err(Unreachable(format!("{addr}: refused"))),
        }
    }
    async fn master(
        &self,
        addr: &str,
        _: Envelope,
        _: MasterCall,
    ) -> Result<Result<MasterReply, MasterRefusal>, Unreachable> {
        Err(Unreachable(format!("{addr}: no such master")))
    }
}

/// A core, its log, and metanodes that send a heartbeat every 500 ms.
pub struct Rig {
    pub core: Arc<Core>,
    pub log: Arc<Solo>,
    pub nodes: Arc<FakeNodes>,
    pub token: Option<ClusterToken>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|t| t.abort());
    }
}

pub fn quick_settings() -> Settings {
    Settings { sweep_grace_ms: 2_000, second_sweep_ms: 6_000, session_ttl_ms: 60_000, ..Settings::new("/nowhere") }
}

impl Rig {
    /// `hosts[i]` is the host of metanode i.
    pub async fn start(hosts: &[&str], settings: Settings, token: Option<ClusterToken>) -> Rig {
        let log = Solo::new("127.0.0.1:7300");
        let nodes = Arc::new(FakeNodes::default());
        nodes.0.lock().inos_left = 1 << 40;
        let core = Core::new(settings, token.clone(), log.clone(), nodes.clone(), TestClock::new(), TestRng::new(42));
        let mut rig = Rig { core, log, nodes, token, tasks: Vec::new() };
        for (host, id) in hosts.iter().zip(1u128..) {
            let addr = format!("{host}:{}", 7400 + id);
            rig.nodes.0.lock().nodes.insert(addr.clone(), FakeNode { id, ..FakeNode::default() });
            let record = NodeRecord {
                id: NodeId(id),
                addr,
                host: String::new(),
                capacity: 0,
                memory: 1 << 30,
                feature_level: 1,
            };
            rig.ok(MasterCall::Register(record)).await;
        }
        rig.tasks.push(tokio::spawn(rig.core.clone().reconcile()));
        let (core, nodes, token) = (rig.core.clone(), rig.nodes.clone(), rig.token.clone());
        rig.tasks.push(tokio::spawn(async move {
            let mut tick = tokio::time::interval(std::time::Duration::from_millis(500));
            loop {
                tick.tick().await;
                for h in heartbeats(&nodes) {
                    let _ = core.call(envelope(token.as_ref()), MasterCall::Heartbeat(h), 0).await;
                }
            }
        }));
        rig
    }

    pub async fn call(&self, call: MasterCall) -> Result<MasterReply, MasterRefusal> {
        self.core.call(envelope(self.token.as_ref()), call, 0).await
    }

    pub async fn ok(&self, call: MasterCall) -> MasterReply {
        let text = format!("{call:?}");
        self.call(call).await.unwrap_or_else(|e| panic!("{text}: {e:?}"))
    }

    pub async fn refused(&self, call: MasterCall) -> MasterRefusal {
        let text = format!("{call:?}");
        match self.call(call).await {
            Err(e) => e,
            Ok(reply) => panic!("{text}: {reply:?}"),
        }
    }

    pub fn view<R>(&self, f: impl FnOnce(&ClusterState) -> R) -> R {
        view(self.log.as_ref() as &dyn Log, f)
    }

    pub async fn store(&self, name: &str) -> StoreRecord {
        match self.ok(MasterCall::AddStore(memory_store(name))).await {
            MasterReply::Store(s) => s,
            other => panic!("{other:?}"),
        }
    }

    pub async fn volume(&self, name: &str) -> VolumeRecord {
        match self.ok(MasterCall::CreateVolume(spec(name))).await {
            MasterReply::Volume(v) => v,
            other => panic!("{other:?}"),
        }
    }

    pub async fn session(&self, volume: &str, mount: u128) -> SessionGrant {
        match self.ok(MasterCall::OpenSession(session_request(volume, mount))).await {
            MasterReply::Session(g) => *g,
            other => panic!("{other:?}"),
        }
    }

    /// Waits (paused time) until the condition holds.
    pub async fn until(&self, what: &str, mut f: impl FnMut(&Rig) -> bool) {
        let end = Instant::now() + std::time::Duration::from_secs(600);
        while !f(self) {
            assert!(Instant::now() < end, "still waiting for: {what}");
            tokio::time::sleep_until(Instant::now() + std::time::Duration::from_millis(50)).await;
        }
    }
}

pub fn heartbeats(nodes: &FakeNodes) -> Vec<Heartbeat> {
    let fake = nodes.0.lock();
    let up = fake.nodes.iter().filter(|(_, n)| !n.down);
    up.map(|(addr, n)| Heartbeat {
        node: NodeId(n.id),
        memory_used: 0,
        disk_used: 0,
        replicas: n
            .replicas
            .values()
            .map(|r| ReplicaReport {
                partition: r.partition,
                replica: r.replica,
                leader: fake.leads(addr, r.partition) == Some(true),
                term: 1,
                applied: 1,
                usage: PartitionUsage { inodes: 1, ..PartitionUsage::default() },
                inos_left: fake.inos_left,
                failed: String::new(),
            })
            .collect(),
    })
    .collect()
}

pub fn envelope(token: Option<&ClusterToken>) -> Envelope {
    Envelope { credential: token.map(ClusterToken::credential).unwrap_or_default(), ..Envelope::default() }
}

pub fn memory_store(name: &str) -> StoreRecord {
    StoreRecord {
        id: fusefs_types::StoreId(0),
        name: name.into(),
        kind: StoreKind::Memory,
        endpoint: format!("{name}-{:?}", std::thread::current().id()),
        region: String::new(),
        bucket: String::new(),
        prefix: "pre".into(),
        path_style: false,
        credential: String::new(),
        probe: Vec::new(),
    }
}

pub fn spec(name: &str) -> VolumeSpec {
    VolumeSpec {
        name: name.into(),
        store: String::new(),
        capacity: 0,
        inodes: 0,
        partitions: 0,
        replicas: 0,
        labels: Vec::new(),
    }
}

pub fn session_request(volume: &str, mount: u128) -> SessionRequest {
    SessionRequest {
        volume: volume.into(),
        mount: fusefs_types::MountId(mount),
        session: SessionId(0),
        token: fusefs_types::Token::default(),
        client: "test".into(),
        read_only: false,
    }
}
