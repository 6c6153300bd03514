//! A shared writable mapping: after msync the file system has the bytes.

use super::{Job, Place, Shadow};
use crate::replay::io::{Fd, Io, Map, Step};
use rustix::fs::OFlags;

const SIZE: usize = 512 << 10;

struct Mapped {
    place: Place,
    fd: Fd,
    map: Option<Map>,
    copy: Vec<u8>,
}

pub(super) fn make(mut place: Place, io: &mut Io) -> Step<Box<dyn Job>> {
    let fd = io.open(&place.dir.join("map"), OFlags::CREATE | OFlags::EXCL | OFlags::RDWR)?;
    let copy = place.rng.bytes(SIZE);
    io.pwrite(&fd, &copy, 0)?;
    let map = Some(io.map(&fd, SIZE)?);
    Ok(Box::new(Mapped { place, fd, map, copy }))
}

impl Job for Mapped {
    fn step(&mut self, io: &mut Io) -> Step {
        let rng = &mut self.place.rng;
        let mut map = match self.map.take() {
            Some(map) => map,
            None => io.map(&self.fd, SIZE)?,
        };
        for _ in 0..rng.between(1, 5) {
            let at = rng.below(SIZE as u64) as usize;
            let end = SIZE.min(at + rng.between(1, 20_000) as usize);
            rng.fill(&mut self.copy[at..end]);
            map.bytes()[at..end].copy_from_slice(&self.copy[at..end]);
        }
        io.msync(&map, &self.fd)?;
        io.same("mapping", &self.fd.path, 0, &self.copy, map.bytes())?;
        if rng.chance(40) {
            drop(map);
            io.check_whole("file after msync", &self.fd, &self.copy)
        } else {
            self.map = Some(map);
            Ok(())
        }
    }
    fn finish(mut self: Box<Self>, io: &mut Io, tree: &mut Shadow) -> Step {
        self.map = None;
        io.check_whole("file after the last msync", &self.fd, &self.copy)?;
        let path = self.fd.path.clone();
        io.close(self.fd)?;
        tree.dir(io, &self.place.dir)?;
        tree.file(io, &path, &self.copy)
    }
}
