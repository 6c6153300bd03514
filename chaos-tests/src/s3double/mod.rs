//! A small real S3 server for everyday tests and faults: HTTP on 127.0.0.1, SigV4 checked, one bucket, conditional puts
//! under one lock. What it gets wrong is found by running the same suites against [`crate::versitygw`].

mod api;
mod http;
#[cfg(test)]
mod tests;

use fusefs_data_path::object::{DirStore, MemoryStore, ObjectStore, StoreError};
use fusefs_types::{
    StoreId,
    cluster::{StoreCredentials, StoreKind, StoreRecord},
};
use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinHandle};

/// Bucket of a double.
pub const BUCKET: &str = "double";
/// Access key of a double.
pub const ACCESS_KEY: &str = "doublekey";
/// Secret key of a double.
pub const SECRET_KEY: &str = "doublesecret";

/// What may go wrong, switchable while it runs. Chances are per mille of requests.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Every answer takes up to this long.
    pub latency_max: Duration,
    /// 503 SlowDown before any effect.
    pub slow_down: u32,
    /// The request has its effect, then the connection is closed without an answer.
    pub lost_replies: u32,
    /// The body of an answer to GET ends early.
    pub truncated: u32,
    /// Everything is refused with 403 AccessDenied.
    pub denied: bool,
    /// Connections are closed before anything happens.
    pub down: bool,
}

/// What happened so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests.
    pub requests: AtomicU64,
    /// PutObject calls that reached the store.
    pub puts: AtomicU64,
    /// GetObject calls that reached the store.
    pub gets: AtomicU64,
    /// Objects deleted.
    pub deletes: AtomicU64,
    /// ListObjectsV2 calls.
    pub lists: AtomicU64,
    /// 503s sent.
    pub slow_downs: AtomicU64,
    /// Answers lost.
    pub lost_replies: AtomicU64,
    /// Bodies cut.
    pub truncated: AtomicU64,
    /// Requests refused or dropped by `denied` and `down`.
    pub refused: AtomicU64,
    /// Bytes received in puts.
    pub bytes_in: AtomicU64,
    /// Bytes sent by gets, before cuts.
    pub bytes_out: AtomicU64,
}

impl Counters {
    fn add(&self, counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// Shared by all connections.
pub(crate) struct State {
    store: Arc<dyn ObjectStore>,
    /// Serialises conditional puts with every other put.
    put_lock: tokio::sync::Mutex<()>,
    faults: Mutex<(Faults, u64)>,
    counters: Counters,
}

/// A running double; it ends when dropped.
pub struct S3Double {
    /// `http://127.0.0.1:port`
    pub endpoint: String,
    state: Arc<State>,
    server: JoinHandle<()>,
}

impl Drop for S3Double {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl S3Double {
    /// Objects in memory.
    pub async fn memory() -> std::io::Result<S3Double> {
        Self::start(MemoryStore::new(), "127.0.0.1:0").await
    }
    /// Objects in a directory: they survive a restart of the double.
    pub async fn dir(path: &Path) -> std::io::Result<S3Double> {
        let store = DirStore::open(path).map_err(|e: StoreError| std::io::Error::other(e.to_string()))?;
        Self::start(Arc::new(store), "127.0.0.1:0").await
    }
    /// Any store behind a real S3 front on `addr` (`127.0.0.1:0` = any port).
    pub async fn start(store: Arc<dyn ObjectStore>, addr: &str) -> std::io::Result<S3Double> {
        let state = Arc::new(State {
            store,
            put_lock: tokio::sync::Mutex::new(()),
            faults: Mutex::new((Faults::default(), 1)),
            counters: Counters::default(),
        });
        let listener = TcpListener::bind(addr).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let server = tokio::spawn(http::serve(listener, state.clone()));
        Ok(S3Double { endpoint, state, server })
    }
    /// Changes the faults.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state.faults.lock().unwrap_or_else(|e| e.into_inner()).0);
    }
    /// Counters that prove what happened.
    pub fn counters(&self) -> &Counters {
        &self.state.counters
    }
    /// The store behind the front, for looking at what is there.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        self.state.store.clone()
    }
    /// Store record of this server.
    pub fn record(&self) -> StoreRecord {
        record(&self.endpoint, BUCKET)
    }
    /// Credentials of this server.
    pub fn credentials(&self) -> StoreCredentials {
        credentials(ACCESS_KEY, SECRET_KEY)
    }
}

/// Path-style record of an S3 server, prefix `t`.
pub fn record(endpoint: &str, bucket: &str) -> StoreRecord {
    StoreRecord {
        id: StoreId(1),
        name: "s3".into(),
        kind: StoreKind::S3,
        endpoint: endpoint.into(),
        region: "us-east-1".into(),
        bucket: bucket.into(),
        prefix: "t".into(),
        path_style: true,
        credential: String::new(),
        probe: vec![],
    }
}

/// Static credentials.
pub fn credentials(access_key: &str, secret_key: &str) -> StoreCredentials {
    StoreCredentials { access_key: access_key.into(), secret_key: secret_key.into(), ..StoreCredentials::default() }
}

/// What one request suffers.
pub(crate) struct Fate {
    pub wait: Duration,
    pub slow_down: bool,
    pub lost: bool,
    pub cut: Option<u64>,
    pub denied: bool,
    pub down: bool,
}

impl State {
    fn fate(&self) -> Fate {
        let mut f = self.faults.lock().unwrap_or_else(|e| e.into_inner());
        let plan = f.0.clone();
        let mut next = || {
            // Knuth's MMIX generator; the high bits are the good ones.
            f.1 = f.1.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f.1 >> 33
        };
        let mut hit = |chance: u32| next() % 1000 < u64::from(chance);
        let (slow_down, lost, cut) = (hit(plan.slow_down), hit(plan.lost_replies), hit(plan.truncated));
        let wait = Duration::from_micros(next() % (plan.latency_max.as_micros() as u64).max(1));
        let cut = cut.then(&mut next);
        Fate { wait, slow_down, lost, cut, denied: plan.denied, down: plan.down }
    }
}
