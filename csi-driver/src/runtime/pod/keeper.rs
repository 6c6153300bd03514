//! The node keeper: a process of its own that holds duplicates of every mount of the node, so that plugin and fuse pods
//! may die at the same time.

use fusefs_fuse_client::{
    keeper::{Channel, Store},
    supervise::{Held, SHARED_NAME_SEPARATOR},
};
use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

/// How to reach it; it may be away at any moment.
#[derive(Clone, Debug)]
pub struct NodeKeeper {
    socket: Option<PathBuf>,
}

impl NodeKeeper {
    /// None = there is none on this node.
    pub fn new(socket: Option<&Path>) -> NodeKeeper {
        NodeKeeper { socket: socket.map(Path::to_owned) }
    }

    /// A connection; None when there is no keeper.
    pub fn connect(&self) -> io::Result<Option<Channel>> {
        self.socket.as_deref().map(Channel::connect).transpose()
    }

    /// Gives it everything of a mount.
    pub fn share(&self, key: &str, held: &Held) -> io::Result<()> {
        self.connect()?.map_or(Ok(()), |channel| held.share(&channel, key))
    }

    /// What it has of a mount.
    pub fn items(&self, key: &str) -> io::Result<Store> {
        self.connect()?.map_or_else(|| Ok(Store::default()), |channel| Held::shared_items(&channel, key))
    }

    /// Keys of all mounts that it has something of.
    pub fn keys(&self) -> io::Result<BTreeSet<String>> {
        let names = self.connect()?.map_or_else(|| Ok(Vec::new()), |channel| channel.list_all())?;
        let key = |n: &String| n.split_once(SHARED_NAME_SEPARATOR).map(|(key, _)| key.to_owned());
        Ok(names.iter().filter_map(key).collect())
    }

    /// Makes it let a mount go.
    pub fn forget(&self, key: &str) -> io::Result<()> {
        self.connect()?.map_or(Ok(()), |channel| Held::unshare(&channel, key))
    }
}
