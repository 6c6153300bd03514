//! Calls by name.

use parking_lot::Mutex;
use std::collections::BTreeMap;

/// RPCs sent so far (attempts, so a retry counts), by operation; names as in `Read::name` and `Write::name`, masters'
/// calls under `master`.
#[derive(Default)]
pub struct Counters(Mutex<BTreeMap<&'static str, u64>>);

impl Counters {
    pub(crate) fn add(&self, name: &'static str) {
        *self.0.lock().entry(name).or_default() += 1;
    }
    /// All of them.
    pub fn snapshot(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().clone()
    }
    /// Sum.
    pub fn total(&self) -> u64 {
        self.0.lock().values().sum()
    }
}
