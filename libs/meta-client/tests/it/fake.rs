//! A scripted cluster behind the `Transport` trait: three masters, three metanodes, two partitions.

use async_trait::async_trait;
use fusefs_meta_client::{CallError, Components, EventStream, MapStream, MetaClient, Settings, Transport};
use fusefs_types::{
    Attr, Clock, ClusterId, FileKind, FsError, Hlc, Incarnation, Ino, KeyRange, MountId, Name, NodeId, PartitionId,
    ReplicaId, Rng, SessionId, StoreId, Time, Token, VolumeId,
    cluster::*,
    ids::OpId,
    ops::*,
    stream::{ClientEvent, ServerBody, ServerEvent},
    txn::{PartReply, TxnMessage},
};
use futures::StreamExt;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;

pub const MASTERS: [&str; 3] = ["m1:1", "m2:1", "m3:1"];
pub const NODES: [&str; 3] = ["n1:1", "n2:1", "n3:1"];

/// What a metanode does with the next call.
#[derive(Clone, Debug)]
pub enum Act {
    /// Executes, but the reply never arrives.
    LoseReply,
    /// Never answers and executes nothing.
    Hang,
    Refuse(Refusal),
}

#[derive(Default)]
pub struct State {
    /// Reason why an address cannot be reached.
    pub down: BTreeMap<String, String>,
    pub master_leader: Option<String>,
    /// Followers name this one.
    pub master_hint: Option<String>,
    pub leaders: BTreeMap<PartitionId, String>,
    /// NotLeader answers carry the leader.
    pub hints: bool,
    pub map: VolumeMap,
    pub script: BTreeMap<String, VecDeque<Act>>,
    pub renewals_fail: Option<FsError>,
    pub renewals: u32,
    /// What a renewal says of the volume's space.
    pub space: Option<VolumeSpace>,
    pub master_calls: Vec<String>,
    /// Everything that reached a metanode: (address, envelope, name).
    pub seen: Vec<(String, Envelope, &'static str)>,
    pub executed: BTreeMap<OpId, u32>,
    pub too_old: Vec<OpId>,
    pub events: BTreeMap<String, mpsc::Sender<Result<ServerEvent, CallError>>>,
    pub opened_streams: u32,
}

pub struct Fake(pub Mutex<State>);

impl Fake {
    pub fn new() -> Arc<Fake> {
        let mut state = State { hints: true, map: map(1), ..State::default() };
        state.master_leader = Some(MASTERS[2].into());
        state.leaders = [(PartitionId(1), NODES[0].to_owned()), (PartitionId(2), NODES[1].to_owned())].into();
        Arc::new(Fake(Mutex::new(state)))
    }
    pub fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock())
    }
    pub fn script(&self, addr: &str, act: Act) {
        self.with(|s| s.script.entry(addr.into()).or_default().push_back(act));
    }

    /// Waits for the end of the world if the script says so.
    async fn arrive(&self, addr: &str, envelope: &Envelope, name: &'static str) -> Result<Option<Act>, CallError> {
        let act = self.with(|s| {
            if let Some(why) = s.down.get(addr) {
                return Err(CallError::unsent(why.clone()));
            }
            s.seen.push((addr.into(), envelope.clone(), name));
            Ok(s.script.get_mut(addr).and_then(VecDeque::pop_front))
        })?;
        tokio::time::sleep_until(Instant::now() + Duration::from_micros(300)).await;
        if matches!(act, Some(Act::Hang)) {
            std::future::pending::<()>().await;
        }
        Ok(act)
    }

    fn owner(&self, addr: &str, key: fusefs_types::RangeKey, generation: u64) -> Result<PartitionId, Refusal> {
        self.with(|s| {
            let owner = s.map.partitions.iter().find(|p| p.ranges.iter().any(|r| r.contains(key))).unwrap();
            if generation < s.map.generation {
                return Err(Refusal { map_generation: s.map.generation, ..FsError::WrongRange.into() });
            }
            match s.leaders.get(&owner.id) {
                Some(l) if l == addr => Ok(owner.id),
                l => Err(Refusal { leader: l.cloned().filter(|_| s.hints), ..FsError::NotLeader.into() }),
            }
        })
    }
}

pub fn map(generation: u64) -> VolumeMap {
    let member = |p: u64, i: usize| Member {
        replica: ReplicaId(p * 10 + i as u64),
        node: NodeId(i as u128 + 1),
        addr: NODES[i].into(),
    };
    let partition = |id: u64, from, to| PartitionInfo {
        id: PartitionId(id),
        volume: VolumeId(5),
        ranges: vec![KeyRange::inos(from, to)],
        members: (0..3).map(|i| member(id, i)).collect(),
        leader: None,
    };
    VolumeMap { volume: VolumeId(5), generation, partitions: vec![partition(1, 1, 1000), partition(2, 1000, 2000)] }
}

