//! One mount over a memory store with faults and a model partition.

use fusefs_data_path::{
    DataPath, Settings, WriteContext,
    object::{FaultPlan, Faulty, MemoryStore, RetryPolicy, Retrying},
    testing::{ModelSink, OtherClient},
};
use fusefs_types::{
    Clock, FsResult, Ino, SessionId,
    ids::{Incarnation, OpId},
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

pub const F: Ino = Ino(100);

/// Operation of a kernel request that never came before.
pub fn fresh_op() -> OpId {
    static NEXT: AtomicU64 = AtomicU64::new(2);
    OpId { number: NEXT.fetch_add(2, Ordering::Relaxed), ..OpId::default() }
}

#[derive(Default)]
pub struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn wall_ns(&self) -> u64 {
        1_000_000 + self.0.fetch_add(1, Ordering::Relaxed)
    }
    fn boot_ns(&self) -> u64 {
        self.wall_ns()
    }
}

pub struct Rig {
    pub store: Arc<MemoryStore>,
    pub faulty: Arc<Faulty>,
    pub sink: Arc<ModelSink>,
    pub clock: Arc<TestClock>,
    pub path: Arc<DataPath>,
}

impl Rig {
    pub fn new(settings: Settings) -> Rig {
        Rig::seeded(settings, 1)
    }
    pub fn seeded(settings: Settings, seed: u64) -> Rig {
        let store = MemoryStore::new();
        let faulty = Faulty::new(store.clone(), FaultPlan { seed, ..FaultPlan::default() });
        let sink = ModelSink::new(seed);
        let clock = Arc::new(TestClock::default());
        sink.create(F);
        let retrying = Arc::new(Retrying::new(faulty.clone(), RetryPolicy::default()));
        let session = (SessionId(0xfeed), Incarnation(1));
        let path = DataPath::new(retrying, sink.clone(), clock.clone(), session.0, session.1, settings);
        Rig { store, faulty, sink, clock, path }
    }
    pub fn cx(&self) -> WriteContext {
        WriteContext { trunc_seq: self.sink.attr(F).map_or(0, |a| a.trunc_seq), ..WriteContext::default() }
    }
    pub async fn write(&self, offset: u64, data: impl Into<Vec<u8>>) -> FsResult<()> {
        self.path.write(F, offset, data.into().into(), self.cx()).await
    }
    pub async fn truncate(&self, size: u64) -> FsResult<()> {
        let barrier = self.path.truncate_barrier(F, size).await?;
        self.sink.set_size(F, size).map(|a| barrier.truncated(a.trunc_seq))
    }
    pub fn committed(&self) -> Vec<u8> {
        self.sink.content(F, &self.store)
    }
    /// A second data path over the same cluster: an empty cache.
    pub fn cold(&self) -> Arc<DataPath> {
        let s = (SessionId(0xc01d), Incarnation(1));
        let sink = OtherClient::new(self.sink.clone(), 1);
        DataPath::new(self.store.clone(), sink, self.clock.clone(), s.0, s.1, Settings::default())
    }
}

pub fn body(n: usize, seed: u8) -> Vec<u8> {
    (0..n).map(|i| (i as u8).wrapping_mul(167) ^ (i >> 8) as u8 ^ (i >> 16) as u8 ^ seed).collect()
}
