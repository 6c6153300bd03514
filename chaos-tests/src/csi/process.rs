//! The place `process`: a real cluster, one controller plugin, node plugins in mount namespaces, and what kubelet and
//! the attacher do, with kubelet's paths and files.

use super::{
    calls::Caller,
    daemon::{Daemon, Wish},
    driver::{Driver, Published, Staged, Volume},
    handed::HandedOver,
    holders::{Holders, RUNTIME, whole},
    namespace::Namespace,
    plugin::Plugin,
    pod::{Pod, View},
};
use crate::stack::Stack;
use anyhow::{Context, Result, ensure};
use fusefs_local_cluster::Shape;
use fusefs_proto::csi::{
    controller_client::ControllerClient,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    *,
};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Name of the driver.
const DRIVER: &str = "csi.fusefs.io";
/// Journals are small, so that many fit.
const FLAGS: &[&str] = &["journal_mib=16", "cache_mib=16", "write_buffer_mib=8"];
/// Size of every volume.
const BYTES: i64 = 1 << 30;
/// Between two repairs of the node plugins: often, so that tests do not wait.
const REPAIR_SECONDS: &str = "2";

/// Who makes the mounts of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// `fusefs mount`, started by the plugin.
    Process,
    /// The plugin, which hands them over to a keeper and to hosts of `fusefs mountd`.
    Mountd,
}

/// One node.
pub struct Node {
    /// Name.
    pub name: String,
    /// Its mounts. Last to go.
    pub namespace: Namespace,
    /// Its plugin.
    pub plugin: Plugin,
    /// Who holds and serves mounts that the plugin hands over.
    pub handed: Option<HandedOver>,
    /// kubelet's directory.
    pub kubelet: PathBuf,
    /// The plugin's directory.
    pub state: PathBuf,
}

/// The whole place.
pub struct Rig {
    /// Nodes. They go before the servers.
    pub nodes: Vec<Node>,
    /// Controller.
    pub controller: Plugin,
    /// Makes calls.
    pub caller: Caller,
    /// Servers.
    pub stack: Stack,
}

impl Rig {
    /// Starts servers, controller and `nodes` nodes.
    pub fn start(nodes: usize, runtime: Runtime) -> Result<Rig> {
        let graces = [("FUSEFS_OBJECT_GRACE_MS", "1000"), ("FUSEFS_SWEEP_GRACE_MS", "1000")];
        let stack = Stack::start_with(Shape { masters: 1, metanodes: 1 }, &graces)?;
        let caller = Caller::new()?;
        let masters = cluster_arguments(&stack);
        let arguments = ["--mode", "controller"].map(String::from).into_iter().chain(masters).collect();
        let (program, dir) = (stack.program(), stack.tmp());
        let wish = Wish { name: "ctl", program, inside: None, arguments, dir };
        let controller = Plugin::start(wish)?;
        let nodes = (0..nodes).map(|i| Node::start(&stack, i, runtime)).collect::<Result<Vec<_>>>()?;
        let rig = Rig { nodes, controller, caller, stack };
        rig.caller.wait_ready(&rig.controller)?;
        rig.nodes.iter().try_for_each(|n| rig.caller.wait_ready(&n.plugin))?;
        Ok(rig)
    }

    /// Every process that this rig starts again.
    pub fn daemons(&self) -> Vec<&Daemon> {
        let handed = self.nodes.iter().filter_map(|n| n.handed.as_ref());
        let plugins = self.nodes.iter().map(|n| &n.plugin).chain([&self.controller]);
        plugins.map(|p| &**p).chain(handed.flat_map(|h| [&h.keeper, &h.mountd])).collect()
    }

    /// Logs of the plugins and servers are copied there before the scratch directory goes: `FUSEFS_CHAOS_LOGS`.
    pub fn keep_logs(&self) {
        let Some(to) = std::env::var_os("FUSEFS_CHAOS_LOGS").map(PathBuf::from) else { return };
        let all = self.daemons().into_iter().map(Daemon::log);
        let mounts = self.nodes.iter().flat_map(|n| super::holders::entries(&n.state.join("mounts")));
        let mounts: Vec<PathBuf> = mounts.map(|d| d.join("mount.log")).collect();
        let _ = fs::create_dir_all(&to); // only a help
        for log in all.chain(mounts).chain(super::holders::entries(&self.stack.dir.root().join("log"))) {
            let name: String = log.display().to_string().split('/').skip(3).collect::<Vec<_>>().join("_");
            let _ = fs::copy(&log, to.join(name));
        }
    }

    /// kubelet's staging path of a volume.
    pub fn staging(&self, node: usize, id: &str) -> PathBuf {
        let hash = hex::encode(Sha256::digest(id.as_bytes()));
        self.nodes[node].kubelet.join("plugins/kubernetes.io/csi").join(DRIVER).join(hash).join("globalmount")
    }

