//! Runtime `process` with real mounts. `FUSEFS_BINARY` names the binary `fusefs`; skipped without it, or without root.

mod common;

use common::{helpers, in_namespace};
use fusefs_csi_driver::{
    Masters,
    node::{
        Node, NodeSettings,
        engine::LogEvents,
        helper,
        model::{AccessMode, Capability, PublishRequest, StageRequest, Subdir, VolumeId},
        mounts::Mounts,
        options::MountOptions,
        plan::Health,
        recover::Pass,
    },
    runtime::{MountSpec, MountTokens, ProcessRuntime, ProcessSettings, Runtime, RuntimeStatus},
    valid::{NodeName, VolumeHandle},
};
use fusefs_meta_client::{GrpcTransport, MasterClient, Settings};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// How long anything here may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The disposable process of these tests is this executable.
#[test]
#[ignore = "started by the other tests"]
fn helper_process() {
    helper::answer(&std::env::args().next_back().unwrap_or_default());
}

#[test]
fn real_mounts_survive_the_plugin_and_come_back_after_total_loss() {
    match std::env::var_os("FUSEFS_BINARY") {
        Some(_) => in_namespace("inner"),
        None => {
            assert!(std::env::var_os("CI").is_none(), "FUSEFS_BINARY is not set");
            eprintln!("skipped: FUSEFS_BINARY is not set");
        }
    }
}

/// A complete cluster with the volume `vol-a`.
struct Cluster {
    dev: Child,
    masters: Vec<String>,
    token: PathBuf,
    /// It ends quietly when nobody reads what it says.
    _said: std::io::Lines<BufReader<ChildStdout>>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    fn start(binary: &Path) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let mut dev = Command::new(binary)
            .args(["dev", "--volume", "vol-a", "--data-dir"])
            .arg(dir.path().join("data"))
            .arg(dir.path().join("admin"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(dev.stdout.take().unwrap()).lines();
        let admin = lines.by_ref().map_while(Result::ok).find(|l| l.contains("export FUSEFS_MASTER=")).unwrap();
        let value = |key: &str| {
            let word = admin.split_whitespace().find_map(|w| w.strip_prefix(key)).unwrap();
            word.trim_start_matches('=').to_owned()
        };
        let masters = value("FUSEFS_MASTER").split(',').map(str::to_owned).collect();
        Cluster { masters, token: value("FUSEFS_TOKEN_FILE").into(), dev, _said: lines, _dir: dir }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.dev.id().cast_signed()), Signal::SIGTERM);
        let _ = self.dev.wait();
    }
}

/// Processes that name a path below `root` or hold a file there; never our own group.
fn processes(root: &Path) -> Vec<Pid> {
    let own = nix::unistd::getpgrp().to_string();
    let of = |pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let words: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let (state, group) = (*words.first()?, *words.get(2)?);
        let mut files =
            fs::read_dir(format!("/proc/{pid}/fd")).ok()?.filter_map(|f| fs::read_link(f.ok()?.path()).ok());
        let ours = String::from_utf8_lossy(&line).contains(root.to_str()?) || files.any(|f| f.starts_with(root));
        (ours && state != "Z" && group != own).then(|| Pid::from_raw(pid))
    };
    let pids = fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(of).collect()
}

/// Jitter and trace ids need no more.
#[derive(Default)]
struct Counter(AtomicU64);

impl fusefs_types::Rng for Counter {
    fn next_u64(&self) -> u64 {
        self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed)
    }
}

impl Cluster {
    fn masters(&self) -> Masters {
        let token = fs::read_to_string(&self.token).unwrap().trim().to_owned();
        let settings = Settings::new(self.masters.clone(), token.into());
        Masters::new(Arc::new(MasterClient::new(settings, Arc::new(GrpcTransport::new()), Arc::<Counter>::default())))
    }
    /// What `fusefs ARGUMENTS` says when it is refused with a stolen mount token in place of the cluster token.
    fn refused(&self, binary: &Path, stolen: &Path, arguments: &[&str]) -> String {
        let mut command = Command::new(binary);
        command.args(arguments).env("FUSEFS_MASTER", self.masters.join(",")).env("FUSEFS_TOKEN_FILE", stolen);
        let out = command.output().unwrap();
        assert!(!out.status.success(), "{arguments:?} works with a mount token");
        String::from_utf8_lossy(&out.stderr).into_owned()
    }
}

struct Bench {
    root: PathBuf,
    generation: u64,
    runtime: Arc<ProcessRuntime>,
}

