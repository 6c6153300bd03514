//! The committer: takes everything that is queued, writes it as one batch, syncs once, wakes who waits, reclaims.

use super::{
    Inner, Log, LogStopped, Shared,
    format::{self, Key, Kind, Mark},
    segments,
};
use crate::codec;
use std::{io, sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// Segments kept beside twice the live data before the oldest one is rewritten.
const SPARE_SEGMENTS: u64 = 2;
/// A full disk is tried again this often.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// A record that waits for the committer.
pub(crate) struct Queued {
    key: Key,
    /// Entry index; `None` = state or truncation.
    index: Option<u64>,
    is_state: bool,
    offset: usize,
    len: u32,
    lsn: u64,
}

#[derive(Default)]
pub(crate) struct Pending {
    buf: Vec<u8>,
    records: Vec<Queued>,
}

/// One batch on its way.
pub(crate) struct Work {
    batch: Pending,
    last_lsn: u64,
}

impl Inner {
    /// Encodes one record into the next batch; answers its sequence number.
    pub(crate) fn record(
        &mut self,
        seed: u32,
        kind: Kind,
        key: Key,
        index: Option<u64>,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> u64 {
        let lsn = self.next_lsn;
        self.next_lsn += 1;
        let offset = self.pending.buf.len();
        let len = format::put_record(seed, &mut self.pending.buf, kind, key, body);
        self.pending.records.push(Queued { key, index, is_state: kind == Kind::State, offset, len, lsn });
        self.stats.appends += 1;
        lsn
    }

    /// Queues the hard state of a replica.
    pub(crate) fn record_state(&mut self, seed: u32, key: Key) -> u64 {
        let Some(group) = self.groups.get(&key) else { return 0 };
        let state = group.state.clone();
        let lsn = self.record(seed, Kind::State, key, None, |out| format::put_state(out, &state));
        if let Some(group) = self.groups.get_mut(&key) {
            group.state_lsn = lsn;
        }
        lsn
    }

    fn take(&mut self) -> Option<Work> {
        if self.pending.records.is_empty() {
            return None;
        }
        Some(Work { batch: std::mem::take(&mut self.pending), last_lsn: self.next_lsn - 1 })
    }

    /// Notes where the records of a durable batch are; answers who may go on.
    fn finish(&mut self, work: &Work, at: Mark) -> Vec<oneshot::Sender<()>> {
        for q in &work.batch.records {
            let offset = at.offset + format::BATCH_HEADER as u64 + q.offset as u64;
            self.place(q, Mark { segment: at.segment, offset });
        }
        let total = format::BATCH_HEADER as u64 + work.batch.buf.len() as u64;
        self.segments.end = Mark { segment: at.segment, offset: (at.offset + total).next_multiple_of(8) };
        self.flushed_lsn = work.last_lsn;
        self.stats.bytes += total;
        self.stats.fsyncs += 1;
        self.stats.segments = self.segments.count();
        let (due, rest) = std::mem::take(&mut self.waiters).into_iter().partition(|(lsn, _)| *lsn <= work.last_lsn);
        self.waiters = rest;
        let due: Vec<(u64, oneshot::Sender<()>)> = due;
        due.into_iter().map(|(_, tx)| tx).collect()
    }

    fn place(&mut self, q: &Queued, at: Mark) {
        // What was superseded meanwhile was so by a record that is queued by now.
        let lsn = self.next_lsn - 1;
        let Some(group) = self.groups.get_mut(&q.key) else { return };
        let old = if q.is_state && group.state_lsn == q.lsn {
            group.state_at.replace((at.segment, q.len))
        } else if let Some(slot) = q.index.and_then(|i| group.slot_mut(i)).filter(|s| s.lsn == q.lsn) {
            slot.at.replace((at, q.len)).map(|(mark, len)| (mark.segment, len))
        } else {
            return self.segments.dead(at.segment, 0, lsn);
        };
        self.segments.live(at.segment, q.len);
        if let Some((segment, len)) = old {
            self.segments.dead(segment, len, lsn);
        }
    }

    /// Queues copies of what is still live in the oldest segment when the log is mostly dead (stragglers of idle
    /// groups must not pin disk space). Answers what could not be read.
    fn rewrite_oldest(&mut self, seed: u32, segment_bytes: u64) -> io::Result<()> {
        let live: u64 = self.segments.all.values().map(|s| s.live).sum();
        let enough = SPARE_SEGMENTS + 2 * live.div_ceil(segment_bytes.max(1));
        let Some(oldest) = self.segments.first() else { return Ok(()) };
        if self.segments.count() <= enough || oldest == self.segments.end.segment {
            return Ok(());
        }
        let keys: Vec<Key> = self.groups.keys().copied().collect();
        for key in keys {
            let Some(group) = self.groups.get(&key) else { continue };
            let state_here = group.state_at.is_some_and(|(segment, _)| segment == oldest);
            let mut entries = Vec::new();
            for (i, slot) in group.slots.iter().enumerate() {
                if slot.at.is_some_and(|(mark, _)| mark.segment == oldest) {
                    let index = group.first + i as u64;
                    entries.extend(group.collect(index, index + 1, usize::MAX, &self.segments));
                }
            }
            if state_here {
                self.record_state(seed, key);
            }
            for fetch in entries {
                let entry = fetch.load(seed, key)?;
                let index = entry.log_id.index;
                let lsn = self.record(seed, Kind::Entry, key, Some(index), |out| codec::put_entry(out, &entry));
                if let Some(slot) = self.groups.get_mut(&key).and_then(|g| g.slot_mut(index)) {
                    slot.lsn = lsn;
                }
            }
        }
        Ok(())
    }

    /// Oldest segments in which nothing is live, never the active one.
    fn reclaimable(&self) -> Vec<u64> {
        let (active, flushed) = (self.segments.end.segment, self.flushed_lsn);
        let gone = |n: u64, s: &segments::Segment| s.live == 0 && s.dead_lsn <= flushed && n != active;
        self.segments.all.iter().take_while(|(n, s)| gone(**n, s)).map(|(n, _)| *n).collect()
    }
}

impl Shared {
    /// Writes one batch and syncs it; answers where it is.
    fn write(&self, work: &Work) -> io::Result<Mark> {
        let total = format::BATCH_HEADER as u64 + work.batch.buf.len() as u64;
        if !self.inner.lock().segments.fits(total) {
            self.roll(total)?;
        }
        let (at, file, zero, zeroed) = {
            let mut inner = self.inner.lock();
            let at = inner.segments.end;
            let Some(segment) = inner.segments.all.get(&at.segment) else {
                return Err(io::Error::other("no active segment"));
            };
            let (file, capacity) = (Arc::clone(&segment.file), segment.capacity);
            let zeroed = inner.segments.zeroed;
            let zero = segments::zero_target(zeroed, at.offset + total, capacity);
            inner.segments.zeroed = zero.unwrap_or(zeroed);
            (at, file, zero, zeroed)
        };
        if let Some(target) = zero {
            let from = zeroed.max(at.offset + total);
            file.write_at(from, &vec![0; usize::try_from(target - from).unwrap_or(0)])?;
        }
        let header = format::batch_header(self.seed, at, at, &work.batch.buf);
        let mut whole = Vec::with_capacity(header.len() + work.batch.buf.len());
        whole.extend_from_slice(&header);
        whole.extend_from_slice(&work.batch.buf);
        file.write_at(at.offset, &whole)?;
        Ok(at)
    }

    pub(super) fn roll(&self, need: u64) -> io::Result<()> {
        let (end, first) = {
            let inner = self.inner.lock();
            (inner.segments.end, inner.segments.first())
        };
        let capacity = self.segment_bytes.max(format::SEGMENT_HEADER + need).next_multiple_of(8);
        let (number, segment) = segments::create(self.disk.as_ref(), self.seed, end, first, capacity)?;
        let mut inner = self.inner.lock();
        inner.segments.all.insert(number, segment);
        inner.segments.end = Mark { segment: number, offset: format::SEGMENT_HEADER };
        inner.segments.zeroed = format::SEGMENT_HEADER;
        Ok(())
    }

    fn sync(&self, at: Mark) -> io::Result<()> {
        let file = self.inner.lock().segments.file(at.segment);
        file.ok_or_else(|| io::Error::other("no active segment"))?.sync()
    }

    fn done(&self, work: &Work, at: Mark) -> io::Result<()> {
        let (due, gone) = {
            let mut inner = self.inner.lock();
            let due = inner.finish(work, at);
            inner.evict();
            (due, inner.reclaimable())
        };
        for tx in due {
            let _ = tx.send(());
        }
        if !gone.is_empty() {
            self.reclaim(&gone)?;
        }
        self.inner.lock().rewrite_oldest(self.seed, self.segment_bytes)
    }

    fn reclaim(&self, gone: &[u64]) -> io::Result<()> {
        let last_gone = gone[gone.len() - 1];
        let active = self.inner.lock().segments.end.segment;
        segments::write_head(self.disk.as_ref(), self.seed, last_gone + 1, active)?;
        for number in gone {
            self.disk.remove(&segments::segment_name(*number))?;
        }
        self.disk.sync_dir("log")?;
        let mut inner = self.inner.lock();
        for number in gone {
            inner.segments.all.remove(number);
        }
        inner.stats.segments = inner.segments.count();
        Ok(())
    }

    /// The disk failed or the log is closed: nobody is told OK any more (PROTOCOL 28: no retry).
    pub(super) fn stop(&self, why: String) {
        self.failed.send_if_modified(|f| {
            let first = f.is_none();
            f.get_or_insert(why);
            first
        });
        self.inner.lock().waiters.clear();
    }

    /// A mark after the last batch: later damage to it is then recognised as damage.
    fn close_mark(&self) -> Work {
        Work { batch: Pending::default(), last_lsn: self.inner.lock().next_lsn - 1 }
    }
}

fn full(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::StorageFull || e.kind() == io::ErrorKind::QuotaExceeded
}

pub(crate) fn start(shared: &Arc<Shared>) -> Result<(), LogStopped> {
    let shared = Arc::clone(shared);
    match shared.disk.simulated() {
        Some(latency) => {
            tokio::spawn(task(shared, latency));
        }
        None => {
            std::thread::Builder::new()
                .name("raft-log".into())
                .spawn(move || thread(&shared))
                .map_err(|e| LogStopped(format!("cannot start the committer: {e}")))?;
        }
    }
    Ok(())
}

impl From<LogStopped> for crate::api::HostError {
    fn from(e: LogStopped) -> Self {
        crate::api::HostError::Stopped(e.0)
    }
}

/// What the committer does next.
enum Next {
    Batch(Work),
    Close,
    Abort,
    Wait,
}

fn next(inner: &mut Inner) -> Next {
    if inner.aborted {
        return Next::Abort;
    }
    match inner.take() {
        Some(work) => Next::Batch(work),
        None if inner.closing => Next::Close,
        None => Next::Wait,
    }
}

fn thread(shared: &Shared) {
    loop {
        let work = {
            let mut inner = shared.inner.lock();
            loop {
                match next(&mut inner) {
                    Next::Batch(work) => break Some(work),
                    Next::Close => break None,
                    Next::Abort => return,
                    Next::Wait => shared.condvar.wait(&mut inner),
                }
            }
        };
        let closing = work.is_none();
        let work = work.unwrap_or_else(|| shared.close_mark());
        let at = loop {
            match shared.write(&work) {
                Err(e) if full(&e) && !shared.inner.lock().closing => {
                    tracing::warn!("log disk is full; waiting for room");
                    let mut inner = shared.inner.lock();
                    shared.condvar.wait_for(&mut inner, FULL_RETRY);
                }
                other => break other,
            }
        };
        let result = at.and_then(|at| shared.sync(at).and_then(|()| shared.done(&work, at)));
        if let Err(e) = result {
            tracing::error!("log disk failed: {e}; every group on it stops");
            return shared.stop(format!("log disk: {e}"));
        }
        if closing {
            return shared.stop("the host is shut down".into());
        }
    }
}

async fn task(shared: Arc<Shared>, latency: Duration) {
    loop {
        let step = next(&mut shared.inner.lock());
        let (work, closing) = match step {
            Next::Batch(work) => (work, false),
            Next::Close => (shared.close_mark(), true),
            Next::Abort => return,
            Next::Wait => {
                shared.notify.notified().await;
                continue;
            }
        };
        let at = loop {
            match shared.write(&work) {
                Err(e) if full(&e) && !shared.inner.lock().closing => {
                    tokio::time::sleep_until(tokio::time::Instant::now() + FULL_RETRY).await;
                }
                other => break other,
            }
        };
        tokio::time::sleep_until(tokio::time::Instant::now() + latency).await;
        let result = at.and_then(|at| shared.sync(at).and_then(|()| shared.done(&work, at)));
        if let Err(e) = result {
            return shared.stop(format!("log disk: {e}"));
        }
        if closing {
            return shared.stop("the host is shut down".into());
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // The committer holds the other reference; the last handle of the users ends it.
        if Arc::strong_count(&self.shared) <= 2 {
            self.shared.inner.lock().closing = true;
            self.shared.condvar.notify_one();
            self.shared.notify.notify_one();
        }
    }
}
