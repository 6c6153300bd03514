//! Mounting and unmounting.
//!
//! After the mount nothing here touches the path: stat of an own mount from the own process can wait for itself.

use super::Adapter;
use crate::vfs::Vfs;
use fuser::{Config, Filesystem, MountOption, Session, SessionACL};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// Kernel's type of our mounts is `fuse.` and this.
pub const SUBTYPE: &str = "fusefs";

/// Threads that read requests unless configured otherwise: answers from memory go out on them, so two keep a second CPU
/// from waiting, and more only help on larger machines.
const READERS: usize = 2;

/// How and where to mount.
#[derive(Clone, Debug)]
pub struct MountSettings {
    /// Existing directory.
    pub mountpoint: PathBuf,
    /// Shown as the source, e.g. `fusefs#volume`.
    pub source: String,
    /// Read-only.
    pub read_only: bool,
    /// Other users may use it; None = exactly when root mounts.
    pub allow_other: Option<bool>,
    /// Threads that read requests.
    pub readers: usize,
    /// One device fd per reader (FUSE_DEV_IOC_CLONE).
    pub clone_fd: bool,
    /// Operations that wait fail with EIO after this long; None waits as long as it takes.
    pub io_timeout: Option<Duration>,
    /// Serve through fuser on Linux, too: only for comparing the two.
    pub fuser: bool,
}

impl MountSettings {
    /// Defaults for a mount point.
    pub fn new(mountpoint: impl Into<PathBuf>, source: impl Into<String>) -> MountSettings {
        MountSettings {
            mountpoint: mountpoint.into(),
            source: source.into(),
            read_only: false,
            allow_other: None,
            readers: READERS,
            clone_fd: false,
            io_timeout: None,
            fuser: false,
        }
    }
}

/// Why a mount failed, in words that name the next step.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No such path.
    #[error("mount point {0} does not exist; create the directory first")]
    Missing(PathBuf),
    /// Not a directory.
    #[error("mount point {0} is not a directory")]
    NotADirectory(PathBuf),
    /// Something is mounted there.
    #[error("mount point {point} is busy: {kind} ({source_name}) is mounted there; unmount it first (umount {point})")]
    Busy {
        /// Path.
        point: PathBuf,
        /// Its type.
        kind: String,
        /// Its source.
        source_name: String,
    },
    /// A dead mount could not be detached.
    #[error("a dead mount lies at {0} and cannot be detached: {1}; try: umount -l {0}")]
    Dead(PathBuf, std::io::Error),
    /// /dev/fuse.
    #[error("FUSE is not available: {0}; load the fuse module and make /dev/fuse accessible (or install fuse3)")]
    NoFuse(std::io::Error),
    /// Anything else.
    #[error("cannot mount at {0}: {1}")]
    Other(PathBuf, std::io::Error),
}

/// Mounts `vfs` and serves it from this process; requests that have to wait run in `runtime`. Returns when the kernel has
/// the mount. On Linux through [`super::kernel`], elsewhere (and with `MountSettings::fuser`) through fuser.
pub fn mount(settings: &MountSettings, vfs: Arc<Vfs>, runtime: tokio::runtime::Handle) -> Result<Mounted, MountError> {
    #[cfg(target_os = "linux")]
    if !settings.fuser {
        return mount_kernel(settings, vfs, runtime);
    }
    let adapter = Adapter::new(vfs, runtime, settings.io_timeout);
    mount_filesystem(settings, adapter)
}

/// As [`mount`], through our own transport.
#[cfg(target_os = "linux")]
fn mount_kernel(
    settings: &MountSettings,
    vfs: Arc<Vfs>,
    runtime: tokio::runtime::Handle,
) -> Result<Mounted, MountError> {
    let super::device::Attached { point, device, .. } = super::device::attach(settings, false)?;
    let serving = serve_here(settings, device, vfs, runtime).map_err(|e| {
        let _ = Unmounter { point: point.clone() }.detach(); // the first error is the one to tell
        explain(&point, e)
    })?;
    mounted(point, move || serving.wait())
}

