//! flock(2) and fcntl(2) record locks. Waits are not pauses: they depend on the other lockers.

use super::{Fd, Io, Plant, Step};
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{self, FlockOperation};
use rustix::io::Errno;

impl Io {
    /// flock(2), waiting.
    pub fn flock(&mut self, fd: &Fd, shared: bool) -> Step {
        if self.strikes(Plant::FakeFlock) {
            return Ok(());
        }
        let operation = if shared { FlockOperation::LockShared } else { FlockOperation::LockExclusive };
        let result = self.call("flock wait", &fd.path, true, || fs::flock(fd, operation));
        result.map_err(|e| self.error("flock wait", &fd.path, e))
    }
    /// flock(2) without waiting: whether it was granted.
    pub fn try_flock(&mut self, fd: &Fd) -> Step<bool> {
        match self.call("flock try", &fd.path, false, || fs::flock(fd, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(e) => Err(self.error("flock try", &fd.path, e)),
        }
    }
    /// LOCK_UN.
    pub fn funlock(&mut self, fd: &Fd) -> Step {
        self.ok("flock unlock", &fd.path, || fs::flock(fd, FlockOperation::Unlock))
    }
    /// F_SETLKW of a write lock on `start..start + len`.
    pub fn lock_range(&mut self, fd: &Fd, start: i64, len: i64) -> Step {
        if self.strikes(Plant::FakeFcntl) {
            return Ok(());
        }
        let result = self.call("fcntl wait", &fd.path, true, || set(fd, libc::F_WRLCK, start, len, true));
        result.map_err(|e| self.error("fcntl wait", &fd.path, e))
    }
    /// F_SETLK of a write lock: whether it was granted.
    pub fn try_lock_range(&mut self, fd: &Fd, start: i64, len: i64) -> Step<bool> {
        match self.call("fcntl try", &fd.path, false, || set(fd, libc::F_WRLCK, start, len, false)) {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
            Err(e) => Err(self.error("fcntl try", &fd.path, e)),
        }
    }
    /// F_UNLCK.
    pub fn unlock_range(&mut self, fd: &Fd, start: i64, len: i64) -> Step {
        self.ok("fcntl unlock", &fd.path, || set(fd, libc::F_UNLCK, start, len, false))
    }
}

fn set(fd: &Fd, kind: i32, start: i64, len: i64, wait: bool) -> Result<(), Errno> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    let arg = if wait { FcntlArg::F_SETLKW(&lock) } else { FcntlArg::F_SETLK(&lock) };
    fcntl(fd, arg).map(drop).map_err(|e| Errno::from_raw_os_error(e as i32))
}