    /// kubelet's target path of a volume of a pod.
    pub fn target(&self, node: usize, id: &str, pod: &str) -> PathBuf {
        let volumes = self.nodes[node].kubelet.join("pods").join(pod).join("volumes/kubernetes.io~csi");
        volumes.join(id.replace('/', "-")).join("mount")
    }

    /// Makes the volume known without a call, for volumes that exist.
    pub fn volume(id: &str, mode: Mode) -> Volume {
        Volume { id: id.into(), mode, flags: FLAGS.iter().map(|f| (*f).to_owned()).collect() }
    }

    /// ControllerPublishVolume; the publish context.
    pub fn attach(&self, volume: &Volume, node: usize) -> Result<Staged> {
        let request = ControllerPublishVolumeRequest {
            volume_id: volume.id.clone(),
            node_id: self.nodes[node].name.clone(),
            volume_capability: Some(capability(volume)),
            ..Default::default()
        };
        let reply = self.caller.call("ControllerPublish", &self.controller, async |c| {
            ControllerClient::new(c).controller_publish_volume(request.clone()).await
        })?;
        let staging = self.staging(node, &volume.id);
        Ok(Staged { volume: volume.clone(), node, context: reply.publish_context, staging })
    }

    /// ControllerUnpublishVolume.
    pub fn detach(&self, id: &str, node: usize) -> Result<()> {
        let (volume_id, node_id) = (id.to_owned(), self.nodes[node].name.clone());
        let request = ControllerUnpublishVolumeRequest { volume_id, node_id, ..Default::default() };
        let unpublished = self.caller.call("ControllerUnpublish", &self.controller, async |c| {
            ControllerClient::new(c).controller_unpublish_volume(request.clone()).await
        });
        unpublished.map(|_| ())
    }

    /// The request that kubelet makes, for tests of single tries.
    pub fn stage_request(staged: &Staged) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: staged.volume.id.clone(),
            publish_context: staged.context.clone(),
            staging_target_path: staged.staging.display().to_string(),
            volume_capability: Some(capability(&staged.volume)),
            ..Default::default()
        }
    }

    /// kubelet's MountDevice: directory, vol_data.json, NodeStageVolume.
    pub fn node_stage(&self, staged: &Staged) -> Result<()> {
        // The directory exists already when kubelet comes again, and may be a mount: mkdir says so without a look inside.
        make_dir(&self.nodes[staged.node].namespace, &staged.staging)?;
        let data = serde_json::json!({ "driverName": DRIVER, "volumeHandle": staged.volume.id });
        write_beside(&staged.staging, &data)?;
        let request = Rig::stage_request(staged);
        let staged = self.caller.call("NodeStage", &self.nodes[staged.node].plugin, async |c| {
            NodeClient::new(c).node_stage_volume(request.clone()).await
        });
        staged.map(|_| ())
    }

    /// kubelet's UnmountDevice: NodeUnstageVolume, then directory and vol_data.json go.
    pub fn node_unstage(&self, staged: &Staged) -> Result<()> {
        let (id, path) = (staged.volume.id.clone(), staged.staging.display().to_string());
        let request = NodeUnstageVolumeRequest { volume_id: id, staging_target_path: path };
        let node = &self.nodes[staged.node];
        self.caller.call("NodeUnstage", &node.plugin, async |c| {
            NodeClient::new(c).node_unstage_volume(request.clone()).await
        })?;
        ensure!(node.namespace.at(&staged.staging)?.is_empty(), "unstaged, but mounted: {}", staged.staging.display());
        remove_with_data(&staged.staging)
    }

    /// NodeGetVolumeStats: whether the volume is healthy.
    pub fn healthy(&self, node: usize, id: &str, path: &Path) -> Result<bool> {
        let (volume_id, volume_path) = (id.to_owned(), path.display().to_string());
        let request = NodeGetVolumeStatsRequest { volume_id, volume_path, ..Default::default() };
        let reply = self.caller.call("NodeGetVolumeStats", &self.nodes[node].plugin, async |c| {
            NodeClient::new(c).node_get_volume_stats(request.clone()).await
        })?;
        Ok(reply.volume_condition.is_some_and(|c| !c.abnormal))
    }

    /// ControllerExpandVolume.
    pub fn expand(&self, id: &str, bytes: i64) -> Result<i64> {
        let range = CapacityRange { required_bytes: bytes, limit_bytes: 0 };
        let volume_id = id.to_owned();
        let request = ControllerExpandVolumeRequest { volume_id, capacity_range: Some(range), ..Default::default() };
        let reply = self.caller.call("ControllerExpand", &self.controller, async |c| {
            ControllerClient::new(c).controller_expand_volume(request.clone()).await
        })?;
        Ok(reply.capacity_bytes)
    }

    /// A publish call as kubelet makes it.
    pub fn publish_request(&self, p: &Published) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_id: p.staged.volume.id.clone(),
            publish_context: p.staged.context.clone(),
            staging_target_path: p.staged.staging.display().to_string(),
            target_path: p.target.display().to_string(),
            volume_capability: Some(capability(&p.staged.volume)),
            readonly: p.readonly,
            ..Default::default()
        }
    }
}

