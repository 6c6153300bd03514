//! Codes of the specification, call by call; what needs no mount.

use super::*;
use crate::{
    node::{NodeSettings, engine::LogEvents, helper::Helpers},
    runtime::{MountSpec, Runtime, RuntimeStatus, Unstaged},
};
use csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use node_server::Node as _;
use tokio::sync::Semaphore;
use tonic::Code;

/// Waits for a permit, then fails: no test here mounts.
struct Gate(Semaphore);

#[async_trait]
impl Runtime for Gate {
    async fn stage(&self, _: &MountSpec) -> Outcome<()> {
        drop(self.0.acquire().await);
        Err(Fault::unavailable("no mount in this test"))
    }
    async fn unstage(&self, _: &MountSpec, _: Duration) -> Outcome<Unstaged> {
        Ok(Unstaged::Flushed)
    }
    async fn status(&self, _: &MountSpec) -> RuntimeStatus {
        RuntimeStatus::Absent
    }
}

struct Bench {
    dir: tempfile::TempDir,
    gate: Arc<Gate>,
    service: NodeService,
}

impl Bench {
    fn new(permits: usize) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let gate = Arc::new(Gate(Semaphore::new(permits)));
        let mut settings = NodeSettings::new("node-a", dir.path().join("records"));
        settings.topology = HashMap::from([("zone".into(), "z".into())]);
        let node = Node::open(settings, gate.clone(), Helpers::own().unwrap(), Arc::new(LogEvents)).unwrap();
        Bench { dir, gate, service: NodeService::new(node) }
    }
    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }
    fn stage(&self) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: "vol".into(),
            staging_target_path: self.path("stage"),
            volume_capability: Some(capability(|_| {})),
            ..NodeStageVolumeRequest::default()
        }
    }
    fn publish(&self) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_id: "vol".into(),
            staging_target_path: self.path("stage"),
            target_path: self.path("pod"),
            volume_capability: Some(capability(|_| {})),
            ..NodePublishVolumeRequest::default()
        }
    }
    async fn stage_code(&self, change: impl FnOnce(&mut NodeStageVolumeRequest)) -> Code {
        let mut r = self.stage();
        change(&mut r);
        self.service.node_stage_volume(Request::new(r)).await.map_or_else(|s| s.code(), |_| Code::Ok)
    }
    async fn publish_code(&self, change: impl FnOnce(&mut NodePublishVolumeRequest)) -> Code {
        let mut r = self.publish();
        change(&mut r);
        self.service.node_publish_volume(Request::new(r)).await.map_or_else(|s| s.code(), |_| Code::Ok)
    }
}

fn capability(change: impl FnOnce(&mut MountVolume)) -> csi::VolumeCapability {
    let mut mount = MountVolume::default();
    change(&mut mount);
    csi::VolumeCapability { access_type: Some(AccessType::Mount(mount)), access_mode: Some(AccessMode { mode: 5 }) }
}

fn broken_capabilities() -> Vec<Option<csi::VolumeCapability>> {
    let block = csi::VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), ..capability(|_| {}) };
    let no_mode = csi::VolumeCapability { access_mode: None, ..capability(|_| {}) };
    let bad_mode = csi::VolumeCapability { access_mode: Some(AccessMode { mode: 99 }), ..capability(|_| {}) };
    let no_type = csi::VolumeCapability { access_type: None, ..capability(|_| {}) };
    let flag = |f: &str| Some(capability(|m| m.mount_flags = vec![f.into()]));
    vec![
        None,
        Some(block),
        Some(no_mode),
        Some(bad_mode),
        Some(no_type),
        flag("suid"),
        flag("token_file=/etc/shadow"),
        flag("context=a:b:c:s0"),
        Some(capability(|m| m.volume_mount_group = "wheel".into())),
        Some(capability(|m| m.fs_type = "ext4".into())),
    ]
}

fn context(key: &str, value: &str) -> HashMap<String, String> {
    HashMap::from([(key.to_owned(), value.to_owned())])
}

#[tokio::test]
async fn stage_refuses_what_is_missing_or_wrong() {
    let b = Bench::new(0);
    let invalid = Code::InvalidArgument;
    assert_eq!(b.stage_code(|r| r.volume_id.clear()).await, invalid);
    assert_eq!(b.stage_code(|r| r.staging_target_path.clear()).await, invalid);
    assert_eq!(b.stage_code(|r| r.staging_target_path = "some/path".into()).await, invalid);
    assert_eq!(b.stage_code(|r| r.staging_target_path.push_str("/../x")).await, invalid);
    for c in broken_capabilities() {
        assert_eq!(b.stage_code(|r| r.volume_capability = c.clone()).await, invalid, "{c:?}");
    }
    for id in ["..", "../etc", "vol/..", "vol/../../etc", "VOL", "v\0l", &"x".repeat(200)] {
        assert_eq!(b.stage_code(|r| r.volume_id = id.into()).await, invalid, "{id:?}");
    }
    for (key, value) in [(ATTACH, "x"), (ATTACH, "-1"), (ACCESS, "rwx"), (ACCESS, "")] {
        assert_eq!(b.stage_code(|r| r.publish_context = context(key, value)).await, invalid, "{key} {value}");
    }
    assert_eq!(b.stage_code(|r| r.secrets = context("k", &"x".repeat(5000))).await, invalid);
    assert_eq!(std::fs::read_dir(b.path("records")).unwrap().count(), 0); // before any side effect
}

