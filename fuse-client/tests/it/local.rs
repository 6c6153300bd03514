//! The same random workload on the vfs and on a local directory: every outcome and the whole tree must be the same.

use crate::cluster::{Client, Cluster};
use crate::rng::{Random, seeds};
use fusefs_fuse_client::vfs::Change;
use fusefs_types::{
    FileKind, FsResult, Ino, Time,
    ops::{RenameMode, SetTime},
};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

#[derive(Clone, Debug)]
pub enum Op {
    Create(String),
    Mkdir(String),
    Write(String, u64, Vec<u8>),
    Truncate(String, u64),
    Chmod(String, u16),
    Utimens(String, i64),
    Unlink(String),
    Rmdir(String),
    Rename(String, String),
    Link(String, String),
    Symlink(String, String),
    Read(String),
}

/// Operations of one seed.
pub const STEPS: u32 = 600;

/// Paths of at most three names of few, so that they meet. Names with `l` are for symbolic links only, which no path
/// goes through.
fn path(rng: &mut Random) -> String {
    let names = ["a", "b", "c", "dd"];
    (0..1 + rng.below(3)).map(|_| names[rng.below(names.len())]).collect::<Vec<_>>().join("/")
}

pub fn random_op(rng: &mut Random) -> Op {
    let p = path(rng);
    match rng.below(24) {
        0..5 => Op::Create(p),
        5..8 => Op::Mkdir(p),
        8..12 => {
            let len = [1, 100, 5000, 40_000][rng.below(4)];
            Op::Write(p, rng.below(50_000) as u64, vec![rng.next() as u8; len])
        }
        12 => Op::Truncate(p, rng.below(60_000) as u64),
        13 => Op::Chmod(p, 0o600 | rng.below(0o200) as u16),
        14 => Op::Utimens(p, rng.below(2_000_000_000) as i64 * 1_000_000_000 + 7),
        15 | 16 => Op::Unlink(p),
        17 => Op::Rmdir(p),
        18 | 19 => Op::Rename(p, path(rng)),
        20 => Op::Link(p, path(rng)),
        21 => Op::Symlink(format!("l{}", rng.below(3)), p),
        22 => Op::Unlink(format!("l{}", rng.below(3))),
        _ => Op::Read(p),
    }
}

/// What one op did: bytes read, or an errno.
pub type Outcome = Result<Vec<u8>, i32>;

pub fn on_directory(base: &Path, op: &Op) -> Outcome {
    let at = |p: &str| base.join(p);
    let unit = |r: io::Result<()>| r.map(|()| Vec::new());
    let result = match op {
        Op::Create(p) => unit(std::fs::File::create_new(at(p)).map(drop)),
        Op::Mkdir(p) => unit(std::fs::create_dir(at(p))),
        Op::Write(p, offset, data) => {
            unit(std::fs::OpenOptions::new().write(true).open(at(p)).and_then(|f| f.write_all_at(data, *offset)))
        }
        Op::Truncate(p, size) => {
            unit(std::fs::OpenOptions::new().write(true).open(at(p)).and_then(|f| f.set_len(*size)))
        }
        Op::Chmod(p, mode) => unit(std::fs::set_permissions(at(p), PermissionsExt::from_mode(u32::from(*mode)))),
        Op::Utimens(p, ns) => unit(std::fs::File::open(at(p)).and_then(|f| {
            let t = UNIX_EPOCH + Duration::from_nanos(*ns as u64);
            f.set_times(std::fs::FileTimes::new().set_accessed(t).set_modified(t))
        })),
        Op::Unlink(p) => unit(std::fs::remove_file(at(p))),
        Op::Rmdir(p) => unit(std::fs::remove_dir(at(p))),
        Op::Rename(p, q) => unit(std::fs::rename(at(p), at(q))),
        Op::Link(p, q) => unit(std::fs::hard_link(at(p), at(q))),
        Op::Symlink(p, target) => unit(std::os::unix::fs::symlink(target, at(p))),
        Op::Read(p) => std::fs::read(at(p)),
    };
    result.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
}

