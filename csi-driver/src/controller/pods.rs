//! The controller's side of fuse pods: it says what changed and never waits.

/// Whoever makes a pod for each publication.
pub trait PodMaker: Send + Sync + 'static {
    /// A volume is about to be published to a node: its pod is not removed before this is dropped and looked at afresh.
    fn claim(&self, volume: &str, node: &str) -> Claim;
    /// Publications changed.
    fn changed(&self);
    /// `NAMESPACE/NAME` of the pod.
    fn pod(&self, volume: &str, node: &str) -> String;
}

/// See [`PodMaker::claim`].
#[must_use = "the pod is claimed until this is dropped"]
pub struct Claim(Option<Box<dyn FnOnce() + Send>>);

impl Claim {
    /// Calls `release` when dropped.
    pub fn new(release: impl FnOnce() + Send + 'static) -> Claim {
        Claim(Some(Box::new(release)))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(release) = self.0.take() {
            release();
        }
    }
}