pub fn attr(ino: Ino) -> Attr {
    Attr {
        ino,
        kind: FileKind::Regular,
        mode: 0o644,
        uid: 0,
        gid: 0,
        nlink: 1,
        rdev: 0,
        size: 0,
        allocated: 0,
        atime: Time(0),
        mtime: Time(0),
        ctime: Time(0),
        btime: Time(0),
        change: Hlc(0),
        trunc_seq: 0,
        flags: 0,
        project: 0,
        parent: Ino(0),
        has_xattr: false,
    }
}

fn grant(map: VolumeMap) -> SessionGrant {
    SessionGrant {
        cluster: ClusterId(9),
        session: SessionId(77),
        token: Token { attach: 0, incarnation: Incarnation(1) },
        secret: bytes::Bytes::from_static(b"session secret"),
        lease_ms: 20_000,
        volume: VolumeRecord {
            id: VolumeId(5),
            name: "v".into(),
            state: VolumeState::Ready,
            store: StoreId(1),
            capacity: 0,
            inodes: 0,
            replicas: 3,
            hash_key: [0; 16],
            redundancy: String::new(),
            labels: vec![],
            usage: PartitionUsage::default(),
        },
        map,
        store: StoreRecord {
            id: StoreId(1),
            name: "s".into(),
            kind: StoreKind::Memory,
            endpoint: String::new(),
            region: String::new(),
            bucket: String::new(),
            prefix: String::new(),
            path_style: false,
            credential: String::new(),
            probe: vec![],
        },
        credentials: StoreCredentials::default(),
        root: Ino::ROOT,
        credit: (u64::MAX, u64::MAX),
    }
}

#[async_trait]
impl Transport for Fake {
    async fn write(&self, addr: &str, envelope: Envelope, write: &Write) -> Result<Reply<WriteReply>, CallError> {
        let act = self.arrive(addr, &envelope, write.name()).await?;
        let head = ReplyHead { hlc: Hlc(self.with(|s| s.seen.len() as u64)), map_generation: 0 };
        if let Some(Act::Refuse(r)) = act {
            return Ok(Reply { head, result: Err(r) });
        }
        if let Err(r) = self.owner(addr, write.route(), envelope.map_generation) {
            return Ok(Reply { head, result: Err(r) });
        }
        let op = envelope.op.unwrap();
        if self.with(|s| s.too_old.contains(&op)) {
            return Ok(Reply { head, result: Err(FsError::TooOld.into()) });
        }
        self.with(|s| *s.executed.entry(op).or_default() += 1);
        if matches!(act, Some(Act::LoseReply)) {
            return Err(CallError::lost("connection reset"));
        }
        Ok(Reply { head, result: Ok(WriteReply::Attr(attr(write.route().ino))) })
    }

    async fn read(
        &self,
        addr: &str,
        envelope: Envelope,
        partition: PartitionId,
        read: &Read,
    ) -> Result<Reply<ReadReply>, CallError> {
        let act = self.arrive(addr, &envelope, read.name()).await?;
        let head = ReplyHead::default();
        if let Some(Act::Refuse(r)) = act {
            return Ok(Reply { head, result: Err(r) });
        }
        if matches!(read, Read::StatFs) {
            let leads = self.with(|s| s.leaders.get(&partition).is_some_and(|l| l == addr));
            let usage = PartitionUsage { inodes: partition.0 * 100, ..PartitionUsage::default() };
            let result = if leads { Ok(ReadReply::StatFs(usage)) } else { Err(FsError::NotLeader.into()) };
            return Ok(Reply { head, result });
        }
        let owner = self.owner(addr, read.route(), envelope.map_generation);
        Ok(Reply { head, result: owner.map(|_| ReadReply::Attr(attr(read.route().ino))) })
    }

    async fn node(&self, _: &str, _: Envelope, _: &NodeCall) -> Result<Reply<NodeReply>, CallError> {
        Err(CallError::lost("not part of these tests"))
    }
    async fn peer(&self, _: &str, _: Envelope, _: &TxnMessage) -> Result<Reply<PartReply>, CallError> {
        Err(CallError::lost("not part of these tests"))
    }

