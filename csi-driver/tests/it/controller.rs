//! Codes, idempotency and sizes of Create, Delete, Expand, Validate and GetCapacity.

use crate::rig::{Rig, code, map, mount, range, request};
use fusefs_csi_driver::{
    Controller,
    controller::{Claim, PUBLISH_POD, PodMaker, Settings},
};
use fusefs_proto::csi::{
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
    *,
};
use fusefs_types::FsError;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tonic::Code;

const GIB: i64 = 1 << 30;

#[tokio::test]
async fn wrong_requests_are_refused_before_anybody_is_asked() {
    let rig = Rig::new().await;
    let flags = |f: &str| VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume { mount_flags: vec![f.into()], ..Default::default() })),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    };
    let block =
        VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), ..mount(Mode::SingleNodeWriter) };
    let no_type = VolumeCapability { access_type: None, ..mount(Mode::SingleNodeWriter) };
    let no_mode = VolumeCapability { access_mode: None, ..mount(Mode::SingleNodeWriter) };
    let strange = VolumeCapability { access_mode: Some(AccessMode { mode: 99 }), ..mount(Mode::SingleNodeWriter) };
    let caps = |c: Vec<VolumeCapability>| CreateVolumeRequest { volume_capabilities: c, ..request("pvc-1") };
    let params = |p: HashMap<String, String>| CreateVolumeRequest { parameters: p, ..request("pvc-1") };
    let source = VolumeContentSource {
        r#type: Some(volume_content_source::Type::Volume(volume_content_source::VolumeSource {
            volume_id: "pvc-0".into(),
        })),
    };
    let big = map(&[("k", &"v".repeat(5000))]);
    let table = [
        ("no name", request(""), Code::InvalidArgument),
        ("a long name", request(&"n".repeat(129)), Code::InvalidArgument),
        ("a control character", request("a\u{1}"), Code::InvalidArgument),
        ("no capability", caps(vec![]), Code::InvalidArgument),
        ("block", caps(vec![block]), Code::InvalidArgument),
        ("no access type", caps(vec![no_type]), Code::InvalidArgument),
        ("no mode", caps(vec![no_mode]), Code::InvalidArgument),
        ("unknown mode", caps(vec![mount(Mode::SingleNodeWriter), strange]), Code::InvalidArgument),
        ("mode 0", caps(vec![mount(Mode::Unknown)]), Code::InvalidArgument),
        ("an option", caps(vec![flags("token_file=/etc/shadow")]), Code::InvalidArgument),
        ("a parameter", params(map(&[("sotre", "st")])), Code::InvalidArgument),
        ("a long map", params(big.clone()), Code::InvalidArgument),
        ("long secrets", CreateVolumeRequest { secrets: big, ..request("pvc-1") }, Code::InvalidArgument),
        (
            "a source",
            CreateVolumeRequest { volume_content_source: Some(source), ..request("pvc-1") },
            Code::InvalidArgument,
        ),
        ("limit below", CreateVolumeRequest { capacity_range: range(2, 1), ..request("pvc-1") }, Code::InvalidArgument),
        ("negative", CreateVolumeRequest { capacity_range: range(-1, 0), ..request("pvc-1") }, Code::InvalidArgument),
        ("huge", CreateVolumeRequest { capacity_range: range(i64::MAX, 0), ..request("pvc-1") }, Code::OutOfRange),
    ];
    for (what, r, want) in table {
        assert_eq!(code(rig.create(r).await), want, "{what}");
    }
    for id in ["", "../x", "vol/../..", "UPPER", "a b"] {
        assert_eq!(code(rig.expand(id, GIB, 0).await), Code::InvalidArgument, "{id:?}");
        assert_eq!(code(rig.get(id).await), Code::InvalidArgument, "{id:?}");
        assert_eq!(
            code(rig.publish(id, "node-a", Mode::SingleNodeWriter, false).await),
            Code::InvalidArgument,
            "{id:?}"
        );
    }
    assert_eq!(code(rig.delete("").await), Code::InvalidArgument);
    assert_eq!(code(rig.unpublish("", "node-a").await), Code::InvalidArgument);
    assert_eq!(rig.fake.calls.load(Ordering::Relaxed), 0, "nothing was done");
}

