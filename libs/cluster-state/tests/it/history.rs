//! Any history: ids are never reused, nothing leaks, rejections change nothing, replicas and snapshots agree.

use fusefs_cluster_state::{
    ClusterState, Command, Outcome, SnapshotError,
    command::*,
    record::{Session, SweepRound},
};
use fusefs_types::{cluster::*, *};
use proptest::{collection::vec, prelude::*, sample::Index};
use std::collections::BTreeSet;

const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];
const MOUNTERS: [&str; 3] = ["a", "b", "c"];

/// A command whose ids are chosen when it is applied, from what exists then.
#[derive(Clone, Debug)]
enum Gen {
    Node(u128, bool),
    Store(usize),
    Create { name: usize, capacity: u64, partitions: u8, replicas: u8, bad: bool },
    Replace(Index, u8),
    Ready(Index),
    Expand(usize, u64),
    Delete(usize, bool),
    Gone(Index),
    Destroyed(Index),
    Grant(Index),
    Delivered(Index),
    Open { name: usize, mount: u128, session: u128, incarnation: u32 },
    Resume { session: Index, name: usize, mount: u128, incarnation: u32 },
    Attach(Index, Index, u32),
    Fence(Index, u32),
    End(Index, Option<u32>, u64),
    Told(Index, Index),
    Swept(Index, bool),
    Bump(Index),
    Mounter(usize),
    Publish { name: usize, node: usize, mode: u8, read_only: bool },
    Unpublish(usize, usize),
    OpenWith { name: usize, session: u128, attach: u64 },
}

fn gen_command() -> impl Strategy<Value = Gen> {
    let ix = any::<Index>;
    prop_oneof![
        3 => (1u128..6, any::<bool>()).prop_map(|(n, b)| Gen::Node(n, b)),
        2 => (0..2usize).prop_map(Gen::Store),
        4 => (0..3usize, 0..2u64, 1..4u8, 1..4u8, prop::bool::weighted(0.1)).prop_map(
            |(name, capacity, partitions, replicas, bad)| Gen::Create { name, capacity, partitions, replicas, bad }
        ),
        1 => (ix(), 1..4u8).prop_map(|(v, r)| Gen::Replace(v, r)),
        3 => ix().prop_map(Gen::Ready),
        1 => (0..3usize, 0..9u64).prop_map(|(n, c)| Gen::Expand(n, c)),
        2 => (0..3usize, any::<bool>()).prop_map(|(n, f)| Gen::Delete(n, f)),
        2 => ix().prop_map(Gen::Gone),
        1 => ix().prop_map(Gen::Destroyed),
        1 => ix().prop_map(Gen::Grant),
        1 => ix().prop_map(Gen::Delivered),
        4 => (0..3usize, 0..4u128, 1..9u128, 0..3u32).prop_map(|(name, mount, session, incarnation)| Gen::Open {
            name, mount, session, incarnation
        }),
        2 => (ix(), 0..3usize, 0..4u128, 0..4u32).prop_map(|(session, name, mount, incarnation)| Gen::Resume {
            session, name, mount, incarnation
        }),
        4 => (ix(), ix(), 0..4u32).prop_map(|(s, p, i)| Gen::Attach(s, p, i)),
        1 => (ix(), 0..4u32).prop_map(|(s, i)| Gen::Fence(s, i)),
        2 => (ix(), prop::option::of(0..4u32), 0..2u64).prop_map(|(s, t, l)| Gen::End(s, t, l)),
        3 => (ix(), ix()).prop_map(|(s, p)| Gen::Told(s, p)),
        1 => (ix(), any::<bool>()).prop_map(|(s, b)| Gen::Swept(s, b)),
        1 => ix().prop_map(Gen::Bump),
        2 => (0..3usize).prop_map(Gen::Mounter),
        4 => (0..3usize, 0..3usize, 1..8u8, any::<bool>()).prop_map(|(name, node, mode, read_only)| Gen::Publish {
            name, node, mode, read_only
        }),
        2 => (0..3usize, 0..4usize).prop_map(|(n, m)| Gen::Unpublish(n, m)),
        2 => (0..3usize, 9..20u128, 0..5u64).prop_map(|(name, session, attach)| Gen::OpenWith { name, session, attach }),
    ]
}

fn pick<T: Copy + Default>(all: impl Iterator<Item = T>, i: &Index) -> T {
    let all: Vec<T> = all.collect();
    if all.is_empty() { T::default() } else { all[i.index(all.len())] }
}

