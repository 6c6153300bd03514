//! From the bytes of a request to a typed one. Never panics and never reads past the message; borrowed from the buffer.

use super::abi::{self, EXT_GROUPS, Fields, IN_HEADER, Short, UNIQUE_RESEND, op};

/// Supplementary groups taken from one request at most; the kernel sends one.
const GROUPS_MAX: usize = 64;

/// `fuse_in_header`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whole message in bytes.
    pub len: u32,
    /// One of [`abi::op`], or unknown.
    pub opcode: u32,
    /// Number of the request as the kernel wants it back, resend bit included.
    pub raw_unique: u64,
    /// Inode that the request is about.
    pub node: u64,
    /// Caller's file-system uid; `u32::MAX` when the kernel leaves it out (idmapped mounts, requests that create nothing).
    pub uid: u32,
    /// Caller's file-system gid, as `uid`.
    pub gid: u32,
    /// Caller's thread in the mounter's pid namespace, 0 elsewhere.
    pub pid: u32,
    /// Bytes of extensions at the end.
    pub extensions: usize,
}

impl Header {
    /// Number without the resend bit.
    pub fn unique(&self) -> u64 {
        self.raw_unique & !UNIQUE_RESEND
    }
    /// Sent again after an earlier client process had read it.
    pub fn resent(&self) -> bool {
        self.raw_unique & UNIQUE_RESEND != 0
    }
    /// Nobody waits for an answer to this one, and it may overtake others (PROTOCOL 16).
    pub fn unanswered(&self) -> bool {
        matches!(self.opcode, op::FORGET | op::BATCH_FORGET | op::INTERRUPT | op::NOTIFY_REPLY)
    }
    /// It never changes anything under its own number, so nothing has to be remembered of it.
    pub fn only_asks(&self) -> bool {
        matches!(
            self.opcode,
            op::LOOKUP
                | op::GETATTR
                | op::STATX
                | op::READLINK
                | op::READ
                | op::STATFS
                | op::GETXATTR
                | op::LISTXATTR
                | op::OPENDIR
                | op::READDIR
                | op::READDIRPLUS
                | op::RELEASEDIR
                | op::FSYNCDIR
                | op::ACCESS
                | op::LSEEK
                | op::POLL
        )
    }
    /// The header in front of `message`.
    pub fn parse(message: &[u8]) -> Result<Header, Malformed> {
        let mut f = Fields(message);
        let header = Header {
            len: f.u32()?,
            opcode: f.u32()?,
            raw_unique: f.u64()?,
            node: f.u64()?,
            uid: f.u32()?,
            gid: f.u32()?,
            pid: f.u32()?,
            extensions: usize::from(f.u16()?) * 8,
        };
        f.skip(2)?;
        Ok(header)
    }
}

/// What the negotiation decided about layouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// SETXATTR has its long form.
    pub setxattr_ext: bool,
}

/// Why a message could not be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl From<Short> for Malformed {
    fn from(_: Short) -> Malformed {
        Malformed
    }
}

/// Arguments of SETATTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetattrIn {
    /// Bits of [`abi::fattr`].
    pub valid: u32,
    /// New size.
    pub size: u64,
    /// Seconds, nanoseconds.
    pub atime: (i64, u32),
    /// Seconds, nanoseconds.
    pub mtime: (i64, u32),
    /// Mode.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Arguments of READ, READDIR and READDIRPLUS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadIn {
    /// Handle.
    pub fh: u64,
    /// Offset or directory cookie.
    pub offset: u64,
    /// Bytes of room.
    pub size: u32,
}

/// Arguments of WRITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteIn<'a> {
    /// Handle.
    pub fh: u64,
    /// Offset.
    pub offset: u64,
    /// Open flags of the descriptor.
    pub flags: i32,
    /// Bytes.
    pub data: &'a [u8],
}

/// A record lock as the kernel describes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockIn {
    /// Handle.
    pub fh: u64,
    /// Owner (of the open file or the process).
    pub owner: u64,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// F_RDLCK, F_WRLCK, F_UNLCK.
    pub kind: u32,
    /// Process.
    pub pid: u32,
    /// flock(2), not fcntl(2).
    pub flock: bool,
}

/// Arguments of COPY_FILE_RANGE and COPY_FILE_RANGE_64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyIn {
    /// Offset in the source, which is the request's node.
    pub from: u64,
    /// Target inode.
    pub to_node: u64,
    /// Target handle.
    pub to_fh: u64,
    /// Offset in the target.
    pub to: u64,
    /// Bytes.
    pub len: u64,
    /// The answer has 64 bits.
    pub wide: bool,
}

