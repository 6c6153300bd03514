//! The jobs' only way to the file system. Calls are raw: no retry after `EINTR`, no loop after a short read or write.

mod dirs;
mod files;
mod locks;
mod map;

pub use files::{Aligned, Mtime, mtime, nlink};
pub use map::Map;

use super::{
    now_ns,
    plant::Plant,
    record::{InFlight, Kind, Latency, Recorder, Slot},
};
use rustix::io::Errno;
use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A planted corruption strikes every this many calls that it could strike.
const PLANT_EVERY: u64 = 7;

/// Something went wrong and is recorded; the step ends.
#[derive(Clone, Copy, Debug)]
pub struct Trouble;

/// Result of a step or a part of it.
pub type Step<T = ()> = Result<T, Trouble>;

/// An open file and its path at the time of the open.
#[derive(Debug)]
pub struct Fd {
    fd: OwnedFd,
    /// For messages.
    pub path: PathBuf,
    written: bool,
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One thread's access.
pub struct Io {
    recorder: Arc<Recorder>,
    slot: Slot,
    job: String,
    step: u64,
    latency: BTreeMap<&'static str, Latency>,
    answers: Vec<u64>,
    plant: Option<Plant>,
    chances: u64,
    stash: Option<(PathBuf, u64, Vec<u8>)>,
}

impl Drop for Io {
    fn drop(&mut self) {
        let kind = self.job.trim_end_matches(|c: char| c.is_ascii_digit());
        self.recorder.absorb(kind, self.step, &self.latency, &self.answers);
    }
}

impl Io {
    /// For the thread that runs `job`.
    pub fn new(recorder: &Arc<Recorder>, job: &str, plant: Option<Plant>) -> Io {
        Io {
            recorder: recorder.clone(),
            slot: recorder.slot(),
            job: job.into(),
            step: 0,
            latency: BTreeMap::new(),
            answers: Vec::new(),
            plant,
            chances: 0,
            stash: None,
        }
    }
    /// Counts a step.
    pub fn next_step(&mut self) {
        self.step += 1;
    }
    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.step
    }
    /// Whether the planted corruption is `plant` and strikes now.
    fn strikes(&mut self, plant: Plant) -> bool {
        if self.plant != Some(plant) {
            return false;
        }
        self.chances += 1;
        self.chances.is_multiple_of(PLANT_EVERY)
    }
    /// Runs one call with its time taken.
    fn call<T>(
        &mut self,
        call: &'static str,
        path: &Path,
        wait: bool,
        f: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let start = now_ns();
        *self.slot.lock() = Some(InFlight {
            job: self.job.clone(),
            step: self.step,
            call,
            path: path.display().to_string(),
            since_ns: start,
        });
        let result = f();
        let end = now_ns();
        *self.slot.lock() = None;
        self.latency.entry(call).or_default().add((end - start) / 1000);
        self.recorder.slow(call, start, end, wait);
        if Recorder::is_served(call) {
            self.answers.push(end);
        }
        result
    }
    /// As `call`; any errno is a recorded error.
    fn ok<T>(&mut self, call: &'static str, path: &Path, f: impl FnOnce() -> Result<T, Errno>) -> Step<T> {
        let result = self.call(call, path, false, f);
        result.map_err(|e| self.error(call, path, e))
    }
    /// The call must fail with `want`.
    fn refused<T>(
        &mut self,
        call: &'static str,
        path: &Path,
        want: Errno,
        f: impl FnOnce() -> Result<T, Errno>,
    ) -> Step {
        match self.call(call, path, false, f) {
            Err(e) if e == want => Ok(()),
            Err(e) => Err(self.error(call, path, e)),
            Ok(_) => Err(self.mismatch(call, path, format!("worked, but {} was due", name(want)))),
        }
    }
    fn error(&mut self, call: &'static str, path: &Path, e: Errno) -> Trouble {
        self.recorder.problem(Kind::Error, &self.job, self.step, call, path, name(e));
        Trouble
    }
    /// Records a wrong result.
    pub fn mismatch(&mut self, what: &str, path: &Path, detail: String) -> Trouble {
        self.recorder.problem(Kind::Mismatch, &self.job, self.step, what, path, detail);
        Trouble
    }
    /// `have` must be `want`; `offset` is where both begin in the file.
    pub fn same(&mut self, what: &str, path: &Path, offset: u64, want: &[u8], have: &[u8]) -> Step {
        match difference(want, have, offset) {
            None => Ok(()),
            Some(words) => Err(self.mismatch(what, path, words)),
        }
    }
    /// `have` must be `want`.
    pub fn equal<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, path: &Path, want: T, have: T) -> Step {
        if want == have {
            return Ok(());
        }
        Err(self.mismatch(what, path, format!("wanted {want:?}, have {have:?}")))
    }
}

/// `ENOENT` and so on.
pub fn name(e: Errno) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(e.raw_os_error()))
}

/// Where two byte strings differ, in words.
pub fn difference(want: &[u8], have: &[u8], offset: u64) -> Option<String> {
    if want == have {
        return None;
    }
    let both = want.iter().zip(have);
    let wrong = both.clone().filter(|(a, b)| a != b).count();
    let first = both.clone().position(|(a, b)| a != b);
    let zeros = both.clone().filter(|(a, b)| a != b && **b == 0).count();
    let last = both.enumerate().rfind(|(_, (a, b))| a != b).map(|(i, _)| offset + i as u64);
    let place = first.map_or_else(String::new, |i| {
        let end = (i + 8).min(want.len()).min(have.len());
        let span = (offset + i as u64, last.unwrap_or_default());
        format!(
            ", {wrong} bytes differ ({zeros} are 0) from {} to {}: wanted {:02x?}, have {:02x?}",
            span.0,
            span.1,
            &want[i..end],
            &have[i..end]
        )
    });
    Some(format!("wanted {} bytes at {offset}, have {}{place}", want.len(), have.len()))
}
