//! openraft's log storage on top of [`crate::log`].
//!
//! `append` answers before the entries are durable, so that a leader replicates while it syncs. Nobody is told before
//! they are: a follower's answer waits in [`crate::group`]'s handler, a leader's own copy counts only together with a
//! follower's answer, which waits for the leader's sync in [`crate::net::raft_net`]. A group that may commit alone
//! (`solo`) waits here. Votes wait here too, and the log is written in order, so a vote covers all entries before it.

use crate::{
    log::{Log, LogStopped, format::Key},
    raft::{Entry, LogId, StorageError, Types, Vote},
};
use openraft::{
    AnyError, EntryPayload, LogState, OptionalSend, RaftLogReader, StorageIOError,
    storage::{LogFlushed, RaftLogStorage},
};
use std::{
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Entries of one append call are at most about this large, besides the first.
const APPEND_BYTES_MAX: usize = 2 << 20;

/// Log of one replica.
#[derive(Clone)]
pub(crate) struct LogStore {
    pub log: Log,
    pub key: Key,
    solo: Arc<AtomicBool>,
    resume_leader: bool,
}

impl LogStore {
    /// `voters` as first created; one voter means that no other disk is ever waited for.
    pub(crate) fn new(log: Log, key: Key, voters: usize) -> Self {
        LogStore { log, key, solo: Arc::new(AtomicBool::new(voters < 2)), resume_leader: false }
    }

    /// See [`crate::api::Planted`].
    pub(crate) fn plant(mut self, resume_leader: bool) -> Self {
        self.resume_leader = resume_leader;
        self
    }

    fn read(&self, lo: u64, hi: u64, max_bytes: usize) -> Result<Vec<Entry>, StorageError> {
        self.log.entries(self.key, lo, hi, max_bytes).map_err(|e| StorageIOError::read_logs(AnyError::new(&e)).into())
    }
}

fn write_error(e: &LogStopped) -> StorageError {
    StorageIOError::write_logs(AnyError::new(e)).into()
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let lo = match range.start_bound() {
            Bound::Included(n) => *n,
            Bound::Excluded(n) => n.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let hi = match range.end_bound() {
            Bound::Included(n) => n.saturating_add(1),
            Bound::Excluded(n) => *n,
            Bound::Unbounded => u64::MAX,
        };
        self.read(lo, hi, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        let entries = self.read(start, end, APPEND_BYTES_MAX)?;
        // Never send a run that begins later than the entry it claims to follow (purged meanwhile).
        let whole = entries.first().is_some_and(|e| e.log_id.index == start);
        Ok(if whole { entries } else { Vec::new() })
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let (purged, last) = self.log.ends(self.key);
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let lsn = self.log.update(self.key, |s| s.vote = Some(*vote)).map_err(|e| write_error(&e))?;
        self.log.flushed(lsn).await.map_err(|e| StorageIOError::write_vote(AnyError::new(&e)).into())
    }

    /// Asked once, at start. A vote for this node is demoted (PROTOCOL 23): a restarted leader's state machine is
    /// behind its log and must not serve before a new term's entry was applied. Votes for others stay committed: they
    /// carry the lease that this replica granted.
    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.log.vote(self.key).map(|mut vote| {
            if vote.leader_id.voted_for == Some(self.key.replica.0) && !self.resume_leader {
                vote.committed = false;
            }
            vote
        }))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        for entry in &entries {
            if let EntryPayload::Membership(m) = &entry.payload
                && m.get_joint_config().iter().any(|config| config.len() < 2)
            {
                self.solo.store(true, Ordering::Relaxed);
            }
        }
        let lsn = self.log.append(self.key, entries).map_err(|e| write_error(&e))?;
        let result = if self.solo.load(Ordering::Relaxed) {
            self.log.flushed(lsn).await.map_err(io::Error::other)
        } else {
            Ok(())
        };
        callback.log_io_completed(result);
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.log.truncate(self.key, log_id.index).map_err(|e| write_error(&e))?;
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let purge = |s: &mut crate::log::format::HardState| s.purged = s.purged.max(Some(log_id));
        self.log.update(self.key, purge).map_err(|e| write_error(&e))?;
        Ok(())
    }
}
