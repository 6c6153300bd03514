//! The node half of `fusefs csi`: arguments, and what runs beside the service.

use super::{
    super::pods::{Maker, Tokens},
    pods::Orchestrator,
};
use crate::args::ClusterArgs;
use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use fusefs_csi_driver::{
    Cluster, Masters,
    node::{
        Node, NodeService, NodeSettings,
        announce::keep_announced,
        found::{Attachments, FirstOf},
        helper::Helpers,
    },
    runtime::{
        MountTokens, ProcessRuntime, ProcessSettings, Runtime,
        hosts::HostDirs,
        pod::{HostFinder, NodeKeeper, PodRuntime, PodSettings},
    },
    valid::NodeName,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet};

/// How long a mount may take to serve; kubelet gives up after 120 s and comes again.
const START_TIMEOUT: Duration = Duration::from_secs(100);

/// Who runs the mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RuntimeArg {
    /// Supervised processes of this machine that outlive the driver.
    Process,
    /// Children of one unprivileged daemon, `fusefs mountd`; the driver mounts for them.
    Mountd,
    /// A pod per volume, made by the controller (Kubernetes).
    Pod,
}

/// Options of the node service.
#[derive(Debug, Args)]
#[command(next_help_heading = "Node service")]
pub struct NodeArgs {
    /// Name of this node in the cluster: the name that Kubernetes gives it. Default: the host name.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Directory for records and journals, on a disk that survives reboots.
    #[arg(long, default_value = "/var/lib/fusefs-csi", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Most volumes on this node; 0 = as many as the orchestrator likes.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub max_volumes: u32,
    /// Topology of this node: KEY=VALUE,...
    #[arg(long, value_delimiter = ',', value_parser = segment, value_name = "KEY=VALUE")]
    pub topology: Vec<(String, String)>,
    /// How long NodeUnstageVolume waits for the object store; then what is left stays in the journal.
    #[arg(long, default_value_t = 90, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub unstage_timeout: u64,
    /// Who runs the mounts.
    #[arg(long, value_enum, default_value = "process")]
    pub runtime: RuntimeArg,
    /// Directory of kubelet, at the same path as on the node; with --runtime pod.
    #[arg(long, default_value = "/var/lib/kubelet", value_name = "DIR")]
    pub kubelet_dir: PathBuf,
    /// Socket of the node keeper (`fusefs node-keeper`), which holds duplicates of every mount; with --runtime mountd and
    /// pod.
    #[arg(long, value_name = "PATH")]
    pub keeper_socket: Option<PathBuf>,
    /// Directory that tells `fusefs mountd` what to serve. Default: hosts in the state directory.
    #[arg(long, value_name = "DIR")]
    pub hosts_dir: Option<PathBuf>,
    /// User and group of `fusefs mountd` and of the node keeper: their directories are given to them.
    #[arg(long, default_value = "65532:65532", value_parser = user, value_name = "UID:GID")]
    pub host_user: (u32, u32),
    /// Size of each mount's journal in MiB. Default: that of `fusefs mount`.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=65536))]
    pub journal_mib: Option<u64>,
    /// Seconds between two looks whether every promised mount is there.
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub repair_interval: u64,
}

fn segment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not KEY=VALUE")),
    }
}

fn user(text: &str) -> Result<(u32, u32), String> {
    let pair = text.split_once(':').and_then(|(u, g)| Some((u.parse().ok()?, g.parse().ok()?)));
    pair.ok_or_else(|| format!("`{text}` is not UID:GID"))
}

impl NodeArgs {
    pub(super) fn name(&self) -> Result<NodeName> {
        let name = match &self.node_name {
            Some(name) => name.clone(),
            None => std::fs::read_to_string("/proc/sys/kernel/hostname").context("reading the host name")?,
        };
        NodeName::parse(name.trim()).map_err(|f| anyhow!("--node-name: {}", f.message))
    }

    fn settings(&self, name: &NodeName) -> NodeSettings {
        let mut settings = NodeSettings::new(name.as_str(), self.state_dir.join("records"));
        settings.max_volumes = self.max_volumes.into();
        settings.topology = self.topology.iter().cloned().collect();
        settings.unstage_timeout = Duration::from_secs(self.unstage_timeout);
        settings
    }

