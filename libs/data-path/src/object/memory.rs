//! A store in this process' memory.

use super::{ObjectStore, PutMode, StoreError, check_key, clip};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    ops::{Bound, Range},
    sync::{Arc, OnceLock},
};

/// Objects in a map. Bodies are shared, not copied.
#[derive(Debug, Default)]
pub struct MemoryStore {
    objects: Mutex<BTreeMap<String, Bytes>>,
}

impl MemoryStore {
    /// An empty store of its own.
    pub fn new() -> Arc<MemoryStore> {
        Arc::new(MemoryStore::default())
    }
    /// The store with this name in this process, so that every role of an in-process cluster sees the same one.
    pub fn named(name: &str) -> Arc<MemoryStore> {
        static STORES: OnceLock<Mutex<BTreeMap<String, Arc<MemoryStore>>>> = OnceLock::new();
        let mut stores = STORES.get_or_init(Mutex::default).lock();
        stores.entry(name.to_string()).or_default().clone()
    }
    /// All keys, in order.
    pub fn keys(&self) -> Vec<String> {
        self.objects.lock().keys().cloned().collect()
    }
    /// Replaces or removes a body behind everybody's back (tests of damage).
    pub fn tamper(&self, key: &str, body: Option<Bytes>) {
        let mut objects = self.objects.lock();
        match body {
            Some(b) => objects.insert(key.to_string(), b),
            None => objects.remove(key),
        };
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    async fn put(&self, key: &str, body: Bytes, mode: PutMode) -> Result<(), StoreError> {
        check_key(key)?;
        let mut objects = self.objects.lock();
        if mode == PutMode::IfAbsent && objects.contains_key(key) {
            return Err(StoreError::Exists);
        }
        objects.insert(key.to_string(), body);
        Ok(())
    }
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        check_key(key)?;
        let body = self.objects.lock().get(key).cloned().ok_or(StoreError::NotFound)?;
        let r = clip(&range, body.len() as u64);
        Ok(body.slice(r.start as usize..r.end as usize))
    }
    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let mut objects = self.objects.lock();
        for k in keys {
            check_key(k)?;
            objects.remove(k);
        }
        Ok(())
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>, StoreError> {
        let objects = self.objects.lock();
        let from = match after {
            Some(a) if a >= prefix => Bound::Excluded(a.to_string()),
            _ => Bound::Included(prefix.to_string()),
        };
        Ok(objects
            .range((from, Bound::Unbounded))
            .take_while(|(k, _)| k.starts_with(prefix))
            .take(limit)
            .map(|(k, b)| (k.clone(), b.len() as u64))
            .collect())
    }
}
