//! Where a volume's fuse pod is.

use crate::Outcome;
use async_trait::async_trait;
use tokio::sync::watch;

/// A fuse pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundPod {
    /// Name.
    pub name: String,
    /// Uid: the name of its directory on the node.
    pub uid: String,
    /// Pending, Running, Succeeded, Failed or Unknown.
    pub phase: String,
    /// Somebody deleted it, and it is ending.
    pub ending: bool,
    /// Its container runs, as far as is known.
    pub running: bool,
}

/// Finds fuse pods.
#[async_trait]
pub trait PodFinder: Send + Sync + 'static {
    /// The pod of a volume (an id) on this node. None = there is none; a fault = nobody can say, and nothing was known before.
    async fn find(&self, volume: &str) -> Outcome<Option<FoundPod>>;
    /// Says that pods changed: worth looking again.
    fn changes(&self) -> watch::Receiver<u64>;
}