    fn runtime(
        &self,
        cluster: &ClusterArgs,
        tokens: MountTokens,
        finder: Option<Arc<dyn HostFinder>>,
    ) -> Result<Arc<dyn Runtime>> {
        match self.runtime {
            RuntimeArg::Process => self.process(cluster, tokens),
            RuntimeArg::Mountd => self.mountd(cluster, tokens),
            RuntimeArg::Pod => {
                let finder = finder.context("--runtime pod needs an API server")?;
                self.hosted(cluster, tokens, self.kubelet_dir.clone(), finder)
            }
        }
    }

    /// Mounts are made here and served elsewhere.
    fn hosted(
        &self,
        cluster: &ClusterArgs,
        tokens: MountTokens,
        base: PathBuf,
        finder: Arc<dyn HostFinder>,
    ) -> Result<Arc<dyn Runtime>> {
        let maker = Maker {
            masters: cluster.master.clone(),
            journal_mib: self.journal_mib,
            credentials: Box::new(Tokens { mount: tokens, cluster: cluster.token_file.clone() }),
        };
        if let Some(dir) = self.keeper_socket.as_deref().and_then(Path::parent) {
            give(dir, self.host_user).with_context(|| format!("directory of the node keeper {}", dir.display()))?;
        }
        let settings = PodSettings {
            base,
            state_dir: self.state_dir.join("mounts"),
            start_timeout: START_TIMEOUT,
            binary: std::env::current_exe()?,
        };
        let keeper = NodeKeeper::new(self.keeper_socket.as_deref());
        let runtime = PodRuntime::new(settings, Arc::new(maker), finder, keeper);
        Ok(runtime.with_context(|| format!("state directory {}", self.state_dir.display()))?)
    }

    fn mountd(&self, cluster: &ClusterArgs, tokens: MountTokens) -> Result<Arc<dyn Runtime>> {
        let hosts = self.hosts_dir.clone().unwrap_or_else(|| self.state_dir.join("hosts"));
        let finder = HostDirs::new(&hosts, self.host_user).with_context(|| hosts.display().to_string())?;
        self.hosted(cluster, tokens, hosts, Arc::new(finder))
    }

    fn process(&self, cluster: &ClusterArgs, tokens: MountTokens) -> Result<Arc<dyn Runtime>> {
        let settings = ProcessSettings {
            binary: std::env::current_exe()?,
            masters: cluster.master.clone(),
            token_file: cluster.token_file.as_deref().map(std::path::absolute).transpose()?,
            state_dir: self.state_dir.join("mounts"),
            start_timeout: START_TIMEOUT,
            journal_mib: self.journal_mib,
        };
        let runtime = ProcessRuntime::new(settings);
        let runtime = runtime.with_context(|| format!("state directory {}", self.state_dir.display()))?;
        Ok(Arc::new(runtime.with_tokens(tokens)))
    }
}

/// The service; `work` gets what goes on beside it: announcing the node, recovery now and repair from time to time.
pub fn start(
    a: &NodeArgs,
    cluster: &ClusterArgs,
    masters: Arc<dyn Cluster>,
    orchestrator: Orchestrator,
    work: &mut JoinSet<()>,
) -> Result<NodeService> {
    let name = a.name()?;
    let helpers = Helpers::own().context("finding this program")?;
    let masters = Masters::new(masters);
    let runtime = a.runtime(cluster, MountTokens::new(masters.clone(), name.clone()), orchestrator.finder)?;
    let node = Node::open(a.settings(&name), runtime, helpers, orchestrator.events)
        .with_context(|| format!("records in {}", a.state_dir.display()))?;
    let (known, announced) = watch::channel(false);
    work.spawn(keep_announced(masters.clone(), name, known));
    let mut attachments: Vec<Arc<dyn Attachments>> = vec![Arc::new(masters)];
    attachments.extend(orchestrator.attachments);
    let attachments = Arc::new(FirstOf(attachments));
    work.spawn(node.clone().keep_reconciled(attachments, Duration::from_secs(a.repair_interval)));
    Ok(NodeService::new(node).announced(announced))
}

/// Makes a directory for sockets that belongs to somebody else (0700).
fn give(dir: &Path, owner: (u32, u32)) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    std::os::unix::fs::chown(dir, Some(owner.0), Some(owner.1))
}

#[cfg(test)]
mod tests {
    use super::segment;

    #[test]
    fn topology_segments() {
        assert_eq!(segment("a/b=c=d"), Ok(("a/b".into(), "c=d".into())));
        for bad in ["", "a", "=b", "a="] {
            assert!(segment(bad).is_err(), "{bad}");
        }
    }
}
