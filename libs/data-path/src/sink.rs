//! What the data path needs from metadata; the vfs implements it over meta-client.

use async_trait::async_trait;
use bytes::Bytes;
use fusefs_types::{
    Attr, Extent, FsResult, Ino,
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
/// `lsn` names the mutation (`OpId { origin: Journal, number: lsn, step: 0 }`): the same lsn always comes with the same
/// content, so a call may be repeated after an unknown outcome. An error for which `FsError::is_retryable()` holds is
/// repeated here with the same lsn; any other one is an answer (and a later try gets a new lsn).
///
/// Implementations should put the returned attributes into their cache before they return: right afterwards the dirty
/// overlay of these bytes disappears.
#[async_trait]
pub trait MetaSink: Send + Sync + 'static {
    /// Commits data of one file. Returns the attributes afterwards.
    async fn commit(&self, lsn: u64, file: CommitFile) -> FsResult<Attr>;
    /// Appends at an offset that the partition chooses. Returns that offset and the attributes afterwards.
    async fn append(&self, lsn: u64, append: Append) -> FsResult<(u64, Attr)>;
    /// Extents overlapping `[offset, offset + len)`.
    async fn extents(&self, ino: Ino, offset: u64, len: u64) -> FsResult<ExtentMap>;
}
