//! The superblock of a data directory: who owns it (PROTOCOL 1). Somebody else's directory is refused, and so is one
//! that another process uses.

use fusefs_types::{ClusterId, NodeId, Rng};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::Write,
    path::{Path, PathBuf},
};

const FORMAT: u32 = 1;

/// Why a data directory is refused.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The directory or its superblock cannot be read or written.
    #[error("data dir {0}: {1}")]
    Io(PathBuf, std::io::Error),
    /// Not a superblock of this version.
    #[error(
        "data dir {0}: the file `superblock` is damaged or of a newer version; restore it or use an empty directory"
    )]
    Damaged(PathBuf),
    /// Another process has it.
    #[error("data dir {0} is in use by another process; stop it or choose another --data-dir")]
    InUse(PathBuf),
    /// Another cluster's.
    #[error(
        "data dir {dir} belongs to cluster {theirs}, but the masters are of cluster {ours}; choose another --data-dir or other masters"
    )]
    OtherCluster {
        /// Directory.
        dir: PathBuf,
        /// Cluster in the superblock.
        theirs: ClusterId,
        /// Cluster of the masters.
        ours: ClusterId,
    },
}

/// An owned data directory; the lock is held while this lives.
pub struct Identity {
    dir: PathBuf,
    /// This node, made once per directory.
    pub node: NodeId,
    cluster: parking_lot::Mutex<ClusterId>,
    _lock: File,
}

impl Identity {
    /// Locks the directory and reads or makes its superblock.
    pub fn open(dir: &Path, rng: &dyn Rng) -> Result<Identity, IdentityError> {
        let io = |e| IdentityError::Io(dir.into(), e);
        std::fs::create_dir_all(dir).map_err(io)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(IdentityError::InUse(dir.into())),
            Err(TryLockError::Error(e)) => return Err(io(e)),
        }
        let (node, cluster) = match std::fs::read_to_string(dir.join("superblock")) {
            Ok(text) => parse(&text).ok_or_else(|| IdentityError::Damaged(dir.into()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let node = NodeId(rng.next_u128());
                write(dir, node, ClusterId(0)).map_err(io)?;
                (node, ClusterId(0))
            }
            Err(e) => return Err(io(e)),
        };
        Ok(Identity { dir: dir.into(), node, cluster: parking_lot::Mutex::new(cluster), _lock: lock })
    }

    /// Cluster that owns the directory; 0 = not claimed yet.
    pub fn cluster(&self) -> ClusterId {
        *self.cluster.lock()
    }

    /// Claims the directory for a cluster, or checks the earlier claim.
    pub fn claim(&self, ours: ClusterId) -> Result<(), IdentityError> {
        let mut cluster = self.cluster.lock();
        if *cluster == ours {
            return Ok(());
        }
        if cluster.0 != 0 {
            return Err(IdentityError::OtherCluster { dir: self.dir.clone(), theirs: *cluster, ours });
        }
        write(&self.dir, self.node, ours).map_err(|e| IdentityError::Io(self.dir.clone(), e))?;
        *cluster = ours;
        Ok(())
    }
}

fn parse(text: &str) -> Option<(NodeId, ClusterId)> {
    let mut lines = text.lines();
    (lines.next()? == format!("fusefs metanode {FORMAT}")).then_some(())?;
    let node = lines.next()?.strip_prefix("node ")?.parse().ok()?;
    let cluster = lines.next()?.strip_prefix("cluster ")?.parse().ok()?;
    Some((node, cluster))
}

fn write(dir: &Path, node: NodeId, cluster: ClusterId) -> std::io::Result<()> {
    let tmp = dir.join("superblock.new");
    let mut file = File::create(&tmp)?;
    write!(file, "fusefs metanode {FORMAT}\nnode {node}\ncluster {cluster}\n")?;
    file.sync_all()?;
    std::fs::rename(&tmp, dir.join("superblock"))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Seven;
    impl Rng for Seven {
        fn next_u64(&self) -> u64 {
            7
        }
    }

    #[test]
    fn a_directory_has_one_owner_and_one_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let a = Identity::open(dir.path(), &Seven).unwrap();
        assert!(matches!(Identity::open(dir.path(), &Seven), Err(IdentityError::InUse(_))));
        a.claim(ClusterId(5)).unwrap();
        a.claim(ClusterId(5)).unwrap();
        let node = a.node;
        drop(a);
        let b = Identity::open(dir.path(), &Seven).unwrap();
        assert_eq!((b.node, b.cluster()), (node, ClusterId(5)));
        let e = b.claim(ClusterId(6)).unwrap_err();
        assert!(e.to_string().contains("belongs to cluster"), "{e}");
        drop(b);
        std::fs::write(dir.path().join("superblock"), "x").unwrap();
        assert!(matches!(Identity::open(dir.path(), &Seven), Err(IdentityError::Damaged(_))));
    }
}
