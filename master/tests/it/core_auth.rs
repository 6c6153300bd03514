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

#[tokio::test(start_paused = true)]
async fn another_clusters_client_is_refused() {
    let rig = Rig::start(&["a"], quick_settings(), None).await;
    let wrong = Envelope { cluster: fusefs_types::ClusterId(1), ..Envelope::default() };
    let r = rig.core.call(wrong, MasterCall::ListVolumes, 0).await.unwrap_err();
    assert_eq!(r.error, FsError::WrongCluster);
}
