//! Symbolic links, hard links, extended attributes.

use super::{Job, Place, Shadow};
use crate::replay::io::{Io, Step, nlink};
use rustix::fs::{OFlags, XattrFlags};
use std::{
    collections::BTreeMap,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// Groups of names that stay.
const KEPT: usize = 8;

struct Group {
    file: PathBuf,
    hard: PathBuf,
    soft: PathBuf,
    target: PathBuf,
    content: Vec<u8>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

struct Links {
    place: Place,
    next: u64,
    kept: Vec<Group>,
}

pub(super) fn make(place: Place, _: &mut Io) -> Step<Box<dyn Job>> {
    Ok(Box::new(Links { place, next: 0, kept: Vec::new() }))
}

fn check_link(io: &mut Io, path: &Path, target: &Path) -> Step {
    let have = io.readlink(path)?;
    io.equal("link target", path, target.as_os_str().as_bytes().to_vec(), have)
}

fn check_nlink(io: &mut Io, path: &Path, want: u64) -> Step {
    let have = nlink(&io.lstat(path)?);
    io.equal("link count", path, want, have)
}

fn check_xattrs(io: &mut Io, group: &Group) -> Step {
    let names: Vec<_> = group.xattrs.keys().cloned().collect();
    let have = io.list_xattrs(&group.hard)?;
    io.equal("names of xattrs", &group.hard, names, have)?;
    for (key, value) in &group.xattrs {
        let have = io.get_xattr(&group.file, key)?;
        io.equal(&format!("xattr {key}"), &group.file, Some(value), have.as_ref())?;
    }
    Ok(())
}

fn check(io: &mut Io, group: &Group) -> Step {
    check_link(io, &group.soft, &group.target)?;
    check_nlink(io, &group.file, 2)?;
    check_xattrs(io, group)?;
    let fd = io.open(&group.hard, OFlags::RDONLY)?;
    io.check_whole("hard link", &fd, &group.content)?;
    io.close(fd)
}

impl Links {
    fn add(&mut self, io: &mut Io) -> Step<Group> {
        let (n, dir) = (self.next, &self.place.dir);
        self.next += 1;
        let target = PathBuf::from(format!("../target of {n}/{}", "x".repeat((n % 50) as usize)));
        let group = Group {
            file: dir.join(format!("f{n}")),
            hard: dir.join(format!("h{n}")),
            soft: dir.join(format!("s{n}")),
            target,
            content: format!("written through {n}").into_bytes(),
            xattrs: BTreeMap::new(),
        };
        let fd = io.open(&group.file, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY)?;
        io.link(&group.file, &group.hard)?;
        check_nlink(io, &group.hard, 2)?;
        io.pwrite(&fd, &group.content, 0)?;
        io.close(fd)?;
        let first = dir.join(format!("t{n}"));
        io.symlink(&group.target, &first)?;
        io.rename(&first, &group.soft)?;
        io.absent(&first)?;
        Ok(group)
    }
    fn attributes(&mut self, io: &mut Io, group: &mut Group) -> Step {
        let rng = &mut self.place.rng;
        let key = format!("user.key{}", rng.below(4));
        let size = rng.below(600) as usize;
        let (value, remove) = (rng.bytes(size), rng.chance(35));
        match (group.xattrs.contains_key(&key), remove) {
            (true, true) => {
                io.remove_xattr(&group.hard, &key)?;
                group.xattrs.remove(&key);
                let left = io.get_xattr(&group.file, &key)?;
                io.equal("removed xattr", &group.file, None, left.as_ref())?;
            }
            (exists, _) => {
                let flags = if exists { XattrFlags::REPLACE } else { XattrFlags::CREATE };
                io.set_xattr(&group.file, &key, &value, flags)?;
                group.xattrs.insert(key, value);
            }
        }
        check_xattrs(io, group)
    }
}

impl Job for Links {
    fn step(&mut self, io: &mut Io) -> Step {
        let mut group = self.add(io)?;
        for _ in 0..3 {
            self.attributes(io, &mut group)?;
        }
        self.kept.push(group);
        let at = self.place.rng.below(self.kept.len() as u64) as usize;
        let mut group = self.kept.swap_remove(at);
        self.attributes(io, &mut group)?;
        check(io, &group)?;
        if self.kept.len() < KEPT {
            self.kept.push(group);
            return Ok(());
        }
        io.unlink(&group.file)?;
        check_nlink(io, &group.hard, 1)?;
        io.unlink(&group.hard)?;
        io.unlink(&group.soft)?;
        io.absent(&group.hard)?;
        io.absent(&group.soft)
    }
    fn finish(self: Box<Self>, io: &mut Io, tree: &mut Shadow) -> Step {
        tree.dir(io, &self.place.dir)?;
        for group in &self.kept {
            check(io, group)?;
            tree.file(io, &group.file, &group.content)?;
            tree.file(io, &group.hard, &group.content)?;
            tree.symlink(io, &group.soft, &group.target)?;
            for (key, value) in &group.xattrs {
                tree.xattr(&group.file, key, value);
            }
        }
        Ok(())
    }
}