fn token(incarnation: u32) -> Token {
    Token { attach: 0, incarnation: Incarnation(incarnation) }
}

fn placement(s: &ClusterState, partitions: u8, replicas: u8) -> Vec<Vec<NodeId>> {
    let nodes: Vec<NodeId> = s.nodes().map(|n| n.id).take(replicas as usize).collect();
    vec![nodes; partitions as usize]
}

fn store(name: &str, id: u32) -> StoreRecord {
    StoreRecord {
        id: StoreId(id),
        name: name.into(),
        kind: StoreKind::Memory,
        endpoint: String::new(),
        region: String::new(),
        bucket: String::new(),
        prefix: String::new(),
        path_style: false,
        credential: String::new(),
        probe: vec![ProbeCheck { name: "write".into(), ok: true, required: true, detail: "ok".into() }],
    }
}

fn spec(name: &str, capacity: u64, partitions: u8, replicas: u8) -> VolumeSpec {
    VolumeSpec {
        name: name.into(),
        store: "s0".into(),
        capacity,
        inodes: 0,
        partitions: partitions.into(),
        replicas: replicas.into(),
        labels: vec![("k".into(), "v".into())],
    }
}

fn node(id: u128, moved: bool) -> NodeRecord {
    NodeRecord {
        id: NodeId(id),
        addr: format!("h{id}:{}", 7000 + u16::from(moved)),
        host: String::new(),
        capacity: 0,
        memory: 0,
        feature_level: 1,
    }
}

/// The commands of one generated step (usually one).
fn commands(s: &ClusterState, g: &Gen, at_ns: u64) -> Vec<Command> {
    let volume = |i: &Index| pick(s.volumes().map(|v| v.id), i);
    let partition = |i: &Index| pick(s.partitions().map(|p| p.id), i);
    let session = |i: &Index| pick(s.sessions().map(|x| x.id), i);
    vec![match g {
        Gen::Node(id, moved) => Command::RegisterNode(node(*id, *moved)),
        Gen::Store(n) => {
            let reserved = s.stores().map(|x| x.id.0).max().unwrap_or(0) + 1;
            return vec![Command::ReserveStore, Command::AddStore(store(&format!("s{n}"), reserved))];
        }
        Gen::Create { name, capacity, partitions, replicas, bad } => {
            let mut placement = placement(s, *partitions, *replicas);
            if *bad {
                placement[0].push(NodeId(99));
            }
            Command::CreateVolume(CreateVolume {
                spec: spec(NAMES[*name], *capacity, *partitions, *replicas),
                placement,
                redundancy: "words".into(),
                hash_key: [7; 16],
                at_ns,
            })
        }
        Gen::Replace(v, replicas) => {
            let id = volume(v);
            let generation = s.volume(id).map_or(0, |v| v.generation);
            let placement = placement(s, 2, *replicas);
            Command::ReplaceVolume(ReplaceVolume { volume: id, generation, placement, redundancy: "again".into() })
        }
        Gen::Ready(v) => Command::VolumeReady(volume(v)),
        Gen::Expand(n, c) => Command::ExpandVolume(ExpandVolume { name: NAMES[*n].into(), capacity: *c, inodes: 0 }),
        Gen::Delete(n, force) => Command::DeleteVolume(DeleteVolume { name: NAMES[*n].into(), force: *force, at_ns }),
        Gen::Gone(v) => Command::VolumeGone(volume(v)),
        Gen::Destroyed(i) => Command::ReplicasDestroyed(vec![pick(s.doomed().map(|d| d.0), i)]),
        Gen::Grant(i) => Command::GrantRange(partition(i)),
        Gen::Delivered(i) => match s.partitions().find(|p| !p.undelivered.is_empty()) {
            Some(p) => Command::RangeDelivered((p.id, p.undelivered[0])),
            None => Command::GrantRange(partition(i)),
        },
        Gen::Open { name, mount, session, incarnation } => Command::OpenSession(OpenSession {
            volume: NAMES[*name].into(),
            session: SessionId(*session),
            resume: false,
            mount: MountId(*mount),
            token: token(*incarnation),
            client: "c".into(),
            read_only: false,
            at_ns,
        }),
        Gen::Resume { session: i, name, mount, incarnation } => Command::OpenSession(OpenSession {
            volume: NAMES[*name].into(),
            session: session(i),
            resume: true,
            mount: MountId(*mount),
            token: token(*incarnation),
            client: "c".into(),
            read_only: true,
            at_ns,
        }),
        Gen::Attach(i, p, t) => {
            Command::AttachSession(Attach { session: session(i), partition: partition(p), token: token(*t) })
        }
        Gen::Fence(i, t) => Command::Fence(Fence { session: session(i), token: token(*t) }),
        Gen::End(i, t, leftovers) => {
            Command::EndSession(EndSession { session: session(i), token: t.map(token), leftovers: *leftovers, at_ns })
        }
        Gen::Told(i, p) => {
            let id = session(i);
            let pending = s.session(id).and_then(|x| x.ending.clone()).map(|e| e.pending).unwrap_or_default();
            let told = pick(pending.into_iter(), p);
            Command::SessionEnded(SessionEnded { session: id, partitions: vec![told], at_ns })
        }
        Gen::Swept(i, first) => {
            let round = if *first { SweepRound::First } else { SweepRound::Second };
            Command::SweepDone((pick(s.sweeps().map(|x| x.session), i), round))
        }
        Gen::Bump(v) => Command::BumpAttach((volume(v), "node".into())),
        Gen::Mounter(n) => Command::AddMounter((MOUNTERS[*n].into(), at_ns)),
        Gen::Publish { name, node, mode, read_only } => Command::Publish(PublishSpec {
            volume: NAMES[*name].into(),
            part: String::new(),
            node: MOUNTERS[*node].into(),
            mode: AccessMode::from_code(*mode).unwrap(),
            read_only: *read_only,
        }),
        Gen::Unpublish(n, m) => Command::Unpublish(Unpublish {
            volume: NAMES[*n].into(),
            part: String::new(),
            node: MOUNTERS.get(*m).copied().unwrap_or_default().into(),
            at_ns,
        }),
        Gen::OpenWith { name, session, attach } => Command::OpenSession(OpenSession {
            volume: NAMES[*name].into(),
            session: SessionId(*session),
            resume: false,
            mount: MountId(*session),
            token: Token { attach: *attach, incarnation: Incarnation(1) },
            client: "c".into(),
            read_only: false,
            at_ns,
        }),
    }]
}