#[tokio::test]
async fn the_same_name_is_the_same_volume_or_exists() {
    let rig = Rig::new().await;
    let sized = |required, limit| CreateVolumeRequest { capacity_range: range(required, limit), ..request("pvc-1") };
    let first = rig.create(sized(GIB, 2 * GIB)).await.expect("created");
    assert_eq!((first.volume_id.as_str(), first.capacity_bytes), ("pvc-1", GIB));
    let table = [
        (sized(GIB, 2 * GIB), Code::Ok),
        (sized(GIB, 0), Code::Ok),
        (sized(0, 2 * GIB), Code::Ok),
        (request("pvc-1"), Code::Ok),
        (
            CreateVolumeRequest { volume_capabilities: vec![mount(Mode::MultiNodeMultiWriter)], ..sized(GIB, 0) },
            Code::Ok,
        ),
        (sized(2 * GIB, 0), Code::AlreadyExists),
        (sized(0, GIB / 2), Code::AlreadyExists),
        (CreateVolumeRequest { parameters: map(&[("inodes", "5")]), ..sized(GIB, 0) }, Code::AlreadyExists),
        (CreateVolumeRequest { mutable_parameters: map(&[("replicas", "1")]), ..sized(GIB, 0) }, Code::AlreadyExists),
    ];
    for (n, (r, want)) in table.into_iter().enumerate() {
        let result = rig.create(r).await;
        if let Ok(v) = &result {
            assert_eq!(v, &first, "case {n}");
        }
        assert_eq!(code(result), want, "case {n}");
    }
    rig.fake.make("by-hand");
    assert_eq!(code(rig.create(request("by-hand")).await), Code::AlreadyExists, "not ours to give away");
    assert_eq!(rig.fake.volumes().len(), 2);
}

#[tokio::test]
async fn parameters_become_settings() {
    let rig = Rig::new().await;
    let parameters = map(&[("store", "st"), ("inodes", "1000"), ("csi.storage.k8s.io/pvc/name", "data")]);
    let v = rig.create(CreateVolumeRequest { parameters, ..request("Ünïcode name / with ..") }).await.expect("created");
    assert!(v.volume_id.starts_with("csi-"), "{}", v.volume_id);
    let record = rig.fake.volumes().pop().expect("one");
    assert_eq!((record.inodes, record.capacity), (1000, 0));
    let label = |k: &str| record.labels.iter().find(|(key, _)| key == k).map(|(_, v)| v.as_str());
    assert_eq!(label("csi.fusefs.io/name"), Some("Ünïcode name / with .."));
    assert_eq!(label("csi.fusefs.io/claim"), Some("data"));
    let parameters = map(&[("store", "absent")]);
    assert_eq!(code(rig.create(CreateVolumeRequest { parameters, ..request("pvc-2") }).await), Code::InvalidArgument);
}

#[tokio::test]
async fn deleting_is_repeatable_and_careful() {
    let rig = Rig::new().await;
    rig.create(request("pvc-1")).await.expect("created");
    rig.fake.make("by-hand");
    for (id, want) in [
        ("absent", Code::Ok),
        ("../../etc", Code::Ok),
        ("not an id \u{1}", Code::Ok),
        ("by-hand", Code::FailedPrecondition),
        ("pvc-1/sub", Code::FailedPrecondition),
    ] {
        assert_eq!(code(rig.delete(id).await), want, "{id}");
    }
    rig.publish("pvc-1", "node-a", Mode::SingleNodeWriter, false).await.expect("attached");
    assert_eq!(code(rig.delete("pvc-1").await), Code::FailedPrecondition, "attached");
    rig.unpublish("pvc-1", "").await.expect("detached");
    rig.fake.mount("pvc-1", 9, 0).expect("mounted by hand");
    assert_eq!(code(rig.delete("pvc-1").await), Code::FailedPrecondition, "mounted");
    rig.create(request("pvc-2")).await.expect("created");
    for _ in 0..3 {
        rig.delete("pvc-2").await.expect("deleted");
    }
    assert_eq!(rig.fake.volumes().len(), 2);
}

