//! The segmented log: one per disk, shared by all groups of the node, one committer, one fdatasync per batch.
//!
//! Appending only encodes into memory and answers a sequence number; [`Log::flushed`] waits until that number is on the
//! platter. Nothing is acknowledged to another node or a caller before that wait; see `store.rs` for who waits where.

mod commit;
pub(crate) mod format;
mod recover;
mod segments;
mod slots;
#[cfg(test)]
mod tests;

use crate::{
    api::{HostError, LogStats},
    codec,
    disk::Disk,
    raft::{Entry, LogId, Vote},
};
use commit::Pending;
use format::{HardState, Key, Kind};
use parking_lot::{Condvar, Mutex};
use segments::Segments;
use slots::GroupLog;
use std::{collections::BTreeMap, io, sync::Arc};
use tokio::sync::{Notify, oneshot, watch};

/// Entries kept in memory per disk; older ones are read back from their segment.
const CACHE_BYTES_MAX: usize = 64 << 20;

/// The log stopped; why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct LogStopped(pub String);

/// Handle of one disk's log. Clones share it.
#[derive(Clone)]
pub(crate) struct Log {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    inner: Mutex<Inner>,
    /// Wakes the committer thread.
    condvar: Condvar,
    /// Wakes the committer task of the simulation.
    notify: Notify,
    /// `Some` once the disk failed (PROTOCOL 28) or the log was closed.
    failed: watch::Sender<Option<String>>,
    disk: Arc<dyn Disk>,
    seed: u32,
    segment_bytes: u64,
}

pub(crate) struct Inner {
    groups: BTreeMap<Key, GroupLog>,
    pending: Pending,
    next_lsn: u64,
    flushed_lsn: u64,
    waiters: Vec<(u64, oneshot::Sender<()>)>,
    closing: bool,
    /// Stop without the closing mark.
    aborted: bool,
    segments: Segments,
    cached_bytes: usize,
    /// (replica, index) in the order in which they were cached.
    cache_order: std::collections::VecDeque<(Key, u64)>,
    stats: LogStats,
}

