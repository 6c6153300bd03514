//! Reading a journal back: what is in it, and what of that is not settled.

use super::{
    Header, Journal, JournalError, Kind, Mode, Place, Record, Storage,
    format::{self, ALIGN, DATA_START, RECORD_HEADER, SEGMENT_AT, SEGMENT_HEADER, SegmentHeader},
    ring,
};
use bytes::Bytes;
use fusefs_types::{FsError, Hlc, Ino, Time, ops::CommitFile};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// Bytes read at once: many small records, and not much in vain where one large record follows another.
const WINDOW: usize = 32 << 10;
/// Writes whose request numbers are remembered: far more than the kernel can have on its way.
const REQUESTS_MAX: usize = 64 << 10;

/// What a replay brought back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayStats {
    /// Records read.
    pub scanned: u64,
    /// Writes put back into the queues.
    pub writes: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Commits without an answer that are sent again.
    pub intents: u64,
    /// Inodes with uncommitted bytes.
    pub inodes: u64,
    /// Bytes of a torn record at the end: its write was never acknowledged.
    pub torn: u64,
    /// Records behind the first damage were left out ([`Mode::Prefix`]).
    pub cut: bool,
}

/// A write that is not settled.
#[derive(Clone, Debug)]
pub struct PendingWrite {
    /// Number of the record.
    pub lsn: u64,
    /// File offset.
    pub offset: u64,
    /// Bytes.
    pub bytes: Bytes,
    /// `trunc_seq` the writer knew.
    pub trunc_seq: u64,
    /// When; None after an explicit utimens.
    pub mtime: Option<Time>,
    /// Clear set-uid/set-gid.
    pub kill_priv: bool,
    pub(crate) place: Place,
}

/// A commit whose answer is not known.
#[derive(Clone, Debug)]
pub struct Unfinished {
    /// Number of its operation (origin journal).
    pub number: u64,
    /// Last record of the inode that it covers.
    pub covers: u64,
    /// Kernel request that waits for it, 0 without one.
    pub unique: u64,
    /// The same bytes that were sent.
    pub file: CommitFile,
    pub(crate) place: Place,
}

/// What one inode has pending, in order.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    /// Commits to be sent again.
    pub intents: VecDeque<Unfinished>,
    /// Writes; those up to an intent's `covers` belong to it.
    pub writes: Vec<PendingWrite>,
    /// A utimens came after the writes up to these numbers.
    pub mtime_marks: Vec<u64>,
    /// Newest version of the inode that a writer had seen or a commit had made.
    pub known: Hlc,
}

/// How an operation that the kernel may ask for again ended.
pub type Outcome = Result<(), FsError>;

/// Everything that a new client process must know.
#[derive(Debug, Default)]
pub struct Recovered {
    /// By inode.
    pub pending: BTreeMap<Ino, Pending>,
    /// Writes in the journal, settled or not: (request, offset, bytes).
    pub requests: HashSet<(u64, u64, u32)>,
    /// Requests of other kinds that were answered.
    pub outcomes: HashMap<u64, Outcome>,
    /// Counters.
    pub stats: ReplayStats,
}

/// A record and where it lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub record: Record,
    pub file: usize,
    pub place: Place,
}

/// All records in the order they were written.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub found: Vec<Found>,
    /// Files in use: (file, segment, end of its records).
    pub used: Vec<(usize, u64, u64)>,
    pub lsn: u64,
    pub torn: u64,
    pub cut: bool,
}

/// Reads a file piece by piece.
struct Window<'a> {
    file: &'a dyn Storage,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// `len` bytes at `at`; fewer at the end of the file.
    fn get(&mut self, at: u64, len: usize) -> std::io::Result<&[u8]> {
        if at < self.start || at + len as u64 > self.start + self.bytes.len() as u64 {
            self.bytes.resize(WINDOW.max(len), 0);
            let n = self.file.read_at(&mut self.bytes, at)?;
            self.bytes.truncate(n);
            self.start = at;
        }
        let from = (at - self.start) as usize;
        Ok(&self.bytes[from..self.bytes.len().min(from + len)])
    }
}

