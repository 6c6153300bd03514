//! What goes to the journal, and the room in it.

use super::{
    Shared, WriteContext,
    file::{File, Sending, Stamp, State},
};
use crate::journal::{
    Append, Class, Journal, JournalError, JournalSettings, Kind, LOW_SEGMENTS, Outcome, Place, Record, Recovered,
    ReplayStats, encode_commit,
};
use bytes::Bytes;
use fusefs_types::{FsError, Hlc, Ino, SessionId, Time};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};
use tokio::sync::Notify;

/// Waits for room between two log lines.
const LOG_EVERY: u64 = 1024;
/// Records are written.
const HEALTHY: u8 = 0;
/// The disk failed: writers wait until everything that was acknowledged before is committed.
const DRAINING: u8 = 1;
/// Writes are committed before they are acknowledged.
const SYNCHRONOUS: u8 = 2;

/// The journal below a write log.
pub(super) struct Journaled {
    pub journal: Arc<Journal>,
    pub replayed: ReplayStats,
    pub payload_max: usize,
    mode: AtomicU8,
    /// Writes that were in the journal at the start: (request, offset, bytes). Kept for good: a request that was sent
    /// again may wait long before it gets here, and numbers never repeat in a connection.
    requests: HashSet<(u64, u64, u32)>,
    /// Requests of other kinds that were answered.
    outcomes: Mutex<HashMap<u64, Outcome>>,
    /// Room is short.
    wake: Notify,
}

impl Journaled {
    /// Reads the journal for a client of `session`.
    pub fn recover(settings: JournalSettings, session: SessionId) -> Result<(Journaled, Recovered), JournalError> {
        let JournalSettings { journal, mode, ignore_trunc_seq } = settings;
        let mut recovered = journal.recover(mode, ignore_trunc_seq)?;
        let before = journal.header().session;
        if before != SessionId(0) && before != session {
            // Nobody remembers the answers of another session: its commits would be executed a second time. What they
            // cover is pending like everything else.
            for intent in recovered.pending.values_mut().flat_map(|p| p.intents.drain(..)) {
                journal.release(&[intent.place]);
            }
        }
        let requests = std::mem::take(&mut recovered.requests);
        let this = Journaled {
            payload_max: journal.payload_max(),
            journal: Arc::new(journal),
            replayed: recovered.stats,
            mode: AtomicU8::new(HEALTHY),
            requests,
            outcomes: Mutex::new(std::mem::take(&mut recovered.outcomes)),
            wake: Notify::new(),
        };
        Ok((this, recovered))
    }
    fn mode(&self) -> u8 {
        self.mode.load(Ordering::Acquire)
    }
}

impl Shared {
    /// Most bytes of one record of a write.
    pub(super) fn part_max(&self) -> usize {
        let most = fusefs_types::limits::OBJECT_BYTES_MAX;
        self.journal.as_ref().map_or(most, |j| j.payload_max.min(most))
    }

    /// Whether this very write is in the journal of an earlier client process.
    pub(super) fn written_before(&self, offset: u64, data: &Bytes, cx: &WriteContext) -> bool {
        let Some(j) = self.journal.as_ref().filter(|_| cx.resent && cx.unique != 0) else { return false };
        let known = j.requests.contains(&(cx.unique, offset, data.len() as u32));
        if known {
            j.journal.stats().deduped.fetch_add(1, Ordering::Relaxed);
        }
        known
    }

    /// How an operation ended that an earlier client process did for the same kernel request.
    pub(super) fn outcome_of(&self, cx: &WriteContext) -> Option<Outcome> {
        let j = self.journal.as_ref().filter(|_| cx.resent && cx.unique != 0)?;
        j.outcomes.lock().get(&cx.unique).copied()
    }

    pub(super) fn note_outcome(&self, unique: u64, outcome: Outcome) {
        if let Some(j) = self.journal.as_ref().filter(|_| unique != 0) {
            j.outcomes.lock().insert(unique, outcome);
        }
    }

    /// Writes must be committed before they are acknowledged.
    pub(super) fn synchronous(&self) -> bool {
        self.journal.as_ref().is_some_and(|j| j.mode() != HEALTHY)
    }

