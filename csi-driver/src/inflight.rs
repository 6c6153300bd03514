//! One call at a time per volume. A second one is not queued: it is answered Aborted, as the interface asks, and the
//! orchestrator comes again.

use crate::Fault;
use parking_lot::Mutex;
use std::{collections::BTreeSet, sync::Arc};

/// Most calls that run at once; beyond it Aborted. Far above what orchestrators send.
pub const INFLIGHT_MAX: usize = 4096;

/// The volumes that a call works on. Clones share the set.
#[derive(Clone, Debug, Default)]
pub struct Inflight {
    keys: Arc<Mutex<BTreeSet<String>>>,
}

/// A volume is ours until this is dropped.
#[derive(Debug)]
#[must_use = "the volume is free again when this is dropped"]
pub struct Busy {
    keys: Arc<Mutex<BTreeSet<String>>>,
    key: String,
}

impl Inflight {
    /// Takes `key` (a volume id, or a name that is to become one) or answers Aborted.
    pub fn enter(&self, key: &str) -> Result<Busy, Fault> {
        let mut keys = self.keys.lock();
        if keys.len() >= INFLIGHT_MAX {
            return Err(Fault::aborted("too many calls at once; try again"));
        }
        if !keys.insert(key.to_owned()) {
            return Err(Fault::aborted("another call works on this volume; try again"));
        }
        Ok(Busy { keys: self.keys.clone(), key: key.to_owned() })
    }

    /// Calls that run now.
    pub fn len(&self) -> usize {
        self.keys.lock().len()
    }

    /// Whether none runs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.keys.lock().remove(&self.key);
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
}