impl Log {
    /// Reads the log back and starts the committer. Blocking; on a simulated disk call it inside the runtime.
    ///
    /// # Errors
    /// Damaged: something below the synced mark is wrong or a file is missing. Io: what the disk says.
    /// `fresh`: the disk has no superblock, whatever is there was never used.
    pub(crate) fn open(disk: Arc<dyn Disk>, disk_id: u128, segment_bytes: u64, fresh: bool) -> Result<Log, HostError> {
        let seed = format::seed_of(disk_id);
        if fresh {
            recover::wipe(disk.as_ref())?;
        }
        let (groups, segments) = recover::recover(disk.as_ref(), seed, fresh)?;
        let (failed, _) = watch::channel(None);
        let stats = LogStats { segments: segments.count(), ..LogStats::default() };
        let inner = Inner {
            groups,
            pending: Pending::default(),
            next_lsn: 1,
            flushed_lsn: 0,
            waiters: Vec::new(),
            closing: false,
            aborted: false,
            segments,
            cached_bytes: 0,
            cache_order: std::collections::VecDeque::new(),
            stats,
        };
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            condvar: Condvar::new(),
            notify: Notify::new(),
            failed,
            disk,
            seed,
            segment_bytes,
        });
        if fresh {
            shared.roll(0)?;
        }
        commit::start(&shared)?;
        Ok(Log { shared })
    }

    /// All replicas ever hosted here.
    pub(crate) fn replicas(&self) -> Vec<(Key, HardState)> {
        self.shared.inner.lock().groups.iter().map(|(k, g)| (*k, g.state.clone())).collect()
    }

    /// Hard state of a replica.
    pub(crate) fn state(&self, key: Key) -> HardState {
        self.shared.inner.lock().groups.get(&key).map(|g| g.state.clone()).unwrap_or_default()
    }

    fn check(&self) -> Result<(), LogStopped> {
        match &*self.shared.failed.borrow() {
            Some(why) => Err(LogStopped(why.clone())),
            None => Ok(()),
        }
    }

    fn wake(&self) {
        self.shared.condvar.notify_one();
        self.shared.notify.notify_one();
    }

    /// Appends consecutive entries; answers the sequence number to wait for.
    pub(crate) fn append(&self, key: Key, entries: Vec<Entry>) -> Result<u64, LogStopped> {
        self.check()?;
        let mut inner = self.shared.inner.lock();
        let mut lsn = inner.next_lsn;
        let first = entries.first().map(|e| e.log_id.index);
        for entry in entries {
            let group = inner.groups.entry(key).or_default();
            if group.next_index().is_some_and(|next| next != entry.log_id.index) {
                return Err(LogStopped(format!("entry {} does not continue the log", entry.log_id)));
            }
            let index = entry.log_id.index;
            lsn = inner.record(self.shared.seed, Kind::Entry, key, Some(index), |out| codec::put_entry(out, &entry));
            let size = codec::entry_bytes(&entry);
            inner.cached_bytes += size;
            inner.cache_order.push_back((key, index));
            if let Some(group) = inner.groups.get_mut(&key) {
                group.push(entry, lsn, size);
            }
        }
        if let (Some(first), Some(group)) = (first, inner.groups.get_mut(&key)) {
            group.unflushed.push_back((lsn, first));
        }
        inner.evict();
        drop(inner);
        self.wake();
        Ok(lsn)
    }

    /// Removes entries from `from` on.
    pub(crate) fn truncate(&self, key: Key, from: u64) -> Result<u64, LogStopped> {
        self.check()?;
        let mut inner = self.shared.inner.lock();
        let lsn = inner.record(self.shared.seed, Kind::Truncate, key, None, |out| out.extend(from.to_le_bytes()));
        inner.drop_slots(key, |group| group.cut_from(from));
        drop(inner);
        self.wake();
        Ok(lsn)
    }

    /// Changes vote, purge point, spec or tombstone; purged and destroyed entries are dropped.
    pub(crate) fn update(&self, key: Key, change: impl FnOnce(&mut HardState)) -> Result<u64, LogStopped> {
        self.check()?;
        let mut inner = self.shared.inner.lock();
        let group = inner.groups.entry(key).or_default();
        change(&mut group.state);
        let lsn = inner.record_state(self.shared.seed, key);
        inner.drop_slots(key, GroupLog::cut_purged);
        drop(inner);
        self.wake();
        Ok(lsn)
    }

    /// Waits until everything up to `lsn` is durable.
    pub(crate) async fn flushed(&self, lsn: u64) -> Result<(), LogStopped> {
        let rx = {
            let mut inner = self.shared.inner.lock();
            if inner.flushed_lsn >= lsn {
                return Ok(());
            }
            self.check()?;
            let (tx, rx) = oneshot::channel();
            inner.waiters.push((lsn, tx));
            rx
        };
        match rx.await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.check().err().unwrap_or_else(|| LogStopped("the log was closed".into()))),
        }
    }

    /// The sequence number to wait for before anybody may hear that this log holds entries up to `index`.
    pub(crate) fn gate(&self, key: Key, index: u64) -> u64 {
        let mut inner = self.shared.inner.lock();
        let flushed = inner.flushed_lsn;
        let Some(group) = inner.groups.get_mut(&key) else { return 0 };
        while group.unflushed.front().is_some_and(|(lsn, _)| *lsn <= flushed) {
            group.unflushed.pop_front();
        }
        group.unflushed.iter().filter(|(_, first)| *first <= index).map(|(lsn, _)| *lsn).max().unwrap_or(0)
    }

    /// Last purged and last log id.
    pub(crate) fn ends(&self, key: Key) -> (Option<LogId>, Option<LogId>) {
        let inner = self.shared.inner.lock();
        let Some(group) = inner.groups.get(&key) else { return (None, None) };
        (group.state.purged, group.last().or(group.state.purged))
    }

    /// Stored vote.
    pub(crate) fn vote(&self, key: Key) -> Option<Vote> {
        self.shared.inner.lock().groups.get(&key).and_then(|g| g.state.vote)
    }

    /// Entries `lo..hi` that exist, at least one and then at most about `max_bytes`. Reads the disk for old ones.
    pub(crate) fn entries(&self, key: Key, lo: u64, hi: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let wanted = {
            let inner = self.shared.inner.lock();
            let Some(group) = inner.groups.get(&key) else { return Ok(Vec::new()) };
            group.collect(lo, hi, max_bytes, &inner.segments)
        };
        let mut out = Vec::with_capacity(wanted.len());
        for item in wanted {
            out.push(item.load(self.shared.seed, key)?);
        }
        Ok(out)
    }

    /// Entries up to here are applied: they may leave memory.
    pub(crate) fn applied(&self, key: Key, index: u64) {
        if let Some(group) = self.shared.inner.lock().groups.get_mut(&key) {
            group.applied = group.applied.max(index);
        }
    }

    /// Bytes of entries ever appended to a replica's log by this process, plus those found at start.
    pub(crate) fn appended_bytes(&self, key: Key) -> u64 {
        self.shared.inner.lock().groups.get(&key).map_or(0, |g| g.appended_bytes)
    }

    /// The largest index up to `upto` such that about `keep` bytes of entries up to `upto` remain after a purge.
    pub(crate) fn purge_point(&self, key: Key, upto: u64, keep: u64) -> Option<u64> {
        self.shared.inner.lock().groups.get(&key).and_then(|g| g.purge_point(upto, keep))
    }

    /// Counters.
    pub(crate) fn stats(&self) -> LogStats {
        self.shared.inner.lock().stats
    }

    /// `Some(why)` after the disk failed.
    pub(crate) fn failure(&self) -> watch::Receiver<Option<String>> {
        self.shared.failed.subscribe()
    }

    /// Stops at once: nothing more is written, nobody is told OK.
    pub(crate) fn abort(&self) {
        self.shared.stop("aborted".into());
        let mut inner = self.shared.inner.lock();
        inner.pending = Pending::default();
        inner.aborted = true;
        inner.closing = true;
        drop(inner);
        self.wake();
    }

    /// Writes what is queued plus a mark, then stops the committer. Later calls fail.
    pub(crate) async fn close(&self) {
        let lsn = {
            let mut inner = self.shared.inner.lock();
            inner.closing = true;
            inner.next_lsn - 1
        };
        self.wake();
        let _ = self.flushed(lsn).await;
        let mut failed = self.shared.failed.subscribe();
        self.wake();
        let _ = failed.wait_for(Option::is_some).await;
    }
}
