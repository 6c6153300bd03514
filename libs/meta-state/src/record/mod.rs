//! Stored records, one file per key kind: big-endian keys (byte order = numeric order), hand-packed little-endian values
//! that start with a version byte (PROTOCOL 4).

pub mod blob;
pub mod dentry;
pub mod extent;
pub mod flock;
pub mod inode;
pub mod lock;
pub mod object;
pub mod orphan;
pub mod outbox;
pub mod reply;
pub mod session;
pub mod txn;
pub mod wire;
pub mod xattr;

use fusefs_types::FsResult;

pub use blob::{Blob, BlobKey};
pub use dentry::{Dentry, DentryKey};
pub use extent::{ExtentKey, StoredExtent};
pub use flock::{FileLock, FileLockKey};
pub use inode::Inode;
pub use lock::{Lock, LockKey};
pub use object::{Dead, DeadKey, Object};
pub use orphan::{Orphan, Pin, PinKey};
pub use outbox::OutboxItem;
pub use reply::{Outcome, Reply, ReplyKey};
pub use session::Session;
pub use txn::{Participant, ParticipantKey, TxnRecord};
pub use xattr::{Xattr, XattrKey};

/// One kind of record.
pub trait Record: Sized {
    /// Number of its tree in snapshots and digests; never reused.
    const TREE: u8;
    /// Key.
    type Key;
    /// Appends the key's bytes.
    fn encode_key(key: &Self::Key, out: &mut Vec<u8>);
    /// Reads a key; Corrupt unless the bytes are exactly one key.
    fn decode_key(bytes: &[u8]) -> FsResult<Self::Key>;
    /// Appends the value's bytes, version byte first.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads a value: Corrupt, or UpgradeNeeded for a newer version.
    fn decode(bytes: &[u8]) -> FsResult<Self>;
}