impl Bench {
    fn open(&self) -> Arc<Node> {
        let settings = NodeSettings::new("node-a", self.root.join("records"));
        Node::open(settings, self.runtime.clone(), helpers(), Arc::new(LogEvents)).unwrap()
    }
    fn pod(&self, name: &str, readonly: bool) -> PublishRequest {
        let stage = self.stage();
        PublishRequest {
            volume: stage.volume,
            staging: stage.staging,
            target: self.root.join("pods").join(name),
            capability: stage.capability,
            readonly,
            subdir: Subdir::default(),
        }
    }
    fn stage(&self) -> StageRequest {
        StageRequest {
            volume: VolumeId::parse("vol-a").unwrap(),
            name: "vol-a".into(),
            staging: self.root.join("stage"),
            capability: Capability {
                mode: AccessMode::MultiNodeMultiWriter,
                options: MountOptions::default(),
                group: None,
            },
            generation: self.generation,
        }
    }
    fn device(&self) -> String {
        Mounts::read().unwrap().top(&self.stage().staging).unwrap().device.clone()
    }
    async fn until(&self, what: &str, mut done: impl AsyncFnMut() -> bool) {
        let mut every = tokio::time::interval(Duration::from_millis(100));
        let waiting = async {
            while !done().await {
                every.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}"));
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace"]
async fn inner() {
    let binary = PathBuf::from(std::env::var_os("FUSEFS_BINARY").unwrap());
    let cluster = Cluster::start(&binary);
    let masters = cluster.masters();
    let (handle, name) = (VolumeHandle::parse("vol-a").unwrap(), NodeName::parse("node-a").unwrap());
    masters.announce(&name).await.unwrap();
    let mode = AccessMode::MultiNodeMultiWriter;
    let generation = masters.publish(&handle, &name, mode, false).await.unwrap().generation;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    fs::create_dir(root.join("pods")).unwrap();
    let runtime = Arc::new(
        ProcessRuntime::new(ProcessSettings {
            binary: binary.clone(),
            masters: cluster.masters.clone(),
            token_file: Some(cluster.token.clone()),
            state_dir: root.join("journals"),
            start_timeout: PATIENCE,
            journal_mib: Some(16),
        })
        .unwrap()
        .with_tokens(MountTokens::new(masters.clone(), name.clone())),
    );
    let b = Bench { root, generation, runtime };
    let (stage, pod, read_only) = (b.stage(), b.pod("a", false), b.pod("ro", true));
    let spec = MountSpec {
        volume: "vol".into(),
        key: fusefs_csi_driver::node::paths::hashed(b"vol-a"),
        name: "vol-a".into(),
        staging: stage.staging.clone(),
        read_only: false,
        options: MountOptions::default(),
        generation,
    };
    let node = b.open();
    node.stage(&stage).await.unwrap();
    node.publish(&pod).await.unwrap();
    node.publish(&read_only).await.unwrap();
    fs::write(pod.target.join("file"), b"data").unwrap();
    fs::File::open(pod.target.join("file")).unwrap().sync_all().unwrap();
    assert_eq!(fs::read(read_only.target.join("file")).unwrap(), b"data");
    assert!(fs::write(read_only.target.join("x"), b"").is_err());
    assert_eq!(b.runtime.status(&spec).await, RuntimeStatus::Running);

    // Its processes have the volume's token and nothing more.
    for pid in processes(&b.root) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&line).contains(cluster.token.to_str().unwrap()));
    }
    let (stolen, point) = (b.root.join("stolen"), b.root.join("point"));
    fs::create_dir(&point).unwrap();
    fs::copy(b.root.join("journals").join(&spec.key).join("mount-token"), &stolen).unwrap();
    let steal = ["mount", "--no-keeper", "vol-a", point.to_str().unwrap(), "--attach-generation"];
    let attach = generation.to_string();
    for arguments in
        [&["volume", "list"][..], &["status"], &["volume", "delete", "vol-a", "--yes", "--force"], &steal[..4]]
    {
        let said = cluster.refused(&binary, &stolen, arguments);
        assert!(said.contains("token"), "{arguments:?}: {said}");
    }

    // The plugin dies: what it finds is adopted.
    let (device, before) = (b.device(), processes(&b.root));
    drop(node);
    let node = b.open();
    assert_eq!(node.reconcile().await.unwrap(), Pass { volumes: 1, ..Pass::default() });
    node.stage(&stage).await.unwrap();
    node.publish(&pod).await.unwrap();
    assert_eq!((b.device(), processes(&b.root)), (device.clone(), before.clone()));
    assert!(before.len() >= 3, "{before:?}");

    // Every holder dies.
    let look = async || helpers().look(&stage.staging, Duration::from_secs(2)).await.0;
    b.until("every holder is gone", async || {
        processes(&b.root).into_iter().for_each(|p| {
            let _ = kill(p, Signal::SIGKILL); // it may be gone already
        });
        look().await == Health::Dead
    })
    .await;
    assert!(fs::read(pod.target.join("file")).is_err());
    b.until("recovery", async || node.reconcile().await.unwrap().failed == 0).await;
    assert_ne!(b.device(), device);
    assert_eq!(fs::read(pod.target.join("file")).unwrap(), b"data");
    assert!(fs::write(read_only.target.join("x"), b"").is_err());
    for path in [&stage.staging, &pod.target, &read_only.target] {
        assert_eq!(Mounts::read().unwrap().at(path).len(), 1);
    }

    for target in [&pod.target, &read_only.target] {
        node.unpublish(&stage.volume, target).await.unwrap();
        assert!(!target.exists());
    }
    node.unstage(&stage.volume, &stage.staging).await.unwrap();
    assert!(Mounts::read().unwrap().top(&stage.staging).is_none());
    b.until("the processes end", async || processes(&b.root).is_empty()).await;
    assert_eq!(b.runtime.status(&spec).await, RuntimeStatus::Absent);
    masters.unpublish(&handle, Some(&name)).await.unwrap();
    let said = cluster.refused(&binary, &stolen, &[&steal[..], &[attach.as_str()]].concat());
    assert!(said.contains("not attached"), "{said}");
    assert_eq!(node.stage(&stage).await.unwrap_err().code, tonic::Code::FailedPrecondition);
    fs::remove_dir(&stage.staging).unwrap(); // as kubelet does: nothing protects it any more
}
