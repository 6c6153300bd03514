//! The client against a scripted cluster, under paused time.

mod fake;
mod grpc;

use fake::*;
use fusefs_meta_client::{Holders, MasterClient, MetaClient, Settings};
use fusefs_types::{
    FsError, Ino, KeyRange, PartitionId,
    cluster::{MasterCall, VolumeSpace},
    ids::{OpId, Origin},
    ops::{PartitionUsage, Read, ReadReply, Refusal},
    stream::{ClientBody, ServerBody, ServerEvent},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

async fn advance(d: Duration) {
    tokio::time::sleep_until(Instant::now() + d).await;
}

/// Lets background tasks come to rest.
async fn settle() {
    advance(Duration::from_millis(20)).await;
}

#[tokio::test(start_paused = true)]
async fn masters_in_any_order_and_the_leader_is_followed() {
    let fake = Fake::new();
    fake.with(|s| {
        s.down.insert(MASTERS[0].into(), "connection refused".into());
        s.master_hint = Some(MASTERS[2].into());
    });
    let begin = Instant::now();
    let client = connect(&fake).await;
    assert!(begin.elapsed() < Duration::from_millis(50), "took {:?}", begin.elapsed());
    assert_eq!(client.grant().volume.name, "v");
    assert!(client.lease_valid() && !client.ended());
}

#[tokio::test(start_paused = true)]
async fn nobody_answers_names_every_address_and_why() {
    let fake = Fake::new();
    fake.with(|s| {
        s.down.insert(MASTERS[0].into(), "connection refused".into());
        s.down.insert(MASTERS[1].into(), "no route to host".into());
        s.master_leader = None;
    });
    let begin = Instant::now();
    let e = MetaClient::connect(settings(), components(&fake, &TestClock::new()), request("v")).await.err().unwrap();
    assert!(begin.elapsed() <= Duration::from_secs(15), "{:?}", begin.elapsed());
    for part in ["m1:1: connection refused", "m2:1: no route to host", "m3:1: is not the leader and knows none"] {
        assert!(e.message.contains(part), "{}", e.message);
    }
    let none = MasterClient::new(
        Settings::new(vec![], bytes::Bytes::new()),
        fake.clone(),
        components(&fake, &TestClock::new()).rng,
    );
    assert_eq!(none.call(MasterCall::ListVolumes).await.unwrap_err().error, FsError::Invalid);
}

#[tokio::test(start_paused = true)]
async fn a_refused_session_is_final() {
    let fake = Fake::new();
    let c = components(&fake, &TestClock::new());
    let e = MetaClient::connect(settings(), c, request("nope")).await.err().unwrap();
    assert_eq!(e.error, FsError::NotFound);
}

#[tokio::test(start_paused = true)]
async fn masters_pointing_in_circles_do_not_spin() {
    let fake = Fake::new();
    fake.with(|s| {
        s.master_leader = None;
        s.master_hint = Some(MASTERS[1].into());
    });
    let client = MasterClient::new(settings(), fake.clone(), components(&fake, &TestClock::new()).rng);
    let e = client.call_within(MasterCall::Info, Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(e.error, FsError::Unavailable);
    assert!(e.message.contains("names m2:1"), "{}", e.message);
}

#[tokio::test(start_paused = true)]
async fn one_rpc_per_operation_once_the_leader_is_known() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    client.write(client.fuse_op(2), chmod(2)).await.unwrap();
    client.read(lookup(1500)).await.unwrap();
    let before = client.counters().snapshot();
    for n in 0..10 {
        client.write(client.fuse_op(10 + n * 2), chmod(2)).await.unwrap();
        client.read(lookup(1500)).await.unwrap();
    }
    let after = client.counters().snapshot();
    assert_eq!(after["setattr"] - before["setattr"], 10);
    assert_eq!(after["lookup"] - before["lookup"], 10);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_leader_is_followed_with_the_same_op_id() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    client.write(client.fuse_op(2), chmod(2)).await.unwrap();
    fake.with(|s| {
        s.leaders.insert(PartitionId(1), NODES[2].into());
        s.seen.clear();
    });
    client.write(client.fuse_op(4), chmod(2)).await.unwrap();
    let seen = fake.with(|s| s.seen.iter().map(|(a, e, _)| (a.clone(), e.op)).collect::<Vec<_>>());
    let op = Some(client.fuse_op(4));
    assert_eq!(seen, [(NODES[0].to_owned(), op), (NODES[2].to_owned(), op)]);
}

#[tokio::test(start_paused = true)]
async fn an_election_is_waited_for_without_a_storm() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    client.write(client.fuse_op(2), chmod(2)).await.unwrap();
    fake.with(|s| {
        s.down.insert(NODES[0].into(), "connection reset".into());
        s.leaders.remove(&PartitionId(1));
        s.seen.clear();
    });
    let (begin, rival) = (Instant::now(), fake.clone());
    let election = async move {
        advance(Duration::from_millis(1500)).await;
        rival.with(|s| s.leaders.insert(PartitionId(1), NODES[1].into()));
    };
    let (result, ()) = tokio::join!(client.write(client.fuse_op(4), chmod(2)), election);
    result.unwrap();
    assert!(begin.elapsed() < Duration::from_millis(1900), "{:?}", begin.elapsed());
    let calls = fake.with(|s| s.seen.len());
    assert!(calls < 60, "{calls} calls");
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_asked_for_again_under_the_same_id() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    client.write(client.fuse_op(2), chmod(2)).await.unwrap();
    fake.script(NODES[0], Act::LoseReply);
    fake.script(NODES[0], Act::Hang);
    client.write(client.fuse_op(4), chmod(2)).await.unwrap();
    let executed = fake.with(|s| s.executed.clone());
    assert_eq!(executed.keys().copied().collect::<Vec<_>>(), [client.fuse_op(2), client.fuse_op(4)]);
    assert_eq!(executed[&client.fuse_op(4)], 2, "the partition saw a retry, its reply table answers it");
}

