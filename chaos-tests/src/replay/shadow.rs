//! What must be in the tree: told by the jobs at their end, compared byte for byte then and after every client was mounted
//! again. Kept outside of the tree.

use super::io::{Io, Step, difference, mtime, nlink};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Differences told at most.
const TOLD: usize = 40;

/// One name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Entry {
    /// Directory.
    Dir,
    /// Symbolic link and its target.
    Symlink(PathBuf),
    /// Regular file.
    File {
        /// SHA-256 of the content, which is also the name of its copy.
        content: String,
        /// Permission bits.
        mode: u32,
        /// Link count.
        nlink: u64,
        /// Modification time.
        mtime: (i64, i64),
        /// Extended attributes, values in hex.
        xattrs: BTreeMap<String, String>,
    },
}

/// The expected tree.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Shadow {
    root: PathBuf,
    copies: PathBuf,
    entries: BTreeMap<PathBuf, Entry>,
    /// Directories whose job had a problem: what is in them is not known.
    spoiled: BTreeSet<PathBuf>,
}

impl Shadow {
    /// Of the tree at `root`, with copies of the contents in `copies`.
    pub fn new(root: &Path, copies: &Path) -> Shadow {
        Shadow { root: root.into(), copies: copies.into(), ..Shadow::default() }
    }
    /// An empty one for the same tree.
    pub fn empty(&self) -> Shadow {
        Shadow::new(&self.root, &self.copies)
    }
    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap_or(path).to_path_buf()
    }
    /// A directory, and those above it.
    pub fn dir(&mut self, io: &mut Io, path: &Path) -> Step {
        io.lstat(path)?;
        let relative = self.relative(path);
        for above in relative.ancestors().filter(|a| !a.as_os_str().is_empty()) {
            self.entries.insert(above.to_path_buf(), Entry::Dir);
        }
        Ok(())
    }
    /// A closed file. Its times must not change from now on.
    pub fn file(&mut self, io: &mut Io, path: &Path, want: &[u8]) -> Step {
        let stat = io.lstat(path)?;
        io.equal("size", path, want.len() as i64, stat.st_size)?;
        let content = hex::encode(Sha256::digest(want));
        if let Err(e) = fs::write(self.copies.join(&content), want) {
            return Err(io.mismatch("keeping a copy", path, e.to_string()));
        }
        let (mode, nlink) = (stat.st_mode & 0o7777, nlink(&stat));
        let entry = Entry::File { content, mode, nlink, mtime: mtime(&stat), xattrs: BTreeMap::new() };
        self.entries.insert(self.relative(path), entry);
        Ok(())
    }
    /// A symbolic link.
    pub fn symlink(&mut self, io: &mut Io, path: &Path, target: &Path) -> Step {
        io.lstat(path)?;
        self.entries.insert(self.relative(path), Entry::Symlink(target.into()));
        Ok(())
    }
    /// An extended attribute of a file that was told before.
    pub fn xattr(&mut self, path: &Path, key: &str, value: &[u8]) {
        if let Some(Entry::File { xattrs, .. }) = self.entries.get_mut(&self.relative(path)) {
            xattrs.insert(key.into(), hex::encode(value));
        }
    }
    /// What is below `path` is not known.
    pub fn spoil(&mut self, path: &Path) {
        let relative = self.relative(path);
        self.spoiled.insert(relative);
    }
    /// Adds what another thread told.
    pub fn merge(&mut self, other: Shadow) {
        self.entries.extend(other.entries);
        self.spoiled.extend(other.spoiled);
    }
    /// Names told.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
    /// Whether nothing was told.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
    /// Writes it.
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(fs::write(path, serde_json::to_vec(self)?)?)
    }
    /// Reads it.
    pub fn load(path: &Path) -> Result<Shadow> {
        Ok(serde_json::from_slice(&fs::read(path).with_context(|| path.display().to_string())?)?)
    }
    /// Compares the whole tree, now at `root`: differences in words.
    pub fn differences(&self, root: &Path) -> Result<Vec<String>> {
        let (mut out, mut seen) = (Vec::new(), BTreeSet::new());
        self.walk(root, root, &mut seen, &mut out)?;
        let known = |p: &Path| p.ancestors().any(|a| self.spoiled.contains(a));
        for path in self.entries.keys().filter(|p| !seen.contains(*p) && !known(p)) {
            out.push(format!("{}: is missing", path.display()));
        }
        let more = out.len().saturating_sub(TOLD);
        out.truncate(TOLD);
        if more > 0 {
            out.push(format!("and {more} more differences"));
        }
        Ok(out)
    }
    fn walk(&self, root: &Path, dir: &Path, seen: &mut BTreeSet<PathBuf>, out: &mut Vec<String>) -> Result<()> {
        for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
            let path = entry?.path();
            let relative = path.strip_prefix(root)?.to_path_buf();
            if self.spoiled.contains(&relative) {
                continue;
            }
            if !seen.insert(relative.clone()) {
                out.push(format!("{}: is listed twice", relative.display()));
                continue;
            }
            let Some(want) = self.entries.get(&relative) else {
                // The parents of spoiled directories may be unknown too.
                if self.spoiled.iter().any(|s| s.starts_with(&relative)) {
                    self.walk(root, &path, seen, out)?;
                } else {
                    out.push(format!("{}: appeared", relative.display()));
                }
                continue;
            };
            if let Err(why) = self.compare(&path, want) {
                out.push(format!("{}: {why:#}", relative.display()));
            }
            if matches!(want, Entry::Dir) {
                self.walk(root, &path, seen, out)?;
            }
        }
        Ok(())
    }
    fn compare(&self, path: &Path, want: &Entry) -> Result<()> {
        let stat = fs::symlink_metadata(path)?;
        match want {
            Entry::Dir => anyhow::ensure!(stat.is_dir(), "is no directory any more"),
            Entry::Symlink(target) => {
                let have = fs::read_link(path)?;
                anyhow::ensure!(&have == target, "points to {} instead of {}", have.display(), target.display());
            }
            Entry::File { content, mode, nlink, mtime, xattrs } => {
                anyhow::ensure!(stat.is_file(), "is no file any more");
                let want_bytes = fs::read(self.copies.join(content))?;
                if let Some(words) = difference(&want_bytes, &fs::read(path)?, 0) {
                    anyhow::bail!("content: {words}");
                }
                let have = (stat.mode() & 0o7777, stat.nlink(), (stat.mtime(), stat.mtime_nsec()));
                let want = (*mode, *nlink, *mtime);
                anyhow::ensure!(have == want, "mode, links, mtime are {have:?} instead of {want:?}");
                for (key, value) in xattrs {
                    let mut have = vec![0; 8192];
                    let n = rustix::fs::getxattr(path, key.as_str(), &mut have[..]).with_context(|| key.clone())?;
                    anyhow::ensure!(&hex::encode(&have[..n]) == value, "xattr {key} has another value");
                }
            }
        }
        Ok(())
    }
}
