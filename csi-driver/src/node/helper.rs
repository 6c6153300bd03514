//! A disposable process for everything that may wait for a mount: a look at its root, a bind mount of a directory in it.
//!
//! The driver's executable starts itself with [`WORD`] as the first argument ([`run_if_asked`] must come first in `main`).
//! When it does not end in time it is killed and left behind; while one is stuck on a mount, no other is sent after it.

use super::{
    mounts::{self, BindFlags},
    plan::Health,
};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2},
    mount::{MsFlags, mount},
    sys::{
        stat::{FchmodatFlags, Mode, fchmodat, fstat},
        statvfs::statvfs,
    },
    unistd::{Gid, fchownat},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    ffi::OsString,
    io,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{io::AsyncReadExt, process::Command};

/// First argument of a helper process.
pub const WORD: &str = "csi-node-helper";
/// Starts the line with the answer.
const ANSWER: &str = "fusefs-csi-helper ";
/// No answer is longer.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// What a helper is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Question {
    Look { path: PathBuf },
    Bind(Bind),
}

/// A bind mount of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// The mount.
    pub from: PathBuf,
    /// A directory in it; empty = its root. Symbolic links and `..` do not lead anywhere.
    pub subdir: String,
    /// Where.
    pub target: PathBuf,
    /// Group that gets the directory before it is bound: files made in it belong to that group from then on.
    pub group: Option<u32>,
    /// Flags of the bind mount.
    pub flags: BindFlags,
}

/// What it says.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Answer {
    Space(Space),
    Bound,
    Errno { number: i32, what: String },
}

/// statvfs of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Bytes.
    pub bytes: u64,
    /// Bytes that ordinary users may still write.
    pub bytes_free: u64,
    /// Inodes.
    pub inodes: u64,
    /// Inodes that may still be made.
    pub inodes_free: u64,
}

/// Starts helpers.
#[derive(Clone, Debug)]
pub struct Helpers {
    program: PathBuf,
    arguments: Vec<OsString>,
    /// By path: a helper that did not come back.
    stuck: Arc<Mutex<HashMap<PathBuf, u32>>>,
}

impl Helpers {
    /// `program ARGUMENTS... QUESTION` has to reach [`run_if_asked`] or [`answer`].
    pub fn new(program: PathBuf, arguments: Vec<OsString>) -> Helpers {
        Helpers { program, arguments, stuck: Arc::default() }
    }

    /// This executable.
    pub fn own() -> io::Result<Helpers> {
        Ok(Helpers::new(std::env::current_exe()?, vec![WORD.into()]))
    }

    /// Looks at the root of the mount at `path`.
    pub async fn look(&self, path: &Path, patience: Duration) -> (Health, Option<Space>) {
        match self.ask(path, &Question::Look { path: path.to_owned() }, patience).await {
            Ok(Answer::Space(space)) => (Health::Alive, Some(space)),
            Ok(Answer::Errno { number, .. }) if number == Errno::ENOTCONN as i32 => (Health::Dead, None),
            Ok(answer) => {
                tracing::debug!(path = %path.display(), ?answer, "a mount does not answer well");
                (Health::Silent, None)
            }
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "a mount does not answer");
                (Health::Silent, None)
            }
        }
    }

    /// Makes a bind mount.
    pub async fn bind(&self, bind: Bind, patience: Duration) -> io::Result<()> {
        let from = bind.from.clone();
        match self.ask(&from, &Question::Bind(bind), patience).await? {
            Answer::Bound => Ok(()),
            Answer::Errno { number, what } => {
                let error = io::Error::from_raw_os_error(number);
                Err(io::Error::new(error.kind(), format!("{what}: {error}")))
            }
            Answer::Space(_) => Err(io::Error::other("the helper answered another question")),
        }
    }

    async fn ask(&self, path: &Path, question: &Question, patience: Duration) -> io::Result<Answer> {
        if let Some(pid) = self.stuck_on(path) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("helper {pid} still waits for it")));
        }
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .arg(serde_json::to_string(question)?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true) // and reaped in the background, whenever it can die
            .spawn()?;
        let (pid, stdout) = (child.id(), child.stdout.take());
        let said = async {
            let mut text = String::new();
            if let Some(stdout) = stdout {
                stdout.take(ANSWER_BYTES_MAX).read_to_string(&mut text).await?;
            }
            child.wait().await?;
            Ok::<_, io::Error>(text)
        };
        let Ok(text) = tokio::time::timeout(patience, said).await else {
            if let Some(pid) = pid {
                self.stuck.lock().insert(path.to_owned(), pid);
            }
            return Err(io::ErrorKind::TimedOut.into());
        };
        let text = text?;
        let line = text.lines().find_map(|l| l.split_once(ANSWER).map(|(_, answer)| answer.to_owned()));
        Ok(serde_json::from_str(&line.ok_or_else(|| io::Error::other("the helper said nothing"))?)?)
    }

    /// The helper that is stuck on a path, if it still is: killed, and not gone.
    fn stuck_on(&self, path: &Path) -> Option<u32> {
        let mut stuck = self.stuck.lock();
        let pid = *stuck.get(path)?;
        if still_there(pid) {
            return Some(pid);
        }
        stuck.remove(path);
        None
    }
}

