//! link(2): one more name for an inode.
//!
//! - Parent: NotDirectory, NotFound when removed. Name taken: Exists. Directory: NotPermitted. Inode gone or without any
//!   name: NotFound, unless it never had one (O_TMPFILE) and its maker still has it open. At `LINK_MAX` names: TooManyLinks.
//! - Inode: nlink, ctime. Parent: mtime, ctime.
//! - An inode of another partition needs a transaction.

use crate::{
    Cx, Partition, Plan,
    record::{DentryKey, Inode},
    txn::locks,
};
use fusefs_types::{
    FsError, FsResult, Ino, limits,
    ops::{Link, WriteReply},
};

/// Everything but the inode itself, which may live elsewhere: where the name goes.
fn check(p: &Partition, x: &Link) -> FsResult<DentryKey> {
    p.dir(x.parent)?;
    locks::name_free(p, x.parent, &x.name)?;
    if p.find(x.parent, &x.name).is_some() {
        return Err(FsError::Exists);
    }
    locks::entries_shared(p, x.parent)?;
    p.free_cookie(x.parent, &x.name)
}

/// Whether the inode may get another name.
pub(crate) fn linkable(p: &Partition, ino: Ino, inode: &Inode) -> FsResult<()> {
    match inode {
        i if i.is_dir() => Err(FsError::NotPermitted),
        i if i.nlink == 0 && !p.may_be_named(ino) => Err(FsError::NotFound),
        i if i.nlink >= limits::LINK_MAX => Err(FsError::TooManyLinks),
        _ => Ok(()),
    }
}

pub(super) fn plan(p: &Partition, x: &Link) -> Plan {
    if check(p, x).is_ok() && !p.owns(x.ino) { Plan::Transaction } else { Plan::Local }
}

pub(super) fn apply(p: &mut Partition, cx: &mut Cx, x: &Link) -> FsResult<WriteReply> {
    let key = check(p, x)?;
    if !p.owns(x.ino) {
        return Err(FsError::Conflict);
    }
    let inode = p.inode(x.ino)?;
    linkable(p, x.ino, &inode)?;
    locks::link_free(p, x.ino)?;
    let attr = p.add_link(cx, x.ino)?;
    p.add_name(key, &x.name, x.ino, inode.kind);
    let parent = p.touch_dir(cx, x.parent, 0)?;
    Ok(WriteReply::Linked { attr, parent })
}
