//! Clocks and entropy of the simulation.

use fusefs_types::{Clock, Rng};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// A clock that follows the runtime's (paused) time, wrong by a constant.
pub struct SimClock {
    start: Instant,
    skew_ns: u64,
}

impl SimClock {
    /// A clock of a machine that is `skew_ns` ahead of the slowest one.
    pub fn new(start: Instant, skew_ns: u64) -> Arc<SimClock> {
        Arc::new(SimClock { start, skew_ns })
    }
}

impl Clock for SimClock {
    fn wall_ns(&self) -> u64 {
        1_700_000_000_000_000_000 + self.boot_ns() + self.skew_ns
    }
    fn boot_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// splitmix64.
pub struct SimRng(AtomicU64);

impl SimRng {
    /// A stream of numbers that the seed decides.
    pub fn new(seed: u64) -> Arc<SimRng> {
        Arc::new(SimRng(AtomicU64::new(seed)))
    }

    /// A number below `n`.
    pub fn below(&self, n: u64) -> u64 {
        self.next_u64() % n.max(1)
    }

    /// One of a list; None when it is empty.
    pub fn pick<T: Clone>(&self, all: &[T]) -> Option<T> {
        all.get(self.below(all.len() as u64) as usize).cloned()
    }
}

impl Rng for SimRng {
    fn next_u64(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Waits in virtual time.
pub async fn pause_us(us: u64) {
    tokio::time::sleep_until(Instant::now() + Duration::from_micros(us)).await;
}

/// Waits in virtual time.
pub async fn pause_ms(ms: u64) {
    pause_us(ms * 1000).await;
}