#[tokio::test(start_paused = true)]
async fn wrong_range_fetches_the_map_and_retries_the_same_id() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    client.write(client.fuse_op(2), chmod(500)).await.unwrap();
    fake.with(|s| {
        s.map = map(2);
        s.map.partitions[0].ranges = vec![KeyRange::inos(1, 500)];
        s.map.partitions[1].ranges = vec![KeyRange::inos(500, 2000)];
        s.seen.clear();
    });
    client.write(client.fuse_op(4), chmod(500)).await.unwrap();
    assert_eq!(client.map().generation, 2);
    let seen = fake.with(|s| s.seen.iter().map(|(a, e, _)| (a.clone(), e.op, e.map_generation)).collect::<Vec<_>>());
    let op = Some(client.fuse_op(4));
    assert_eq!(seen.first(), Some(&(NODES[0].to_owned(), op, 1)));
    assert_eq!(seen.last(), Some(&(NODES[1].to_owned(), op, 2)));
    assert_eq!(fake.with(|s| s.executed[&client.fuse_op(4)]), 1);
}

#[tokio::test(start_paused = true)]
async fn an_inode_that_nobody_owns_is_stale_after_a_look_at_the_newest_map() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    assert_eq!(client.read(lookup(1 << 50)).await, Err(FsError::Stale));
    assert!(fake.with(|s| s.master_calls.contains(&"GetMap".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_owner_is_no_verdict_while_no_master_answers() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    fake.with(|s| {
        // The range was granted a moment ago; this client has not heard of it.
        s.map.generation = 2;
        s.map.partitions[1].ranges = vec![KeyRange::inos(500, 1 << 51)];
        s.down = MASTERS.iter().map(|m| ((*m).to_owned(), "cut off".to_owned())).collect();
    });
    let asked = client.clone();
    let write = tokio::spawn(async move { asked.write(asked.fuse_op(2), chmod(1 << 50)).await });
    advance(Duration::from_secs(30)).await;
    assert!(!write.is_finished(), "Stale would fence the whole mount");
    fake.with(|s| s.down.clear());
    assert!(write.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn errors_of_the_file_system_are_final_and_refusals_are_not() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    for error in
        [FsError::Conflict, FsError::Overloaded, FsError::NotAttached, FsError::Unavailable, FsError::ClockSkew]
    {
        fake.script(NODES[0], Act::Refuse(Refusal { backoff_ms: 7, ..error.into() }));
        assert!(client.write(client.next_internal_op(), chmod(2)).await.is_ok(), "{error:?}");
    }
    client.read(lookup(2)).await.unwrap();
    fake.script(NODES[0], Act::Refuse(FsError::NotEmpty.into()));
    assert_eq!(client.write(client.next_internal_op(), chmod(2)).await, Err(FsError::NotEmpty));
}

#[tokio::test(start_paused = true)]
async fn operations_wait_for_ever_unless_told_otherwise() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    let all_down = |why: &str| {
        fake.with(|s| s.down = NODES.iter().map(|n| ((*n).to_owned(), why.to_owned())).collect());
    };
    all_down("no route");
    let op = client.fuse_op(2);
    let waiting = client.write(op, chmod(2));
    tokio::pin!(waiting);
    assert!(tokio::time::timeout(Duration::from_secs(600), &mut waiting).await.is_err());
    fake.with(|s| s.down.clear());
    waiting.await.unwrap();

    let bounded = Settings { io_timeout: Some(Duration::from_secs(9)), ..settings() };
    let client = MetaClient::connect(bounded, components(&fake, &TestClock::new()), request("v")).await.unwrap();
    all_down("no route");
    let begin = Instant::now();
    assert_eq!(client.write(client.fuse_op(4), chmod(2)).await, Err(FsError::Unavailable));
    assert_eq!(begin.elapsed().as_secs(), 9);
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_kept_lost_and_won_back() {
    let (fake, clock) = (Fake::new(), TestClock::new());
    let client = MetaClient::connect(settings(), components(&fake, &clock), request("v")).await.unwrap();
    advance(Duration::from_secs(120)).await;
    assert!(client.lease_valid());
    let renewals = fake.with(|s| s.renewals);
    assert!((17..=19).contains(&renewals), "{renewals} renewals in 120 s");

    // The volume's space comes with each renewal; a master that says nothing of it changes nothing.
    assert_eq!(client.space(), client.grant().volume.space());
    let space = |capacity| VolumeSpace { capacity, inodes: 9, used: 3 };
    for (said, shown) in [(Some(space(7)), space(7)), (None, space(7)), (Some(space(0)), space(0))] {
        fake.with(|s| s.space = said);
        advance(Duration::from_secs(7)).await;
        assert_eq!(client.space(), shown);
    }
    // Asked ahead of time, at most every so often.
    let before = fake.with(|s| std::mem::replace(&mut s.renewals, 0));
    assert!(before > 0 && client.recount() && !client.recount());
    fake.with(|s| s.space = Some(space(8)));
    advance(Duration::from_millis(250)).await;
    assert_eq!(client.space(), space(8));
    assert!(client.recount());
    advance(Duration::from_millis(10)).await;
    assert_eq!(fake.with(|s| s.renewals), 2);

    fake.with(|s| s.master_leader = None);
    advance(Duration::from_secs(21)).await;
    assert!(!client.lease_valid());
    let waiting = client.wait_lease();
    tokio::pin!(waiting);
    assert!(tokio::time::timeout(Duration::from_secs(60), &mut waiting).await.is_err());
    fake.with(|s| s.master_leader = Some(MASTERS[0].into()));
    let begin = Instant::now();
    waiting.await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(8) && client.lease_valid(), "{:?}", begin.elapsed());

    // The machine slept: only CLOCK_BOOTTIME knows. The first waiter renews at once.
    clock.suspend(Duration::from_secs(3600));
    assert!(!client.lease_valid());
    let begin = Instant::now();
    client.wait_lease().await.unwrap();
    assert!(begin.elapsed() < Duration::from_millis(100), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_ended_session_says_so() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    fake.with(|s| s.renewals_fail = Some(FsError::Stale));
    fake.with(|s| s.leaders.clear());
    // An operation that waits for a leader ends, too.
    assert_eq!(client.write(client.fuse_op(2), chmod(2)).await, Err(FsError::Stale));
    assert!(client.ended() && !client.lease_valid());
    assert_eq!(client.wait_lease().await, Err(FsError::Stale));
    assert_eq!(client.read(lookup(2)).await, Err(FsError::Stale));

    let fake = Fake::new();
    let client = connect(&fake).await;
    fake.script(NODES[0], Act::Refuse(FsError::Fenced.into()));
    assert_eq!(client.write(client.fuse_op(2), chmod(2)).await, Err(FsError::Stale));
    assert!(client.ended());
}

#[tokio::test(start_paused = true)]
async fn only_replies_that_reached_the_caller_are_acknowledged() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    let slow = client.fuse_op(301);
    client.write(slow, chmod(2)).await.unwrap();
    for n in 1..=400 {
        let op = client.fuse_op(n * 2);
        client.write(op, chmod(2)).await.unwrap();
        client.ack(op);
    }
    let sent: Vec<_> = fake.with(|s| s.seen.iter().flat_map(|(_, e, _)| e.acks.clone()).collect());
    assert!(!sent.is_empty());
    assert!(sent.iter().all(|r| r.last < 301), "{sent:?}");
    assert_eq!(sent.iter().map(|r| r.last).max(), Some(300), "all below the outstanding one");
    assert!(sent.windows(2).all(|w| w[0].last < w[1].first), "each once: {sent:?}");
    client.ack(slow);
    for n in 401..=600 {
        let op = client.fuse_op(n * 2);
        client.write(op, chmod(2)).await.unwrap();
        client.ack(op);
    }
    let last = fake.with(|s| s.seen.iter().flat_map(|(_, e, _)| e.acks.clone()).map(|r| r.last).max());
    assert!(last > Some(1000), "{last:?}");
    let other = fake.with(|s| s.seen.len());
    client.write(client.fuse_op(5000), chmod(1500)).await.unwrap();
    assert!(fake.with(|s| s.seen[other..].iter().all(|(_, e, _)| e.acks.is_empty())), "nothing is stored there");
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_of_a_lost_call_are_sent_again() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    for n in 1..200 {
        let op = client.fuse_op(n * 2);
        // Every carrier of acknowledgements is lost once.
        let carries = fake.with(|s| s.seen.last().is_some_and(|(_, e, _)| !e.acks.is_empty()));
        if carries {
            fake.script(NODES[0], Act::Refuse(FsError::Conflict.into()));
        }
        client.write(op, chmod(2)).await.unwrap();
        client.ack(op);
    }
    let mut floor = 0;
    let answered = fake.with(|s| s.seen.clone());
    for range in answered.iter().flat_map(|(_, e, _)| &e.acks) {
        assert!(range.first <= floor + 1, "a gap before {range:?}");
        floor = floor.max(range.last);
    }
    assert!(floor > 200);
}

#[tokio::test(start_paused = true)]
async fn a_number_acknowledged_too_early_runs_under_another_id() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    fake.with(|s| s.too_old = vec![client.fuse_op(2), client.fuse_op(4)]);
    client.write(client.fuse_op(2), chmod(2)).await.unwrap();
    let executed: Vec<OpId> = fake.with(|s| s.executed.keys().copied().collect());
    assert_eq!(executed.len(), 1);
    assert_eq!(executed[0].origin, Origin::Internal);
    // The same operation again (its caller repeats it): the same substitute.
    client.write(client.fuse_op(2), chmod(2)).await.unwrap();
    assert_eq!(fake.with(|s| s.executed.len()), 1);
    // An attempt that may have been executed forbids it.
    fake.script(NODES[0], Act::Refuse(FsError::Unavailable.into()));
    assert_eq!(client.write(client.fuse_op(4), chmod(2)).await, Err(FsError::TooOld));
}

#[tokio::test(start_paused = true)]
async fn statfs_is_the_sum_over_partitions() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    let want = PartitionUsage { inodes: 300, ..PartitionUsage::default() };
    assert_eq!(client.read(Read::StatFs).await, Ok(ReadReply::StatFs(want)));
}

