//! Frames of objects: cached by bytes, fetched once however many ask, verified.

use crate::{
    layout,
    object::{ObjectStore, StoreError},
};
use bytes::Bytes;
use fusefs_types::ObjectId;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use lru::LruCache;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{runtime::Handle, sync::Semaphore};

/// Why frames cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FetchError {
    /// No such object.
    Missing,
    /// Wrong bytes, twice.
    Corrupt,
    /// The store.
    Store(StoreError),
}

/// Frames `start..` of one object.
type Run = Arc<(u32, Vec<Bytes>)>;
type Flight = Shared<BoxFuture<'static, Result<Run, FetchError>>>;
type Key = (ObjectId, u32);

struct Inner {
    frames: LruCache<Key, Bytes>,
    bytes: u64,
    flights: HashMap<Key, Flight>,
}

/// Counters of the read path.
#[derive(Debug, Default)]
pub struct ReadStats {
    /// Frames served from memory.
    pub hits: AtomicU64,
    /// Frames that had to be fetched or waited for.
    pub misses: AtomicU64,
    /// Range reads sent.
    pub gets: AtomicU64,
    /// Bytes received.
    pub get_bytes: AtomicU64,
    /// Range reads whose bytes failed verification.
    pub corrupt: AtomicU64,
    /// Extent maps fetched.
    pub maps: AtomicU64,
    /// Frames evicted.
    pub evicted: AtomicU64,
}

pub(super) struct Blocks {
    store: Arc<dyn ObjectStore>,
    inner: Mutex<Inner>,
    budget: u64,
    run_max: u32,
    permits: Semaphore,
    runtime: Handle,
    pub stats: ReadStats,
}

impl Blocks {
    pub fn new(
        store: Arc<dyn ObjectStore>,
        budget: u64,
        fetches: usize,
        fetch_bytes: u64,
        runtime: Handle,
    ) -> Arc<Blocks> {
        let inner = Inner { frames: LruCache::unbounded(), bytes: 0, flights: HashMap::new() };
        Arc::new(Blocks {
            store,
            inner: Mutex::new(inner),
            budget,
            run_max: (fetch_bytes / layout::FRAME).clamp(1, 64) as u32,
            permits: Semaphore::new(fetches.max(1)),
            runtime,
            stats: ReadStats::default(),
        })
    }

    /// Frames from memory only.
    pub fn cached(&self, id: &ObjectId, frames: Range<u32>) -> Option<Vec<Bytes>> {
        let mut inner = self.inner.lock();
        frames.map(|f| inner.frames.get(&(*id, f)).cloned()).collect()
    }

    /// Frames of an object. Fewer than asked for when the object ends before.
    pub async fn frames(self: &Arc<Self>, id: ObjectId, frames: Range<u32>) -> Result<Vec<Bytes>, FetchError> {
        let mut got: Vec<Option<Bytes>> = vec![None; frames.len()];
        let flights = self.take_off(id, &frames, &mut got);
        for flight in futures::future::join_all(flights).await {
            let run = flight?;
            for (i, b) in run.1.iter().enumerate() {
                let slot = (run.0 + i as u32).checked_sub(frames.start).and_then(|at| got.get_mut(at as usize));
                if let Some(slot) = slot {
                    *slot = Some(b.clone());
                }
            }
        }
        Ok(got.into_iter().map_while(|b| b).collect())
    }

    /// Starts (or joins) the fetches of what is not cached.
    fn take_off(self: &Arc<Self>, id: ObjectId, frames: &Range<u32>, got: &mut [Option<Bytes>]) -> Vec<Flight> {
        let mut flights: Vec<Flight> = Vec::new();
        let mut inner = self.inner.lock();
        let mut missing: Option<Range<u32>> = None;
        for (slot, f) in got.iter_mut().zip(frames.clone()) {
            if let Some(b) = inner.frames.get(&(id, f)) {
                *slot = Some(b.clone());
                self.stats.hits.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            self.stats.misses.fetch_add(1, Ordering::Relaxed);
            if let Some(flight) = inner.flights.get(&(id, f)) {
                if !flights.last().is_some_and(|l| l.ptr_eq(flight)) {
                    flights.push(flight.clone());
                }
                continue;
            }
            match &mut missing {
                Some(r) if r.end == f && r.end - r.start < self.run_max => r.end = f + 1,
                _ => {
                    if let Some(r) = missing.replace(f..f + 1) {
                        flights.push(self.launch(&mut inner, id, r));
                    }
                }
            }
        }
        if let Some(r) = missing {
            flights.push(self.launch(&mut inner, id, r));
        }
        flights
    }

    fn launch(self: &Arc<Self>, inner: &mut Inner, id: ObjectId, run: Range<u32>) -> Flight {
        let (this, frames) = (self.clone(), run.clone());
        let flight = async move {
            let done = this.fetch(id, &frames).await;
            this.land(id, &frames, done)
        };
        let flight = flight.boxed().shared();
        for f in run {
            inner.flights.insert((id, f), flight.clone());
        }
        self.runtime.spawn(flight.clone()); // goes on even when the reader gives up
        flight
    }

    async fn fetch(&self, id: ObjectId, run: &Range<u32>) -> Result<Vec<Bytes>, FetchError> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await;
        for _ in 0..2 {
            self.stats.gets.fetch_add(1, Ordering::Relaxed);
            let body = match self.store.get(&id.key(), Some(layout::byte_range(run))).await {
                Ok(b) => b,
                Err(StoreError::NotFound) => return Err(FetchError::Missing),
                Err(e) => return Err(FetchError::Store(e)),
            };
            self.stats.get_bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
            match layout::decode_frames(&id, run, &body) {
                Ok(f) if !f.is_empty() => return Ok(f),
                other => {
                    self.stats.corrupt.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(object = %id.key(), frame = run.start, result = ?other.err(), "bad object bytes");
                }
            }
        }
        Err(FetchError::Corrupt)
    }

    fn land(&self, id: ObjectId, run: &Range<u32>, done: Result<Vec<Bytes>, FetchError>) -> Result<Run, FetchError> {
        let mut inner = self.inner.lock();
        for f in run.clone() {
            inner.flights.remove(&(id, f));
        }
        let frames = done?;
        for (i, b) in frames.iter().enumerate() {
            inner.bytes += b.len() as u64;
            if let Some(old) = inner.frames.put((id, run.start + i as u32), b.clone()) {
                inner.bytes -= old.len() as u64;
            }
        }
        while inner.bytes > self.budget {
            let Some((_, b)) = inner.frames.pop_lru() else { break };
            inner.bytes -= b.len() as u64;
            self.stats.evicted.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Arc::new((run.start, frames)))
    }

    /// Forgets cached frames of an object (they turned out useless).
    pub fn forget(&self, id: ObjectId, frames: Range<u32>) {
        let mut inner = self.inner.lock();
        for f in frames {
            if let Some(b) = inner.frames.pop(&(id, f)) {
                inner.bytes -= b.len() as u64;
            }
        }
    }
}
