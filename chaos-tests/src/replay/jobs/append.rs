//! Several threads append records to one log: nothing lost, nothing twice, in order per thread.

use super::{Job, Place, Rng, Shadow};
use crate::replay::io::{Fd, Io, Step};
use rustix::fs::OFlags;
use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

const MAGIC: u32 = 0x4c4f_4731;
const HEADER: usize = 20;
/// Payload of a record at most.
const PAYLOAD_MAX: u64 = 3_000;
/// From this size of the log on, records are small.
const LOG_SOFT_MAX: u64 = 12 << 20;
/// A thread reads what is new after this many of its appends.
const CHECK_EVERY: u64 = 32;
/// Bytes per read.
const PIECE: usize = 256 << 10;

struct Append {
    place: Place,
    log: Fd,
    reader: Fd,
    number: u64,
    /// Where the reader is, and what it expects of each thread.
    at: u64,
    expected: Vec<u64>,
}

fn log(place: &Place) -> PathBuf {
    place.dir.join("log")
}

pub(super) fn prepare(place: &mut Place, io: &mut Io) -> Step {
    let fd = io.open(&log(place), OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY)?;
    io.close(fd)
}

pub(super) fn make(place: Place, io: &mut Io) -> Step<Box<dyn Job>> {
    let fd = io.open(&log(&place), OFlags::WRONLY | OFlags::APPEND)?;
    let reader = io.open(&log(&place), OFlags::RDONLY)?;
    let expected = vec![0; place.shared.done.len()];
    Ok(Box::new(Append { place, log: fd, reader, number: 0, at: 0, expected }))
}

fn record(me: u16, number: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + payload.len());
    out.extend(MAGIC.to_le_bytes());
    out.extend(me.to_le_bytes());
    out.extend((payload.len() as u16).to_le_bytes());
    out.extend(number.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out), payload);
    out.extend(crc.to_le_bytes());
    out.extend(payload);
    out
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// The next record: thread, number, whole length. None when its end is not there yet.
fn parse(bytes: &[u8]) -> Result<Option<(u16, u64, usize)>, String> {
    if bytes.len() < HEADER {
        return Ok(None);
    }
    if u32::from_le_bytes(number(bytes, 0)) != MAGIC {
        return Err(format!("no record begins here: {:02x?}", &bytes[..HEADER]));
    }
    let (me, len) = (u16::from_le_bytes(number(bytes, 4)), u16::from_le_bytes(number(bytes, 6)) as usize);
    let n = u64::from_le_bytes(number(bytes, 8));
    let Some(payload) = bytes.get(HEADER..HEADER + len) else { return Ok(None) };
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..16]), payload);
    if crc != u32::from_le_bytes(number(bytes, 16)) {
        return Err(format!("record {n} of thread {me} has a wrong checksum"));
    }
    Ok(Some((me, n, HEADER + len)))
}

impl Append {
    /// Reads from `at` to the end; answers the bytes of an unfinished record there.
    fn read_on(&mut self, io: &mut Io) -> Step<usize> {
        io.drop_cache(&self.reader);
        let (mut pending, mut piece) = (Vec::new(), vec![0; PIECE]);
        loop {
            let n = io.pread(&self.reader, &mut piece, self.at + pending.len() as u64)?;
            pending.extend_from_slice(&piece[..n]);
            let mut used = 0;
            loop {
                match parse(&pending[used..]) {
                    Ok(None) => break,
                    Ok(Some((me, number, len))) => {
                        self.seen(io, me, number, self.at + used as u64)?;
                        used += len;
                    }
                    Err(why) => {
                        return Err(io.mismatch(
                            "log",
                            &self.reader.path,
                            format!("at {}: {why}", self.at + used as u64),
                        ));
                    }
                }
            }
            pending.drain(..used);
            self.at += used as u64;
            if n == 0 {
                return Ok(pending.len());
            }
        }
    }
    fn seen(&mut self, io: &mut Io, me: u16, number: u64, at: u64) -> Step {
        let Some(expected) = self.expected.get_mut(me as usize) else {
            return Err(io.mismatch("log", &self.reader.path, format!("at {at}: unknown thread {me}")));
        };
        let want = std::mem::replace(expected, number + 1);
        if want == number {
            return Ok(());
        }
        let words = format!("at {at}: thread {me}: record {number} where {want} was due");
        Err(io.mismatch("log", &self.reader.path, words))
    }
    fn check_own(&mut self, io: &mut Io) -> Step {
        self.read_on(io)?;
        let seen = self.expected[self.place.me as usize];
        io.equal("own records in the log", &self.reader.path, self.number, seen)
    }
}

impl Job for Append {
    fn step(&mut self, io: &mut Io) -> Step {
        let rng: &mut Rng = &mut self.place.rng;
        let limit = if self.at > LOG_SOFT_MAX { 64 } else { PAYLOAD_MAX };
        let n = rng.below(limit) as usize;
        let (payload, sync) = (rng.bytes(n), rng.chance(5));
        io.append(&self.log, &record(self.place.me, self.number, &payload))?;
        self.number += 1;
        self.place.shared.done[self.place.me as usize].store(self.number, Ordering::SeqCst);
        if sync {
            io.fsync(&self.log)?;
        }
        if self.number.is_multiple_of(CHECK_EVERY) { self.check_own(io) } else { Ok(()) }
    }
    fn finish(mut self: Box<Self>, io: &mut Io, tree: &mut Shadow) -> Step {
        // Everybody has ended: from the start, strictly.
        self.at = 0;
        self.expected.fill(0);
        let rest = self.read_on(io)?;
        io.equal("bytes after the last record", &self.reader.path, 0, rest)?;
        let shared = Arc::clone(&self.place.shared);
        let want: Vec<_> = shared.done.iter().map(|n| n.load(Ordering::SeqCst)).collect();
        io.equal("records per thread", &self.reader.path, want, self.expected.clone())?;
        let mut whole = vec![0; self.at as usize];
        let mut have = 0;
        while have < whole.len() {
            let end = whole.len().min(have + PIECE);
            match io.pread(&self.reader, &mut whole[have..end], have as u64)? {
                0 => return Err(io.mismatch("log", &self.reader.path, format!("ends at {have}"))),
                n => have += n,
            }
        }
        let path = log(&self.place);
        io.close(self.log)?;
        io.close(self.reader)?;
        tree.dir(io, &self.place.dir)?;
        tree.file(io, &path, &whole)
    }
}
