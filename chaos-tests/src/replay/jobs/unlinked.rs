//! Files that have no name, any more or from birth, and are used through their fds.

use super::{Job, Place, Shadow};
use crate::replay::io::{Fd, Io, Step, nlink};
use rustix::fs::OFlags;
use std::path::Path;

/// Files open at a time.
const OPEN: usize = 6;

struct Unlinked {
    place: Place,
    next: u64,
    open: Vec<(Fd, Vec<u8>)>,
}

pub(super) fn make(place: Place, _: &mut Io) -> Step<Box<dyn Job>> {
    Ok(Box::new(Unlinked { place, next: 0, open: Vec::new() }))
}

fn check(io: &mut Io, fd: &Fd, want: &[u8]) -> Step {
    io.check_whole("unlinked file", fd, want)?;
    let links = nlink(&io.fstat(fd)?);
    io.equal("link count of an unlinked file", &fd.path, 0, links)
}

impl Unlinked {
    /// A file without a name, which may have had one for a moment.
    fn nameless(&mut self, io: &mut Io, path: &Path, bytes: &[u8]) -> Step<Fd> {
        let mut fd = io.open(&self.place.dir, OFlags::TMPFILE | OFlags::RDWR)?;
        fd.path = path.to_path_buf();
        io.pwrite(&fd, bytes, 0)?;
        check(io, &fd, bytes)?;
        if self.place.rng.chance(50) {
            io.link_fd(&fd, path)?;
            let links = nlink(&io.fstat(&fd)?);
            io.equal("link count of a file that got its first name", path, 1, links)?;
            let named = io.open(path, OFlags::RDONLY)?;
            io.check_whole("file that got its first name", &named, bytes)?;
            io.close(named)?;
            io.unlink(path)?;
        }
        io.absent(path)?;
        Ok(fd)
    }
    fn add(&mut self, io: &mut Io) -> Step {
        let path = self.place.dir.join(format!("u{}", self.next));
        self.next += 1;
        let n = self.place.rng.between(1, 40_000) as usize;
        let bytes = self.place.rng.bytes(n);
        if self.place.rng.chance(35) {
            let fd = self.nameless(io, &path, &bytes)?;
            self.open.push((fd, bytes));
            return Ok(());
        }
        let fd = io.open(&path, OFlags::CREATE | OFlags::EXCL | OFlags::RDWR)?;
        io.pwrite(&fd, &bytes, 0)?;
        if self.place.rng.chance(40) {
            io.fsync(&fd)?;
        }
        if self.place.rng.chance(30) {
            // Gone because another file took its name.
            let other = self.place.dir.join("other");
            let new = io.open(&other, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY)?;
            io.close(new)?;
            io.rename(&other, &path)?;
        }
        io.unlink(&path)?;
        io.absent(&path)?;
        self.open.push((fd, bytes));
        Ok(())
    }
}

impl Job for Unlinked {
    fn step(&mut self, io: &mut Io) -> Step {
        if self.open.len() < OPEN {
            self.add(io)?;
        }
        let rng = &mut self.place.rng;
        let at = rng.below(self.open.len() as u64) as usize;
        let (offset, size) = (rng.below(60_000), rng.between(1, 20_000));
        let (bytes, sync, cut, end) = (rng.bytes(size as usize), rng.chance(10), rng.chance(15), rng.chance(15));
        let (fd, copy) = &mut self.open[at];
        io.pwrite(fd, &bytes, offset)?;
        let last = (offset + size) as usize;
        copy.resize(copy.len().max(last), 0);
        copy[offset as usize..last].copy_from_slice(&bytes);
        if cut {
            let len = copy.len() / 2;
            io.ftruncate(fd, len as u64)?;
            copy.truncate(len);
        }
        if sync {
            io.fsync(fd)?;
        }
        check(io, fd, copy)?;
        if end {
            let (fd, copy) = self.open.swap_remove(at);
            check(io, &fd, &copy)?;
            io.close(fd)?;
        }
        Ok(())
    }
    fn finish(self: Box<Self>, io: &mut Io, tree: &mut Shadow) -> Step {
        for (fd, copy) in self.open {
            check(io, &fd, &copy)?;
            io.close(fd)?;
        }
        tree.dir(io, &self.place.dir)
    }
}
