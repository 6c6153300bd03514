//! O_EXCL create, write, fsync, reopen, verify, rename, unlink.

use super::{Job, Place, Rng, Shadow};
use crate::replay::io::{Io, Step};
use rustix::fs::OFlags;
use std::path::PathBuf;

/// Files that stay for a while.
const KEPT: usize = 24;
/// Largest file: beyond what rides inline.
const SIZE_MAX: u64 = 70_000;

struct Create {
    place: Place,
    next: u64,
    kept: Vec<(PathBuf, u64)>,
}

pub(super) fn make(place: Place, _: &mut Io) -> Step<Box<dyn Job>> {
    Ok(Box::new(Create { place, next: 0, kept: Vec::new() }))
}

fn content(seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed, 1);
    // Mostly small: those ride inline with the commit.
    let n = if rng.chance(70) { rng.below(9_000) } else { rng.below(SIZE_MAX) };
    rng.bytes(n as usize)
}

impl Create {
    fn write(&mut self, io: &mut Io, path: &std::path::Path, seed: u64) -> Step {
        let bytes = content(seed);
        let rng = &mut self.place.rng;
        let fd = io.open(path, OFlags::CREATE | OFlags::EXCL | OFlags::RDWR)?;
        let pieces = rng.between(1, 4) as usize;
        let (size, sync, look) = (bytes.len().div_ceil(pieces).max(1), rng.chance(70), rng.chance(30));
        for (i, piece) in bytes.chunks(size).enumerate() {
            io.pwrite(&fd, piece, (i * size) as u64)?;
        }
        if look {
            io.check_whole("after the write", &fd, &bytes)?;
        }
        if sync {
            io.fsync(&fd)?;
        }
        io.close(fd)
    }
    fn check(&mut self, io: &mut Io, path: &std::path::Path, seed: u64) -> Step {
        let fd = io.open(path, OFlags::RDONLY)?;
        io.check_whole("after reopening", &fd, &content(seed))?;
        io.close(fd)
    }
}

impl Job for Create {
    fn step(&mut self, io: &mut Io) -> Step {
        let (n, seed) = (self.next, self.place.rng.next());
        self.next += 1;
        let (first, second) = (self.place.dir.join(format!("a{n}")), self.place.dir.join(format!("b{n}")));
        self.write(io, &first, seed)?;
        self.check(io, &first, seed)?;
        if self.place.rng.chance(10) {
            io.create_refused(&first)?;
        }
        match self.place.rng.below(3) {
            0 if !self.kept.is_empty() => {
                // Onto an older file: that one is gone, the new one has its name.
                let at = self.place.rng.below(self.kept.len() as u64) as usize;
                let (target, _) = self.kept[at].clone();
                io.rename_refused(&first, &target)?;
                io.rename(&first, &target)?;
                io.absent(&first)?;
                self.kept[at].1 = seed;
                self.check(io, &target, seed)?;
            }
            1 => {
                io.rename_new(&first, &second)?;
                io.absent(&first)?;
                self.kept.push((second.clone(), seed));
                self.check(io, &second, seed)?;
            }
            _ => {
                io.rename(&first, &second)?;
                io.absent(&first)?;
                self.kept.push((second, seed));
            }
        }
        while self.kept.len() > KEPT {
            let at = self.place.rng.below(self.kept.len() as u64) as usize;
            let (path, seed) = self.kept.swap_remove(at);
            self.check(io, &path, seed)?;
            io.unlink(&path)?;
            io.absent(&path)?;
        }
        Ok(())
    }
    fn finish(mut self: Box<Self>, io: &mut Io, tree: &mut Shadow) -> Step {
        tree.dir(io, &self.place.dir)?;
        for (path, seed) in std::mem::take(&mut self.kept) {
            self.check(io, &path, seed)?;
            tree.file(io, &path, &content(seed))?;
        }
        Ok(())
    }
}
