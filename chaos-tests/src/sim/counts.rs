//! What happened how often.

use crate::sim::lock;
use std::{collections::BTreeMap, fmt, sync::Mutex};

/// Counters by name.
#[derive(Default)]
pub struct Counts(Mutex<BTreeMap<&'static str, u64>>);

impl Counts {
    /// One more.
    pub fn add(&self, what: &'static str) {
        self.more(what, 1);
    }
    /// `n` more.
    pub fn more(&self, what: &'static str, n: u64) {
        *lock(&self.0).entry(what).or_default() += n;
    }
    /// Value of one counter.
    pub fn get(&self, what: &str) -> u64 {
        lock(&self.0).get(what).copied().unwrap_or(0)
    }
    /// Adds all of `other`.
    pub fn merge(&self, other: &Counts) {
        for (what, n) in lock(&other.0).iter() {
            self.more(what, *n);
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, n) in lock(&self.0).iter() {
            writeln!(f, "{n:>9} {what}")?;
        }
        Ok(())
    }
}