#[cfg(target_os = "linux")]
fn serve_here(
    settings: &MountSettings,
    device: std::os::fd::OwnedFd,
    vfs: Arc<Vfs>,
    runtime: tokio::runtime::Handle,
) -> std::io::Result<super::kernel::Serving> {
    use super::kernel::{InitOptions, Recovery, ServeSettings, handshake_with, serve};
    let init = handshake_with(std::os::fd::AsFd::as_fd(&device), InitOptions { locks: true }, |_| Ok(()))?;
    // Nobody follows this process, so how requests would survive it does not matter.
    let mut serving = ServeSettings::new(Recovery::Resend);
    (serving.readers, serving.io_timeout) = (settings.readers, settings.io_timeout);
    serving.locks = Some(vfs.clone());
    let serving = serve(device, init, false, vfs.clone(), runtime, serving)?;
    vfs.set_kernel_caches(Arc::new(serving.notifier()));
    Ok(serving)
}

/// The mount with a thread that waits for its end.
fn mounted(point: PathBuf, run: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> Result<Mounted, MountError> {
    let (done_tx, done) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("fuse-session".into())
        .spawn(move || {
            let result = run();
            let _ = done_tx.send(()); // nobody may be waiting
            result
        })
        .map_err(|e| MountError::Other(point.clone(), e))?;
    Ok(Mounted { point, thread: Some(thread), done })
}

/// Mounts any fuser file system the same way.
pub fn mount_filesystem(settings: &MountSettings, fs: impl Filesystem) -> Result<Mounted, MountError> {
    let point = prepare(&settings.mountpoint)?;
    let session = connect(settings, &point, fs).map_err(|e| explain(&point, e))?;
    raise_read_ahead(&point);
    mounted(point, move || session.run())
}

/// Mounts and shakes hands. Root mounts with its own hands, because fuser's direct mount cannot name a subtype;
/// ordinary users go through fusermount3.
#[cfg(target_os = "linux")]
fn connect<F: Filesystem>(settings: &MountSettings, point: &Path, fs: F) -> std::io::Result<Session<F>> {
    let config = config(settings);
    if !nix::unistd::geteuid().is_root() {
        return Session::new(fs, point, &config);
    }
    let device = mount_directly(settings, point)?;
    let acl = config.acl;
    Session::from_fd(fs, device, acl, config).inspect_err(|_| {
        let _ = Unmounter { point: point.into() }.detach(); // the handshake's error is the one to tell
    })
}

/// mount(2) by root; the kernel's INIT waits in the returned device.
#[cfg(target_os = "linux")]
pub(super) fn mount_directly(settings: &MountSettings, point: &Path) -> std::io::Result<std::os::fd::OwnedFd> {
    use nix::mount::MsFlags;
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&device);
    let mut options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions");
    if settings.allow_other.unwrap_or(true) {
        options.push_str(",allow_other");
    }
    let flags = if settings.read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    let kind = format!("fuse.{SUBTYPE}");
    nix::mount::mount(Some(settings.source.as_str()), point, Some(kind.as_str()), flags, Some(options.as_str()))?;
    Ok(device.into())
}

#[cfg(not(target_os = "linux"))]
fn connect<F: Filesystem>(settings: &MountSettings, point: &Path, fs: F) -> std::io::Result<Session<F>> {
    Session::new(fs, point, &config(settings))
}

fn config(settings: &MountSettings) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(settings.source.clone()),
        MountOption::DefaultPermissions,
        if settings.read_only { MountOption::RO } else { MountOption::RW },
    ];
    let root = nix::unistd::geteuid().is_root();
    config.acl = if settings.allow_other.unwrap_or(root) { SessionACL::All } else { SessionACL::Owner };
    if cfg!(target_os = "linux") {
        config.mount_options.push(MountOption::Subtype(SUBTYPE.into()));
        config.n_threads = Some(settings.readers.max(1));
        config.clone_fd = settings.clone_fd;
    }
    config
}

