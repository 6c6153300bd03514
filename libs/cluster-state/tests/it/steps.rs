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
fn attach_generations_grow_per_node() {
    let mut s = ready();
    let bump = |s: &mut ClusterState, node: &str| s.apply(&Command::BumpAttach((VolumeId(1), node.into()))).unwrap();
    assert_eq!(bump(&mut s, "a"), Outcome::Generation(1));
    assert_eq!(bump(&mut s, "b"), Outcome::Generation(1));
    assert_eq!(bump(&mut s, "a"), Outcome::Generation(2));
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
