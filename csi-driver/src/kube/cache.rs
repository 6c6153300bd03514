//! What the API server has told about fuse pods: one list, then a watch. While the server is away, what was known stays.

use super::api::{ApiError, ApiResult, Change, PodList, Pods};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

/// Pods by name.
pub type PodsByName = BTreeMap<String, Arc<Pod>>;

/// How patient the cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// First pause after an error; it doubles.
    pub backoff_min: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// Everything is listed again after this, whatever the watch says.
    pub relist: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
            relist: Duration::from_secs(600),
        }
    }
}

impl Pace {
    /// The pause after so many errors in a row.
    pub fn pause(&self, errors: u32) -> Duration {
        let doubled = self.backoff_min.saturating_mul(1 << errors.saturating_sub(1).min(16));
        doubled.min(self.backoff_max)
    }
}

/// Ended pods that are remembered.
const ENDED: usize = 4096;

#[derive(Default)]
struct State {
    pods: PodsByName,
    listed: bool,
    live: bool,
    /// Uids of pods that ended, the oldest first.
    ended: VecDeque<String>,
}

impl State {
    fn end(&mut self, pod: &Pod) {
        if self.ended.len() >= ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(pod.metadata.uid.clone().unwrap_or_default());
    }
}

/// See the module. The follower ends when this is dropped.
pub struct PodCache {
    state: Arc<RwLock<State>>,
    changed: watch::Receiver<u64>,
    follower: JoinHandle<()>,
}

impl Drop for PodCache {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl PodCache {
    /// Starts to follow.
    pub fn follow(pods: Arc<dyn Pods>, pace: Pace) -> PodCache {
        let state = Arc::new(RwLock::new(State::default()));
        let (sender, changed) = watch::channel(0);
        let follower = Follower { pods, pace, state: state.clone(), changed: sender, errors: 0 };
        PodCache { state, changed, follower: tokio::spawn(follower.run()) }
    }

    /// All pods; None before the first list.
    pub fn all(&self) -> Option<PodsByName> {
        let state = self.state.read();
        state.listed.then(|| state.pods.clone())
    }

    /// The pod of that uid came and went, as far as is remembered.
    pub fn ended(&self, uid: &str) -> bool {
        self.state.read().ended.iter().rev().any(|u| u == uid)
    }

    /// The watch stands: what is known is a moment old at most.
    pub fn live(&self) -> bool {
        self.state.read().live
    }

    /// One pod.
    pub fn get(&self, name: &str) -> Option<Arc<Pod>> {
        self.state.read().pods.get(name).cloned()
    }

    /// Says that something changed from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        let mut changes = self.changed.clone();
        changes.mark_unchanged();
        changes
    }
}

struct Follower {
    pods: Arc<dyn Pods>,
    pace: Pace,
    state: Arc<RwLock<State>>,
    changed: watch::Sender<u64>,
    errors: u32,
}

fn name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

fn version(pod: &Pod) -> String {
    pod.metadata.resource_version.clone().unwrap_or_default()
}

impl Follower {
    async fn run(mut self) {
        loop {
            let Err(error) = self.list_and_watch().await else { continue };
            self.broke();
            match error {
                ApiError::Gone(_) => tracing::debug!(%error, "fuse pods are listed again"),
                _ if self.errors == 3 => tracing::warn!(%error, "fuse pods cannot be watched"),
                _ => tracing::debug!(%error, errors = self.errors, "fuse pods cannot be watched"),
            }
            tokio::time::sleep_until(Instant::now() + self.pace.pause(self.errors)).await;
        }
    }

    /// Returns when it is time to list again.
    async fn list_and_watch(&mut self) -> ApiResult<()> {
        let listed = self.pods.list().await?;
        let mut at = listed.version.clone();
        self.replace(listed);
        self.errors = 0;
        let until = Instant::now() + self.pace.relist;
        loop {
            match tokio::time::timeout_at(until, self.watch(&mut at)).await {
                Err(_) => return Ok(()),
                Ok(Ok(())) => {}
                Ok(Err(error @ ApiError::Gone(_))) => return Err(error),
                Ok(Err(error)) => {
                    self.broke();
                    tracing::debug!(%error, errors = self.errors, "the watch of fuse pods broke");
                    tokio::time::sleep_until(Instant::now() + self.pace.pause(self.errors)).await;
                }
            }
        }
    }

    /// One watch, from `at`, which follows it.
    async fn watch(&mut self, at: &mut String) -> ApiResult<()> {
        let mut changes = self.pods.watch(at).await?;
        self.state.write().live = true;
        let mut silent = true;
        while let Some(change) = changes.next().await {
            *at = self.apply(change?);
            self.errors = 0;
            silent = false;
        }
        if silent {
            // Servers that end watches at once are not asked in a tight loop.
            tokio::time::sleep_until(Instant::now() + self.pace.backoff_min).await;
        }
        Ok(())
    }

    fn broke(&mut self) {
        self.errors += 1;
        self.state.write().live = false;
    }

    fn replace(&self, listed: PodList) {
        let pods: PodsByName = listed.pods.into_iter().map(|p| (name(&p), Arc::new(p))).collect();
        let mut state = self.state.write();
        let before = std::mem::replace(&mut state.pods, pods);
        for (name, pod) in before {
            let same = state.pods.get(&name).is_some_and(|p| p.metadata.uid == pod.metadata.uid);
            if !same {
                state.end(&pod);
            }
        }
        (state.listed, state.live) = (true, true);
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    fn apply(&self, change: Change) -> String {
        let at = match change {
            Change::Bookmark(at) => return at,
            Change::Set(pod) => {
                let at = version(&pod);
                self.state.write().pods.insert(name(&pod), Arc::new(*pod));
                at
            }
            Change::Deleted(pod) => {
                let mut state = self.state.write();
                state.pods.remove(&name(&pod));
                state.end(&pod);
                version(&pod)
            }
        };
        self.changed.send_modify(|n| *n += 1);
        at
    }
}
