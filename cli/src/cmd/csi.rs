//! `fusefs csi`.

use super::serve::shutdown;
use crate::{
    args::{ClusterArgs, parse_size},
    cluster::{components, credential},
};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use fusefs_csi_driver::{Controller, Endpoint, Identity, Plugin, controller::Settings};
use fusefs_meta_client::MasterClient;
use std::sync::Arc;

/// Which services a socket has besides Identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CsiMode {
    /// The controller service: one or more anywhere in the cluster.
    Controller,
    /// The node service: one on every node.
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
    /// Cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Serves until told to end.
pub async fn run(a: CsiArgs) -> Result<()> {
    if a.mode == CsiMode::Node {
        bail!("this binary has no node service yet; use --mode controller");
    }
    let endpoint = Endpoint::parse(&a.endpoint)?;
    let endpoint = if a.group_socket { endpoint.for_group() } else { endpoint };
    let world = components();
    let settings =
        fusefs_meta_client::Settings::new(a.cluster.master.clone(), credential(a.cluster.token_file.as_deref())?);
    let masters = Arc::new(MasterClient::new(settings, world.transport, world.rng));
    let controller = Controller::new(masters, Settings { capacity_pool: a.capacity_pool });
    let plugin = Plugin::new(Identity::new()).controller(controller);
    if a.mode == CsiMode::All {
        tracing::warn!("this binary has no node service yet: only Identity and Controller are served");
    }
    plugin.serve(&endpoint, shutdown(false)).await?;
    Ok(())
}