/// Holds the odd inodes, and notes what it is told.
#[derive(Default)]
struct Odd(parking_lot::Mutex<Vec<String>>);

impl Holders for Odd {
    fn holds(&self, ino: Ino) -> bool {
        ino.0 % 2 == 1
    }
    fn broken(&self, addr: &str) {
        self.0.lock().push(format!("broken {addr}"));
    }
    fn locks_freed(&self, inos: &[Ino]) {
        self.0.lock().push(format!("freed {}", inos.iter().map(|i| i.0.to_string()).collect::<Vec<_>>().join(",")));
    }
}

#[tokio::test(start_paused = true)]
async fn freed_locks_and_broken_streams_are_told() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    let odd = Arc::new(Odd::default());
    client.set_holders(odd.clone());
    settle().await;
    let body = ServerBody::LocksFreed { group: PartitionId(1), inos: vec![Ino(7), Ino(9)] };
    fake.with(|s| s.events[NODES[0]].clone()).try_send(Ok(ServerEvent { id: 2, body })).unwrap();
    settle().await;
    fake.with(|s| s.events.remove(NODES[0]));
    settle().await;
    assert_eq!(*odd.0.lock(), ["freed 7,9".to_owned(), format!("broken {}", NODES[0])]);
}

#[tokio::test(start_paused = true)]
async fn holder_questions_are_answered_and_broken_streams_come_back() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    client.set_holders(Arc::new(Odd::default()));
    settle().await;
    assert_eq!(fake.with(|s| s.opened_streams), 3, "one per metanode");
    let ask = |id| {
        let body = ServerBody::HoldersAsked { group: PartitionId(1), term: 4, inos: (1..=4).map(Ino).collect() };
        fake.with(|s| s.events[NODES[0]].clone()).try_send(Ok(ServerEvent { id, body })).unwrap();
    };
    ask(2);
    settle().await;
    let log = CLIENT_EVENTS.with(Arc::clone);
    let (addr, event) = log.lock().last().cloned().unwrap();
    assert_eq!((addr.as_str(), event.ack), (NODES[0], 2));
    let want = ClientBody::Holders {
        group: PartitionId(1),
        term: 4,
        asked: (1..=4).map(Ino).collect(),
        held: vec![Ino(1), Ino(3)],
    };
    assert_eq!(event.body, want);

    fake.with(|s| s.events.remove(NODES[0]));
    advance(Duration::from_secs(1)).await;
    assert_eq!(fake.with(|s| s.opened_streams), 4);
    ask(2);
    fake.with(|s| s.map = map(3));
    fake.with(|s| s.events[NODES[1]].clone())
        .try_send(Ok(ServerEvent { id: 2, body: ServerBody::MapChanged { generation: 3 } }))
        .unwrap();
    settle().await;
    assert_eq!(log.lock().iter().filter(|(_, e)| e.body == want).count(), 2);
    assert_eq!(client.map().generation, 3);
}

