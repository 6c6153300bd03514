//! A mount on our own transport, made with the test's own hands: the test holds the fd as a keeper would.

use fusefs_fuse_client::Vfs;
use fusefs_fuse_client::fuse::kernel::{
    InitOptions, InitRecord, Recovery, ServeSettings, Serving, SlotFile, handshake_with, serve,
};
use fusefs_fuse_client::fuse::mountinfo;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// Nothing here takes that long.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// What outlives a client process: the connection, its INIT record, and the slots if it has any.
pub struct Kept {
    pub point: PathBuf,
    pub fd: Option<OwnedFd>,
    pub init: InitRecord,
    pub slots: Option<SlotFile>,
}

impl Kept {
    /// Mounts at `point` and shakes hands.
    pub fn mount(point: &Path, slots: bool) -> io::Result<Kept> {
        Kept::mount_with(point, slots, InitOptions::default())
    }

    pub fn mount_with(point: &Path, slots: bool, options: InitOptions) -> io::Result<Kept> {
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let text =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", device.as_raw_fd());
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("fusefs#test"), point, Some("fuse.fusefs"), flags, Some(text.as_str()))?;
        let mut kept = None;
        let init = handshake_with(device.as_fd(), options, |record| {
            kept = Some(record.clone());
            Ok(())
        })?;
        assert_eq!(kept.as_ref(), Some(&init), "kept before it was answered");
        let lines = mountinfo::read()?;
        watch(point.into(), mountinfo::at(&lines, point).map(|l| l.device.clone()).unwrap_or_default());
        let slots = if slots { Some(SlotFile::create()?) } else { None };
        Ok(Kept { point: point.into(), fd: Some(device.into()), init, slots })
    }

    pub fn recovery(&self) -> Recovery {
        match &self.slots {
            None => Recovery::Resend,
            Some(file) => Recovery::Slots(file.try_clone().unwrap()),
        }
    }

    pub fn device(&self) -> OwnedFd {
        self.fd.as_ref().unwrap().try_clone().unwrap()
    }

    /// Serves with a duplicate of what is kept.
    pub fn serve(&self, vfs: Arc<Vfs>, runtime: Handle, resumed: bool) -> Serving {
        self.serve_with(vfs, runtime, resumed, |_| {})
    }

    pub fn serve_with(
        &self,
        vfs: Arc<Vfs>,
        runtime: Handle,
        resumed: bool,
        change: impl FnOnce(&mut ServeSettings),
    ) -> Serving {
        let mut settings = ServeSettings::new(self.recovery());
        change(&mut settings);
        serve(self.device(), self.init.clone(), resumed, vfs, runtime, settings).unwrap()
    }

    pub fn unmount(&mut self) -> io::Result<()> {
        unmount(&self.point)?;
        self.fd = None;
        Ok(())
    }
}

/// Unmounts. A child that another test is just starting has our files open until it executes its program.
pub fn unmount(point: &Path) -> io::Result<()> {
    let end = tokio::time::Instant::now() + DEADLINE;
    loop {
        match nix::mount::umount2(point, nix::mount::MntFlags::UMOUNT_NOFOLLOW) {
            Err(nix::errno::Errno::EBUSY) if tokio::time::Instant::now() < end => std::thread::yield_now(),
            done => return Ok(done?),
        }
    }
}

/// Gives the connection up if the mount still exists after a minute: what hangs on it then fails instead.
fn watch(point: PathBuf, device: String) {
    const PATIENCE: Duration = Duration::from_secs(60);
    let (_alive, never) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let _alive = _alive;
        let _ = never.recv_timeout(PATIENCE);
        let lines = mountinfo::read().unwrap_or_default();
        if mountinfo::at(&lines, &point).is_some_and(|l| l.device == device) {
            println!("a minute has passed: giving {} up", point.display());
            let _ = nix::mount::umount2(&point, nix::mount::MntFlags::MNT_FORCE);
        }
    });
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.fd.is_some() {
            // A test that failed: nobody may serve any more, so the connection is given up first.
            self.fd = None;
            let _ = nix::mount::umount2(&self.point, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}
