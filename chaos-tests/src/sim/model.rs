//! The reference: one tree, one operation at a time. Errors are sets, because an operation that fails for two reasons may
//! name either.

use fusefs_types::{
    FsError, FsResult, Ino, Name,
    ops::{NewNode, RenameMode, Write, WriteReply},
};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    pub dir: bool,
    pub nlink: u32,
    pub parent: u64,
    pub entries: BTreeMap<Vec<u8>, u64>,
}

/// Inodes with at least one name (and the root), by number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Model(pub BTreeMap<u64, Node>);

fn key(name: &Name) -> Vec<u8> {
    name.as_bytes().to_vec()
}

impl Default for Model {
    fn default() -> Model {
        Model::new()
    }
}

impl Model {
    pub fn new() -> Model {
        let root = Node { dir: true, nlink: 2, parent: 1, entries: BTreeMap::new() };
        Model(BTreeMap::from([(1, root)]))
    }
    fn dir(&self, ino: Ino, errors: &mut Vec<FsError>) -> bool {
        match self.0.get(&ino.0) {
            Some(n) if n.dir => true,
            Some(_) => {
                errors.push(FsError::NotDirectory);
                false
            }
            None => {
                errors.push(FsError::NotFound);
                false
            }
        }
    }
    pub fn lookup(&self, parent: Ino, name: &Name) -> Option<u64> {
        self.0.get(&parent.0)?.entries.get(&key(name)).copied()
    }
    pub fn nlink(&self, ino: Ino) -> u32 {
        self.0.get(&ino.0).map_or(0, |n| n.nlink)
    }
    fn below(&self, top: u64, mut at: u64) -> bool {
        for _ in 0..1000 {
            if at == top {
                return true;
            }
            if at == 1 {
                return false;
            }
            match self.0.get(&at) {
                Some(n) => at = n.parent,
                None => return false,
            }
        }
        true
    }
    fn add(&mut self, parent: Ino, name: &Name, ino: u64) {
        let dir = self.0[&ino].dir;
        if let Some(p) = self.0.get_mut(&parent.0) {
            p.entries.insert(key(name), ino);
            p.nlink += u32::from(dir);
        }
        if let (true, Some(n)) = (dir, self.0.get_mut(&ino)) {
            n.parent = parent.0;
        }
    }
    fn cut(&mut self, parent: Ino, name: &Name, drop: bool) -> u32 {
        let Some(ino) = self.0.get_mut(&parent.0).and_then(|p| p.entries.remove(&key(name))) else { return 0 };
        let dir = self.0[&ino].dir;
        if dir && let Some(p) = self.0.get_mut(&parent.0) {
            p.nlink -= 1;
        }
        if !drop {
            return 0;
        }
        let left = if dir { 0 } else { self.0[&ino].nlink - 1 };
        if left == 0 {
            self.0.remove(&ino);
        } else if let Some(n) = self.0.get_mut(&ino) {
            n.nlink = left;
        }
        left
    }
    /// Executes `write` if `seen` is a possible answer here; false if it is not.
    pub fn step(&mut self, write: &Write, seen: &FsResult<WriteReply>) -> bool {
        let mut e = Vec::new();
        match write {
            Write::Create(x) => {
                if self.dir(x.parent, &mut e) && self.lookup(x.parent, &x.name).is_some() {
                    e.push(FsError::Exists);
                }
                let Ok(WriteReply::Created { attr, .. }) = seen else { return failed(&e, seen) };
                if !e.is_empty() || self.0.contains_key(&attr.ino.0) {
                    return false;
                }
                let dir = x.node == NewNode::Directory;
                let nlink = if dir { 2 } else { 1 };
                self.0.insert(attr.ino.0, Node { dir, nlink, parent: 0, entries: BTreeMap::new() });
                self.add(x.parent, &x.name, attr.ino.0);
                attr.nlink == nlink
            }
            Write::Link(x) => {
                if self.dir(x.parent, &mut e) && self.lookup(x.parent, &x.name).is_some() {
                    e.push(FsError::Exists);
                }
                match self.0.get(&x.ino.0) {
                    None => e.extend([FsError::NotFound, FsError::NotPermitted]), // it may have been a directory
                    Some(n) if n.dir => e.push(FsError::NotPermitted),
                    _ => {}
                }
                let Ok(WriteReply::Linked { attr, .. }) = seen else { return failed(&e, seen) };
                if !e.is_empty() {
                    return false;
                }
                if let Some(n) = self.0.get_mut(&x.ino.0) {
                    n.nlink += 1;
                }
                self.add(x.parent, &x.name, x.ino.0);
                attr.ino == x.ino && attr.nlink == self.nlink(x.ino)
            }
            Write::Unlink(x) => {
                let found = if self.dir(x.parent, &mut e) { self.lookup(x.parent, &x.name) } else { None };
                match found.and_then(|i| self.0.get(&i)) {
                    None => e.push(FsError::NotFound),
                    Some(n) if n.dir && !x.directory => e.push(FsError::IsDirectory),
                    Some(n) if !n.dir && x.directory => e.push(FsError::NotDirectory),
                    Some(n) if n.dir && !n.entries.is_empty() => e.push(FsError::NotEmpty),
                    _ => {}
                }
                let Ok(WriteReply::Unlinked { ino, nlink, .. }) = seen else { return failed(&e, seen) };
                e.is_empty() && found == Some(ino.0) && self.cut(x.parent, &x.name, true) == *nlink
            }
            Write::Rename(x) => self.rename(x, seen),
            _ => false,
        }
    }
    fn rename(&mut self, x: &fusefs_types::ops::Rename, seen: &FsResult<WriteReply>) -> bool {
        let mut e = Vec::new();
        let from = if self.dir(x.parent, &mut e) { self.lookup(x.parent, &x.name) } else { None };
        let to = if self.dir(x.new_parent, &mut e) { self.lookup(x.new_parent, &x.new_name) } else { None };
        let Some(moved) = from else {
            e.push(FsError::NotFound);
            return failed(&e, seen);
        };
        let no_replace = x.mode == RenameMode::NoReplace;
        if to == Some(moved) && !no_replace {
            return e.is_empty() && *seen == Ok(WriteReply::Renamed { ino: Ino(moved), replaced: None });
        }
        let dir = self.0[&moved].dir;
        if dir && self.below(moved, x.new_parent.0) {
            e.push(FsError::Invalid);
        }
        if let Some(n) = to.map(|t| &self.0[&t]) {
            if no_replace {
                e.push(FsError::Exists);
            }
            match (dir, n.dir) {
                (true, false) => e.push(FsError::NotDirectory),
                (false, true) => e.push(FsError::IsDirectory),
                (true, true) if !n.entries.is_empty() => e.push(FsError::NotEmpty),
                _ => {}
            }
        }
        let Ok(WriteReply::Renamed { ino, replaced }) = seen else { return failed(&e, seen) };
        if !e.is_empty() || ino.0 != moved || replaced.map(|i| i.0) != to {
            return false;
        }
        if to.is_some() {
            self.cut(x.new_parent, &x.new_name, true);
        }
        self.cut(x.parent, &x.name, false);
        self.add(x.new_parent, &x.new_name, moved);
        true
    }
}

fn failed(possible: &[FsError], seen: &FsResult<WriteReply>) -> bool {
    matches!(seen, Err(e) if possible.contains(e))
}
