//! A mount of three processes (supervisor, keeper, client) as the nemesis and the scenarios use it.

use super::{
    nemesis::{Counters, Mount, Role, pause},
    now_ns,
};
use crate::stack::{Stack, is_mounted};
use anyhow::{Context, Result, bail, ensure};
use fusefs_fuse_client::{
    fuse::Unmounter,
    keeper::Channel,
    supervise::{ClientRecord, Phase, dirs, names, processes},
};
use fusefs_local_cluster::Child;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a start or a clean end may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A mount and how to make it again.
pub struct Mounted {
    /// Mount point.
    pub point: PathBuf,
    folder: PathBuf,
    child: Child,
    metrics: Vec<String>,
}

impl Mounted {
    /// Describes a mount of `volume` at `<stack>/NAME`, with its state beside it. `options` and `env` are the mount
    /// command's.
    pub fn new(stack: &Stack, volume: &str, name: &str, options: &[&str], env: &[(&str, &str)]) -> Result<Mounted> {
        let folder = stack.tmp().join(format!("{name}.state"));
        let point = stack.tmp().join(name);
        fs::create_dir_all(&point)?;
        fs::create_dir_all(folder.join("stats"))?;
        let mut args = vec!["mount".into(), volume.into(), point.display().to_string(), "--exit-with-parent".into()];
        args.extend(["--state-dir".into(), folder.join("journal").display().to_string()]);
        if let Ok(filter) = std::env::var("FUSEFS_REPLAY_LOG") {
            args.extend(["--log".into(), filter]);
        }
        args.extend(options.iter().map(|s| (*s).to_owned()));
        let mut child =
            Child::new(name, stack.program(), args, None, &stack.dir.root().join(format!("log/{name}.log")))?;
        for (key, value) in stack.env() {
            child = child.env(key, &value);
        }
        child = child.env("FUSEFS_DIE_FILE", &folder.join("die").display().to_string());
        child = child.env("FUSEFS_STATS_DIR", &folder.join("stats").display().to_string());
        for (key, value) in env {
            child = child.env(key, value);
        }
        Ok(Mounted { point, folder, child, metrics: stack.dir.metanode_addrs() })
    }
    /// Mounts and waits until it serves.
    pub fn start(&mut self) -> Result<()> {
        let (point, folder) = (self.point.clone(), self.folder.clone());
        for counters in fs::read_dir(folder.join("stats"))? {
            fs::remove_file(counters?.path())?; // of the mount before
        }
        self.child.start()?;
        self.child.wait_for(|| is_mounted(&point) && serving(&folder))
    }
    /// Clean unmount: everything is flushed and every process has ended.
    pub fn stop(&mut self) -> Result<()> {
        let runtime = self.runtime();
        Unmounter::new(&self.point).unmount().with_context(|| format!("unmounting {}", self.point.display()))?;
        let start = now_ns();
        while let Some(runtime) = &runtime
            && processes(runtime) != fusefs_fuse_client::supervise::Processes::default()
        {
            ensure!(
                now_ns() - start < PATIENCE.as_nanos() as u64,
                "processes {:?} are left {PATIENCE:?} after the unmount; log:\n{}",
                processes(runtime),
                self.log_tail()
            );
            pause(Duration::from_millis(5));
        }
        self.child.kill(); // reaps it; the last supervisor may be another process
        Ok(())
    }
    /// Unmounts and mounts again, with cold caches.
    pub fn again(&mut self) -> Result<()> {
        self.stop()?;
        crate::stack::drop_caches();
        self.start()
    }
    /// Last lines of the log of all its processes.
    pub fn log_tail(&self) -> String {
        self.child.log_tail()
    }
    /// Log file.
    pub fn log(&self) -> &Path {
        self.child.log()
    }
    /// Directory of sockets; None when nobody is there at this moment.
    pub fn runtime(&self) -> Option<PathBuf> {
        dirs::find(&self.point).pop()
    }
    /// The next clients die `count` times after the named step of their start.
    pub fn die_at(&self, step: &str, count: u64) -> Result<()> {
        Ok(fs::write(self.folder.join("die"), format!("{step} {count}"))?)
    }
    /// Deaths of [`Mounted::die_at`] that are still to come.
    pub fn deaths_left(&self) -> u64 {
        let text = fs::read_to_string(self.folder.join("die")).unwrap_or_default();
        text.split_whitespace().last().and_then(|n| n.parse().ok()).unwrap_or(0)
    }
    /// Number of the kernel connection in /sys/fs/fuse/connections.
    fn connection(&self) -> Option<String> {
        let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let line = text.lines().find(|l| l.split(' ').nth(4) == self.point.to_str())?;
        Some(line.split(' ').nth(2)?.split(':').nth(1)?.to_owned())
    }
}

