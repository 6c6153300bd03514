//! A part of a store.

use super::{ObjectStore, PutMode, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use std::{ops::Range, sync::Arc};

/// Everything below one prefix of another store.
pub struct Prefixed {
    inner: Arc<dyn ObjectStore>,
    prefix: String,
}

impl Prefixed {
    /// `prefix` without slashes at its ends; empty = the whole store.
    pub fn new(inner: Arc<dyn ObjectStore>, prefix: &str) -> Prefixed {
        let prefix = prefix.trim_matches('/');
        Prefixed { inner, prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") } }
    }
    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

#[async_trait]
impl ObjectStore for Prefixed {
    async fn put(&self, key: &str, body: Bytes, mode: PutMode) -> Result<(), StoreError> {
        self.inner.put(&self.full(key), body, mode).await
    }
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        self.inner.get(&self.full(key), range).await
    }
    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let keys: Vec<String> = keys.iter().map(|k| self.full(k)).collect();
        self.inner.delete(&keys).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>, StoreError> {
        let after = after.map(|a| self.full(a));
        let found = self.inner.list(&self.full(prefix), after.as_deref(), limit).await?;
        Ok(found.into_iter().filter_map(|(k, n)| Some((k.strip_prefix(&self.prefix)?.to_string(), n))).collect())
    }
}
