//! fuser's callbacks on the vfs: translation only.
//!
//! A callback builds one future that ends in the kernel's reply. It is polled once on the thread that read the request:
//! answers from memory go out right there (a hand-over to another thread costs ten times the answer). What has to wait
//! moves to the runtime, and the reader reads on.

use super::convert::{Root, bytes, errno, file_type, head, no_inode, set_time};
use super::flags;
use crate::vfs::{Change, Lookup, Opened, Request, Vfs};
use bytes::Bytes;
use fusefs_types::{
    FsError, FsResult,
    ops::{RenameMode, XattrMode},
};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, SystemTime};
use tokio::runtime::Handle;

/// Inode numbers are never reused, so generations say nothing.
const GENERATION: Generation = Generation(0);

/// The vfs behind a kernel connection.
pub struct Adapter {
    vfs: Arc<Vfs>,
    runtime: Handle,
    root: Root,
    io_timeout: Option<Duration>,
}

impl Adapter {
    /// Operations that have to wait go on in `runtime`, at most `io_timeout` long (then EIO).
    pub fn new(vfs: Arc<Vfs>, runtime: Handle, io_timeout: Option<Duration>) -> Adapter {
        let root = Root(vfs.settings().root);
        Adapter { vfs, runtime, root, io_timeout }
    }

    /// Answers from memory on this thread, else in the runtime. `op` gets the vfs and the request's head; `reply`
    /// sends.
    fn run<T, F>(
        &self,
        rq: &fuser::Request,
        op: impl FnOnce(Arc<Vfs>, Arc<Request>) -> F,
        reply: impl FnOnce(FsResult<T>) + Send + 'static,
    ) where
        T: Send + 'static,
        F: Future<Output = FsResult<T>> + Send + 'static,
    {
        let head = Arc::new(head(rq));
        let (vfs, limit) = (self.vfs.clone(), self.io_timeout);
        let work = op(vfs.clone(), head.clone());
        let mut whole = Box::pin(async move {
            let result = match limit {
                None => work.await,
                Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or(Err(FsError::Io)),
            };
            reply(result);
            vfs.replied(&head);
        });
        let _inside = self.runtime.enter();
        // The waker does nothing: the runtime polls again after the move and leaves its own.
        let polled = catch_unwind(AssertUnwindSafe(|| whole.as_mut().poll(&mut Context::from_waker(Waker::noop()))));
        match polled {
            Ok(std::task::Poll::Ready(())) => {}
            Ok(std::task::Poll::Pending) => drop(self.runtime.spawn(whole)),
            // fuser answers EIO when the reply is dropped.
            Err(_) => tracing::error!("a request's handler panicked"),
        }
    }
}

fn open_flags(o: &Opened) -> FopenFlags {
    let mut f = FopenFlags::empty();
    f.set(FopenFlags::FOPEN_KEEP_CACHE, o.keep_cache);
    f.set(FopenFlags::FOPEN_DIRECT_IO, o.direct_io);
    f
}

/// Answers an operation without a value.
fn empty(reply: ReplyEmpty) -> impl FnOnce(FsResult<()>) + Send + 'static {
    move |r| match r {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    }
}

/// Answers a new or linked entry.
fn entry(root: Root, reply: ReplyEntry) -> impl FnOnce(FsResult<crate::vfs::Entry>) + Send + 'static {
    move |r| match r {
        Ok(e) => reply.entry_with_ttls(&e.attr_ttl, &e.entry_ttl, &root.attr(&e.attr), GENERATION),
        Err(e) => reply.error(errno(e)),
    }
}

/// Answers getxattr and listxattr: `size` 0 asks for the size only.
fn xattr(size: u32, reply: ReplyXattr) -> impl FnOnce(FsResult<Bytes>) + Send + 'static {
    move |r| match r {
        Ok(v) if size == 0 => reply.size(v.len() as u32), // at most 64 KiB
        Ok(v) if v.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(v) => reply.data(&v),
        Err(e) => reply.error(errno(e)),
    }
}

