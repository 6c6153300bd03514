//! Named steps of a client's start, and the way for tests to die at each of them.
//!
//! `FUSEFS_DIE_AT=STEP` makes the process SIGKILL itself when it reaches that step. `FUSEFS_DIE_FILE=PATH` bounds that and
//! can change while the mount lives: the file holds `COUNT` or `STEP COUNT`; every death takes one off the count, and with
//! 0 (or no such file) nobody dies.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::path::{Path, PathBuf};

/// A point of the start; "after" it, in the order of PROTOCOL 41.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The process runs.
    Started,
    /// It has the journal's lock: the previous client is dead.
    Locked,
    /// It has everything from the keeper.
    Fds,
    /// INIT is answered, or its record parsed.
    Init,
    /// The journal's header names the new incarnation.
    Incarnation,
    /// The cluster granted the session.
    Session,
    /// The journal's index is rebuilt.
    Index,
    /// Requests come: those that the previous client had read are asked for again.
    Resend,
    /// The supervisor knows.
    Serving,
}

/// All of them in order.
pub const STEPS: [Step; 9] = [
    Step::Started,
    Step::Locked,
    Step::Fds,
    Step::Init,
    Step::Incarnation,
    Step::Session,
    Step::Index,
    Step::Resend,
    Step::Serving,
];

impl Step {
    /// Name in `FUSEFS_DIE_AT`.
    pub fn name(self) -> &'static str {
        match self {
            Step::Started => "started",
            Step::Locked => "locked",
            Step::Fds => "fds",
            Step::Init => "init",
            Step::Incarnation => "incarnation",
            Step::Session => "session",
            Step::Index => "index",
            Step::Resend => "resend",
            Step::Serving => "serving",
        }
    }
}

/// Where this process is to die.
#[derive(Clone, Debug, Default)]
pub struct Steps {
    at: Option<String>,
    file: Option<PathBuf>,
}

impl Steps {
    /// From the environment.
    pub fn from_env() -> Steps {
        Steps { at: std::env::var("FUSEFS_DIE_AT").ok(), file: std::env::var_os("FUSEFS_DIE_FILE").map(PathBuf::from) }
    }

    /// The process got this far.
    pub fn reached(&self, step: Step) {
        tracing::debug!(step = step.name(), "client start");
        if self.at.is_none() && self.file.is_none() {
            return;
        }
        let dies = match &self.file {
            Some(file) => take_one(file, step, self.at.as_deref()),
            None => self.at.as_deref() == Some(step.name()),
        };
        if dies {
            let _ = kill(Pid::this(), Signal::SIGKILL); // does not return
        }
    }
}

/// Whether the file asks for a death here; takes it off the count.
fn take_one(file: &Path, step: Step, default: Option<&str>) -> bool {
    let Ok(text) = std::fs::read_to_string(file) else { return false };
    let mut words = text.split_whitespace().rev();
    let count = words.next().and_then(|w| w.parse::<u64>().ok()).unwrap_or(0);
    let named = words.next();
    if count == 0 || named.or(default) != Some(step.name()) {
        return false;
    }
    let left = count - 1;
    let text = named.map_or_else(|| left.to_string(), |s| format!("{s} {left}"));
    std::fs::write(file, text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_counts_deaths_down() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("die");
        assert!(!take_one(&file, Step::Init, Some("init")));
        std::fs::write(&file, "2").unwrap();
        assert!(!take_one(&file, Step::Fds, Some("init")));
        assert!(take_one(&file, Step::Init, Some("init")));
        assert!(take_one(&file, Step::Init, Some("init")));
        assert!(!take_one(&file, Step::Init, Some("init")));
        std::fs::write(&file, "session 1\n").unwrap();
        assert!(!take_one(&file, Step::Init, Some("init")));
        assert!(take_one(&file, Step::Session, Some("init")));
        assert!(!take_one(&file, Step::Session, Some("init")));
    }
}
