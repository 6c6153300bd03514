//! Single rules, by example.

use fusefs_cluster_state::{ClusterState, Command, Outcome, command::*, record::SweepRound};
use fusefs_types::{cluster::*, *};

fn ready() -> ClusterState {
    let mut s = ClusterState::new();
    let node =
        NodeRecord { id: NodeId(1), addr: "h:1".into(), host: String::new(), capacity: 0, memory: 0, feature_level: 1 };
    let store = StoreRecord {
        id: StoreId(1),
        name: "st".into(),
        kind: StoreKind::Memory,
        endpoint: String::new(),
        region: String::new(),
        bucket: String::new(),
        prefix: String::new(),
        path_style: false,
        credential: String::new(),
        probe: vec![],
    };
    let spec = VolumeSpec {
        name: "vol".into(),
        store: "st".into(),
        capacity: 0,
        inodes: 0,
        partitions: 2,
        replicas: 1,
        labels: vec![],
    };
    for c in [
        Command::Init(ClusterId(7)),
        Command::RegisterNode(node),
        Command::ReserveStore,
        Command::AddStore(store),
        Command::CreateVolume(CreateVolume {
            spec,
            placement: vec![vec![NodeId(1)]; 2],
            redundancy: String::new(),
            hash_key: [0; 16],
            at_ns: 1,
        }),
        Command::VolumeReady(VolumeId(1)),
    ] {
        s.apply(&c).unwrap();
    }
    s
}

fn open(session: u128, mount: u128) -> Command {
    Command::OpenSession(OpenSession {
        volume: "vol".into(),
        session: SessionId(session),
        resume: false,
        mount: MountId(mount),
        token: Token::default(),
        client: "c".into(),
        read_only: false,
        at_ns: 1,
    })
}

fn end(session: u128, token: Option<Token>, leftovers: u64) -> Command {
    Command::EndSession(EndSession { session: SessionId(session), token, leftovers, at_ns: 2 })
}

#[test]
fn the_first_name_of_the_cluster_stays() {
    let mut s = ready();
    assert_eq!(s.apply(&Command::Init(ClusterId(8))), Ok(Outcome::Cluster(ClusterId(7))));
}

#[test]
fn session_ids_must_be_fresh() {
    let mut s = ready();
    s.apply(&open(5, 1)).unwrap();
    assert!(s.apply(&open(5, 2)).is_err());
    assert!(s.apply(&open(0, 2)).is_err());
    assert!(s.apply(&open(1 << 127, 2)).is_err(), "the top bit belongs to metanodes");
    s.apply(&end(5, None, 0)).unwrap();
    assert_eq!(s.sweeps().count(), 1);
    assert!(s.apply(&open(5, 2)).is_err(), "its objects are still to be swept");
}

#[test]
fn sweeps_have_two_rounds_and_clean_closes_none() {
    let mut s = ready();
    s.apply(&open(5, 1)).unwrap();
    s.apply(&end(5, Some(Token { attach: 1, ..Token::default() }), 0)).unwrap();
    assert_eq!((s.sessions().count(), s.sweeps().count()), (0, 0));
    s.apply(&open(6, 1)).unwrap();
    s.apply(&end(6, None, 0)).unwrap();
    let done = |round| Command::SweepDone((SessionId(6), round));
    s.apply(&done(SweepRound::Second)).unwrap();
    assert_eq!(s.sweeps().next().map(|x| x.round), Some(SweepRound::First), "the second cannot come first");
    s.apply(&done(SweepRound::First)).unwrap();
    s.apply(&done(SweepRound::First)).unwrap();
    assert_eq!(s.sweeps().next().map(|x| x.round), Some(SweepRound::Second));
    s.apply(&done(SweepRound::Second)).unwrap();
    assert_eq!(s.sweeps().count(), 0);
}

#[test]
fn a_grant_that_has_not_arrived_is_not_granted_twice() {
    let mut s = ready();
    let first = s.apply(&Command::GrantRange(PartitionId(1))).unwrap();
    assert_eq!(s.apply(&Command::GrantRange(PartitionId(1))), Ok(first.clone()));
    let Outcome::Range(range, generation) = first else { panic!() };
    assert_eq!(range, KeyRange::inos(2 << 40, 3 << 40));
    let grant = fusefs_cluster_state::record::Grant { range, generation };
    s.apply(&Command::RangeDelivered((PartitionId(1), grant))).unwrap();
    let next = s.apply(&Command::GrantRange(PartitionId(1)));
    assert_eq!(next, Ok(Outcome::Range(KeyRange::inos(3 << 40, 4 << 40), generation + 1)));
}

#[test]
fn attach_generations_grow_and_are_unique_in_a_volume() {
    let mut s = ready();
    let bump = |s: &mut ClusterState, node: &str| s.apply(&Command::BumpAttach((VolumeId(1), node.into()))).unwrap();
    assert_eq!(bump(&mut s, "a"), Outcome::Generation(1));
    assert_eq!(bump(&mut s, "b"), Outcome::Generation(2));
    assert_eq!(bump(&mut s, "a"), Outcome::Generation(3));
}

fn publish(s: &mut ClusterState, node: &str, mode: AccessMode, read_only: bool) -> Result<Publication, FsError> {
    let spec = PublishSpec { volume: "vol".into(), part: String::new(), node: node.into(), mode, read_only };
    match s.apply(&Command::Publish(spec)) {
        Ok(Outcome::Publication(p)) => Ok(p),
        Ok(other) => panic!("{other:?}"),
        Err(r) => Err(r.error),
    }
}

