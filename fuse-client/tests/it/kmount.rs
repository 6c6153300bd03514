//! A mount on our own transport, made with the test's own hands: the test holds the fd as a keeper would.

use fusefs_fuse_client::Vfs;
use fusefs_fuse_client::fuse::kernel::{
    InitOptions, InitRecord, Recovery, ServeSettings, Serving, SlotFile, handshake_with, serve,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Handle;

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
        nix::mount::umount2(&self.point, nix::mount::MntFlags::UMOUNT_NOFOLLOW)?;
        self.fd = None;
        Ok(())
    }
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
