//! Finds the fuse pods of a node. What a watch told stays known while the API server is away.

use super::{
    api::Pods,
    cache::{Pace, PodCache},
    names::{self, pod_name},
    plan,
};
use crate::{Fault, Outcome};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;
use tokio::sync::watch;

pub use crate::runtime::{FoundPod, PodFinder};

/// [`PodFinder`] of one node.
pub struct KubePodFinder {
    node: String,
    pods: Arc<dyn Pods>,
    cache: PodCache,
}

impl KubePodFinder {
    /// Starts to follow `pods`, which are those of `node` or more.
    pub fn start(pods: Arc<dyn Pods>, node: &str, pace: Pace) -> KubePodFinder {
        KubePodFinder { node: node.to_owned(), cache: PodCache::follow(pods.clone(), pace), pods }
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
impl PodFinder for KubePodFinder {
    async fn find(&self, volume: &str) -> Outcome<Option<FoundPod>> {
        let name = pod_name(&self.node, volume);
        let cached = self.cache.get(&name);
        if let Some(pod) = cached.as_ref().filter(|pod| self.cache.live() && !plan::leaving(pod)) {
            return self.checked(pod, volume).map(Some);
        }
        match (self.pods.get(&name).await, cached) {
            (Ok(Some(pod)), _) => self.checked(&pod, volume).map(Some),
            (Ok(None), _) => Ok(None),
            (Err(error), Some(pod)) => {
                tracing::debug!(%error, name, "the fuse pod known before is used");
                self.checked(&pod, volume).map(Some)
            }
            (Err(error), None) => Err(Fault::unavailable(format!("fuse pod {name} cannot be found: {error}"))),
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.cache.changes()
    }
}
