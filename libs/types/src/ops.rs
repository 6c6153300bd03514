//! The operations of a meta-partition: requests, replies and routing keys. `proto` converts them; `meta-state` executes
//! them; `vfs` issues them. Adding one touches exactly these four places.
//!
//! Who checks permissions: the client's kernel (`default_permissions`). A partition trusts uid and gid inside a session
//! and checks structure only.

use crate::{
    Attr, Extent, FileKind, Hlc, Ino, Mode, Name, Time, Token,
    ids::{AckRange, OpId, SessionId},
    key::RangeKey,
    txn::Internal,
};
use bytes::Bytes;

pub use crate::envelope::*;
pub use crate::lock::{HeldLock, LockOp, LockOwner, LockSpace, SetLock};

/// Who asks, and under which fence. Part of every client command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Session.
    pub session: SessionId,
    /// Fencing token; `apply` compares it with the highest it has seen.
    pub token: Token,
    /// Name of the mutation.
    pub op: OpId,
    /// Stored replies that may be dropped.
    pub acks: Vec<AckRange>,
}

/// One raft-log command of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Stamp given by the leader's `prepare` (PROTOCOL 3).
    pub stamp: Hlc,
    /// Feature level of the sender; above the group's level the replica stops ("upgrade needed").
    pub level: u32,
    /// What to do.
    pub body: Body,
}

/// Body of a [`Command`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A client's mutation, exactly once.
    Client(Caller, Write),
    /// Our own: sessions, transactions, garbage, ranges.
    Internal(Internal),
}

/// What a new inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewNode {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link with its target, 1..=4095 bytes.
    Symlink(Bytes),
    /// FIFO, socket, character or block device with its device number.
    Special(FileKind, u32),
}

/// create, mknod, mkdir, symlink: a new inode and its first name. 1 RPC, 1 commit (directories that spill: a transaction).
///
/// The owner is `uid`; the group is the parent's when the parent has set-gid, else `gid`; a directory inherits set-gid.
/// Errors: Exists, NotFound (parent gone), NotDirectory, NameTooLong, NoSpace, Quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    /// Directory.
    pub parent: Ino,
    /// Name in it.
    pub name: Name,
    /// What to make.
    pub node: NewNode,
    /// Permission bits with the umask already applied by the kernel.
    pub mode: Mode,
    /// Owner.
    pub uid: u32,
    /// Group unless the parent is set-gid.
    pub gid: u32,
    /// Without `exclusive`, an existing regular file is returned instead of Exists (open with O_CREAT).
    pub exclusive: bool,
}

/// link(2). Errors: Exists, NotFound, NotPermitted (directory), TooManyLinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Inode that gets another name.
    pub ino: Ino,
    /// Directory.
    pub parent: Ino,
    /// New name.
    pub name: Name,
}

/// unlink(2) and, with `directory`, rmdir(2). Errors: NotFound, IsDirectory / NotDirectory, NotEmpty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unlink {
    /// Directory.
    pub parent: Ino,
    /// Name.
    pub name: Name,
    /// rmdir instead of unlink.
    pub directory: bool,
}

/// Flags of renameat2(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RenameMode {
    /// Replace the target if there is one.
    #[default]
    Replace,
    /// RENAME_NOREPLACE
    NoReplace,
    /// RENAME_EXCHANGE: within one partition; across partitions Invalid for now.
    Exchange,
}

/// rename(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rename {
    /// Source directory (its partition coordinates).
    pub parent: Ino,
    /// Source name.
    pub name: Name,
    /// Target directory.
    pub new_parent: Ino,
    /// Target name.
    pub new_name: Name,
    /// Flags.
    pub mode: RenameMode,
}

/// How a timestamp is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// UTIME_NOW: the stamp of the command.
    Now,
    /// An explicit value, never clamped.
    At(Time),
}

