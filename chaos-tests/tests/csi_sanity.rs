//! csi-sanity, which nobody here wrote, against the real driver: masters, metanodes, an S3 server, FUSE mounts, controller
//! and node plugin on sockets of their own. Once undisturbed, and once through a proxy that kills the plugins.
#![cfg(target_os = "linux")]

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use fusefs_chaos_tests::{
    stack::{Stack, eventually},
    versitygw,
};
use fusefs_local_cluster::{Child, Shape};
use fusefs_proto::csi::{
    ControllerGetCapabilitiesRequest, GetPluginCapabilitiesRequest,
    controller_client::ControllerClient,
    controller_service_capability::{self, rpc::Type as Can},
    identity_client::IdentityClient,
    plugin_capability::{self, service::Type as Service},
};
use http_body_util::{BodyExt, Collected, Either, Empty};
use hyper::{
    Request, Response,
    body::{Body, Incoming},
    client, server,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    os::unix::net::UnixStream as StdStream,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{RwLock, oneshot},
    task::JoinHandle,
    time::Instant,
};
use tonic::transport::{Channel, Endpoint};

/// How to get the suite.
const INSTALL: &str = "go install github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.5.0";
/// Specs of version 5.5.0; fewer mean an older suite.
const SPECS_MIN: usize = 95;
/// Of them, those that our capabilities make run.
const RUN_MIN: usize = 58;
/// Between two kills.
const KILL_EVERY: Duration = Duration::from_secs(5);
/// How long one pass may take on a busy machine.
const PASS_MAX: Duration = Duration::from_secs(600);
/// The suite makes dozens of mounts; none of them writes much.
const JOURNAL_MIB: &str = "8";

/// The capability without which a spec has nothing to test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Controller(Can),
    Plugin(Service),
    /// The suite itself runs it only when asked to, for drivers whose controller counts a node's volumes; ours leaves that
    /// to the scheduler, which knows NodeGetInfo's answer.
    Flag,
}

/// Why the suite skips, word for word.
const SKIPS: &[(&str, Needs)] = &[
    ("GetCapacity not supported", Needs::Controller(Can::GetCapacity)),
    ("Snapshot not supported", Needs::Controller(Can::CreateDeleteSnapshot)),
    ("CreateSnapshot not supported", Needs::Controller(Can::CreateDeleteSnapshot)),
    ("DeleteSnapshot not supported", Needs::Controller(Can::CreateDeleteSnapshot)),
    ("ListSnapshots not supported", Needs::Controller(Can::ListSnapshots)),
    ("GetSnapshot not supported", Needs::Controller(Can::GetSnapshot)),
    ("Volume Cloning not supported", Needs::Controller(Can::CloneVolume)),
    ("Modify volume not supported", Needs::Controller(Can::ModifyVolume)),
    ("Modify Volume not supported", Needs::Controller(Can::ModifyVolume)),
    ("ControllerModifyVolume not supported", Needs::Controller(Can::ModifyVolume)),
    ("GroupControllerService not supported", Needs::Plugin(Service::GroupControllerService)),
    ("VolumeGroupSnapshots not supported", Needs::Plugin(Service::GroupControllerService)),
    ("testnodevolumeattachlimit not enabled", Needs::Flag),
];

/// Switched off in the suite itself (`XIt`), for every driver; `csi-driver/tests/it/list.rs` has one of our own in its place.
const SWITCHED_OFF: &[&str] = &[
    "pagination should detect volumes added between pages and accept tokens when the last volume from a page is deleted",
];

/// The binary: $FUSEFS_CSI_SANITY, PATH, $HOME/go/bin.
fn find() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FUSEFS_CSI_SANITY") {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let go = std::env::var_os("HOME").map(|h| Path::new(&h).join("go/bin"));
    std::env::split_paths(&path).chain(go).map(|d| d.join("csi-sanity")).find(|p| p.is_file())
}

/// One plugin process.
struct Plugin {
    name: &'static str,
    socket: PathBuf,
    child: Child,
}

