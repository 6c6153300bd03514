//! Write, truncate, write: cut bytes stay cut, grown files have zeros.

use super::{Job, Place, Shadow};
use crate::replay::io::{Fd, Io, Step};
use rustix::fs::OFlags;

const SIZE_MAX: u64 = 300_000;

struct Truncate {
    place: Place,
    fd: Fd,
    copy: Vec<u8>,
}

pub(super) fn make(place: Place, io: &mut Io) -> Step<Box<dyn Job>> {
    let fd = io.open(&place.dir.join("cut"), OFlags::CREATE | OFlags::EXCL | OFlags::RDWR)?;
    Ok(Box::new(Truncate { place, fd, copy: Vec::new() }))
}

impl Truncate {
    fn write(&mut self, io: &mut Io) -> Step {
        let rng = &mut self.place.rng;
        let size = if rng.chance(50) { rng.between(1, 3_000) } else { rng.between(1, 60_000) };
        let at = if rng.chance(40) { self.copy.len() as u64 } else { rng.below(SIZE_MAX) };
        let bytes = rng.bytes(size as usize);
        io.pwrite(&self.fd, &bytes, at)?;
        let end = (at + size) as usize;
        self.copy.resize(self.copy.len().max(end), 0);
        self.copy[at as usize..end].copy_from_slice(&bytes);
        Ok(())
    }
    fn cut(&mut self, io: &mut Io, len: u64) -> Step {
        if self.place.rng.chance(30) {
            io.truncate(&self.fd, len)?
        } else {
            io.ftruncate(&self.fd, len)?
        }
        self.copy.resize(len as usize, 0);
        Ok(())
    }
}

impl Job for Truncate {
    fn step(&mut self, io: &mut Io) -> Step {
        for _ in 0..self.place.rng.between(2, 6) {
            let now = self.copy.len() as u64;
            match self.place.rng.below(10) {
                0..=4 => self.write(io)?,
                5 | 6 => {
                    // Shrink, and at once grow over the same bytes.
                    let len = self.place.rng.below(now + 1);
                    self.cut(io, len)?;
                    if self.place.rng.chance(60) {
                        let more = self.place.rng.between(len, SIZE_MAX.max(len + 1));
                        self.cut(io, more)?;
                    }
                }
                7 => {
                    let len = self.place.rng.between(now, now + 50_000);
                    self.cut(io, len)?;
                }
                8 => {
                    let again = io.open(&self.fd.path.clone(), OFlags::RDWR | OFlags::TRUNC)?;
                    self.copy.clear();
                    io.close(std::mem::replace(&mut self.fd, again))?;
                }
                _ => io.fsync(&self.fd)?,
            }
            if self.copy.len() as u64 > 2 * SIZE_MAX {
                self.cut(io, 100)?;
            }
        }
        io.check_whole("truncated file", &self.fd, &self.copy)
    }
    fn finish(self: Box<Self>, io: &mut Io, tree: &mut Shadow) -> Step {
        io.check_whole("unsynced truncated file", &self.fd, &self.copy)?;
        let path = self.fd.path.clone();
        io.close(self.fd)?;
        tree.dir(io, &self.place.dir)?;
        tree.file(io, &path, &self.copy)
    }
}
