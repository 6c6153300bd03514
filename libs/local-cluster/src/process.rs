//! Roles as child processes of the `fusefs` binary. A child ends when its standard input closes, so none outlives its
//! parent, whatever kills the parent.

use crate::dir::ClusterDir;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child as StdChild, Command, ExitStatus, Stdio},
    time::Duration,
};

/// How long a server may take to answer `/readyz`... a fresh 3-node cluster needs about a second.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// One child process and how to start it again.
pub struct Child {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    addr: Option<SocketAddr>,
    log: PathBuf,
    child: Option<StdChild>,
}

impl Child {
    /// Describes a child; `addr` is where it serves `/healthz`, if it does.
    pub fn new(name: &str, program: &Path, args: Vec<String>, addr: Option<&str>, log: &Path) -> Result<Child> {
        let addr = addr.map(|a| a.parse().with_context(|| format!("address {a}"))).transpose()?;
        Ok(Child {
            name: name.into(),
            program: program.into(),
            args,
            env: Vec::new(),
            addr,
            log: log.into(),
            child: None,
        })
    }
    /// Adds an environment variable for the next start.
    pub fn env(mut self, key: &str, value: &str) -> Child {
        self.env.push((key.into(), value.into()));
        self
    }
    /// Name for messages.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Log file.
    pub fn log(&self) -> &Path {
        &self.log
    }
    /// Process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(StdChild::id)
    }
    /// Starts it; output is appended to the log file.
    pub fn start(&mut self) -> Result<()> {
        let out = File::options().create(true).append(true).open(&self.log)?;
        let child = Command::new(&self.program)
            .args(&self.args)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::piped())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("starting {} ({})", self.name, self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }
    /// Waits until it answers GET `path` with 200.
    pub fn wait_http(&mut self, path: &str) -> Result<()> {
        let Some(addr) = self.addr else { return Ok(()) };
        self.wait_for(|| http_ok(addr, path))
    }
    /// Waits until `ready`, the process ends, or [`START_TIMEOUT`].
    #[allow(clippy::disallowed_methods)] // another process has no event to wait for
    pub fn wait_for(&mut self, ready: impl Fn() -> bool) -> Result<()> {
        let start = std::time::Instant::now();
        while !ready() {
            if let Some(status) = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten()) {
                bail!(
                    "{} ended at start ({status}); its log {} ends with:\n{}",
                    self.name,
                    self.log.display(),
                    self.log_tail()
                );
            }
            if start.elapsed() > START_TIMEOUT {
                bail!(
                    "{} is not ready after {START_TIMEOUT:?}; its log {} ends with:\n{}",
                    self.name,
                    self.log.display(),
                    self.log_tail()
                );
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
    /// Last lines of the log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = self.pid() else { bail!("{} does not run", self.name) };
        kill(Pid::from_raw(pid as i32), signal)?;
        Ok(())
    }
    /// SIGKILL and reap. True when it was running, so that tests can count kills that happened.
    pub fn kill(&mut self) -> bool {
        let Some(mut child) = self.child.take() else { return false };
        let running = matches!(child.try_wait(), Ok(None));
        let _ = child.kill();
        let _ = child.wait();
        running
    }
    /// Closes its standard input and waits for the end.
    pub fn stop(&mut self) -> Option<ExitStatus> {
        let mut child = self.child.take()?;
        drop(child.stdin.take());
        child.wait().ok()
    }
    /// Exit status if it has ended by itself.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|c| c.try_wait().ok().flatten())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// GET over plain HTTP/1.1; true for a 200.
pub fn http_ok(addr: SocketAddr, path: &str) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut s = TcpStream::connect_timeout(&addr, Duration::from_millis(500))?;
        s.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(s, "GET {path} HTTP/1.1\r\nHost: fusefs\r\nConnection: close\r\n\r\n")?;
        let mut head = [0; 12];
        s.read_exact(&mut head)?;
        Ok(&head[9..12] == b"200")
    };
    ask().unwrap_or(false)
}

/// Masters and metanodes as processes.
pub struct ProcessCluster {
    /// Masters.
    pub masters: Vec<Child>,
    /// Metanodes.
    pub metanodes: Vec<Child>,
}

impl ProcessCluster {
    /// Describes the servers of `dir`; `program` is the `fusefs` binary; logs go to `DIR/log/`.
    pub fn new(dir: &ClusterDir, program: &Path, extra: &[(String, String)]) -> Result<ProcessCluster> {
        let log = dir.root().join("log");
        std::fs::create_dir_all(&log)?;
        let (masters, nodes) = (dir.master_addrs(), dir.metanode_addrs());
        let token = dir.token_file().display().to_string();
        let common = |role: &str, addr: &str, data: PathBuf| -> Vec<String> {
            [
                role,
                "--listen",
                addr,
                "--data-dir",
                &data.display().to_string(),
                "--token-file",
                &token,
                "--exit-with-parent",
            ]
            .map(String::from)
            .to_vec()
        };
        let make = |role: &str, i: usize, addr: &str, data: PathBuf, peers: [String; 2]| -> Result<Child> {
            let mut args = common(role, addr, data);
            args.extend(peers);
            let name = format!("{role}-{i}");
            let mut child = Child::new(&name, program, args, Some(addr), &log.join(format!("{name}.log")))?;
            child.env = extra.to_vec();
            Ok(child)
        };
        let masters_arg = masters.join(",");
        Ok(ProcessCluster {
            masters: masters
                .iter()
                .enumerate()
                .map(|(i, a)| make("master", i, a, dir.master_dir(i), ["--peers".into(), masters_arg.clone()]))
                .collect::<Result<_>>()?,
            metanodes: nodes
                .iter()
                .enumerate()
                .map(|(i, a)| make("metanode", i, a, dir.metanode_dir(i), ["--master".into(), masters_arg.clone()]))
                .collect::<Result<_>>()?,
        })
    }
    /// Starts all and waits until each is ready.
    pub fn start(&mut self) -> Result<()> {
        for c in self.all() {
            c.start()?;
        }
        for c in self.all() {
            c.wait_http("/readyz")?;
        }
        Ok(())
    }
    /// Every child.
    pub fn all(&mut self) -> impl Iterator<Item = &mut Child> {
        self.masters.iter_mut().chain(self.metanodes.iter_mut())
    }
    /// SIGKILL to everything; how many were running.
    pub fn kill_all(&mut self) -> usize {
        self.all().map(Child::kill).filter(|k| *k).count()
    }
    /// Clean stop: metanodes first.
    pub fn stop(&mut self) {
        for c in self.metanodes.iter_mut().chain(self.masters.iter_mut()) {
            c.stop();
        }
    }
}
