//! Requests that survive their reader on kernels without RESEND (before Linux 6.9): read straight into a memfd that
//! outlives the process (PROTOCOL 44).
//!
//! A place in the file is **occupied** from the moment the kernel copied a request into it until its reply was written:
//! its first word is the length of the message, never 0. Whoever serves next begins with the occupied places. A place
//! whose reply was about to be written also holds that reply: it is sent again, never executed again, because what came
//! after it may already have been answered.
//!
//! Big places (1 MiB) are what readers read into. A request that has to wait and is small moves to the side table, so that
//! any number of waiting locks leaves the big places free.

use super::abi::{IN_HEADER, REQUEST_BYTES};
use super::buffers::Mapping;
use super::decode::Header;
use parking_lot::{Condvar, Mutex};
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Big places.
const SLOTS: usize = 256;
/// A request and, behind it, the reply about to be sent.
const SLOT_BYTES: usize = REQUEST_BYTES + REPLY_BYTES_ROOM;
const REPLY_BYTES_ROOM: usize = 4096;
/// Places of the side table.
const SIDES: usize = 8192;
const SIDE_BYTES: usize = 2048;
/// Largest request that moves aside.
const SIDE_REQUEST_MAX: usize = 1024;
/// Largest reply that is kept; larger ones carry data that was read, which may be read again.
pub(super) const KEPT_REPLY_MAX: usize = 512;

/// A page in front of the places.
const SUPER_BYTES: usize = 4096;
const SIDES_PER_PAGE: usize = 4096 / SIDE_BYTES;
const FILE_BYTES: usize = SUPER_BYTES + SLOTS * SLOT_BYTES + SIDES * SIDE_BYTES;
const MAGIC: [u8; 8] = *b"fsslots1";

/// A place that nobody used for so long gives its memory back.
const IDLE: Duration = Duration::from_secs(5);

/// The file: about 273 MiB, sparse. The keeper holds it; its content belongs to one kernel connection.
#[derive(Debug)]
pub struct SlotFile(File);

impl SlotFile {
    /// A new, empty one.
    pub fn create() -> io::Result<SlotFile> {
        let fd = nix::sys::memfd::memfd_create(c"fusefs-slots", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&fd, FILE_BYTES as i64)?;
        let file = File::from(fd);
        file.write_all_at(&MAGIC, 0)?;
        Ok(SlotFile(file))
    }

    /// One that an earlier process created; an error when its layout is another.
    pub fn from_fd(fd: OwnedFd) -> io::Result<SlotFile> {
        let (file, mut magic) = (File::from(fd), [0; MAGIC.len()]);
        let read = file.read_exact_at(&mut magic, 0);
        if read.is_err() || magic != MAGIC || file.metadata()?.len() != FILE_BYTES as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a slot file of this version"));
        }
        Ok(SlotFile(file))
    }

    /// Another handle on the same file.
    pub fn try_clone(&self) -> io::Result<SlotFile> {
        Ok(SlotFile(self.0.try_clone()?))
    }
}

impl AsFd for SlotFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<SlotFile> for OwnedFd {
    fn from(file: SlotFile) -> OwnedFd {
        file.0.into()
    }
}

/// One place: number below [`SLOTS`] is a big one, the others are the side table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place(usize);

impl Place {
    fn offset(self) -> usize {
        match self.0.checked_sub(SLOTS) {
            None => SUPER_BYTES + self.0 * SLOT_BYTES,
            Some(side) => SUPER_BYTES + SLOTS * SLOT_BYTES + side * SIDE_BYTES,
        }
    }
    fn room(self) -> usize {
        if self.0 < SLOTS { REQUEST_BYTES } else { SIDE_REQUEST_MAX }
    }
}

