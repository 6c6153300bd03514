//! The node half of `fusefs csi`: arguments, and what runs beside the service.

use crate::args::ClusterArgs;
use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use fusefs_csi_driver::{
    Cluster, Masters,
    node::{Node, NodeService, NodeSettings, announce::keep_announced, engine::LogEvents, helper::Helpers},
    runtime::{ProcessRuntime, ProcessSettings, Runtime},
    valid::NodeName,
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinSet};

/// How long a mount may take to serve; kubelet gives up after 120 s and comes again.
const START_TIMEOUT: Duration = Duration::from_secs(100);

/// Who runs the mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RuntimeArg {
    /// Supervised processes of this machine that outlive the driver.
    Process,
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

impl NodeArgs {
    fn name(&self) -> Result<NodeName> {
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

    fn runtime(&self, cluster: &ClusterArgs) -> Result<Arc<dyn Runtime>> {
        let RuntimeArg::Process = self.runtime;
        let settings = ProcessSettings {
            binary: std::env::current_exe()?,
            masters: cluster.master.clone(),
            token_file: cluster.token_file.as_deref().map(std::path::absolute).transpose()?,
            state_dir: self.state_dir.join("mounts"),
            start_timeout: START_TIMEOUT,
            journal_mib: self.journal_mib,
        };
        let runtime = ProcessRuntime::new(settings);
        Ok(Arc::new(runtime.with_context(|| format!("state directory {}", self.state_dir.display()))?))
    }
}

/// The service; `work` gets what goes on beside it: announcing the node, recovery now and repair from time to time.
pub fn start(
    a: &NodeArgs,
    cluster: &ClusterArgs,
    masters: Arc<dyn Cluster>,
    work: &mut JoinSet<()>,
) -> Result<NodeService> {
    let name = a.name()?;
    let helpers = Helpers::own().context("finding this program")?;
    let node = Node::open(a.settings(&name), a.runtime(cluster)?, helpers, Arc::new(LogEvents))
        .with_context(|| format!("records in {}", a.state_dir.display()))?;
    let (known, announced) = watch::channel(false);
    let masters = Masters::new(masters);
    work.spawn(keep_announced(masters.clone(), name, known));
    work.spawn(node.clone().keep_reconciled(Arc::new(masters), Duration::from_secs(a.repair_interval)));
    Ok(NodeService::new(node).announced(announced))
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
