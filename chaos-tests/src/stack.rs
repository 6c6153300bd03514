//! A real deployment on loopback: masters, metanodes and clients as processes of the `fusefs` binary, file data in a real
//! S3 server. Everything it starts dies with it, and everything it mounts is unmounted.

use crate::versitygw;
use anyhow::{Context, Result, bail, ensure};
use fusefs_fuse_client::supervise::{self, Processes, dirs};
use fusefs_local_cluster::{Child, ClusterDir, ProcessCluster, Shape};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

/// Bucket that the stack creates.
pub const BUCKET: &str = "fusefs-test";

/// Journal of a supervised mount: small, so that tests meet its limits.
const TEST_JOURNAL_MIB: &str = "32";

/// The whole deployment.
pub struct Stack {
    /// Clients by name. First, so that they end before the servers.
    pub clients: Vec<Client>,
    /// Servers.
    pub servers: ProcessCluster,
    /// Ports, token, directories.
    pub dir: ClusterDir,
    /// Object store.
    pub s3: versitygw::Server,
    program: PathBuf,
    _tmp: tempfile::TempDir,
}

/// One mounted client process.
pub struct Client {
    /// The process.
    pub child: Child,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Whether it has a keeper; then it consists of three processes.
    pub supervised: bool,
}

/// The `fusefs` binary: `FUSEFS_BIN`, or beside the test binary's folder.
pub fn program() -> Result<PathBuf> {
    if let Ok(path) = std::env::var("FUSEFS_BIN") {
        return Ok(path.into());
    }
    let exe = std::env::current_exe()?;
    let path = exe.ancestors().nth(2).map(|d| d.join("fusefs")).filter(|p| p.exists());
    path.with_context(|| "the fusefs binary is not built; run: cargo build -p fusefs-cli")
}

/// Scratch space on a real disk (tmpfs would make fsync free).
pub fn scratch() -> Result<tempfile::TempDir> {
    let base = std::env::var("FUSEFS_TEST_DIR").map_or_else(|_| PathBuf::from("/var/tmp"), PathBuf::from);
    Ok(tempfile::Builder::new().prefix("fusefs-test-").tempdir_in(base)?)
}

impl Stack {
    /// Starts servers and the store, adds the store under the name `main`.
    pub fn start(shape: Shape) -> Result<Stack> {
        Stack::start_with(shape, &[])
    }

    /// The same with environment variables for every server (shortened graces and the like).
    pub fn start_with(shape: Shape, env: &[(&str, &str)]) -> Result<Stack> {
        Stack::start_behind(shape, env, |s3| Ok(s3.to_owned()))
    }

    /// The same with something between the cluster and the store: `front` gets the store's endpoint and answers the one
    /// that the cluster is told.
    pub fn start_behind(
        shape: Shape,
        env: &[(&str, &str)],
        front: impl FnOnce(&str) -> Result<String>,
    ) -> Result<Stack> {
        let tmp = scratch()?;
        let dir = ClusterDir::open(&tmp.path().join("cluster"), shape)?;
        let buckets = tmp.path().join("s3");
        std::fs::create_dir_all(buckets.join(BUCKET))?;
        let s3 = versitygw::start(&buckets)?;
        let mut all: Vec<(String, String)> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        all.push(("AWS_ACCESS_KEY_ID".into(), s3.access_key.clone()));
        all.push(("AWS_SECRET_ACCESS_KEY".into(), s3.secret_key.clone()));
        let program = program()?;
        let mut servers = ProcessCluster::new(&dir, &program, &all)?;
        servers.start()?;
        let stack = Stack { clients: Vec::new(), servers, dir, s3, program, _tmp: tmp };
        stack.fusefs(&["store", "add", "main", &format!("{}/{BUCKET}", front(&stack.s3.endpoint)?)])?;
        Ok(stack)
    }

    /// Folder of the bucket's objects on disk.
    pub fn bucket_dir(&self) -> PathBuf {
        self._tmp.path().join("s3").join(BUCKET)
    }