/// Whether a killed child of ours still exists and is no zombie.
fn still_there(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let mut after_name = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let zombie = matches!(after_name.next(), Some("Z" | "X"));
    !zombie && after_name.next().and_then(|p| p.parse().ok()) == Some(std::process::id())
}

/// Answers and returns true when this process was started as a helper. First thing in `main`.
pub fn run_if_asked() -> bool {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|word| word != WORD) {
        return false;
    }
    answer(&arguments.next().unwrap_or_default().to_string_lossy());
    true
}

/// Answers one question on standard output.
pub fn answer(question: &str) {
    let answer = match serde_json::from_str(question) {
        Ok(Question::Look { path }) => look(&path),
        Ok(Question::Bind(b)) => bind(&b).map_or_else(|refused| refused, |()| Answer::Bound),
        Err(_) => Answer::Errno { number: Errno::EINVAL as i32, what: "the question is not understood".into() },
    };
    if let Ok(text) = serde_json::to_string(&answer) {
        println!("{ANSWER}{text}");
    }
}

fn refused(what: impl Into<String>) -> impl FnOnce(Errno) -> Answer {
    let what = what.into();
    |e| Answer::Errno { number: e as i32, what }
}

fn look(path: &Path) -> Answer {
    let root = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let looked = root.and_then(|root| fstat(&root)).and_then(|_| statvfs(path));
    match looked {
        Ok(s) => Answer::Space(Space {
            bytes: s.blocks().saturating_mul(s.fragment_size()),
            bytes_free: s.blocks_available().saturating_mul(s.fragment_size()),
            inodes: s.files(),
            inodes_free: s.files_available(),
        }),
        Err(e) => refused("looking at the mount")(e),
    }
}

fn bind(Bind { from, subdir, target, group, flags: bind_flags }: &Bind) -> Result<(), Answer> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(from, flags | OFlag::O_NOFOLLOW, Mode::empty()).map_err(refused("opening the mount"))?;
    let from = if subdir.is_empty() {
        root
    } else {
        let beneath = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
        let how = OpenHow::new().flags(flags).resolve(beneath);
        openat2(&root, subdir.as_str(), how).map_err(refused("opening the subdirectory"))?
    };
    let path = PathBuf::from(format!("/proc/self/fd/{}", from.as_raw_fd()));
    if let Some(group) = group {
        give(&from, &path, *group).map_err(refused("giving the directory to the volume mount group"))?;
    }
    match mounts::bind(from.as_fd(), target, *bind_flags) {
        // Linux before 5.12: the driver sets the flags afterwards.
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {
            mount(Some(&path), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(refused("binding"))
        }
        bound => bound.map_err(|e| refused("binding")(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))),
    }
}

/// Gives a directory to a group: it may do everything there, and what is made there is the group's, too (setgid). What is in
/// it already stays as it is.
fn give(dir: &impl AsFd, path: &Path, group: u32) -> nix::Result<()> {
    let found = fstat(dir)?;
    if found.st_gid != group {
        fchownat(dir, "", None, Some(Gid::from_raw(group)), AtFlags::AT_EMPTY_PATH)?;
    }
    let now = Mode::from_bits_truncate(found.st_mode);
    let wanted = now | Mode::S_ISGID | Mode::S_IRWXG;
    // A change of the group may have cleared a bit.
    if now == wanted && found.st_gid == group {
        return Ok(());
    }
    fchmodat(AT_FDCWD, path, wanted, FchmodatFlags::FollowSymlink)
}