    async fn master(
        &self,
        addr: &str,
        _: Envelope,
        call: &MasterCall,
    ) -> Result<Result<MasterReply, MasterRefusal>, CallError> {
        tokio::time::sleep_until(Instant::now() + Duration::from_micros(300)).await;
        self.with(|s| {
            if let Some(why) = s.down.get(addr) {
                return Err(CallError::unsent(why.clone()));
            }
            if s.master_leader.as_deref() != Some(addr) {
                let leader = s.master_hint.clone();
                return Ok(Err(MasterRefusal { error: FsError::NotLeader, message: "not the leader".into(), leader }));
            }
            s.master_calls.push(format!("{call:?}").chars().take_while(|c| c.is_alphanumeric()).collect());
            let refuse = |error| Err(MasterRefusal { error, message: "refused".into(), leader: None });
            Ok(match call {
                MasterCall::OpenSession(r) if r.volume != "v" => refuse(FsError::NotFound),
                MasterCall::OpenSession(_) => Ok(MasterReply::Session(Box::new(grant(s.map.clone())))),
                MasterCall::RenewSession(..) => {
                    s.renewals += 1;
                    match s.renewals_fail {
                        Some(error) => refuse(error),
                        None => Ok(MasterReply::Lease(LeaseGrant {
                            ms: 20_000,
                            map_generation: s.map.generation,
                            space: s.space,
                        })),
                    }
                }
                MasterCall::GetMap(_) => Ok(MasterReply::Map(s.map.clone())),
                MasterCall::CloseSession(..) => Ok(MasterReply::Ok),
                _ => refuse(FsError::Invalid),
            })
        })
    }

    async fn events(&self, addr: &str, _: Envelope) -> Result<EventStream, CallError> {
        if let Some(why) = self.with(|s| s.down.get(addr).cloned()) {
            return Err(CallError::unsent(why));
        }
        let (send, mut from_client) = mpsc::channel(16);
        let (to_client, receive) = mpsc::channel(16);
        let _ = to_client.try_send(Ok(ServerEvent { id: 1, body: ServerBody::Hello }));
        self.with(|s| {
            s.events.insert(addr.into(), to_client);
            s.opened_streams += 1;
        });
        let (addr, log) = (addr.to_owned(), CLIENT_EVENTS.with(Arc::clone));
        tokio::spawn(async move {
            while let Some(event) = from_client.recv().await {
                log.lock().push((addr.clone(), event));
            }
        });
        Ok(EventStream { send, receive: ReceiverStream::new(receive).boxed() })
    }

    async fn watch_map(&self, _: &str, _: Envelope, _: VolumeId) -> Result<MapStream, CallError> {
        Err(CallError::lost("no stream here: maps are fetched"))
    }
}

type Log = Arc<Mutex<Vec<(String, ClientEvent)>>>;

thread_local! {
    /// Events that clients of this test sent (one thread per test).
    pub static CLIENT_EVENTS: Log = Log::default();
}

/// Follows paused time; `suspend` adds what only CLOCK_BOOTTIME counts.
pub struct TestClock {
    start: Instant,
    suspended: Mutex<Duration>,
}

impl TestClock {
    pub fn new() -> Arc<TestClock> {
        Arc::new(TestClock { start: Instant::now(), suspended: Mutex::default() })
    }
    pub fn suspend(&self, d: Duration) {
        *self.suspended.lock() += d;
    }
}

impl Clock for TestClock {
    fn wall_ns(&self) -> u64 {
        1_700_000_000_000_000_000 + self.boot_ns()
    }
    fn boot_ns(&self) -> u64 {
        (self.start.elapsed() + *self.suspended.lock()).as_nanos() as u64
    }
}

/// SplitMix64.
pub struct TestRng(Mutex<u64>);

impl Rng for TestRng {
    fn next_u64(&self) -> u64 {
        let mut state = self.0.lock();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 27)
    }
}

pub fn components(fake: &Arc<Fake>, clock: &Arc<TestClock>) -> Components {
    Components { transport: fake.clone(), clock: clock.clone(), rng: Arc::new(TestRng(Mutex::new(1))) }
}

pub fn settings() -> Settings {
    let settings =
        Settings::new(MASTERS.iter().map(|m| (*m).to_owned()).collect(), bytes::Bytes::from_static(b"cluster token"));
    Settings { ack_hold: Duration::ZERO, ..settings }
}

pub fn request(volume: &str) -> SessionRequest {
    SessionRequest {
        volume: volume.into(),
        mount: MountId(3),
        session: SessionId(0),
        token: Token { attach: 0, incarnation: Incarnation(1) },
        client: "test".into(),
        read_only: false,
    }
}

pub async fn connect(fake: &Arc<Fake>) -> Arc<MetaClient> {
    MetaClient::connect(settings(), components(fake, &TestClock::new()), request("v")).await.unwrap()
}

pub fn chmod(ino: u64) -> Write {
    Write::SetAttr(SetAttr { ino: Ino(ino), mode: Some(0o600), ..SetAttr::default() })
}

pub fn lookup(ino: u64) -> Read {
    Read::Lookup { parent: Ino(ino), name: Name::new("x").unwrap() }
}