#[tokio::test]
async fn volumes_grow_online_and_never_shrink() {
    let rig = Rig::new().await;
    rig.create(CreateVolumeRequest { capacity_range: range(GIB, 0), ..request("pvc-1") }).await.expect("created");
    rig.publish("pvc-1", "node-a", Mode::SingleNodeWriter, false).await.expect("attached");
    for (required, limit, want) in [
        (2 * GIB, 0, Ok(2 * GIB)),
        (2 * GIB, 2 * GIB, Ok(2 * GIB)),
        (GIB, 0, Ok(2 * GIB)),
        (0, 3 * GIB, Ok(2 * GIB)),
        (0, GIB, Err(Code::OutOfRange)),
        (GIB, GIB, Err(Code::OutOfRange)),
        (i64::MAX, 0, Err(Code::OutOfRange)),
        (3, 2, Err(Code::InvalidArgument)),
        (-1, 0, Err(Code::InvalidArgument)),
    ] {
        let got = rig.expand("pvc-1", required, limit).await.map_err(|s| s.code());
        assert_eq!(got, want, "{required} {limit}");
    }
    assert_eq!(code(rig.expand("absent", GIB, 0).await), Code::NotFound);
    assert_eq!(code(rig.expand("pvc-1/sub", GIB, 0).await), Code::FailedPrecondition);
    let r = ControllerExpandVolumeRequest { volume_id: "pvc-1".into(), ..Default::default() };
    assert_eq!(code(rig.controller.clone().controller_expand_volume(r).await), Code::InvalidArgument, "no range");
    rig.create(request("unlimited")).await.expect("created");
    assert_eq!(rig.expand("unlimited", GIB, 0).await.expect("large enough"), GIB);
    assert_eq!(code(rig.expand("unlimited", GIB, 2 * GIB).await), Code::OutOfRange);
}

#[tokio::test]
async fn validation_confirms_or_says_why_not() {
    let rig = Rig::new().await;
    let parameters = map(&[("inodes", "7")]);
    rig.create(CreateVolumeRequest { parameters: parameters.clone(), ..request("pvc-1") }).await.expect("created");
    let ask = |id: &str, caps: Vec<VolumeCapability>, parameters: HashMap<String, String>| {
        let r = ValidateVolumeCapabilitiesRequest {
            volume_id: id.into(),
            volume_capabilities: caps,
            parameters,
            ..Default::default()
        };
        let mut c = rig.controller.clone();
        async move { c.validate_volume_capabilities(r).await.map(|r| r.into_inner()) }
    };
    let all: Vec<_> = (1..=7).map(|m| mount(Mode::try_from(m).expect("a mode"))).collect();
    let confirmed = ask("pvc-1", all.clone(), parameters).await.expect("answered").confirmed.expect("confirmed");
    assert_eq!(confirmed.volume_capabilities, all);
    let block = VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), ..all[0].clone() };
    for (caps, parameters) in
        [(vec![block], HashMap::new()), (all.clone(), map(&[("inodes", "8")])), (all.clone(), map(&[("unknown", "1")]))]
    {
        let reply = ask("pvc-1", caps, parameters).await.expect("answered");
        assert!(reply.confirmed.is_none() && !reply.message.is_empty());
    }
    assert_eq!(code(ask("pvc-1", vec![], HashMap::new()).await), Code::InvalidArgument);
    assert_eq!(code(ask("", all.clone(), HashMap::new()).await), Code::InvalidArgument);
    assert_eq!(code(ask("absent", all, HashMap::new()).await), Code::NotFound);
}