#[tokio::test(start_paused = true)]
async fn close_ends_the_session_and_the_background_work() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    client.close(0).await.unwrap();
    assert!(client.ended());
    let calls = fake.with(|s| s.master_calls.len());
    assert_eq!(fake.with(|s| s.master_calls.last().cloned()), Some("CloseSession".to_owned()));
    advance(Duration::from_secs(100)).await;
    assert_eq!(fake.with(|s| s.master_calls.len()), calls);
}

#[tokio::test(start_paused = true)]
async fn envelopes_say_who_speaks() {
    let fake = Fake::new();
    let client = connect(&fake).await;
    for n in 1..4 {
        client.write(client.fuse_op((n * 2) | (1 << 63)), chmod(2)).await.unwrap();
    }
    let seen = fake.with(|s| s.seen.clone());
    let (_, e, _) = seen.last().unwrap();
    assert_eq!((e.cluster.0, e.volume.0, e.session.0, e.map_generation), (9, 5, 77, 1));
    assert_eq!(&e.credential[..], b"session secret");
    assert_eq!(e.op.unwrap().number, 6, "without the resend bit");
    assert!(e.hlc.0 > 0 && e.deadline_ms > 0 && e.feature_level == 1);
    assert!(seen.windows(2).all(|w| w[0].1.trace != w[1].1.trace));
}
