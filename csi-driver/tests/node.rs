//! The node half against the real kernel: as root, in a mount namespace of its own, with tmpfs (and connections that nobody
//! serves) in place of the mounts.

mod common;

use async_trait::async_trait;
use common::{helpers, in_namespace};
use fusefs_csi_driver::{
    Fault, Outcome,
    node::{
        Node, NodeSettings,
        engine::{Event, Events},
        found::{Attachment, Attachments},
        helper,
        model::{AccessMode, Capability, PublishRequest, StageRequest, Subdir, VolumeId},
        mounts::Mounts,
        options::MountOptions,
        plan,
        recover::Pass,
    },
    runtime::{MountSpec, Runtime, RuntimeStatus, Unstaged},
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use parking_lot::Mutex;
use std::{
    fs::{self, File, OpenOptions},
    io::ErrorKind,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use tonic::Code;

/// The disposable process of these tests is this executable.
#[test]
#[ignore = "started by the other tests"]
fn helper_process() {
    helper::answer(&std::env::args().next_back().unwrap_or_default());
}

macro_rules! namespaced {
    ($($(#[$doc:meta])* $name:ident => $inner:ident;)*) => {
        $($(#[$doc])* #[test] fn $name() { in_namespace(stringify!($inner)); })*
    };
}

namespaced! {
    /// Every call, each twice, over a restart of the plugin.
    a_volume_lives_and_leaves_nothing => inner_life;
    /// Refusals by what was promised before.
    promises_are_kept_over_a_restart => inner_codes;
    /// Everything was lost: mounted again, bound again, nothing stacked.
    total_loss_converges => inner_total_loss;
    /// Slow is not dead.
    a_silent_mount_is_left_alone => inner_silent;
    /// Subdirectories stay beneath the volume.
    subdirectories_do_not_lead_out => inner_subdir;
    /// What pods make belongs to the volume mount group.
    a_group_gets_what_is_made => inner_group;
    /// Crashes between a record and its effect.
    half_done_work_is_finished => inner_half_done;
    /// Records were lost: rights to mount, mountinfo and kubelet's files give them back.
    lost_records_are_found_again => inner_found;
}

#[derive(Default)]
struct Tmpfs {
    staged: Mutex<Vec<MountSpec>>,
    broken: AtomicBool,
    parks: AtomicBool,
}

#[async_trait]
impl Runtime for Tmpfs {
    async fn stage(&self, spec: &MountSpec) -> Outcome<()> {
        if self.broken.load(SeqCst) {
            return Err(Fault::unavailable("broken on purpose"));
        }
        let source = plan::source(&spec.name);
        mount(Some(&*source), &spec.staging, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
        self.staged.lock().push(spec.clone());
        Ok(())
    }
    async fn unstage(&self, spec: &MountSpec, _: Duration) -> Outcome<Unstaged> {
        match umount2(&spec.staging, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL) => {} // an earlier try had done it
            Err(e) => panic!("{e}"),
        }
        Ok(if self.parks.load(SeqCst) { Unstaged::Parked("on purpose".into()) } else { Unstaged::Flushed })
    }
    async fn status(&self, _: &MountSpec) -> RuntimeStatus {
        RuntimeStatus::Unknown
    }
}

#[derive(Default)]
struct Seen(Mutex<Vec<Event>>);

impl Events for Seen {
    fn tell(&self, event: Event) {
        self.0.lock().push(event);
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    root: PathBuf,
    runtime: Arc<Tmpfs>,
    events: Arc<Seen>,
    node: Arc<Node>,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("pods")).unwrap();
        let (runtime, events) = (Arc::<Tmpfs>::default(), Arc::<Seen>::default());
        let node = open(&root, &runtime, &events);
        Bench { _dir: dir, root, runtime, events, node }
    }
    /// The plugin dies and comes back: only the disk and the kernel remember.
    fn restart(&mut self) {
        self.node = open(&self.root, &self.runtime, &self.events);
    }
    fn stage(&self) -> StageRequest {
        StageRequest {
            volume: volume(),
            name: "vol".into(),
            staging: self.root.join("stage"),
            capability: capability(AccessMode::MultiNodeMultiWriter),
            generation: 1,
        }
    }
    fn pod(&self, name: &str) -> PublishRequest {
        PublishRequest {
            volume: volume(),
            staging: self.root.join("stage"),
            target: self.target(name),
            capability: capability(AccessMode::MultiNodeMultiWriter),
            readonly: false,
            subdir: Subdir::default(),
        }
    }
    fn target(&self, name: &str) -> PathBuf {
        self.root.join("pods").join(name)
    }
    fn layers(&self, path: &Path) -> usize {
        Mounts::read().unwrap().at(path).len()
    }
    async fn unpublish(&self, name: &str) -> Outcome<()> {
        self.node.unpublish(&volume(), &self.target(name)).await
    }
    async fn unstage(&self) -> Outcome<()> {
        self.node.unstage(&volume(), &self.root.join("stage")).await
    }
    /// Nothing of ours is mounted or recorded.
    fn assert_clean(&self) {
        let mounts = Mounts::read().unwrap();
        let left: Vec<_> = mounts.0.iter().filter(|m| m.point.starts_with(&self.root)).collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(fs::read_dir(self.root.join("pods")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(self.root.join("records")).unwrap().count(), 0);
    }
}

fn open(root: &Path, runtime: &Arc<Tmpfs>, events: &Arc<Seen>) -> Arc<Node> {
    let mut settings = NodeSettings::new("node-a", root.join("records"));
    settings.look_timeout = Duration::from_secs(5);
    Node::open(settings, runtime.clone(), helpers(), events.clone()).unwrap()
}

fn volume() -> VolumeId {
    VolumeId::parse("vol").unwrap()
}

fn capability(mode: AccessMode) -> Capability {
    Capability { mode, options: MountOptions::default(), group: None }
}

fn code(answer: Outcome<()>) -> Code {
    answer.unwrap_err().code
}

/// A mount whose connection nobody serves; dead once the file is dropped.
fn unserved(point: &Path) -> File {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    mount(Some("fusefs#vol"), point, Some("fuse.fusefs"), MsFlags::empty(), Some(&*options)).unwrap();
    device
}

#[tokio::test]
#[ignore = "needs a mount namespace"]
async fn inner_life() {
    let mut b = Bench::new();
    let stage = b.stage();
    b.unstage().await.unwrap(); // never staged
    b.unpublish("a").await.unwrap();
    for _ in 0..2 {
        b.node.stage(&stage).await.unwrap();
        assert_eq!(b.layers(&stage.staging), 1);
    }
    let read_only = PublishRequest { readonly: true, ..b.pod("ro") };
    for round in 0..2 {
        for _ in 0..2 {
            b.node.publish(&b.pod("a")).await.unwrap();
            b.node.publish(&b.pod("b")).await.unwrap();
            b.node.publish(&read_only).await.unwrap();
        }
        for name in ["a", "b", "ro"] {
            assert_eq!(b.layers(&b.target(name)), 1, "{name} in round {round}");
        }
        b.restart();
        b.node.stage(&stage).await.unwrap();
    }
    fs::write(b.target("a").join("file"), b"data").unwrap();
    assert_eq!(fs::read(b.target("b").join("file")).unwrap(), b"data");
    assert_eq!(fs::read(b.target("ro").join("file")).unwrap(), b"data");
    assert_eq!(fs::write(b.target("ro").join("x"), b"").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    let top = Mounts::read().unwrap();
    assert!(top.top(&b.target("a")).is_some_and(|m| m.has("nosuid") && m.has("nodev") && m.has("rw")));
    let stats = b.node.stats(&volume(), &b.target("a")).await.unwrap();
    assert_eq!((stats.space.map(|s| s.bytes), stats.abnormal), (Some(1 << 20), None));
    assert_eq!(b.node.expand(&volume(), &b.target("a")).await.unwrap(), Some(1 << 20));
    let elsewhere = b.node.stats(&volume(), &b.root).await;
    assert_eq!(elsewhere.unwrap_err().code, Code::NotFound);
    assert_eq!(code(b.unstage().await), Code::FailedPrecondition); // still published
    for name in ["a", "a", "b", "ro", "b", "ro"] {
        b.unpublish(name).await.unwrap();
    }
    b.restart();
    b.unstage().await.unwrap();
    b.unstage().await.unwrap();
    assert_eq!(b.runtime.staged.lock().len(), 1);
    assert!(b.events.0.lock().is_empty());
    b.assert_clean();
    b.runtime.parks.store(true, SeqCst);
    b.node.stage(&stage).await.unwrap();
    b.unstage().await.unwrap();
    assert_eq!(*b.events.0.lock(), [Event::Parked(volume(), "on purpose".into())]);
    b.assert_clean();
}

#[tokio::test]
#[ignore = "needs a mount namespace"]
async fn inner_codes() {
    let mut b = Bench::new();
    let one = |r: PublishRequest| PublishRequest { capability: capability(AccessMode::SingleNodeSingleWriter), ..r };
    assert_eq!(code(b.node.publish(&b.pod("a")).await), Code::FailedPrecondition); // not staged
    let stage = StageRequest { capability: capability(AccessMode::SingleNodeSingleWriter), ..b.stage() };
    b.node.stage(&stage).await.unwrap();
    b.node.publish(&one(b.pod("a"))).await.unwrap();
    b.restart();
    assert_eq!(code(b.node.publish(&one(b.pod("b"))).await), Code::FailedPrecondition);
    assert_eq!(code(b.node.publish(&b.pod("a")).await), Code::AlreadyExists);
    assert_eq!(code(b.node.stage(&b.stage()).await), Code::AlreadyExists);
    assert!(!b.target("b").exists());
    b.unpublish("a").await.unwrap();
    b.node.publish(&one(b.pod("b"))).await.unwrap();
    b.unpublish("b").await.unwrap();
    // Somebody else's mount is never touched.
    fs::create_dir(b.target("c")).unwrap();
    mount(Some("other"), &b.target("c"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    assert_eq!(code(b.node.publish(&one(b.pod("c"))).await), Code::FailedPrecondition);
    assert_eq!(code(b.unpublish("c").await), Code::FailedPrecondition);
    assert_eq!(b.layers(&b.target("c")), 1);
    umount2(&b.target("c"), MntFlags::empty()).unwrap();
    b.unpublish("c").await.unwrap();
    b.unstage().await.unwrap();
    let held = b.node.enter(&volume()).await.unwrap();
    assert_eq!(b.node.enter(&volume()).await.unwrap_err().code, Code::Aborted);
    drop(held);
    b.assert_clean();
}

#[tokio::test]
#[ignore = "needs a mount namespace"]
async fn inner_total_loss() {
    let mut b = Bench::new();
    let stage = b.stage();
    b.node.stage(&stage).await.unwrap();
    let read_only = PublishRequest { readonly: true, ..b.pod("ro") };
    b.node.publish(&b.pod("a")).await.unwrap();
    b.node.publish(&read_only).await.unwrap();
    assert_eq!(b.node.reconcile().await.unwrap(), Pass { volumes: 1, ..Pass::default() });
    assert!(b.events.0.lock().is_empty()); // nothing to do
    for round in 0..3 {
        umount2(&stage.staging, MntFlags::MNT_DETACH).unwrap();
        match round {
            // A reboot: nothing is mounted at all.
            0 => ["a", "ro"].iter().for_each(|n| umount2(&b.target(n), MntFlags::MNT_DETACH).unwrap()),
            // A dead connection lies on the path, the targets show the earlier mount.
            1 => drop(unserved(&stage.staging)),
            // The same, and targets were stacked.
            _ => {
                drop((unserved(&stage.staging), unserved(&b.target("a")), unserved(&b.target("a"))));
                b.runtime.broken.store(true, SeqCst);
                let pass = b.node.reconcile().await.unwrap();
                assert_eq!((pass.volumes, pass.failed), (1, 1));
                b.runtime.broken.store(false, SeqCst);
            }
        }
        b.restart();
        b.events.0.lock().clear();
        assert_eq!(b.node.reconcile().await.unwrap(), Pass { volumes: 1, ..Pass::default() }, "round {round}");
        let rebound = |n| Event::Rebound(volume(), b.target(n));
        assert_eq!(*b.events.0.lock(), [Event::Remounted(volume()), rebound("a"), rebound("ro")], "round {round}");
        for path in [stage.staging.clone(), b.target("a"), b.target("ro")] {
            assert_eq!(b.layers(&path), 1, "{} in round {round}", path.display());
        }
        fs::write(b.target("a").join("file"), b"new").unwrap();
        assert_eq!(fs::read(b.target("ro").join("file")).unwrap(), b"new");
        assert_eq!(fs::write(b.target("ro").join("x"), b"").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    }
    // Publishing repairs, too; and a target whose pod directory is gone is forgotten.
    umount2(&stage.staging, MntFlags::MNT_DETACH).unwrap();
    b.node.publish(&b.pod("b")).await.unwrap();
    for name in ["a", "b", "ro"] {
        assert_eq!(b.layers(&b.target(name)), 1);
        b.unpublish(name).await.unwrap();
    }
    // A dead mount never blocks the end.
    umount2(&stage.staging, MntFlags::MNT_DETACH).unwrap();
    drop(unserved(&stage.staging));
    b.unstage().await.unwrap();
    b.assert_clean();
}

#[tokio::test]
#[ignore = "needs a mount namespace"]
async fn inner_silent() {
    let b = Bench::new();
    let stage = b.stage();
    b.node.stage(&stage).await.unwrap();
    b.node.publish(&b.pod("a")).await.unwrap();
    umount2(&stage.staging, MntFlags::MNT_DETACH).unwrap();
    let device = unserved(&stage.staging);
    let begun = tokio::time::Instant::now();
    assert_eq!(code(b.node.stage(&stage).await), Code::Unavailable);
    assert_eq!(code(b.node.publish(&b.pod("b")).await), Code::Unavailable);
    b.node.reconcile().await.unwrap();
    assert_eq!(b.layers(&stage.staging), 1);
    let stats = b.node.stats(&volume(), &stage.staging).await.unwrap();
    assert!(stats.abnormal.is_some());
    b.unpublish("a").await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    drop(device); // and now it is dead
    b.node.publish(&b.pod("b")).await.unwrap();
    b.unpublish("b").await.unwrap();
    b.unstage().await.unwrap();
    b.assert_clean();
}

#[tokio::test]
#[ignore = "needs a mount namespace"]
async fn inner_subdir() {
    let b = Bench::new();
    let stage = b.stage();
    b.node.stage(&stage).await.unwrap();
    fs::create_dir_all(stage.staging.join("in/side")).unwrap();
    fs::write(stage.staging.join("in/side/file"), b"x").unwrap();
    std::os::unix::fs::symlink("/etc", stage.staging.join("out")).unwrap();
    std::os::unix::fs::symlink("in", stage.staging.join("link")).unwrap();
    let pod = |name: &str, sub: &str| PublishRequest { subdir: Subdir::parse(sub).unwrap(), ..b.pod(name) };
    for _ in 0..2 {
        b.node.publish(&pod("a", "in/side")).await.unwrap();
        assert_eq!(b.layers(&b.target("a")), 1);
    }
    assert_eq!(fs::read(b.target("a").join("file")).unwrap(), b"x");
    for bad in ["out", "out/ssh", "link", "link/side", "in/side/file"] {
        assert!(b.node.publish(&pod("bad", bad)).await.is_err(), "{bad}");
        assert_eq!(b.layers(&b.target("bad")), 0);
        b.unpublish("bad").await.unwrap();
    }
    assert_eq!(code(b.node.publish(&pod("bad", "missing")).await), Code::NotFound);
    b.unpublish("bad").await.unwrap();
    b.unpublish("a").await.unwrap();
    b.unstage().await.unwrap();
    b.assert_clean();
}

#[tokio::test]
#[ignore = "needs a mount namespace"]
async fn inner_group() {
    use std::os::unix::fs::MetadataExt;
    let of = |path: &Path| fs::metadata(path).map(|m| (m.gid(), m.mode() & 0o7777)).unwrap();
    let b = Bench::new();
    let group = |c: Capability| Capability { group: Some(4321), ..c };
    let mut stage = b.stage();
    stage.capability = group(stage.capability);
    b.node.stage(&stage).await.unwrap();
    fs::create_dir(stage.staging.join("sub")).unwrap();
    fs::set_permissions(&stage.staging, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let pod = |name: &str, sub: &str, readonly| {
        let p = PublishRequest { subdir: Subdir::parse(sub).unwrap(), readonly, ..b.pod(name) };
        PublishRequest { capability: group(p.capability), ..p }
    };
    b.node.publish(&pod("ro", "", true)).await.unwrap();
    assert_eq!(of(&stage.staging), (0, 0o755)); // nothing is made through it
    b.node.publish(&pod("sub", "sub", false)).await.unwrap();
    assert_eq!((of(&stage.staging).0, of(&b.target("sub"))), (0, (4321, 0o2775)));
    for _ in 0..2 {
        b.node.publish(&pod("all", "", false)).await.unwrap();
        assert_eq!(of(&b.target("all")), (4321, 0o2775));
    }
    fs::create_dir(b.target("all").join("made")).unwrap();
    assert_eq!(of(&b.target("all").join("made")), (4321, 0o2755));
    b.node.publish(&b.pod("plain")).await.unwrap();
    let mut other = pod("other", "", false);
    other.capability.group = Some(1);
    assert_eq!(code(b.node.publish(&other).await), Code::AlreadyExists);
    for name in ["ro", "sub", "all", "plain"] {
        b.unpublish(name).await.unwrap();
    }
    b.unstage().await.unwrap();
    b.assert_clean();
}

#[tokio::test]
#[ignore = "needs a mount namespace"]
async fn inner_half_done() {
    use fusefs_csi_driver::node::records::{Phase, Records, StageRecord, TargetRecord};
    let mut b = Bench::new();
    let (stage, pod) = (b.stage(), PublishRequest { readonly: true, ..b.pod("a") });
    let records = Records::open(b.root.join("records")).unwrap();
    // Recorded, not mounted.
    records.put_stage(&StageRecord::new(&stage, Phase::Making)).unwrap();
    b.restart();
    b.node.reconcile().await.unwrap();
    assert!(b.runtime.staged.lock().is_empty()); // never promised
    b.node.stage(&stage).await.unwrap();
    // Mounted, not recorded as done.
    records.put_stage(&StageRecord::new(&stage, Phase::Making)).unwrap();
    b.node.stage(&stage).await.unwrap();
    assert_eq!(b.runtime.staged.lock().len(), 1);
    // Bound, flags not yet set.
    records.put_target(&TargetRecord::new(&pod, Phase::Making)).unwrap();
    fs::create_dir(b.target("a")).unwrap();
    mount(Some(&stage.staging), &b.target("a"), None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    b.restart();
    b.node.publish(&pod).await.unwrap();
    assert_eq!(b.layers(&b.target("a")), 1);
    assert!(Mounts::read().unwrap().top(&b.target("a")).is_some_and(|m| m.has("ro")));
    // Taken off, directory and record still there.
    records.put_target(&TargetRecord::new(&pod, Phase::Ending)).unwrap();
    umount2(&b.target("a"), MntFlags::MNT_DETACH).unwrap();
    b.restart();
    b.node.reconcile().await.unwrap();
    assert_eq!(b.layers(&b.target("a")), 0); // not bound again
    b.unpublish("a").await.unwrap();
    // Unmounted, record still there.
    records.put_stage(&StageRecord::new(&stage, Phase::Ending)).unwrap();
    umount2(&stage.staging, MntFlags::MNT_DETACH).unwrap();
    b.unstage().await.unwrap();
    // Records lost, mount there.
    b.node.stage(&stage).await.unwrap();
    fs::remove_dir_all(b.root.join("records")).unwrap();
    b.restart();
    b.unstage().await.unwrap();
    b.assert_clean();
}

struct Attached(Vec<Attachment>);

#[async_trait]
impl Attachments for Attached {
    async fn of_node(&self, node: &str) -> Outcome<Vec<Attachment>> {
        assert_eq!(node, "node-a");
        Ok(self.0.clone())
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace"]
async fn inner_found() {
    let mut b = Bench::new();
    let kubelet = |name: &str| {
        let dir = b.root.join("kubelet").join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("vol_data.json"), r#"{"driverName":"csi.fusefs.io","volumeHandle":"vol"}"#).unwrap();
        dir
    };
    let mut options = MountOptions { no_exec: true, ..MountOptions::default() };
    options.arguments.push("--cache-mib=8".into());
    let capability = Capability { mode: AccessMode::MultiNodeMultiWriter, options, group: None };
    let stage =
        StageRequest { staging: kubelet("stage").join("globalmount"), capability: capability.clone(), ..b.stage() };
    let pod = |name: &str, readonly| PublishRequest {
        staging: stage.staging.clone(),
        target: kubelet(name).join("mount"),
        capability: capability.clone(),
        readonly,
        ..b.pod(name)
    };
    let (rw, ro) = (pod("rw", false), pod("ro", true));
    let right = Attachment {
        name: "vol".into(),
        part: String::new(),
        mode: AccessMode::MultiNodeMultiWriter,
        writer: true,
        generation: 9,
    };
    b.node.stage(&stage).await.unwrap();
    b.node.publish(&rw).await.unwrap();
    b.node.publish(&ro).await.unwrap();
    let attached = Attached(vec![right]);
    assert_eq!(b.node.find_lost(&attached).await.unwrap(), 0); // not lost
    for alive in [true, false] {
        fs::remove_dir_all(b.root.join("records")).unwrap();
        if !alive {
            umount2(&stage.staging, MntFlags::MNT_DETACH).unwrap();
            drop(unserved(&stage.staging));
        }
        b.restart();
        assert_eq!(b.node.find_lost(&Attached(Vec::new())).await.unwrap(), 0); // no right to mount: left alone
        assert_eq!(b.node.find_lost(&attached).await.unwrap(), 1);
        assert_eq!(b.node.find_lost(&attached).await.unwrap(), 0);
        b.events.0.lock().clear();
        assert_eq!(b.node.reconcile().await.unwrap(), Pass { volumes: 1, ..Pass::default() });
        assert_eq!(b.events.0.lock().is_empty(), alive);
        // The orchestrator knows more than was found, and is believed.
        b.node.stage(&stage).await.unwrap();
        b.node.publish(&rw).await.unwrap();
        b.node.publish(&ro).await.unwrap();
        for path in [&stage.staging, &rw.target, &ro.target] {
            assert_eq!(b.layers(path), 1, "{}", path.display());
        }
        assert!(Mounts::read().unwrap().top(&ro.target).is_some_and(|m| m.has("ro") && m.has("noexec")));
        let other = PublishRequest { readonly: false, ..ro.clone() };
        assert_eq!(code(b.node.publish(&other).await), Code::AlreadyExists); // and remembered
    }
    assert_eq!(b.runtime.staged.lock().last().map(|s| s.generation), Some(9));
    for pod in [&rw, &ro] {
        b.node.unpublish(&volume(), &pod.target).await.unwrap();
    }
    b.node.unstage(&volume(), &stage.staging).await.unwrap();
    b.assert_clean();
}
