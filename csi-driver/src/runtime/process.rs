//! Runtime `process`: each mount is a supervised `fusefs mount` on this machine, with keeper and journal. Its processes are
//! in a process group of their own and do not depend on the plugin; a restarted plugin finds the mount in mountinfo.
//!
//! The command line carries addresses, the path of the token file and checked options; no secret is in it or in the
//! environment, which is not inherited.

use super::{MountSpec, MountTokens, Runtime, RuntimeStatus, Unstaged};
use crate::node::io_fault;
use crate::node::mounts::Mounts;
use crate::{Fault, Outcome, step::step};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::{
    collections::HashSet,
    ffi::OsString,
    fs::DirBuilder,
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    time::Instant,
};

/// Variables that a mount's processes get from the plugin.
const ENVIRONMENT: &[&str] = &["PATH", "FUSEFS_LOG", "FUSEFS_LOG_JSON", "RUST_BACKTRACE"];
/// What a failed command may say in a fault.
const MESSAGE_BYTES_MAX: usize = 1024;
/// What is read of a command's messages.
const OUTPUT_BYTES_MAX: u64 = 64 << 10;
/// Mount token in a state directory.
const TOKEN_FILE: &str = "mount-token";
/// Between two looks whether a mount's processes are gone.
const LOOK: Duration = Duration::from_millis(50);
/// Files of a state directory that hold data: the journal, and journals that were put aside.
const DATA_PREFIXES: &[&str] = &["journal.", "parked-"];
/// A lazy unmount does not wait for anybody.
const DETACH_PATIENCE: Duration = Duration::from_secs(10);

/// Settings of the runtime.
#[derive(Clone, Debug)]
pub struct ProcessSettings {
    /// The binary `fusefs`.
    pub binary: PathBuf,
    /// Addresses of the masters.
    pub masters: Vec<String>,
    /// File with the cluster token.
    pub token_file: Option<PathBuf>,
    /// Journals go below it, one directory per volume.
    pub state_dir: PathBuf,
    /// How long a mount may take to serve (kubelet gives up after 120 s and comes again).
    pub start_timeout: Duration,
    /// Size of a journal, in MiB; None = the mount's default.
    pub journal_mib: Option<u64>,
}

/// Starts `fusefs mount`.
pub struct ProcessRuntime {
    settings: ProcessSettings,
    tokens: Option<MountTokens>,
    /// State directories that belonged to nobody at the last look.
    suspects: Mutex<HashSet<String>>,
}

impl ProcessRuntime {
    /// Makes the directory of the journals (mode 0700).
    pub fn new(settings: ProcessSettings) -> io::Result<ProcessRuntime> {
        DirBuilder::new().recursive(true).mode(0o700).create(&settings.state_dir)?;
        std::fs::set_permissions(&settings.state_dir, std::fs::Permissions::from_mode(0o700))?;
        Ok(ProcessRuntime { settings, tokens: None, suspects: Mutex::default() })
    }

    /// Mounts get a token of their own; only those without an attach generation still get the cluster token.
    pub fn with_tokens(self, tokens: MountTokens) -> ProcessRuntime {
        ProcessRuntime { tokens: Some(tokens), ..self }
    }

    /// File with the mount token of a volume.
    fn token_file(&self, spec: &MountSpec) -> PathBuf {
        self.journal(spec).join(TOKEN_FILE)
    }

    fn journal(&self, spec: &MountSpec) -> PathBuf {
        self.settings.state_dir.join(&spec.key)
    }

    /// Arguments of `fusefs` for a mount.
    fn mount_arguments(&self, spec: &MountSpec, own_token: bool) -> Vec<OsString> {
        let s = &self.settings;
        let mut out: Vec<OsString> = vec!["mount".into(), "--background".into(), "--allow-other".into()];
        out.extend(["--master".into(), s.masters.join(",").into()]);
        if own_token {
            out.extend(["--mount-token-file".into(), self.token_file(spec).into_os_string()]);
        } else if let Some(file) = &s.token_file {
            out.extend(["--token-file".into(), file.clone().into_os_string()]);
        }
        out.extend(["--state-dir".into(), self.journal(spec).into_os_string()]);
        let chosen = spec.options.arguments.iter().any(|a| a.starts_with("--journal-mib="));
        if let Some(mib) = s.journal_mib.filter(|_| !chosen) {
            out.extend(["--journal-mib".into(), mib.to_string().into()]);
        }
        if spec.generation > 0 {
            out.push(format!("--attach-generation={}", spec.generation).into());
        }
        if spec.read_only {
            out.push("--read-only".into());
        }
        out.extend(spec.options.arguments.iter().map(OsString::from));
        out.extend(["--".into(), spec.name.clone().into(), spec.staging.clone().into_os_string()]);
        out
    }

