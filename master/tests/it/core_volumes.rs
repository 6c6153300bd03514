//! Volumes: creation, redundancy, replacement, deletion.

use crate::fake::*;
use bytes::Bytes;
use fusefs_data_path::{PutMode, object};
use fusefs_types::{FsError, Incarnation, Ino, ObjectId, SessionId, cluster::*};

fn map_of(reply: MasterReply) -> VolumeMap {
    match reply {
        MasterReply::Map(m) => m,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_created_once_and_says_its_redundancy() {
    let rig = Rig::start(&["a", "b", "c", "d"], quick_settings(), None).await;
    rig.store("st").await;
    let v = rig.volume("vol").await;
    assert_eq!(
        (v.state, v.replicas, v.redundancy.as_str()),
        (VolumeState::Ready, 3, "3 replicas on 3 hosts: survives 1 node")
    );
    assert_eq!(rig.volume("vol").await.id, v.id, "the same request again");
    let other = VolumeSpec { capacity: 5, ..spec("vol") };
    let r = rig.refused(MasterCall::CreateVolume(other)).await;
    assert_eq!(r.error, FsError::Exists);
    assert!(r.message.contains("capacity 0, not 5"), "{}", r.message);
    let map = map_of(rig.ok(MasterCall::GetMap(v.id)).await);
    assert_eq!(map.partitions.len(), 3);
    assert!(map.partitions[0].ranges[0].contains(Ino::ROOT.into()));
    assert!(!map.partitions[0].ranges[0].contains(Ino(0).into()));
    for p in &map.partitions {
        let hosts: std::collections::BTreeSet<_> = p.members.iter().map(|m| m.addr.split(':').next()).collect();
        assert_eq!(hosts.len(), 3, "{p:?}");
        assert_eq!(p.leader, Some(p.members[0].replica));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_said() {
    let rig = Rig::start(&[], quick_settings(), None).await;
    let r = rig.refused(MasterCall::CreateVolume(spec("vol"))).await;
    assert!(r.message.contains("fusefs store add"), "{r:?}");
    rig.store("st").await;
    let r = rig.refused(MasterCall::CreateVolume(spec("vol"))).await;
    assert!(r.message.contains("no metanode is alive"), "{r:?}");
    let r = rig.refused(MasterCall::CreateVolume(spec("Vol"))).await;
    assert!(r.error == FsError::Invalid && r.message.contains("2 to 63 characters"), "{r:?}");
    let rig = Rig::start(&["a"], quick_settings(), None).await;
    rig.store("st").await;
    let r = rig.refused(MasterCall::CreateVolume(VolumeSpec { replicas: 3, ..spec("vol") })).await;
    assert!(r.error == FsError::Invalid && r.message.contains("only 1 metanode(s) are alive"), "{r:?}");
    assert_eq!(rig.volume("vol").await.redundancy, "1 replica: NO redundancy, losing node a:7401 loses data");
}

#[tokio::test(start_paused = true)]
async fn a_half_created_volume_is_never_visible() {
    // Nodes that registered and send heartbeats but take no orders for a while: creation hangs.
    let settings = fusefs_master::Settings { replace_after_ms: 1 << 40, ..quick_settings() };
    let rig = Rig::start(&["a", "b", "c"], settings, None).await;
    rig.store("st").await;
    rig.until("heartbeats", |r| r.core.leads()).await;
    let create = rig.call(MasterCall::CreateVolume(spec("vol")));
    let watch = async {
        rig.until("the volume's record", |r| r.view(|s| s.live_volume("vol").is_some())).await;
        rig.nodes.0.lock().nodes.values_mut().for_each(|n| n.down = true);
    };
    let (result, ()) = tokio::join!(create, watch);
    let r = result.unwrap_err();
    assert!(r.error == FsError::Unavailable && r.message.contains("still being created"), "{r:?}");
    assert_eq!(rig.refused(MasterCall::GetVolume("vol".into())).await.error, FsError::NotFound);
    assert_eq!(rig.ok(MasterCall::ListVolumes).await, MasterReply::Volumes(vec![]));
    assert_eq!(rig.refused(MasterCall::OpenSession(session_request("vol", 1))).await.error, FsError::NotFound);
    rig.nodes.0.lock().nodes.values_mut().for_each(|n| n.down = false);
    assert_eq!(rig.volume("vol").await.state, VolumeState::Ready, "the same command continues");
    assert_eq!(rig.view(|s| s.volumes().count()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_node_is_replaced_during_creation_and_cleaned_when_it_returns() {
    let rig = Rig::start(&["a", "b", "c", "d"], quick_settings(), None).await;
    rig.store("st").await;
    rig.until("heartbeats", |r| r.core.leads()).await;
    tokio::time::sleep_until(tokio::time::Instant::now() + std::time::Duration::from_secs(1)).await;
    // It was alive a moment ago, so it is chosen; then it dies and never takes its order.
    rig.nodes.0.lock().nodes.get_mut("a:7401").unwrap().down = true;
    let v = match rig.call(MasterCall::CreateVolume(spec("vol"))).await {
        Ok(MasterReply::Volume(v)) => v,
        Err(r) if r.error == FsError::Unavailable => rig.volume("vol").await,
        other => panic!("{other:?}"),
    };
    assert_eq!(v.replicas, 3);
    let members = map_of(rig.ok(MasterCall::GetMap(v.id)).await).partitions;
    assert!(members.iter().all(|p| p.members.iter().all(|m| m.addr != "a:7401")), "{members:?}");
    assert!(rig.view(|s| s.doomed().all(|(_, d)| d.node.0 == 1)), "only the dead node's replicas stay doomed");
    rig.nodes.0.lock().nodes.get_mut("a:7401").unwrap().down = false;
    rig.until("doomed replicas destroyed", |r| r.view(|s| s.doomed().count() == 0)).await;
    let live: usize = rig.nodes.0.lock().nodes.values().map(|n| n.replicas.len()).sum();
    assert_eq!(live, 9, "no replica leaked");
}

#[tokio::test(start_paused = true)]
async fn volumes_only_grow() {
    let rig = Rig::start(&["a"], quick_settings(), None).await;
    rig.store("st").await;
    let s = VolumeSpec { capacity: 100, inodes: 10, ..spec("vol") };
    rig.ok(MasterCall::CreateVolume(s.clone())).await;
    let MasterReply::Volume(v) = rig.ok(MasterCall::ExpandVolume("vol".into(), 200, 10)).await else { panic!() };
    assert_eq!((v.capacity, v.inodes), (200, 10));
    assert_eq!(rig.refused(MasterCall::ExpandVolume("vol".into(), 150, 10)).await.error, FsError::Invalid);
    assert_eq!(rig.refused(MasterCall::ExpandVolume("vol".into(), 200, 9)).await.error, FsError::Invalid);
    let MasterReply::Volume(v) = rig.ok(MasterCall::ExpandVolume("vol".into(), 0, 0)).await else { panic!() };
    assert_eq!((v.capacity, v.inodes), (0, 0));
    assert_eq!(rig.refused(MasterCall::ExpandVolume("vol".into(), 1 << 60, 0)).await.error, FsError::Invalid);
    rig.ok(MasterCall::CreateVolume(s)).await; // the original request is still the same volume
}

#[tokio::test(start_paused = true)]
async fn after_a_deletion_only_the_marker_is_left() {
    let rig = Rig::start(&["a", "b", "c"], quick_settings(), None).await;
    let store = rig.store("st").await;
    let v = rig.volume("vol").await;
    let g = rig.session("vol", 1).await;
    let p = g.map.partitions[0].id;
    rig.ok(MasterCall::AttachSession(g.session, p, g.token)).await;
    let space = object::open(&g.store, &g.credentials).unwrap();
    for counter in 0..2500 {
        let id = ObjectId { session: g.session, incarnation: Incarnation(1), counter };
        space.put(&id.key(), Bytes::from_static(b"x"), PutMode::Any).await.unwrap();
        // Every 5th was never committed.
        if counter % 5 != 0 {
            rig.nodes.0.lock().objects.entry(p).or_default().insert(id);
        }
    }
    let r = rig.refused(MasterCall::DeleteVolume("vol".into(), false)).await;
    assert!(r.error == FsError::InUse && r.message.contains("mounted by 1 client"), "{r:?}");
    rig.ok(MasterCall::DeleteVolume("vol".into(), true)).await;
    assert_eq!(rig.refused(MasterCall::GetVolume("vol".into())).await.error, FsError::NotFound);
    assert_eq!(rig.refused(MasterCall::DeleteVolume("vol".into(), true)).await.error, FsError::NotFound);
    let again = rig.volume("vol").await;
    assert_ne!(again.id, v.id, "a new volume of the same name is another one");
    rig.until("volume gone", |r| r.view(|s| s.volume(v.id).is_none() && s.doomed().count() == 0)).await;
    rig.until("sweeps done", |r| r.view(|s| s.sweeps().count() == 0)).await;
    let root = object::open_root(&store, &StoreCredentials::default(), object::Timeouts::default()).unwrap();
    let left = root.list("", None, 10).await.unwrap();
    assert_eq!(left.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>(), ["pre/fusefs-marker"]);
    assert!(rig.nodes.0.lock().ended.contains(&(p, g.session)));
}

#[tokio::test(start_paused = true)]
async fn the_sweep_takes_only_what_nobody_references() {
    let rig = Rig::start(&["a"], quick_settings(), None).await;
    rig.store("st").await;
    rig.volume("vol").await;
    let (gone, stays) = (rig.session("vol", 1).await, rig.session("vol", 2).await);
    let space = object::open(&gone.store, &gone.credentials).unwrap();
    let p = gone.map.partitions.iter().map(|p| p.id).collect::<Vec<_>>();
    rig.ok(MasterCall::AttachSession(gone.session, p[1], gone.token)).await;
    let mut kept = Vec::new();
    for session in [gone.session, stays.session, SessionId(gone.session.0 - 1), SessionId(gone.session.0 + 1)] {
        for counter in 0..40 {
            let id = ObjectId { session, incarnation: Incarnation(1), counter };
            space.put(&id.key(), Bytes::from_static(b"x"), PutMode::Any).await.unwrap();
            let referenced = counter % 3 == 0;
            if referenced {
                rig.nodes.0.lock().objects.entry(p[counter as usize % 3]).or_default().insert(id);
            }
            if referenced || session != gone.session {
                kept.push(id.key());
            }
        }
    }
    rig.ok(MasterCall::RevokeSession(gone.session)).await;
    assert_eq!(rig.view(|s| s.sweeps().count()), 1);
    rig.until("sweeps done", |r| r.view(|s| s.sweeps().count() == 0)).await;
    kept.sort();
    let left: Vec<_> = space.list("", None, 1000).await.unwrap().into_iter().map(|(k, _)| k).collect();
    assert_eq!(left, kept);
}

#[tokio::test(start_paused = true)]
async fn ranges_are_granted_ahead_of_need() {
    let rig = Rig::start(&["a"], quick_settings(), None).await;
    rig.store("st").await;
    let v = rig.volume("vol").await;
    rig.nodes.0.lock().inos_left = 100;
    rig.until("a grant for each partition", |r| {
        let granted = &r.nodes.0.lock().granted;
        granted.iter().map(|(p, _)| p).collect::<std::collections::BTreeSet<_>>().len() == 3
    })
    .await;
    rig.nodes.0.lock().inos_left = 1 << 40;
    rig.until("delivery", |r| r.view(|s| s.partitions().all(|p| p.undelivered.is_empty()))).await;
    let map = map_of(rig.ok(MasterCall::GetMap(v.id)).await);
    let mut all: Vec<_> = map.partitions.iter().flat_map(|p| p.ranges.clone()).collect();
    all.sort();
    assert!(all.len() >= 6 && all.windows(2).all(|w| w[0].end <= w[1].start), "{all:?}");
    assert!(map.generation > 1);
}
