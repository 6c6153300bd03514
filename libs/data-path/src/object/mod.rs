//! Object stores.

use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;

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