/// chmod, chown, truncate, utimens in one command; `None` leaves a field alone.
///
/// A size below the current one cuts extents and bumps `trunc_seq`; a larger one makes a hole. Changing the owner or the
/// size clears set-uid and set-gid as Linux does when `kill_priv` is set.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Inode.
    pub ino: Ino,
    /// New permission bits.
    pub mode: Option<Mode>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New size.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
    /// Explicit ctime (fuser passes FATTR_CTIME from writeback mounts only); normally None.
    pub ctime: Option<Time>,
    /// Clear set-uid/set-gid.
    pub kill_priv: bool,
}

/// Bytes or references that a commit adds to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes already in an object (or allocated zeroes).
    Extent(Extent),
    /// Bytes that ride through raft into the partition's blob file.
    Inline {
        /// File offset.
        offset: u64,
        /// The bytes, at most [`crate::limits::INLINE_COMMIT_BYTES_MAX`] over the whole commit.
        bytes: Bytes,
    },
    /// Punch a hole: `[offset, offset + len)` becomes unallocated.
    Hole {
        /// File offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// Pieces of one file in journal order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitFile {
    /// Inode.
    pub ino: Ino,
    /// `trunc_seq` seen when the bytes were written; pieces older than the inode's are clipped to the smallest size
    /// since (PROTOCOL 36).
    pub trunc_seq: u64,
    /// Pieces, later ones on top.
    pub pieces: Vec<Piece>,
    /// Client-stamped mtime, None after an explicit utimens (PROTOCOL 37). Clamped to the leader's now.
    pub mtime: Option<Time>,
    /// Size may grow to this (fallocate without KEEP_SIZE, or the end of the last write).
    pub grow_to: u64,
    /// Clear set-uid/set-gid (a write by a non-owner without privilege).
    pub kill_priv: bool,
}

/// Data of one or several files of one partition becomes visible. Reply: attributes in the same order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Files; all route to the same partition.
    pub files: Vec<CommitFile>,
}

/// O_APPEND write: the partition assigns the offset (PROTOCOL 38). Pieces are relative to the assigned offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// Inode.
    pub ino: Ino,
    /// Pieces with offsets relative to the old end of file.
    pub pieces: Vec<Piece>,
    /// Bytes appended.
    pub len: u64,
}

/// open(2) with O_TMPFILE: a file without a name, held open by the caller, which may get its first name by link. Answered
/// like a create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tmpfile {
    /// Directory whose partition it is born in; its set-gid bit and project count.
    pub parent: Ino,
    /// Bits after umask.
    pub mode: Mode,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// XATTR_CREATE / XATTR_REPLACE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum XattrMode {
    /// Create or replace.
    #[default]
    Any,
    /// Exists if present.
    Create,
    /// NoData if absent.
    Replace,
}

/// setxattr(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetXattr {
    /// Inode.
    pub ino: Ino,
    /// Full name, e.g. `user.a`.
    pub name: Bytes,
    /// Value, at most 64 KiB.
    pub value: Bytes,
    /// Flags.
    pub mode: XattrMode,
}

/// removexattr(2). NoData when absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoveXattr {
    /// Inode.
    pub ino: Ino,
    /// Full name.
    pub name: Bytes,
}

/// A client's mutation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// create, mknod, mkdir, symlink
    Create(Create),
    /// link
    Link(Link),
    /// unlink, rmdir
    Unlink(Unlink),
    /// rename
    Rename(Rename),
    /// chmod, chown, truncate, utimens
    SetAttr(SetAttr),
    /// data
    Commit(Commit),
    /// O_APPEND data
    Append(Append),
    /// setxattr
    SetXattr(SetXattr),
    /// removexattr
    RemoveXattr(RemoveXattr),
    /// flock, fcntl locks
    SetLock(SetLock),
    /// open with O_TMPFILE
    Tmpfile(Tmpfile),
}