impl Plugin {
    fn start(&mut self) -> Result<()> {
        let socket = self.socket.clone();
        self.child.start()?;
        // A socket that a killed plugin left behind refuses.
        self.child.wait_for(|| StdStream::connect(&socket).is_ok())
    }
}

/// Everything but the suite.
struct Rig {
    stack: Stack,
    root: PathBuf,
    controller: Plugin,
    node: Plugin,
    /// Those who hold and serve the mounts that the node plugin makes; none where it only starts `fusefs mount`.
    _hosts: Vec<Child>,
}

impl Rig {
    fn start(handed_over: bool) -> Result<Rig> {
        let stack = Stack::start(Shape { masters: 3, metanodes: 3 })?;
        let root = stack.tmp().join("csi");
        std::fs::create_dir(&root)?;
        let state = root.join("state").display().to_string();
        let plugin = |name: &'static str, own: &[&str]| -> Result<Plugin> {
            let socket = root.join(format!("{name}.sock"));
            let endpoint = format!("unix://{}", socket.display());
            let args = ["csi", "--log", "info", "--endpoint", &endpoint, "--mode", name];
            let args = args.iter().chain(own).map(|a| (*a).to_owned()).collect();
            let log = stack.dir.root().join("log").join(format!("csi-{name}.log"));
            let mut child = Child::new(name, stack.program(), args, None, &log)?;
            for (key, value) in stack.env() {
                child = child.env(key, &value);
            }
            Ok(Plugin { name, socket, child })
        };
        let controller = plugin("controller", &["--capacity-pool", "1PiB"])?;
        let keeper = root.join("keeper/keeper.sock").display().to_string();
        let mut node_args = vec!["--node-name", "node-a", "--state-dir", &state, "--journal-mib", JOURNAL_MIB];
        let mut hosts = Vec::new();
        if handed_over {
            node_args.extend(["--runtime", "mountd", "--keeper-socket", &keeper, "--host-user", "0:0"]);
            let served = format!("{state}/hosts");
            for (name, args) in [("node-keeper", ["--socket", &keeper]), ("mountd", ["--hosts", &served])] {
                let log = stack.dir.root().join("log").join(format!("{name}.log"));
                let args = std::iter::once(name).chain(args).map(str::to_owned).collect();
                let mut child = Child::new(name, stack.program(), args, None, &log)?;
                child.start()?;
                hosts.push(child);
            }
        }
        let node = plugin("node", &node_args)?;
        let mut rig = Rig { stack, root, controller, node, _hosts: hosts };
        rig.controller.start()?;
        rig.node.start()?;
        Ok(rig)
    }

    /// Every volume, mount, record, journal and process is gone.
    fn ensure_clean(&self) -> Result<()> {
        let left = mounts_below(&self.root)?;
        ensure!(left.is_empty(), "mounts are left: {left:?}");
        let volumes = self.stack.fusefs(&["volume", "list", "--json"])?;
        let volumes: serde_json::Value = serde_json::from_str(&volumes)?;
        ensure!(volumes.as_array().is_some_and(Vec::is_empty), "volumes are left: {volumes}");
        for dir in ["state/records", "state/mounts"] {
            let entries: Vec<_> = std::fs::read_dir(self.root.join(dir))?.flatten().map(|e| e.path()).collect();
            ensure!(entries.is_empty(), "{dir} still holds {entries:?}");
        }
        eventually(Duration::from_secs(10), || {
            let mut left = processes_of(&self.root.join("state/mounts"))?;
            // Their directories end with a slash and a name; the daemon's own command line does not.
            left.extend(processes_of(&self.root.join("state/hosts/"))?);
            ensure!(left.is_empty(), "processes are left: {left:?}");
            Ok(true)
        })
    }
}

impl Drop for Rig {
    /// Mounts outlive the plugin; after a failure they are still there.
    fn drop(&mut self) {
        self.node.child.kill();
        for point in mounts_below(&self.root).unwrap_or_default().into_iter().rev() {
            let _ = nix::mount::umount2(&point, nix::mount::MntFlags::MNT_DETACH); // gone meanwhile
            let _ = fusefs_fuse_client::fuse::device::set_immutable(&point, false); // so that it can be removed
        }
    }
}

