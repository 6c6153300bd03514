//! Queue of one inode.

use super::{
    DirtyAttr, Overlay, WriteContext,
    segments::{Frozen, Segments},
};
use crate::journal::Place;
use bytes::Bytes;
use fusefs_types::{FsError, Ino, ObjectId, Time, limits, ops::CommitFile};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{sync::Notify, time::Instant};

/// Contiguous runs of one batch = most pieces it commits.
pub(super) const RUNS_MAX: usize = limits::COMMIT_ITEMS_MAX;

/// Where a closed batch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Its object is being uploaded (or waits for that).
    Uploading,
    /// Commits its bytes inline.
    Inline,
    /// Its object is in the store.
    Uploaded(ObjectId),
}

/// Closed batch: one object or one inline commit.
pub(super) struct Sealed {
    pub seq: u64,
    pub data: Arc<Frozen>,
    pub trunc_seq: u64,
    pub mtime: Option<Time>,
    pub kill_priv: bool,
    pub status: Status,
    /// A commit that names it is on its way.
    pub committing: bool,
    pub cancelled: Arc<AtomicBool>,
    pub logged: Logged,
}

/// Journal records of a batch; empty without a journal.
#[derive(Default)]
pub(super) struct Logged {
    pub places: Vec<Place>,
    /// Number of the newest one.
    pub last: u64,
}

/// One commit on its way.
pub(super) struct Sending {
    pub number: u64,
    /// Batches at the head of the queue that it commits.
    pub batches: usize,
    pub file: CommitFile,
    pub inline_bytes: u64,
    /// Newest journal record that it covers.
    pub covers: u64,
    /// Kernel request that waits for it, 0 without one.
    pub unique: u64,
    /// An earlier client process sent it first.
    pub resent: bool,
    /// Its intent in the journal.
    pub place: Option<Place>,
}

/// Batch that still takes writes.
pub(super) struct Open {
    pub segments: Segments,
    pub trunc_seq: u64,
    pub mtime: Option<Time>,
    pub kill_priv: bool,
    pub since: Instant,
    pub logged: Logged,
}

/// When a write happened, and its record in the journal.
#[derive(Clone, Copy)]
pub(super) struct Stamp {
    pub mtime: Option<Time>,
    pub record: Option<(u64, Place)>,
}

#[derive(Default)]
pub(super) struct State {
    pub open: Option<Open>,
    pub sealed: VecDeque<Sealed>,
    pub next_seq: u64,
    /// A barrier holds back writes.
    pub held: bool,
    /// Last batches of the queue, taken out because a truncation is about to cut them off. They are dropped when it
    /// succeeded and come back when it did not.
    pub parked: Vec<Sealed>,
    /// Attempts started; a failure remembers which one it was, so that an fsync waits for a fresh verdict.
    pub attempts: u64,
    pub failure: Option<(FsError, u64)>,
    /// Times that data was dropped because the inode is gone.
    pub lost: u64,
    /// Somebody wants retries now.
    pub kicks: u64,
    /// The committing task runs.
    pub worker: bool,
    /// Commits of an earlier client process, to be sent before anything else; their batches are first in the queue.
    pub resend: VecDeque<Sending>,
    /// Intent of the commit on its way.
    pub intent: Option<Place>,
}

pub(super) struct File {
    pub ino: Ino,
    pub state: Mutex<State>,
    /// Wakes the committing task.
    pub wake: Notify,
    /// Something changed: progress, failure, barrier gone.
    pub changed: Notify,
    /// Retries wanted.
    pub kick: Notify,
}

impl File {
    pub fn new(ino: Ino) -> Arc<File> {
        Arc::new(File {
            ino,
            state: Mutex::default(),
            wake: Notify::new(),
            changed: Notify::new(),
            kick: Notify::new(),
        })
    }
}

