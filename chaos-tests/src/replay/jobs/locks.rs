//! A counter in a file that only the holder of a lock may change: flock between threads, fcntl between processes.

use super::{Job, Place, Shadow};
use crate::replay::io::{Fd, Io, Step};
use rustix::fs::OFlags;
use std::{
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

/// Counter and the number of who changed it last.
const CELL: usize = 16;

fn file(dir: &Path) -> PathBuf {
    dir.join("counter")
}

/// Makes the counter.
pub(super) fn prepare(place: &mut Place, io: &mut Io) -> Step {
    let fd = io.open(&file(&place.dir), OFlags::CREATE | OFlags::EXCL | OFlags::RDWR)?;
    io.pwrite(&fd, &[0; CELL], 0)?;
    io.close(fd)
}

fn read(io: &mut Io, fd: &Fd) -> Step<(u64, u64)> {
    let mut cell = [0; CELL];
    let n = io.pread(fd, &mut cell, 0)?;
    io.equal("size of the counter", &fd.path, CELL, n)?;
    let half = |i: usize| u64::from_le_bytes(std::array::from_fn(|k| cell[i * 8 + k]));
    Ok((half(0), half(1)))
}

fn write(io: &mut Io, fd: &Fd, count: u64, me: u64) -> Step {
    let mut cell = [0; CELL];
    cell[..8].copy_from_slice(&count.to_le_bytes());
    cell[8..].copy_from_slice(&me.to_le_bytes());
    io.pwrite(fd, &cell, 0)
}

/// Adds one under a lock that the caller holds, slowly, and looks whether somebody else was there meanwhile.
fn add_one(io: &mut Io, fd: &Fd, last: &mut u64, me: u64, linger: u64) -> Step {
    let (count, _) = read(io, fd)?;
    if count < *last {
        return Err(io.mismatch("counter", &fd.path, format!("went back from {last} to {count}")));
    }
    write(io, fd, count + 1, me)?;
    for _ in 0..linger {
        std::thread::yield_now();
    }
    let now = read(io, fd)?;
    io.equal("counter at the end of the locked part", &fd.path, (count + 1, me), now)?;
    *last = count + 1;
    Ok(())
}

struct Flock {
    place: Place,
    fd: Fd,
    last: u64,
    mine: u64,
}

pub(super) fn make(place: Place, io: &mut Io) -> Step<Box<dyn Job>> {
    let fd = io.open(&file(&place.dir), OFlags::RDWR)?;
    Ok(Box::new(Flock { place, fd, last: 0, mine: 0 }))
}

impl Job for Flock {
    fn step(&mut self, io: &mut Io) -> Step {
        let (kind, linger) = (self.place.rng.below(10), self.place.rng.below(4));
        match kind {
            0 => {
                io.flock(&self.fd, true)?;
                let first = read(io, &self.fd)?;
                std::thread::yield_now();
                let second = read(io, &self.fd)?;
                io.equal("counter under a shared lock", &self.fd.path, first, second)?;
                return io.funlock(&self.fd);
            }
            1 if !io.try_flock(&self.fd)? => return Ok(()),
            1 => {}
            _ => io.flock(&self.fd, false)?,
        }
        add_one(io, &self.fd, &mut self.last, u64::from(self.place.me) + 1, linger)?;
        self.mine += 1;
        self.place.shared.done[self.place.me as usize].store(self.mine, Ordering::SeqCst);
        io.funlock(&self.fd)
    }
    fn finish(self: Box<Self>, io: &mut Io, tree: &mut Shadow) -> Step {
        io.close(self.fd)?;
        if self.place.me != 0 {
            return Ok(());
        }
        let sum = self.place.shared.done.iter().map(|n| n.load(Ordering::SeqCst)).sum();
        CounterCheck { dir: self.place.dir }.run(io, tree, sum)
    }
}

/// The last look at a counter.
pub struct CounterCheck {
    /// Directory of the counter.
    pub dir: PathBuf,
}

impl CounterCheck {
    /// Makes the counter of a job whose lockers are processes.
    pub fn prepare(&self, io: &mut Io) -> Step {
        let fd = io.open(&file(&self.dir), OFlags::CREATE | OFlags::EXCL | OFlags::RDWR)?;
        io.pwrite(&fd, &[0; CELL], 0)?;
        io.close(fd)
    }
    /// The counter must be exactly the sum of everybody's increments.
    pub fn run(self, io: &mut Io, tree: &mut Shadow, sum: u64) -> Step {
        let fd = io.open(&file(&self.dir), OFlags::RDONLY)?;
        io.drop_cache(&fd);
        let (count, owner) = read(io, &fd)?;
        io.equal("counter against all increments", &fd.path, sum, count)?;
        io.close(fd)?;
        let mut cell = count.to_le_bytes().to_vec();
        cell.extend(owner.to_le_bytes());
        tree.dir(io, &self.dir)?;
        tree.file(io, &file(&self.dir), &cell)
    }
}

/// One process of the fcntl job.
pub struct RangeLocks {
    fd: Fd,
    me: u64,
    last: u64,
    rng: super::Rng,
    /// Increments made.
    pub mine: u64,
}

impl RangeLocks {
    /// Opens the counter. Its only fd of that file: closing another would drop the locks.
    pub fn open(io: &mut Io, dir: &Path, me: u64, rng: super::Rng) -> Step<RangeLocks> {
        Ok(RangeLocks { fd: io.open(&file(dir), OFlags::RDWR)?, me: me + 1, last: 0, rng, mine: 0 })
    }
    /// One increment.
    pub fn step(&mut self, io: &mut Io) -> Step {
        const LEN: i64 = CELL as i64;
        if self.rng.chance(10) {
            if !io.try_lock_range(&self.fd, 0, LEN)? {
                return Ok(());
            }
        } else {
            io.lock_range(&self.fd, 0, LEN)?;
        }
        let linger = self.rng.below(4);
        add_one(io, &self.fd, &mut self.last, self.me, linger)?;
        self.mine += 1;
        io.unlock_range(&self.fd, 0, LEN)
    }
    /// Closes the counter.
    pub fn close(self, io: &mut Io) -> Step {
        io.close(self.fd)
    }
}