/// As a kernel would: what it checks itself before it asks is checked here.
async fn on_vfs(c: &Client, op: &Op) -> Outcome {
    let unit = |r: FsResult<()>| r.map(|()| Vec::new());
    let file = async |p: &str, write: bool| -> FsResult<(Ino, u64)> {
        if c.walk(p).await?.kind == FileKind::Directory && write {
            return Err(fusefs_types::FsError::IsDirectory);
        }
        c.open(p, if write { libc::O_RDWR } else { libc::O_RDONLY }).await
    };
    let set = async |p: &str, change: Change| unit(c.set(p, change).await.map(drop));
    let result = match op {
        Op::Create(p) => match c.create(p).await {
            Ok((attr, fh)) => unit(c.close(attr.ino, fh).await),
            Err(e) => Err(e),
        },
        Op::Mkdir(p) => unit(c.mkdir(p).await.map(drop)),
        Op::Write(p, offset, data) => match file(p, true).await {
            Ok((ino, fh)) => {
                assert_eq!(c.pwrite(ino, fh, *offset, data, 0).await, Ok(data.len() as u32));
                unit(c.close(ino, fh).await)
            }
            Err(e) => Err(e),
        },
        Op::Truncate(p, size) => match file(p, true).await {
            Ok((ino, fh)) => {
                let done = c.truncate(p, *size).await;
                c.close(ino, fh).await.unwrap();
                unit(done.map(drop))
            }
            Err(e) => Err(e),
        },
        Op::Chmod(p, mode) => set(p, Change { mode: Some(*mode), ..Change::default() }).await,
        Op::Utimens(p, ns) => {
            let t = Some(SetTime::At(Time(*ns)));
            set(p, Change { atime: t, mtime: t, ..Change::default() }).await
        }
        Op::Unlink(p) => unit(c.unlink(p).await),
        Op::Rmdir(p) => unit(c.rmdir(p).await),
        Op::Rename(p, q) if p.starts_with(&format!("{q}/")) => Err(fusefs_types::FsError::NotEmpty),
        Op::Rename(p, q) => unit(c.rename(p, q, RenameMode::Replace).await),
        Op::Link(p, q) => unit(c.link(p, q).await),
        Op::Symlink(p, target) => unit(c.symlink(p, target).await),
        Op::Read(p) => match file(p, false).await {
            Ok((ino, fh)) if c.walk(p).await.map(|a| a.kind) != Ok(FileKind::Directory) => {
                c.close(ino, fh).await.unwrap();
                c.get(p).await
            }
            Ok(_) => Err(fusefs_types::FsError::IsDirectory),
            Err(e) => Err(e),
        },
    };
    result.map_err(|e| e.errno())
}

/// One inode of a tree, as far as file systems must agree.
#[derive(Debug, PartialEq, Eq)]
pub struct Node {
    kind: FileKind,
    mode: u32,
    nlink: u64,
    size: u64,
    /// Bytes or link target.
    content: Vec<u8>,
    /// Explicitly set times only: others come from different clocks.
    mtime: Option<i64>,
}

/// Explicit times of the workload end in 7 ns.
fn explicit(ns: i64) -> Option<i64> {
    (ns % 1_000_000_000 == 7).then_some(ns)
}

pub fn tree_of_directory(base: &Path) -> BTreeMap<String, Node> {
    let mut tree = BTreeMap::new();
    let mut dirs: Vec<PathBuf> = vec![base.into()];
    while let Some(dir) = dirs.pop() {
        for e in std::fs::read_dir(&dir).unwrap() {
            let path = e.unwrap().path();
            let m = std::fs::symlink_metadata(&path).unwrap();
            let t = m.file_type();
            let (kind, content) = if t.is_dir() {
                dirs.push(path.clone());
                (FileKind::Directory, Vec::new())
            } else if t.is_symlink() {
                (FileKind::Symlink, std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes())
            } else {
                assert!(!t.is_fifo());
                (FileKind::Regular, std::fs::read(&path).unwrap())
            };
            let name = path.strip_prefix(base).unwrap().to_str().unwrap().to_owned();
            let size = if kind == FileKind::Directory { 0 } else { m.len() };
            let mtime = explicit(m.mtime() * 1_000_000_000 + m.mtime_nsec());
            let mode = m.mode() & 0o7777;
            tree.insert(name, Node { kind, mode, nlink: m.nlink(), size, content, mtime });
        }
    }
    tree
}