impl Write {
    /// Key whose owner executes (or coordinates) the operation.
    pub fn route(&self) -> RangeKey {
        match self {
            Write::Create(x) => x.parent,
            Write::Link(x) => x.parent,
            Write::Unlink(x) => x.parent,
            Write::Rename(x) => x.parent,
            Write::SetAttr(x) => x.ino,
            Write::Commit(x) => x.files.first().map_or(Ino(0), |f| f.ino),
            Write::Append(x) => x.ino,
            Write::SetXattr(x) => x.ino,
            Write::RemoveXattr(x) => x.ino,
            Write::SetLock(x) => x.ino,
            Write::Tmpfile(x) => x.parent,
        }
        .into()
    }
    /// Name for logs, metrics and the op-coverage check.
    pub fn name(&self) -> &'static str {
        match self {
            Write::Create(_) => "create",
            Write::Link(_) => "link",
            Write::Unlink(_) => "unlink",
            Write::Rename(_) => "rename",
            Write::SetAttr(_) => "setattr",
            Write::Commit(_) => "commit",
            Write::Append(_) => "append",
            Write::SetXattr(_) => "setxattr",
            Write::RemoveXattr(_) => "removexattr",
            Write::SetLock(_) => "setlock",
            Write::Tmpfile(_) => "tmpfile",
        }
    }
}

/// Stored and sent answer of a mutation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteReply {
    /// create: the inode; `existed` when a non-exclusive create found it. `parent` = attributes of the directory after
    /// the operation, when its inode is in the same partition (it is: dentries live with their parent).
    Created {
        /// New or found inode.
        attr: Attr,
        /// Found.
        existed: bool,
        /// Directory afterwards.
        parent: Attr,
    },
    /// link
    Linked {
        /// Inode afterwards.
        attr: Attr,
        /// Directory afterwards.
        parent: Attr,
    },
    /// unlink, rmdir
    Unlinked {
        /// Inode that lost the name.
        ino: Ino,
        /// Its link count afterwards.
        nlink: u32,
        /// Directory afterwards.
        parent: Attr,
    },
    /// rename
    Renamed {
        /// Moved inode.
        ino: Ino,
        /// Replaced inode (or the exchanged one), if any.
        replaced: Option<Ino>,
    },
    /// setattr, xattrs
    Attr(Attr),
    /// commit
    Committed(Vec<Attr>),
    /// append
    Appended {
        /// Offset the bytes got.
        offset: u64,
        /// Inode afterwards.
        attr: Attr,
    },
    /// setlock: granted or removed. The attributes carry `change`: what a client cached of another version is void.
    Locked(Attr),
    /// setlock: not granted, this lock is in the way.
    LockBlocked(HeldLock),
}

/// A question to a partition's leader: linearizable (ReadIndex), never in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// Name in a directory. NotFound is a cacheable negative answer; it still carries the directory's attributes.
    Lookup {
        /// Directory.
        parent: Ino,
        /// Name.
        name: Name,
    },
    /// Attributes.
    GetAttr {
        /// Inode.
        ino: Ino,
    },
    /// Open: attributes, and the session is remembered in leader memory as a holder (PROTOCOL 22).
    Open {
        /// Inode.
        ino: Ino,
        /// For writing.
        write: bool,
    },
    /// Last close of this session: the holder is forgotten.
    Close {
        /// Inode.
        ino: Ino,
    },
    /// Target of a symbolic link.
    ReadLink {
        /// Inode.
        ino: Ino,
    },
    /// Entries with a cookie above `after`, in cookie order, without `.` and `..`.
    ReadDir {
        /// Directory.
        ino: Ino,
        /// Cookie of the last entry seen, 0 or 2 at the start.
        after: u64,
        /// Most entries wanted, at most READDIR_ENTRIES_MAX.
        limit: u32,
        /// Attributes of children that live in this partition, too.
        plus: bool,
    },
    /// One extended attribute.
    GetXattr {
        /// Inode.
        ino: Ino,
        /// Full name.
        name: Bytes,
    },
    /// Names of all extended attributes.
    ListXattr {
        /// Inode.
        ino: Ino,
    },
    /// Extents overlapping `[offset, offset + len)`; inline ones come with their bytes.
    Extents {
        /// Inode.
        ino: Ino,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// F_GETLK: a lock that `owner` of this session would have to wait for.
    GetLock {
        /// Inode.
        ino: Ino,
        /// Who asks.
        owner: LockOwner,
        /// First byte.
        start: u64,
        /// Last byte, inclusive.
        end: u64,
        /// Exclusive.
        write: bool,
        /// The caller waits: tell its session when a lock on the inode goes (as in [`SetLock::wait`]).
        wait: bool,
    },
    /// All locks on an inode, of all sessions.
    ListLocks {
        /// Inode.
        ino: Ino,
    },
    /// Usage of this partition.
    StatFs,
}