/// The inodes of a BATCH_FORGET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forgets<'a>(&'a [u8]);

impl Forgets<'_> {
    /// (nodeid, lookups) of each.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.chunks_exact(16).filter_map(|c| {
            let mut f = Fields(c);
            Some((f.u64().ok()?, f.u64().ok()?))
        })
    }
}

/// A request's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the kernel's
pub enum Op<'a> {
    Lookup {
        name: &'a [u8],
    },
    Forget {
        lookups: u64,
    },
    BatchForget(Forgets<'a>),
    Getattr,
    Statx,
    Setattr(SetattrIn),
    Readlink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    Mknod {
        name: &'a [u8],
        mode: u32,
        rdev: u32,
        umask: u32,
    },
    Mkdir {
        name: &'a [u8],
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: &'a [u8],
    },
    Rmdir {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        new_node: u64,
        new_name: &'a [u8],
        flags: u32,
    },
    Link {
        node: u64,
        name: &'a [u8],
    },
    Open {
        flags: i32,
    },
    Read(ReadIn),
    Write(WriteIn<'a>),
    Statfs,
    Release {
        fh: u64,
        owner: u64,
        flock_unlock: bool,
    },
    Fsync {
        datasync: bool,
    },
    Setxattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: i32,
    },
    Getxattr {
        name: &'a [u8],
        size: u32,
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'a [u8],
    },
    Flush {
        fh: u64,
        owner: u64,
    },
    Init(InitIn),
    Opendir {
        flags: i32,
    },
    Readdir(ReadIn),
    Readdirplus(ReadIn),
    Releasedir {
        fh: u64,
    },
    Fsyncdir,
    Getlk(LockIn),
    Setlk {
        lock: LockIn,
        wait: bool,
    },
    Access,
    Create {
        name: &'a [u8],
        flags: i32,
        mode: u32,
        umask: u32,
    },
    Tmpfile {
        flags: i32,
        mode: u32,
        umask: u32,
    },
    Interrupt {
        unique: u64,
    },
    Bmap,
    Destroy,
    Ioctl,
    Poll {
        events: u32,
    },
    NotifyReply,
    Fallocate {
        fh: u64,
        offset: u64,
        len: u64,
        mode: i32,
    },
    Lseek {
        offset: i64,
        whence: i32,
    },
    CopyFileRange(CopyIn),
    Mapping,
    Syncfs,
    /// An opcode of a newer kernel.
    Unknown(u32),
}

/// Arguments of INIT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InitIn {
    /// Interface version of the kernel.
    pub major: u32,
    /// See `major`.
    pub minor: u32,
    /// Largest read-ahead offered.
    pub max_readahead: u32,
    /// Bits of [`abi::init`], `flags2` in the upper half.
    pub flags: u64,
}

/// A decoded request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its header.
    pub header: Header,
    /// Its arguments.
    pub op: Op<'a>,
    /// Supplementary groups, where the kernel sent any.
    pub gids: Vec<u32>,
}