/// Mount points below `root`, in the order of mounting.
fn mounts_below(root: &Path) -> Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points = text.lines().filter_map(|l| l.split(' ').nth(4)).map(PathBuf::from);
    Ok(points.filter(|p| p.starts_with(root)).collect())
}

/// Command lines that name `dir`.
fn processes_of(dir: &Path) -> Result<Vec<String>> {
    let name = dir.display().to_string();
    let line = |e: std::fs::DirEntry| {
        Some(String::from_utf8_lossy(&std::fs::read(e.path().join("cmdline")).ok()?).replace('\0', " "))
    };
    Ok(std::fs::read_dir("/proc")?.flatten().filter_map(line).filter(|l| l.contains(&name)).collect())
}

/// What the plugins say that they can.
struct Advertised {
    controller: Vec<i32>,
    services: Vec<i32>,
}

impl Advertised {
    async fn ask(rig: &Rig) -> Result<Advertised> {
        let connect = async |socket: &Path| -> Result<Channel> {
            Ok(Endpoint::from_shared(format!("unix://{}", socket.display()))?.connect().await?)
        };
        let mut controller = ControllerClient::new(connect(&rig.controller.socket).await?);
        let all = controller.controller_get_capabilities(ControllerGetCapabilitiesRequest {}).await?.into_inner();
        let rpc = |c: fusefs_proto::csi::ControllerServiceCapability| match c.r#type {
            Some(controller_service_capability::Type::Rpc(rpc)) => Some(rpc.r#type),
            _ => None,
        };
        let controller = all.capabilities.into_iter().filter_map(rpc).collect();
        let mut identity = IdentityClient::new(connect(&rig.node.socket).await?);
        let all = identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await?.into_inner();
        let service = |c: fusefs_proto::csi::PluginCapability| match c.r#type {
            Some(plugin_capability::Type::Service(s)) => Some(s.r#type),
            _ => None,
        };
        Ok(Advertised { controller, services: all.capabilities.into_iter().filter_map(service).collect() })
    }

    fn has(&self, needs: Needs) -> bool {
        match needs {
            Needs::Controller(can) => self.controller.contains(&(can as i32)),
            Needs::Plugin(service) => self.services.contains(&(service as i32)),
            Needs::Flag => false,
        }
    }
}

/// What the report says.
#[derive(Default)]
struct Verdict {
    passed: usize,
    skipped: Vec<(String, String)>,
    failed: Vec<String>,
}

impl Verdict {
    fn read(report: &Path) -> Result<Verdict> {
        let text = std::fs::read(report).context("the suite wrote no report")?;
        let suites: serde_json::Value = serde_json::from_slice(&text)?;
        let mut verdict = Verdict::default();
        let specs = suites.as_array().into_iter().flatten().filter_map(|s| s["SpecReports"].as_array()).flatten();
        for spec in specs.filter(|s| s["LeafNodeType"] == "It") {
            let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
            let above = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().map(text);
            let name = above.chain([text(&spec["LeafNodeText"])]).collect::<Vec<_>>().join(" / ");
            let why = text(&spec["Failure"]["Message"]);
            match spec["State"].as_str() {
                Some("passed") => verdict.passed += 1,
                Some("pending") if SWITCHED_OFF.contains(&&*text(&spec["LeafNodeText"])) => {}
                Some("skipped") => verdict.skipped.push((name, why)),
                _ => verdict.failed.push(format!("{name}: {why}")),
            }
        }
        Ok(verdict)
    }