    /// Runs `fusefs`; None when it did not end in time (then it runs on when `leave`, otherwise it is killed).
    async fn fusefs(&self, arguments: Vec<OsString>, patience: Duration, leave: bool) -> io::Result<Option<Ended>> {
        let mut child = Command::new(&self.settings.binary)
            .args(arguments)
            .env_clear()
            .envs(ENVIRONMENT.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(!leave)
            .spawn()?;
        step(if leave { "node.mount.started" } else { "node.unstage.started" });
        let stderr = child.stderr.take();
        let said = async {
            let (text, status) = tokio::join!(text_of(stderr), child.wait());
            Ok::<_, io::Error>(Ended { status: status?, text })
        };
        tokio::time::timeout(patience, said).await.ok().transpose()
    }

    /// After a regular unmount: once its processes are gone the mount has removed its journal, unless something is left.
    async fn ended(&self, spec: &MountSpec, patience: Duration) -> Unstaged {
        let dir = self.journal(spec);
        let gone = async {
            let mut looks = tokio::time::interval(LOOK); // nothing tells when a lock is let go
            loop {
                looks.tick().await;
                if self.status(spec).await != RuntimeStatus::Running {
                    return;
                }
            }
        };
        if tokio::time::timeout(patience, gone).await.is_err() {
            return Unstaged::Parked(format!("unmounted, but still at work in {}", dir.display()));
        }
        match left(&dir) {
            Ok(false) => Unstaged::Flushed,
            Ok(true) => Unstaged::Parked(format!("what is not in the object store is in {}", dir.display())),
            Err(e) => Unstaged::Parked(format!("{} cannot be looked at: {e}", dir.display())),
        }
    }

    async fn detach(&self, staging: &Path, why: &str, spec: &MountSpec) -> Outcome<Unstaged> {
        let arguments = vec!["umount".into(), "--lazy".into(), "--".into(), staging.into()];
        let ended = self.fusefs(arguments, DETACH_PATIENCE, false).await;
        let ended = ended.map_err(|e| io_fault("fusefs umount --lazy", &e))?;
        if is_mounted(staging)? {
            let said = ended.map_or_else(|| "no answer".into(), |e| e.text);
            return Err(Fault::unavailable(format!("{} cannot be unmounted: {said}", staging.display())));
        }
        Ok(Unstaged::Parked(format!("{why}; what is not in the object store is in {}", self.journal(spec).display())))
    }
}

/// Whether somebody works in a state directory.
fn lock_status(dir: &Path) -> RuntimeStatus {
    use nix::fcntl::{Flock, FlockArg};
    let Ok(file) = std::fs::File::open(dir.join("lock")) else { return RuntimeStatus::Absent };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_free) => RuntimeStatus::Absent,
        Err((_, nix::errno::Errno::EAGAIN)) => RuntimeStatus::Running,
        Err(_) => RuntimeStatus::Unknown,
    }
}

/// Whether a state directory still holds data. Without, it is removed: volumes come and go, directories must not stay.
fn left(dir: &Path) -> io::Result<bool> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let name = entry?.file_name();
        if DATA_PREFIXES.iter().any(|p| name.as_bytes().starts_with(p.as_bytes())) {
            return Ok(true);
        }
    }
    std::fs::remove_dir_all(dir).map(|()| false)
}

/// Whether name and path are words of their own on a command line.
fn plain(spec: &MountSpec) -> bool {
    !spec.name.is_empty() && !spec.name.starts_with('-') && spec.staging.is_absolute()
}

/// A command that ended.
struct Ended {
    status: ExitStatus,
    text: String,
}