/// Checks the mount point and detaches a dead mount of ours from it. Returns the path as the kernel names it.
pub(super) fn prepare(path: &Path) -> Result<PathBuf, MountError> {
    #[cfg(target_os = "linux")]
    if let Some(point) = absolute(path) {
        // The parent is resolved, the last part is not looked at: on a dead mount every look fails with ENOTCONN, on a
        // busy one it may wait for a slow server.
        detach_dead(&point)?;
        refuse_busy(&point)?;
    }
    let point = path.canonicalize().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => MountError::Missing(path.into()),
        _ => MountError::Other(path.into(), e),
    })?;
    if !point.is_dir() {
        return Err(MountError::NotADirectory(point));
    }
    #[cfg(target_os = "linux")]
    refuse_busy(&point)?; // again: the path may have led through a symbolic link
    Ok(point)
}

/// The mount point as the kernel names it, after the checks of a mount: it is a directory, nothing lives there, a dead mount
/// was detached.
#[cfg(target_os = "linux")]
pub fn prepare_point(path: &Path) -> Result<PathBuf, MountError> {
    prepare(path)
}

/// A mount point's path without a look at the mount itself, which may wait: only the parent is resolved.
#[cfg(target_os = "linux")]
pub fn untouched_point(path: &Path) -> PathBuf {
    absolute(path).unwrap_or_else(|| path.into())
}

#[cfg(target_os = "linux")]
fn refuse_busy(point: &Path) -> Result<(), MountError> {
    let lines = super::mountinfo::read().map_err(|e| MountError::Other(point.into(), e))?;
    match super::mountinfo::at(&lines, point) {
        None => Ok(()),
        Some(line) => {
            Err(MountError::Busy { point: point.into(), kind: line.kind.clone(), source_name: line.source.clone() })
        }
    }
}

/// Absolute path with a resolved parent; None when there is none.
#[cfg(target_os = "linux")]
fn absolute(path: &Path) -> Option<PathBuf> {
    let full = std::path::absolute(path).ok()?;
    match (full.parent(), full.file_name()) {
        (Some(parent), Some(name)) => Some(parent.canonicalize().ok()?.join(name)),
        _ => Some(full),
    }
}

/// Detaches mounts of ours at `point` whose process is gone. A live mount is left alone, however slow: only the kernel's
/// own "not connected" counts (PROTOCOL 51).
#[cfg(target_os = "linux")]
fn detach_dead(point: &Path) -> Result<(), MountError> {
    for _ in 0..16 {
        let lines = super::mountinfo::read().map_err(|e| MountError::Other(point.into(), e))?;
        let Some(line) = super::mountinfo::at(&lines, point) else { return Ok(()) };
        if !line.kind.starts_with("fuse") || !is_dead(point) {
            return Ok(());
        }
        tracing::warn!(point = %point.display(), "detaching a dead mount");
        nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH)
            .or_else(|e| if e == nix::errno::Errno::EPERM { fusermount(point) } else { Err(e) })
            .map_err(|e| MountError::Dead(point.into(), e.into()))?;
    }
    Ok(())
}

/// A dead connection answers ENOTCONN at once. A live one may wait for a busy server, so the look is taken by a thread
/// that may stay behind.
#[cfg(target_os = "linux")]
fn is_dead(point: &Path) -> bool {
    const PATIENCE: Duration = Duration::from_secs(2);
    let (tx, rx) = mpsc::channel();
    let path = point.to_path_buf();
    let looked = std::thread::Builder::new().name("mount-check".into()).spawn(move || {
        let error = std::fs::symlink_metadata(&path).err().and_then(|e| e.raw_os_error());
        let _ = tx.send(error == Some(libc::ENOTCONN)); // the asker may have given up
    });
    looked.is_ok() && rx.recv_timeout(PATIENCE).unwrap_or(false)
}

/// Lazy unmount for ordinary users.
#[cfg(target_os = "linux")]
fn fusermount(point: &Path) -> nix::Result<()> {
    let status = std::process::Command::new("fusermount3").arg("-uz").arg("--").arg(point).status();
    if status.is_ok_and(|s| s.success()) { Ok(()) } else { Err(nix::errno::Errno::EPERM) }
}

