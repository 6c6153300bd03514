//! What the vfs needs from metadata: a few typed calls with one retry loop behind them.

use async_trait::async_trait;
use fusefs_types::{
    FsResult,
    cluster::VolumeSpace,
    ids::OpId,
    ops::{PartitionUsage, Read, ReadReply, Write, WriteReply},
};
use std::sync::Arc;

/// Answers the cluster's question "does this mount hold the inode open?" (PROTOCOL 22).
pub trait Holders: Send + Sync + 'static {
    /// True while a handle of this mount is open, is being opened or could have been created just now.
    fn holds(&self, ino: fusefs_types::Ino) -> bool;
    /// Locks on these inodes went or shrank: waiters should try again.
    fn locks_freed(&self, _inos: &[fusefs_types::Ino]) {}
    /// A stream of events broke: what was learned from it may be old, and events may have been lost.
    fn stream_broken(&self) {}
}

/// Metadata of one volume, as one session sees it. Implementations retry what is retryable with the same op id and
/// follow the partition map; an error is final.
#[async_trait]
pub trait Meta: Send + Sync + 'static {
    /// One mutation, exactly once under `op`.
    async fn write(&self, op: OpId, write: Write) -> FsResult<WriteReply>;
    /// One mutation under a fresh id of our own, acknowledged as soon as it has an answer: for what is not one kernel
    /// request's (attempts at a lock: a request that waits must not keep replies of others stored, PROTOCOL 16).
    async fn write_internal(&self, write: Write) -> FsResult<WriteReply>;
    /// One question, linearizable.
    async fn read(&self, read: Read) -> FsResult<ReadReply>;
    /// Counters summed over all partitions.
    async fn usage(&self) -> FsResult<PartitionUsage>;
    /// The volume's space as last heard; no RPC.
    fn space(&self) -> VolumeSpace;
    /// Asks for it ahead of time, in the background; false when that was done a moment ago.
    fn recount(&self) -> bool;
    /// Whether the session's lease is valid now, by CLOCK_BOOTTIME (PROTOCOL 13).
    fn leased(&self) -> bool;
    /// Waits until the lease is valid again. [`fusefs_types::FsError::Stale`] when the session has ended.
    async fn lease(&self) -> FsResult<()>;
    /// The reply of this mutation reached the kernel: its stored copy may go.
    fn replied(&self, op: OpId);
    /// The kernel sent the request of this operation; `resent`: to an earlier process of this mount, too. Its number is not
    /// acknowledged before [`Meta::replied`].
    fn register(&self, _op: OpId, _resent: bool) {}
    /// Everything that an earlier process left unanswered is registered (PROTOCOL 16).
    fn resumed(&self) {}
    /// Gives the number of the next journal operation and notes it as outstanding in one step, so that nothing above it
    /// can be acknowledged before it.
    fn begin_journal(&self) -> u64;
    /// Journal operations of an earlier client process that will be sent again: outstanding from now on. Called before
    /// the first [`Meta::begin_journal`] and before anything is acknowledged.
    fn resume_journal(&self, unfinished: &[u64]);
    /// Registers who answers holder questions; called once, before the first operation.
    fn set_holders(&self, holders: Arc<dyn Holders>);
}
