//! renameat2(2).
//!
//! - Source missing: NotFound. A name onto itself, or onto another name of the same inode: nothing happens (NoReplace:
//!   Exists). A directory replaces only an empty directory (NotDirectory, NotEmpty), anything else only a non-directory
//!   (IsDirectory). NoReplace: Exists. Exchange: both must exist (NotFound).
//! - A directory never moves below itself: Invalid (Exchange: neither side).
//! - Both parents: mtime, ctime, links of moved and replaced subdirectories. Moved inode: ctime. Replaced inode: as
//!   unlink.
//! - Local only if the target directory, the moved and the replaced inode are here, and, when a directory gets another
//!   parent, the whole way from the new parent up to the root is here, too, and no transaction holds the topology or a
//!   link on that way. Otherwise a transaction; Exchange over partitions is Invalid for now.

use crate::{
    Cx, Partition, Plan,
    ops::unlink::removable,
    record::{Dentry, DentryKey},
    txn::locks,
};
use fusefs_types::{
    FileKind, FsError, FsResult, Ino, limits,
    ops::{Rename, RenameMode, WriteReply},
};

/// A rename that passed the checks.
enum Verdict {
    /// Source and target are the same inode.
    Nothing(Ino),
    /// Needs other partitions.
    Transaction,
    /// May be done here.
    Local { from: (DentryKey, Dentry), to: DentryKey, target: Option<Dentry> },
}

/// Whether `ino` lies on the way from `start` up to the root; None when the way leaves this partition.
fn is_above(p: &Partition, ino: Ino, start: Ino) -> FsResult<Option<bool>> {
    let mut at = start;
    // The bound only matters for damaged trees: a path of 4096 bytes has at most 2048 directories, moves make it deeper.
    for _ in 0..limits::PATH_MAX * 16 {
        if at == ino {
            return Ok(Some(true));
        }
        if !p.owns(at) {
            return Ok(None);
        }
        locks::link_free(p, at)?;
        if at == Ino::ROOT {
            return Ok(Some(false));
        }
        at = p.inode(at)?.parent;
    }
    Err(FsError::Loop)
}

/// A directory gets another parent: Ok(true) = allowed here, Ok(false) = needs a transaction.
fn may_move(p: &Partition, dir: Ino, new_parent: Ino) -> FsResult<bool> {
    match is_above(p, dir, new_parent)? {
        Some(true) => Err(FsError::Invalid),
        Some(false) => locks::topology_free(p).map(|()| true),
        None => Ok(false),
    }
}

fn check(p: &Partition, x: &Rename) -> FsResult<Verdict> {
    p.dir(x.parent)?;
    locks::name_free(p, x.parent, &x.name)?;
    let from = p.find(x.parent, &x.name).ok_or(FsError::NotFound)?;
    let exchange = x.mode == RenameMode::Exchange;
    if !p.owns(x.new_parent) {
        return if exchange { Err(FsError::Invalid) } else { Ok(Verdict::Transaction) };
    }
    p.dir(x.new_parent)?;
    locks::name_free(p, x.new_parent, &x.new_name)?;
    locks::entries_shared(p, x.new_parent)?;
    let target = p.find(x.new_parent, &x.new_name);
    match (&target, x.mode) {
        (Some(_), RenameMode::NoReplace) => return Err(FsError::Exists),
        (None, RenameMode::Exchange) => return Err(FsError::NotFound),
        (Some((_, t)), _) if t.ino == from.1.ino => return Ok(Verdict::Nothing(t.ino)),
        _ => {}
    }
    let source_dir = from.1.kind == FileKind::Directory;
    if let (Some((_, t)), false) = (&target, exchange) {
        match (source_dir, t.kind == FileKind::Directory) {
            (true, false) => return Err(FsError::NotDirectory),
            (false, true) => return Err(FsError::IsDirectory),
            _ => {}
        }
    }
    let remote = !p.owns(from.1.ino) || target.as_ref().is_some_and(|(_, t)| !p.owns(t.ino));
    if remote {
        return if exchange { Err(FsError::Invalid) } else { Ok(Verdict::Transaction) };
    }
    check_inodes(p, x, from, target)
}