#[tokio::test]
async fn a_pool_is_not_promised_twice() {
    let rig = Rig::with(Settings { capacity_pool: Some(3 << 30) }).await;
    let sized = |name: &str, n| CreateVolumeRequest { capacity_range: range(n, 0), ..request(name) };
    let free = || async {
        let reply = rig.controller.clone().get_capacity(GetCapacityRequest::default()).await.expect("capacity");
        reply.into_inner().available_capacity
    };
    assert_eq!(free().await, 3 * GIB);
    rig.create(sized("pvc-1", 2 * GIB)).await.expect("fits");
    assert_eq!(free().await, GIB);
    assert_eq!(code(rig.create(sized("pvc-2", 2 * GIB)).await), Code::ResourceExhausted);
    assert_eq!(code(rig.create(request("pvc-3")).await), Code::InvalidArgument, "no size");
    assert_eq!(rig.expand("pvc-1", 3 * GIB, 0).await.expect("fits"), 3 * GIB);
    assert_eq!(code(rig.expand("pvc-1", 4 * GIB, 0).await), Code::OutOfRange);
    let block =
        VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), ..mount(Mode::SingleNodeWriter) };
    rig.delete("pvc-1").await.expect("deleted");
    let r = GetCapacityRequest { volume_capabilities: vec![block], ..Default::default() };
    let reply = rig.controller.clone().get_capacity(r).await.expect("capacity").into_inner();
    assert_eq!(reply.available_capacity, 0, "not for block volumes");
}

#[tokio::test]
async fn a_cluster_that_is_away_gives_codes_that_are_tried_again() {
    let rig = Rig::new().await;
    rig.create(request("pvc-1")).await.expect("created");
    rig.fake.down.store(true, Ordering::Relaxed);
    for got in [
        code(rig.create(request("pvc-2")).await),
        code(rig.delete("pvc-1").await),
        code(rig.expand("pvc-1", GIB, 0).await),
        code(rig.publish("pvc-1", "node-a", Mode::SingleNodeWriter, false).await),
        code(rig.unpublish("pvc-1", "node-a").await),
        code(rig.get("pvc-1").await),
    ] {
        assert_eq!(got, Code::Unavailable);
    }
    rig.fake.down.store(false, Ordering::Relaxed);
    rig.delete("pvc-1").await.expect("goes on");
    assert_eq!(rig.fake.mount("pvc-1", 1, 0), Err(FsError::NotFound));
}

/// Counts.
#[derive(Default)]
struct Pods {
    claimed: AtomicU64,
    released: Arc<AtomicU64>,
    changed: AtomicU64,
}

impl PodMaker for Pods {
    fn claim(&self, volume: &str, node: &str) -> Claim {
        assert!(!volume.is_empty() && !node.is_empty());
        self.claimed.fetch_add(1, Ordering::SeqCst);
        let released = self.released.clone();
        Claim::new(move || {
            released.fetch_add(1, Ordering::SeqCst);
        })
    }
    fn changed(&self) {
        self.changed.fetch_add(1, Ordering::SeqCst);
    }
    fn pod(&self, volume: &str, node: &str) -> String {
        format!("fuse/{node}-{volume}")
    }
}

#[tokio::test]
async fn whoever_makes_pods_is_told_and_never_waited_for() {
    let pods = Arc::new(Pods::default());
    let rig = Rig::made(|fake| Controller::new(fake, Settings::default()).with_pods(pods.clone())).await;
    rig.fake.make("home");
    let context = rig.publish("home/a/b", "node-a", Mode::MultiNodeMultiWriter, false).await.expect("published");
    assert_eq!(context.get(PUBLISH_POD).map(String::as_str), Some("fuse/node-a-home/a/b"));
    let count = |n: &AtomicU64| n.load(Ordering::SeqCst);
    assert_eq!((count(&pods.claimed), count(&pods.released), count(&pods.changed)), (1, 1, 0));
    rig.unpublish("home/a/b", "node-a").await.expect("unpublished");
    assert_eq!(count(&pods.changed), 1);
    // Also when nobody knows what came of it.
    rig.fake.down.store(true, Ordering::SeqCst);
    assert_eq!(code(rig.publish("home", "node-a", Mode::MultiNodeMultiWriter, false).await), Code::Unavailable);
    assert_eq!(code(rig.unpublish("home", "node-a").await), Code::Unavailable);
    assert_eq!((count(&pods.claimed), count(&pods.released), count(&pods.changed)), (2, 2, 2));
}
