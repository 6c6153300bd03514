//! The bounded in-memory write log.

use super::{
    DirtyAttr, MemoryLog, Overlay, Shared, WriteContext, WriteLog,
    file::{File, Stamp, State},
};
use crate::{
    journal::{Kind, Record},
    pace::until,
};
use async_trait::async_trait;
use bytes::Bytes;
use fusefs_types::{FsError, FsResult, Ino, limits};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::Instant;

/// A full buffer waits this long for progress while some file fails for good, then the writer gets `Io`.
const FULL_AND_FAILING: Duration = Duration::from_secs(5);

impl Shared {
    pub(super) fn io_deadline(&self) -> Option<Instant> {
        self.settings.io_timeout.map(|t| Instant::now() + t)
    }

    /// Queue of an inode, made if needed.
    pub(super) fn file(&self, ino: Ino) -> Arc<File> {
        self.files.lock().entry(ino).or_insert_with(|| File::new(ino)).clone()
    }

    pub(super) fn peek(&self, ino: Ino) -> Option<Arc<File>> {
        self.files.lock().get(&ino).cloned()
    }

    /// Forgets a clean queue that nobody else uses.
    pub(super) fn tidy(&self, file: Arc<File>) {
        let mut files = self.files.lock();
        let clean = Arc::strong_count(&file) == 2 && file.state.lock().is_clean();
        if clean {
            files.remove(&file.ino);
        }
    }

    pub(super) fn charge(&self, delta: i64) {
        if delta >= 0 {
            self.dirty.fetch_add(delta as u64, Ordering::AcqRel);
        } else {
            self.dirty.fetch_sub(delta.unsigned_abs(), Ordering::AcqRel);
            self.space.notify_waiters();
        }
    }

    pub(super) fn inline_max(&self) -> u64 {
        let off = self.inline_off_until.lock().is_some_and(|t| t > Instant::now());
        if off { 0 } else { self.settings.inline_bytes.min(limits::INLINE_COMMIT_BYTES_MAX) as u64 }
    }

    /// Closes the open batch of a file and starts its way out.
    pub(super) fn seal(self: &Arc<Self>, file: &Arc<File>, st: &mut State) {
        let Some((seq, delta)) = st.seal(self.inline_max()) else { return };
        self.charge(delta);
        self.start(file, st, seq);
    }

    /// Buffers bytes that fit into one object. None = must wait. `at_once`: they are acknowledged right afterwards, so
    /// without a record in a journal that there is (its disk failed) nothing is buffered.
    fn buffer(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        data: &Bytes,
        cx: &WriteContext,
        at_once: bool,
    ) -> Option<FsResult<()>> {
        if self.fenced.load(Ordering::Acquire) {
            return Some(Err(FsError::Stale));
        }
        if self.written_before(offset, data, cx) {
            return Some(Ok(()));
        }
        let len = data.len() as u64;
        let dirty = self.dirty.load(Ordering::Acquire);
        if dirty > 0 && dirty + len > self.settings.dirty_bytes_max {
            return None;
        }
        let file = self.file(ino);
        let mut st = file.state.lock();
        if st.held {
            return None;
        }
        if let Err(e) = self.credits.take(len) {
            drop(st);
            self.tidy(file);
            return Some(Err(e));
        }
        if st.must_seal(len, cx) {
            self.seal(&file, &mut st);
        }
        let recorded = self.record_write(ino, offset, data, cx, self.now());
        let safe = |s: &Stamp| s.record.is_some() || self.journal.is_none() || !at_once;
        let Some(stamp) = recorded.filter(safe) else {
            self.credits.settle(len);
            drop(st);
            self.tidy(file);
            return None;
        };
        let (overwritten, delta, opened) = st.put(offset, data, cx, stamp);
        self.charge(delta);
        if overwritten > 0 {
            self.credits.settle(overwritten);
        }
        if let Some(since) = opened {
            self.aging.lock().push_back((since, ino));
            self.aging_wake.notify_one();
        }
        if st.open.as_ref().is_some_and(|o| o.segments.bytes() >= limits::OBJECT_BYTES_MAX as u64) {
            self.seal(&file, &mut st);
        }
        Some(Ok(()))
    }

