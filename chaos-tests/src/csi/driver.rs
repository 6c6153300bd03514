//! What scenarios need of a place where volumes and pods live, so that the same ones can run elsewhere.

use super::{
    holders::Holders,
    pod::{Pod, View},
};
use anyhow::Result;
use fusefs_proto::csi::volume_capability::access_mode::Mode;
use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
};

/// A volume and how it is used everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// As in the driver's answers.
    pub id: String,
    /// Access mode.
    pub mode: Mode,
    /// Mount flags.
    pub flags: Vec<String>,
}

/// A volume that is attached to and staged on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged {
    /// Volume.
    pub volume: Volume,
    /// Number of the node.
    pub node: usize,
    /// What the controller gave out.
    pub context: HashMap<String, String>,
    /// Where.
    pub staging: PathBuf,
}

/// A volume that is published to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Where it is staged.
    pub staged: Staged,
    /// Uid of the pod.
    pub pod: String,
    /// Path that kubelet chose.
    pub target: PathBuf,
    /// The pod may only read.
    pub readonly: bool,
}

/// Something to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The plugin of a node.
    Plugin(usize),
    /// The controller plugin.
    Controller,
    /// Keeper of mount number n of the scenario.
    Keeper(usize),
    /// Its supervisor.
    Supervisor(usize),
    /// Its client.
    Client(usize),
    /// The keeper of all mounts of a node.
    NodeKeeper(usize),
    /// The daemon whose children serve a node's mounts, alone.
    Mountd(usize),
    /// The same with all of these, as when its container is killed.
    Hosts(usize),
}

impl Part {
    /// For counts.
    pub fn kind(self) -> &'static str {
        match self {
            Part::Plugin(_) => "plugin",
            Part::Controller => "controller",
            Part::Keeper(_) => "keeper",
            Part::Supervisor(_) => "supervisor",
            Part::Client(_) => "client",
            Part::NodeKeeper(_) => "node keeper",
            Part::Mountd(_) => "mountd",
            Part::Hosts(_) => "mountd with all hosts",
        }
    }
    /// Number of the mount that it holds alone.
    pub fn mount(self) -> Option<usize> {
        match self {
            Part::Keeper(m) | Part::Supervisor(m) | Part::Client(m) => Some(m),
            _ => None,
        }
    }
    /// Number of the node all of whose handed-over mounts it holds or serves.
    pub fn node(self) -> Option<usize> {
        match self {
            Part::Plugin(n) | Part::NodeKeeper(n) | Part::Mountd(n) | Part::Hosts(n) => Some(n),
            _ => None,
        }
    }
}

/// A place with nodes, volumes and pods.
pub trait Driver: Send + Sync {
    /// Nodes.
    fn nodes(&self) -> usize;
    /// A new volume.
    fn create(&self, name: &str, mode: Mode) -> Result<Volume>;
    /// Deletes it.
    fn delete(&self, volume: &Volume) -> Result<()>;
    /// Attaches and stages.
    fn stage(&self, volume: &Volume, node: usize) -> Result<Staged>;
    /// Unstages and detaches.
    fn unstage(&self, staged: &Staged) -> Result<()>;
    /// Publishes to a new pod.
    fn publish(&self, staged: &Staged, pod: &str, readonly: bool) -> Result<Published>;
    /// Takes it from the pod.
    fn unpublish(&self, published: &Published) -> Result<()>;
    /// Starts a pod with a published volume.
    fn pod(&self, published: &Published, view: View) -> Result<Pod>;
    /// The holders of a mount, when it is whole.
    fn whole(&self, staged: &Staged) -> Option<Holders>;
    /// Whether plugins hand their mounts over; then there are node keepers and mountds.
    fn hands_over(&self) -> bool;
    /// SIGKILL to the plugin of a node (None: the controller); its pid if it ran. It comes back by itself.
    fn kill_plugin(&self, node: Option<usize>) -> Result<BTreeSet<u32>>;
    /// The same for the node's keeper.
    fn kill_node_keeper(&self, node: usize) -> Result<BTreeSet<u32>>;
    /// The same for the node's mountd, alone or with all hosts and their clients.
    fn kill_mountd(&self, node: usize, hosts: bool) -> Result<BTreeSet<u32>>;
    /// Waits until that plugin answers again.
    fn plugin_ready(&self, node: Option<usize>) -> Result<()>;
}
