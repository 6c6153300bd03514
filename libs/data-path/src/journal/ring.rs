//! Appending to the ring, and its space.
//!
//! Segments are used and freed strictly in order. That makes the rest simple: a record that settles others (Done,
//! Barrier, Lost) is always younger than they are, so it is never freed before them. A segment that one slow inode pins
//! is emptied by copying its live records to the end; copies keep their numbers, and order within an inode is by
//! number.

use super::{
    Header, Journal, Kind, Record, Storage,
    format::{DATA_START, RECORD_HEADER, SEGMENT_AT, SegmentHeader},
};
use std::{collections::VecDeque, io};

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Segment.
    pub seq: u64,
    /// Byte in its file.
    pub at: u64,
    /// Bytes it takes.
    pub len: u64,
}

/// How deep into the reserve a record may go: free segments that must stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Bytes of an application.
    Data = 2,
    /// Without it nothing can be committed.
    Intent = 1,
    /// It settles others, or is a copy that makes room.
    Closing = 0,
}

/// Why nothing was appended.
#[derive(Debug)]
pub(crate) enum Append {
    /// No room for this class now.
    Full,
    /// The disk failed; nothing more can be appended.
    Broken(io::Error),
}

#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    seq: u64,
    /// Bytes of records that are still needed.
    live: u64,
    /// Bytes used.
    end: u64,
}

pub(super) struct Ring {
    pub header: Header,
    /// By file.
    segments: Vec<Segment>,
    /// Files in use, oldest first; the last one takes records.
    order: VecDeque<usize>,
    free: VecDeque<usize>,
    /// Number of the newest record.
    lsn: u64,
    /// No appending: not recovered yet, or the disk failed.
    closed: bool,
}

impl Ring {
    pub fn new(header: Header) -> Ring {
        let segments = vec![Segment::default(); header.files as usize];
        Ring { header, segments, order: VecDeque::new(), free: VecDeque::new(), lsn: 0, closed: true }
    }
    pub fn last_lsn(&self) -> u64 {
        self.lsn
    }
    /// What a scan found: files in use with (seq, end), the number of the newest record.
    pub fn start(&mut self, used: &[(usize, u64, u64)], lsn: u64) {
        self.lsn = lsn;
        self.closed = false;
        self.order = used.iter().map(|u| u.0).collect();
        for (file, seq, end) in used {
            self.segments[*file] = Segment { seq: *seq, live: 0, end: *end };
        }
        self.free = (0..self.segments.len()).filter(|f| !self.order.contains(f)).collect();
    }
    fn segment(&mut self, seq: u64) -> Option<(usize, &mut Segment)> {
        let oldest = self.segments[*self.order.front()?].seq;
        let file = *self.order.get(usize::try_from(seq.checked_sub(oldest)?).ok()?)?;
        Some((file, &mut self.segments[file]))
    }
    /// Bytes of used segments, without the newest, that nobody needs.
    fn dead(&self) -> u64 {
        let old = self.order.iter().rev().skip(1);
        old.map(|f| self.segments[*f].end.saturating_sub(DATA_START).saturating_sub(self.segments[*f].live)).sum()
    }
}

impl Journal {
    /// Appends a record; returns its number and place. Reserving the place and writing are one critical section, so
    /// that only the last record can be torn. A record with a number is a copy and keeps it.
    pub(crate) fn append(&self, class: Class, mut record: Record, payload: &[u8]) -> Result<(u64, Place), Append> {
        record.len = payload.len() as u32;
        record.crc = crc32c::crc32c(payload);
        let len = record.total();
        let mut ring = self.ring.lock();
        if ring.closed {
            return Err(Append::Broken(io::Error::other("the journal takes no records")));
        }
        let file = match self.place(&mut ring, class, len) {
            Ok(file) => file,
            Err(Append::Broken(e)) => {
                ring.closed = true;
                return Err(Append::Broken(e));
            }
            full => return full.map(|_| (0, Place { seq: 0, at: 0, len: 0 })),
        };
        if record.lsn == 0 {
            record.lsn = ring.lsn + 1;
        }
        if record.kind == Kind::Intent && record.at == 0 {
            record.at = record.lsn; // it covers itself, so that the answer of a later commit settles it, too
        }
        let Segment { seq, end: at, .. } = ring.segments[file];
        let head = record.encode(ring.header.mount, seq, at);
        if let Err(e) = self.files[file].write_at(&[&head, payload], at) {
            ring.closed = true;
            return Err(Append::Broken(e));
        }
        ring.lsn = ring.lsn.max(record.lsn);
        ring.segments[file].end += len;
        ring.segments[file].live += len;
        Self::count(&self.stats.records, 1);
        Self::count(&self.stats.bytes, len);
        Ok((record.lsn, Place { seq, at, len }))
    }

    /// As [`Journal::append`] for a record that nobody needs once younger ones are gone.
    pub(crate) fn append_closing(&self, record: Record) -> Result<(), Append> {
        let (_, place) = self.append(Class::Closing, record, &[])?;
        self.release(&[place]);
        Ok(())
    }

