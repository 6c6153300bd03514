//! A stranger gets nothing, credentials least of all.

use crate::fake::*;
use bytes::Bytes;
use fusefs_types::{FsError, PartitionId, SessionId, Token, VolumeId, auth::ClusterToken, cluster::*, ops::Envelope};

fn every_call(volume: VolumeId, session: SessionId) -> Vec<MasterCall> {
    let t = Token::default();
    vec![
        MasterCall::Register(NodeRecord {
            id: fusefs_types::NodeId(99),
            addr: "evil:1".into(),
            host: String::new(),
            capacity: 0,
            memory: 0,
            feature_level: 1,
        }),
        MasterCall::Heartbeat(Heartbeat {
            node: fusefs_types::NodeId(1),
            memory_used: 0,
            disk_used: 0,
            replicas: vec![],
        }),
        MasterCall::Info,
        MasterCall::AddStore(memory_store("evil")),
        MasterCall::ListStores,
        MasterCall::ProbeStore("st".into()),
        MasterCall::CreateVolume(spec("evil")),
        MasterCall::GetVolume("vol".into()),
        MasterCall::ListVolumes,
        MasterCall::ExpandVolume("vol".into(), 0, 0),
        MasterCall::DeleteVolume("vol".into(), true),
        MasterCall::OpenSession(session_request("vol", 66)),
        MasterCall::AttachSession(session, PartitionId(1), t),
        MasterCall::RevokeSession(session),
        MasterCall::SessionsOf(PartitionId(1)),
        MasterCall::ListSessions(volume),
        MasterCall::StoreAccess(volume),
        MasterCall::AddMounter("evil".into()),
        MasterCall::PublishVolume(publish_spec("vol", "node-a")),
        MasterCall::UnpublishVolume("vol".into(), String::new(), String::new()),
        MasterCall::ListPublications(volume),
        MasterCall::MountToken("vol".into(), "node-a".into(), 1),
        MasterCall::GetMap(volume),
        MasterCall::RenewSession(session, t),
        MasterCall::CloseSession(session, t, 0),
    ]
}

#[tokio::test(start_paused = true)]
async fn strangers_get_nothing_and_sessions_only_their_own() {
    let token = ClusterToken::new(b"a-token-of-this-cluster").unwrap();
    let rig = Rig::start(&["a"], quick_settings(), Some(token.clone())).await;
    rig.store("st").await;
    let v = rig.volume("vol").await;
    let (mine, other) = (rig.session("vol", 1).await, rig.session("vol", 2).await);
    let digest = rig.view(|s| s.digest());
    let wrong = [
        Envelope::default(),
        Envelope { credential: Bytes::from_static(b"a-token-of-this-clusteR"), ..Envelope::default() },
        Envelope { credential: mine.secret.clone(), session: other.session, volume: v.id, ..Envelope::default() },
        Envelope { credential: mine.secret.clone(), ..Envelope::default() },
    ];
    for stranger in &wrong {
        for call in every_call(v.id, mine.session) {
            let r = rig.core.call(stranger.clone(), call.clone(), 0).await;
            assert_eq!(r.as_ref().unwrap_err().error, FsError::Unauthenticated, "{call:?}: {r:?}");
        }
    }
    let own = Envelope { credential: mine.secret.clone(), session: mine.session, volume: v.id, ..Envelope::default() };
    for call in every_call(v.id, other.session).into_iter().chain([MasterCall::GetMap(VolumeId(v.id.0 + 1))]) {
        if call == MasterCall::GetMap(v.id) {
            continue;
        }
        let r = rig.core.call(own.clone(), call.clone(), 0).await;
        assert_eq!(r.as_ref().unwrap_err().error, FsError::Unauthenticated, "{call:?}: {r:?}");
    }
    assert_eq!(rig.view(|s| s.digest()), digest, "nothing was changed");
    for call in [
        MasterCall::GetMap(v.id),
        MasterCall::RenewSession(mine.session, mine.token),
        MasterCall::CloseSession(mine.session, mine.token, 0),
    ] {
        rig.core.call(own.clone(), call.clone(), 0).await.unwrap_or_else(|e| panic!("{call:?}: {e:?}"));
    }
    let orders = rig.nodes.0.lock().credentials.clone();
    assert!(!orders.is_empty() && orders.iter().all(|c| *c == token.credential()));
}

fn publish_spec(volume: &str, node: &str) -> PublishSpec {
    let (volume, node) = (volume.into(), node.into());
    PublishSpec { volume, part: String::new(), node, mode: AccessMode::MultiNodeMultiWriter, read_only: false }
}

/// Attaches `volume` to `node`; generation and mount token.
async fn attached(rig: &Rig, volume: &str, node: &str, read_only: bool) -> (u64, Bytes) {
    rig.ok(MasterCall::AddMounter(node.into())).await;
    let spec = PublishSpec { read_only, ..publish_spec(volume, node) };
    let MasterReply::Published(p) = rig.ok(MasterCall::PublishVolume(spec)).await else { panic!("no publication") };
    let ask = MasterCall::MountToken(volume.into(), node.into(), p.generation);
    let MasterReply::MountToken(token) = rig.ok(ask).await else { panic!("no mount token") };
    (p.generation, token)
}

