//! Persistent journal: every acknowledged write survives SIGKILL of the client (PROTOCOL 36-41, `docs/design/0006-journal.md`).
//!
//! Preallocated files form a ring of segments. A record goes to the page cache with one pwritev before the write is
//! acknowledged; nothing is synced, so a crash of the machine may lose what the application did not fsync. The index
//! of what is not committed yet is the write log in memory ([`crate::writer`]); the next client process rebuilds it
//! with [`Journal::recover`].
//!
//! - `format`: bytes of headers and records, pure; `storage`: the files behind a trait.
//! - `ring`: appending, space, copies of what pins an old segment.
//! - `scan`: reading a journal back; `tools`: list, export, discard, park.

mod format;
mod ring;
mod scan;
mod storage;
mod tools;

pub use format::{Header, Kind, Record, decode_commit, encode_commit};
pub(crate) use ring::{Append, Class, Place};
pub use scan::{Outcome, Pending, PendingWrite, Recovered, ReplayStats, Unfinished};
pub use storage::Storage;
pub use tools::{FileSummary, Summary, create_files, discard, export, holder, inspect, park};

use format::{HEADER, SLOTS};
use fusefs_types::{
    SessionId,
    ids::{Incarnation, MountId},
};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
};
use parking_lot::Mutex;
use std::{
    fs::File,
    io,
    sync::atomic::{AtomicU64, Ordering},
};

/// Files of a journal by default.
pub const FILES: usize = 8;
/// Bytes of each of them by default: 256 MiB together.
pub const FILE_BYTES: u64 = 32 << 20;
/// Fewest files: writes need two in reserve and one to go to.
pub const FILES_MIN: usize = 4;
/// Smallest file: the largest intent must fit.
pub const FILE_BYTES_MIN: u64 = 128 << 10;
/// Free segments below which everything is committed as fast as it goes.
pub const LOW_SEGMENTS: usize = 3;

/// Numbers of client processes that a replay after a reboot passes over: more processes than can have begun since the
/// header reached the disk for the last time. A number that comes twice would give object names twice.
const INCARNATIONS_SKIPPED: u32 = 1024;

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file could not be read or written.
    #[error("journal: {0}")]
    Io(#[from] io::Error),
    /// No valid header: never formatted, or cleared after disk errors.
    #[error("the journal has no valid header: it was never formatted, or it was made void after disk errors")]
    NoHeader,
    /// Written by another version.
    #[error("the journal has format version {0}; this program knows version {known}", known = format::VERSION)]
    Version(u16),
    /// Files do not fit the header.
    #[error("the journal's files do not fit its header: {0}")]
    Shape(String),
    /// Damage before the last record.
    #[error("the journal is damaged in segment {segment} at byte {at}: {what}. Nothing of it was applied")]
    Corrupt {
        /// Segment number.
        segment: u64,
        /// Byte in its file.
        at: u64,
        /// What was found.
        what: &'static str,
    },
    /// It belongs to another kernel connection.
    #[error("the journal belongs to mount {0}, not to this one")]
    Foreign(MountId),
}

/// How a journal is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The machine did not crash: only the last record may be torn, anything else is damage.
    SameBoot,
    /// After a crash of the machine pages may be missing: the records before the first damage count.
    Prefix,
}

/// A journal for a data path, and how to read it.
pub struct JournalSettings {
    /// Open journal whose lock is held and whose incarnation was begun.
    pub journal: Journal,
    /// See [`Mode`].
    pub mode: Mode,
    /// For tests of tests only, see [`PLANT`]: the replay ignores barriers and `trunc_seq`.
    pub ignore_trunc_seq: bool,
}

/// Environment variable that plants bugs (a list with commas), read once when a journal is given to a data path; never
/// in a release build. `replay_ignores_trunc_seq`: truncated bytes come back after a restart. The kill tests use it to
/// show that they would notice.
pub const PLANT: &str = "FUSEFS_PLANT";

impl JournalSettings {
    /// A journal of this boot.
    pub fn new(journal: Journal) -> JournalSettings {
        let list = std::env::var_os(PLANT).filter(|_| cfg!(debug_assertions)).unwrap_or_default();
        let ignore_trunc_seq = list.to_string_lossy().split(',').any(|bug| bug == "replay_ignores_trunc_seq");
        if ignore_trunc_seq {
            tracing::error!("{PLANT} is set: this client brings truncated bytes back on purpose");
        }
        JournalSettings { journal, mode: Mode::SameBoot, ignore_trunc_seq }
    }
}

