//! A store that misbehaves on order (tests). What it does follows from a seed; counters prove that it did.

use super::{ObjectStore, PutMode, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// What may go wrong. Chances are per mille of calls.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    /// Seed of the script.
    pub seed: u64,
    /// Every call takes up to this long.
    pub latency_max: Duration,
    /// 503 before anything happens.
    pub busy: u32,
    /// The call has its effect, then the answer is lost.
    pub lost_replies: u32,
    /// Bodies of reads are cut short.
    pub truncated: u32,
    /// One bit of a read body is flipped.
    pub flipped: u32,
    /// Every call fails with this before it has any effect.
    pub outage: Option<StoreError>,
}

/// How often each fault fired.
#[derive(Debug, Default)]
pub struct FaultCounters {
    /// Calls of put.
    pub puts: AtomicU64,
    /// Calls of get.
    pub gets: AtomicU64,
    /// 503s.
    pub busy: AtomicU64,
    /// Lost answers.
    pub lost_replies: AtomicU64,
    /// Cut bodies.
    pub truncated: AtomicU64,
    /// Flipped bits.
    pub flipped: AtomicU64,
    /// Calls refused by an outage.
    pub outages: AtomicU64,
    /// Calls that were delayed.
    pub delayed: AtomicU64,
}

/// Wrapper that injects faults into another store.
pub struct Faulty {
    inner: Arc<dyn ObjectStore>,
    state: Mutex<(FaultPlan, u64)>,
    /// What fired so far.
    pub counters: FaultCounters,
}

struct Draw {
    wait: Duration,
    busy: bool,
    lost: bool,
    cut: bool,
    flip: bool,
    random: u64,
    outage: Option<StoreError>,
}

impl Faulty {
    /// Wraps a store.
    pub fn new(inner: Arc<dyn ObjectStore>, plan: FaultPlan) -> Arc<Faulty> {
        let seed = plan.seed;
        Arc::new(Faulty { inner, state: Mutex::new((plan, seed)), counters: FaultCounters::default() })
    }
    /// Changes the plan; the script goes on.
    pub fn set(&self, change: impl FnOnce(&mut FaultPlan)) {
        change(&mut self.state.lock().0);
    }
    fn draw(&self) -> Draw {
        let mut s = self.state.lock();
        let plan = s.0.clone();
        let mut next = || {
            s.1 = s.1.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(s.1)
        };
        let mut hit = |chance: u32| next() % 1000 < u64::from(chance);
        let (busy, lost, cut, flip) = (hit(plan.busy), hit(plan.lost_replies), hit(plan.truncated), hit(plan.flipped));
        let random = next();
        let wait = Duration::from_nanos(next() % (plan.latency_max.as_nanos() as u64).max(1));
        Draw { wait, busy, lost, cut, flip, random, outage: plan.outage }
    }
    async fn before(&self, d: &Draw) -> Result<(), StoreError> {
        if !d.wait.is_zero() {
            self.counters.delayed.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep_until(tokio::time::Instant::now() + d.wait).await;
        }
        if let Some(e) = &d.outage {
            self.counters.outages.fetch_add(1, Ordering::Relaxed);
            return Err(e.clone());
        }
        if d.busy {
            self.counters.busy.fetch_add(1, Ordering::Relaxed);
            return Err(StoreError::Busy("injected 503 SlowDown".into()));
        }
        Ok(())
    }
    fn after<T>(&self, d: &Draw, r: Result<T, StoreError>) -> Result<T, StoreError> {
        if d.lost {
            self.counters.lost_replies.fetch_add(1, Ordering::Relaxed);
            return Err(StoreError::TimedOut("injected lost reply".into()));
        }
        r
    }
}

/// SplitMix64 (Steele et al. 2014): enough randomness for scripts and jitter.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put(&self, key: &str, body: Bytes, mode: PutMode) -> Result<(), StoreError> {
        self.counters.puts.fetch_add(1, Ordering::Relaxed);
        let d = self.draw();
        self.before(&d).await?;
        let r = self.inner.put(key, body, mode).await;
        self.after(&d, r)
    }
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        self.counters.gets.fetch_add(1, Ordering::Relaxed);
        let d = self.draw();
        self.before(&d).await?;
        let mut body = self.inner.get(key, range).await?;
        if d.cut && !body.is_empty() {
            self.counters.truncated.fetch_add(1, Ordering::Relaxed);
            body.truncate((d.random % body.len() as u64) as usize);
        }
        if d.flip && !body.is_empty() {
            self.counters.flipped.fetch_add(1, Ordering::Relaxed);
            let mut copy = body.to_vec();
            let at = (d.random % copy.len() as u64) as usize;
            copy[at] ^= 1 << (d.random >> 60 & 7);
            body = Bytes::from(copy);
        }
        self.after(&d, Ok(body))
    }
    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let d = self.draw();
        self.before(&d).await?;
        let r = self.inner.delete(keys).await;
        self.after(&d, r)
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>, StoreError> {
        let d = self.draw();
        self.before(&d).await?;
        let r = self.inner.list(prefix, after, limit).await;
        self.after(&d, r)
    }
}