/// Occupied places of a file that nobody serves. Looks only where the file has pages, and by reading: a look through the
/// mapping would give every page memory.
fn left_occupied(file: &File) -> io::Result<Vec<Place>> {
    let sides_at = Place(SLOTS).offset();
    let mut found = Vec::new();
    let mut at = SUPER_BYTES;
    while at < FILE_BYTES {
        at = match nix::unistd::lseek(file, at as i64, nix::unistd::Whence::SeekData) {
            Ok(data) => usize::try_from(data).unwrap_or(FILE_BYTES),
            Err(nix::errno::Errno::ENXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let (places, next) = if at < sides_at {
            let slot = (at - SUPER_BYTES) / SLOT_BYTES;
            (slot..slot + 1, Place(slot + 1).offset())
        } else {
            let first = SLOTS + (at - sides_at) / SIDE_BYTES;
            (first..(first + SIDES_PER_PAGE).min(SLOTS + SIDES), at + SUPER_BYTES)
        };
        for place in places.map(Place) {
            let mut len = [0; 4];
            file.read_exact_at(&mut len, place.offset() as u64)?;
            if len != [0; 4] {
                found.push(place);
            }
        }
        at = next;
    }
    Ok(found)
}

#[derive(Clone, Copy)]
struct Free {
    place: usize,
    since: Instant,
    /// Its pages cannot fault.
    locked: bool,
    /// Its pages were given back.
    punched: bool,
}

struct State {
    /// Free big places, last used last.
    slots: Vec<Free>,
    sides: Vec<usize>,
}

/// The places of one serving process.
pub(super) struct Slots {
    file: SlotFile,
    memory: Mapping,
    state: Mutex<State>,
    freed: Condvar,
}

impl Slots {
    /// Takes the file over. Occupied places are given out by [`Slots::occupied`] only.
    pub fn open(file: SlotFile) -> io::Result<Arc<Slots>> {
        let memory = Mapping::shared(file.as_fd(), FILE_BYTES)?;
        let left: HashSet<usize> = left_occupied(&file.0)?.into_iter().map(|p| p.0).collect();
        let since = Instant::now();
        let free = |range: std::ops::Range<usize>| range.rev().filter(|p| !left.contains(p));
        let slots = free(0..SLOTS).map(|place| Free { place, since, locked: false, punched: true }).collect();
        let state = Mutex::new(State { slots, sides: free(SLOTS..SLOTS + SIDES).collect() });
        Ok(Arc::new(Slots { file, memory, state, freed: Condvar::new() }))
    }

    /// A word of a place that the next process reads too.
    fn word(&self, place: Place, at: usize) -> &AtomicU32 {
        let offset = place.offset() + at;
        #[allow(unsafe_code)]
        // SAFETY: inside the mapping (places and offsets are constants below its length), 4-byte aligned, valid as long
        // as `self`; everybody in this process accesses it atomically or owns the place.
        unsafe {
            AtomicU32::from_ptr(self.memory.base().add(offset).cast().as_ptr())
        }
    }
    fn request_len(&self, place: Place) -> &AtomicU32 {
        self.word(place, 0)
    }
    fn reply_len(&self, place: Place) -> &AtomicU32 {
        self.word(place, place.room())
    }

    #[allow(unsafe_code)]
    #[allow(clippy::mut_from_ref)]
    /// A part of a place.
    ///
    /// # Safety
    /// The caller owns the place (a [`Held`], or the file before anybody serves), `at + len` lies inside it, and nobody
    /// else has a reference to that part.
    unsafe fn part(&self, place: Place, at: usize, len: usize) -> &mut [u8] {
        // SAFETY: inside the mapping, see above.
        unsafe { std::slice::from_raw_parts_mut(self.memory.base().add(place.offset() + at).as_ptr(), len) }
    }

    /// A free big place, ready to be read into. Waits while all are occupied; None when none came free within `patience`.
    pub fn take(self: &Arc<Self>, patience: Duration) -> io::Result<Option<Held>> {
        let mut state = self.state.lock();
        let free = loop {
            if let Some(free) = state.slots.pop() {
                break free;
            }
            if self.freed.wait_for(&mut state, patience).timed_out() {
                return Ok(None);
            }
        };
        drop(state);
        let held = Held { slots: self.clone(), place: Place(free.place), locked: free.locked, answered: true };
        held.clear();
        held.prepare(free)
    }

    /// Everything that an earlier process read and did not answer, each request once.
    pub fn occupied(self: &Arc<Self>) -> io::Result<Vec<Held>> {
        let mut seen = HashSet::new();
        let mut found = Vec::new();
        for place in left_occupied(&self.file.0)? {
            let mut held = Held { slots: self.clone(), place, locked: false, answered: false };
            match Header::parse(held.message()) {
                // A request that was being moved aside is there twice.
                Ok(h) if seen.insert(h.raw_unique) => found.push(held),
                _ => held.release(),
            }
        }
        Ok(found)
    }

    fn give_back(&self, place: Place, locked: bool) {
        let mut state = self.state.lock();
        if place.0 < SLOTS {
            state.slots.push(Free { place: place.0, since: Instant::now(), locked, punched: false });
            drop(state);
            self.freed.notify_one();
        } else {
            state.sides.push(place.0);
        }
    }

    /// Gives the memory of places back that were not used for [`IDLE`].
    pub fn punch_idle(&self) {
        let now = Instant::now();
        let idle: Vec<Free> = {
            let mut state = self.state.lock();
            let old = |f: &Free| !f.punched && now.saturating_duration_since(f.since) >= IDLE;
            let (idle, busy) = state.slots.drain(..).partition(|f| old(f));
            state.slots = busy;
            idle
        };
        let mut punched = Vec::with_capacity(idle.len());
        for free in idle {
            let offset = Place(free.place).offset();
            if free.locked {
                self.memory.unlock(offset, SLOT_BYTES);
            }
            let flags =
                nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let done = nix::fcntl::fallocate(&self.file, flags, offset as i64, SLOT_BYTES as i64);
            punched.push(Free { locked: false, punched: done.is_ok(), ..free });
        }
        if !punched.is_empty() {
            // In front: used last.
            self.state.lock().slots.splice(0..0, punched);
            self.freed.notify_all();
        }
    }
}

/// An occupied place, or one about to be. Dropping it keeps it occupied: only [`Held::release`] frees it.
pub(super) struct Held {
    slots: Arc<Slots>,
    place: Place,
    locked: bool,
    /// Not occupied (any more): may go back when dropped.
    answered: bool,
}

impl Held {
    fn prepare(mut self, free: Free) -> io::Result<Option<Held>> {
        if !self.locked {
            let offset = self.place.offset();
            if let Err(e) = self.slots.memory.populate(offset, SLOT_BYTES) {
                self.answered = true;
                return Err(e);
            }
            // Tried once per life of the pages: a limit that was too small stays too small.
            self.locked = free.punched && self.slots.memory.lock(offset, SLOT_BYTES);
        }
        Ok(Some(self))
    }

    /// Where the kernel reads into.
    pub fn buffer(&mut self) -> &mut [u8] {
        self.answered = false;
        #[allow(unsafe_code)]
        // SAFETY: the place is ours and the borrow of `self` keeps everybody else out.
        unsafe {
            self.slots.part(self.place, 0, self.place.room())
        }
    }

    /// The message that was read.
    pub fn message(&self) -> &[u8] {
        let len = self.slots.request_len(self.place).load(Ordering::Acquire) as usize;
        #[allow(unsafe_code)]
        // SAFETY: the place is ours; nobody writes while `self` is borrowed.
        unsafe {
            self.slots.part(self.place, 0, len.min(self.place.room()))
        }
    }

    /// The message, without a borrow of the place, so that the place can go into the reply while the message is decoded.
    ///
    /// # Safety
    /// The slice must not be used any more once [`Held::release`] was called, by whatever thread.
    #[allow(unsafe_code)]
    pub unsafe fn message_apart<'a>(&self) -> &'a [u8] {
        let message = self.message();
        // SAFETY: the memory is mapped as long as `Slots` lives, which every `Held` keeps; see above for the rest.
        unsafe { std::slice::from_raw_parts(message.as_ptr(), message.len()) }
    }

    /// The reply that the earlier process was about to send, if it came that far.
    pub fn kept_reply(&self) -> Option<&[u8]> {
        let len = self.slots.reply_len(self.place).load(Ordering::Acquire) as usize;
        #[allow(unsafe_code)]
        // SAFETY: as in `message`; the length is checked against the room.
        (len != 0 && len <= KEPT_REPLY_MAX)
            .then(|| unsafe { &*self.slots.part(self.place, self.place.room() + 4, len) })
    }

    /// Keeps the reply before it is written: a process that dies now leaves a request that is answered by it.
    pub fn keep_reply(&mut self, reply: &[u8]) {
        if reply.len() > KEPT_REPLY_MAX {
            return;
        }
        #[allow(unsafe_code)]
        // SAFETY: the place is ours, `self` is borrowed mutably, and the room behind the request holds KEPT_REPLY_MAX.
        unsafe { self.slots.part(self.place, self.place.room() + 4, reply.len()) }.copy_from_slice(reply);
        self.slots.reply_len(self.place).store(reply.len() as u32, Ordering::Release); // at most KEPT_REPLY_MAX
    }

    /// Moves a small request that has to wait out of the big places.
    pub fn move_aside(&mut self) {
        let len = self.message().len();
        if self.place.0 >= SLOTS || !(IN_HEADER..=SIDE_REQUEST_MAX).contains(&len) {
            return;
        }
        let Some(side) = self.slots.state.lock().sides.pop() else { return };
        let side = Place(side);
        #[allow(unsafe_code)]
        // SAFETY: both places are ours; the parts lie in different places.
        let (from, to) = unsafe { (self.slots.part(self.place, 0, len), self.slots.part(side, 0, len)) };
        self.slots.reply_len(side).store(0, Ordering::Release);
        // The length comes last: with it the copy is valid, and only then the original may go.
        to[4..].copy_from_slice(&from[4..]);
        self.slots.request_len(side).store(len as u32, Ordering::Release); // at most SIDE_REQUEST_MAX
        self.clear();
        self.slots.give_back(self.place, self.locked);
        (self.place, self.locked) = (side, false);
    }

    fn clear(&self) {
        self.slots.request_len(self.place).store(0, Ordering::Release);
        self.slots.reply_len(self.place).store(0, Ordering::Release);
    }

    /// The request was answered, or needs no answer.
    pub fn release(&mut self) {
        self.clear();
        self.answered = true;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.answered {
            self.slots.give_back(self.place, self.locked);
        }
    }
}

const _: () = assert!(SIDE_REQUEST_MAX + 4 + KEPT_REPLY_MAX <= SIDE_BYTES && 4 + KEPT_REPLY_MAX <= REPLY_BYTES_ROOM);

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(held: &mut Held, unique: u64, len: usize) {
        let buffer = held.buffer();
        buffer[4..len].fill(3);
        buffer[8..16].copy_from_slice(&unique.to_ne_bytes());
        buffer[..4].copy_from_slice(&(len as u32).to_ne_bytes());
    }

    fn again(file: &SlotFile) -> Vec<(usize, bool)> {
        let slots = Slots::open(SlotFile::from_fd(file.try_clone().unwrap().into()).unwrap()).unwrap();
        slots.occupied().unwrap().iter().map(|h| (h.message().len(), h.kept_reply().is_some())).collect()
    }

    #[test]
    fn a_request_stays_until_it_is_answered_and_its_reply_is_kept() {
        let file = SlotFile::create().unwrap();
        let slots = Slots::open(file.try_clone().unwrap()).unwrap();
        let mut held = slots.take(Duration::ZERO).unwrap().unwrap();
        assert_eq!(again(&file), []);
        fill(&mut held, 2, REQUEST_BYTES);
        assert_eq!(again(&file), [(REQUEST_BYTES, false)]);
        held.keep_reply(&[1; 16]);
        assert_eq!(again(&file), [(REQUEST_BYTES, true)]);
        held.release();
        assert_eq!(again(&file), []);
        drop(held);
        let mut held = slots.take(Duration::ZERO).unwrap().unwrap();
        fill(&mut held, 4, 100);
        drop(held); // a process that dies
        assert_eq!(again(&file), [(100, false)]);
    }

    #[test]
    fn waiting_requests_leave_the_big_places_free() {
        let file = SlotFile::create().unwrap();
        let slots = Slots::open(file.try_clone().unwrap()).unwrap();
        let mut waiting = Vec::new();
        for i in 0..2 * SLOTS as u64 {
            let mut held = slots.take(Duration::ZERO).unwrap().unwrap();
            fill(&mut held, 2 * i + 2, 88);
            held.move_aside();
            waiting.push(held);
        }
        assert_eq!(again(&file).len(), 2 * SLOTS);
        let mut large: Vec<Held> = (0..SLOTS as u64)
            .map(|i| {
                let mut held = slots.take(Duration::ZERO).unwrap().unwrap();
                fill(&mut held, (1 << 20) | (2 * i), SIDE_REQUEST_MAX + 1);
                held.move_aside();
                held
            })
            .collect();
        assert!(slots.take(Duration::ZERO).unwrap().is_none(), "all big places are occupied");
        large[7].release();
        large.swap_remove(7);
        assert!(slots.take(Duration::ZERO).unwrap().is_some());
        assert_eq!(again(&file).len(), 3 * SLOTS - 1);
    }

    #[test]
    fn a_request_that_was_being_moved_is_found_once() {
        let file = SlotFile::create().unwrap();
        let slots = Slots::open(file.try_clone().unwrap()).unwrap();
        let (mut a, mut b) =
            (slots.take(Duration::ZERO).unwrap().unwrap(), slots.take(Duration::ZERO).unwrap().unwrap());
        fill(&mut a, 6, 88);
        fill(&mut b, 6, 88);
        assert_eq!(again(&file).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_places_give_their_memory_back() {
        let file = SlotFile::create().unwrap();
        let slots = Slots::open(file.try_clone().unwrap()).unwrap();
        let blocks = || nix::sys::stat::fstat(&file).unwrap().st_blocks * 512;
        let used: Vec<Held> = (0..8).map(|_| slots.take(Duration::ZERO).unwrap().unwrap()).collect();
        assert!(blocks() >= 8 << 20);
        drop(used);
        slots.punch_idle();
        assert!(blocks() >= 8 << 20, "not idle yet");
        tokio::time::advance(IDLE).await;
        slots.punch_idle();
        assert!(blocks() < 1 << 20, "{}", blocks());
        let mut held = slots.take(Duration::ZERO).unwrap().unwrap();
        fill(&mut held, 2, 100);
        assert_eq!(again(&file), [(100, false)]);
    }

    #[test]
    fn a_foreign_file_is_refused() {
        let other = nix::sys::memfd::memfd_create(c"other", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        assert!(SlotFile::from_fd(other).is_err());
    }
}
