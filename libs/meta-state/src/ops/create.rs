//! create, mknod, mkdir, symlink: a new inode and its first name.
//!
//! - Parent: NotDirectory, NotFound when removed. Name taken: Exists; a non-exclusive create of a file finds an existing
//!   regular file instead (IsDirectory for a directory, Exists for other kinds and for a file whose inode another
//!   partition has: look it up and open it there).
//! - Group: the parent's if the parent has set-gid, and a directory inherits the bit.
//! - O_TMPFILE: an inode without a name, an orphan from birth that its maker holds; link gives it the first name. The
//!   directory stays as it is.
//! - Symlink target: empty NotFound, above 4095 bytes NameTooLong; mode 0777. Device numbers only on devices.
//! - Parent: mtime, ctime; mkdir adds a link to it.
//! - NoSpace: no inode numbers, no inode credit, or the 17th collision of a name hash.

use crate::{
    Cx, Partition, Plan,
    record::{Inode, Orphan, Pin, PinKey},
    txn::locks,
};
use fusefs_types::{
    FileKind, FsError, FsResult, Ino, Mode, limits,
    ops::{Create, NewNode, Tmpfile, WriteReply},
};

/// set-gid bit.
pub(crate) const SET_GID: Mode = 0o2000;

/// A directory near the root may go to another partition (PROTOCOL 21).
pub(super) fn plan(p: &Partition, x: &Create) -> Plan {
    let Ok(parent) = p.dir(x.parent) else { return Plan::Local };
    let depth = parent.depth.saturating_add(1);
    let spills = x.node == NewNode::Directory && depth <= limits::SPILL_DEPTH_MAX;
    if spills && p.find(x.parent, &x.name).is_none() { Plan::MaySpill { depth } } else { Plan::Local }
}

/// Bits and group of a new inode below `parent`: (mode, gid).
pub(crate) fn inherit(parent: &Inode, directory: bool, mode: Mode, gid: u32) -> (Mode, u32) {
    let mode = mode & 0o7777;
    match (parent.mode & SET_GID != 0, directory) {
        (true, true) => (mode | SET_GID, parent.gid),
        (true, false) => (mode, parent.gid),
        (false, _) => (mode, gid),
    }
}

fn build(cx: &Cx, x: &Create, parent_ino: Ino, parent: &Inode) -> FsResult<Inode> {
    let kind = match &x.node {
        NewNode::File => FileKind::Regular,
        NewNode::Directory => FileKind::Directory,
        NewNode::Symlink(target) if target.is_empty() => return Err(FsError::NotFound),
        NewNode::Symlink(target) if target.len() > limits::SYMLINK_MAX => return Err(FsError::NameTooLong),
        NewNode::Symlink(target) if target.contains(&0) => return Err(FsError::Invalid),
        NewNode::Symlink(_) => FileKind::Symlink,
        NewNode::Special(FileKind::Directory | FileKind::Symlink, _) => return Err(FsError::Invalid),
        NewNode::Special(kind, _) => *kind,
    };
    let (mode, gid) = inherit(parent, kind == FileKind::Directory, x.mode, x.gid);
    let mut inode = Inode::new(kind, mode, x.uid, gid, cx.stamp);
    inode.project = parent.project;
    match &x.node {
        NewNode::Directory => (inode.parent, inode.depth) = (parent_ino, parent.depth.saturating_add(1)),
        NewNode::Symlink(target) => {
            inode.mode = 0o777;
            inode.size = target.len() as u64;
            inode.target = target.clone();
        }
        NewNode::Special(FileKind::CharDevice | FileKind::BlockDevice, rdev) => inode.rdev = *rdev,
        NewNode::File | NewNode::Special(..) => {}
    }
    Ok(inode)
}

pub(super) fn apply(p: &mut Partition, cx: &mut Cx, x: &Create) -> FsResult<WriteReply> {
    let parent = p.dir(x.parent)?;
    locks::name_free(p, x.parent, &x.name)?;
    if let Some((_, found)) = p.find(x.parent, &x.name) {
        if x.exclusive || x.node != NewNode::File {
            return Err(FsError::Exists);
        }
        return match found.kind {
            FileKind::Regular if p.owns(found.ino) => Ok(WriteReply::Created {
                attr: p.inode(found.ino)?.attr(found.ino),
                existed: true,
                parent: parent.attr(x.parent),
            }),
            FileKind::Directory => Err(FsError::IsDirectory),
            _ => Err(FsError::Exists),
        };
    }
    locks::entries_shared(p, x.parent)?;
    let inode = build(cx, x, x.parent, &parent)?;
    let key = p.free_cookie(x.parent, &x.name)?;
    p.can_alloc()?;
    let ino = p.new_inode(&inode)?;
    p.add_name(key, &x.name, ino, inode.kind);
    let parent = p.touch_dir(cx, x.parent, i32::from(inode.is_dir()))?;
    Ok(WriteReply::Created { attr: inode.attr(ino), existed: false, parent })
}

pub(super) fn unnamed(p: &mut Partition, cx: &mut Cx, x: &Tmpfile) -> FsResult<WriteReply> {
    let session = cx.caller.as_ref().map(|c| c.session).ok_or(FsError::Invalid)?;
    let parent = p.dir(x.parent)?;
    let (mode, gid) = inherit(&parent, false, x.mode, x.gid);
    let mut inode = Inode::new(FileKind::Regular, mode, x.uid, gid, cx.stamp);
    (inode.project, inode.nlink) = (parent.project, 0);
    p.can_alloc()?;
    let ino = p.new_inode(&inode)?;
    p.t.orphans.put(&ino, &Orphan { since: cx.stamp, maker: Some(session) });
    // It need not be asked: its answer is known.
    p.t.pins.put(&PinKey { ino, session }, &Pin { held: true });
    Ok(WriteReply::Created { attr: inode.attr(ino), existed: false, parent: parent.attr(x.parent) })
}
