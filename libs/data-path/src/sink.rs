//! What the data path needs from metadata; the vfs implements it over meta-client.

use async_trait::async_trait;
use bytes::Bytes;
use fusefs_types::{
    Attr, Extent, FsResult, Ino,
    ids::OpId,
    ops::{Append, CommitFile},
};

/// Extents overlapping an asked range (the parts of `ReadReply::Extents`).
#[derive(Clone, Debug)]
pub struct ExtentMap {
    /// Attributes at the same instant.
    pub attr: Attr,
    /// Extents in file order, sliced to the asked range. Holes are what no extent covers.
    pub extents: Vec<Extent>,
    /// Bytes of inline extents: (index into `extents`, bytes).
    pub inline: Vec<(u32, Bytes)>,
    /// The answer is complete up to this file offset.
    pub end: u64,
}

/// Metadata calls of the data path.
///
/// `number` names a commit (`OpId { origin: Journal, number, step: 0 }`): the same number always comes with the same
/// content, so a call may be repeated after an unknown outcome, also by the next client process (from the journal). An
/// error for which `FsError::is_retryable()` holds is repeated here with the same number; any other one is an answer
/// (and a later try gets a new number).
///
/// Implementations should put the returned attributes into their cache before they return: right afterwards the dirty
/// overlay of these bytes disappears.
#[async_trait]
pub trait MetaSink: Send + Sync + 'static {
    /// Gives the number of the next commit and notes it as outstanding, in one step: no higher number may be
    /// acknowledged before it is. Numbers of one session never repeat, whatever client process asks.
    fn begin(&self) -> u64;
    /// Commits of an earlier client process that are sent again: outstanding from now on. Called once, before the
    /// first [`MetaSink::begin`], and before anything is acknowledged.
    fn resume(&self, unfinished: &[u64]);
    /// The answer of this commit is recorded here: its stored copy may go. Not called for a commit whose answer could
    /// not be recorded, so that a partition's [`fusefs_types::FsError::TooOld`] always means "was executed".
    fn settled(&self, number: u64);
    /// Commits data of one file. Returns the attributes afterwards.
    async fn commit(&self, number: u64, file: CommitFile) -> FsResult<Attr>;
    /// Appends at an offset that the partition chooses, exactly once under `op`, which is the operation of the kernel's
    /// request. The same op may come with other pieces (inline, then an object; another object after a restart) but
    /// always with the same length. Returns that offset and the attributes afterwards.
    async fn append(&self, op: OpId, append: Append) -> FsResult<(u64, Attr)>;
    /// Extents overlapping `[offset, offset + len)`.
    async fn extents(&self, ino: Ino, offset: u64, len: u64) -> FsResult<ExtentMap>;
}
