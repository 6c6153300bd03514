//! Object stores: probe, marker, credentials.

use crate::fake::*;
use bytes::Bytes;
use fusefs_data_path::{PutMode, object};
use fusefs_types::{FsError, cluster::*};

#[tokio::test(start_paused = true)]
async fn a_store_is_probed_marked_and_added_once() {
    let rig = Rig::start(&[], quick_settings(), None).await;
    let store = rig.store("st").await;
    assert!(store.probe.iter().any(|c| c.name == "marker" && c.ok), "{:?}", store.probe);
    assert_eq!(rig.store("st").await.id, store.id, "the same request again");
    let r = rig.refused(MasterCall::AddStore(StoreRecord { prefix: "other".into(), ..memory_store("st") })).await;
    assert_eq!(r.error, FsError::Exists);
    assert_eq!(rig.ok(MasterCall::ListStores).await, MasterReply::Stores(vec![store]));
}

#[tokio::test(start_paused = true)]
async fn unusable_stores_are_refused_with_the_reason() {
    let rig = Rig::start(&[], quick_settings(), None).await;
    let dir =
        StoreRecord { kind: StoreKind::Dir, endpoint: "/proc/fusefs-no-such-directory".into(), ..memory_store("st") };
    let r = rig.refused(MasterCall::AddStore(dir)).await;
    assert!(r.error == FsError::Invalid && r.message.contains("/proc/fusefs-no-such-directory"), "{r:?}");
    let mine = memory_store("claimed");
    let root = object::open_root(&mine, &StoreCredentials::default(), object::Timeouts::default()).unwrap();
    let foreign = Bytes::from_static(b"fusefs marker 1\ncluster 000000000000000000000000000000aa\n");
    root.put("pre/fusefs-marker", foreign, PutMode::Any).await.unwrap();
    let r = rig.refused(MasterCall::AddStore(mine)).await;
    assert!(r.message.contains("another cluster"), "{r:?}");
    for (what, bad) in [
        ("bucket", StoreRecord { kind: StoreKind::S3, ..memory_store("st") }),
        ("prefix", StoreRecord { prefix: "a//b".into(), ..memory_store("st") }),
        ("absolute", StoreRecord { kind: StoreKind::Dir, endpoint: "x".into(), ..memory_store("st") }),
        ("name", memory_store("ST")),
    ] {
        let r = rig.refused(MasterCall::AddStore(bad)).await;
        assert!(r.error == FsError::Invalid && r.message.contains(what), "{what}: {r:?}");
    }
    assert_eq!(rig.view(|s| s.stores().count()), 0);
}

#[tokio::test(start_paused = true)]
async fn named_credentials_come_from_the_masters_directory() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("good.toml"), "access_key = 'AK'\nsecret_key = 'SK-very-secret'\n").unwrap();
    std::fs::write(dir.path().join("bad.toml"), "access_key = 'AK'\nsecret = 'SK-very-secret'\n").unwrap();
    let settings = fusefs_master::Settings { credentials_dir: Some(dir.path().to_owned()), ..quick_settings() };
    let rig = Rig::start(&[], settings, None).await;
    let store = |credential: &str| StoreRecord {
        kind: StoreKind::S3,
        endpoint: "http://127.0.0.1:1".into(),
        bucket: "b".into(),
        credential: credential.into(),
        ..memory_store("st")
    };
    for (credential, want) in [("missing", "missing.toml"), ("bad", "needs access_key"), ("../good", "not allowed")] {
        let r = rig.refused(MasterCall::AddStore(store(credential))).await;
        assert!(r.message.contains(want) && !r.message.contains("SK-"), "{credential}: {r:?}");
    }
}