/// What has ever been seen, to notice reuse and leaks.
#[derive(Default)]
struct Seen {
    volumes: BTreeSet<VolumeId>,
    partitions: BTreeSet<PartitionId>,
    replicas: BTreeSet<ReplicaId>,
    stores: BTreeSet<StoreId>,
    destroyed: BTreeSet<ReplicaId>,
    generation: u64,
}

impl Seen {
    /// New numbers must lie above every old one.
    fn fresh<T: Ord + Copy + std::fmt::Debug>(seen: &mut BTreeSet<T>, now: impl Iterator<Item = T>) {
        for id in now {
            let above = seen.last().is_none_or(|last| id > *last);
            assert!(above || seen.contains(&id), "{id:?} is reused or out of order");
            seen.insert(id);
        }
    }

    fn check(&mut self, s: &ClusterState) {
        Seen::fresh(&mut self.volumes, s.volumes().map(|v| v.id));
        Seen::fresh(&mut self.stores, s.stores().map(|v| v.id));
        Seen::fresh(&mut self.partitions, s.partitions().map(|p| p.id));
        let live: BTreeSet<ReplicaId> = s.partitions().flat_map(|p| p.members.iter().map(|m| m.0)).collect();
        Seen::fresh(&mut self.replicas, live.iter().copied());
        let doomed: BTreeSet<ReplicaId> = s.doomed().map(|d| d.0).collect();
        for r in &self.replicas {
            let places = [live.contains(r), doomed.contains(r), self.destroyed.contains(r)];
            assert_eq!(places.iter().filter(|p| **p).count(), 1, "replica {r} leaked or lives twice: {places:?}");
        }
        check_volumes(s);
        check_sessions(s);
        check_publications(s);
    }
}

/// A volume for one node is with one node, one node writes where one may, and a right that ends still has sessions.
fn check_publications(s: &ClusterState) {
    for p in s.publications() {
        let others = || s.publications_of(p.volume).filter(|o| o.node != p.node);
        assert!(s.volume(p.volume).is_some(), "a right to a volume that is gone");
        assert!(others().all(|o| o.generation != p.generation), "a generation was given twice");
        assert!(!p.mode.single_node() || others().next().is_none(), "two nodes have {p:?}");
        let single = p.mode == AccessMode::MultiNodeSingleWriter && p.writer;
        assert!(!(single && others().any(|o| o.mode == p.mode && o.writer)), "two nodes write {p:?}");
        let open = |x: &&Session| x.volume == p.volume && x.token.attach == p.generation;
        assert!(!p.ending || s.sessions().any(|x| open(&x)), "fenced and still there: {p:?}");
    }
    for x in s.sessions().filter(|x| x.token.attach != 0 && x.ending.is_none()) {
        let mut rights = s.publications_of(x.volume);
        assert!(rights.any(|p| p.generation == x.token.attach && !p.ending), "a session without its right: {x:?}");
    }
}