async fn tree_of_vfs(c: &Client) -> BTreeMap<String, Node> {
    let mut tree = BTreeMap::new();
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        for name in c.list(&dir).await.unwrap() {
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            let attr = c.walk(&path).await.unwrap();
            let content = match attr.kind {
                FileKind::Directory => {
                    dirs.push(path.clone());
                    Vec::new()
                }
                FileKind::Symlink => c.readlink(&path).await.unwrap().into_bytes(),
                _ => c.get(&path).await.unwrap(),
            };
            let size = if attr.kind == FileKind::Directory { 0 } else { attr.size };
            let (mode, nlink, mtime) = (u32::from(attr.mode), u64::from(attr.nlink), explicit(attr.mtime.0));
            tree.insert(path, Node { kind: attr.kind, mode, nlink, size, content, mtime });
        }
    }
    tree
}

pub fn assert_same(seed: u64, ours: &BTreeMap<String, Node>, local: &BTreeMap<String, Node>) {
    for (path, node) in local {
        let mine = ours.get(path).unwrap_or_else(|| panic!("seed {seed}: {path} is missing"));
        if mine != node {
            let head = |n: &Node| (n.kind, format!("{:o}", n.mode), n.nlink, n.size, n.mtime);
            let at = mine.content.iter().zip(&node.content).position(|(a, b)| a != b);
            panic!("seed {seed}: {path}: {:?} here, {:?} locally, first difference at {at:?}", head(mine), head(node));
        }
    }
    let extra: Vec<_> = ours.keys().filter(|p| !local.contains_key(*p)).collect();
    assert!(extra.is_empty(), "seed {seed}: {extra:?} should not exist");
}

#[tokio::test]
async fn random_operations_do_what_a_local_directory_does() {
    for seed in seeds(12) {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster::new();
        // Tiny caches for half of the seeds: eviction must not be visible.
        let a = cluster.client_with(|s| {
            if seed % 2 == 0 {
                (s.inodes, s.dentries) = (16, 16);
            }
        });
        let mut rng = Random::new(seed);
        let mut worked = 0;
        for step in 0..STEPS {
            let op = if step < 8 { Op::Mkdir(path(&mut rng)) } else { random_op(&mut rng) };
            let want = on_directory(dir.path(), &op);
            let got = on_vfs(&a, &op).await;
            assert!(
                got == want || (got.is_err() && want.is_err()),
                "seed {seed} step {step} (FUSEFS_SEED={seed}): {op:?}\n ours {:?}\nlocal {:?}",
                got.as_ref().map(Vec::len),
                want.as_ref().map(Vec::len)
            );
            worked += u32::from(want.is_ok());
            cluster.clock.advance_ms(rng.below(300) as u64);
        }
        assert!(worked > STEPS / 8, "seed {seed}: only {worked} operations had an effect");
        let local = tree_of_directory(dir.path());
        assert_same(seed, &tree_of_vfs(&a).await, &local);
        // A second client, which remembers nothing.
        let fresh = cluster.client();
        assert_same(seed, &tree_of_vfs(&fresh).await, &local);
    }
}

