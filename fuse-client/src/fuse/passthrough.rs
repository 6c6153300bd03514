//! A loopback file system through the same kernel interface: what FUSE itself costs, for `fusefs bench --floor`.
//!
//! It measures, it does not serve: inodes are kept as (parent, name), so a file with several names is reached by the last
//! one used only.

use super::flags;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const TTL: Duration = Duration::from_secs(1);
const ROOT: u64 = 1;

struct Node {
    parent: u64,
    name: OsString,
}

type Listing = Arc<Vec<(INodeNo, FileType, OsString)>>;

#[derive(Default)]
struct Tables {
    nodes: HashMap<u64, Node>,
    files: HashMap<u64, Arc<File>>,
    dirs: HashMap<u64, Listing>,
    next: u64,
}

/// See the module.
pub struct Passthrough {
    base: PathBuf,
    tables: Mutex<Tables>,
}

impl Passthrough {
    /// Shows the directory `base`.
    pub fn new(base: impl Into<PathBuf>) -> Passthrough {
        Passthrough { base: base.into(), tables: Mutex::new(Tables::default()) }
    }

    fn path(&self, ino: u64) -> io::Result<PathBuf> {
        let tables = self.tables.lock();
        let mut names = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let node = tables.nodes.get(&at).ok_or(io::ErrorKind::NotFound)?;
            names.push(node.name.clone());
            at = node.parent;
        }
        let mut path = self.base.clone();
        path.extend(names.iter().rev());
        Ok(path)
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        Ok(self.path(parent.0)?.join(name))
    }

    fn learn(&self, parent: INodeNo, name: &OsStr, path: &Path) -> io::Result<FileAttr> {
        let attr = attr_of(&std::fs::symlink_metadata(path)?);
        self.tables.lock().nodes.insert(attr.ino.0, Node { parent: parent.0, name: name.into() });
        Ok(attr)
    }

    fn attr(&self, ino: INodeNo) -> io::Result<FileAttr> {
        let mut attr = attr_of(&std::fs::symlink_metadata(self.path(ino.0)?)?);
        attr.ino = ino;
        Ok(attr)
    }

    fn keep(&self, file: File) -> u64 {
        let mut tables = self.tables.lock();
        tables.next += 1;
        let fh = tables.next;
        tables.files.insert(fh, Arc::new(file));
        fh
    }

    fn file(&self, fh: FileHandle) -> io::Result<Arc<File>> {
        self.tables.lock().files.get(&fh.0).cloned().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    fn list(&self, ino: INodeNo) -> io::Result<u64> {
        let mut names = vec![(ino, FileType::Directory, ".".into()), (ino, FileType::Directory, "..".into())];
        for e in std::fs::read_dir(self.path(ino.0)?)? {
            let e = e?;
            let kind = FileType::from_std(e.file_type()?).unwrap_or(FileType::RegularFile);
            let inode = std::os::unix::fs::DirEntryExt::ino(&e);
            names.push((INodeNo(inode), kind, e.file_name()));
        }
        let mut tables = self.tables.lock();
        tables.next += 1;
        let fh = tables.next;
        tables.dirs.insert(fh, Arc::new(names));
        Ok(fh)
    }

    fn listing(&self, fh: FileHandle) -> io::Result<Listing> {
        self.tables.lock().dirs.get(&fh.0).cloned().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    fn change(
        &self,
        ino: INodeNo,
        mode: Option<u32>,
        owner: (Option<u32>, Option<u32>),
        size: Option<u64>,
        times: (Option<TimeOrNow>, Option<TimeOrNow>),
    ) -> io::Result<FileAttr> {
        let path = self.path(ino.0)?;
        if let Some(mode) = mode {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode & 0o7777))?;
        }
        if owner != (None, None) {
            std::os::unix::fs::lchown(&path, owner.0, owner.1)?;
        }
        if let Some(size) = size {
            OpenOptions::new().write(true).open(&path)?.set_len(size)?;
        }
        if times.0.is_some() || times.1.is_some() {
            set_times(&path, times)?;
        }
        self.attr(ino)
    }
}