impl Read {
    /// Key whose owner answers. StatFs has none: it is asked of every partition.
    pub fn route(&self) -> RangeKey {
        match self {
            Read::Lookup { parent, .. } => *parent,
            Read::GetAttr { ino }
            | Read::Open { ino, .. }
            | Read::Close { ino }
            | Read::ReadLink { ino }
            | Read::ReadDir { ino, .. }
            | Read::GetXattr { ino, .. }
            | Read::ListXattr { ino }
            | Read::Extents { ino, .. }
            | Read::GetLock { ino, .. }
            | Read::ListLocks { ino } => *ino,
            Read::StatFs => Ino(0),
        }
        .into()
    }
    /// Name for logs, metrics and the op-coverage check.
    pub fn name(&self) -> &'static str {
        match self {
            Read::Lookup { .. } => "lookup",
            Read::GetAttr { .. } => "getattr",
            Read::Open { .. } => "open",
            Read::Close { .. } => "close",
            Read::ReadLink { .. } => "readlink",
            Read::ReadDir { .. } => "readdir",
            Read::GetXattr { .. } => "getxattr",
            Read::ListXattr { .. } => "listxattr",
            Read::Extents { .. } => "extents",
            Read::GetLock { .. } => "getlock",
            Read::ListLocks { .. } => "listlocks",
            Read::StatFs => "statfs",
        }
    }
}

/// One directory entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Name.
    pub name: Name,
    /// Inode.
    pub ino: Ino,
    /// Type.
    pub kind: FileKind,
    /// Position; pass it as `after` to continue.
    pub cookie: u64,
    /// Attributes when asked for and the inode lives in this partition.
    pub attr: Option<Attr>,
}

/// Answer of a [`Read`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadReply {
    /// lookup: `ino` None = no such name. `attr` is None when the inode lives in another partition (ask there).
    Entry {
        /// Inode and type of the name.
        entry: Option<(Ino, FileKind)>,
        /// Attributes of the inode if local.
        attr: Option<Attr>,
        /// Attributes of the directory.
        parent: Attr,
    },
    /// getattr, open
    Attr(Attr),
    /// close
    Closed,
    /// readlink
    Target(Bytes),
    /// readdir; `end` when nothing follows. `parent` = the directory.
    Entries {
        /// Entries in cookie order.
        entries: Vec<DirEntry>,
        /// No more entries.
        end: bool,
        /// Directory attributes.
        dir: Attr,
    },
    /// getxattr
    Xattr(Bytes),
    /// listxattr
    XattrNames(Vec<Bytes>),
    /// extents in file order; inline bytes by position in `extents` (empty for others). `end` = offset up to which the
    /// answer is complete. Holes are what no extent covers.
    Extents {
        /// Attributes at the same instant.
        attr: Attr,
        /// Extents, sliced to the asked range.
        extents: Vec<Extent>,
        /// Bytes of inline extents: (index into `extents`, bytes).
        inline: Vec<(u32, Bytes)>,
        /// Complete up to here.
        end: u64,
    },
    /// getlock: None = nothing is in the way.
    Lock(Option<HeldLock>),
    /// listlocks, by owner and offset
    Locks(Vec<HeldLock>),
    /// statfs
    StatFs(PartitionUsage),
}

/// Counters of one partition, kept by `apply`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PartitionUsage {
    /// Inodes including orphans.
    pub inodes: u64,
    /// Bytes allocated by extents.
    pub bytes: u64,
    /// Unpacked inline bytes.
    pub inline_bytes: u64,
    /// Cross-partition transactions coordinated so far.
    pub transactions: u64,
    /// Client operations applied so far.
    pub operations: u64,
    /// Orphans (nlink 0, still pinned or not yet freed).
    pub orphans: u64,
    /// Objects with a record.
    pub objects: u64,
}
