//! Finds the fuse pods of a node. What a watch told stays known while the API server is away.

use super::{
    api::{ApiError, Pods},
    cache::{Pace, PodCache},
    names::{self, pod_name},
    plan,
};
use crate::{
    Fault, Outcome,
    runtime::pod::{HostFinder, dial::socket_path},
};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// Between two questions for the same pod while the watch is broken: mounts that nobody serves ask many times a second.
const ASK: Duration = Duration::from_secs(1);
/// Pods that are remembered to have been asked for.
const ASKED_MAX: usize = 4096;

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

/// Finds the fuse pods of one node.
pub struct KubePodFinder {
    node: String,
    pods: Arc<dyn Pods>,
    cache: PodCache,
    asked: Mutex<HashMap<String, Instant>>,
}

impl KubePodFinder {
    /// Starts to follow `pods`, which are those of `node` or more.
    pub fn start(pods: Arc<dyn Pods>, node: &str, pace: Pace) -> KubePodFinder {
        let cache = PodCache::follow(pods.clone(), pace);
        KubePodFinder { node: node.to_owned(), cache, pods, asked: Mutex::default() }
    }

    /// Says that pods changed: worth looking again.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.cache.changes()
    }

    /// The pod of a volume (an id) on this node. None = there is none; a fault = nobody can say, and nothing was known before.
    pub async fn find_pod(&self, volume: &str) -> Outcome<Option<FoundPod>> {
        let name = pod_name(&self.node, volume);
        let cached = self.cache.get(&name);
        let found = if self.cache.live() { Ok(cached) } else { self.ask(&name, cached).await };
        match found {
            Ok(pod) => pod.map(|pod| self.checked(&pod, volume)).transpose(),
            Err(error) => Err(Fault::unavailable(format!("fuse pod {name} cannot be found: {error}"))),
        }
    }

    /// The watch is broken: by name, now and then; what was known otherwise.
    async fn ask(&self, name: &str, cached: Option<Arc<Pod>>) -> Result<Option<Arc<Pod>>, ApiError> {
        if cached.is_some() && !self.turn(name) {
            return Ok(cached);
        }
        match (self.pods.get(name).await, cached) {
            (Ok(pod), _) => Ok(pod.map(Arc::new)),
            (Err(error), Some(pod)) => {
                tracing::debug!(%error, name, "the fuse pod known before is used");
                Ok(Some(pod))
            }
            (Err(error), None) => Err(error),
        }
    }

    fn turn(&self, name: &str) -> bool {
        let (now, mut asked) = (Instant::now(), self.asked.lock());
        if asked.get(name).is_some_and(|last| *last + ASK > now) {
            return false;
        }
        if asked.len() >= ASKED_MAX {
            asked.clear();
        }
        asked.insert(name.to_owned(), now);
        true
    }

    /// It is the pod of that volume on this node, not one that only has its name.
    fn checked(&self, pod: &Pod, volume: &str) -> Outcome<FoundPod> {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let said = |key: &str| pod.metadata.annotations.as_ref().and_then(|a| a.get(key)).map(String::as_str);
        if said(names::VOLUME) != Some(volume) || said(names::NODE) != Some(self.node.as_str()) {
            return Err(Fault::precondition(format!("pod {name} is not the fuse pod of the volume; delete it")));
        }
        Ok(FoundPod {
            uid: plan::uid(pod).to_owned(),
            phase: plan::phase(pod).to_owned(),
            ending: plan::leaving(pod),
            running: plan::running(pod),
            name,
        })
    }
}

#[async_trait]
impl HostFinder for KubePodFinder {
    async fn find(&self, volume: &str) -> Result<Option<PathBuf>, String> {
        let found = self.find_pod(volume).await.map_err(|fault| fault.message)?;
        let Some(pod) = found else { return Ok(None) };
        if matches!(pod.phase.as_str(), "Failed" | "Succeeded") {
            return Err(format!("fuse pod {} is over and will be replaced", pod.name));
        }
        match socket_path(&pod.uid) {
            Some(path) => Ok(Some(path)),
            None => Err(format!("fuse pod {} has no usable uid", pod.name)),
        }
    }
}
