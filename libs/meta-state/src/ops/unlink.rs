//! unlink(2), and rmdir(2) with `directory`.
//!
//! - NotFound; unlink of a directory IsDirectory (as Linux), rmdir of anything else NotDirectory, rmdir of a directory
//!   with entries NotEmpty.
//! - Inode: nlink (a directory: 0), ctime; without a name it becomes an orphan. Parent: mtime, ctime; rmdir takes a link.
//! - An inode of another partition needs a transaction.

use crate::{
    Cx, Partition, Plan,
    record::{Dentry, DentryKey},
    txn::locks,
};
use fusefs_types::{
    FileKind, FsError, FsResult, Ino,
    ops::{Unlink, WriteReply},
};

/// Everything but the inode itself: the entry that goes.
fn check(p: &Partition, x: &Unlink) -> FsResult<(DentryKey, Dentry)> {
    p.dir(x.parent)?;
    locks::name_free(p, x.parent, &x.name)?;
    let found = p.find(x.parent, &x.name).ok_or(FsError::NotFound)?;
    match (found.1.kind == FileKind::Directory, x.directory) {
        (true, false) => Err(FsError::IsDirectory),
        (false, true) => Err(FsError::NotDirectory),
        _ => Ok(found),
    }
}

/// Whether a directory of ours may go: empty, and no transaction works in it.
pub(crate) fn removable(p: &Partition, ino: Ino) -> FsResult<()> {
    p.dir(ino)?;
    locks::entries_exclusive(p, ino)?;
    if p.is_empty_dir(ino) { Ok(()) } else { Err(FsError::NotEmpty) }
}

pub(super) fn plan(p: &Partition, x: &Unlink) -> Plan {
    match check(p, x) {
        Ok((_, found)) if !p.owns(found.ino) => Plan::Transaction,
        _ => Plan::Local,
    }
}

pub(super) fn apply(p: &mut Partition, cx: &mut Cx, x: &Unlink) -> FsResult<WriteReply> {
    let (key, found) = check(p, x)?;
    if !p.owns(found.ino) {
        return Err(FsError::Conflict);
    }
    if x.directory {
        removable(p, found.ino)?;
    }
    locks::link_free(p, found.ino)?;
    let attr = p.drop_link(cx, found.ino)?;
    p.t.dentries.remove(&key);
    let parent = p.touch_dir(cx, x.parent, -i32::from(x.directory))?;
    Ok(WriteReply::Unlinked { ino: found.ino, nlink: attr.nlink, parent })
}
