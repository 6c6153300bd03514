//! Tests that need this crate's insides: openraft's storage conformance suite, leases, checkpoints.

use crate::{
    api::{Components, Frozen, GroupSpec, LogPos, Machine, Settings, Stop},
    codec,
    disk::{Disk, SimDisk},
    host::Host,
    log::{Log, format::Key},
    machine::{Cell, Sm},
    net::{MemNet, MemNetSettings, PeerAnswer, PeerBody, PeerHandler, PeerRequest},
    raft::{
        AppendReply, AppendRequest, Entry, Membership, PeerNode, StorageError, Types, Vote, VoteReply, VoteRequest,
    },
    store::LogStore,
};
use bytes::Bytes;
use fusefs_types::{Clock, ClusterId, NodeId, PartitionId, ReplicaId, Rng, cluster::Member};
use openraft::{
    EntryPayload,
    storage::RaftLogStorage,
    testing::{StoreBuilder, Suite},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    sync::Arc,
    time::Duration,
};

#[derive(Clone, Default)]
struct Nothing;

impl Machine for Nothing {
    type Reply = ();
    fn apply(&mut self, _: LogPos, _: &[u8]) -> Result<(), Stop> {
        Ok(())
    }
    fn freeze(&self) -> Box<dyn Frozen> {
        Box::new(Nothing)
    }
    fn restore(&mut self, from: &mut dyn Read) -> std::io::Result<()> {
        let mut rest = Vec::new();
        from.read_to_end(&mut rest)?;
        Ok(())
    }
}

impl Frozen for Nothing {
    fn write_to(&self, out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(b"nothing")
    }
}

struct Still;

impl Clock for Still {
    fn wall_ns(&self) -> u64 {
        1
    }
    fn boot_ns(&self) -> u64 {
        1
    }
}

impl Rng for Still {
    fn next_u64(&self) -> u64 {
        7
    }
}

fn member(n: u64) -> Member {
    Member { replica: ReplicaId(n), node: NodeId(u128::from(n)), addr: format!("n{n}") }
}

fn spec(replica: u64) -> GroupSpec {
    let members = (1..=3).map(member).collect();
    GroupSpec { group: PartitionId(1), replica: ReplicaId(replica), members, label: Bytes::new() }
}

struct Builder;

impl StoreBuilder<Types, LogStore, Sm<Nothing>, ()> for Builder {
    async fn build(&self) -> Result<((), LogStore, Sm<Nothing>), StorageError> {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(Duration::ZERO));
        let log = Log::open(Arc::clone(&disk), 1, 1 << 20, true).unwrap();
        let key = Key { group: PartitionId(1), replica: ReplicaId(0) };
        let spec = GroupSpec { replica: ReplicaId(0), ..spec(1) };
        let cell = Cell::load(spec, Arc::new(|_| Nothing), disk, log.clone()).unwrap();
        Ok(((), LogStore::new(log, key, 1), Sm(cell)))
    }
}

#[test]
fn openraft_finds_the_storage_conforming() {
    Suite::test_all(Builder).unwrap();
}

fn run<T>(f: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(f)
}

async fn pause(ms: u64) {
    tokio::time::sleep_until(tokio::time::Instant::now() + Duration::from_millis(ms)).await;
}

async fn open(disk: &SimDisk, node: u64) -> Arc<Host<Nothing>> {
    let net = MemNet::new(1, MemNetSettings::default());
    let components = Components {
        disk: Arc::new(disk.clone()),
        net: net.endpoint(NodeId(u128::from(node))),
        clock: Arc::new(Still),
        rng: Arc::new(Still),
    };
    let mut settings = Settings::new(ClusterId(1), NodeId(u128::from(node)));
    settings.segment_bytes = 64 << 10;
    Host::open(settings, components, Arc::new(|_| Nothing)).await.unwrap()
}

async fn ask(host: &Arc<Host<Nothing>>, to: u64, body: PeerBody) -> PeerAnswer {
    let request = PeerRequest { group: PartitionId(1), to: ReplicaId(to), body };
    host.handle(NodeId(1), request).await.0
}

/// Membership and a first entry of replica 1's term 5.
fn leader_entries() -> AppendRequest {
    let nodes: BTreeMap<u64, PeerNode> = (1..=3).map(|n| (n, PeerNode::from(&member(n)))).collect();
    let membership = Membership::new(vec![BTreeSet::from([1, 2, 3])], nodes);
    let entries = vec![
        Entry { log_id: codec::log_id(0, 0), payload: EntryPayload::Membership(membership) },
        Entry { log_id: codec::log_id(5, 1), payload: EntryPayload::Blank },
    ];
    AppendRequest { vote: Vote::new_committed(5, 1), prev_log_id: None, entries, leader_commit: None }
}

