//! Object stores.

pub mod dir;
pub mod faulty;
pub mod memory;
pub mod prefixed;
pub mod probe;
pub mod retry;
#[cfg(feature = "s3")]
pub mod s3;

pub use dir::DirStore;
pub use faulty::{FaultCounters, FaultPlan, Faulty};
pub use memory::MemoryStore;
pub use prefixed::Prefixed;
pub use probe::{claim_marker, open_prefix, probe, probe_record, read_marker, remove_marker, standard_credentials};
pub use retry::{RetryPolicy, Retrying};

use async_trait::async_trait;
use bytes::Bytes;
use fusefs_types::cluster::{StoreCredentials, StoreKind, StoreRecord};
use std::{ops::Range, path::Path, sync::Arc, time::Duration};

/// Whether a put may replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// Create or replace.
    Any,
    /// Create only; [`StoreError::Exists`] otherwise (If-None-Match: *).
    IfAbsent,
}

/// Why a store refused. The text is for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No such key.
    #[error("no such object")]
    NotFound,
    /// The key exists and the put was conditional.
    #[error("the object exists already")]
    Exists,
    /// No such bucket or directory.
    #[error("no such bucket: {0}")]
    NoBucket(String),
    /// Credentials refused or not allowed to do this.
    #[error("access refused: {0}")]
    Denied(String),
    /// Cannot be reached: name, connection, TLS.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    /// 503 SlowDown, 429, 500.
    #[error("the store is busy: {0}")]
    Busy(String),
    /// No answer in time.
    #[error("the store did not answer in time: {0}")]
    TimedOut(String),
    /// The body was cut or is not what was asked for.
    #[error("broken answer: {0}")]
    Broken(String),
    /// Anything else that a retry does not cure.
    #[error("the store refused: {0}")]
    Refused(String),
    /// Wrong configuration or a missing feature of this build.
    #[error("{0}")]
    Config(String),
}

impl StoreError {
    /// True when waiting may cure it.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            StoreError::Unreachable(_) | StoreError::Busy(_) | StoreError::TimedOut(_) | StoreError::Broken(_)
        )
    }
}

/// A flat space of immutable objects. Keys are relative, `/`-separated, without empty or dot components.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// Stores a whole object; durable when it returns.
    async fn put(&self, key: &str, body: Bytes, mode: PutMode) -> Result<(), StoreError>;
    /// Reads an object or a range of it. A range that reaches beyond the end is cut there; one that starts at or behind
    /// the end gives no bytes.
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, StoreError>;
    /// Deletes objects; missing ones are no error.
    async fn delete(&self, keys: &[String]) -> Result<(), StoreError>;
    /// Keys with the prefix and above `after`, in byte order, at most `limit`: (key, size).
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>, StoreError>;
}

#[async_trait]
impl<T: ObjectStore + ?Sized> ObjectStore for Arc<T> {
    async fn put(&self, key: &str, body: Bytes, mode: PutMode) -> Result<(), StoreError> {
        (**self).put(key, body, mode).await
    }
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        (**self).get(key, range).await
    }
    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        (**self).delete(keys).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>, StoreError> {
        (**self).list(prefix, after, limit).await
    }
}

/// Opens a store for use: keys land below `<prefix>/<store id>/` and transient failures are retried with jitter and a
/// token bucket (the only retry loop). Does not talk to the store yet.
///
/// Errors: [`StoreError::Config`], also when this build lacks the feature the kind needs.
pub fn open(record: &StoreRecord, credentials: &StoreCredentials) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let root = open_root(record, credentials, Timeouts::default())?;
    let below = Prefixed::new(root, &join_prefix(&record.prefix, &record.id.to_string()));
    Ok(Arc::new(Retrying::new(Arc::new(below), RetryPolicy::default())))
}

/// How long single attempts may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// TCP and TLS.
    pub connect: Duration,
    /// One whole request.
    pub attempt: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { connect: Duration::from_secs(3), attempt: Duration::from_secs(60) }
    }
}

/// The bare store of a record, rooted at the bucket or directory: no prefix, no retries.
pub fn open_root(
    record: &StoreRecord,
    credentials: &StoreCredentials,
    timeouts: Timeouts,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    match record.kind {
        StoreKind::Memory => Ok(MemoryStore::named(&record.endpoint)),
        StoreKind::Dir => Ok(Arc::new(DirStore::open(Path::new(&record.endpoint))?)),
        StoreKind::S3 => open_s3(record, credentials, timeouts),
    }
}

#[cfg(feature = "s3")]
fn open_s3(r: &StoreRecord, c: &StoreCredentials, t: Timeouts) -> Result<Arc<dyn ObjectStore>, StoreError> {
    Ok(Arc::new(s3::S3Store::open(r, c, t)?))
}

#[cfg(not(feature = "s3"))]
fn open_s3(_: &StoreRecord, _: &StoreCredentials, _: Timeouts) -> Result<Arc<dyn ObjectStore>, StoreError> {
    Err(StoreError::Config("this build has no S3 support; build with --features s3".into()))
}

/// Joins two prefixes without empty components.
pub fn join_prefix(a: &str, b: &str) -> String {
    let (a, b) = (a.trim_matches('/'), b.trim_matches('/'));
    match (a.is_empty(), b.is_empty()) {
        (true, _) => b.to_string(),
        (_, true) => a.to_string(),
        _ => format!("{a}/{b}"),
    }
}

/// Whether a key is relative, with plain components, and of a sane length.
pub fn valid_key(key: &str) -> bool {
    key.len() <= 1024 && !key.contains('\0') && key.split('/').all(|c| !c.is_empty() && c != "." && c != "..")
}

pub(crate) fn check_key(key: &str) -> Result<(), StoreError> {
    if valid_key(key) { Ok(()) } else { Err(StoreError::Refused(format!("invalid key {key:?}"))) }
}

/// Cuts a range to a body of `len` bytes.
pub(crate) fn clip(range: &Option<Range<u64>>, len: u64) -> Range<u64> {
    match range {
        None => 0..len,
        Some(r) => r.start.min(len)..r.end.min(len).max(r.start.min(len)),
    }
}
