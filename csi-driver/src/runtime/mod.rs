//! How a volume gets mounted. Everything above this trait is the same for every runtime.

pub mod hosts;
pub mod pod;
mod process;
mod tokens;

pub use process::{ProcessRuntime, ProcessSettings};
pub use tokens::MountTokens;

use crate::Outcome;
use crate::node::options::MountOptions;
use async_trait::async_trait;
use std::{collections::HashSet, path::PathBuf, time::Duration};

/// A mount that a runtime makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec {
    /// Stable short name made of the volume's id, for files of the runtime.
    pub key: String,
    /// Volume's id as the orchestrator says it.
    pub volume: String,
    /// Volume's name in the cluster.
    pub name: String,
    /// Where; an existing directory with nothing of ours on it.
    pub staging: PathBuf,
    /// Nobody may write.
    pub read_only: bool,
    /// Checked options.
    pub options: MountOptions,
    /// Attach generation that the controller gave out.
    pub generation: u64,
}

/// How a mount ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unstaged {
    /// Everything is in the object store and the session is closed.
    Flushed,
    /// Not in time: detached, and what is not in the store stays in the journal. The text says where.
    Parked(String),
}

/// What a runtime knows about a mount without looking at the mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeStatus {
    /// Its processes run.
    Running,
    /// It has none.
    Absent,
    /// It cannot say.
    Unknown,
}

/// Makes and ends mounts. A mount's source is `fusefs#NAME`, and it outlives the plugin.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Mounts. Returns when the mount is there and somebody serves it, or with a fault that is not final as long as work may
    /// be under way.
    async fn stage(&self, spec: &MountSpec) -> Outcome<()>;
    /// Takes over a mount that an earlier plugin made and that still lives. Nothing to do where mounts look after
    /// themselves, or where there is none.
    async fn adopt(&self, _spec: &MountSpec) -> Outcome<()> {
        Ok(())
    }
    /// Flushes and unmounts; after `patience` parks. Afterwards nothing of ours is mounted at the staging path. Also when
    /// nothing is mounted there any more: an earlier try may still be flushing.
    async fn unstage(&self, spec: &MountSpec, patience: Duration) -> Outcome<Unstaged>;
    /// Called from time to time while a mount is in use: what it needs beside its processes is kept fresh.
    async fn refresh(&self, _spec: &MountSpec) {}
    /// Lets go what this runtime has of volumes that are not `wanted` (their [`MountSpec::key`]s) and holds no data: what a
    /// plugin that was killed in the middle has left. Only what was unwanted the last time, too, so that nothing races a
    /// stage.
    async fn collect(&self, _wanted: &HashSet<String>) {}
    /// Processes of the mount.
    async fn status(&self, spec: &MountSpec) -> RuntimeStatus;
}

/// Blocks this thread for a moment: where nothing tells when another process is there again.
fn pause(time: Duration) {
    let ms = u16::try_from(time.as_millis()).unwrap_or(u16::MAX);
    let _ = nix::poll::poll(&mut [], ms); // a signal only shortens it
}