/// Whether a client has told that it serves.
fn serving(folder: &Path) -> bool {
    fs::read_dir(folder.join("stats")).is_ok_and(|mut d| d.next().is_some())
}

impl Drop for Mounted {
    /// Whatever state it is in: applications are released, processes end, the mount goes.
    fn drop(&mut self) {
        if let Some(n) = self.connection() {
            let _ = fs::write(format!("/sys/fs/fuse/connections/{n}/abort"), "1"); // root only
        }
        while is_mounted(&self.point) {
            if nix::mount::umount2(&self.point, nix::mount::MntFlags::MNT_DETACH).is_err() {
                break;
            }
        }
        for _ in 0..20 {
            let Some(runtime) = self.runtime() else { break };
            let p = processes(&runtime);
            // Stopped first, so that none starts another again.
            for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
                for pid in [p.supervisor, p.keeper, p.client].into_iter().flatten() {
                    let _ = kill(Pid::from_raw(pid as i32), signal); // it may have ended
                }
            }
            pause(Duration::from_millis(20));
        }
        self.child.kill();
    }
}

impl Mount for Mounted {
    fn pid(&self, role: Role) -> Option<u32> {
        let p = processes(&self.runtime()?);
        match role {
            Role::Client => p.client,
            Role::Keeper => p.keeper,
            Role::Supervisor => p.supervisor,
        }
    }
    fn serving(&self) -> Option<u32> {
        let ask = |path: &Path| Channel::connect(path).ok()?.get(names::CLIENT).ok()?;
        let runtime = self.runtime()?;
        let item = ask(&dirs::keeper_socket(&runtime)).or_else(|| ask(&dirs::supervisor_socket(&runtime)))?;
        let record = ClientRecord::decode(&item.bytes)?;
        (record.phase != Phase::Starting && record.alive()).then_some(record.pid)
    }
    fn counters(&self) -> Result<Counters> {
        // A file of lines `NAME VALUE` for each client process.
        let (mut sums, mut clients) = (BTreeMap::<String, u64>::new(), 0);
        for file in fs::read_dir(self.folder.join("stats"))? {
            clients += 1;
            for line in fs::read_to_string(file?.path())?.lines() {
                if let Some((name, value)) = line.split_once(' ') {
                    *sums.entry(name.into()).or_default() += value.parse::<u64>().unwrap_or(0);
                }
            }
        }
        let sum = |name: &str| sums.get(name).copied().unwrap_or(0);
        Ok(Counters {
            clients,
            requests: sum("requests"),
            resent: sum("resent"),
            reserved: sum("reserved") + sum("rewritten"),
            replayed: sum("journal_writes") + sum("journal_intents"),
            repeated: self
                .metrics
                .iter()
                .filter_map(|a| metric(a, "fusefs_replies_repeated_total").ok())
                .max()
                .unwrap_or(0),
        })
    }
}

/// Sum of a metric over its labels, from a metanode's `/metrics`.
pub fn metric(addr: &str, name: &str) -> Result<u64> {
    let text = http_get(addr, "/metrics")?;
    let values = text.lines().filter(|l| l.starts_with(name) && l.contains('{'));
    Ok(values.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64)
}

/// GET over plain HTTP/1.1.
pub fn http_get(addr: &str, path: &str) -> Result<String> {
    http(addr, "GET", path, "")
}

/// A request without a body; `headers` are whole lines.
pub fn http(addr: &str, method: &str, path: &str, headers: &str) -> Result<String> {
    let mut s = TcpStream::connect(addr)?;
    s.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(s, "{method} {path} HTTP/1.1\r\nHost: fusefs\r\nConnection: close\r\n{headers}\r\n")?;
    let mut text = String::new();
    s.read_to_string(&mut text)?;
    if !text.starts_with("HTTP/1.1 2") {
        bail!("{method} {path} at {addr}: {}", text.lines().next().unwrap_or("no answer"));
    }
    Ok(text)
}
