//! One process of a node that is started again whenever it is found dead, as kubelet does with a container.

use super::namespace::Namespace;
use anyhow::{Result, ensure};
use fusefs_local_cluster::Child;
use parking_lot::Mutex;
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

/// How a process is started.
pub struct Wish<'a> {
    /// For messages and the log's name.
    pub name: &'a str,
    /// The binary.
    pub program: &'a Path,
    /// In which namespace.
    pub inside: Option<&'a Namespace>,
    /// After the program's name.
    pub arguments: Vec<String>,
    /// Directory of the log.
    pub dir: &'a Path,
}

/// The process.
pub struct Daemon {
    /// Name.
    pub name: String,
    child: Mutex<Child>,
    starts: AtomicU64,
}

impl Daemon {
    /// Describes it, with variables of its environment; [`Daemon::revive`] starts it.
    pub fn new(wish: Wish<'_>, env: &[(&str, &Path)]) -> Result<Daemon> {
        let mut words = wish.inside.map(Namespace::enter).unwrap_or_default();
        words.push(wish.program.display().to_string());
        words.extend(wish.arguments);
        let log = wish.dir.join(format!("{}.log", wish.name));
        let program = PathBuf::from(words.remove(0));
        let mut child = Child::new(wish.name, &program, words, None, &log)?;
        for (key, value) in env {
            child = child.env(key, &value.display().to_string());
        }
        Ok(Daemon { name: wish.name.into(), child: Mutex::new(child), starts: AtomicU64::new(0) })
    }

    /// Starts it when it does not run.
    pub fn revive(&self) -> Result<()> {
        let mut child = self.child.lock();
        if child.pid().is_some() && child.exited().is_none() {
            return Ok(());
        }
        child.kill(); // reaps
        self.starts.fetch_add(1, SeqCst);
        child.start()
    }

    /// SIGKILL, and not started again; its pid when it was running.
    pub fn kill(&self) -> Option<u32> {
        let mut child = self.child.lock();
        let pid = child.pid();
        if child.kill() { pid } else { None }
    }

    /// Times that it was started.
    pub fn starts(&self) -> u64 {
        self.starts.load(SeqCst)
    }

    /// Process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.lock().pid()
    }

    /// Open files.
    pub fn fds(&self) -> Result<usize> {
        let pid = self.pid();
        ensure!(pid.is_some(), "{} does not run", self.name);
        Ok(std::fs::read_dir(format!("/proc/{}/fd", pid.unwrap_or_default()))?.count())
    }

    /// Log file.
    pub fn log(&self) -> PathBuf {
        self.child.lock().log().to_owned()
    }

    /// Last lines of the log.
    pub fn log_tail(&self) -> String {
        self.child.lock().log_tail()
    }
}