impl Node {
    fn start(stack: &Stack, i: usize, runtime: Runtime) -> Result<Node> {
        let name = format!("node-{i}");
        let root = stack.tmp().canonicalize()?.join(format!("n{i}"));
        let (kubelet, state) = (root.join("kubelet"), root.join("csi"));
        fs::create_dir_all(&kubelet)?;
        fs::create_dir_all(RUNTIME)?;
        // As on a real node: what is mounted below kubelet's directory is shared with the containers that ask for it.
        let k = kubelet.display();
        let script = format!(
            "mount --bind '{k}' '{k}' && mount --make-rshared '{k}' && mount -t tmpfs -o mode=700 run '{RUNTIME}'"
        );
        let namespace = Namespace::new(None, "private", &script)?;
        let handed = match runtime {
            Runtime::Process => None,
            Runtime::Mountd => Some(HandedOver::start(&name, stack.program(), &namespace, &root, &state)?),
        };
        let own = ["--mode", "node", "--node-name", &name, "--unstage-timeout", "30"];
        let mut arguments: Vec<String> = own.map(String::from).into();
        let process = || ["--runtime", "process"].map(String::from).into();
        arguments.extend(handed.as_ref().map_or_else(process, HandedOver::arguments));
        arguments.extend(["--state-dir".into(), state.display().to_string()]);
        arguments.extend(["--repair-interval".into(), REPAIR_SECONDS.into()]);
        arguments.extend(cluster_arguments(stack));
        let (program, inside, dir) = (stack.program(), Some(&namespace), stack.tmp());
        let plugin = Plugin::start(Wish { name: &name, program, inside, arguments, dir })?;
        Ok(Node { name, namespace, plugin, handed, kubelet, state })
    }
}

impl Drop for Node {
    /// Whatever state the test ended in: nothing of this node's mounts runs on.
    fn drop(&mut self) {
        self.plugin.kill();
        for daemon in self.handed.iter().flat_map(|h| [&h.mountd, &h.keeper]) {
            daemon.kill();
        }
        super::census::end_mounts(&self.namespace, &self.state);
    }
}

fn cluster_arguments(stack: &Stack) -> Vec<String> {
    let [(_, masters), (_, token)] = stack.env();
    vec!["--master".into(), masters, "--token-file".into(), token]
}

fn capability(volume: &Volume) -> VolumeCapability {
    let mount = MountVolume { fs_type: String::new(), mount_flags: volume.flags.clone(), ..Default::default() };
    VolumeCapability {
        access_mode: Some(AccessMode { mode: volume.mode.into() }),
        access_type: Some(AccessType::Mount(mount)),
    }
}

fn make_dir(node: &Namespace, dir: &Path) -> Result<()> {
    if node.at(dir)?.is_empty() {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    Ok(())
}

/// kubelet keeps what it needs for the negation beside the directory.
fn write_beside(dir: &Path, data: &serde_json::Value) -> Result<()> {
    let parent = dir.parent().context("a parent")?;
    fs::create_dir_all(parent)?;
    Ok(fs::write(parent.join("vol_data.json"), data.to_string())?)
}

fn remove_with_data(dir: &Path) -> Result<()> {
    let gone = |r: std::io::Result<()>| match r {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("removing {}", dir.display())),
    };
    gone(fs::remove_dir(dir))?;
    let parent = dir.parent().context("a parent")?;
    gone(fs::remove_file(parent.join("vol_data.json")))?;
    gone(fs::remove_dir(parent))
}

impl Driver for Rig {
    fn nodes(&self) -> usize {
        self.nodes.len()
    }

    fn create(&self, name: &str, mode: Mode) -> Result<Volume> {
        let asked = Rig::volume(name, mode);
        let request = CreateVolumeRequest {
            name: name.into(),
            capacity_range: Some(CapacityRange { required_bytes: BYTES, limit_bytes: 0 }),
            volume_capabilities: vec![capability(&asked)],
            ..Default::default()
        };
        let reply = self.caller.call("CreateVolume", &self.controller, async |c| {
            ControllerClient::new(c).create_volume(request.clone()).await
        })?;
        let id = reply.volume.context("a volume")?.volume_id;
        Ok(Volume { id, ..asked })
    }

