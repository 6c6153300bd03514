//! The journal's files: made by whoever mounts, handed over as fds (PROTOCOL 40). What is in them is the client's
//! business.

use super::{SuperviseError, record::names};
use crate::keeper::{Item, Store};
use std::{
    fs::OpenOptions,
    io,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Files of one journal.
pub const FILES: u32 = 2;

/// Path of journal file `n`.
pub fn path(state: &Path, n: u32) -> PathBuf {
    state.join(format!("journal.{n}"))
}

/// Opens the files, makes and preallocates missing ones (0600), and puts them into the store.
pub(super) fn open(state: &Path, bytes: u64, store: &mut Store) -> Result<(), SuperviseError> {
    for n in 0..FILES {
        let path = path(state, n);
        let fail = |e| SuperviseError::File(format!("journal file {}", path.display()), e);
        let file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path).map_err(fail)?;
        if file.metadata().map_err(fail)?.len() == 0 {
            allocate(&file, bytes).map_err(fail)?;
        }
        store.put(&format!("{}{n}", names::JOURNAL), Item { bytes: Vec::new(), fd: Some(file.into()) });
    }
    Ok(())
}

/// The blocks must exist before a write is acknowledged: a full disk is told now and not then.
fn allocate(file: &impl AsFd, bytes: u64) -> io::Result<()> {
    let length = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
    Ok(nix::fcntl::posix_fallocate(file, 0, length)?)
}

/// Moves the files of a session that cannot go on to `parked-SESSION` and answers that directory.
pub(super) fn park(state: &Path, session: &str) -> io::Result<PathBuf> {
    let plain: String = session.chars().filter(char::is_ascii_alphanumeric).collect();
    let mut target = state.join(format!("parked-{plain}"));
    let mut n = 1;
    while target.exists() {
        n += 1;
        target = state.join(format!("parked-{plain}-{n}"));
    }
    std::fs::create_dir(&target)?;
    for n in 0..FILES {
        std::fs::rename(path(state, n), path(&target, n))?;
    }
    std::fs::File::open(state)?.sync_all()?;
    Ok(target)
}

/// Removes the files of a mount that ended with nothing left.
pub(super) fn remove(state: &Path) {
    for n in 0..FILES {
        let _ = std::fs::remove_file(path(state, n)); // made again by the next mount
    }
}
