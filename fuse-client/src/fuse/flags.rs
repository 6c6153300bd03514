//! What is asked of the kernel at INIT.

use fuser::{InitFlags, KernelConfig};

/// Largest read and write request, in bytes.
pub(super) const IO_BYTES: u32 = 1 << 20;
/// Background requests (read-ahead, asynchronous direct I/O) in flight.
const BACKGROUND: u16 = 128;

/// Wanted where the kernel has it. Never asked for under fuser, which does not parse what they change: HAS_RESEND,
/// SETXATTR_EXT, CREATE_SUPP_GROUP, HANDLE_KILLPRIV(_V2), ALLOW_IDMAP and the lock flags (locks are the kernel's own for
/// now). Never at all: WRITEBACK_CACHE (the kernel would own size and mtime) and ATOMIC_O_TRUNC (it would make open a
/// mutation).
#[cfg(target_os = "linux")]
const WANTED: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_BIG_WRITES)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_AUTO_INVAL_DATA)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
#[cfg(not(target_os = "linux"))]
const WANTED: InitFlags = InitFlags::FUSE_ASYNC_READ;

/// Asks for what we want and the kernel has, and for `extra`.
pub(super) fn negotiate(config: &mut KernelConfig, extra: InitFlags) {
    let ask = (WANTED | extra) & config.capabilities();
    // What was refused would have to be missing from `capabilities`, which was just masked.
    let _ = config.add_capabilities(ask);
    let _ = config.set_max_write(IO_BYTES);
    // The kernel's offer is the bound; read-ahead beyond it is raised through the bdi after the mount.
    if let Err(most) = config.set_max_readahead(IO_BYTES) {
        let _ = config.set_max_readahead(most);
    }
    let _ = config.set_max_background(BACKGROUND);
    let _ = config.set_congestion_threshold(BACKGROUND * 3 / 4);
}
