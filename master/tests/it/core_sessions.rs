//! Sessions: attach, fence, revoke, expiry, leases over a leader change.

use crate::fake::*;
use fusefs_master::log::Leadership;
use fusefs_types::{FsError, Incarnation, Token, cluster::*};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

fn token(attach: u64, incarnation: u32) -> Token {
    Token { attach, incarnation: Incarnation(incarnation) }
}

async fn pass(d: Duration) {
    sleep_until(Instant::now() + d).await;
}

#[tokio::test(start_paused = true)]
async fn a_repeated_open_is_one_session_and_newer_incarnations_take_over() {
    let rig = Rig::start(&["a"], quick_settings(), None).await;
    rig.store("st").await;
    rig.volume("vol").await;
    let first = rig.session("vol", 7).await;
    assert_eq!(rig.session("vol", 7).await.session, first.session, "the answer was lost; asked again");
    assert_ne!(rig.session("vol", 8).await.session, first.session);
    let resume = |incarnation, mount| {
        MasterCall::OpenSession(SessionRequest {
            session: first.session,
            token: token(0, incarnation),
            ..session_request("vol", mount)
        })
    };
    let MasterReply::Session(g) = rig.ok(resume(2, 9)).await else { panic!() };
    assert_eq!((g.session, g.token), (first.session, token(0, 2)));
    assert_eq!(rig.refused(resume(1, 7)).await.error, FsError::Fenced);
    assert_eq!(rig.refused(resume(2, 10)).await.error, FsError::Fenced, "the same incarnation on another connection");
    let p = g.map.partitions[0].id;
    assert_eq!(rig.refused(MasterCall::AttachSession(g.session, p, token(0, 1))).await.error, FsError::Fenced);
    let attached = MasterCall::AttachSession(g.session, p, token(1, 1));
    assert_eq!(rig.refused(attached.clone()).await.error, FsError::Fenced, "nobody has that right");
    rig.ok(MasterCall::AddMounter("node-a".into())).await;
    let (volume, part, node, mode) = ("vol".into(), String::new(), "node-a".into(), AccessMode::SingleNodeWriter);
    rig.ok(MasterCall::PublishVolume(PublishSpec { volume, part, node, mode, read_only: false })).await;
    assert_eq!(rig.ok(attached).await, MasterReply::Attached(token(1, 1)));
    assert_eq!(rig.refused(MasterCall::RenewSession(g.session, token(0, 2))).await.error, FsError::Fenced);
    assert_eq!(rig.refused(MasterCall::CloseSession(g.session, token(0, 2), 0)).await.error, FsError::Fenced);
    rig.ok(MasterCall::RenewSession(g.session, token(1, 1))).await;
}

#[tokio::test(start_paused = true)]
async fn revoke_answers_when_every_attached_partition_knows() {
    let rig = Rig::start(&["a", "b", "c"], quick_settings(), None).await;
    rig.store("st").await;
    rig.volume("vol").await;
    let g = rig.session("vol", 1).await;
    for p in &g.map.partitions[..2] {
        rig.ok(MasterCall::AttachSession(g.session, p.id, g.token)).await;
    }
    rig.nodes.0.lock().nodes.values_mut().for_each(|n| n.down = true);
    let r = rig.refused(MasterCall::RevokeSession(g.session)).await;
    assert_eq!(r.error, FsError::Unavailable, "partitions could not be told, so it is not fenced: {r:?}");
    let p2 = g.map.partitions[2].id;
    assert_eq!(rig.refused(MasterCall::AttachSession(g.session, p2, g.token)).await.error, FsError::Stale);
    assert_eq!(rig.refused(MasterCall::RenewSession(g.session, g.token)).await.error, FsError::Stale);
    rig.nodes.0.lock().nodes.values_mut().for_each(|n| n.down = false);
    rig.until("the end of the session", |r| r.view(|s| s.sessions().count() == 0)).await;
    let ended = rig.nodes.0.lock().ended.clone();
    for p in &g.map.partitions[..2] {
        assert!(ended.contains(&(p.id, g.session)));
    }
    assert!(!ended.contains(&(p2, g.session)));
}

#[tokio::test(start_paused = true)]
async fn a_clean_close_leaves_nothing_to_sweep() {
    let rig = Rig::start(&["a"], quick_settings(), None).await;
    rig.store("st").await;
    rig.volume("vol").await;
    for leftovers in [0, 3] {
        let g = rig.session("vol", 1).await;
        rig.ok(MasterCall::AttachSession(g.session, g.map.partitions[0].id, g.token)).await;
        rig.ok(MasterCall::CloseSession(g.session, g.token, leftovers)).await;
        rig.ok(MasterCall::CloseSession(g.session, g.token, leftovers)).await; // its answer may have been lost
        rig.until("the end of the session", |r| r.view(|s| s.sessions().count() == 0)).await;
        assert_eq!(rig.view(|s| s.sweeps().count() as u64), leftovers.min(1));
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_expire_and_a_new_leader_first_grants_everyone_a_full_lease() {
    let rig = Rig::start(&["a"], quick_settings(), None).await;
    rig.store("st").await;
    let v = rig.volume("vol").await;
    let g = rig.session("vol", 1).await;
    let leased = || async {
        let MasterReply::Sessions(s) = rig.ok(MasterCall::ListSessions(v.id)).await else { panic!() };
        s.first().map(|s| s.leased)
    };
    pass(Duration::from_secs(19)).await;
    assert_eq!(leased().await, Some(true));
    pass(Duration::from_secs(2)).await;
    assert_eq!(leased().await, Some(false), "the lease is over, the session is not");
    // Another term: leader memory is gone.
    rig.log.set_leadership(Leadership { ready: true, leader: Some("127.0.0.1:7300".into()), term: 2, stopped: None });
    assert_eq!(leased().await, Some(true));
    rig.ok(MasterCall::RenewSession(g.session, g.token)).await;
    pass(Duration::from_secs(50)).await;
    rig.ok(MasterCall::RenewSession(g.session, g.token)).await;
    pass(Duration::from_secs(50)).await;
    assert_eq!(leased().await, Some(false));
    rig.until("expiry", |r| r.view(|s| s.sessions().count() == 0)).await;
    assert_eq!(rig.refused(MasterCall::RenewSession(g.session, g.token)).await.error, FsError::Stale);
}

#[tokio::test(start_paused = true)]
async fn a_master_without_a_leader_says_so_in_time() {
    let rig = Rig::start(&[], quick_settings(), None).await;
    rig.log.set_leadership(Leadership { ready: false, leader: None, term: 1, stopped: None });
    let before = Instant::now();
    let r = rig.refused(MasterCall::ListVolumes).await;
    assert_eq!(r.error, FsError::Unavailable);
    assert!(r.message.contains("leader"), "{r:?}");
    assert!(before.elapsed() <= Duration::from_secs(15));
}
