//! A supervisor that the keeper started: takes over a living mount.

use super::{Ended, Plan, SuperviseError, dirs, record::names, setup};
use crate::keeper::{Channel, Store};
use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// A living mount whose supervisor is gone.
pub struct Adopted {
    pub(super) channel: Channel,
    pub(super) store: Store,
    pub(super) dirs: dirs::Dirs,
}

/// Gets everything from the keeper of a runtime directory.
pub fn adopt(runtime: &Path) -> io::Result<Adopted> {
    let channel = Channel::connect(&dirs::keeper_socket(runtime))?;
    let store = channel.all()?;
    let state = store.bytes(names::DIRS).ok_or_else(|| io::Error::other("the keeper is empty"))?;
    let state = PathBuf::from(OsStr::from_bytes(state));
    Ok(Adopted { channel, store, dirs: dirs::Dirs { state, runtime: runtime.to_owned() } })
}

impl Adopted {
    /// Options of the mount as they were given to the first supervisor.
    pub fn spec(&self) -> &[u8] {
        self.store.bytes(names::SPEC).unwrap_or_default()
    }

    /// Serves until the end. A living client is left alone.
    pub fn run(self, plan: Plan) -> Result<Ended, SuperviseError> {
        setup::adopted(self, plan)?.run()
    }
}
