//! `fusefs csi`.

#[cfg(target_os = "linux")]
mod node;
#[cfg(target_os = "linux")]
mod pods;

use super::serve::shutdown;
use crate::{
    args::{ClusterArgs, parse_size},
    cluster::{components, credential},
};
use anyhow::Result;
use clap::{Args, ValueEnum};
use fusefs_csi_driver::{Controller, Endpoint, Identity, Plugin, controller::Settings};
use fusefs_meta_client::MasterClient;
use std::sync::Arc;

/// Which services a socket has besides Identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CsiMode {
    /// The controller service: one or more anywhere in the cluster.
    Controller,
    /// The node service: one on every node (Linux).
    Node,
    /// Both.
    All,
}

/// `fusefs csi`.
///
/// The driver serves the Container Storage Interface 1.12 under the name csi.fusefs.io. StorageClass parameters: store,
/// inodes, partitions, replicas. Volume ids are volume names, or VOLUME/DIRECTORY for a part of one.
#[derive(Debug, Args)]
pub struct CsiArgs {
    /// Unix socket to serve on. A stale one is replaced, a living one is not.
    #[arg(long, env = "CSI_ENDPOINT", value_name = "unix:///PATH")]
    pub endpoint: String,
    /// Services on it.
    #[arg(long, value_enum, default_value = "all")]
    pub mode: CsiMode,
    /// Let the socket's group connect, too (mode 0660 instead of 0600).
    #[arg(long)]
    pub group_socket: bool,
    /// Space that all volumes together may be promised, for example 100TiB. With it free capacity is reported to the
    /// scheduler; without it the object store counts as unlimited.
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub capacity_pool: Option<u64>,
    /// The node service.
    #[cfg(target_os = "linux")]
    #[command(flatten)]
    pub node: node::NodeArgs,
    /// Fuse pods.
    #[cfg(target_os = "linux")]
    #[command(flatten)]
    pub pods: crate::args::CsiPodArgs,
    /// Cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Serves until told to end. Mounts go on without the driver.
pub async fn run(a: CsiArgs) -> Result<()> {
    let endpoint = Endpoint::parse(&a.endpoint)?;
    let endpoint = if a.group_socket { endpoint.for_group() } else { endpoint };
    let world = components();
    let settings =
        fusefs_meta_client::Settings::new(a.cluster.master.clone(), credential(a.cluster.token_file.as_deref())?);
    let masters = Arc::new(MasterClient::new(settings, world.transport, world.rng));
    let mut plugin = Plugin::new(Identity::new());
    if a.mode != CsiMode::Node {
        let controller = Controller::new(masters.clone(), Settings { capacity_pool: a.capacity_pool });
        #[cfg(target_os = "linux")]
        let controller = pods::attend(controller, &a, masters.clone()).await?;
        plugin = plugin.controller(controller);
    }
    #[cfg(target_os = "linux")]
    let mut work = tokio::task::JoinSet::new();
    #[cfg(target_os = "linux")]
    if a.mode != CsiMode::Controller {
        plugin = plugin.node(node::start(&a.node, &a.cluster, masters, pods::of_node(&a).await?, &mut work)?);
    }
    #[cfg(not(target_os = "linux"))]
    anyhow::ensure!(a.mode == CsiMode::Controller, "the node service needs Linux; use --mode controller");
    plugin.serve(&endpoint, shutdown(false)).await?;
    Ok(())
}
