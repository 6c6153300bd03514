//! The data directory of a local cluster: what it was made for, its ports and token, and the lock that keeps two
//! clusters out of it.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Format of `cluster.json`.
const VERSION: u32 = 1;

/// How many servers of each role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Masters.
    pub masters: usize,
    /// Metanodes.
    pub metanodes: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    #[serde(flatten)]
    shape: Shape,
    master_ports: Vec<u16>,
    metanode_ports: Vec<u16>,
}

/// An opened, locked data directory.
#[derive(Debug)]
pub struct ClusterDir {
    root: PathBuf,
    record: Record,
    _lock: nix::fcntl::Flock<File>,
}

impl ClusterDir {
    /// Opens `root`, or lays it out for `shape`. Refuses a directory in use, one made for another shape, and one that
    /// holds something else.
    pub fn open(root: &Path, shape: Shape) -> Result<ClusterDir> {
        fs::create_dir_all(root).with_context(|| format!("creating the data directory {}", root.display()))?;
        let root = root.canonicalize()?;
        let lock = lock(&root)?;
        let path = root.join("cluster.json");
        let record = if path.exists() {
            let record: Record =
                serde_json::from_slice(&fs::read(&path)?).with_context(|| format!("reading {}", path.display()))?;
            ensure!(
                record.version == VERSION,
                "{} was written by another version of fusefs (format {}); this one reads {VERSION}",
                root.display(),
                record.version
            );
            let (have, want) = (record.shape, shape);
            ensure!(
                have == want,
                "{} was made for {} master(s) and {} metanode(s), not {} and {}: start it with --masters {} --metanodes {}, or choose another --data-dir",
                root.display(),
                have.masters,
                have.metanodes,
                want.masters,
                want.metanodes,
                have.masters,
                have.metanodes
            );
            record
        } else {
            let foreign = fs::read_dir(&root)?.flatten().find(|e| e.file_name() != "lock");
            if let Some(e) = foreign {
                bail!(
                    "{} is not empty and not a fusefs data directory (it holds {:?}); choose another --data-dir",
                    root.display(),
                    e.file_name()
                );
            }
            create(&root, shape)?
        };
        Ok(ClusterDir { root, record, _lock: lock })
    }

    /// Root of the directory.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// What it was made for.
    pub fn shape(&self) -> Shape {
        self.record.shape
    }
    /// Data directory of master `i`.
    pub fn master_dir(&self, i: usize) -> PathBuf {
        self.root.join(format!("master-{i}"))
    }
    /// Data directory of metanode `i`.
    pub fn metanode_dir(&self, i: usize) -> PathBuf {
        self.root.join(format!("metanode-{i}"))
    }
    /// Where the `dir` object store keeps file data.
    pub fn objects_dir(&self) -> PathBuf {
        self.root.join("objects")
    }
    /// File with the cluster token (0600).
    pub fn token_file(&self) -> PathBuf {
        self.root.join("token")
    }
    /// Address of every master.
    pub fn master_addrs(&self) -> Vec<String> {
        self.record.master_ports.iter().map(|p| format!("127.0.0.1:{p}")).collect()
    }
    /// Address of every metanode.
    pub fn metanode_addrs(&self) -> Vec<String> {
        self.record.metanode_ports.iter().map(|p| format!("127.0.0.1:{p}")).collect()
    }
}

fn lock(root: &Path) -> Result<nix::fcntl::Flock<File>> {
    let path = root.join("lock");
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|_| {
        anyhow::anyhow!("{} is in use by another fusefs; stop that one or choose another --data-dir", root.display())
    })
}

fn create(root: &Path, shape: Shape) -> Result<Record> {
    ensure!(
        shape.masters % 2 == 1,
        "{} masters: use an odd number (1 or 3), an even one survives no more failures",
        shape.masters
    );
    let mut ports = free_ports(shape.masters + shape.metanodes)?;
    let metanode_ports = ports.split_off(shape.masters);
    let record = Record { version: VERSION, shape, master_ports: ports, metanode_ports };
    fs::set_permissions(root, fs::Permissions::from_mode(0o700))?;
    write_private(&root.join("token"), hex::encode(random_bytes()?).as_bytes())?;
    write_private(&root.join("cluster.json"), &serde_json::to_vec_pretty(&record)?)?;
    Ok(record)
}

#[allow(clippy::disallowed_methods)] // the token of a new cluster is made here, at the edge
fn random_bytes() -> Result<[u8; 32]> {
    let mut token = [0; 32];
    getrandom::fill(&mut token).map_err(|e| anyhow::anyhow!("no entropy: {e}"))?;
    Ok(token)
}

/// Writes durably: temporary file, fsync, rename, fsync of the directory.
fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let tmp = path.with_extension("tmp");
    let mut f = File::options().create(true).truncate(true).write(true).mode(0o600).open(&tmp)?;
    f.write_all(bytes)?;
    f.sync_all()?;
    fs::rename(&tmp, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Free loopback ports. They are recorded, because raft members know each other by address.
fn free_ports(n: usize) -> Result<Vec<u16>> {
    let listeners: Vec<_> = (0..n).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    listeners.iter().map(|l| Ok(l.local_addr()?.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Shape = Shape { masters: 1, metanodes: 1 };

    #[test]
    fn a_directory_comes_back_as_it_was() {
        let tmp = tempfile::tempdir().unwrap();
        let first = ClusterDir::open(tmp.path(), ONE).unwrap();
        let (masters, token) = (first.master_addrs(), fs::read(first.token_file()).unwrap());
        drop(first);
        let again = ClusterDir::open(tmp.path(), ONE).unwrap();
        assert_eq!(again.master_addrs(), masters);
        assert_eq!(fs::read(again.token_file()).unwrap(), token);
    }

    #[test]
    fn use_by_two_other_shapes_and_foreign_contents_are_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let held = ClusterDir::open(tmp.path(), ONE).unwrap();
        assert!(ClusterDir::open(tmp.path(), ONE).unwrap_err().to_string().contains("in use"));
        drop(held);
        let other = ClusterDir::open(tmp.path(), Shape { masters: 3, metanodes: 3 }).unwrap_err().to_string();
        assert!(other.contains("--masters 1 --metanodes 1"), "{other}");
        let foreign = tempfile::tempdir().unwrap();
        fs::write(foreign.path().join("thesis.tex"), "x").unwrap();
        assert!(ClusterDir::open(foreign.path(), ONE).unwrap_err().to_string().contains("thesis.tex"));
        assert!(ClusterDir::open(&tmp.path().join("x"), Shape { masters: 2, metanodes: 1 }).is_err());
    }
}