/// The part of the checks that looks at inodes, all of which are ours.
fn check_inodes(
    p: &Partition,
    x: &Rename,
    from: (DentryKey, Dentry),
    target: Option<(DentryKey, Dentry)>,
) -> FsResult<Verdict> {
    let exchange = x.mode == RenameMode::Exchange;
    if x.parent != x.new_parent {
        if from.1.kind == FileKind::Directory && !may_move(p, from.1.ino, x.new_parent)? {
            return if exchange { Err(FsError::Invalid) } else { Ok(Verdict::Transaction) };
        }
        if let (Some((_, t)), true) = (&target, exchange)
            && t.kind == FileKind::Directory
            && !may_move(p, t.ino, x.parent)?
        {
            return Err(FsError::Invalid);
        }
    }
    p.inode(from.1.ino)?;
    locks::link_free(p, from.1.ino)?;
    if let Some((_, t)) = &target {
        p.inode(t.ino)?;
        locks::link_free(p, t.ino)?;
        if t.kind == FileKind::Directory && !exchange {
            removable(p, t.ino)?;
        }
    }
    let (to, target) = match target {
        Some((key, t)) => (key, Some(t)),
        None => (p.free_cookie(x.new_parent, &x.new_name)?, None),
    };
    Ok(Verdict::Local { from, to, target })
}

pub(super) fn plan(p: &Partition, x: &Rename) -> Plan {
    if matches!(check(p, x), Ok(Verdict::Transaction)) { Plan::Transaction } else { Plan::Local }
}

pub(super) fn apply(p: &mut Partition, cx: &mut Cx, x: &Rename) -> FsResult<WriteReply> {
    let (from_key, from, to, target) = match check(p, x)? {
        Verdict::Nothing(ino) => return Ok(WriteReply::Renamed { ino, replaced: None }),
        Verdict::Transaction => return Err(FsError::Conflict),
        Verdict::Local { from: (key, from), to, target } => (key, from, to, target),
    };
    let dir = |d: &Dentry| i32::from(d.kind == FileKind::Directory);
    let came = dir(&from);
    let left = target.as_ref().map_or(0, dir);
    if x.mode == RenameMode::Exchange {
        let Some(other) = &target else { return Err(FsError::NotFound) };
        p.add_name(from_key, &x.name, other.ino, other.kind);
        p.add_name(to, &x.new_name, from.ino, from.kind);
        settle(p, cx, other.ino, x.parent)?;
        links(p, cx, x, left - came, came - left)?;
    } else {
        p.t.dentries.remove(&from_key);
        p.add_name(to, &x.new_name, from.ino, from.kind);
        if let Some(t) = &target {
            p.drop_link(cx, t.ino)?;
        }
        links(p, cx, x, -came, came - left)?;
    }
    settle(p, cx, from.ino, x.new_parent)?;
    Ok(WriteReply::Renamed { ino: from.ino, replaced: target.map(|t| t.ino) })
}

/// Both directories: times and links.
fn links(p: &mut Partition, cx: &Cx, x: &Rename, old: i32, new: i32) -> FsResult<()> {
    if x.parent == x.new_parent {
        p.touch_dir(cx, x.parent, old + new)?;
    } else {
        p.touch_dir(cx, x.parent, old)?;
        p.touch_dir(cx, x.new_parent, new)?;
    }
    Ok(())
}

/// The moved inode: ctime, parent, depth hint.
fn settle(p: &mut Partition, cx: &Cx, ino: Ino, parent: Ino) -> FsResult<()> {
    p.moved(cx, ino, parent)?;
    let mut inode = p.inode(ino)?;
    if inode.is_dir() {
        inode.depth = p.inode(parent)?.depth.saturating_add(1);
        p.put_inode(ino, &inode);
    }
    Ok(())
}