pub(super) fn explain(point: &Path, e: std::io::Error) -> MountError {
    let no_device = !Path::new("/dev/fuse").exists() && cfg!(target_os = "linux");
    if no_device || matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) {
        return MountError::NoFuse(e);
    }
    MountError::Other(point.into(), e)
}

/// The kernel reads ahead 128 KiB per request unless told otherwise (measured: 8 times as many READs). Needs root;
/// without it, our own read-ahead has to do.
pub(super) fn raise_read_ahead(point: &Path) {
    #[cfg(target_os = "linux")]
    {
        let device = super::mountinfo::read().ok().and_then(|l| Some(super::mountinfo::at(&l, point)?.device.clone()));
        let Some(device) = device else { return };
        let kib = super::flags::IO_BYTES / 1024;
        if let Err(error) = std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), kib.to_string()) {
            tracing::debug!(%error, "read_ahead_kb stays as it is");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = point;
}

/// A mount of this process. Dropping it unmounts.
pub struct Mounted {
    point: PathBuf,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    done: mpsc::Receiver<()>,
}

impl Mounted {
    /// Where.
    pub fn mountpoint(&self) -> &Path {
        &self.point
    }

    /// A handle with which another thread (a signal handler's) unmounts.
    pub fn unmounter(&self) -> Unmounter {
        Unmounter { point: self.point.clone() }
    }

    /// Waits until the file system has been unmounted, by whomever.
    pub fn wait(mut self) -> std::io::Result<()> {
        self.join()
    }

    /// As [`Mounted::wait`], at most `limit`; false when it is still mounted.
    pub fn wait_timeout(&self, limit: Duration) -> bool {
        !matches!(self.done.recv_timeout(limit), Err(mpsc::RecvTimeoutError::Timeout))
    }

    /// Unmounts and waits for the last request. A busy mount (open files, a working directory in it) is an error, and it
    /// stays mounted.
    pub fn unmount(&mut self) -> std::io::Result<()> {
        self.unmounter().unmount()?;
        self.join()
    }

    fn join(&mut self) -> std::io::Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the FUSE session's thread panicked")))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A session that has ended was unmounted by somebody else; what lies at the path now is not ours.
        if self.thread.as_ref().is_some_and(|t| !t.is_finished()) {
            if let Err(error) = self.unmounter().unmount() {
                tracing::warn!(%error, point = %self.point.display(), "unmount failed, detaching");
                let _ = self.unmounter().detach(); // nothing more can be done
            }
            let _ = self.join();
        }
    }
}

/// Unmounts from another thread.
#[derive(Clone, Debug)]
pub struct Unmounter {
    point: PathBuf,
}

impl Unmounter {
    /// For any path, also one that another process mounted.
    pub fn new(point: impl Into<PathBuf>) -> Unmounter {
        Unmounter { point: point.into() }
    }

    /// Regular unmount: EBUSY while the mount is in use.
    pub fn unmount(&self) -> std::io::Result<()> {
        #[cfg(target_os = "linux")]
        match nix::mount::umount2(&self.point, nix::mount::MntFlags::UMOUNT_NOFOLLOW) {
            Err(nix::errno::Errno::EPERM) => run("fusermount3", &["-u", "--"], &self.point),
            other => other.map_err(Into::into),
        }
        #[cfg(not(target_os = "linux"))]
        run("umount", &[], &self.point)
    }

    /// Lazy unmount: the mount disappears from the tree now and ends with its last user.
    pub fn detach(&self) -> std::io::Result<()> {
        #[cfg(target_os = "linux")]
        match nix::mount::umount2(&self.point, nix::mount::MntFlags::MNT_DETACH) {
            Err(nix::errno::Errno::EPERM) => run("fusermount3", &["-uz", "--"], &self.point),
            other => other.map_err(Into::into),
        }
        #[cfg(not(target_os = "linux"))]
        run("umount", &["-f"], &self.point)
    }
}

fn run(program: &str, args: &[&str], point: &Path) -> std::io::Result<()> {
    let output = std::process::Command::new(program).args(args).arg(point).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(std::io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