fn mode_bits(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

#[allow(clippy::too_many_arguments)] // fuser's signatures
impl Filesystem for Adapter {
    fn init(&mut self, _rq: &fuser::Request, config: &mut KernelConfig) -> std::io::Result<()> {
        flags::negotiate(config, InitFlags::empty());
        Ok(())
    }

    fn lookup(&self, rq: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (root, dir, name) = (self.root, self.root.ino(parent), bytes(name));
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.lookup(&rq, dir, name).await };
        self.run(rq, op, move |r| match r {
            Ok(Lookup::Found(e)) => reply.entry_with_ttls(&e.attr_ttl, &e.entry_ttl, &root.attr(&e.attr), GENERATION),
            Ok(Lookup::Absent(ttl)) if ttl.is_zero() => reply.error(Errno::ENOENT),
            Ok(Lookup::Absent(ttl)) => {
                let none = no_inode(fusefs_types::FileKind::Regular);
                reply.entry_with_ttls(&ttl, &ttl, &none, GENERATION)
            }
            Err(e) => reply.error(errno(e)),
        });
    }

    fn forget(&self, _rq: &fuser::Request, ino: INodeNo, _nlookup: u64) {
        self.vfs.forget(self.root.ino(ino));
    }

    fn getattr(&self, rq: &fuser::Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let (root, ino) = (self.root, self.root.ino(ino));
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.getattr(&rq, ino).await };
        self.run(rq, op, move |r| match r {
            Ok((attr, ttl)) => reply.attr(&ttl, &root.attr(&attr)),
            Err(e) => reply.error(errno(e)),
        });
    }

    fn setattr(
        &self,
        rq: &fuser::Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (root, ino) = (self.root, self.root.ino(ino));
        let change = Change {
            mode: mode.map(mode_bits),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.setattr(&rq, ino, change).await };
        self.run(rq, op, move |r| match r {
            Ok((attr, ttl)) => reply.attr(&ttl, &root.attr(&attr)),
            Err(e) => reply.error(errno(e)),
        });
    }

    fn readlink(&self, rq: &fuser::Request, ino: INodeNo, reply: ReplyData) {
        let ino = self.root.ino(ino);
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.readlink(&rq, ino).await };
        self.run(rq, op, move |r| match r {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(e)),
        });
    }

    fn mknod(
        &self,
        rq: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32, // the kernel has applied it
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (dir, name) = (self.root.ino(parent), bytes(name));
        let op = move |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.mknod(&rq, dir, name, mode, rdev).await };
        self.run(rq, op, entry(self.root, reply));
    }

    fn mkdir(&self, rq: &fuser::Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let (dir, name) = (self.root.ino(parent), bytes(name));
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.mkdir(&rq, dir, name, mode_bits(mode)).await };
        self.run(rq, op, entry(self.root, reply));
    }

    fn unlink(&self, rq: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (dir, name) = (self.root.ino(parent), bytes(name));
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.unlink(&rq, dir, name).await };
        self.run(rq, op, empty(reply));
    }

    fn rmdir(&self, rq: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (dir, name) = (self.root.ino(parent), bytes(name));
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.rmdir(&rq, dir, name).await };
        self.run(rq, op, empty(reply));
    }

    fn symlink(&self, rq: &fuser::Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (dir, name, target) = (self.root.ino(parent), bytes(name), bytes(target.as_os_str()));
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.symlink(&rq, dir, name, target).await };
        self.run(rq, op, entry(self.root, reply));
    }

    fn rename(
        &self,
        rq: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let from = (self.root.ino(parent), bytes(name));
        let to = (self.root.ino(newparent), bytes(newname));
        let Some(mode) = rename_mode(flags) else { return reply.error(Errno::EINVAL) };
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.rename(&rq, from, to, mode).await };
        self.run(rq, op, empty(reply));
    }

    fn link(&self, rq: &fuser::Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let (ino, dir, name) = (self.root.ino(ino), self.root.ino(newparent), bytes(newname));
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.link(&rq, ino, dir, name).await };
        self.run(rq, op, entry(self.root, reply));
    }

    fn open(&self, rq: &fuser::Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let ino = self.root.ino(ino);
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.open(&rq, ino, flags.0).await };
        self.run(rq, op, move |r| match r {
            Ok(o) => reply.opened(FileHandle(o.fh), open_flags(&o)),
            Err(e) => reply.error(errno(e)),
        });
    }

    fn read(
        &self,
        rq: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let ino = self.root.ino(ino);
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.read(&rq, ino, fh.0, offset, size).await };
        self.run(rq, op, move |r| match r {
            Ok(data) => reply.data(&data),
            Err(e) => reply.error(errno(e)),
        });
    }

    fn write(
        &self,
        rq: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (ino, data) = (self.root.ino(ino), Bytes::copy_from_slice(data));
        let op =
            |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.write(&rq, ino, fh.0, offset, data, flags.0).await };
        self.run(rq, op, move |r| match r {
            Ok(n) => reply.written(n),
            Err(e) => reply.error(errno(e)),
        });
    }

    fn flush(&self, rq: &fuser::Request, ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        let ino = self.root.ino(ino);
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.flush(&rq, ino).await };
        self.run(rq, op, empty(reply));
    }

    fn release(
        &self,
        rq: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        // Nobody waits for the answer, which comes when the cluster knows of the close of an orphan.
        let ino = self.root.ino(ino);
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move {
            vfs.release(&rq, ino, fh.0).await;
            Ok(())
        };
        self.run(rq, op, empty(reply));
    }

    fn fsync(&self, rq: &fuser::Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let ino = self.root.ino(ino);
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.fsync(&rq, ino).await };
        self.run(rq, op, empty(reply));
    }

    fn opendir(&self, rq: &fuser::Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let ino = self.root.ino(ino);
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.opendir(&rq, ino, flags.0).await };
        self.run(rq, op, move |r| match r {
            Ok(o) => reply.opened(FileHandle(o.fh), FopenFlags::empty()),
            Err(e) => reply.error(errno(e)),
        });
    }

    fn readdir(&self, rq: &fuser::Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let (root, ino, vfs) = (self.root, self.root.ino(ino), self.vfs.clone());
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.readdir(&rq, ino, fh.0, offset, false).await };
        self.run(rq, op, move |r| match r {
            Ok(page) => {
                let mut items = (0..).map_while(|i| vfs.dir_item(&page, i, false));
                while let Some(e) = items.next()
                    && !reply.add(root.node(e.ino), e.offset, file_type(e.kind), os(&e.name))
                {}
                reply.ok();
            }
            Err(e) => reply.error(errno(e)),
        });
    }

    fn readdirplus(
        &self,
        rq: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (root, ino, vfs) = (self.root, self.root.ino(ino), self.vfs.clone());
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.readdir(&rq, ino, fh.0, offset, true).await };
        self.run(rq, op, move |r| match r {
            Ok(page) => {
                let items = (0..).map_while(|i| vfs.dir_item(&page, i, true));
                for e in items {
                    let (attr, ttl) =
                        e.entry.as_ref().map_or((no_inode(e.kind), Duration::ZERO), |known| root.entry(known));
                    if reply.add(root.node(e.ino), e.offset, os(&e.name), &ttl, &attr, GENERATION) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(e) => reply.error(errno(e)),
        });
    }

    fn releasedir(&self, _rq: &fuser::Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.vfs.releasedir(self.root.ino(ino), fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, rq: &fuser::Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let ino = self.root.ino(ino);
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.fsyncdir(&rq, ino).await };
        self.run(rq, op, empty(reply));
    }

    fn statfs(&self, rq: &fuser::Request, _ino: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u64 = 4096;
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.statfs(&rq).await };
        self.run(rq, op, move |r| match r {
            Ok(s) => {
                let free = s.bytes_free / BLOCK;
                let (block, name) = (BLOCK as u32, fusefs_types::limits::NAME_MAX as u32);
                reply.statfs(s.bytes / BLOCK, free, free, s.inodes, s.inodes_free, block, name, block);
            }
            Err(e) => reply.error(errno(e)),
        });
    }

    fn setxattr(
        &self,
        rq: &fuser::Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            0 => XattrMode::Any,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        let (ino, name, value) = (self.root.ino(ino), bytes(name), Bytes::copy_from_slice(value));
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.setxattr(&rq, ino, name, value, mode).await };
        self.run(rq, op, empty(reply));
    }

    fn getxattr(&self, rq: &fuser::Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (ino, name) = (self.root.ino(ino), bytes(name));
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.getxattr(&rq, ino, name).await };
        self.run(rq, op, xattr(size, reply));
    }

    fn listxattr(&self, rq: &fuser::Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let ino = self.root.ino(ino);
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.listxattr(&rq, ino).await };
        self.run(rq, op, xattr(size, reply));
    }

    fn removexattr(&self, rq: &fuser::Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (ino, name) = (self.root.ino(ino), bytes(name));
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.removexattr(&rq, ino, name).await };
        self.run(rq, op, empty(reply));
    }

    /// The kernel checks (`default_permissions`) and does not ask; should it ask all the same, it has checked.
    fn access(&self, _rq: &fuser::Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn create(
        &self,
        rq: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (root, dir, name) = (self.root, self.root.ino(parent), bytes(name));
        let op =
            |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.create(&rq, dir, name, mode_bits(mode), flags).await };
        self.run(rq, op, move |r| match r {
            Ok((e, o)) => {
                let (attr, ttl) = root.entry(&e);
                reply.created(&ttl, &attr, GENERATION, FileHandle(o.fh), open_flags(&o));
            }
            Err(e) => reply.error(errno(e)),
        });
    }

    fn fallocate(
        &self,
        rq: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let ino = self.root.ino(ino);
        let op =
            |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.fallocate(&rq, ino, fh.0, offset, length, mode).await };
        self.run(rq, op, empty(reply));
    }

    fn lseek(&self, rq: &fuser::Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let ino = self.root.ino(ino);
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.lseek(&rq, ino, offset, whence).await };
        self.run(rq, op, move |r| match r {
            Ok(at) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
            Err(e) => reply.error(errno(e)),
        });
    }

    fn copy_file_range(
        &self,
        rq: &fuser::Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let from = (self.root.ino(ino_in), offset_in);
        let to = (self.root.ino(ino_out), fh_out.0, offset_out);
        let op = |vfs: Arc<Vfs>, rq: Arc<Request>| async move { vfs.copy_file_range(&rq, from, to, len).await };
        self.run(rq, op, move |r| match r {
            Ok(n) => reply.written(n),
            Err(e) => reply.error(errno(e)),
        });
    }

    // Planned or local to the kernel: EOPNOTSUPP, never ENOSYS, which the kernel would remember (PROTOCOL 43).

    fn bmap(&self, _rq: &fuser::Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn ioctl(
        &self,
        _rq: &fuser::Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    /// Regular files are always ready.
    fn poll(
        &self,
        _rq: &fuser::Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        let ready = PollEvents::POLLIN | PollEvents::POLLOUT | PollEvents::POLLRDNORM | PollEvents::POLLWRNORM;
        reply.poll(events & ready);
    }
}

fn os(name: &Bytes) -> &OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(&name[..])
}

#[cfg(target_os = "linux")]
fn rename_mode(flags: RenameFlags) -> Option<RenameMode> {
    match flags {
        f if f.is_empty() => Some(RenameMode::Replace),
        RenameFlags::RENAME_NOREPLACE => Some(RenameMode::NoReplace),
        RenameFlags::RENAME_EXCHANGE => Some(RenameMode::Exchange),
        _ => None,
    }
}

#[cfg(not(target_os = "linux"))]
fn rename_mode(flags: RenameFlags) -> Option<RenameMode> {
    flags.is_empty().then_some(RenameMode::Replace)
}
