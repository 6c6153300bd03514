//! What scenarios need of a place where volumes and pods live, so that the same ones can run elsewhere.

use super::{
    holders::Holders,
    pod::{Pod, View},
};
use anyhow::Result;
use fusefs_proto::csi::volume_capability::access_mode::Mode;
use std::{collections::HashMap, path::PathBuf};

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
        }
    }
    /// Number of the mount that it holds.
    pub fn mount(self) -> Option<usize> {
        match self {
            Part::Keeper(m) | Part::Supervisor(m) | Part::Client(m) => Some(m),
            Part::Plugin(_) | Part::Controller => None,
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
    /// SIGKILL to the plugin of a node (None: the controller); whether it ran. It comes back by itself.
    fn kill_plugin(&self, node: Option<usize>) -> Result<bool>;
    /// Waits until that plugin answers again.
    fn plugin_ready(&self, node: Option<usize>) -> Result<()>;
}