    fn delete(&self, volume: &Volume) -> Result<()> {
        let request = DeleteVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
        let deleted = self.caller.call("DeleteVolume", &self.controller, async |c| {
            ControllerClient::new(c).delete_volume(request.clone()).await
        });
        deleted.map(|_| ())
    }

    fn stage(&self, volume: &Volume, node: usize) -> Result<Staged> {
        let staged = self.attach(volume, node)?;
        self.node_stage(&staged)?;
        Ok(staged)
    }

    fn unstage(&self, staged: &Staged) -> Result<()> {
        self.node_unstage(staged)?;
        self.detach(&staged.volume.id, staged.node)
    }

    fn publish(&self, staged: &Staged, pod: &str, readonly: bool) -> Result<Published> {
        let target = self.target(staged.node, &staged.volume.id, pod);
        let node = &self.nodes[staged.node];
        let data = serde_json::json!({
            "attachmentID": format!("csi-{}-{}", staged.volume.id, node.name), "driverName": DRIVER, "nodeName": node.name,
            "specVolID": staged.volume.id, "volumeHandle": staged.volume.id, "volumeLifecycleMode": "Persistent",
        });
        write_beside(&target, &data)?;
        let published = Published { staged: staged.clone(), pod: pod.into(), target, readonly };
        let request = self.publish_request(&published);
        self.caller.call("NodePublish", &node.plugin, async |c| {
            NodeClient::new(c).node_publish_volume(request.clone()).await
        })?;
        let lines = node.namespace.at(&published.target)?;
        ensure!(lines.len() == 1, "published, but {} is mounted {} times", published.target.display(), lines.len());
        Ok(published)
    }

    fn unpublish(&self, p: &Published) -> Result<()> {
        let (id, path) = (p.staged.volume.id.clone(), p.target.display().to_string());
        let request = NodeUnpublishVolumeRequest { volume_id: id, target_path: path };
        let node = &self.nodes[p.staged.node];
        self.caller.call("NodeUnpublish", &node.plugin, async |c| {
            NodeClient::new(c).node_unpublish_volume(request.clone()).await
        })?;
        ensure!(node.namespace.at(&p.target)?.is_empty(), "unpublished, but mounted: {}", p.target.display());
        ensure!(!p.target.exists(), "the target directory is left: {}", p.target.display());
        remove_with_data(&p.target)?;
        let pod = node.kubelet.join("pods").join(&p.pod);
        let empty = fs::remove_dir(pod.join("volumes/kubernetes.io~csi")).is_ok();
        if empty {
            fs::remove_dir(pod.join("volumes"))?;
            fs::remove_dir(pod)?;
        }
        Ok(())
    }

    fn pod(&self, p: &Published, view: View) -> Result<Pod> {
        let node = &self.nodes[p.staged.node];
        let data = self.stack.tmp().canonicalize()?.join("pods").join(format!("{}-{}", p.pod, p.staged.volume.id));
        fs::create_dir_all(&data)?;
        Pod::start(&node.namespace, &node.kubelet, &p.target, &data, view)
    }

    fn whole(&self, staged: &Staged) -> Option<Holders> {
        let node = &self.nodes[staged.node];
        match &node.handed {
            None => whole(&node.namespace, &staged.staging),
            Some(handed) => handed.whole(&node.namespace, node.plugin.pid()?, staged),
        }
    }

    fn hands_over(&self) -> bool {
        self.nodes.iter().any(|n| n.handed.is_some())
    }

    fn kill_plugin(&self, node: Option<usize>) -> Result<BTreeSet<u32>> {
        let plugin = node.map_or(&self.controller, |n| &self.nodes[n].plugin);
        let killed = plugin.kill();
        plugin.revive()?;
        Ok(killed.into_iter().collect())
    }

    fn kill_node_keeper(&self, node: usize) -> Result<BTreeSet<u32>> {
        let handed = self.nodes[node].handed.as_ref().context("the node has no keeper")?;
        let killed = handed.keeper.kill();
        handed.revive()?;
        Ok(killed.into_iter().collect())
    }

    fn kill_mountd(&self, node: usize, hosts: bool) -> Result<BTreeSet<u32>> {
        let handed = self.nodes[node].handed.as_ref().context("the node has no mountd")?;
        let killed = handed.kill_mountd(hosts)?;
        handed.revive()?;
        Ok(killed)
    }

    fn plugin_ready(&self, node: Option<usize>) -> Result<()> {
        self.caller.wait_ready(node.map_or(&self.controller, |n| &self.nodes[n].plugin))
    }
}