async fn vote(host: &Arc<Host<Nothing>>) -> VoteReply {
    let request = VoteRequest::new(Vote::new(6, 3), Some(codec::log_id(5, 1)));
    match ask(host, 2, PeerBody::Vote(request)).await {
        PeerAnswer::Vote(reply) => reply,
        other => panic!("{other:?}"),
    }
}

/// PROTOCOL 23: the promise not to vote for somebody else while the leader's lease may run survives a restart.
#[test]
fn a_follower_that_restarts_inside_a_lease_keeps_its_promise() {
    run(async {
        let disk = SimDisk::new(Duration::from_micros(100));
        let host = open(&disk, 2).await;
        host.create_group(spec(2)).await.unwrap();
        let answer = ask(&host, 2, PeerBody::Append(leader_entries())).await;
        assert!(matches!(answer, PeerAnswer::Append(AppendReply::Success)), "{answer:?}");
        host.abort();
        let disk = disk.crash(1);
        let host = open(&disk, 2).await;
        pause(100).await;
        assert!(!vote(&host).await.vote_granted, "the vote lease was forgotten");
        let question = crate::net::PreVote { term: 6, last_log: Some(codec::log_id(5, 1)) };
        let answer = ask(&host, 2, PeerBody::PreVote(question.clone())).await;
        assert!(matches!(answer, PeerAnswer::PreVote(false, _)), "{answer:?}");
        pause(600).await;
        let answer = ask(&host, 2, PeerBody::PreVote(question)).await;
        assert!(matches!(answer, PeerAnswer::PreVote(true, _)), "{answer:?}");
        assert!(vote(&host).await.vote_granted);
        host.shutdown().await;
    });
}

/// PROTOCOL 23: a stored leadership of this node itself is demoted.
#[test]
fn a_restarted_leader_is_no_leader() {
    run(async {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(Duration::ZERO));
        let log = Log::open(disk, 1, 1 << 20, true).unwrap();
        let key = Key { group: PartitionId(1), replica: ReplicaId(2) };
        let mut store = LogStore::new(log, key, 3);
        store.save_vote(&Vote::new_committed(5, 2)).await.unwrap();
        assert_eq!(store.read_vote().await.unwrap(), Some(Vote::new(5, 2)));
        store.save_vote(&Vote::new_committed(6, 1)).await.unwrap();
        assert_eq!(store.read_vote().await.unwrap(), Some(Vote::new_committed(6, 1)));
    });
}

/// PROTOCOL 1: a destroyed replica leaves a tombstone and its id is not used again.
#[test]
fn a_destroyed_replica_stays_destroyed() {
    run(async {
        let disk = SimDisk::new(Duration::from_micros(100));
        let host = open(&disk, 2).await;
        host.create_group(spec(2)).await.unwrap();
        host.create_group(spec(2)).await.unwrap();
        host.destroy_group(PartitionId(1), ReplicaId(2)).await.unwrap();
        host.destroy_group(PartitionId(1), ReplicaId(2)).await.unwrap();
        host.abort();
        let host = open(&disk.crash(4), 2).await;
        assert!(host.groups().is_empty());
        let again = host.create_group(spec(2)).await;
        assert!(matches!(again, Err(crate::api::HostError::Destroyed(..))));
        let answer = ask(&host, 2, PeerBody::Append(leader_entries())).await;
        assert!(matches!(answer, PeerAnswer::Refused(_)), "{answer:?}");
        host.shutdown().await;
    });
}

proptest::proptest! {
    /// Random bytes to every decoder: an error, never a panic.
    #[test]
    fn decoders_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), kind in 0..8u8) {
        let mut framed = vec![codec::VERSION, kind];
        framed.extend(&bytes);
        for candidate in [bytes.clone(), framed] {
            let candidate = Bytes::from(candidate);
            let _ = crate::net::codec::decode_request(1, 1, candidate.clone());
            let _ = crate::net::codec::decode_reply(candidate.clone());
            let _ = crate::log::format::get_state(candidate.clone());
            let _ = crate::log::format::get_record(0, &mut candidate.clone());
            let _ = codec::get_entry(&mut codec::Reader(candidate.clone()));
        }
    }
}