/// The last words of a command. The pipe is drained so that it never blocks.
async fn text_of(stderr: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(stderr) = stderr {
        let _ = stderr.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).await; // what was read is what is told
    }
    let tail = bytes.get(bytes.len().saturating_sub(MESSAGE_BYTES_MAX)..).unwrap_or_default();
    String::from_utf8_lossy(tail).trim().to_owned()
}

fn is_mounted(staging: &Path) -> Outcome<bool> {
    let mounts = Mounts::read().map_err(|e| io_fault("reading mountinfo", &e))?;
    Ok(mounts.top(staging).is_some_and(crate::node::plan::ours))
}

#[async_trait]
impl Runtime for ProcessRuntime {
    async fn stage(&self, spec: &MountSpec) -> Outcome<()> {
        if !plain(spec) {
            return Err(Fault::invalid("the volume's name or path cannot be given to fusefs mount"));
        }
        let own_token = match &self.tokens {
            Some(tokens) => {
                let dir = self.journal(spec);
                let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
                made.map_err(|e| io_fault(format_args!("making {}", dir.display()), &e))?;
                tokens.put(&self.token_file(spec), &spec.name, spec.generation).await?
            }
            None => false,
        };
        let arguments = self.mount_arguments(spec, own_token);
        let ended = self.fusefs(arguments, self.settings.start_timeout, true).await;
        match ended.map_err(|e| io_fault("starting fusefs mount", &e))? {
            Some(ended) if ended.status.success() => Ok(()),
            Some(ended) => Err(Fault::unavailable(format!("volume {} cannot be mounted: {}", spec.name, ended.text))),
            None => Err(Fault::unavailable(format!("volume {} is still being mounted", spec.name))),
        }
    }

    async fn unstage(&self, spec: &MountSpec, patience: Duration) -> Outcome<Unstaged> {
        let gone = !is_mounted(&spec.staging)?; // an earlier try, or a reboot: only its end is waited for
        let deadline = Instant::now() + patience;
        let arguments = vec!["umount".into(), "--".into(), spec.staging.clone().into_os_string()];
        let ended = self.fusefs(arguments, patience, false).await;
        match ended.map_err(|e| io_fault("starting fusefs umount", &e))? {
            Some(ended) if (ended.status.success() || gone) && !is_mounted(&spec.staging)? => {
                Ok(self.ended(spec, deadline - Instant::now()).await)
            }
            Some(ended) => self.detach(&spec.staging, &ended.text, spec).await,
            None => self.detach(&spec.staging, "the flush did not end in time", spec).await,
        }
    }

    async fn refresh(&self, spec: &MountSpec) {
        if let Some(tokens) = &self.tokens {
            tokens.renew(&self.token_file(spec), &spec.name, spec.generation).await;
        }
    }

    /// Only what was nobody's at two looks goes: whoever makes a directory has recorded its volume before.
    async fn collect(&self, known: &HashSet<String>) {
        let Ok(entries) = std::fs::read_dir(&self.settings.state_dir) else { return };
        let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let found: HashSet<String> = names.filter(|n| !known.contains(n)).collect();
        let before = std::mem::replace(&mut *self.suspects.lock(), found.clone());
        for name in found.intersection(&before) {
            let dir = self.settings.state_dir.join(name);
            let idle = lock_status(&dir) == RuntimeStatus::Absent;
            match if idle { left(&dir) } else { Ok(true) } {
                Ok(gone) if !gone => tracing::info!(dir = %dir.display(), "removed: its volume is not here any more"),
                Ok(_) => {}
                Err(error) => tracing::warn!(dir = %dir.display(), %error, "cannot be removed"),
            }
        }
    }

