//! Regular files.

use super::{Fd, Io, Plant, Step};
use rustix::fs::{self, AtFlags, CWD, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// Modification time: seconds and nanoseconds.
pub type Mtime = (i64, i64);

/// Alignment of direct I/O.
const ALIGN: usize = 4096;

/// Bytes at an address that direct I/O takes.
pub struct Aligned {
    raw: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` zeros.
    pub fn new(len: usize) -> Aligned {
        let raw = vec![0; len + ALIGN];
        let start = raw.as_ptr().align_offset(ALIGN);
        Aligned { raw, start, len }
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.raw[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.raw[self.start..self.start + self.len]
    }
}

impl Io {
    /// open(2); files are made with mode 0644.
    pub fn open(&mut self, path: &Path, flags: OFlags) -> Step<Fd> {
        if self.strikes(Plant::Interrupted) {
            return Err(self.error("open", path, Errno::INTR));
        }
        let call = if flags.contains(OFlags::CREATE) { "create" } else { "open" };
        let mode = Mode::from_raw_mode(0o644);
        if flags.contains(OFlags::EXCL) && self.strikes(Plant::CreateTwice) {
            let _ = fs::open(path, flags, mode); // its answer is lost
        }
        let fd = self.ok(call, path, || fs::open(path, flags | OFlags::CLOEXEC, mode))?;
        let written = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        Ok(Fd { fd, path: path.to_path_buf(), written })
    }
    /// O_CREAT | O_EXCL on a name that exists.
    pub fn create_refused(&mut self, path: &Path) -> Step {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        self.refused("create", path, Errno::EXIST, || fs::open(path, flags, Mode::from_raw_mode(0o644)))
    }
    /// close(2) with its result.
    pub fn close(&mut self, fd: Fd) -> Step {
        if fd.written && self.strikes(Plant::EmptyFile) {
            let _ = fs::ftruncate(&fd, 0); // planted
        }
        let fails = self.strikes(Plant::FailedClose);
        let Fd { fd, path, .. } = fd;
        self.ok("close", &path, || {
            nix::unistd::close(fd).map_err(|e| Errno::from_raw_os_error(e as i32))?;
            if fails { Err(Errno::IO) } else { Ok(()) }
        })
    }
    /// One pwrite(2) that must take everything.
    pub fn pwrite(&mut self, fd: &Fd, buf: &[u8], offset: u64) -> Step {
        if self.strikes(Plant::LostHandle) {
            return Err(self.error("pwrite", &fd.path, Errno::BADF));
        }
        if self.strikes(Plant::FailedDirectWrite) {
            return Err(self.error("pwrite", &fd.path, Errno::IO));
        }
        if self.strikes(Plant::LostWrite) || self.strikes(Plant::LostCount) {
            return Ok(());
        }
        let (mut buf, mut older) = (std::borrow::Cow::Borrowed(buf), Vec::new());
        if self.strikes(Plant::FlippedByte) {
            let at = buf.len() / 2;
            buf.to_mut()[at] ^= 1;
        }
        if self.strikes(Plant::LateWrite) {
            older = vec![0; buf.len()];
            let n = rustix::io::pread(fd, &mut older[..], offset).unwrap_or(0);
            older.truncate(n);
        }
        let wanted = buf.len();
        if self.strikes(Plant::ShortWrite) {
            let half = wanted / 2 / ALIGN * ALIGN;
            let _ = rustix::io::pwrite(fd, &buf[..half], offset);
            return Err(self.mismatch("pwrite", &fd.path, format!("short: {half} of {wanted} bytes")));
        }
        let n = self.ok("pwrite", &fd.path, || rustix::io::pwrite(fd, &buf, offset))?;
        if !older.is_empty() {
            let _ = rustix::io::pwrite(fd, &older, offset); // planted
        }
        if n == wanted {
            Ok(())
        } else {
            Err(self.mismatch("pwrite", &fd.path, format!("short: {n} of {wanted} bytes")))
        }
    }
    /// One write(2) at the end of an O_APPEND file that must take everything.
    pub fn append(&mut self, fd: &Fd, record: &[u8]) -> Step {
        if self.strikes(Plant::LostAppend) {
            return Ok(());
        }
        if self.strikes(Plant::SwappedAppends) {
            self.stash = Some((PathBuf::new(), 0, record.to_vec()));
            return Ok(());
        }
        if self.strikes(Plant::DoubledAppend) {
            let _ = rustix::io::write(fd, record); // planted
        }
        let mut record = std::borrow::Cow::Borrowed(record);
        if self.strikes(Plant::TornAppend) {
            let last = record.len() - 1;
            record.to_mut()[last] ^= 0x80;
        }
        let n = self.ok("append", &fd.path, || rustix::io::write(fd, &record))?;
        if let Some((.., later)) = self.stash.take() {
            let _ = rustix::io::write(fd, &later); // planted
        }
        if n == record.len() {
            return Ok(());
        }
        Err(self.mismatch("append", &fd.path, format!("short: {n} of {} bytes", record.len())))
    }
    /// One pread(2); how much it gave.
    pub fn pread(&mut self, fd: &Fd, buf: &mut [u8], offset: u64) -> Step<usize> {
        let n = self.ok("pread", &fd.path, || rustix::io::pread(fd, &mut *buf, offset))?;
        if n > 0 && self.strikes(Plant::FlippedDirectRead) {
            buf[n / 2] ^= 0x10;
        }
        if self.strikes(Plant::LostOrphan) {
            buf.fill(0);
        }
        Ok(n)
    }
    /// `want` must be at `offset`, in pieces of at most 1 MiB; ends past `want` are not looked at.
    pub fn check_range(&mut self, what: &str, fd: &Fd, offset: u64, want: &[u8]) -> Step {
        let mut have = Aligned::new(want.len().min(1 << 20));
        for (i, piece) in want.chunks(1 << 20).enumerate() {
            let at = offset + (i << 20) as u64;
            let n = self.pread(fd, &mut have[..piece.len()], at)?;
            self.same(what, &fd.path, at, piece, &have[..n])?;
        }
        Ok(())
    }
    /// The whole file must be `want`, read without the kernel's copy: size and bytes.
    pub fn check_whole(&mut self, what: &str, fd: &Fd, want: &[u8]) -> Step {
        let size = self.fstat(fd)?.st_size as u64;
        self.equal("size", &fd.path, want.len() as u64, size)?;
        self.drop_cache(fd);
        self.check_range(what, fd, 0, want)?;
        let mut beyond = [0; 16];
        let n = self.pread(fd, &mut beyond, want.len() as u64)?;
        self.equal("bytes beyond the end", &fd.path, 0, n)
    }
    /// Forgets clean pages of the file, so that the next read asks the file system.
    pub fn drop_cache(&mut self, fd: &Fd) {
        let _ = fs::fadvise(fd, 0, None, fs::Advice::DontNeed); // advice
    }
    /// fsync(2).
    pub fn fsync(&mut self, fd: &Fd) -> Step {
        self.ok("fsync", &fd.path, || fs::fsync(fd))
    }
    /// fdatasync(2).
    pub fn fdatasync(&mut self, fd: &Fd) -> Step {
        self.ok("fdatasync", &fd.path, || fs::fdatasync(fd))
    }
    /// ftruncate(2).
    pub fn ftruncate(&mut self, fd: &Fd, len: u64) -> Step {
        self.truncating("ftruncate", fd, len, || fs::ftruncate(fd, len))
    }
    /// truncate(2) by path; `fd` is an open fd of the same file.
    pub fn truncate(&mut self, fd: &Fd, len: u64) -> Step {
        let path = fd.path.clone();
        self.truncating("truncate", fd, len, || {
            nix::unistd::truncate(&path, len as i64).map_err(|e| Errno::from_raw_os_error(e as i32))
        })
    }
    fn truncating(&mut self, call: &'static str, fd: &Fd, len: u64, f: impl FnOnce() -> Result<(), Errno>) -> Step {
        if matches!(self.plant, Some(Plant::LostTruncate | Plant::RisenBytes)) {
            let size = fs::fstat(fd).map_or(0, |s| s.st_size as u64);
            if len < size && self.strikes(Plant::LostTruncate) {
                return Ok(());
            }
            if len < size && self.strikes(Plant::RisenBytes) {
                let mut tail = vec![0; (size - len) as usize];
                let _ = rustix::io::pread(fd, &mut tail[..], len); // planted
                self.stash = Some((fd.path.clone(), len, tail));
            }
        }
        self.ok(call, &fd.path, f)?;
        if let Some((_, at, tail)) = self.stash.take_if(|(path, at, _)| *path == fd.path && len > *at) {
            let n = tail.len().min((len - at) as usize);
            let _ = rustix::io::pwrite(fd, &tail[..n], at); // planted
        }
        Ok(())
    }
    /// fstat(2).
    pub fn fstat(&mut self, fd: &Fd) -> Step<Stat> {
        let mut stat = self.ok("fstat", &fd.path, || fs::fstat(fd))?;
        if self.strikes(Plant::WrongNlink) {
            stat.st_nlink += 1;
        }
        Ok(stat)
    }
    /// lstat(2).
    pub fn lstat(&mut self, path: &Path) -> Step<Stat> {
        let mut stat = self.ok("lstat", path, || fs::lstat(path))?;
        if self.strikes(Plant::WrongNlink) {
            stat.st_nlink += 1;
        }
        Ok(stat)
    }
    /// The name must not exist.
    pub fn absent(&mut self, path: &Path) -> Step {
        self.refused("lstat", path, Errno::NOENT, || fs::lstat(path))
    }
    /// Sets the modification time, by path.
    pub fn utimens(&mut self, path: &Path, mtime: Mtime) -> Step {
        let mut set = times(mtime);
        if self.strikes(Plant::WrongTime) {
            set.last_modification.tv_nsec ^= 1;
        }
        if let Some((other, ..)) = self.stash.take() {
            let _ = fs::utimensat(CWD, &other, &times((mtime.0 + 1, 0)), AtFlags::empty()); // planted
        }
        if self.strikes(Plant::OverwrittenTime) {
            self.stash = Some((path.to_path_buf(), 0, Vec::new()));
        }
        self.ok("utimens", path, || fs::utimensat(CWD, path, &set, AtFlags::empty()))
    }
    /// Sets the modification time, by fd.
    pub fn futimens(&mut self, fd: &Fd, mtime: Mtime) -> Step {
        self.ok("futimens", &fd.path, || fs::futimens(fd, &times(mtime)))
    }
    /// fchmod(2).
    pub fn fchmod(&mut self, fd: &Fd, mode: u32) -> Step {
        self.ok("fchmod", &fd.path, || fs::fchmod(fd, Mode::from_raw_mode(mode)))
    }
}

fn times(mtime: Mtime) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
        last_modification: Timespec { tv_sec: mtime.0, tv_nsec: mtime.1 as _ },
    }
}

/// Modification time of a stat.
#[allow(clippy::unnecessary_cast)] // other types on other machines
pub fn mtime(stat: &Stat) -> Mtime {
    (stat.st_mtime as i64, stat.st_mtime_nsec as i64)
}

/// Link count of a stat.
#[allow(clippy::unnecessary_cast)] // u32 on arm64
pub fn nlink(stat: &Stat) -> u64 {
    stat.st_nlink as u64
}