    /// Waits for room or for a barrier to go.
    async fn wait_room(self: &Arc<Self>, ino: Ino, len: u64, deadline: Option<Instant>) -> FsResult<()> {
        let patience = Instant::now() + FULL_AND_FAILING;
        let mut told = false;
        loop {
            let space = self.space.notified();
            let file = self.file(ino);
            let changed = file.changed.notified();
            if self.fenced.load(Ordering::Acquire) {
                return Err(FsError::Stale);
            }
            let dirty = self.dirty.load(Ordering::Acquire);
            let journal = self.journal_full(len as usize);
            let full = journal || (dirty > 0 && dirty + len > self.settings.dirty_bytes_max);
            let held = file.state.lock().held;
            if !full && !held {
                return Ok(());
            }
            if full {
                self.seal_aged(None);
            }
            if journal {
                self.journal_wanted(!std::mem::replace(&mut told, true));
            }
            let failing = full && self.failing.load(Ordering::Acquire) > 0;
            if failing && Instant::now() >= patience {
                return Err(FsError::Io);
            }
            let wake = if failing { Some(patience.min(deadline.unwrap_or(patience))) } else { deadline };
            let waited = until(wake, async {
                tokio::select! { biased; () = space => {}, () = changed => {} }
            });
            if waited.await.is_none() && deadline.is_some_and(|d| d <= Instant::now()) {
                return Err(FsError::Io);
            }
        }
    }

    /// Closes open batches that were opened before `now - dirty_age` (all of them with None). Returns when the next one
    /// is due.
    pub(super) fn seal_aged(self: &Arc<Self>, now: Option<Instant>) -> Option<Instant> {
        loop {
            let (since, ino) = {
                let mut aging = self.aging.lock();
                let (since, ino) = *aging.front()?;
                let due = since + self.settings.dirty_age;
                if now.is_some_and(|n| due > n) {
                    return Some(due);
                }
                aging.pop_front();
                (since, ino)
            };
            let Some(file) = self.peek(ino) else { continue };
            let mut st = file.state.lock();
            if st.open.as_ref().is_some_and(|o| o.since == since) {
                self.seal(&file, &mut st);
            }
        }
    }

    /// Seals what is old enough, for as long as the log lives.
    pub(super) async fn age(self: Arc<Self>) {
        loop {
            let due = self.seal_aged(Some(Instant::now()));
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return,
                _ = until(due, self.aging_wake.notified()) => {}
            }
        }
    }

    /// Closes the open batch, asks for retries now and waits until all of it is committed.
    pub(super) async fn drain(self: &Arc<Self>, file: &Arc<File>, deadline: Option<Instant>) -> FsResult<()> {
        self.drain_to(file, deadline, |st| st.next_seq).await
    }

    /// As [`Shared::drain`] for the batches below a number.
    async fn drain_to(
        self: &Arc<Self>,
        file: &Arc<File>,
        deadline: Option<Instant>,
        target: fn(&State) -> u64,
    ) -> FsResult<()> {
        let (target, base, lost) = {
            let mut st = file.state.lock();
            self.seal(file, &mut st);
            st.kicks += 1;
            (target(&st), st.attempts, st.lost)
        };
        file.kick.notify_waiters();
        loop {
            let changed = file.changed.notified();
            {
                let st = file.state.lock();
                if self.fenced.load(Ordering::Acquire) {
                    return Err(FsError::Stale);
                }
                if st.lost > lost {
                    return Err(FsError::NotFound);
                }
                if st.done_to() >= target {
                    return Ok(());
                }
                if let Some((error, attempt)) = st.failure
                    && attempt > base
                {
                    return Err(error);
                }
            }
            if until(deadline, changed).await.is_none() {
                return Err(FsError::Io);
            }
        }
    }

    async fn drain_ino(self: &Arc<Self>, ino: Ino, deadline: Option<Instant>) -> FsResult<()> {
        let Some(file) = self.peek(ino) else {
            return if self.fenced.load(Ordering::Acquire) { Err(FsError::Stale) } else { Ok(()) };
        };
        let done = self.drain(&file, deadline).await;
        self.tidy(file);
        done
    }

    /// Takes out of the queue what a truncation to `size` will cut off.
    fn park_beyond(&self, file: &File, size: u64) {
        {
            let mut st = file.state.lock();
            self.charge(st.park(size, self.inline_max()));
            if st.sealed.is_empty() && st.failure.take().is_some() {
                self.failing.fetch_sub(1, Ordering::AcqRel);
            }
        }
        file.changed.notify_waiters();
        file.wake.notify_one();
    }

    /// The truncation has cut it off.
    fn drop_parked(self: &Arc<Self>, file: &File) {
        let parked = std::mem::take(&mut file.state.lock().parked);
        for s in parked {
            self.charge(-(s.data.cost() as i64));
            self.credits.settle(s.data.bytes);
            self.released(&s.logged.places);
            if let super::file::Status::Uploaded(id) = s.status {
                self.discard(id);
            }
        }
        file.changed.notify_waiters();
    }
}

#[async_trait]
impl WriteLog for MemoryLog {
    fn try_write(&self, ino: Ino, offset: u64, data: &Bytes, cx: WriteContext) -> Option<FsResult<()>> {
        match offset.checked_add(data.len() as u64) {
            Some(end) if end <= limits::FILE_SIZE_MAX => {}
            _ => return Some(Err(FsError::FileTooBig)),
        }
        if data.is_empty() {
            return Some(Ok(()));
        }
        if data.len() > self.shared.part_max() || self.shared.synchronous() {
            return None;
        }
        self.shared.buffer(ino, offset, data, &cx, true)
    }

