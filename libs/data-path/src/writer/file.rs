//! Queue of one inode.

use super::{
    DirtyAttr, Overlay, WriteContext,
    segments::{Frozen, Segments},
};
use bytes::Bytes;
use fusefs_types::{FsError, Ino, ObjectId, Time, limits};
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
}

/// Batch that still takes writes.
pub(super) struct Open {
    pub segments: Segments,
    pub trunc_seq: u64,
    pub mtime: Option<Time>,
    pub kill_priv: bool,
    pub since: Instant,
}

#[derive(Default)]
pub(super) struct State {
    pub open: Option<Open>,
    pub sealed: VecDeque<Sealed>,
    pub next_seq: u64,
    /// A barrier holds back writes.
    pub held: bool,
    /// Attempts started; a failure remembers which one it was, so that an fsync waits for a fresh verdict.
    pub attempts: u64,
    pub failure: Option<(FsError, u64)>,
    /// Times that data was dropped because the inode is gone.
    pub lost: u64,
    /// Somebody wants retries now.
    pub kicks: u64,
    /// The committing task runs.
    pub worker: bool,
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
        self.open.is_none() && self.sealed.is_empty() && !self.held && !self.worker
    }
    /// Every batch below this number is committed (or cancelled).
    pub fn done_to(&self) -> u64 {
        self.sealed.front().map_or(self.next_seq, |s| s.seq)
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
    pub fn put(&mut self, offset: u64, data: &Bytes, cx: &WriteContext, mtime: Time) -> (u64, i64, Option<Instant>) {
        let mut opened = None;
        let open = self.open.get_or_insert_with(|| {
            let since = Instant::now();
            opened = Some(since);
            Open { segments: Segments::default(), trunc_seq: cx.trunc_seq, mtime: None, kill_priv: false, since }
        });
        let (bytes, cost) = (open.segments.bytes(), open.segments.cost());
        open.segments.write(offset, data);
        open.mtime = Some(mtime);
        open.kill_priv |= cx.kill_priv;
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
        });
        Some((seq, delta))
    }
    /// Drops trailing batches that lie wholly at or behind `size` and are not being committed. Returns them.
    pub fn cancel(&mut self, size: u64) -> (Option<Segments>, Vec<Sealed>) {
        let mut sealed = Vec::new();
        let open = match &self.open {
            Some(o) if o.segments.start() >= size => self.open.take().map(|o| o.segments),
            Some(_) => return (None, sealed),
            None => None,
        };
        while let Some(last) = self.sealed.back() {
            if last.committing || last.data.start() < size {
                break;
            }
            if let Some(s) = self.sealed.pop_back() {
                s.cancelled.store(true, Ordering::Release);
                sealed.push(s);
            }
        }
        (open, sealed)
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
        for s in self.sealed.iter_mut().filter(|s| s.seq < below) {
            if s.committing {
                busy |= s.mtime.is_some();
            } else {
                s.mtime = None;
            }
        }
        busy
    }
    /// Starts an attempt; returns its number and the kicks seen.
    pub fn begin_attempt(&mut self) -> (u64, u64) {
        self.attempts += 1;
        (self.attempts, self.kicks)
    }
}