impl State {
    pub fn is_clean(&self) -> bool {
        self.open.is_none()
            && self.sealed.is_empty()
            && self.parked.is_empty()
            && !self.held
            && !self.worker
            && self.intent.is_none()
    }
    /// Every batch below this number is committed (or cut off).
    pub fn done_to(&self) -> u64 {
        self.sealed.front().map_or(self.parked_from(), |s| s.seq)
    }
    /// Number of the first parked batch, or of the next one.
    pub fn parked_from(&self) -> u64 {
        self.parked.first().map_or(self.next_seq, |s| s.seq)
    }
    /// Must the open batch be closed before these bytes?
    pub fn must_seal(&mut self, len: u64, cx: &WriteContext) -> bool {
        self.open.as_mut().is_some_and(|o| {
            o.trunc_seq != cx.trunc_seq
                || o.segments.bytes() + len > limits::OBJECT_BYTES_MAX as u64
                || o.segments.is_ragged(RUNS_MAX)
        })
    }
    /// Buffers bytes. Returns (bytes overwritten in memory, change of the memory charge, whether a batch was opened).
    pub fn put(&mut self, offset: u64, data: &Bytes, cx: &WriteContext, by: Stamp) -> (u64, i64, Option<Instant>) {
        let mut opened = None;
        let open = self.open.get_or_insert_with(|| {
            let since = Instant::now();
            opened = Some(since);
            Open {
                segments: Segments::default(),
                trunc_seq: cx.trunc_seq,
                mtime: None,
                kill_priv: false,
                since,
                logged: Logged::default(),
            }
        });
        let (bytes, cost) = (open.segments.bytes(), open.segments.cost());
        open.segments.write(offset, data);
        open.mtime = by.mtime;
        open.kill_priv |= cx.kill_priv;
        if let Some((lsn, place)) = by.record {
            open.logged.places.push(place);
            open.logged.last = lsn;
        }
        let overwritten = bytes + data.len() as u64 - open.segments.bytes();
        (overwritten, open.segments.cost() as i64 - cost as i64, opened)
    }
    /// Closes the open batch. Returns the new batch's number and the change of the memory charge.
    pub fn seal(&mut self, inline_max: u64) -> Option<(u64, i64)> {
        let open = self.open.take()?;
        let cost = open.segments.cost() as i64;
        let data = open.segments.freeze();
        let delta = data.cost() as i64 - cost;
        let seq = self.next_seq;
        self.next_seq += 1;
        let status = if data.bytes <= inline_max { Status::Inline } else { Status::Uploading };
        self.sealed.push_back(Sealed {
            seq,
            data: Arc::new(data),
            trunc_seq: open.trunc_seq,
            mtime: open.mtime,
            kill_priv: open.kill_priv,
            status,
            committing: false,
            cancelled: Arc::default(),
            logged: open.logged,
        });
        Some((seq, delta))
    }
    /// Parks trailing batches that lie wholly at or behind `size` and are not being committed. Returns the change of
    /// the memory charge.
    pub fn park(&mut self, size: u64, inline_max: u64) -> i64 {
        if self.open.as_ref().is_some_and(|o| o.segments.start() < size) {
            return 0;
        }
        let delta = self.seal(inline_max).map_or(0, |(_, delta)| delta);
        while let Some(s) = self.sealed.pop_back_if(|s| !s.committing && s.data.start() >= size) {
            s.cancelled.store(true, Ordering::Release);
            self.parked.insert(0, s);
        }
        delta
    }
    /// Puts parked batches back. Returns their numbers; they are to be started again.
    pub fn unpark(&mut self) -> Vec<u64> {
        let back = std::mem::take(&mut self.parked);
        let numbers = back.iter().map(|s| s.seq).collect();
        self.sealed.extend(back.into_iter().map(|s| Sealed { cancelled: Arc::default(), ..s }));
        numbers
    }
    pub fn overlay(&self, from: u64, to: u64) -> Overlay {
        let mut pieces = Vec::new();
        for s in &self.sealed {
            s.data.overlay(from, to, &mut pieces);
        }
        if let Some(o) = &self.open {
            o.segments.overlay(from, to, &mut pieces);
        }
        Overlay { pieces, end: self.end() }
    }
    fn end(&self) -> u64 {
        let open = self.open.as_ref().map_or(0, |o| o.segments.end());
        self.sealed.iter().map(|s| s.data.end()).max().unwrap_or(0).max(open)
    }
    pub fn dirty_attr(&self) -> Option<DirtyAttr> {
        let mtime = match (&self.open, self.sealed.back()) {
            (Some(o), _) => o.mtime,
            (None, Some(s)) => s.mtime,
            (None, None) => return None,
        };
        Some(DirtyAttr { size: self.end(), mtime })
    }
    /// Forgets the mtimes of everything that is not on its way. True when something with an mtime is.
    pub fn drop_mtimes(&mut self, below: u64) -> bool {
        let mut busy = false;
        for s in self.sealed.iter_mut().chain(&mut self.parked).filter(|s| s.seq < below) {
            if s.committing {
                busy |= s.mtime.is_some();
            } else {
                s.mtime = None;
            }
        }
        busy
    }
    /// Every record that is needed here, with the mtime of its batch where that was dropped.
    pub fn places(&mut self) -> impl Iterator<Item = (&mut Place, bool)> {
        let open = self.open.iter_mut().flat_map(|o| {
            let dropped = o.mtime.is_none();
            o.logged.places.iter_mut().map(move |p| (p, dropped))
        });
        let sealed = self.sealed.iter_mut().chain(&mut self.parked).flat_map(|s| {
            let dropped = s.mtime.is_none();
            s.logged.places.iter_mut().map(move |p| (p, dropped))
        });
        let intents = self.resend.iter_mut().filter_map(|s| s.place.as_mut()).chain(self.intent.as_mut());
        open.chain(sealed).chain(intents.map(|p| (p, false)))
    }
    /// Starts an attempt; returns its number and the kicks seen.
    pub fn begin_attempt(&mut self) -> (u64, u64) {
        self.attempts += 1;
        (self.attempts, self.kicks)
    }
}
