//! The other side of [`super::host`]: whoever mounts for somebody else, keeps duplicates of everything, and hands them to
//! whichever process serves (PROTOCOL 42, 47).

use super::{
    SuperviseError,
    dirs::{self, Claim, Dirs},
    journal,
    record::names,
    setup,
};
use crate::{
    fuse::MountSettings,
    keeper::{Channel, Item, Store, sys},
};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Between a mount's key and an item's name at a holder of many mounts.
pub const SHARED_NAME_SEPARATOR: char = '.';
/// Written by clients: what of them a holder has to know for the next one.
const FROM_CLIENTS: &[&str] = &[names::INIT, names::SESSION];
/// Names of one mount besides its journal's.
const FIXED: &[&str] = &[
    names::FUSE,
    names::INIT,
    names::HANDLES,
    names::SLOTS,
    names::RECOVERY,
    names::SESSION,
    names::MOUNT,
    names::SPEC,
    names::DIRS,
    names::CREDENTIAL,
];
/// More journal files than this no mount has.
const JOURNAL_FILES_MAX: usize = 16;

/// What a mount that somebody else serves is made from.
pub struct HeldPlan<'a> {
    /// Where and how.
    pub mount: &'a MountSettings,
    /// Directory of the journal; made with mode 0700.
    pub state: &'a Path,
    /// Size of a new journal, in bytes.
    pub journal_bytes: u64,
    /// Keep requests in slots although this kernel could send them again.
    pub slots: bool,
    /// Options for the client.
    pub spec: &'a [u8],
    /// Random id of the kernel connection.
    pub mount_id: u128,
    /// Proof for the masters.
    pub credential: &'a [u8],
}

/// A mount's items, held by whoever mounted. As long as it lives, so does the mount.
#[derive(Debug)]
pub struct Held {
    store: Store,
    state: PathBuf,
    /// Nobody else works in the directory.
    _claim: Claim,
}

impl Held {
    /// Opens or makes the journal and mounts. Nobody serves the mount yet.
    pub fn make(plan: &HeldPlan<'_>) -> Result<Held, SuperviseError> {
        let claim = claim(plan.state)?;
        let mut store = setup::items(plan.state, plan.journal_bytes, plan.slots, plan.spec, plan.mount_id)?;
        store.put(names::CREDENTIAL, setup::value(plan.credential));
        setup::attach_into(&mut store, plan.state, plan.mount, true)?;
        Ok(Held { store, state: plan.state.to_owned(), _claim: claim })
    }

    /// A mount that lives, from another holder's items. None = that holder has no living kernel connection.
    pub fn adopt(store: Store, state: &Path) -> Result<Option<Held>, SuperviseError> {
        let alive = store.fd(names::FUSE).is_some_and(|fd| !sys::connection_gone(fd));
        if alive { Held::adopt_ended(store, state) } else { Ok(None) }
    }

    /// The same for one that may have been unmounted: its last flush is still to be waited for.
    pub fn adopt_ended(store: Store, state: &Path) -> Result<Option<Held>, SuperviseError> {
        if [names::FUSE, names::SPEC, names::HANDLES].iter().any(|name| store.get(name).is_none()) {
            return Ok(None);
        }
        Ok(Some(Held { store, state: state.to_owned(), _claim: claim(state)? }))
    }

    /// Directory of the journal.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Whether the kernel connection lives.
    pub fn alive(&self) -> bool {
        self.store.fd(names::FUSE).is_some_and(|fd| !sys::connection_gone(fd))
    }

    /// Id of the kernel connection.
    pub fn mount_id(&self) -> &[u8] {
        self.store.bytes(names::MOUNT).unwrap_or_default()
    }

    /// Hands everything to a hosted supervisor and lets it serve. It may have another mount's rest.
    pub fn entrust(&self, host: &Channel) -> io::Result<()> {
        host.end()?;
        for (name, item) in self.store.iter() {
            host.put(name, item)?;
        }
        host.begin()
    }

