//! The disk as this crate uses it: a flat set of named files below one directory. Names are relative, `/` separated.

mod real;
mod sim;

pub use real::RealDisk;
pub use sim::{SimDisk, SimFault};

use std::{io, sync::Arc, time::Duration};

/// A directory on one disk. Every call blocks; callers on a runtime use a thread, except in the simulation.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// NotFound, or what the disk says.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates an empty file, truncating an old one. Directories on the way are created.
    ///
    /// # Errors
    /// What the disk says.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file, replacing the target. Durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// What the disk says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; a missing one is fine.
    ///
    /// # Errors
    /// What the disk says.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Names of the files in a directory, sorted; a missing directory is empty.
    ///
    /// # Errors
    /// What the disk says.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Makes creations, renames and removals in a directory durable ("" = the root).
    ///
    /// # Errors
    /// What the disk says.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Gives up the exclusive lock, where there is one. The disk must not be used afterwards.
    fn release(&self) {}
    /// `None`: a real disk, the committer is a thread. `Some(latency of one sync)`: the committer and all background
    /// work run as tasks on the caller's runtime, so that a seed replays.
    fn simulated(&self) -> Option<Duration> {
        None
    }
}

/// An open file.
#[allow(clippy::len_without_is_empty)] // a file of the log is never asked whether it is empty
pub trait DiskFile: Send + Sync + 'static {
    /// Writes all of `data` at `offset`.
    ///
    /// # Errors
    /// What the disk says; how much was written is then unknown.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Reads exactly `buf.len()` bytes.
    ///
    /// # Errors
    /// UnexpectedEof, or what the disk says.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// fdatasync. After an error the file must not be used again (PROTOCOL 28).
    ///
    /// # Errors
    /// What the disk says.
    fn sync(&self) -> io::Result<()>;
    /// Reserves space up to `len` and sets the length.
    ///
    /// # Errors
    /// What the disk says.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Length in bytes.
    ///
    /// # Errors
    /// What the disk says.
    fn len(&self) -> io::Result<u64>;
}
