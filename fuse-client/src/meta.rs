//! What the vfs needs from metadata: a few typed calls with one retry loop behind them.

use async_trait::async_trait;
use fusefs_types::{
    FsResult,
    ids::OpId,
    ops::{PartitionUsage, Read, ReadReply, Write, WriteReply},
};
use std::sync::Arc;

/// Answers the cluster's question "does this mount hold the inode open?" (PROTOCOL 22).
pub trait Holders: Send + Sync + 'static {
    /// True while a handle of this mount is open, is being opened or could have been created just now.
    fn holds(&self, ino: fusefs_types::Ino) -> bool;
}

/// Metadata of one volume, as one session sees it. Implementations retry what is retryable with the same op id and
/// follow the partition map; an error is final.
#[async_trait]
pub trait Meta: Send + Sync + 'static {
    /// One mutation, exactly once under `op`.
    async fn write(&self, op: OpId, write: Write) -> FsResult<WriteReply>;
    /// One question, linearizable.
    async fn read(&self, read: Read) -> FsResult<ReadReply>;
    /// Counters summed over all partitions.
    async fn usage(&self) -> FsResult<PartitionUsage>;
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
    /// Registers who answers holder questions; called once, before the first operation.
    fn set_holders(&self, holders: Arc<dyn Holders>);
}