    /// Every spec passed, except those that a capability which we do not claim would need.
    fn check(&self, advertised: &Advertised, log: &Path) -> Result<()> {
        for (name, why) in &self.skipped {
            println!("  not offered: {name} ({why})");
            let Some((_, needs)) = SKIPS.iter().find(|(text, _)| text == why) else {
                bail!("{name} was skipped for a reason that is not in the list: {why}");
            };
            ensure!(!advertised.has(*needs), "{name} was skipped ({why}), but the driver advertises {needs:?}");
        }
        ensure!(
            self.failed.is_empty(),
            "{} specs failed; see {}:\n{}",
            self.failed.len(),
            log.display(),
            self.failed.join("\n")
        );
        let all = self.passed + self.skipped.len();
        ensure!(all >= SPECS_MIN, "the suite has only {all} specs: an older one? {INSTALL}");
        ensure!(self.passed >= RUN_MIN, "only {} specs ran", self.passed);
        Ok(())
    }
}

/// Runs the suite against two sockets.
async fn suite(stack: &Stack, root: &Path, pass: &str, controller: &Path, node: &Path) -> Result<(Verdict, PathBuf)> {
    let dir = stack.dir.root().join("log");
    let (report, log) = (dir.join(format!("sanity-{pass}.json")), dir.join(format!("sanity-{pass}.log")));
    let out = std::fs::File::create(&log)?;
    let unix = |p: &Path| format!("unix://{}", p.display());
    let mut command = tokio::process::Command::new(find().context(INSTALL)?);
    command
        .arg(format!("-csi.endpoint={}", unix(node)))
        .arg(format!("-csi.controllerendpoint={}", unix(controller)))
        .arg(format!("-csi.mountdir={}", root.join("mount").display()))
        .arg(format!("-csi.stagingdir={}", root.join("staging").display()))
        .arg(format!("-ginkgo.json-report={}", report.display()))
        .args(["-ginkgo.no-color", "-ginkgo.v"])
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .kill_on_drop(true);
    let status = tokio::time::timeout(PASS_MAX, command.status()).await.context("the suite does not end")??;
    let verdict = Verdict::read(&report).with_context(|| format!("{status}; see {}", log.display()))?;
    ensure!(status.success() || !verdict.failed.is_empty(), "csi-sanity ended with {status}; see {}", log.display());
    Ok((verdict, log))
}

/// Calls on their way to one plugin hold it for reading; whoever kills the plugin holds it for writing: then no call is in
/// flight, and new ones wait.
#[derive(Default)]
struct Gate {
    calls: RwLock<()>,
    served: AtomicU64,
}

/// Serves on `socket` by asking `plugin`.
fn proxy(socket: &Path, plugin: &Path, gate: Arc<Gate>) -> Result<JoinHandle<()>> {
    let (listener, plugin) = (UnixListener::bind(socket)?, plugin.to_owned());
    Ok(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (plugin, gate) = (plugin.clone(), gate.clone());
            let service = service_fn(move |request| forward(request, plugin.clone(), gate.clone()));
            let server = server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    }))
}

/// Nothing, or data with trailers.
type Answer = Either<Empty<Bytes>, Collected<Bytes>>;

/// One call, whatever it is: gRPC is HTTP/2 with trailers.
async fn forward(request: Request<Incoming>, plugin: PathBuf, gate: Arc<Gate>) -> Result<Response<Answer>> {
    let _call = gate.calls.read().await;
    let (head, body) = request.into_parts();
    let body = body.collect().await?;
    let stream = TokioIo::new(UnixStream::connect(&plugin).await?);
    let (mut sender, connection) = client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
    let connection = tokio::spawn(connection);
    let (head, body) = sender.send_request(Request::from_parts(head, body)).await?.into_parts();
    // Headers alone are an answer of their own kind, with the status in them.
    let body = if body.is_end_stream() { Answer::Left(Empty::new()) } else { Answer::Right(body.collect().await?) };
    connection.abort();
    gate.served.fetch_add(1, Relaxed);
    Ok(Response::from_parts(head, body))
}

