//! The vfs' own request head, whatever library read the request (PROTOCOL 46), and its answers.

use super::handle::Creating;
use bytes::Bytes;
use fusefs_types::{
    Attr, FileKind, Ino,
    ids::{MountId, OpId, Origin},
};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::{sync::Arc, time::Duration};
use tokio::sync::Notify;

/// Set when the application was interrupted; long waits look at it or wait for it. A transport that cannot deliver
/// interrupts (fuser) never sets it.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<Raised>);

#[derive(Debug, Default)]
struct Raised {
    set: AtomicBool,
    changed: Notify,
}

impl Interrupt {
    /// The application was interrupted.
    pub fn raise(&self) {
        self.0.set.store(true, Ordering::Release);
        self.0.changed.notify_waiters();
    }
    /// Whether it was.
    pub fn raised(&self) -> bool {
        self.0.set.load(Ordering::Acquire)
    }
    /// Returns once it was.
    pub async fn wait(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.raised() {
                return;
            }
            changed.await;
        }
    }
}

/// Lock flags of a request: distinguishes flock(2) from fcntl(2) locks where the transport tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockFlags {
    /// FUSE_LK_FLOCK
    pub flock: bool,
    /// Owner as the kernel names it.
    pub owner: u64,
}

/// Head of a request. Arguments are owned values given to the methods of [`super::Vfs`].
#[derive(Debug, Default)]
pub struct Request {
    /// Number of the request in its kernel connection, without the resend bit.
    pub unique: u64,
    /// The kernel sent it again to a new client process.
    pub resent: bool,
    /// Caller's file-system uid.
    pub uid: u32,
    /// Caller's file-system gid.
    pub gid: u32,
    /// Supplementary groups where the transport has them.
    pub gids: Vec<u32>,
    /// Thread id in the mounter's pid namespace, 0 elsewhere; no decision rests on it (PROTOCOL 52).
    pub pid: u32,
    /// Lock flags.
    pub lock: LockFlags,
    /// Interrupt token.
    pub interrupt: Interrupt,
    /// Mutations issued so far; numbers the steps of a plan.
    steps: AtomicU32,
    /// Its number is known to be outstanding.
    registered: AtomicBool,
    /// While a request of an earlier process is under way, any inode may be one that it made.
    maker: Mutex<Option<Creating>>,
}

impl Request {
    /// A request of `uid`:`gid`.
    pub fn new(unique: u64, uid: u32, gid: u32) -> Request {
        Request { unique, uid, gid, ..Request::default() }
    }
    pub(super) fn set_registered(&self) {
        self.registered.store(true, Ordering::Relaxed);
    }
    pub(super) fn set_maker(&self, maker: Creating) {
        *self.maker.lock() = Some(maker);
    }
    /// Not any more; whether it was.
    pub(super) fn take_registered(&self) -> bool {
        self.maker.lock().take();
        self.registered.swap(false, Ordering::Relaxed)
    }
    /// Name of the next mutation of this request.
    pub(super) fn next_op(&self, mount: MountId) -> OpId {
        OpId { mount, origin: Origin::Fuse, number: self.unique, step: self.steps.fetch_add(1, Ordering::Relaxed) }
    }
    /// The op id to acknowledge after the reply, if the request mutated anything or was registered.
    pub(super) fn to_acknowledge(&self, mount: MountId) -> Option<OpId> {
        let begun = self.steps.load(Ordering::Relaxed) > 0 || self.registered.load(Ordering::Relaxed);
        begun.then_some(OpId { mount, origin: Origin::Fuse, number: self.unique, step: 0 })
    }
}

/// A name and its inode as lookup, create and friends answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Attributes with dirty size and mtime laid over.
    pub attr: Attr,
    /// How long the attributes may be used.
    pub attr_ttl: Duration,
    /// How long the name may be used.
    pub entry_ttl: Duration,
}

/// Answer to lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The name exists.
    Found(Entry),
    /// It does not, and that may be remembered this long.
    Absent(Duration),
}

/// Answer to open, create and opendir.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Handle (see [`super::handle::Handle`]).
    pub fh: u64,
    /// The kernel may keep the pages it has.
    pub keep_cache: bool,
    /// Bypass the page cache.
    pub direct_io: bool,
}

/// One entry of readdir.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirItem {
    /// Name, also `.` and `..`.
    pub name: Bytes,
    /// Inode.
    pub ino: Ino,
    /// Type.
    pub kind: FileKind,
    /// Offset to continue behind this entry.
    pub offset: u64,
    /// readdirplus: attributes, when known and still true.
    pub entry: Option<Entry>,
}

/// Fields that setattr changes; None leaves one alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<fusefs_types::ops::SetTime>,
    /// Modification time.
    pub mtime: Option<fusefs_types::ops::SetTime>,
}

/// Answer to statfs, in bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsStat {
    /// Capacity in bytes.
    pub bytes: u64,
    /// Free bytes.
    pub bytes_free: u64,
    /// Capacity in inodes.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}