#[tokio::test]
async fn publish_refuses_what_is_missing_or_not_staged() {
    let b = Bench::new(0);
    let invalid = Code::InvalidArgument;
    assert_eq!(b.publish_code(|r| r.volume_id.clear()).await, invalid);
    assert_eq!(b.publish_code(|r| r.target_path.clear()).await, invalid);
    assert_eq!(b.publish_code(|r| r.target_path = r.staging_target_path.clone()).await, invalid);
    for c in broken_capabilities() {
        assert_eq!(b.publish_code(|r| r.volume_capability = c.clone()).await, invalid, "{c:?}");
    }
    assert_eq!(b.publish_code(|r| r.volume_id = "vol/../etc".into()).await, invalid);
    assert_eq!(b.publish_code(|r| r.staging_target_path.clear()).await, Code::FailedPrecondition);
    assert_eq!(b.publish_code(|_| {}).await, Code::FailedPrecondition);
    assert!(!std::path::Path::new(&b.path("pod")).exists());
}

#[tokio::test]
async fn undoing_what_never_was_is_fine() {
    let b = Bench::new(0);
    let unstage = |volume_id: &str, staging_target_path: &str| {
        let (volume_id, staging_target_path) = (volume_id.to_owned(), staging_target_path.to_owned());
        b.service.node_unstage_volume(Request::new(NodeUnstageVolumeRequest { volume_id, staging_target_path }))
    };
    let unpublish = |volume_id: &str, target_path: &str| {
        let (volume_id, target_path) = (volume_id.to_owned(), target_path.to_owned());
        b.service.node_unpublish_volume(Request::new(NodeUnpublishVolumeRequest { volume_id, target_path }))
    };
    for id in ["vol", "../no volume of ours"] {
        unstage(id, &b.path("stage")).await.unwrap();
        unstage(id, "/no/such/parent/x").await.unwrap();
        unpublish(id, &b.path("pod")).await.unwrap();
        unpublish(id, "/no/such/parent/x").await.unwrap();
    }
    let left = b.path("left");
    std::fs::create_dir(&left).unwrap();
    unpublish("vol", &left).await.unwrap();
    assert!(!std::path::Path::new(&left).exists());
    for answer in [unstage("", "/x/y").await.err(), unstage("vol", "").await.err(), unstage("vol", "x").await.err()] {
        assert_eq!(answer.unwrap().code(), Code::InvalidArgument);
    }
    for answer in [unpublish("", "/x/y").await.err(), unpublish("vol", "").await.err()] {
        assert_eq!(answer.unwrap().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn statistics_and_growth_of_what_is_not_here() {
    let b = Bench::new(0);
    let here = b.path("x");
    for (id, path, code) in [
        ("", here.as_str(), Code::InvalidArgument),
        ("vol", "", Code::InvalidArgument),
        ("vol", "some/path", Code::NotFound),
        ("vol", &here, Code::NotFound),
        ("vol", "/no/such/parent/x", Code::NotFound),
    ] {
        let (volume_id, volume_path) = (id.to_owned(), path.to_owned());
        let r = NodeGetVolumeStatsRequest { volume_id, volume_path, ..NodeGetVolumeStatsRequest::default() };
        assert_eq!(b.service.node_get_volume_stats(Request::new(r)).await.unwrap_err().code(), code, "{id} {path}");
        let (volume_id, volume_path) = (id.to_owned(), path.to_owned());
        let r = NodeExpandVolumeRequest { volume_id, volume_path, ..NodeExpandVolumeRequest::default() };
        assert_eq!(b.service.node_expand_volume(Request::new(r)).await.unwrap_err().code(), code, "{id} {path}");
    }
    let info = b.service.node_get_info(Request::new(NodeGetInfoRequest {})).await.unwrap().into_inner();
    assert_eq!((&*info.node_id, info.max_volumes_per_node), ("node-a", 0));
    assert_eq!(info.accessible_topology.unwrap().segments["zone"], "z");
    let can = b.service.node_get_capabilities(Request::new(NodeGetCapabilitiesRequest {})).await.unwrap();
    assert_eq!(can.into_inner().capabilities.len(), CAPABILITIES.len());
}

/// 64 calls at once: one works, the others come again; and it goes on when its caller hangs up.
#[tokio::test]
async fn one_call_per_volume() {
    let b = Bench::new(0);
    let first = tokio::spawn({
        let (service, r) = (b.service.clone(), b.stage());
        async move { service.node_stage_volume(Request::new(r)).await }
    });
    while b.service.node.upkeep(&VolumeId::parse("vol").unwrap()).is_ok() {
        tokio::task::yield_now().await;
    }
    let others = futures::future::join_all((0..63).map(|n| {
        let service = &b.service;
        let (stage, publish) = (b.stage(), b.publish());
        async move {
            match n % 2 {
                0 => service.node_stage_volume(Request::new(stage)).await.map(drop),
                _ => service.node_publish_volume(Request::new(publish)).await.map(drop),
            }
        }
    }))
    .await;
    assert!(others.iter().all(|o| o.as_ref().is_err_and(|s| s.code() == Code::Aborted)), "{others:?}");
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(b.stage_code(|_| {}).await, Code::Aborted); // still at work
    b.gate.0.add_permits(10);
    let mut code = Code::Aborted;
    while code == Code::Aborted {
        tokio::task::yield_now().await;
        code = b.stage_code(|_| {}).await;
    }
    assert_eq!(code, Code::Unavailable); // not final: the orchestrator must not forget the volume
}