/// Kills the plugins in turn until told to end; how many kills there were.
async fn kills(plugins: [(&mut Plugin, Arc<Gate>); 2], mut end: oneshot::Receiver<()>) -> Result<usize> {
    let (begin, mut count) = (Instant::now(), 0);
    let mut ticks = tokio::time::interval_at(begin + KILL_EVERY, KILL_EVERY);
    let mut plugins = plugins;
    loop {
        tokio::select! {
            _ = &mut end => return Ok(count),
            _ = ticks.tick() => {}
        }
        let (plugin, gate) = &mut plugins[count % 2];
        let hold = gate.calls.write().await;
        let pid = plugin.child.pid();
        ensure!(plugin.child.kill(), "the {} plugin was not running: {}", plugin.name, plugin.child.log_tail());
        tokio::task::block_in_place(|| plugin.start())?;
        drop(hold);
        count += 1;
        let (at, served) = (begin.elapsed().as_secs_f32(), gate.served.load(Relaxed));
        println!("  {at:6.1} s: kill {count}: {} (pid {pid:?}) after {served} calls", plugin.name);
    }
}

/// The second pass.
async fn disturbed(rig: &mut Rig) -> Result<(Verdict, PathBuf, usize)> {
    let gates = [Arc::<Gate>::default(), Arc::<Gate>::default()];
    let fronts = [rig.root.join("c.sock"), rig.root.join("n.sock")];
    let proxies = [
        proxy(&fronts[0], &rig.controller.socket, gates[0].clone())?,
        proxy(&fronts[1], &rig.node.socket, gates[1].clone())?,
    ];
    let Rig { stack, root, controller, node, .. } = rig;
    let (stop, stopped) = oneshot::channel();
    let [first, second] = gates;
    let killing = kills([(controller, first), (node, second)], stopped);
    let running = async {
        let ended = suite(stack, root, "kills", &fronts[0], &fronts[1]).await;
        let _ = stop.send(()); // after a failure nobody listens any more
        ended
    };
    let (ended, count) = tokio::join!(running, killing);
    proxies.iter().for_each(JoinHandle::abort);
    let (count, (verdict, log)) = (count?, ended?);
    Ok((verdict, log, count))
}

async fn both_passes(handed_over: bool) -> Result<()> {
    let begin = Instant::now();
    let mut rig = tokio::task::block_in_place(|| Rig::start(handed_over))?;
    let advertised = Advertised::ask(&rig).await?;
    println!("stack and plugins: {:.1} s", begin.elapsed().as_secs_f32());

    let begin = Instant::now();
    let (controller, node) = (rig.controller.socket.clone(), rig.node.socket.clone());
    let (verdict, log) = suite(&rig.stack, &rig.root, "calm", &controller, &node).await?;
    verdict.check(&advertised, &log)?;
    tokio::task::block_in_place(|| rig.ensure_clean())?;
    println!("undisturbed: {} specs passed in {:.1} s", verdict.passed, begin.elapsed().as_secs_f32());

    let (begin, calm) = (Instant::now(), verdict.passed);
    let (verdict, log, kills) = disturbed(&mut rig).await?;
    verdict.check(&advertised, &log)?;
    ensure!(verdict.passed == calm, "{} specs passed, {calm} without kills", verdict.passed);
    ensure!(kills >= 2, "{kills} kills prove nothing");
    tokio::task::block_in_place(|| rig.ensure_clean())?;
    let seconds = begin.elapsed().as_secs_f32();
    println!("with {kills} kills: {} specs passed in {seconds:.1} s", verdict.passed);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_spec_of_what_we_offer_passes_also_when_the_plugins_are_killed() -> Result<()> {
    passes(false).await
}

/// The node plugin mounts, hands the mounts over, and finds them again after each kill.
#[tokio::test(flavor = "multi_thread")]
async fn every_spec_passes_with_mounts_that_are_handed_over() -> Result<()> {
    passes(true).await
}

async fn passes(handed_over: bool) -> Result<()> {
    let missing = match (find(), nix::unistd::geteuid().is_root()) {
        (Some(_), true) => return both_passes(handed_over).await,
        (None, _) => format!("csi-sanity is not installed: {INSTALL}"),
        (_, false) => "mounting in a driver needs root".to_owned(),
    };
    ensure!(versitygw::may_skip(), "{missing}");
    println!("skipped: {missing}");
    Ok(())
}