fn check_volumes(s: &ClusterState) {
    let mut names = BTreeSet::new();
    for v in s.volumes() {
        if v.state != VolumeState::Deleting {
            assert!(names.insert(&v.spec.name), "two live volumes named {}", v.spec.name);
        }
        assert_eq!(
            s.ready_volume(&v.spec.name).map(|r| r.state),
            match v.state {
                VolumeState::Ready => Some(VolumeState::Ready),
                _ => s.ready_volume(&v.spec.name).map(|r| r.state).filter(|_| v.state == VolumeState::Deleting),
            }
        );
        assert!(v.served || v.state != VolumeState::Ready);
        let map = s.map(v.id, |_| None).unwrap();
        assert_eq!(map.partitions.len(), v.partitions.len());
        let ranges: Vec<KeyRange> = map.partitions.iter().flat_map(|p| p.ranges.clone()).collect();
        assert!(RangeSet::new(ranges).is_some(), "overlapping ranges in {}", v.id);
        assert!(map.partitions[0].ranges[0].contains(Ino::ROOT.into()));
        assert!(map.partitions.iter().all(|p| p.members.iter().all(|m| !m.addr.is_empty())));
    }
    let known: BTreeSet<PartitionId> = s.volumes().flat_map(|v| v.partitions.iter().copied()).collect();
    assert_eq!(known, s.partitions().map(|p| p.id).collect(), "a partition without a volume, or the reverse");
    assert!(!known.contains(&PartitionId::MASTER));
}

fn check_sessions(s: &ClusterState) {
    for x in s.sessions() {
        let v = s.volume(x.volume).expect("a session without its volume");
        assert!(x.attached.iter().all(|p| v.partitions.contains(p)));
        match &x.ending {
            None => assert_eq!(v.state, VolumeState::Ready, "an open session of a volume that is not ready"),
            Some(e) => assert!(!e.pending.is_empty() && e.pending.is_subset(&x.attached)),
        }
        assert!(s.sweeps().all(|w| w.session != x.id), "a live session is being swept");
    }
}

/// What one command may and may not change, beyond the invariants.
fn check_step(before: &ClusterState, after: &ClusterState, command: &Command, applied: &Result<Outcome, Reject>) {
    if applied.is_err() {
        assert_eq!(before, after, "a rejection changed something: {command:?}");
    }
    for old in before.sessions() {
        let Some(new) = after.session(old.id) else {
            let ending = matches!(
                command,
                Command::EndSession(_) | Command::SessionEnded(_) | Command::DeleteVolume(_) | Command::Unpublish(_)
            );
            assert!(ending, "a session vanished: {command:?}");
            continue;
        };
        assert!(new.token >= old.token, "a token went back");
        assert!(old.ending.is_none() || new.ending.is_some(), "an ended session lives again");
        let grown = new.attached.len() > old.attached.len();
        assert!(!grown || old.ending.is_none(), "attached after its end");
    }
    if let (Command::CreateVolume(c), Ok(Outcome::Volume(id))) = (command, applied) {
        let mut again = after.clone();
        assert_eq!(again.apply(command), Ok(Outcome::Volume(*id)), "the same request is the same volume");
        assert_eq!(&again, after);
        let other = VolumeSpec { capacity: c.spec.capacity + 1, ..c.spec.clone() };
        let other = Command::CreateVolume(CreateVolume { spec: other, ..c.clone() });
        assert_eq!(again.apply(&other).unwrap_err().error, FsError::Exists);
    }
}