    /// Whether that supervisor has this very mount.
    pub fn is_at(&self, host: &Channel) -> io::Result<bool> {
        let there = host.get(names::MOUNT)?;
        Ok(there.is_some_and(|i| i.bytes == self.mount_id()) && host.get(names::CLIENT)?.is_some())
    }

    /// Takes over what the client wrote since; true when something is new.
    pub fn mirror(&mut self, host: &Channel) -> io::Result<bool> {
        let mut new = false;
        for name in FROM_CLIENTS {
            let Some(item) = host.get(name)? else { continue };
            if self.store.bytes(name) != Some(&item.bytes[..]) {
                self.store.put(name, item);
                new = true;
            }
        }
        Ok(new)
    }

    /// Replaces the proof for the masters.
    pub fn set_credential(&mut self, credential: Vec<u8>) {
        self.store.put(names::CREDENTIAL, Item { bytes: credential, fd: None });
    }

    /// Tells whoever serves the mount about it.
    pub fn give_credential(&self, host: &Channel) -> io::Result<()> {
        self.store.get(names::CREDENTIAL).map_or(Ok(()), |item| host.put(names::CREDENTIAL, item))
    }

    /// Gives duplicates to a holder of many mounts.
    pub fn share(&self, holder: &Channel, key: &str) -> io::Result<()> {
        self.store.iter().try_for_each(|(name, item)| holder.put(&shared(key, name), item))
    }

    /// What a holder of many mounts has of one.
    pub fn shared_items(holder: &Channel, key: &str) -> io::Result<Store> {
        let mut store = Store::default();
        let mut take = |name: &str| -> io::Result<bool> {
            let item = holder.get(&shared(key, name))?;
            Ok(item.is_some_and(|item| store.put(name, item)))
        };
        for name in FIXED {
            take(name)?;
        }
        for n in 0..JOURNAL_FILES_MAX {
            if !take(&format!("{}{n}", names::JOURNAL))? {
                break;
            }
        }
        Ok(store)
    }

    /// Makes a holder of many mounts forget one.
    pub fn unshare(holder: &Channel, key: &str) -> io::Result<()> {
        let of_key = shared(key, "");
        for name in holder.list_all()?.iter().filter(|n| n.starts_with(&of_key)) {
            holder.remove(name)?;
        }
        Ok(())
    }

    /// Puts a journal aside that belongs to an ended session, and goes on with a fresh one. Answers where it is.
    pub fn park(&mut self, journal_bytes: u64) -> Result<PathBuf, SuperviseError> {
        let fail = |e| SuperviseError::File("putting the journal aside".into(), e);
        let parked = fusefs_data_path::journal::park(&self.state).map_err(fail)?;
        journal::open(&self.state, journal_bytes, &mut self.store)?;
        Ok(parked)
    }

    /// After the unmount: the directory underneath is as it was.
    pub fn unprotect(&self) {
        setup::unprotect(&Dirs { state: self.state.clone(), runtime: PathBuf::new() });
    }

    /// Removes an empty journal after the mount's end. `Held` is dropped with it: nothing keeps the mount.
    pub fn forget(self) {
        remove(&self.state);
    }

    /// The same after the end of a mount that nobody holds any more; false when something is pending in its journal.
    pub fn forget_unheld(state: &Path) -> bool {
        let empty = journal::is_empty(state);
        if empty {
            setup::unprotect(&Dirs { state: state.to_owned(), runtime: PathBuf::new() });
            remove(state);
        }
        empty
    }
}

fn remove(state: &Path) {
    journal::remove(state);
    let _ = std::fs::remove_file(state.join(dirs::LOCK));
    let _ = std::fs::remove_dir(state); // something else may be in it
}

fn shared(key: &str, name: &str) -> String {
    format!("{key}{SHARED_NAME_SEPARATOR}{name}")
}

fn claim(state: &Path) -> Result<Claim, SuperviseError> {
    let file = |e| SuperviseError::File(format!("state directory {}", state.display()), e);
    dirs::make(state).map_err(file)?;
    let busy = || file(io::Error::other("another process uses it"));
    dirs::lock(state).map_err(file)?.ok_or_else(busy)
}