/// Reads all records from the oldest segment that matters on. Errors: Corrupt, Io.
pub(super) fn scan(files: &[&dyn Storage], header: &Header, mode: Mode) -> Result<Scan, JournalError> {
    let mut heads: Vec<(SegmentHeader, usize)> = Vec::new();
    for (i, file) in files.iter().enumerate() {
        let mut bytes = [0; SEGMENT_HEADER];
        file.read_at(&mut bytes, SEGMENT_AT)?;
        heads.extend(SegmentHeader::decode(&bytes, header.mount).filter(|h| h.seq >= header.tail).map(|h| (h, i)));
    }
    heads.sort_by_key(|(h, _)| h.seq);
    let next = heads.last().map_or(header.tail, |(h, _)| h.seq + 1);
    if mode == Mode::SameBoot && headless(files, header, next)? {
        let what = "a segment's head is damaged";
        return Err(JournalError::Corrupt { segment: next, at: SEGMENT_AT, what });
    }
    let mut out = Scan { lsn: header.void, ..Scan::default() };
    for (i, (head, file)) in heads.iter().enumerate() {
        let corrupt = |at, what| JournalError::Corrupt { segment: header.tail + i as u64, at, what };
        let whole = match heads.get(i + 1) {
            _ if head.seq != header.tail + i as u64 => Err(corrupt(SEGMENT_AT, "a segment is missing")),
            Some((next, _)) => segment(files[*file], *file, header, head, Some(next.before), &mut out),
            None => segment(files[*file], *file, header, head, None, &mut out),
        };
        match whole {
            Ok(()) => {}
            Err(JournalError::Corrupt { .. }) if mode == Mode::Prefix => {
                out.cut = true;
                break;
            }
            Err(e) => return Err(e),
        }
        out.lsn = out.lsn.max(head.first.saturating_sub(1));
    }
    if !out.cut {
        drop_torn(files, &mut out)?;
    }
    Ok(out)
}

