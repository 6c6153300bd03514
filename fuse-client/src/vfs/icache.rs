//! Inode cache: attributes with a validity time, least recently used out first.

use fusefs_types::{Attr, Hlc, Ino};
use lru::LruCache;
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

/// Locks of one cache; a power of two.
pub(super) const SHARDS: usize = 16;

/// Rough bytes of one cached inode with its share of the tables.
pub const INODE_COST: usize = 320;

struct Node {
    attr: Attr,
    /// Boot time in ns until which the attributes may be used.
    until: u64,
    /// What is valid no longer than this was asked for before the last [`InodeCache::expire`] and may be older.
    stale: u64,
    /// `change` of the file when the kernel's page cache for it was last emptied; Hlc(0) = not known.
    pages: Hlc,
}

/// See the module. All times are CLOCK_BOOTTIME nanoseconds.
pub struct InodeCache {
    shards: Vec<Mutex<LruCache<Ino, Node>>>,
    evicted: AtomicU64,
}

impl InodeCache {
    /// A cache of about `entries` inodes.
    pub fn new(entries: usize) -> InodeCache {
        let per_shard = NonZeroUsize::new(entries / SHARDS).unwrap_or(NonZeroUsize::MIN);
        // Unbounded tables grow with use; `put` enforces the bound, so that a large limit costs nothing up front.
        let shards = (0..SHARDS).map(|_| {
            let mut shard = LruCache::unbounded();
            shard.resize(per_shard);
            Mutex::new(shard)
        });
        InodeCache { shards: shards.collect(), evicted: AtomicU64::new(0) }
    }

    fn shard(&self, ino: Ino) -> &Mutex<LruCache<Ino, Node>> {
        &self.shards[(ino.0 as usize) & (SHARDS - 1)]
    }

    /// Attributes valid at `now`, and until when.
    pub fn get(&self, ino: Ino, now: u64) -> Option<(Attr, u64)> {
        let mut shard = self.shard(ino).lock();
        let node = shard.get(&ino)?;
        (now < node.until).then_some((node.attr, node.until))
    }

    /// The newest attributes seen, valid or not.
    pub fn newest(&self, ino: Ino) -> Option<Attr> {
        self.shard(ino).lock().peek(&ino).map(|n| n.attr)
    }

    /// Takes note of attributes that were true at some moment not before `until - validity`. Older ones than what is
    /// there (by `change`) are ignored.
    pub fn put(&self, attr: &Attr, until: u64) {
        let mut shard = self.shard(attr.ino).lock();
        if let Some(node) = shard.get_mut(&attr.ino) {
            if node.attr.change > attr.change {
                return;
            }
            let until = if until < node.stale { 0 } else { until };
            node.until = if node.attr.change == attr.change { node.until.max(until) } else { until };
            node.attr = *attr;
            return;
        }
        if shard.push(attr.ino, Node { attr: *attr, until, stale: 0, pages: Hlc(0) }).is_some() {
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The next use asks the cluster: something changed the inode and did not say how. `valid` = until when an answer to a
    /// question asked now would be valid: answers to older questions are not, however late they come.
    pub fn expire(&self, ino: Ino, valid: u64) {
        if let Some(node) = self.shard(ino).lock().peek_mut(&ino) {
            node.until = 0;
            node.stale = node.stale.max(valid);
        }
    }

    /// Version that the kernel's pages of this file were filled with.
    pub fn pages(&self, ino: Ino) -> Option<Hlc> {
        self.shard(ino).lock().peek(&ino).map(|n| n.pages).filter(|h| h.0 != 0)
    }

    /// Remembers that version.
    pub fn set_pages(&self, ino: Ino, change: Hlc) {
        if let Some(node) = self.shard(ino).lock().peek_mut(&ino) {
            node.pages = change;
        }
    }

    /// The kernel dropped the inode, and its pages with it.
    pub fn forget_pages(&self, ino: Ino) {
        self.set_pages(ino, Hlc(0));
    }

    /// Cached inodes.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().len()).sum()
    }

    /// Entries dropped for room so far.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_to_a_question_from_before_an_own_change_is_not_used() {
        let cache = InodeCache::new(64);
        let t = fusefs_types::Time(0);
        let attr = |change| Attr {
            ino: Ino(7),
            kind: fusefs_types::FileKind::Regular,
            mode: 0,
            uid: 0,
            gid: 0,
            nlink: 1,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: t,
            mtime: t,
            ctime: t,
            btime: t,
            change: Hlc(change),
            trunc_seq: 0,
            flags: 0,
            project: 0,
            parent: Ino(0),
            has_xattr: false,
        };
        cache.put(&attr(1), 100);
        cache.expire(Ino(7), 120);
        // Sent before the change was answered, received after it; a commit may even have made it newer.
        cache.put(&attr(1), 119);
        cache.put(&attr(2), 118);
        assert_eq!(cache.get(Ino(7), 10), None);
        cache.put(&attr(2), 121);
        assert_eq!(cache.get(Ino(7), 10), Some((attr(2), 121)));
    }
}
