//! One `fusefs csi` process.

use super::namespace::Namespace;
use anyhow::{Result, ensure};
use fusefs_local_cluster::Child;
use fusefs_proto::csi::{ProbeRequest, identity_client::IdentityClient};
use parking_lot::Mutex;
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};
use tonic::{Code, Status, transport::Channel};

/// How a plugin is started.
pub struct Wish<'a> {
    /// For messages.
    pub name: &'a str,
    /// The binary.
    pub program: &'a Path,
    /// In which namespace.
    pub inside: Option<&'a Namespace>,
    /// Of `fusefs csi`.
    pub arguments: Vec<String>,
    /// Directory of socket and log.
    pub dir: &'a Path,
}

/// A plugin; started again whenever it is found dead, as kubelet does with a container.
pub struct Plugin {
    /// Name.
    pub name: String,
    child: Mutex<Child>,
    socket: PathBuf,
    kill_file: PathBuf,
    starts: AtomicU64,
}

impl Plugin {
    /// Describes and starts it.
    pub fn start(wish: Wish<'_>) -> Result<Plugin> {
        let socket = wish.dir.join(format!("{}.sock", wish.name));
        let kill_file = wish.dir.join(format!("{}.kill", wish.name));
        let mut words = wish.inside.map(Namespace::enter).unwrap_or_default();
        words.extend([wish.program.display().to_string(), "csi".into()]);
        words.extend(["--endpoint".into(), format!("unix://{}", socket.display())]);
        words.extend(wish.arguments);
        let log = wish.dir.join(format!("{}.log", wish.name));
        let program = PathBuf::from(words.remove(0));
        let child = Child::new(wish.name, &program, words, None, &log)?;
        let child = child.env("FUSEFS_CSI_KILL_FILE", &kill_file.display().to_string());
        let plugin =
            Plugin { name: wish.name.into(), child: Mutex::new(child), socket, kill_file, starts: AtomicU64::new(0) };
        plugin.revive()?;
        Ok(plugin)
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

    /// The next process that reaches this step dies.
    pub fn die_at(&self, step: &str) -> Result<()> {
        let fresh = self.kill_file.with_extension("new");
        std::fs::write(&fresh, step)?;
        Ok(std::fs::rename(fresh, &self.kill_file)?)
    }

    /// Whether the death that was asked for is still to come.
    pub fn armed(&self) -> bool {
        self.kill_file.exists()
    }

    /// No death is asked for any more.
    pub fn disarm(&self) {
        let _ = std::fs::remove_file(&self.kill_file); // it may have died already
    }

    /// A connection.
    pub async fn connect(&self) -> Result<Channel, Status> {
        let uri = format!("unix://{}", self.socket.display());
        let endpoint =
            tonic::transport::Endpoint::from_shared(uri).map_err(|e| Status::new(Code::Internal, e.to_string()))?;
        endpoint.connect().await.map_err(|e| Status::unavailable(format!("no connection: {e}")))
    }

    /// Whether it answers Probe.
    pub async fn answers(&self) -> bool {
        let Ok(channel) = self.connect().await else { return false };
        IdentityClient::new(channel).probe(ProbeRequest {}).await.is_ok()
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
