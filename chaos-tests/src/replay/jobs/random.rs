//! Random writes on a held fd against a copy in memory; most are never synced.

use super::{Job, Place, Shadow};
use crate::replay::io::{Fd, Io, Step};
use rustix::fs::OFlags;

/// Largest file.
const SIZE_MAX: u64 = 3 << 20;
/// Largest write.
const WRITE_MAX: u64 = 100_000;

struct Random {
    place: Place,
    fd: Fd,
    copy: Vec<u8>,
}

pub(super) fn make(place: Place, io: &mut Io) -> Step<Box<dyn Job>> {
    let fd = io.open(&place.dir.join("held"), OFlags::CREATE | OFlags::EXCL | OFlags::RDWR)?;
    Ok(Box::new(Random { place, fd, copy: Vec::new() }))
}

impl Job for Random {
    fn step(&mut self, io: &mut Io) -> Step {
        let rng = &mut self.place.rng;
        for _ in 0..rng.between(1, 5) {
            let size = if rng.chance(60) { rng.between(1, 5_000) } else { rng.between(1, WRITE_MAX) };
            let at = rng.below(SIZE_MAX - size);
            let bytes = rng.bytes(size as usize);
            io.pwrite(&self.fd, &bytes, at)?;
            let end = (at + size) as usize;
            self.copy.resize(self.copy.len().max(end), 0);
            self.copy[at as usize..end].copy_from_slice(&bytes);
        }
        let at = rng.below(self.copy.len() as u64) as usize;
        let end = self.copy.len().min(at + rng.between(1, 300_000) as usize);
        io.drop_cache(&self.fd);
        io.check_range("held file", &self.fd, at as u64, &self.copy[at..end])?;
        if rng.chance(8) {
            io.fsync(&self.fd)?;
        }
        if rng.chance(3) {
            let again = io.open(&self.fd.path.clone(), OFlags::RDWR)?;
            io.close(std::mem::replace(&mut self.fd, again))?;
        }
        if rng.chance(3) { io.check_whole("held file", &self.fd, &self.copy) } else { Ok(()) }
    }
    fn finish(self: Box<Self>, io: &mut Io, tree: &mut Shadow) -> Step {
        io.check_whole("unsynced held file", &self.fd, &self.copy)?;
        let second = io.open(&self.fd.path, OFlags::RDONLY)?;
        io.check_whole("unsynced file through a second fd", &second, &self.copy)?;
        let path = self.fd.path.clone();
        io.close(second)?;
        io.close(self.fd)?;
        tree.dir(io, &self.place.dir)?;
        tree.file(io, &path, &self.copy)
    }
}
