//! mkdir, rename of directories, rmdir.

use super::{Job, Place, Shadow};
use crate::replay::io::{Io, Step};
use rustix::fs::OFlags;
use std::path::{Path, PathBuf};

/// Directories that stay.
const KEPT: usize = 8;

struct Dirs {
    place: Place,
    next: u64,
    kept: Vec<(PathBuf, u64)>,
}

pub(super) fn make(place: Place, _: &mut Io) -> Step<Box<dyn Job>> {
    Ok(Box::new(Dirs { place, next: 0, kept: Vec::new() }))
}

fn content(n: u64) -> Vec<u8> {
    format!("file of directory {n}").into_bytes()
}

fn check(io: &mut Io, dir: &Path, n: u64) -> Step {
    let fd = io.open(&dir.join("sub/file"), OFlags::RDONLY)?;
    io.check_whole("file in a moved directory", &fd, &content(n))?;
    io.close(fd)
}

fn remove(io: &mut Io, dir: &Path) -> Step {
    io.unlink(&dir.join("sub/file"))?;
    io.rmdir(&dir.join("sub"))?;
    io.rmdir(dir)?;
    io.absent(dir)
}

impl Job for Dirs {
    fn step(&mut self, io: &mut Io) -> Step {
        let n = self.next;
        self.next += 1;
        let (first, second) = (self.place.dir.join(format!("d{n}")), self.place.dir.join(format!("e{n}")));
        io.mkdir(&first)?;
        io.mkdir(&first.join("sub"))?;
        let fd = io.open(&first.join("sub/file"), OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY)?;
        io.pwrite(&fd, &content(n), 0)?;
        io.close(fd)?;
        io.rmdir_refused(&first)?;
        if self.place.rng.chance(30) {
            io.mkdir(&second)?; // an empty directory gives way
        }
        io.rename(&first, &second)?;
        io.absent(&first)?;
        check(io, &second, n)?;
        if self.place.rng.chance(30) && !self.kept.is_empty() {
            // The file moves to another directory and back.
            let at = self.place.rng.below(self.kept.len() as u64) as usize;
            let away = self.kept[at].0.join("guest");
            io.rename(&second.join("sub/file"), &away)?;
            io.absent(&second.join("sub/file"))?;
            io.rename(&away, &second.join("sub/file"))?;
            io.absent(&away)?;
        }
        self.kept.push((second, n));
        while self.kept.len() > KEPT {
            let at = self.place.rng.below(self.kept.len() as u64) as usize;
            let (dir, n) = self.kept.swap_remove(at);
            check(io, &dir, n)?;
            remove(io, &dir)?;
        }
        Ok(())
    }
    fn finish(self: Box<Self>, io: &mut Io, tree: &mut Shadow) -> Step {
        tree.dir(io, &self.place.dir)?;
        for (dir, n) in &self.kept {
            check(io, dir, *n)?;
            tree.dir(io, dir)?;
            tree.dir(io, &dir.join("sub"))?;
            tree.file(io, &dir.join("sub/file"), &content(*n))?;
        }
        Ok(())
    }
}
