//! The unmount at a clean end, in a thread of its own: it waits while no client serves.

use crate::{fuse::Unmounter, keeper::sys};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

/// A running unmount. Its fd becomes readable when it is done.
pub(super) struct Unmounting {
    done: OwnedFd,
}

impl Unmounting {
    /// Regular unmount; a busy mount is detached, and files that are open work until they are closed. `lazy` = detach at
    /// once, which never waits.
    pub fn start(point: PathBuf, lazy: bool) -> io::Result<Unmounting> {
        let (done, theirs) = sys::pair()?;
        std::thread::Builder::new().name("unmount".into()).spawn(move || {
            let unmounter = Unmounter::new(&point);
            let result = if lazy { unmounter.detach() } else { unmounter.unmount() };
            if let Err(error) = result.or_else(|error| {
                tracing::warn!(%error, "the mount is busy; detaching it");
                unmounter.detach()
            }) {
                tracing::error!(%error, point = %point.display(), "cannot be unmounted");
            }
            drop(theirs);
        })?;
        Ok(Unmounting { done })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}
