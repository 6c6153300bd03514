//! Every limit, in one place. Units are in the names.

/// Longest name in bytes.
pub const NAME_MAX: usize = 255;
/// Longest symlink target in bytes.
pub const SYMLINK_MAX: usize = 4095;
/// Longest path in bytes (checked where we parse paths: CLI, CSI).
pub const PATH_MAX: usize = 4096;
/// Longest xattr name in bytes.
pub const XATTR_NAME_MAX: usize = 255;
/// Longest xattr value in bytes.
pub const XATTR_VALUE_MAX: usize = 64 << 10;
/// All xattr names of one inode as listxattr returns them.
pub const XATTR_LIST_MAX: usize = 64 << 10;
/// Largest link count of a file.
pub const LINK_MAX: u32 = 1 << 30;
/// Largest file size in bytes.
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;
/// Collisions of one 59-bit name hash in one directory; the 17th is ENOSPC and an alarm.
pub const NAME_COLLISIONS_MAX: usize = 16;

/// Peers further ahead than this are refused.
pub const CLOCK_SKEW_MAX_NS: u64 = 500_000_000;

/// Plain bytes of a full object.
pub const OBJECT_BYTES_MAX: usize = 4 << 20;
/// Plain bytes of one object frame.
pub const FRAME_BYTES: usize = 64 << 10;
/// Bytes of an object's header.
pub const OBJECT_HEADER_BYTES: usize = 64;
/// Inline bytes of one commit.
pub const INLINE_COMMIT_BYTES_MAX: usize = 16 << 10;
/// Unpacked inline bytes of one partition before commits must use objects.
pub const INLINE_BUDGET_BYTES: u64 = 1 << 30;
/// Blob file segment.
pub const BLOB_SEGMENT_BYTES: u64 = 64 << 20;
/// Extents or files in one commit command.
pub const COMMIT_ITEMS_MAX: usize = 256;

/// Stored replies of one session in one partition.
pub const REPLIES_PER_SESSION_MAX: usize = 64 << 10;
/// Intervals of acknowledged numbers kept per session and partition; a client that acknowledges everything up to its
/// first operation in flight needs one per counter.
pub const ACK_INTERVALS_MAX: usize = 1024;
/// Locks on one inode, of all owners; beyond it ENOLCK.
pub const LOCKS_PER_INODE_MAX: usize = 4096;
/// Clients that a leader remembers as waiting for locks (inodes x sessions); beyond it they find out by asking.
pub const LOCK_WAITERS_MAX: usize = 64 << 10;
/// Tombstones of ended sessions in one partition.
pub const ENDED_SESSIONS_MAX: usize = 64 << 10;
/// Transactions between a coordinator's acknowledgement floor and its next number.
pub const TXN_WINDOW_MAX: u64 = 4096;
/// Acknowledged ranges in one envelope.
pub const ACK_RANGES_MAX: usize = 256;
/// Entries in one readdir reply.
pub const READDIR_ENTRIES_MAX: usize = 1024;
/// Extents in one reply.
pub const EXTENTS_REPLY_MAX: usize = 4096;

/// Largest gRPC message in bytes.
pub const GRPC_MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Largest raft command in bytes.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;
/// Commands batched into one raft entry.
pub const PROPOSAL_BATCH_MAX: usize = 256;
/// Bytes batched into one raft entry.
pub const PROPOSAL_BATCH_BYTES_MAX: usize = 1 << 20;
/// Proposals waiting for one group.
pub const PROPOSAL_QUEUE_MAX: usize = 4096;

/// Log segment.
pub const LOG_SEGMENT_BYTES: u64 = 64 << 20;
/// Checkpoint when this many log bytes would have to be replayed.
pub const CHECKPOINT_LOG_BYTES: u64 = 64 << 20;
/// Snapshot transfer chunk.
pub const SNAPSHOT_CHUNK_BYTES: usize = 1 << 20;

/// Lease of a session in milliseconds.
pub const LEASE_MS: u64 = 20_000;
/// How long a session that nobody renews is kept.
pub const SESSION_TTL_MS: u64 = 24 * 3600 * 1000;
/// Grace before the objects of a dead extent are deleted (= lease grace).
pub const OBJECT_GRACE_MS: u64 = LEASE_MS;
/// How long a close waits for the object store before EIO.
pub const CLOSE_TIMEOUT_MS: u64 = 30_000;
/// Dirty data is committed at most this long after the write.
pub const DIRTY_AGE_MAX_MS: u64 = 5_000;
/// How long a command-line call may take before it says what is wrong.
pub const CLI_TIMEOUT_MS: u64 = 15_000;

/// Default partitions of a volume.
pub const PARTITIONS_DEFAULT: u32 = 3;
/// Most partitions of a volume.
pub const PARTITIONS_MAX: u32 = 1024;
/// Default replicas of a partition.
pub const REPLICAS_DEFAULT: u32 = 3;
/// Inodes in one allocation range of a partition.
pub const RANGE_INOS: u64 = 1 << 40;
/// Directories at this depth or above it spread over partitions; deeper ones stay with their parent.
pub const SPILL_DEPTH_MAX: u8 = 2;