impl<'a> Message<'a> {
    /// Decodes exactly one message.
    pub fn parse(message: &'a [u8], layout: Layout) -> Result<Message<'a>, Malformed> {
        let header = Header::parse(message)?;
        if header.len as usize != message.len() {
            return Err(Malformed);
        }
        let body = message.get(IN_HEADER..).ok_or(Malformed)?;
        let cut = body.len().checked_sub(header.extensions).ok_or(Malformed)?;
        let (body, extensions) = body.split_at_checked(cut).ok_or(Malformed)?;
        let gids = groups(extensions)?;
        let op = arguments(header.opcode, Fields(body), layout)?;
        Ok(Message { header, op, gids })
    }
}

fn arguments(opcode: u32, f: Fields<'_>, layout: Layout) -> Result<Op<'_>, Malformed> {
    match opcode {
        op::LOOKUP..=op::LINK | op::CREATE | op::RENAME2 => names(opcode, f),
        op::SETXATTR..=op::REMOVEXATTR => xattrs(opcode, f, layout),
        op::GETLK | op::SETLK | op::SETLKW => lock(opcode, f),
        op::OPEN..=op::FSYNC | op::FLUSH..=op::FSYNCDIR | op::READDIRPLUS => streams(opcode, f),
        _ => others(opcode, f),
    }
}

fn names(opcode: u32, mut f: Fields<'_>) -> Result<Op<'_>, Malformed> {
    Ok(match opcode {
        op::LOOKUP => Op::Lookup { name: f.name()? },
        op::FORGET => Op::Forget { lookups: f.u64()? },
        op::GETATTR => Op::Getattr,
        op::SETATTR => Op::Setattr(setattr(f)?),
        op::READLINK => Op::Readlink,
        op::SYMLINK => Op::Symlink { name: f.name()?, target: f.name()? },
        op::MKNOD => {
            let (mode, rdev, umask) = (f.u32()?, f.u32()?, f.u32()?);
            f.skip(4)?;
            Op::Mknod { name: f.name()?, mode, rdev, umask }
        }
        op::MKDIR => {
            let (mode, umask) = (f.u32()?, f.u32()?);
            Op::Mkdir { name: f.name()?, mode, umask }
        }
        op::UNLINK => Op::Unlink { name: f.name()? },
        op::RMDIR => Op::Rmdir { name: f.name()? },
        op::RENAME => {
            let new_node = f.u64()?;
            Op::Rename { name: f.name()?, new_node, new_name: f.name()?, flags: 0 }
        }
        op::RENAME2 => {
            let (new_node, flags) = (f.u64()?, f.u32()?);
            f.skip(4)?;
            Op::Rename { name: f.name()?, new_node, new_name: f.name()?, flags }
        }
        op::LINK => {
            let node = f.u64()?;
            Op::Link { node, name: f.name()? }
        }
        op::CREATE => {
            let (flags, mode, umask) = (f.u32()? as i32, f.u32()?, f.u32()?);
            f.skip(4)?;
            Op::Create { name: f.name()?, flags, mode, umask }
        }
        other => Op::Unknown(other),
    })
}

fn setattr(mut f: Fields<'_>) -> Result<SetattrIn, Malformed> {
    let valid = f.u32()?;
    f.skip(4 + 8)?;
    let size = f.u64()?;
    f.skip(8)?;
    let (atime, mtime, _ctime) = (f.u64()? as i64, f.u64()? as i64, f.u64()?);
    let (atime_ns, mtime_ns, _ctime_ns) = (f.u32()?, f.u32()?, f.u32()?);
    let mode = f.u32()?;
    f.skip(4)?;
    let (uid, gid) = (f.u32()?, f.u32()?);
    f.skip(4)?;
    Ok(SetattrIn { valid, size, atime: (atime, atime_ns), mtime: (mtime, mtime_ns), mode, uid, gid })
}

fn read(mut f: Fields<'_>) -> Result<ReadIn, Malformed> {
    let (fh, offset, size) = (f.u64()?, f.u64()?, f.u32()?);
    f.skip(4 + 8 + 4 + 4)?;
    Ok(ReadIn { fh, offset, size })
}

fn streams(opcode: u32, mut f: Fields<'_>) -> Result<Op<'_>, Malformed> {
    Ok(match opcode {
        op::OPEN => Op::Open { flags: f.u32()? as i32 },
        op::OPENDIR => Op::Opendir { flags: f.u32()? as i32 },
        op::READ => Op::Read(read(f)?),
        op::READDIR => Op::Readdir(read(f)?),
        op::READDIRPLUS => Op::Readdirplus(read(f)?),
        op::WRITE => {
            let (fh, offset, size) = (f.u64()?, f.u64()?, f.u32()?);
            f.skip(4 + 8)?;
            let flags = f.u32()? as i32;
            f.skip(4)?;
            Op::Write(WriteIn { fh, offset, flags, data: f.take(size as usize)? })
        }
        op::STATFS => Op::Statfs,
        op::RELEASE | op::RELEASEDIR => {
            let fh = f.u64()?;
            f.skip(4)?;
            let (flags, owner) = (f.u32()?, f.u64()?);
            match opcode {
                op::RELEASE => Op::Release { fh, owner, flock_unlock: flags & abi::RELEASE_FLOCK_UNLOCK != 0 },
                _ => Op::Releasedir { fh },
            }
        }
        op::FSYNC => {
            f.skip(8)?;
            Op::Fsync { datasync: f.u32()? & 1 != 0 }
        }
        op::FSYNCDIR => Op::Fsyncdir,
        op::FLUSH => {
            let fh = f.u64()?;
            f.skip(8)?;
            Op::Flush { fh, owner: f.u64()? }
        }
        op::INIT => Op::Init(init(f)?),
        other => Op::Unknown(other),
    })
}

fn init(mut f: Fields<'_>) -> Result<InitIn, Malformed> {
    let (major, minor) = (f.u32()?, f.u32()?);
    // A kernel of another major version sends no more than that.
    let (max_readahead, flags) = (f.u32().unwrap_or(0), f.u32().unwrap_or(0));
    let high = if u64::from(flags) & abi::init::INIT_EXT != 0 { f.u32()? } else { 0 };
    Ok(InitIn { major, minor, max_readahead, flags: u64::from(flags) | (u64::from(high) << 32) })
}

fn xattrs(opcode: u32, mut f: Fields<'_>, layout: Layout) -> Result<Op<'_>, Malformed> {
    Ok(match opcode {
        op::SETXATTR => {
            let (size, flags) = (f.u32()?, f.u32()? as i32);
            if layout.setxattr_ext {
                f.skip(8)?;
            }
            let name = f.name()?;
            Op::Setxattr { name, value: f.take(size as usize)?, flags }
        }
        op::GETXATTR => {
            let size = f.u32()?;
            f.skip(4)?;
            Op::Getxattr { name: f.name()?, size }
        }
        op::LISTXATTR => Op::Listxattr { size: f.u32()? },
        op::REMOVEXATTR => Op::Removexattr { name: f.name()? },
        other => Op::Unknown(other),
    })
}

fn lock(opcode: u32, mut f: Fields<'_>) -> Result<Op<'_>, Malformed> {
    let lock = LockIn {
        fh: f.u64()?,
        owner: f.u64()?,
        start: f.u64()?,
        end: f.u64()?,
        kind: f.u32()?,
        pid: f.u32()?,
        flock: f.u32()? & abi::LK_FLOCK != 0,
    };
    Ok(match opcode {
        op::GETLK => Op::Getlk(lock),
        _ => Op::Setlk { lock, wait: opcode == op::SETLKW },
    })
}

fn others(opcode: u32, mut f: Fields<'_>) -> Result<Op<'_>, Malformed> {
    Ok(match opcode {
        op::STATX => Op::Statx,
        op::ACCESS => Op::Access,
        op::INTERRUPT => Op::Interrupt { unique: f.u64()? & !UNIQUE_RESEND },
        op::BMAP => Op::Bmap,
        op::DESTROY => Op::Destroy,
        op::IOCTL => Op::Ioctl,
        op::POLL => {
            f.skip(8 + 8 + 4)?;
            Op::Poll { events: f.u32()? }
        }
        op::NOTIFY_REPLY => Op::NotifyReply,
        op::BATCH_FORGET => {
            let count = f.u32()? as usize;
            f.skip(4)?;
            Op::BatchForget(Forgets(f.take(count.checked_mul(16).ok_or(Malformed)?)?))
        }
        op::FALLOCATE => Op::Fallocate { fh: f.u64()?, offset: f.u64()?, len: f.u64()?, mode: f.u32()? as i32 },
        op::LSEEK => {
            f.skip(8)?;
            Op::Lseek { offset: f.u64()? as i64, whence: f.u32()? as i32 }
        }
        op::COPY_FILE_RANGE | op::COPY_FILE_RANGE_64 => {
            f.skip(8)?;
            let (from, to_node, to_fh, to, len) = (f.u64()?, f.u64()?, f.u64()?, f.u64()?, f.u64()?);
            Op::CopyFileRange(CopyIn { from, to_node, to_fh, to, len, wide: opcode == op::COPY_FILE_RANGE_64 })
        }
        op::SETUPMAPPING | op::REMOVEMAPPING => Op::Mapping,
        op::SYNCFS => Op::Syncfs,
        op::TMPFILE => Op::Tmpfile { flags: f.u32()? as i32, mode: f.u32()?, umask: f.u32()? },
        other => Op::Unknown(other),
    })
}

/// Supplementary groups of a request's extensions; security contexts and unknown types are passed over.
fn groups(extensions: &[u8]) -> Result<Vec<u32>, Malformed> {
    let mut gids = Vec::new();
    let mut rest = Fields(extensions);
    while !rest.rest().is_empty() {
        let (size, kind) = (rest.u32()? as usize, rest.u32()?);
        let padded = size.checked_next_multiple_of(8).ok_or(Malformed)?;
        // Always at least its own header, so the walk ends.
        let mut body = Fields(rest.take(padded.checked_sub(8).ok_or(Malformed)?)?);
        if kind == EXT_GROUPS {
            for _ in 0..(body.u32()? as usize).min(GROUPS_MAX) {
                gids.push(body.u32()?);
            }
        }
    }
    Ok(gids)
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