fn set_times(path: &Path, times: (Option<TimeOrNow>, Option<TimeOrNow>)) -> io::Result<()> {
    use nix::sys::stat::{UtimensatFlags, utimensat};
    use nix::sys::time::TimeSpec;
    let spec = |t: Option<TimeOrNow>| match t {
        None => TimeSpec::UTIME_OMIT,
        Some(TimeOrNow::Now) => TimeSpec::UTIME_NOW,
        Some(TimeOrNow::SpecificTime(t)) => {
            TimeSpec::from_duration(t.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
        }
    };
    let flag = UtimensatFlags::NoFollowSymlink;
    Ok(utimensat(nix::fcntl::AT_FDCWD, path, &spec(times.0), &spec(times.1), flag)?)
}

fn attr_of(m: &Metadata) -> FileAttr {
    FileAttr {
        ino: INodeNo(m.ino()),
        size: m.len(),
        blocks: m.blocks(),
        atime: m.accessed().unwrap_or(SystemTime::UNIX_EPOCH),
        mtime: m.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        ctime: SystemTime::UNIX_EPOCH + Duration::new(m.ctime().max(0) as u64, m.ctime_nsec().max(0) as u32),
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::from_std(m.file_type()).unwrap_or(FileType::RegularFile),
        perm: (m.mode() & 0o7777) as u16,
        nlink: m.nlink() as u32,
        uid: m.uid(),
        gid: m.gid(),
        rdev: m.rdev() as u32,
        blksize: 65536,
        flags: 0,
    }
}

fn errno(e: &io::Error) -> Errno {
    match (e.raw_os_error(), e.kind()) {
        (Some(n), _) => Errno::from_i32(n),
        (None, io::ErrorKind::NotFound) => Errno::ENOENT,
        _ => Errno::EIO,
    }
}

fn options(flags: i32) -> OpenOptions {
    let mut o = OpenOptions::new();
    let access = flags & libc::O_ACCMODE;
    o.read(access != libc::O_WRONLY).write(access != libc::O_RDONLY);
    o.custom_flags(flags & !(libc::O_ACCMODE | libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_APPEND));
    o
}

macro_rules! answer {
    ($reply:ident, $result:expr, |$ok:pat_param| $send:expr) => {
        match $result {
            Ok($ok) => $send,
            Err(e) => $reply.error(errno(&e)),
        }
    };
}

#[allow(clippy::too_many_arguments)] // fuser's signatures
impl Filesystem for Passthrough {
    fn init(&mut self, _rq: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        flags::negotiate(config, InitFlags::empty());
        Ok(())
    }

    fn lookup(&self, _rq: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.child(parent, name).and_then(|p| self.learn(parent, name, &p));
        answer!(reply, found, |attr| reply.entry(&TTL, &attr, Generation(0)));
    }

    fn forget(&self, _rq: &fuser::Request, _ino: INodeNo, _nlookup: u64) {}

    fn getattr(&self, _rq: &fuser::Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let attr = match fh.and_then(|fh| self.file(fh).ok()) {
            Some(file) => file.metadata().map(|m| attr_of(&m)),
            None => self.attr(ino),
        };
        answer!(reply, attr, |attr| reply.attr(&TTL, &attr));
    }

    fn setattr(
        &self,
        _rq: &fuser::Request,
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
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.change(ino, mode, (uid, gid), size, (atime, mtime));
        answer!(reply, changed, |attr| reply.attr(&TTL, &attr));
    }

    fn readlink(&self, _rq: &fuser::Request, ino: INodeNo, reply: ReplyData) {
        let target = self.path(ino.0).and_then(std::fs::read_link);
        answer!(reply, target, |t| reply.data(t.as_os_str().as_encoded_bytes()));
    }

    fn mkdir(&self, rq: &fuser::Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let made = self.child(parent, name).and_then(|p| {
            std::fs::create_dir(&p)?;
            std::fs::set_permissions(&p, std::fs::Permissions::from_mode(mode & 0o7777))?;
            own(&p, rq)?;
            self.learn(parent, name, &p)
        });
        answer!(reply, made, |attr| reply.entry(&TTL, &attr, Generation(0)));
    }

    fn unlink(&self, _rq: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.child(parent, name).and_then(std::fs::remove_file), |()| reply.ok());
    }

    fn rmdir(&self, _rq: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.child(parent, name).and_then(std::fs::remove_dir), |()| reply.ok());
    }

    fn symlink(&self, rq: &fuser::Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = self.child(parent, name).and_then(|p| {
            std::os::unix::fs::symlink(target, &p)?;
            own(&p, rq)?;
            self.learn(parent, name, &p)
        });
        answer!(reply, made, |attr| reply.entry(&TTL, &attr, Generation(0)));
    }

    fn rename(
        &self,
        _rq: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let moved = self.child(parent, name).and_then(|from| {
            let to = self.child(newparent, newname)?;
            std::fs::rename(from, &to)?;
            self.learn(newparent, newname, &to)
        });
        answer!(reply, moved, |_| reply.ok());
    }

    fn link(&self, _rq: &fuser::Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let made = self.path(ino.0).and_then(|from| {
            let to = self.child(newparent, newname)?;
            std::fs::hard_link(from, &to)?;
            self.learn(newparent, newname, &to)
        });
        answer!(reply, made, |attr| reply.entry(&TTL, &attr, Generation(0)));
    }

    fn open(&self, _rq: &fuser::Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let file = self.path(ino.0).and_then(|p| options(flags.0).open(p));
        answer!(reply, file, |f| reply.opened(FileHandle(self.keep(f)), FopenFlags::FOPEN_KEEP_CACHE));
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
        let made = self.child(parent, name).and_then(|p| {
            let file = options(flags).write(true).create(true).mode(mode & 0o7777).open(&p)?;
            own(&p, rq)?;
            Ok((self.learn(parent, name, &p)?, self.keep(file)))
        });
        answer!(reply, made, |(attr, fh)| {
            reply.created(&TTL, &attr, Generation(0), FileHandle(fh), FopenFlags::empty())
        });
    }

    fn read(
        &self,
        _rq: &fuser::Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buffer = vec![0; size as usize];
        let read = self.file(fh).and_then(|f| f.read_at(&mut buffer, offset));
        answer!(reply, read, |n| reply.data(&buffer[..n]));
    }

    fn write(
        &self,
        _rq: &fuser::Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.file(fh).and_then(|f| f.write_at(data, offset));
        answer!(reply, written, |n| reply.written(n as u32));
    }

    fn flush(&self, _rq: &fuser::Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _rq: &fuser::Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.tables.lock().files.remove(&fh.0);
        reply.ok();
    }

    fn fsync(&self, _rq: &fuser::Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let synced = self.file(fh).and_then(|f| if datasync { f.sync_data() } else { f.sync_all() });
        answer!(reply, synced, |()| reply.ok());
    }

    fn opendir(&self, _rq: &fuser::Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        answer!(reply, self.list(ino), |fh| reply.opened(FileHandle(fh), FopenFlags::empty()));
    }

    fn readdir(&self, _rq: &fuser::Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        answer!(reply, self.listing(fh), |names| {
            for (i, (ino, kind, name)) in names.iter().enumerate().skip(offset as usize) {
                if reply.add(*ino, i as u64 + 1, *kind, name) {
                    break;
                }
            }
            reply.ok()
        });
    }

    fn readdirplus(
        &self,
        _rq: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        answer!(reply, self.listing(fh), |names| {
            for (i, (inode, kind, name)) in names.iter().enumerate().skip(offset as usize) {
                let attr =
                    if i < 2 { None } else { self.child(ino, name).and_then(|p| self.learn(ino, name, &p)).ok() };
                let unknown = || FileAttr { kind: *kind, ..super::convert::no_inode(fusefs_types::FileKind::Regular) };
                let attr = attr.unwrap_or_else(unknown);
                if reply.add(*inode, i as u64 + 1, name, &TTL, &attr, Generation(0)) {
                    break;
                }
            }
            reply.ok()
        });
    }

    fn releasedir(&self, _rq: &fuser::Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.tables.lock().dirs.remove(&fh.0);
        reply.ok();
    }

    #[allow(clippy::unnecessary_cast)] // 32 bits wide on macOS
    fn statfs(&self, _rq: &fuser::Request, _ino: INodeNo, reply: ReplyStatfs) {
        answer!(reply, nix::sys::statvfs::statvfs(&self.base).map_err(io::Error::from), |s| reply.statfs(
            s.blocks() as u64,
            s.blocks_free() as u64,
            s.blocks_available() as u64,
            s.files() as u64,
            s.files_free() as u64,
            s.block_size() as u32,
            255,
            s.fragment_size() as u32,
        ));
    }

    fn getxattr(&self, _rq: &fuser::Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: fuser::ReplyXattr) {
        reply.error(Errno::from_i32(libc::ENODATA));
    }
}

/// New files belong to the caller when root serves others.
fn own(path: &Path, rq: &fuser::Request) -> io::Result<()> {
    if rq.uid() == 0 && rq.gid() == 0 {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(rq.uid()), Some(rq.gid()))
}
