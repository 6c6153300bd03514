//! `cp -p`: write, set the times, look later: the time must be exactly what was set, although data written before it is
//! committed after it.

use super::{Job, Place, Rng, Shadow};
use crate::replay::io::{Io, Mtime, Step, mtime};
use rustix::fs::OFlags;
use std::path::PathBuf;

const KEPT: usize = 40;

struct Copy {
    path: PathBuf,
    seed: u64,
    mtime: Mtime,
    mode: u32,
}

struct Times {
    place: Place,
    next: u64,
    kept: Vec<Copy>,
}

pub(super) fn make(place: Place, _: &mut Io) -> Step<Box<dyn Job>> {
    Ok(Box::new(Times { place, next: 0, kept: Vec::new() }))
}

fn content(seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed, 5);
    let n = rng.between(1, 40_000) as usize;
    rng.bytes(n)
}

fn check(io: &mut Io, copy: &Copy, what: &str) -> Step {
    let stat = io.lstat(&copy.path)?;
    io.equal(&format!("mtime {what}"), &copy.path, copy.mtime, mtime(&stat))?;
    io.equal(&format!("mode {what}"), &copy.path, copy.mode, stat.st_mode & 0o7777)?;
    io.equal(&format!("size {what}"), &copy.path, content(copy.seed).len() as i64, stat.st_size)
}

impl Job for Times {
    fn step(&mut self, io: &mut Io) -> Step {
        let rng = &mut self.place.rng;
        let time = (rng.between(1, 1_700_000_000) as i64, rng.below(1_000_000_000) as i64);
        let mode = [0o644, 0o600, 0o755, 0o640][rng.below(4) as usize];
        let copy = Copy { path: self.place.dir.join(format!("c{}", self.next)), seed: rng.next(), mtime: time, mode };
        let how = rng.below(3);
        self.next += 1;
        let fd = io.open(&copy.path, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY)?;
        let bytes = content(copy.seed);
        let half = bytes.len() / 2;
        io.pwrite(&fd, &bytes[..half.max(1)], 0)?;
        if half > 0 {
            io.pwrite(&fd, &bytes[half..], half as u64)?;
        }
        io.fchmod(&fd, copy.mode)?;
        match how {
            0 => {
                io.futimens(&fd, time)?;
                check(io, &copy, "while open")?;
                io.close(fd)?;
            }
            1 => {
                io.utimens(&copy.path, time)?;
                io.fsync(&fd)?;
                check(io, &copy, "after fsync")?;
                io.close(fd)?;
            }
            _ => {
                io.close(fd)?;
                io.utimens(&copy.path, time)?;
            }
        }
        check(io, &copy, "after closing")?;
        self.kept.push(copy);
        for _ in 0..2 {
            let at = self.place.rng.below(self.kept.len() as u64) as usize;
            check(io, &self.kept[at], "later")?;
        }
        if self.kept.len() > KEPT {
            let old = self.kept.remove(0);
            check(io, &old, "before unlink")?;
            io.unlink(&old.path)?;
        }
        Ok(())
    }
    fn finish(self: Box<Self>, io: &mut Io, tree: &mut Shadow) -> Step {
        tree.dir(io, &self.place.dir)?;
        for copy in &self.kept {
            check(io, copy, "at the end")?;
            tree.file(io, &copy.path, &content(copy.seed))?;
        }
        Ok(())
    }
}