    /// The state directory is locked while a supervisor works in it.
    async fn status(&self, spec: &MountSpec) -> RuntimeStatus {
        lock_status(&self.journal(spec))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::options::MountOptions;

    fn spec(staging: &Path) -> MountSpec {
        MountSpec {
            key: "k".into(),
            volume: "vol".into(),
            name: "vol".into(),
            staging: staging.into(),
            read_only: true,
            options: MountOptions { arguments: vec!["--cache-mib=8".into()], ..MountOptions::default() },
            generation: 3,
        }
    }

    fn runtime(dir: &Path, script: &str) -> ProcessRuntime {
        let binary = dir.join("fusefs");
        std::fs::write(&binary, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        ProcessRuntime::new(ProcessSettings {
            binary,
            masters: vec!["a:1".into(), "b:2".into()],
            token_file: Some("/etc/token".into()),
            state_dir: dir.join("state"),
            start_timeout: Duration::from_secs(20),
            journal_mib: Some(16),
        })
        .unwrap()
    }

    #[tokio::test]
    async fn the_command_line_has_no_secret_and_the_environment_is_not_inherited() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let r = runtime(dir.path(), &format!("echo \"$@\" >{0}; env >>{0}", out.display()));
        r.stage(&spec(Path::new("/s p"))).await.unwrap();
        let text = std::fs::read_to_string(&out).unwrap();
        let state = dir.path().join("state/k");
        assert!(
            text.starts_with(&format!(
                "mount --background --allow-other --master a:1,b:2 --token-file /etc/token --state-dir {} \
                 --journal-mib 16 --attach-generation=3 --read-only --cache-mib=8 -- vol /s p\n",
                state.display()
            )),
            "{text}"
        );
        assert!(!text.contains("CARGO"), "{text}");
        let hostile = MountSpec { name: "--token-file=/etc/shadow".into(), ..spec(Path::new("/s")) };
        assert_eq!(r.stage(&hostile).await.unwrap_err().code, tonic::Code::InvalidArgument);
        assert_eq!(r.status(&spec(Path::new("/s"))).await, RuntimeStatus::Absent);
    }

    #[tokio::test]
    async fn directories_of_nobody_go_at_the_second_look() {
        let dir = tempfile::tempdir().unwrap();
        let r = runtime(dir.path(), "exit 0");
        let state = dir.path().join("state");
        for (name, file) in [("known", "mount.log"), ("empty", "mount.log"), ("data", "journal.0"), ("busy", "lock")] {
            std::fs::create_dir(state.join(name)).unwrap();
            std::fs::write(state.join(name).join(file), "").unwrap();
        }
        let lock = std::fs::File::open(state.join("busy/lock")).unwrap();
        let lock = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
        let known = HashSet::from(["known".to_owned()]);
        let there = || {
            let mut names: Vec<_> = std::fs::read_dir(&state).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        r.collect(&known).await;
        assert_eq!(there().len(), 4);
        r.collect(&known).await;
        assert_eq!(there(), ["busy", "data", "known"]);
        drop(lock);
        r.collect(&HashSet::new()).await;
        assert_eq!(there(), ["data", "known"], "it was known a moment ago");
    }

    #[tokio::test]
    async fn a_failed_mount_says_why_and_is_not_final() {
        let dir = tempfile::tempdir().unwrap();
        let r = runtime(dir.path(), "echo no such volume >&2; exit 1");
        let fault = r.stage(&spec(Path::new("/s"))).await.unwrap_err();
        assert_eq!(fault.code, tonic::Code::Unavailable);
        assert!(fault.message.contains("no such volume"), "{fault}");
    }

    #[tokio::test]
    async fn an_unmount_that_takes_too_long_parks() {
        let dir = tempfile::tempdir().unwrap();
        let r = runtime(dir.path(), "[ \"$2\" = --lazy ] || exec sleep 600");
        let ended = r.unstage(&spec(Path::new("/no/mount")), Duration::from_millis(300)).await.unwrap();
        assert!(matches!(ended, Unstaged::Parked(why) if why.contains("state/k")));
        let r = runtime(dir.path(), "exit 0");
        let state = dir.path().join("state/k");
        std::fs::create_dir(&state).unwrap();
        for (file, kept) in [("journal.0", true), ("mount.log", false)] {
            std::fs::write(state.join(file), "").unwrap();
            let ended = r.unstage(&spec(Path::new("/no/mount")), DETACH_PATIENCE).await.unwrap();
            assert_eq!((matches!(ended, Unstaged::Parked(_)), state.exists()), (kept, kept), "{file}");
            let _ = std::fs::remove_file(state.join(file));
        }
        assert_eq!(r.unstage(&spec(Path::new("/no/mount")), DETACH_PATIENCE).await.unwrap(), Unstaged::Flushed);
    }
}