/// Whether some file holds a record of segment `seq`, which no valid head names.
fn headless(files: &[&dyn Storage], header: &Header, seq: u64) -> std::io::Result<bool> {
    for file in files {
        let mut bytes = [0; RECORD_HEADER];
        let n = file.read_at(&mut bytes, DATA_START)?;
        if Record::decode(&bytes[..n], header.mount, seq, DATA_START).is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Records of one segment. `end`: where they must end, None for the newest segment.
fn segment(
    storage: &dyn Storage,
    file: usize,
    header: &Header,
    head: &SegmentHeader,
    end: Option<u64>,
    out: &mut Scan,
) -> Result<(), JournalError> {
    let mut window = Window { file: storage, start: 0, bytes: Vec::new() };
    let mut at = DATA_START;
    out.used.push((file, head.seq, at));
    let corrupt = |at, what| JournalError::Corrupt { segment: head.seq, at, what };
    loop {
        if end.is_some_and(|e| at >= e) {
            return if end == Some(at) { Ok(()) } else { Err(corrupt(at, "a record crosses the end of the segment")) };
        }
        let bytes = window.get(at, RECORD_HEADER)?;
        let record = Record::decode(bytes, header.mount, head.seq, at);
        let fits = record.filter(|r| at + r.total() <= header.file_bytes);
        let Some(record) = fits else {
            if end.is_some() {
                return Err(corrupt(at, "not a record"));
            }
            if follows(storage, header, head.seq, at)? {
                return Err(corrupt(at, "not a record, but records follow"));
            }
            return Ok(());
        };
        let place = Place { seq: head.seq, at, len: record.total() };
        out.found.push(Found { record, file, place });
        out.lsn = out.lsn.max(record.lsn);
        at += place.len;
        if let Some(used) = out.used.last_mut() {
            used.2 = at;
        }
    }
}

/// Whether a valid record starts somewhere behind `at`, at most one record's length away.
fn follows(storage: &dyn Storage, header: &Header, seq: u64, at: u64) -> std::io::Result<bool> {
    let longest = format::total(fusefs_types::limits::OBJECT_BYTES_MAX) as usize + RECORD_HEADER;
    let mut bytes = vec![0; longest.min((header.file_bytes - at) as usize)];
    let n = storage.read_at(&mut bytes, at)?;
    let places = (ALIGN as usize..n).step_by(ALIGN as usize);
    Ok(places
        .filter(|i| Record::may_start(&bytes[*i..n]))
        .any(|i| Record::decode(&bytes[i..n], header.mount, seq, at + i as u64).is_some()))
}

/// The last record counts only with all of its payload.
fn drop_torn(files: &[&dyn Storage], out: &mut Scan) -> Result<(), JournalError> {
    let Some(last) = out.found.last() else { return Ok(()) };
    // Only if it is the very end: a segment may have been opened behind it.
    let newest = out.used.last().is_some_and(|u| u.1 == last.place.seq);
    if newest && payload(files, last)?.is_none() {
        out.torn = last.place.len;
        if let Some(used) = out.used.last_mut() {
            used.2 = last.place.at;
        }
        out.found.pop();
    }
    Ok(())
}

/// Payload of a record; None if its checksum is wrong.
pub(super) fn payload(files: &[&dyn Storage], found: &Found) -> Result<Option<Bytes>, JournalError> {
    if found.record.len == 0 {
        return Ok(Some(Bytes::new()));
    }
    let (_, mut payload) = ring::read_record(files[found.file], &found.place)?;
    payload.truncate(found.record.len as usize);
    Ok((crc32c::crc32c(&payload) == found.record.crc).then(|| Bytes::from(payload)))
}

/// Sorts records into what is settled and what is not. `plant`: see [`Journal::recover`].
pub(super) fn settle(
    files: &[&dyn Storage],
    header: &Header,
    scan: &Scan,
    plant: bool,
) -> Result<Recovered, JournalError> {
    let mut settled: HashMap<Ino, u64> = HashMap::new();
    let mut known: HashMap<Ino, u64> = HashMap::new();
    let mut finished: HashSet<u64> = HashSet::new();
    let mut out = Recovered::default();
    for found in &scan.found {
        let r = &found.record;
        let to = match r.kind {
            Kind::Barrier if plant => 0,
            Kind::Barrier | Kind::Lost => r.lsn,
            Kind::Done => {
                finished.insert(r.number);
                if r.unique != 0 {
                    out.outcomes.insert(r.unique, r.refused.map_or(Ok(()), Err));
                }
                if r.refused.is_none() { r.at } else { 0 }
            }
            _ => 0,
        };
        let so_far = settled.entry(r.ino).or_default();
        *so_far = (*so_far).max(to);
        let version = match r.kind {
            Kind::Write => r.number,
            Kind::Done if r.refused.is_none() => r.trunc_seq,
            _ => 0,
        };
        let so_far = known.entry(r.ino).or_default();
        *so_far = (*so_far).max(version);
    }
    // By number: a copy replaces what it was made of.
    let mut live: BTreeMap<u64, &Found> = BTreeMap::new();
    for found in &scan.found {
        let r = &found.record;
        let done = settled.get(&r.ino).copied().unwrap_or(0).max(header.void);
        let keep = match r.kind {
            Kind::Write | Kind::ExplicitMtime => r.lsn > done,
            // Its bytes may have gone another way, in another session.
            Kind::Intent if r.at > 0 && r.at <= done => false,
            Kind::Intent => r.lsn > header.void && !finished.contains(&r.number),
            _ => false,
        };
        if keep {
            live.insert(r.lsn, found);
        }
    }
    for found in live.values() {
        load(files, found, plant, &mut out)?;
    }
    remember_requests(scan, header.void, &mut out);
    out.pending.iter_mut().for_each(|(ino, p)| p.known = Hlc(known.get(ino).copied().unwrap_or(0)));
    out.pending.retain(|_, p| !p.writes.is_empty() || !p.intents.is_empty());
    out.stats.inodes = out.pending.len() as u64;
    (out.stats.scanned, out.stats.torn, out.stats.cut) = (scan.found.len() as u64, scan.torn, scan.cut);
    Ok(out)
}

/// One record that is not settled.
fn load(files: &[&dyn Storage], found: &Found, plant: bool, out: &mut Recovered) -> Result<(), JournalError> {
    let (r, place) = (&found.record, found.place);
    let damaged = |what| JournalError::Corrupt { segment: place.seq, at: place.at, what };
    let body = payload(files, found)?.ok_or_else(|| damaged("payload with a wrong checksum"))?;
    let pending = out.pending.entry(r.ino).or_default();
    match r.kind {
        Kind::Write => {
            out.stats.writes += 1;
            out.stats.bytes += body.len() as u64;
            pending.writes.push(PendingWrite {
                lsn: r.lsn,
                offset: r.at,
                bytes: body,
                trunc_seq: if plant { u64::MAX } else { r.trunc_seq },
                mtime: r.mtime,
                kill_priv: r.kill_priv,
                place,
            });
        }
        Kind::ExplicitMtime => {
            pending.writes.iter_mut().for_each(|w| w.mtime = None);
            pending.mtime_marks.push(r.lsn);
        }
        _ => {
            let file = format::decode_commit(&body).ok_or_else(|| damaged("a commit that cannot be read"))?;
            out.stats.intents += 1;
            let (number, covers, unique) = (r.number, r.at, r.unique);
            pending.intents.push_back(Unfinished { number, covers, unique, file, place });
        }
    }
    Ok(())
}

/// What is void counts as never written: if it is asked for again, nobody was told that it is safe.
fn remember_requests(scan: &Scan, void: u64, out: &mut Recovered) {
    let counts = |r: &Record| r.kind == Kind::Write && r.unique != 0 && r.lsn > void;
    let writes = scan.found.iter().rev().filter(|f| counts(&f.record));
    let keys = writes.take(REQUESTS_MAX).map(|f| (f.record.unique, f.record.at, f.record.len));
    out.requests.extend(keys);
}

impl Journal {
    /// Reads everything that is not settled and gets ready to append behind it. Call it once, after
    /// [`Journal::begin_incarnation`].
    ///
    /// `plant` is for tests of tests only: barriers and `trunc_seq` are ignored, so that truncated bytes come back.
    ///
    /// Errors: Corrupt (nothing may be served then), Io.
    pub fn recover(&self, mode: Mode, plant: bool) -> Result<Recovered, JournalError> {
        let files: Vec<&dyn Storage> = self.files.iter().map(|f| &**f).collect();
        let header = self.header();
        let scan = scan(&files, &header, mode)?;
        let recovered = settle(&files, &header, &scan, plant)?;
        if scan.cut {
            self.forget_beyond(&scan)?;
        }
        self.ring.lock().start(&scan.used, scan.lsn);
        for pending in recovered.pending.values() {
            let places = pending.writes.iter().map(|w| &w.place).chain(pending.intents.iter().map(|i| &i.place));
            places.for_each(|p| self.retain(p));
        }
        self.free_now();
        Ok(recovered)
    }

    /// Segments behind the damage must not be met again.
    fn forget_beyond(&self, scan: &Scan) -> Result<(), JournalError> {
        let unused = (0..self.files.len()).filter(|f| scan.used.iter().all(|u| u.0 != *f));
        for file in unused {
            self.files[file].write_at(&[&[0; SEGMENT_HEADER]], SEGMENT_AT)?;
        }
        Ok(())
    }
}