    /// Objects of volumes in the bucket: without marker files and without what a store's probe left, whose racing creates
    /// may be executed after the deletion that cleans up behind them.
    pub fn objects(&self) -> Result<Vec<String>> {
        let mut out = Vec::new();
        let root = self.bucket_dir();
        let mut stack = vec![root.clone()];
        while let Some(dir) = stack.pop() {
            for entry in std::fs::read_dir(&dir)? {
                let path = entry?.path();
                if path.is_dir() {
                    stack.push(path);
                } else {
                    let name = path.strip_prefix(&root)?.display().to_string();
                    let own = name.contains("marker") || name.starts_with("fusefs-probe/");
                    if !own && !name.starts_with('.') {
                        out.push(name);
                    }
                }
            }
        }
        out.sort();
        Ok(out)
    }

    /// Environment of a command-line call against this cluster.
    pub fn env(&self) -> [(&'static str, String); 2] {
        [
            ("FUSEFS_MASTER", self.dir.master_addrs().join(",")),
            ("FUSEFS_TOKEN_FILE", self.dir.token_file().display().to_string()),
        ]
    }

    /// Runs `fusefs ARGS`; its output whatever the result.
    pub fn fusefs_raw(&self, args: &[&str]) -> Result<Output> {
        Command::new(&self.program)
            .args(args)
            .envs(self.env())
            .output()
            .with_context(|| format!("running fusefs {args:?}"))
    }

    /// Runs `fusefs ARGS` and expects success; answers its standard output.
    pub fn fusefs(&self, args: &[&str]) -> Result<String> {
        let out = self.fusefs_raw(args)?;
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        ensure!(out.status.success(), "fusefs {} failed: {stderr}{stdout}", args.join(" "));
        Ok(stdout.into_owned())
    }

    /// Mounts `volume` with one process that takes its mount along when it is killed; answers the index in `clients`.
    pub fn mount(&mut self, volume: &str, options: &[&str]) -> Result<usize> {
        self.mount_as(volume, &[&["--no-keeper"], options].concat(), &[], false)
    }

    /// Mounts `volume` with keeper, supervisor and client, which inherit `env`.
    pub fn mount_supervised(&mut self, volume: &str, options: &[&str], env: &[(&str, &str)]) -> Result<usize> {
        let state = self._tmp.path().join(format!("state{}", self.clients.len())).display().to_string();
        let own = ["--state-dir", &state, "--journal-mib", TEST_JOURNAL_MIB];
        self.mount_as(volume, &[&own, options].concat(), env, true)
    }

    /// Directory of the journal of supervised mount `i`.
    pub fn state_dir(&self, i: usize) -> PathBuf {
        self._tmp.path().join(format!("state{i}"))
    }

    /// Scratch space of this deployment.
    pub fn tmp(&self) -> &Path {
        self._tmp.path()
    }

    /// The binary under test.
    pub fn program(&self) -> &Path {
        &self.program
    }

    fn mount_as(&mut self, volume: &str, options: &[&str], env: &[(&str, &str)], supervised: bool) -> Result<usize> {
        let n = self.clients.len();
        let mountpoint = self._tmp.path().join(format!("mnt{n}"));
        std::fs::create_dir_all(&mountpoint)?;
        let mut args =
            vec!["mount".into(), volume.into(), mountpoint.display().to_string(), "--exit-with-parent".into()];
        args.extend(options.iter().map(|s| (*s).to_owned()));
        let log = self.dir.root().join("log").join(format!("client-{n}.log"));
        let mut child = Child::new(&format!("client-{n}"), &self.program, args, None, &log)?;
        for (k, v) in self.env().iter().map(|(k, v)| (*k, v.as_str())).chain(env.iter().copied()) {
            child = child.env(k, v);
        }
        let mut client = Client { child, mountpoint, supervised };
        client.start()?;
        self.clients.push(client);
        Ok(n)
    }

    /// Mount point of client `i`.
    pub fn at(&self, i: usize) -> &Path {
        &self.clients[i].mountpoint
    }

    /// SIGKILL to every process of ours (the store lives on); how many were running.
    pub fn kill_everything(&mut self) -> usize {
        let clients = self.clients.iter_mut().map(Client::kill).filter(|k| *k).count();
        clients + self.servers.kill_all()
    }

    /// Starts the servers and clients again with cold caches.
    pub fn restart_everything(&mut self) -> Result<()> {
        self.servers.start()?;
        drop_caches();
        self.clients.iter_mut().try_for_each(Client::start)
    }
}

/// Drops the kernel's caches where we may.
pub fn drop_caches() {
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
}

impl Client {
    /// Starts it and waits until the mount serves.
    pub fn start(&mut self) -> Result<()> {
        let mountpoint = self.mountpoint.clone();
        self.child.start()?;
        self.child.wait_for(|| is_mounted(&mountpoint))
    }
    /// The processes of a supervised mount that run now.
    pub fn processes(&self) -> Processes {
        dirs::find(&self.mountpoint).last().map(|d| supervise::processes(d)).unwrap_or_default()
    }
    /// SIGKILL to everything that belongs to it, then the dead mount is detached.
    pub fn kill(&mut self) -> bool {
        if self.supervised {
            self.kill_family();
        }
        let killed = self.child.kill();
        detach(&self.mountpoint);
        killed
    }
    /// Keeper and supervisor start each other again, so both are stopped before they are killed.
    fn kill_family(&self) {
        for dir in dirs::find(&self.mountpoint) {
            let p = supervise::processes(&dir);
            for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
                for pid in [p.supervisor, p.keeper, p.client].into_iter().flatten() {
                    let _ = kill(Pid::from_raw(pid as i32), signal); // gone already
                }
            }
            let _ = std::fs::remove_dir_all(&dir); // only sockets without an owner
        }
    }
    /// Clean end: everything flushed, unmounted.
    pub fn stop(&mut self) -> Result<()> {
        match self.child.stop() {
            Some(status) if status.success() => {}
            other => bail!("{} ended with {other:?}: {}", self.child.name(), self.child.log_tail()),
        }
        ensure!(!is_mounted(&self.mountpoint), "{} is still mounted", self.mountpoint.display());
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.kill();
        // A mount that was killed leaves the directory underneath unwritable.
        let _ = fusefs_fuse_client::fuse::device::set_immutable(&self.mountpoint, false);
    }
}

