//! The log by itself, for `examples/log.rs`. No part of the crate's interface.

use crate::{
    api::{HostError, LogStats},
    codec,
    disk::Disk,
    log::{Log, format::Key},
    raft::{Batch, Entry},
};
use bytes::Bytes;
use fusefs_types::{PartitionId, ReplicaId};
use openraft::EntryPayload;
use std::sync::Arc;

/// One disk's log without raft around it.
pub struct BenchLog(Log);

fn key(group: u64) -> Key {
    Key { group: PartitionId(group), replica: ReplicaId(1) }
}

impl BenchLog {
    /// A fresh log of segments of `segment_bytes`; what was in the directory's `log` is removed. Blocking.
    ///
    /// # Errors
    /// What the disk says.
    pub fn open(disk: Arc<dyn Disk>, segment_bytes: u64) -> Result<BenchLog, HostError> {
        Ok(BenchLog(Log::open(disk, 1, segment_bytes, true)?))
    }

    /// Appends one entry as raft does, waits until it is on the platter, then lets it leave memory. Indexes of one
    /// group follow each other.
    ///
    /// # Errors
    /// Stopped.
    pub async fn append(&self, group: u64, index: u64, payload: Bytes) -> Result<(), HostError> {
        let batch = Batch { payloads: vec![payload], waiters: None };
        let entry = Entry { log_id: codec::log_id(1, index), payload: EntryPayload::Normal(batch) };
        let lsn = self.0.append(key(group), vec![entry])?;
        self.0.flushed(lsn).await?;
        self.0.applied(key(group), index);
        Ok(())
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        self.0.stats()
    }

    /// Writes the closing mark and stops the committer.
    pub async fn close(&self) {
        self.0.close().await;
    }
}