fn run(gens: &[Gen]) {
    let (mut leader, mut follower, mut seen) = (ClusterState::new(), ClusterState::new(), Seen::default());
    let name = Command::Init(ClusterId(5));
    assert_eq!(leader.apply(&name), follower.apply(&name));
    for (at, g) in (1u64..).zip(gens) {
        for command in commands(&leader, g, at) {
            let before = leader.clone();
            let applied = leader.apply(&command);
            check_step(&before, &leader, &command, &applied);
            // The follower sees what went through the log, and restarts from a snapshot now and then.
            let logged = Command::decode(&command.encode()).expect("a command decodes");
            assert_eq!(logged, command);
            assert_eq!(follower.apply(&logged), applied);
            if let Command::ReplicasDestroyed(r) = &command {
                seen.destroyed.extend(r.iter().filter(|r| before.doomed().any(|d| d.0 == **r)));
            }
            if let Ok(Outcome::Generation(g)) = applied {
                assert!(g > 0);
                seen.generation = seen.generation.max(g);
            }
            seen.check(&leader);
        }
        if at % 16 == 0 {
            let mut bytes = Vec::new();
            follower.write_to(&mut bytes).unwrap();
            follower = ClusterState::read_from(&mut &bytes[..]).unwrap();
        }
        assert_eq!(leader.digest(), follower.digest());
        assert_eq!(leader, follower);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_the_rules(gens in vec(gen_command(), 0..120)) {
        run(&gens);
    }

    #[test]
    fn damaged_snapshots_are_refused(gens in vec(gen_command(), 0..60), at in any::<Index>(), bit in 0..8u8, cut in any::<Index>()) {
        let mut s = ClusterState::new();
        for (t, g) in (1u64..).zip(&gens) {
            for c in commands(&s, g, t) {
                let _ = s.apply(&c);
            }
        }
        let mut bytes = Vec::new();
        s.write_to(&mut bytes).unwrap();
        prop_assert!(ClusterState::read_from(&mut &bytes[..cut.index(bytes.len())]).is_err());
        bytes[at.index(13)] ^= 1 << bit; // header fields too
        prop_assert!(ClusterState::read_from(&mut &bytes[..]).is_err());
        bytes[at.index(13)] ^= 1 << bit;
        let i = at.index(bytes.len());
        bytes[i] ^= 1 << bit;
        prop_assert!(ClusterState::read_from(&mut &bytes[..]).is_err());
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..300), code in 0..24u8) {
        let _ = Command::decode(&bytes);
        let mut framed = vec![1, code];
        framed.extend_from_slice(&bytes);
        if let Ok(command) = Command::decode(&framed) {
            prop_assert_eq!(Command::decode(&command.encode()).unwrap(), command);
        }
        let _ = ClusterState::read_from(&mut &bytes[..]);
    }
}

#[test]
fn newer_snapshots_ask_for_an_upgrade() {
    let mut bytes = Vec::new();
    ClusterState::new().write_to(&mut bytes).unwrap();
    bytes[4] = 3;
    assert!(matches!(ClusterState::read_from(&mut &bytes[..]), Err(SnapshotError::UpgradeNeeded(3))));
}

/// The format on disk: a change of these numbers is a new version, not an edit.
#[test]
fn the_format_is_pinned() {
    let open = Command::OpenSession(OpenSession {
        volume: "ab".into(),
        session: SessionId(1),
        resume: false,
        mount: MountId(2),
        token: token(3),
        client: String::new(),
        read_only: true,
        at_ns: 4,
    });
    let mut want = vec![1, 15, 2, 0, 0, 0, b'a', b'b'];
    want.extend(1u128.to_le_bytes());
    want.push(0);
    want.extend(2u128.to_le_bytes());
    want.extend(0u64.to_le_bytes());
    want.extend(3u32.to_le_bytes());
    want.extend([0, 0, 0, 0, 1]);
    want.extend(4u64.to_le_bytes());
    assert_eq!(open.encode(), want);
    let mut s = ClusterState::new();
    for c in [
        Command::Init(ClusterId(9)),
        Command::RegisterNode(node(1, false)),
        Command::ReserveStore,
        Command::AddStore(store("s0", 1)),
        Command::CreateVolume(CreateVolume {
            spec: spec("alpha", 1, 2, 1),
            placement: vec![vec![NodeId(1)]; 2],
            redundancy: "r".into(),
            hash_key: [3; 16],
            at_ns: 8,
        }),
        Command::VolumeReady(VolumeId(1)),
        open,
    ] {
        let _ = s.apply(&c);
    }
    let mut bytes = Vec::new();
    s.write_to(&mut bytes).unwrap();
    assert_eq!((bytes.len(), s.digest()), (SNAPSHOT_BYTES, SNAPSHOT_DIGEST));
}

const SNAPSHOT_BYTES: usize = 571;
const SNAPSHOT_DIGEST: u64 = 14377813021985723600;
