//! Segment files and the `HEAD` file that says which of them must exist.

use super::format::{self, Mark};
use crate::disk::{Disk, DiskFile};
use bytes::BufMut;
use std::{collections::BTreeMap, io, sync::Arc};

/// Zeroes are written this far ahead, so that most syncs change no file metadata.
const ZERO_AHEAD: u64 = 1 << 20;
const HEAD: &str = "log/HEAD";
const HEAD_NEW: &str = "log/HEAD.new";
const HEAD_BYTES: usize = 20;

pub(crate) struct Segment {
    pub file: Arc<dyn DiskFile>,
    pub capacity: u64,
    /// Bytes of live records.
    pub live: u64,
    /// The last record that made something here dead. Until it is durable a crash brings the dead back to life.
    pub dead_lsn: u64,
}

/// All segments; the last one is written to.
#[derive(Default)]
pub(crate) struct Segments {
    pub all: BTreeMap<u64, Segment>,
    /// Where the next batch goes. Everything before it is durable.
    pub end: Mark,
    /// Zeroes were written up to here in the active segment.
    pub zeroed: u64,
}

pub(crate) fn segment_name(number: u64) -> String {
    format!("log/{number:016x}.seg")
}

/// First and last segment that must exist, or `None` on a fresh disk.
pub(crate) fn read_head(disk: &dyn Disk, seed: u32) -> io::Result<Option<(u64, u64)>> {
    let file = match disk.open(HEAD) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut buf = [0; HEAD_BYTES];
    file.read_at(0, &mut buf)?;
    let word = |i: usize| buf[i..i + 8].iter().rev().fold(0, |n, b| (n << 8) | u64::from(*b));
    let sum = u32::from_le_bytes([buf[16], buf[17], buf[18], buf[19]]);
    if sum != crc32c::crc32c_append(seed, &buf[..16]) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "log/HEAD is damaged"));
    }
    Ok(Some((word(0), word(8))))
}

/// Makes `first..=last` the segments that must exist, durably.
pub(crate) fn write_head(disk: &dyn Disk, seed: u32, first: u64, last: u64) -> io::Result<()> {
    let mut buf = Vec::with_capacity(HEAD_BYTES);
    buf.put_u64_le(first);
    buf.put_u64_le(last);
    buf.put_u32_le(crc32c::crc32c_append(seed, &buf));
    let file = disk.create(HEAD_NEW)?;
    file.write_at(0, &buf)?;
    file.sync()?;
    disk.rename(HEAD_NEW, HEAD)?;
    disk.sync_dir("log")
}

impl Segments {
    pub(crate) fn count(&self) -> u64 {
        self.all.len() as u64
    }

    pub(crate) fn file(&self, number: u64) -> Option<Arc<dyn DiskFile>> {
        self.all.get(&number).map(|s| Arc::clone(&s.file))
    }

    pub(crate) fn first(&self) -> Option<u64> {
        self.all.keys().next().copied()
    }

    pub(crate) fn live(&mut self, number: u64, len: u32) {
        if let Some(segment) = self.all.get_mut(&number) {
            segment.live += u64::from(len);
        }
    }

    /// `len` bytes in a segment are superseded by the record `lsn` or an earlier one.
    pub(crate) fn dead(&mut self, number: u64, len: u32, lsn: u64) {
        if let Some(segment) = self.all.get_mut(&number) {
            segment.live = segment.live.saturating_sub(u64::from(len));
            segment.dead_lsn = segment.dead_lsn.max(lsn);
        }
    }

    /// Room in the active segment?
    pub(crate) fn fits(&self, len: u64) -> bool {
        self.all.get(&self.end.segment).is_some_and(|s| self.end.offset + len <= s.capacity)
    }
}

/// Creates the segment after `end` with room for `need` bytes and makes it durable. Nothing is written to older ones.
pub(crate) fn create(
    disk: &dyn Disk,
    seed: u32,
    end: Mark,
    first: Option<u64>,
    capacity: u64,
) -> io::Result<(u64, Segment)> {
    let number = end.segment + 1;
    let file = disk.create(&segment_name(number))?;
    file.allocate(capacity)?;
    file.write_at(0, &format::segment_header(seed, number, end.offset))?;
    file.sync()?;
    disk.sync_dir("log")?;
    write_head(disk, seed, first.unwrap_or(number), number)?;
    Ok((number, Segment { file, capacity, live: 0, dead_lsn: 0 }))
}

/// How far zeroes must reach before a batch that ends at `end` is written; `None` = far enough.
pub(crate) fn zero_target(zeroed: u64, end: u64, capacity: u64) -> Option<u64> {
    if end <= zeroed { None } else { Some((end + ZERO_AHEAD).min(capacity)) }
}