    /// A write of this length must wait for the journal.
    pub(super) fn journal_full(&self, len: usize) -> bool {
        self.journal.as_ref().is_some_and(|j| match j.mode() {
            HEALTHY => !j.journal.has_room(len),
            mode => mode == DRAINING,
        })
    }

    /// Somebody waits for room in the journal; `first`: for the first time.
    pub(super) fn journal_wanted(&self, first: bool) {
        let Some(j) = &self.journal else { return };
        j.wake.notify_one();
        let waits = &j.journal.stats().full_waits;
        // One line for the first waiter and then now and then: with many writers there are many waits.
        if first && waits.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOG_EVERY) {
            let free = j.journal.free_segments();
            tracing::warn!(
                free,
                dirty = self.dirty.load(Ordering::Relaxed),
                "the journal is full: writers wait for commits"
            );
        }
    }

    /// Records a write; called with the queue locked, so that the order of records is the order of the queue. None =
    /// no room now.
    pub(super) fn record_write(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        data: &Bytes,
        cx: &WriteContext,
        mtime: Time,
    ) -> Option<Stamp> {
        let stamp = Stamp { mtime: Some(mtime), record: None };
        let Some(j) = &self.journal else { return Some(stamp) };
        match j.mode() {
            HEALTHY => {}
            DRAINING => return None,
            _ => return Some(stamp),
        }
        let record = Record {
            at: offset,
            unique: cx.unique,
            trunc_seq: cx.trunc_seq,
            mtime: Some(mtime),
            kill_priv: cx.kill_priv,
            number: cx.change.0,
            ..Record::new(Kind::Write, ino)
        };
        match j.journal.append(Class::Data, record, data) {
            Ok(record) => {
                if j.journal.free_segments() < LOW_SEGMENTS {
                    j.wake.notify_one();
                }
                Some(Stamp { record: Some(record), ..stamp })
            }
            Err(Append::Full) => None,
            Err(Append::Broken(e)) => {
                self.degrade(&e);
                None
            }
        }
    }

    /// Records that a commit is about to be sent. Waits for room.
    pub(super) async fn record_intent(self: &Arc<Self>, file: &File, sending: &mut Sending) {
        let Some(j) = &self.journal else { return };
        let payload = encode_commit(&sending.file);
        let record = Record {
            at: sending.covers,
            unique: sending.unique,
            number: sending.number,
            ..Record::new(Kind::Intent, file.ino)
        };
        loop {
            let space = self.space.notified();
            if j.mode() == SYNCHRONOUS || self.fenced.load(Ordering::Acquire) {
                return;
            }
            let appended = {
                let mut st = file.state.lock();
                let appended = j.journal.append(Class::Intent, record, &payload);
                if let Ok((lsn, place)) = &appended {
                    (sending.place, st.intent) = (Some(*place), Some(*place));
                    if sending.covers == 0 {
                        sending.covers = *lsn; // nothing of the queue: it comes behind everything that there was
                    }
                }
                appended
            };
            match appended {
                Ok(_) => return,
                Err(Append::Full) => {
                    j.wake.notify_one();
                    space.await;
                }
                Err(Append::Broken(e)) => return self.degrade(&e),
            }
        }
    }

    /// Records the answer of a commit, with the queue locked and before its batches leave it: a copy of a record never
    /// follows what settled it. `answer`: the version of the inode afterwards. False = it must not be acknowledged.
    pub(super) fn record_answer(
        self: &Arc<Self>,
        st: &mut State,
        ino: Ino,
        s: &Sending,
        answer: Result<Hlc, FsError>,
    ) -> bool {
        let (change, refused) = (answer.unwrap_or_default(), answer.err());
        let intent = st.intent.take();
        let (Some(j), Some(place)) = (&self.journal, intent) else { return s.place.is_none() };
        if j.mode() == SYNCHRONOUS {
            return false; // what is in the journal is void; the stored reply goes with the session
        }
        let (at, unique, number) = (s.covers, s.unique, s.number);
        let done = Record { at, unique, number, refused, trunc_seq: change.0, ..Record::new(Kind::Done, ino) };
        let recorded = self.record_closing(done)
            && (refused != Some(FsError::NotFound) || self.record_closing(Record::new(Kind::Lost, ino)));
        if recorded {
            self.released(&[place]);
        }
        recorded
    }

    /// Records something that settles older records. False = the disk failed.
    pub(super) fn record_closing(self: &Arc<Self>, record: Record) -> bool {
        let Some(j) = self.journal.as_ref().filter(|j| j.mode() == HEALTHY) else { return false };
        match j.journal.append_closing(record) {
            Ok(()) => true,
            Err(e) => {
                let e = match e {
                    Append::Broken(e) => e,
                    Append::Full => std::io::Error::other("the reserve is used up"),
                };
                self.degrade(&e);
                false
            }
        }
    }

    /// These records are not needed any more.
    pub(super) fn released(&self, places: &[Place]) {
        let Some(j) = &self.journal else { return };
        if j.journal.release(places) {
            self.space.notify_waiters();
            if j.journal.free_segments() < LOW_SEGMENTS {
                j.wake.notify_one();
            }
        }
    }

    /// The journal's disk failed. What was acknowledged is committed, the journal is made void, and from then on writes
    /// are synchronous; until then writers wait.
    pub(super) fn degrade(self: &Arc<Self>, error: &std::io::Error) {
        let Some(j) = &self.journal else { return };
        if j.mode.compare_exchange(HEALTHY, DRAINING, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return;
        }
        j.journal.stats().degraded.store(1, Ordering::Relaxed);
        tracing::warn!(%error, "the journal's disk failed: writes are committed before they are acknowledged from now on");
        let this = self.clone();
        self.runtime.spawn(async move {
            let ended = this.cancel.clone();
            tokio::select! { biased; () = ended.cancelled() => {}, () = this.give_up_journal() => {} }
        });
    }

    async fn give_up_journal(self: &Arc<Self>) {
        let Some(j) = &self.journal else { return };
        let files: Vec<Arc<File>> = self.files.lock().values().cloned().collect();
        let drained = futures::future::join_all(files.iter().map(|f| self.drain(f, None))).await;
        if self.fenced.load(Ordering::Acquire) {
            return; // what is in the journal stays there for people
        }
        let left = drained.iter().filter(|d| d.is_err()).count();
        if left > 0 {
            tracing::warn!(files = left, "files that cannot be committed have no journal any more");
        }
        if let Err(error) = j.journal.make_void() {
            tracing::error!(%error, "the journal could not be made void: after a crash of this client it must be discarded");
        }
        j.mode.store(SYNCHRONOUS, Ordering::Release);
        self.space.notify_waiters();
        for file in files {
            file.changed.notify_waiters();
            self.tidy(file);
        }
    }

    /// Makes room in the journal while it is short: commits everything, and copies what pins the oldest segment.
    pub(super) async fn tend(self: Arc<Self>) {
        let Some(j) = &self.journal else { return };
        loop {
            tokio::select! { biased; () = self.cancel.cancelled() => return, () = j.wake.notified() => {} }
            if j.journal.free_segments() >= LOW_SEGMENTS {
                continue;
            }
            self.seal_aged(None);
            let files: Vec<Arc<File>> = self.files.lock().values().cloned().collect();
            while j.mode() == HEALTHY
                && j.journal.free_segments() < LOW_SEGMENTS
                && let Some(seq) = j.journal.worth_copying()
            {
                let before = j.journal.free_segments();
                self.empty_segment(j, &files, seq);
                self.space.notify_waiters();
                if j.journal.worth_copying() == Some(seq) || j.journal.free_segments() < before {
                    break; // nothing gained now
                }
                tokio::task::yield_now().await;
            }
        }
    }

    /// Copies the live records of a segment to the end.
    fn empty_segment(self: &Arc<Self>, j: &Journaled, files: &[Arc<File>], seq: u64) {
        for file in files {
            let mut st = file.state.lock();
            for (place, drop_mtime) in st.places().filter(|(p, _)| p.seq == seq) {
                let change = |r: &mut Record| {
                    if drop_mtime {
                        r.mtime = None;
                    }
                };
                match j.journal.copy(place, change) {
                    Ok(new) => {
                        let old = std::mem::replace(place, new);
                        j.journal.release(&[old]);
                    }
                    Err(Append::Full) => return,
                    Err(Append::Broken(e)) => {
                        self.degrade(&e);
                        return;
                    }
                }
            }
        }
    }
}
