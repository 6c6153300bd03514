//! A directory that is read slowly while names come and go: every name that was there all the time is shown exactly once.

use super::{Job, Place, Shadow};
use crate::replay::io::{Io, Step};
use rustix::fs::OFlags;
use std::collections::BTreeMap;

/// Names that never change.
const STABLE: usize = 300;
/// Names of the churning thread that exist at a time.
const CHURN: u64 = 16;

pub(super) fn prepare(place: &mut Place, io: &mut Io) -> Step {
    for i in 0..STABLE {
        let fd = io.open(&place.dir.join(stable(i)), OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY)?;
        io.close(fd)?;
    }
    Ok(())
}

pub(super) fn make(place: Place, _: &mut Io) -> Step<Box<dyn Job>> {
    if place.me == 0 { Ok(Box::new(Reader { place })) } else { Ok(Box::new(Churn { place, next: 0 })) }
}

fn stable(i: usize) -> String {
    format!("stable name {i}")
}

struct Reader {
    place: Place,
}

struct Churn {
    place: Place,
    next: u64,
}

impl Reader {
    fn pass(&mut self, io: &mut Io, buffer: usize) -> Step<BTreeMap<Vec<u8>, u32>> {
        let dir = io.open(&self.place.dir, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let names = io.list(&dir, buffer, std::thread::yield_now)?;
        io.close(dir)?;
        let mut times = BTreeMap::new();
        for name in names {
            *times.entry(name).or_insert(0) += 1;
        }
        for i in 0..STABLE {
            let have = times.get(stable(i).as_bytes()).copied().unwrap_or(0);
            io.equal(&format!("how often {:?} is listed", stable(i)), &self.place.dir, 1, have)?;
        }
        Ok(times)
    }
}

impl Job for Reader {
    fn step(&mut self, io: &mut Io) -> Step {
        let buffer = [512, 1024, 4096, 32768][self.place.rng.below(4) as usize];
        self.pass(io, buffer).map(drop)
    }
    fn finish(mut self: Box<Self>, io: &mut Io, tree: &mut Shadow) -> Step {
        self.pass(io, 1024)?;
        tree.dir(io, &self.place.dir)?;
        (0..STABLE).try_for_each(|i| tree.file(io, &self.place.dir.join(stable(i)), b""))
    }
}

impl Churn {
    fn path(&self, n: u64) -> std::path::PathBuf {
        self.place.dir.join(format!("churn {n}"))
    }
}

impl Job for Churn {
    fn step(&mut self, io: &mut Io) -> Step {
        let fd = io.open(&self.path(self.next), OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY)?;
        io.close(fd)?;
        self.next += 1;
        if self.next > CHURN {
            io.unlink(&self.path(self.next - CHURN - 1))?;
        }
        Ok(())
    }
    fn finish(self: Box<Self>, io: &mut Io, tree: &mut Shadow) -> Step {
        (self.next.saturating_sub(CHURN)..self.next).try_for_each(|n| tree.file(io, &self.path(n), b""))
    }
}