/// Counters. The journal never resets them.
#[derive(Debug, Default)]
pub struct JournalStats {
    /// Records appended.
    pub records: AtomicU64,
    /// Bytes appended, with headers.
    pub bytes: AtomicU64,
    /// Records copied because they pinned an old segment.
    pub copied: AtomicU64,
    /// Segments freed.
    pub freed: AtomicU64,
    /// Times that a writer had to wait because the journal was full.
    pub full_waits: AtomicU64,
    /// Commits of earlier client processes that were sent again.
    pub resent: AtomicU64,
    /// Writes that the kernel sent again and that were in the journal already.
    pub deduped: AtomicU64,
    /// 1 once the journal's disk failed and writes are synchronous.
    pub degraded: AtomicU64,
}

/// An open journal. It is the only writer of its files: [`Journal::lock`] comes first.
pub struct Journal {
    files: Vec<Box<dyn Storage>>,
    ring: Mutex<ring::Ring>,
    stats: JournalStats,
}

impl Journal {
    /// Takes the POSIX write lock on the first file; blocks until the previous worker is really dead: the kernel frees
    /// the lock when the process is gone (PROTOCOL 41). The lock belongs to the process: closing ANY descriptor of this
    /// file in it (also a duplicate) would free the lock.
    pub fn lock(first: &File) -> io::Result<()> {
        loop {
            match fcntl(first, FcntlArg::F_SETLKW(&whole_file())) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Writes fresh headers for a new kernel connection; whatever was in the files is forgotten. The files have equal
    /// sizes (see [`create_files`]). `boot` is the machine's boot id.
    pub fn format(files: &[File], mount: MountId, boot: u128) -> Result<(), JournalError> {
        Self::format_storage(&files.iter().map(|f| f as &dyn Storage).collect::<Vec<_>>(), mount, boot)
    }

    /// As [`Journal::format`] over other storage.
    pub fn format_storage(files: &[&dyn Storage], mount: MountId, boot: u128) -> Result<(), JournalError> {
        let file_bytes = files.first().map_or(Ok(0), |f| f.size())?;
        let header =
            Header { generation: 1, boot, mount, files: files.len() as u32, file_bytes, tail: 1, ..Header::default() };
        check_shape(files, &header)?;
        for file in files {
            file.write_at(&[&[0; format::DATA_START as usize]], 0)?;
        }
        files[0].write_at(&[&header.encode()], SLOTS[1])?;
        files[0].sync()?; // the journal of an earlier mount must not come back
        Ok(())
    }

    /// Opens a formatted journal and reads its header, nothing else. Errors: NoHeader, Version, Shape, Io.
    pub fn open(files: Vec<File>) -> Result<Journal, JournalError> {
        Self::open_storage(files.into_iter().map(|f| Box::new(f) as Box<dyn Storage>).collect())
    }

    /// As [`Journal::open`] over other storage.
    pub fn open_storage(files: Vec<Box<dyn Storage>>) -> Result<Journal, JournalError> {
        let views: Vec<&dyn Storage> = files.iter().map(|f| &**f).collect();
        let header = read_header(&views)?;
        drop(views);
        Ok(Journal { ring: Mutex::new(ring::Ring::new(header)), files, stats: JournalStats::default() })
    }

    /// The header as of now.
    pub fn header(&self) -> Header {
        self.ring.lock().header
    }
    /// Counters.
    pub fn stats(&self) -> &JournalStats {
        &self.stats
    }

    /// Notes that a new client process works here and returns its number, 1 for the first. `boot` is the machine's
    /// boot id. Call it before the session is opened with the new token. Not synced: a replay after a power loss passes
    /// over the numbers that the disk may not know.
    pub fn begin_incarnation(&self, boot: u128) -> Result<Incarnation, JournalError> {
        self.begin(boot, 1)
    }

    fn begin(&self, boot: u128, further: u32) -> Result<Incarnation, JournalError> {
        let mut ring = self.ring.lock();
        let next = Incarnation(ring.header.incarnation.0.saturating_add(further));
        self.put_header(&mut ring, |h| (h.incarnation, h.boot) = (next, boot))?;
        Ok(next)
    }

    /// As [`Journal::begin_incarnation`] for a process that only writes what an earlier mount left to the volume. Answers
    /// how the journal must be read, too: `boot` is compared and not noted, so that every try after a reboot is careful,
    /// whatever became of the ones before it. The number is on the disk when this returns, and after a reboot it is none
    /// that a process before the power loss can have had.
    pub fn begin_replay(&self, boot: u128) -> Result<(Mode, Incarnation), JournalError> {
        let written = self.header().boot;
        let (mode, further) = if written == boot { (Mode::SameBoot, 1) } else { (Mode::Prefix, INCARNATIONS_SKIPPED) };
        let incarnation = self.begin(written, further)?;
        self.files[0].sync()?;
        Ok((mode, incarnation))
    }

    /// Notes the session that the commits belong to.
    pub fn set_session(&self, session: SessionId, attach: u64) -> Result<(), JournalError> {
        let mut ring = self.ring.lock();
        self.put_header(&mut ring, |h| (h.session, h.attach) = (session, attach))?;
        Ok(())
    }

    /// Everything that is in it now is settled: a later process replays nothing of it. For a clean end, and for a disk
    /// that takes no more records; then the header or the length of its file must still be writable. After an error
    /// others may be cut: then the journal is refused, which is better than old bytes that come back.
    pub fn make_void(&self) -> io::Result<()> {
        let mut ring = self.ring.lock();
        let void = ring.last_lsn();
        let Err(refused) = self.put_header(&mut ring, |h| h.void = void) else { return Ok(()) };
        let cleared: Vec<bool> = self.files.iter().map(|f| f.clear().is_ok()).collect();
        // Without its header nothing of a journal counts, whatever lies in the other files.
        if cleared.first() == Some(&true) { Ok(()) } else { Err(refused) }
    }

    /// Changes the header and writes it to the slot whose turn it is.
    fn put_header(&self, ring: &mut ring::Ring, change: impl FnOnce(&mut Header)) -> io::Result<()> {
        let mut header = ring.header;
        change(&mut header);
        header.generation += 1;
        let slot = SLOTS[(header.generation % SLOTS.len() as u64) as usize];
        self.files[0].write_at(&[&header.encode()], slot)?;
        ring.header = header;
        Ok(())
    }

    fn count(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

fn whole_file() -> libc::flock {
    libc::flock { l_type: libc::F_WRLCK as _, l_whence: libc::SEEK_SET as _, l_start: 0, l_len: 0, l_pid: 0 }
}

/// The newest valid header. Errors: NoHeader, Version, Shape, Io.
fn read_header(files: &[&dyn Storage]) -> Result<Header, JournalError> {
    let first = files.first().ok_or_else(|| JournalError::Shape("no files".into()))?;
    let (mut newest, mut version) = (None::<Header>, None);
    for slot in SLOTS {
        let mut bytes = [0; HEADER];
        first.read_at(&mut bytes, slot)?;
        match Header::decode(&bytes) {
            Some(Ok(h)) if newest.is_none_or(|n| n.generation < h.generation) => newest = Some(h),
            Some(Err(v)) => version = Some(v),
            _ => {}
        }
    }
    match (newest, version) {
        (_, Some(v)) => Err(JournalError::Version(v)),
        (None, None) => Err(JournalError::NoHeader),
        (Some(header), None) => check_shape(files, &header).map(|()| header),
    }
}

fn check_shape(files: &[&dyn Storage], header: &Header) -> Result<(), JournalError> {
    if files.len() != header.files as usize || files.len() < FILES_MIN {
        let text = format!("{} files given, the header names {}, at least {FILES_MIN}", files.len(), header.files);
        return Err(JournalError::Shape(text));
    }
    if header.file_bytes < FILE_BYTES_MIN {
        return Err(JournalError::Shape(format!("{} bytes per file, at least {FILE_BYTES_MIN}", header.file_bytes)));
    }
    for (i, file) in files.iter().enumerate() {
        let size = file.size()?;
        if size != header.file_bytes {
            return Err(JournalError::Shape(format!("file {i} has {size} bytes instead of {}", header.file_bytes)));
        }
    }
    Ok(())
}