/// Opens a session of `volume` under an attach generation with nothing but `credential`.
async fn open(
    rig: &Rig,
    credential: &Bytes,
    change: impl FnOnce(&mut SessionRequest),
) -> Result<SessionGrant, FsError> {
    let mut request = session_request("vol", 500);
    change(&mut request);
    let envelope = Envelope { credential: credential.clone(), ..Envelope::default() };
    match rig.core.call(envelope, MasterCall::OpenSession(request), 0).await {
        Ok(MasterReply::Session(grant)) => Ok(*grant),
        Ok(other) => panic!("{other:?}"),
        Err(refusal) => Err(refusal.error),
    }
}

#[tokio::test(start_paused = true)]
async fn a_mount_token_opens_sessions_of_its_attachment_and_nothing_else() {
    let token = ClusterToken::new(b"a-token-of-this-cluster").unwrap();
    let rig = Rig::start(&["a"], quick_settings(), Some(token)).await;
    rig.store("st").await;
    let v = rig.volume("vol").await;
    rig.volume("other").await;
    let (generation, mount) = attached(&rig, "vol", "node-a", false).await;
    let (reading, reader) = attached(&rig, "vol", "node-b", true).await;
    let (_, elsewhere) = attached(&rig, "other", "node-a", false).await;
    let with = |attach| Token { attach, ..Token::default() };

    // Nothing else.
    let mine = open(&rig, &mount, |r| r.token = with(generation)).await.unwrap();
    let digest = rig.view(|s| s.digest());
    for credential in [&mount, &elsewhere] {
        for (session, volume) in [(SessionId(0), VolumeId(0)), (mine.session, v.id)] {
            let envelope = Envelope { credential: credential.clone(), session, volume, ..Envelope::default() };
            for call in every_call(v.id, mine.session) {
                let r = rig.core.call(envelope.clone(), call.clone(), 0).await;
                assert_eq!(r.as_ref().unwrap_err().error, FsError::Unauthenticated, "{call:?}: {r:?}");
            }
        }
    }

    // No other volume, generation, right or session; no forged token.
    let denied = Err(FsError::Unauthenticated);
    assert_eq!(open(&rig, &mount, |_| {}).await.map(drop), denied);
    assert_eq!(open(&rig, &mount, |r| r.token = with(generation + 7)).await.map(drop), denied);
    assert_eq!(open(&rig, &mount, |r| r.token = with(reading)).await.map(drop), denied);
    let other = |r: &mut SessionRequest| (r.volume, r.token) = ("other".into(), with(generation));
    assert_eq!(open(&rig, &mount, other).await.map(drop), denied);
    assert_eq!(open(&rig, &reader, |r| r.token = with(reading)).await.map(drop), denied, "it may only read");
    let taken_over = |r: &mut SessionRequest| {
        (r.session, r.read_only) = (mine.session, true);
        r.token = Token { attach: reading, incarnation: fusefs_types::Incarnation(9) };
    };
    assert_eq!(open(&rig, &reader, taken_over).await.map(drop), denied, "another node's session");
    let same_mount = |r: &mut SessionRequest| (r.token, r.read_only) = (with(reading), true);
    assert_eq!(open(&rig, &reader, same_mount).await.map(drop), denied, "another node's kernel connection");
    let mut forged = mount.to_vec();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(open(&rig, &forged.into(), |r| r.token = with(generation)).await.map(drop), denied);
    assert_eq!(rig.view(|s| s.digest()), digest, "nothing was changed");

    // Its own: again, resumed, with the session's secret from there on.
    let read = |r: &mut SessionRequest| (r.mount.0, r.token, r.read_only) = (501, with(reading), true);
    open(&rig, &reader, read).await.unwrap();
    let next = Token { attach: generation, incarnation: fusefs_types::Incarnation(2) };
    let again = open(&rig, &mount, |r| (r.session, r.token) = (mine.session, next)).await.unwrap();
    assert_eq!((again.session, again.token), (mine.session, next));
    let own = Envelope { credential: again.secret, session: mine.session, volume: v.id, ..Envelope::default() };
    rig.core.call(own, MasterCall::RenewSession(mine.session, next), 0).await.unwrap();

    // A client cannot move its session to another right, whatever token it names to a metanode.
    let p = mine.map.partitions[0].id;
    for (attach, moved) in [(generation, false), (reading, true), (0, true)] {
        let call = MasterCall::AttachSession(mine.session, p, Token { attach, ..next });
        let answer = rig.call(call).await;
        assert_eq!(answer.as_ref().err().map(|r| r.error), moved.then_some(FsError::Fenced), "{attach}: {answer:?}");
    }

    // Over with the attachment.
    let withdraw = MasterCall::UnpublishVolume("vol".into(), String::new(), "node-a".into());
    rig.ok(withdraw).await;
    assert_eq!(open(&rig, &mount, |r| r.token = with(generation)).await.map(drop), Err(FsError::Fenced));
    let gone = rig.refused(MasterCall::MountToken("vol".into(), "node-a".into(), generation)).await;
    assert_eq!(gone.error, FsError::Fenced);
    let (fresh, _) = attached(&rig, "vol", "node-a", false).await;
    assert!(fresh > generation);
    assert_eq!(open(&rig, &mount, |r| r.token = with(generation)).await.map(drop), Err(FsError::Fenced));
    assert_eq!(open(&rig, &mount, |r| r.token = with(fresh)).await.map(drop), denied);
}

#[tokio::test(start_paused = true)]
async fn another_clusters_client_is_refused() {
    let rig = Rig::start(&["a"], quick_settings(), None).await;
    let wrong = Envelope { cluster: fusefs_types::ClusterId(1), ..Envelope::default() };
    let r = rig.core.call(wrong, MasterCall::ListVolumes, 0).await.unwrap_err();
    assert_eq!(r.error, FsError::WrongCluster);
}
