//! The jobs. Each thread has one; a step is a handful of calls whose results it checks. After a problem the job starts
//! again in a fresh directory, so that one problem is not reported twice.

mod append;
mod create;
mod direct;
mod dirs;
mod links;
mod listing;
mod locks;
mod mapped;
mod random;
mod times;
mod truncate;
mod unlinked;

pub use locks::{CounterCheck, RangeLocks};

use super::{
    Rng,
    io::{Io, Step},
    shadow::Shadow,
};
use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
};

/// Where a job works, and from which numbers.
pub struct Place {
    /// Its directory; it exists.
    pub dir: PathBuf,
    /// Random numbers of this thread.
    pub rng: Rng,
    /// Number of the thread within the job.
    pub me: u16,
    /// What the threads of a shared job have together.
    pub shared: Arc<Shared>,
}

/// State of all threads of a shared job.
#[derive(Default)]
pub struct Shared {
    /// Per thread: successful appends, increments.
    pub done: Vec<AtomicU64>,
}

/// One job.
pub trait Job: Send {
    /// A few calls and their checks.
    fn step(&mut self, io: &mut Io) -> Step;
    /// Compares everything it has byte for byte, without syncing first; then closes and tells what must be there from now
    /// on.
    fn finish(self: Box<Self>, io: &mut Io, tree: &mut Shadow) -> Step;
}

/// A job and its share of threads.
pub struct Spec {
    /// Name.
    pub name: &'static str,
    /// Threads.
    pub threads: u16,
    /// Whether the threads work in one directory; such a job is not started again after a problem.
    pub shared: bool,
    /// Prepares the directory of a shared job.
    pub prepare: fn(&mut Place, &mut Io) -> Step,
    /// Starts one thread's part.
    pub make: fn(Place, &mut Io) -> Step<Box<dyn Job>>,
}

fn nothing(_: &mut Place, _: &mut Io) -> Step {
    Ok(())
}

const fn alone(name: &'static str, threads: u16, make: fn(Place, &mut Io) -> Step<Box<dyn Job>>) -> Spec {
    Spec { name, threads, shared: false, prepare: nothing, make }
}

/// All jobs that are threads; fcntl locks are processes (see [`RangeLocks`]).
pub const SPECS: &[Spec] = &[
    alone("create", 2, create::make),
    Spec { name: "append", threads: 3, shared: true, prepare: append::prepare, make: append::make },
    alone("direct", 1, direct::make),
    alone("dirs", 1, dirs::make),
    alone("random", 1, random::make),
    alone("truncate", 2, truncate::make),
    alone("times", 1, times::make),
    alone("mapped", 1, mapped::make),
    Spec { name: "listing", threads: 2, shared: true, prepare: listing::prepare, make: listing::make },
    Spec { name: "flock", threads: 3, shared: true, prepare: locks::prepare, make: locks::make },
    alone("unlinked", 1, unlinked::make),
    alone("links", 1, links::make),
];

/// The job of locks between processes.
pub const FCNTL: &str = "fcntl";