/// Whether mountinfo names `path` as a fuse mount. Never touches the mount itself.
pub fn is_mounted(path: &Path) -> bool {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().any(|l| l.split(' ').nth(4) == path.to_str() && l.contains(" - fuse"))
}

fn detach(path: &Path) {
    while is_mounted(path) {
        if nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).is_err() {
            return;
        }
    }
}

/// Runs a program and expects success.
pub fn sh(dir: &Path, program: &str, args: &[&str]) -> Result<String> {
    let out =
        Command::new(program).args(args).current_dir(dir).output().with_context(|| format!("running {program}"))?;
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    ensure!(
        out.status.success(),
        "{program} {args:?} in {} failed ({}):\n{}{}",
        dir.display(),
        out.status,
        text(&out.stdout),
        text(&out.stderr)
    );
    Ok(text(&out.stdout))
}

/// Polls `check` until it answers true or `limit` passes; the reason of the last failure is reported.
#[allow(clippy::disallowed_methods)] // another process has no event to wait for
pub fn eventually(limit: Duration, mut check: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = std::time::Instant::now();
    loop {
        match check() {
            Ok(true) => return Ok(()),
            Ok(false) if start.elapsed() > limit => bail!("not true within {limit:?}"),
            Err(e) if start.elapsed() > limit => return Err(e.context(format!("not true within {limit:?}"))),
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