fn unpublish(s: &mut ClusterState, node: &str) {
    let c = Unpublish { volume: "vol".into(), part: String::new(), node: node.into(), at_ns: 5 };
    assert_eq!(s.apply(&Command::Unpublish(c)), Ok(Outcome::Ok));
}

fn with_nodes() -> ClusterState {
    let mut s = ready();
    for node in ["a", "b"] {
        s.apply(&Command::AddMounter((node.into(), 1))).unwrap();
    }
    s
}

fn open_attached(session: u128, attach: u64) -> Command {
    let Command::OpenSession(c) = open(session, session) else { panic!() };
    Command::OpenSession(OpenSession { token: Token { attach, ..Token::default() }, ..c })
}

#[test]
fn a_volume_for_one_node_moves_only_after_the_fence() {
    let mut s = with_nodes();
    let mode = AccessMode::SingleNodeWriter;
    assert_eq!(publish(&mut s, "nobody", mode, false), Err(FsError::NotFound));
    let a = publish(&mut s, "a", mode, false).unwrap();
    assert_eq!(publish(&mut s, "a", mode, false), Ok(a.clone()), "the same request is the same right");
    assert_eq!(publish(&mut s, "a", mode, true), Err(FsError::Exists));
    assert_eq!(publish(&mut s, "b", mode, false), Err(FsError::InUse));
    assert_eq!(publish(&mut s, "b", AccessMode::MultiNodeMultiWriter, false), Err(FsError::InUse));

    s.apply(&open_attached(1, a.generation)).unwrap();
    s.apply(&open(2, 2)).unwrap(); // mounted by hand, not through a right
    let attach = Attach {
        session: SessionId(1),
        partition: PartitionId(1),
        token: Token { attach: a.generation, incarnation: Incarnation(1) },
    };
    s.apply(&Command::AttachSession(attach)).unwrap();
    let delete = DeleteVolume { name: "vol".into(), force: false, at_ns: 4 };
    assert_eq!(s.apply(&Command::DeleteVolume(delete)).unwrap_err().error, FsError::InUse);

    unpublish(&mut s, "a");
    assert!(s.session(SessionId(1)).unwrap().ending.is_some(), "its session is being ended");
    assert!(s.session(SessionId(2)).unwrap().ending.is_none(), "others go on");
    assert_eq!(publish(&mut s, "b", mode, false), Err(FsError::Conflict), "not before the fence");
    assert_eq!(publish(&mut s, "a", mode, false), Err(FsError::Conflict));
    assert_eq!(s.apply(&open_attached(3, a.generation)).unwrap_err().error, FsError::Fenced);

    let told = SessionEnded { session: SessionId(1), partitions: vec![PartitionId(1)], at_ns: 6 };
    s.apply(&Command::SessionEnded(told)).unwrap();
    let b = publish(&mut s, "b", mode, false).unwrap();
    assert!(b.generation > a.generation);
    assert_eq!(s.apply(&open_attached(3, a.generation)).unwrap_err().error, FsError::Fenced, "the old right is void");
    s.apply(&open_attached(4, b.generation)).unwrap();
    unpublish(&mut s, "");
    assert_eq!(s.publications().count(), 0, "a session without partitions ends at once");
    unpublish(&mut s, "");
}

#[test]
fn one_writer_among_many_nodes() {
    let mut s = with_nodes();
    let mode = AccessMode::MultiNodeSingleWriter;
    assert!(publish(&mut s, "a", mode, false).unwrap().writer);
    assert!(!publish(&mut s, "b", mode, false).unwrap().writer);
    assert!(!publish(&mut s, "b", mode, false).unwrap().writer, "asking again changes nothing");
    unpublish(&mut s, "");
    assert!(!publish(&mut s, "a", AccessMode::MultiNodeReader, false).unwrap().writer);
}

#[test]
fn snapshots_of_version_1_are_read() {
    let mut s = with_nodes();
    let mut bytes = Vec::new();
    s.write_to(&mut bytes).unwrap();
    assert_eq!(ClusterState::read_from(&mut &bytes[..]).unwrap(), s);
    s = ready();
    bytes.clear();
    s.write_to(&mut bytes).unwrap();
    // Version 1 ends before the two maps, which are empty here (4 bytes each).
    let mut old = bytes[..bytes.len() - 12].to_vec();
    old[4] = 1;
    let length = (old.len() - 13) as u64;
    old[5..13].copy_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c(&old);
    old.extend_from_slice(&crc.to_le_bytes());
    assert_eq!(ClusterState::read_from(&mut &old[..]).unwrap(), s);
}

#[test]
fn a_moved_node_makes_a_newer_map() {
    let mut s = ready();
    let before = s.map(VolumeId(1), |_| None).unwrap();
    let moved = NodeRecord { addr: "h2:9".into(), host: String::new(), ..s.nodes().next().unwrap().clone() };
    s.apply(&Command::RegisterNode(moved)).unwrap();
    let after = s.map(VolumeId(1), |_| None).unwrap();
    assert!(after.generation > before.generation);
    assert_eq!(after.partitions[0].members[0].addr, "h2:9");
    assert_eq!(s.nodes().next().unwrap().host, "h2");
}
