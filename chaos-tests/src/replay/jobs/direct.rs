//! 1 MiB O_DIRECT writes and reads: a fault in a buffer of the file system's readers shows here as EIO.

use super::{Job, Place, Rng, Shadow};
use crate::replay::io::{Aligned, Fd, Io, Step};
use rustix::fs::OFlags;

const BLOCK: usize = 1 << 20;
const BLOCKS: usize = 6;

struct Direct {
    place: Place,
    fd: Fd,
    buf: Aligned,
    /// Seed of each block that was written.
    blocks: Vec<u64>,
}

pub(super) fn make(place: Place, io: &mut Io) -> Step<Box<dyn Job>> {
    let path = place.dir.join("blocks");
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::DIRECT;
    Ok(Box::new(Direct { place, fd: io.open(&path, flags)?, buf: Aligned::new(BLOCK), blocks: Vec::new() }))
}

fn content(seed: u64) -> Vec<u8> {
    Rng::new(seed, 3).bytes(BLOCK)
}

impl Direct {
    fn check(&mut self, io: &mut Io, block: usize) -> Step {
        let n = io.pread(&self.fd, &mut self.buf, (block * BLOCK) as u64)?;
        io.same("direct read", &self.fd.path, (block * BLOCK) as u64, &content(self.blocks[block]), &self.buf[..n])
    }
}

impl Job for Direct {
    fn step(&mut self, io: &mut Io) -> Step {
        let rng = &mut self.place.rng;
        let (block, seed) = (rng.below(BLOCKS as u64).min(self.blocks.len() as u64) as usize, rng.next());
        let (sync, look) = (rng.chance(10), rng.next());
        self.buf.copy_from_slice(&content(seed));
        io.pwrite(&self.fd, &self.buf, (block * BLOCK) as u64)?;
        match self.blocks.get_mut(block) {
            Some(old) => *old = seed,
            None => self.blocks.push(seed),
        }
        if sync {
            io.fsync(&self.fd)?;
        }
        self.check(io, (look % self.blocks.len() as u64) as usize)
    }
    fn finish(mut self: Box<Self>, io: &mut Io, tree: &mut Shadow) -> Step {
        for block in 0..self.blocks.len() {
            self.check(io, block)?;
        }
        let whole: Vec<u8> = self.blocks.iter().flat_map(|s| content(*s)).collect();
        let path = self.fd.path.clone();
        io.close(self.fd)?;
        tree.dir(io, &self.place.dir)?;
        tree.file(io, &path, &whole)
    }
}