    /// The file that takes `len` more bytes.
    fn place(&self, ring: &mut Ring, class: Class, len: u64) -> Result<usize, Append> {
        let room = ring.header.file_bytes;
        if len > room - DATA_START {
            return Err(Append::Broken(io::Error::other("a record larger than a segment")));
        }
        let current = ring.order.back().copied();
        if let Some(file) = current.filter(|f| ring.segments[*f].end + len <= room) {
            return Ok(file);
        }
        if ring.free.len() <= class as usize {
            return Err(Append::Full);
        }
        let Some(&next) = ring.free.front() else { return Err(Append::Full) };
        let before = current.map_or(0, |f| ring.segments[f].end);
        let seq = current.map_or(ring.header.tail, |f| ring.segments[f].seq + 1);
        let header = SegmentHeader { seq, first: ring.lsn + 1, before };
        self.files[next].write_at(&[&header.encode(ring.header.mount)], SEGMENT_AT).map_err(Append::Broken)?;
        ring.free.pop_front();
        ring.order.push_back(next);
        ring.segments[next] = Segment { seq, live: 0, end: DATA_START };
        Ok(next)
    }

    /// These records are not needed any more. True when that freed a segment.
    pub(crate) fn release(&self, places: &[Place]) -> bool {
        if places.is_empty() {
            return false;
        }
        let mut ring = self.ring.lock();
        for place in places {
            if let Some((_, segment)) = ring.segment(place.seq) {
                segment.live = segment.live.saturating_sub(place.len);
            }
        }
        self.free_settled(&mut ring)
    }

    /// Counts records found by a scan as needed.
    pub(super) fn retain(&self, place: &Place) {
        if let Some((_, segment)) = self.ring.lock().segment(place.seq) {
            segment.live += place.len;
        }
    }

    /// Frees old segments without live records.
    fn free_settled(&self, ring: &mut Ring) -> bool {
        let mut n = 0;
        while n + 1 < ring.order.len() && ring.segments[ring.order[n]].live == 0 {
            n += 1;
        }
        if n == 0 {
            return false;
        }
        let tail = ring.segments[ring.order[n]].seq;
        if !ring.closed && self.put_header(ring, |h| h.tail = tail).is_err() {
            return false; // the next append meets the broken disk
        }
        for _ in 0..n {
            if let Some(file) = ring.order.pop_front() {
                ring.free.push_back(file);
                Self::count(&self.stats.freed, 1);
            }
        }
        true
    }

    /// Frees what a scan found to be settled.
    pub(super) fn free_now(&self) {
        self.free_settled(&mut self.ring.lock());
    }

    /// Whether a record of an application with this payload fits now.
    pub(crate) fn has_room(&self, payload: usize) -> bool {
        let ring = self.ring.lock();
        let len = super::format::total(payload);
        let current = ring.order.back().is_some_and(|f| ring.segments[*f].end + len <= ring.header.file_bytes);
        ring.closed || current || ring.free.len() > Class::Data as usize
    }
    /// Largest payload of one record of an application: a segment holds a few of them.
    pub(crate) fn payload_max(&self) -> usize {
        let quarter = (self.ring.lock().header.file_bytes - DATA_START) / 4;
        usize::try_from(quarter).unwrap_or(usize::MAX).min(fusefs_types::limits::OBJECT_BYTES_MAX)
    }
    /// Free segments.
    pub(crate) fn free_segments(&self) -> usize {
        self.ring.lock().free.len()
    }
    /// The oldest segment, when copying what is live in it to the end makes room: all old segments together hold at
    /// least a segment of dead bytes.
    pub(crate) fn worth_copying(&self) -> Option<u64> {
        let ring = self.ring.lock();
        let worth = ring.order.len() > 1 && !ring.closed && ring.dead() >= ring.header.file_bytes - DATA_START;
        ring.order.front().filter(|_| worth).map(|f| ring.segments[*f].seq)
    }
    /// Copies a live record to the end; `change` may alter its head. Returns its new place.
    pub(crate) fn copy(&self, place: &Place, change: impl FnOnce(&mut Record)) -> Result<Place, Append> {
        let read = || -> io::Result<(Record, Vec<u8>)> {
            let mut ring = self.ring.lock();
            let mount = ring.header.mount;
            let Some((file, _)) = ring.segment(place.seq) else { return Err(io::Error::other("no such segment")) };
            drop(ring);
            let (record, payload) = read_record(&*self.files[file], place)?;
            let record = Record::decode(&record, mount, place.seq, place.at);
            let record = record.ok_or_else(|| io::Error::other("a live record is damaged"))?;
            Ok((record, payload))
        };
        let (mut record, mut payload) = read().map_err(Append::Broken)?;
        payload.truncate(record.len as usize);
        if crc32c::crc32c(&payload) != record.crc {
            return Err(Append::Broken(io::Error::other("the payload of a live record is damaged")));
        }
        change(&mut record);
        let (_, new) = self.append(Class::Closing, record, &payload)?;
        Self::count(&self.stats.copied, 1);
        Ok(new)
    }
}

/// Head and payload (with padding) of a record.
pub(super) fn read_record(file: &dyn Storage, place: &Place) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut head = vec![0; place.len as usize];
    let n = file.read_at(&mut head, place.at)?;
    if n < head.len() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    let payload = head.split_off(RECORD_HEADER.min(head.len()));
    Ok((head, payload))
}
