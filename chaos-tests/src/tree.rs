//! What a directory tree looks like to an application: for comparisons before and after a disaster.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Everything that must survive about one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub owner: (u32, u32),
    /// Link count (files).
    pub nlink: u64,
    /// Modification time in ns.
    pub mtime: (i64, i64),
    /// SHA-256 of contents or link target, empty for others.
    pub content: String,
}

/// Path below the root -> node. Hard-linked files are recorded under each name.
pub type Manifest = BTreeMap<PathBuf, Node>;

/// Reads a whole tree.
pub fn manifest(root: &Path) -> Result<Manifest> {
    let mut out = Manifest::new();
    walk(root, root, &mut out)?;
    Ok(out)
}

fn walk(root: &Path, dir: &Path, out: &mut Manifest) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let path = entry?.path();
        let m = fs::symlink_metadata(&path).with_context(|| format!("stat {}", path.display()))?;
        let t = m.file_type();
        let content = if t.is_symlink() {
            fs::read_link(&path)?.display().to_string()
        } else if t.is_file() {
            hex::encode(Sha256::digest(fs::read(&path).with_context(|| format!("reading {}", path.display()))?))
        } else {
            String::new()
        };
        let node = Node {
            mode: m.mode(),
            owner: (m.uid(), m.gid()),
            nlink: if t.is_dir() || t.is_socket() { 0 } else { m.nlink() },
            mtime: (m.mtime(), m.mtime_nsec()),
            content,
        };
        out.insert(path.strip_prefix(root)?.to_path_buf(), node);
        if t.is_dir() {
            walk(root, &path, out)?;
        }
    }
    Ok(())
}

/// Differences in words, at most 20.
pub fn differences(want: &Manifest, have: &Manifest) -> Vec<String> {
    let mut out = Vec::new();
    for (path, node) in want {
        match have.get(path) {
            None => out.push(format!("{} is missing", path.display())),
            Some(other) if other != node => out.push(format!("{}: {node:?} became {other:?}", path.display())),
            _ => {}
        }
    }
    out.extend(have.keys().filter(|p| !want.contains_key(*p)).map(|p| format!("{} appeared", p.display())));
    out.truncate(20);
    out
}

/// At least `files` source files from the cargo registry of this machine, copied into `to` with `cp -a` (fresh copies on
/// a local disk, so that modes and times can be changed).
pub fn source_tree(to: &Path, files: usize) -> Result<usize> {
    let home = std::env::var("CARGO_HOME")
        .map_or_else(|_| PathBuf::from(std::env::var("HOME").unwrap_or_default()).join(".cargo"), PathBuf::from);
    let mut crates: Vec<_> = fs::read_dir(home.join("registry/src"))?
        .flatten()
        .flat_map(|r| fs::read_dir(r.path()).into_iter().flatten().flatten())
        .map(|e| e.path())
        .collect();
    crates.sort();
    let mut total = 0;
    for path in crates {
        let n = count(&path)?;
        // Huge vendored C trees would only make the copy longer, not better.
        if n > 1500 {
            continue;
        }
        crate::stack::sh(to, "cp", &["-a", &path.display().to_string(), "."])?;
        total += n;
        if total >= files {
            return Ok(total);
        }
    }
    anyhow::bail!("the cargo registry holds only {total} suitable files")
}

/// Regular files below a directory.
pub fn count(dir: &Path) -> Result<usize> {
    let mut n = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        n += if entry.file_type()?.is_dir() { count(&entry.path())? } else { 1 };
    }
    Ok(n)
}
