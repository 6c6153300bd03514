//! One call at a time per volume. A second one is not queued: it is answered Aborted, as the interface asks, and the
//! orchestrator comes again. Our own upkeep is nothing that an orchestrator can know of: calls wait for it.

use crate::Fault;
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

/// Most calls that run at once; beyond it Aborted. Far above what orchestrators send.
pub const INFLIGHT_MAX: usize = 4096;
/// How long a call waits for upkeep. A look takes milliseconds; a mount that is made again may take longer, and then the
/// orchestrator comes again.
pub const UPKEEP_PATIENCE: Duration = Duration::from_secs(10);

/// Who works on a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worker {
    Call,
    Upkeep,
}

#[derive(Debug, Default)]
struct Shared {
    keys: Mutex<BTreeMap<String, Worker>>,
    freed: Notify,
}

/// The volumes that somebody works on. Clones share the set.
#[derive(Clone, Debug, Default)]
pub struct Inflight {
    shared: Arc<Shared>,
}

/// A volume is ours until this is dropped.
#[derive(Debug)]
#[must_use = "the volume is free again when this is dropped"]
pub struct Busy {
    shared: Arc<Shared>,
    key: String,
}

impl Inflight {
    /// Takes `key` (a volume id, or a name that is to become one) or answers Aborted.
    pub fn enter(&self, key: &str) -> Result<Busy, Fault> {
        self.take(key, Worker::Call).map_err(|(_, fault)| fault)
    }

    /// The same for upkeep, which calls wait for.
    pub fn upkeep(&self, key: &str) -> Result<Busy, Fault> {
        self.take(key, Worker::Upkeep).map_err(|(_, fault)| fault)
    }

    /// The same for a call: Aborted at once when another call works on `key`, and after [`UPKEEP_PATIENCE`] when upkeep
    /// does.
    pub async fn enter_after_upkeep(&self, key: &str) -> Result<Busy, Fault> {
        let until = Instant::now() + UPKEEP_PATIENCE;
        loop {
            let freed = self.shared.freed.notified();
            tokio::pin!(freed);
            // From here on nothing is missed.
            freed.as_mut().enable();
            let fault = match self.take(key, Worker::Call) {
                Ok(busy) => return Ok(busy),
                Err((Some(Worker::Upkeep), fault)) => fault,
                Err((_, fault)) => return Err(fault),
            };
            if timeout_at(until, freed).await.is_err() {
                return Err(fault);
            }
        }
    }

    /// Or who has it.
    fn take(&self, key: &str, worker: Worker) -> Result<Busy, (Option<Worker>, Fault)> {
        let mut keys = self.shared.keys.lock();
        if let Some(other) = keys.get(key) {
            return Err((Some(*other), Fault::aborted("another call works on this volume; try again")));
        }
        if keys.len() >= INFLIGHT_MAX {
            return Err((None, Fault::aborted("too many calls at once; try again")));
        }
        keys.insert(key.to_owned(), worker);
        Ok(Busy { shared: self.shared.clone(), key: key.to_owned() })
    }

    /// Calls that run now, with upkeep.
    pub fn len(&self) -> usize {
        self.shared.keys.lock().len()
    }

    /// Whether none runs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.shared.keys.lock().remove(&self.key);
        self.shared.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_per_key_and_free_after_the_drop() {
        let inflight = Inflight::default();
        let first = inflight.enter("a").expect("free");
        assert_eq!(inflight.enter("a").expect_err("taken").code, tonic::Code::Aborted);
        let other = inflight.enter("b").expect("another volume");
        assert_eq!(inflight.len(), 2);
        drop(first);
        let _again = inflight.enter("a").expect("free again");
        drop(other);
        assert_eq!(inflight.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_waits_for_upkeep_but_not_for_a_call() {
        let inflight = Inflight::default();
        let upkeep = inflight.upkeep("a").expect("free");
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let inflight = inflight.clone();
                tokio::spawn(async move { inflight.enter_after_upkeep("a").await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(waiting.iter().all(|w| !w.is_finished()));
        drop(upkeep);
        let mut got = Vec::new();
        for w in waiting {
            got.push(w.await.expect("no panic"));
        }
        assert_eq!(got.iter().filter(|g| g.is_ok()).count(), 1, "{got:?}");
        assert_eq!(inflight.enter_after_upkeep("a").await.expect_err("a call has it").code, tonic::Code::Aborted);
        assert!(inflight.upkeep("a").is_err());
        drop(got);
        let _upkeep = inflight.upkeep("a").expect("free");
        let begin = Instant::now();
        assert_eq!(inflight.enter_after_upkeep("a").await.expect_err("never free").code, tonic::Code::Aborted);
        assert_eq!(begin.elapsed(), UPKEEP_PATIENCE);
    }
}
