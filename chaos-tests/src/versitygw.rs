//! versitygw (Apache-2.0, Go): an S3 server that nobody here wrote, as a child process.

use crate::s3double::{credentials, record};
use anyhow::{Context, anyhow, bail};
use fusefs_types::cluster::{StoreCredentials, StoreRecord};
use std::{
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

const PAUSE: Duration = Duration::from_millis(20);
const TRIES: u32 = 750;

/// Bucket made at the start.
pub const BUCKET: &str = "fusefs";
/// How to get the binary.
pub const INSTALL: &str = "go install github.com/versity/versitygw/cmd/versitygw@latest";

/// A running server; killed when dropped.
pub struct Server {
    /// `http://127.0.0.1:port`
    pub endpoint: String,
    /// Root access key.
    pub access_key: String,
    /// Root secret key.
    pub secret_key: String,
    /// The process.
    pub child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

impl Server {
    /// Store record of this server.
    pub fn record(&self) -> StoreRecord {
        record(&self.endpoint, BUCKET)
    }
    /// Credentials of this server.
    pub fn credentials(&self) -> StoreCredentials {
        credentials(&self.access_key, &self.secret_key)
    }
}

/// Whether a missing binary may be skipped: not in CI.
pub fn may_skip() -> bool {
    std::env::var_os("CI").is_none()
}

/// The binary: $FUSEFS_VERSITYGW, PATH, $HOME/go/bin.
pub fn find() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FUSEFS_VERSITYGW") {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let go = std::env::var_os("HOME").map(|h| Path::new(&h).join("go/bin"));
    std::env::split_paths(&path).chain(go).map(|d| d.join("versitygw")).find(|p| p.is_file())
}

/// Starts it over `dir` (a file system with user xattrs) with the bucket [`BUCKET`] and waits until it listens. Blocks
/// the calling thread for a moment. The error names how to install it.
pub fn start(dir: &Path) -> anyhow::Result<Server> {
    let binary = find().with_context(|| format!("versitygw is not installed; to enable this suite: {INSTALL}"))?;
    std::fs::create_dir_all(dir.join(BUCKET)).with_context(|| dir.display().to_string())?; // a bucket is a directory
    let mut last = None;
    for _ in 0..5 {
        match try_start(&binary, dir) {
            Ok(s) => return Ok(s),
            Err(e) => last = Some(e), // somebody took the port between our look and its bind
        }
    }
    Err(last.unwrap_or_else(|| anyhow!("versitygw did not start")))
}

#[allow(clippy::disallowed_methods)] // a foreign process: no event tells that it listens
fn try_start(binary: &Path, dir: &Path) -> anyhow::Result<Server> {
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let (access_key, secret_key) = ("rootkey".to_string(), "rootsecret".to_string());
    let child = Command::new(binary)
        .env("ROOT_ACCESS_KEY", &access_key)
        .env("ROOT_SECRET_KEY", &secret_key)
        .args(["--port", &free.to_string(), "posix"])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| binary.display().to_string())?;
    let mut server = Server { endpoint: format!("http://{free}"), access_key, secret_key, child };
    for _ in 0..TRIES {
        if TcpStream::connect(free).is_ok() {
            return Ok(server);
        }
        if let Some(status) = server.child.try_wait()? {
            bail!("versitygw ended at once: {status}; run `{} --port {free} posix DIR`", binary.display());
        }
        std::thread::sleep(PAUSE);
    }
    bail!("versitygw does not listen after {:?}", PAUSE * TRIES)
}