#[tokio::test]
async fn large_sparse_and_preallocated_files_have_the_right_bytes() {
    use fusefs_fuse_client::vfs::{KEEP_SIZE, PUNCH_HOLE, SEEK_DATA, SEEK_HOLE, ZERO_RANGE};
    let cluster = Cluster::new();
    let a = cluster.client();
    let (attr, fh) = a.create("f").await.unwrap();
    let ino = attr.ino;
    const FAR: u64 = 5 << 30;
    a.pwrite(ino, fh, FAR, &[9; 200_000], 0).await.unwrap();
    a.pwrite(ino, fh, 0, &vec![7; 3 << 20], 0).await.unwrap();
    assert_eq!(a.vfs.getattr(&a.rq(), ino).await.unwrap().0.size, FAR + 200_000);
    assert_eq!(a.vfs.lseek(&a.rq(), ino, 0, SEEK_HOLE).await, Ok(3 << 20));
    assert_eq!(a.vfs.lseek(&a.rq(), ino, 3 << 20, SEEK_DATA).await, Ok(FAR));
    assert_eq!(a.vfs.lseek(&a.rq(), ino, FAR, SEEK_HOLE).await, Ok(FAR + 200_000));
    assert!(a.vfs.lseek(&a.rq(), ino, FAR + 200_000, SEEK_DATA).await.is_err());
    let punch = PUNCH_HOLE | KEEP_SIZE;
    a.vfs.fallocate(&a.rq(), ino, fh, 1 << 20, 1 << 20, punch).await.unwrap();
    a.vfs.fallocate(&a.rq(), ino, fh, FAR + 100_000, 1 << 20, ZERO_RANGE | KEEP_SIZE).await.unwrap();
    a.vfs.fallocate(&a.rq(), ino, fh, FAR + 100_000, 200_000, 0).await.unwrap();
    assert!(a.vfs.fallocate(&a.rq(), ino, fh, 0, 4096, 0x08).await.is_err(), "collapse is not supported");
    a.close(ino, fh).await.unwrap();

    let b = cluster.client();
    let (ino, fh) = b.open("f", libc::O_RDONLY).await.unwrap();
    assert_eq!(b.vfs.getattr(&b.rq(), ino).await.unwrap().0.size, FAR + 300_000);
    let all = |b: &[u8], v: u8| b.iter().all(|x| *x == v);
    assert!(all(&b.pread(ino, fh, 0, 1 << 20).await.unwrap(), 7));
    assert!(all(&b.pread(ino, fh, 1 << 20, 1 << 20).await.unwrap(), 0), "punched");
    assert!(all(&b.pread(ino, fh, 2 << 20, 1 << 20).await.unwrap(), 7));
    assert!(all(&b.pread(ino, fh, FAR, 100_000).await.unwrap(), 9));
    let end = b.pread(ino, fh, FAR + 100_000, 1 << 20).await.unwrap();
    assert!(end.len() == 200_000 && all(&end, 0), "zeroed and grown");
    let (copy, copy_fh) = a.create("copy").await.unwrap();
    let n = a.vfs.copy_file_range(&a.rq(), (ino, 0), (copy.ino, copy_fh, 5), 3 << 20).await.unwrap();
    assert_eq!(n, 3 << 20);
    a.close(copy.ino, copy_fh).await.unwrap();
    let bytes = b.get("copy").await.unwrap();
    assert!(bytes.len() == 5 + (3 << 20) && all(&bytes[..5], 0) && all(&bytes[5..5 + (1 << 20)], 7));
    assert!(all(&bytes[5 + (1 << 20)..5 + (2 << 20)], 0));
}

#[tokio::test]
async fn a_large_directory_is_listed_once_each_whatever_changes_around() {
    let cluster = Cluster::new();
    let a = cluster.client();
    a.mkdir("d").await.unwrap();
    for i in 0..3000 {
        let (attr, fh) = a.create(&format!("d/f{i}")).await.unwrap();
        a.close(attr.ino, fh).await.unwrap();
    }
    let b = cluster.client();
    b.meta.take_counts();
    let mut names = b.list("d").await.unwrap();
    assert!(b.meta.take_counts()["readdir"] <= 4, "pages of a thousand");
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3000);
    assert!(!b.exists("d/none").await && b.exists("d/f2999").await);
    assert_eq!(b.rpcs(), 0, "listed completely, attributes included");
    a.unlink("d/f7").await.unwrap();
    assert_eq!(a.list("d").await.unwrap().len(), 2999);
}
