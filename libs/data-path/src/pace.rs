//! How long we wait between tries of something that must go on for as long as the mount lives.

use crate::object::{RetryPolicy, StoreError};
use fusefs_types::{FsError, FsResult};
use std::{future::Future, time::Duration};
use tokio::time::Instant;

/// The store's own quick retries are below this.
pub(crate) const PACE: RetryPolicy = RetryPolicy {
    backoff_min: Duration::from_millis(100),
    backoff_max: Duration::from_secs(5),
    patience: Duration::MAX,
    burst: u32::MAX,
    per_second: u32::MAX,
};

/// Waits for `f` at most until the deadline.
pub(crate) async fn until<T>(deadline: Option<Instant>, f: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(at) => tokio::time::timeout_at(at, f).await.ok(),
        None => Some(f.await),
    }
}

/// A metadata call, repeated while its outcome is unknown; `Io` at the deadline.
pub(crate) async fn meta<T, F>(deadline: Option<Instant>, mut call: impl FnMut() -> F) -> FsResult<T>
where
    F: Future<Output = FsResult<T>>,
{
    let mut tries = 0;
    loop {
        match until(deadline, call()).await {
            Some(Err(e)) if e.is_retryable() => {}
            Some(Err(FsError::Fenced)) => return Err(FsError::Stale),
            Some(done) => return done,
            None => return Err(FsError::Io),
        }
        let next = Instant::now() + PACE.backoff(tries, 0);
        if deadline.is_some_and(|d| next >= d) {
            return Err(FsError::Io);
        }
        tokio::time::sleep_until(next).await;
        tries += 1;
    }
}

/// A store call, repeated while failures are transient; `TimedOut` at the deadline.
pub(crate) async fn store<T, F>(deadline: Option<Instant>, mut call: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut tries = 0;
    loop {
        match until(deadline, call()).await {
            Some(Err(e)) if e.is_transient() => {}
            Some(done) => return done,
            None => return Err(StoreError::TimedOut("io_timeout".into())),
        }
        let next = Instant::now() + PACE.backoff(tries, 1);
        if deadline.is_some_and(|d| next >= d) {
            return Err(StoreError::TimedOut("io_timeout".into()));
        }
        tokio::time::sleep_until(next).await;
        tries += 1;
    }
}
