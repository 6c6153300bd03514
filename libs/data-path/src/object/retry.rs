//! The only retry loop between us and a store: exponential back-off with jitter, and a token bucket so that many
//! clients do not drown a store that is in trouble.

use super::{ObjectStore, PutMode, StoreError, faulty::mix};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::{future::Future, ops::Range, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How patient a [`Retrying`] store is.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// First back-off; doubles up to `backoff_max`, each with 50 % jitter.
    pub backoff_min: Duration,
    /// Longest back-off.
    pub backoff_max: Duration,
    /// No new attempt after this long; the last error is returned.
    pub patience: Duration,
    /// Retries that may be spent at once.
    pub burst: u32,
    /// Retries per second that refill the bucket.
    pub per_second: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy {
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            patience: Duration::from_secs(8),
            burst: 64,
            per_second: 16,
        }
    }
}

impl RetryPolicy {
    /// Back-off before retry `n` (0 = first), jittered by `salt`.
    pub fn backoff(&self, n: u32, salt: u64) -> Duration {
        let full = self.backoff_min.saturating_mul(1 << n.min(16)).min(self.backoff_max);
        full.mul_f64(0.5 + (mix(salt ^ u64::from(n) << 32) % 1000) as f64 / 2000.0)
    }
}

/// Tokens for retries: refilled by time, so that it slows retries down and never stops them.
struct Bucket {
    policy: RetryPolicy,
    state: Mutex<(f64, Option<Instant>)>,
}

impl Bucket {
    fn new(policy: RetryPolicy) -> Bucket {
        Bucket { policy, state: Mutex::new((f64::from(policy.burst), None)) }
    }
    /// Takes a token; returns how long to wait for it.
    fn take(&self) -> Duration {
        let now = Instant::now();
        let rate = f64::from(self.policy.per_second.max(1));
        let mut s = self.state.lock();
        let passed = s.1.map_or(0.0, |at| now.duration_since(at).as_secs_f64());
        s.0 = (s.0 + passed * rate).min(f64::from(self.policy.burst)) - 1.0;
        s.1 = Some(now);
        if s.0 >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-s.0 / rate) }
    }
}

/// Retries transient failures of another store.
pub struct Retrying {
    inner: Arc<dyn ObjectStore>,
    bucket: Bucket,
}

impl Retrying {
    /// Wraps a store.
    pub fn new(inner: Arc<dyn ObjectStore>, policy: RetryPolicy) -> Retrying {
        Retrying { inner, bucket: Bucket::new(policy) }
    }

    async fn run<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        what: &str,
        key: &str,
        mut attempt: impl FnMut(u32) -> F,
    ) -> Result<T, StoreError> {
        let policy = self.bucket.policy;
        let deadline = Instant::now() + policy.patience;
        let salt = u64::from(crc32c::crc32c(key.as_bytes()));
        let mut n = 0;
        loop {
            let error = match attempt(n).await {
                Err(e) if e.is_transient() => e,
                done => return done,
            };
            let next = Instant::now() + policy.backoff(n, salt) + self.bucket.take();
            if next >= deadline {
                return Err(error);
            }
            tracing::debug!(what, key, attempt = n, %error, "object store: retrying");
            tokio::time::sleep_until(next).await;
            n += 1;
        }
    }
}

#[async_trait]
impl ObjectStore for Retrying {
    async fn put(&self, key: &str, body: Bytes, mode: PutMode) -> Result<(), StoreError> {
        let (inner, body) = (&self.inner, &body);
        self.run("put", key, |n| async move {
            match inner.put(key, body.clone(), mode).await {
                // An earlier attempt of ours may have got through with its answer lost: the same bytes mean it was us.
                Err(StoreError::Exists) if n > 0 => {
                    if inner.get(key, None).await? == *body {
                        Ok(())
                    } else {
                        Err(StoreError::Exists)
                    }
                }
                other => other,
            }
        })
        .await
    }
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        self.run("get", key, |_| self.inner.get(key, range.clone())).await
    }
    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        self.run("delete", keys.first().map_or("", String::as_str), |_| self.inner.delete(keys)).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>, StoreError> {
        self.run("list", prefix, |_| self.inner.list(prefix, after, limit)).await
    }
}
