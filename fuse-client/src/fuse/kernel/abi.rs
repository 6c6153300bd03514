//! Numbers of the kernel's FUSE interface, up to 7.45 (Linux 6.18), and bounds-checked access to its little structs.
//!
//! The kernel writes native-endian words at fixed offsets. Nothing here casts memory: [`Fields`] walks a slice and
//! [`Out`] fills one.

/// Interface version that this code speaks.
pub const MAJOR: u32 = 7;
/// See [`MAJOR`].
pub const MINOR: u32 = 45;
/// Older kernels (before Linux 5.4) lack layouts that are taken for granted here.
pub const MINOR_MIN: u32 = 31;

/// Largest read and write, in bytes.
pub const IO_BYTES: u32 = 1 << 20;
/// The same in pages, as INIT wants it.
pub const IO_PAGES: u16 = 256;
/// Buffer of one request: header, arguments and a whole write. The kernel refuses to read into less than
/// `IO_BYTES + 80`.
pub const REQUEST_BYTES: usize = IO_BYTES as usize + 4096;

/// Bytes of `fuse_in_header`.
pub const IN_HEADER: usize = 40;
/// Bytes of `fuse_out_header`.
pub const OUT_HEADER: usize = 16;
/// Bytes of `fuse_attr`.
pub const ATTR: usize = 88;
/// Bytes of `fuse_entry_out`.
pub const ENTRY: usize = 40 + ATTR;
/// Bytes of `fuse_dirent` without its name.
pub const DIRENT: usize = 24;

/// Set in `unique` of a request that is sent again.
pub const UNIQUE_RESEND: u64 = 1 << 63;
/// Set in `unique` of an INTERRUPT.
pub const UNIQUE_INTERRUPT: u64 = 1;
/// nodeid of the root.
pub const ROOT_NODE: u64 = 1;

/// Opcodes.
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const BMAP: u32 = 37;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SETUPMAPPING: u32 = 48;
    pub const REMOVEMAPPING: u32 = 49;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
    pub const COPY_FILE_RANGE_64: u32 = 53;
}

/// INIT flags; bits 32 and up travel in `flags2` and need [`init::INIT_EXT`].
pub mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const POSIX_LOCKS: u64 = 1 << 1;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const CREATE_SUPP_GROUP: u64 = 1 << 34;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub const PASSTHROUGH: u64 = 1 << 37;
    pub const HAS_RESEND: u64 = 1 << 39;
    pub const ALLOW_IDMAP: u64 = 1 << 40;
}

/// Bits of `fuse_setattr_in.valid`.
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// Flags of an OPEN reply.
pub mod fopen {
    pub const DIRECT_IO: u32 = 1 << 0;
    pub const KEEP_CACHE: u32 = 1 << 1;
}

/// FUSE_RELEASE_FLOCK_UNLOCK
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// FUSE_LK_FLOCK
pub const LK_FLOCK: u32 = 1 << 0;
/// Extension type of supplementary groups; smaller ones are security contexts.
pub const EXT_GROUPS: u32 = 32;

/// Codes of notifications, which travel as the `error` of a reply to request 0.
pub mod notify {
    pub const INVAL_INODE: i32 = 2;
    pub const INVAL_ENTRY: i32 = 3;
    pub const STORE: i32 = 4;
    pub const DELETE: i32 = 6;
    pub const RESEND: i32 = 7;
    /// Flag of INVAL_ENTRY: only end the entry's validity.
    pub const EXPIRE_ONLY: u32 = 1 << 0;
}

/// The message ended before its struct did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short;

/// Walks a message from its front.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Short> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Short)?;
        self.0 = rest;
        Ok(head)
    }
    /// The next word of 16 bits.
    pub fn u16(&mut self) -> Result<u16, Short> {
        Ok(u16::from_ne_bytes(self.take(2)?.try_into().map_err(|_| Short)?))
    }
    /// The next word of 32 bits.
    pub fn u32(&mut self) -> Result<u32, Short> {
        Ok(u32::from_ne_bytes(self.take(4)?.try_into().map_err(|_| Short)?))
    }
    /// The next word of 64 bits.
    pub fn u64(&mut self) -> Result<u64, Short> {
        Ok(u64::from_ne_bytes(self.take(8)?.try_into().map_err(|_| Short)?))
    }
    /// Leaves `n` bytes out.
    pub fn skip(&mut self, n: usize) -> Result<(), Short> {
        self.take(n).map(|_| ())
    }
    /// Bytes up to the next NUL, which is passed over.
    pub fn name(&mut self) -> Result<&'a [u8], Short> {
        let end = self.0.iter().position(|b| *b == 0).ok_or(Short)?;
        let name = self.take(end)?;
        self.skip(1)?;
        Ok(name)
    }
    /// What is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// Room of [`Out`]: the largest fixed reply is STATX with 288 bytes and the header.
const OUT_BYTES: usize = 320;

/// A fixed-size reply under construction, on the stack; the first 16 bytes are left for the header.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    bytes: [u8; OUT_BYTES],
    len: usize,
}

impl Default for Out {
    fn default() -> Out {
        Out { bytes: [0; OUT_BYTES], len: OUT_HEADER }
    }
}

impl Out {
    /// Appends bytes. The structs that are built fit by their definition; what would not is cut, and the kernel then
    /// refuses the reply by its length.
    pub fn put(&mut self, b: &[u8]) -> &mut Out {
        let n = b.len().min(OUT_BYTES - self.len);
        self.bytes[self.len..self.len + n].copy_from_slice(&b[..n]);
        self.len += n;
        self
    }
    /// Appends a word.
    pub fn u16(&mut self, v: u16) -> &mut Out {
        self.put(&v.to_ne_bytes())
    }
    /// Appends a word.
    pub fn u32(&mut self, v: u32) -> &mut Out {
        self.put(&v.to_ne_bytes())
    }
    /// Appends a word.
    pub fn u64(&mut self, v: u64) -> &mut Out {
        self.put(&v.to_ne_bytes())
    }
    /// Appends `n` zero bytes.
    pub fn zeros(&mut self, n: usize) -> &mut Out {
        self.len = (self.len + n).min(OUT_BYTES);
        self
    }
    /// The reply's body so far.
    pub fn body(&self) -> &[u8] {
        &self.bytes[OUT_HEADER..self.len]
    }
    /// Header and body of a message whose whole length is `extra` bytes more.
    pub fn finish(&mut self, error: i32, unique: u64, extra: usize) -> &[u8] {
        let len = u32::try_from(self.len + extra).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[4..8].copy_from_slice(&error.to_ne_bytes());
        self.bytes[8..16].copy_from_slice(&unique.to_ne_bytes());
        &self.bytes[..self.len]
    }
}
