//! Memory that never faults while the kernel copies into it (PROTOCOL 44).
//!
//! A SIGKILL that meets a page fault in the middle of a copy makes the kernel end that request with EIO. So buffers are
//! mapped shared-nothing, kept out of children (a fork would make them fault again), locked where the limit allows, and
//! populated before every read where it does not.

use std::io;
use std::ptr::NonNull;

/// MADV_POPULATE_WRITE, Linux 5.14.
const POPULATE_WRITE: libc::c_int = 23;
/// Pages are at least this large.
const PAGE: usize = 4096;

/// A mapped piece of memory.
pub(super) struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

#[allow(unsafe_code)]
// SAFETY: the mapping is plain memory that lives until drop; nothing in it is tied to a thread.
unsafe impl Send for Mapping {}
#[allow(unsafe_code)]
// SAFETY: as above; who may touch which part of it is decided by the users, each with its own reason.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Private zeroed memory.
    pub fn anonymous(len: usize) -> io::Result<Mapping> {
        Mapping::map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// A file's first `len` bytes, shared with whoever maps them too.
    pub fn shared(file: std::os::fd::BorrowedFd<'_>, len: usize) -> io::Result<Mapping> {
        Mapping::map(len, libc::MAP_SHARED, std::os::fd::AsRawFd::as_raw_fd(&file))
    }

    #[allow(unsafe_code)]
    fn map(len: usize, flags: libc::c_int, fd: libc::c_int) -> io::Result<Mapping> {
        // SAFETY: a new mapping at an address of the kernel's choice cannot touch existing memory.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        let mapping = Mapping { at, len };
        mapping.advise(0, len, libc::MADV_DONTFORK)?;
        Ok(mapping)
    }

    /// Start of `[offset, offset + len)`, which must lie inside.
    pub fn part(&self, offset: usize, len: usize) -> io::Result<NonNull<u8>> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        #[allow(unsafe_code)]
        // SAFETY: inside the mapping, just checked.
        Ok(unsafe { self.at.add(offset) })
    }

    /// Where the mapping starts.
    pub fn base(&self) -> NonNull<u8> {
        self.at
    }

    #[allow(unsafe_code)]
    fn advise(&self, offset: usize, len: usize, advice: libc::c_int) -> io::Result<()> {
        let at = self.part(offset, len)?;
        // SAFETY: the range lies inside our own mapping; the advices used here change no content.
        if unsafe { libc::madvise(at.as_ptr().cast(), len, advice) } == 0 {
            return Ok(());
        }
        Err(io::Error::last_os_error())
    }

    /// Makes pages present and writable now.
    pub fn populate(&self, offset: usize, len: usize) -> io::Result<()> {
        match self.advise(offset, len, POPULATE_WRITE) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => self.touch(offset, len),
            done => done,
        }
    }

    /// Populates by hand, on kernels that cannot be told to.
    #[allow(unsafe_code)]
    fn touch(&self, offset: usize, len: usize) -> io::Result<()> {
        let at = self.part(offset, len)?;
        for page in (0..len).step_by(PAGE) {
            // SAFETY: inside the mapping; the callers own the part that they populate, and a byte is written as it is.
            unsafe {
                let p = at.add(page).as_ptr();
                p.write_volatile(p.read_volatile());
            }
        }
        Ok(())
    }

    /// Keeps pages in memory until they are unlocked or unmapped; false where the limit does not allow it.
    #[allow(unsafe_code)]
    pub fn lock(&self, offset: usize, len: usize) -> bool {
        let Ok(at) = self.part(offset, len) else { return false };
        // SAFETY: the range lies inside our own mapping, whose content stays.
        unsafe { libc::mlock(at.as_ptr().cast(), len) == 0 }
    }

    /// Takes [`Mapping::lock`] back.
    #[allow(unsafe_code)]
    pub fn unlock(&self, offset: usize, len: usize) {
        if let Ok(at) = self.part(offset, len) {
            // SAFETY: the range lies inside our own mapping, whose content stays.
            unsafe { libc::munlock(at.as_ptr().cast(), len) };
        }
    }
}

impl Drop for Mapping {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: mapped by us, and nothing borrows from it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// A reader's own buffer.
pub(super) struct Pinned {
    memory: Mapping,
    locked: bool,
}

impl Pinned {
    /// `len` bytes, in whole pages.
    pub fn new(len: usize) -> io::Result<Pinned> {
        let memory = Mapping::anonymous(len)?;
        memory.populate(0, len)?;
        let locked = memory.lock(0, len);
        Ok(Pinned { memory, locked })
    }

    /// The buffer, present in memory and to be read into.
    pub fn ready(&mut self) -> io::Result<&mut [u8]> {
        if !self.locked {
            self.memory.populate(0, self.memory.len)?;
        }
        #[allow(unsafe_code)]
        // SAFETY: the whole of a private mapping, initialised to zero by the kernel, borrowed as long as `self`.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.memory.at.as_ptr(), self.memory.len) })
    }

    /// What was read.
    pub fn bytes(&self) -> &[u8] {
        #[allow(unsafe_code)]
        // SAFETY: as in `ready`, shared.
        unsafe {
            std::slice::from_raw_parts(self.memory.at.as_ptr(), self.memory.len)
        }
    }
}

/// Makes every page of `bytes` present for reading: memory that was never touched (zeroes from the allocator) would fault
/// in the kernel's copy.
pub(super) fn touch_for_reading(bytes: &[u8]) {
    for page in bytes.chunks(PAGE) {
        std::hint::black_box(page.first().copied());
        std::hint::black_box(page.last().copied());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of the buffer that are in memory, as the kernel says.
    #[allow(unsafe_code)]
    fn resident(m: &Mapping) -> usize {
        let mut pages = vec![0u8; m.len.div_ceil(PAGE)];
        // SAFETY: the range is mapped and `pages` has one byte for each of its pages.
        assert_eq!(unsafe { libc::mincore(m.at.as_ptr().cast(), m.len, pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|p| **p & 1 == 1).count()
    }

    #[test]
    fn a_reader_buffer_is_resident_from_the_start_and_usable() {
        let mut b = Pinned::new(16 * PAGE).unwrap();
        assert_eq!(resident(&b.memory), 16);
        b.ready().unwrap()[5 * PAGE] = 7;
        assert_eq!(b.bytes()[5 * PAGE], 7);
    }

    #[test]
    fn populating_by_hand_keeps_what_is_there() {
        let m = Mapping::anonymous(8 * PAGE).unwrap();
        assert_eq!(resident(&m), 0);
        m.touch(0, 4 * PAGE).unwrap();
        assert_eq!(resident(&m), 4);
        m.populate(4 * PAGE, 4 * PAGE).unwrap();
        assert_eq!(resident(&m), 8);
        assert!(m.part(PAGE, 8 * PAGE).is_err() && m.populate(usize::MAX, 2).is_err());
    }
}
