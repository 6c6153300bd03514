//! Shared mappings of files.

use super::{Fd, Io, Plant, Step};
use rustix::io::Errno;
use std::{os::fd::AsRawFd, path::PathBuf, ptr::NonNull};

/// A MAP_SHARED mapping. Only its thread uses the file.
pub struct Map {
    start: NonNull<u8>,
    len: usize,
    path: PathBuf,
}

// SAFETY: the mapping belongs to this value alone; no other thread has its address.
#[allow(unsafe_code)]
unsafe impl Send for Map {}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` come from mmap and are unmapped once.
        #[allow(unsafe_code)]
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.len);
        }
    }
}

impl Map {
    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped readable and writable for `len` bytes; the file is not shrunk while a mapping lives (else SIGBUS
        // ends the workload, which is a failure of the test), and nobody else writes to it.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len)
        }
    }
}

fn last_error() -> Errno {
    Errno::from_raw_os_error(nix::errno::Errno::last_raw())
}

impl Io {
    /// mmap(2) of the first `len` bytes, shared and writable.
    pub fn map(&mut self, fd: &Fd, len: usize) -> Step<Map> {
        let start = self.ok("mmap", &fd.path, || {
            // SAFETY: a new mapping at an address of the kernel's choice; the result is checked.
            #[allow(unsafe_code)]
            let start = unsafe {
                let access = libc::PROT_READ | libc::PROT_WRITE;
                libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, fd.fd.as_raw_fd(), 0)
            };
            if start == libc::MAP_FAILED { Err(last_error()) } else { NonNull::new(start.cast()).ok_or(Errno::INVAL) }
        })?;
        Ok(Map { start, len, path: fd.path.clone() })
    }
    /// msync(2) with MS_SYNC of the whole mapping.
    pub fn msync(&mut self, map: &Map, fd: &Fd) -> Step {
        self.ok("msync", &map.path, || {
            // SAFETY: the range is mapped.
            #[allow(unsafe_code)]
            let result = unsafe { libc::msync(map.start.as_ptr().cast(), map.len, libc::MS_SYNC) };
            if result == 0 { Ok(()) } else { Err(last_error()) }
        })?;
        if self.strikes(Plant::LostPage) {
            let _ = rustix::io::pwrite(fd, &[0x55], map.len as u64 / 2); // planted
        }
        Ok(())
    }
}