    async fn write(&self, ino: Ino, mut offset: u64, mut data: Bytes, cx: WriteContext) -> FsResult<()> {
        let deadline = self.shared.io_deadline();
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > limits::FILE_SIZE_MAX) {
            return Err(FsError::FileTooBig);
        }
        while !data.is_empty() {
            let part = data.split_to(data.len().min(self.shared.part_max()));
            loop {
                if let Some(done) = self.shared.buffer(ino, offset, &part, &cx, false) {
                    done?;
                    break;
                }
                self.shared.wait_room(ino, part.len() as u64, deadline).await?;
            }
            offset += part.len() as u64;
        }
        if self.shared.synchronous() {
            return self.shared.drain_ino(ino, deadline).await;
        }
        Ok(())
    }

    fn overlay(&self, ino: Ino, offset: u64, len: u64) -> Overlay {
        match self.shared.peek(ino) {
            Some(f) => f.state.lock().overlay(offset, offset.saturating_add(len)),
            None => Overlay::default(),
        }
    }

    fn dirty_attr(&self, ino: Ino) -> Option<DirtyAttr> {
        self.shared.peek(ino)?.state.lock().dirty_attr()
    }

    async fn fsync(&self, ino: Ino) -> FsResult<()> {
        self.shared.drain_ino(ino, self.shared.io_deadline()).await
    }

    async fn flush(&self, ino: Ino) -> FsResult<()> {
        let close = Instant::now() + self.shared.settings.close_timeout;
        let deadline = self.shared.io_deadline().map_or(close, |d| d.min(close));
        self.shared.drain_ino(ino, Some(deadline)).await
    }

    async fn hold(&self, ino: Ino, cancel_from: Option<u64>) -> FsResult<()> {
        let deadline = self.shared.io_deadline();
        let file = self.shared.file(ino);
        loop {
            let changed = file.changed.notified();
            {
                let mut st = file.state.lock();
                if !st.held {
                    st.held = true;
                    break;
                }
            }
            if until(deadline, changed).await.is_none() {
                return Err(FsError::Io);
            }
        }
        let held = HoldGuard { log: self, ino, armed: true };
        if let Some(size) = cancel_from {
            self.shared.park_beyond(&file, size);
        }
        self.shared.drain_to(&file, deadline, State::parked_from).await?;
        held.keep();
        Ok(())
    }

    fn truncated(&self, ino: Ino, size: u64, trunc_seq: u64) {
        let record = Record { at: size, trunc_seq, ..Record::new(Kind::Barrier, ino) };
        self.shared.record_closing(record);
        if let Some(file) = self.shared.peek(ino) {
            self.shared.drop_parked(&file);
        }
    }

    fn release(&self, ino: Ino) {
        if let Some(file) = self.shared.peek(ino) {
            {
                let mut st = file.state.lock();
                st.held = false;
                for seq in st.unpark() {
                    self.shared.start(&file, &mut st, seq);
                }
            }
            file.changed.notify_waiters();
            self.shared.tidy(file);
        }
    }

    async fn set_explicit_mtime(&self, ino: Ino) {
        let deadline = self.shared.io_deadline();
        let Some(file) = self.shared.peek(ino) else { return };
        let below = {
            let mut st = file.state.lock();
            if let Some(o) = &mut st.open {
                o.mtime = None;
                // Later writes stamp again; they must not lend their mtime to these bytes' batch, nor lose it.
                self.shared.seal(&file, &mut st);
            }
            if st.sealed.iter().chain(&st.parked).any(|s| !s.logged.places.is_empty()) {
                self.shared.record_closing(Record::new(Kind::ExplicitMtime, ino));
            }
            st.next_seq
        };
        loop {
            let changed = file.changed.notified();
            if !file.state.lock().drop_mtimes(below) || until(deadline, changed).await.is_none() {
                break;
            }
        }
        self.shared.tidy(file);
    }

    async fn sync_all(&self) -> FsResult<()> {
        let deadline = self.shared.io_deadline();
        let files: Vec<Arc<File>> = self.shared.files.lock().values().cloned().collect();
        let all = files.into_iter().map(|f| async move {
            let done = self.shared.drain(&f, deadline).await;
            self.shared.tidy(f);
            done
        });
        futures::future::join_all(all).await.into_iter().collect()
    }
}

/// Ends a hold whose draining failed or was given up.
struct HoldGuard<'a> {
    log: &'a MemoryLog,
    ino: Ino,
    armed: bool,
}

impl HoldGuard<'_> {
    fn keep(mut self) {
        self.armed = false;
    }
}

impl Drop for HoldGuard<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.log.release(self.ino);
        }
    }
}
