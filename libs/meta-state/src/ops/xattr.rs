//! setxattr(2), removexattr(2), and their reads.
//!
//! - Name: 1..=255 bytes without NUL (Range otherwise); `system.*` is NotSupported (ACLs come later). Value above 64 KiB:
//!   TooBig. All names of an inode together above 64 KiB: NoSpace.
//! - Create on a present one: Exists; Replace or remove of an absent one: NoData.
//! - ctime and version change, mtime does not.

use crate::{
    Cx, Partition,
    codec::Put,
    record::{Xattr, XattrKey},
};
use bytes::Bytes;
use fusefs_types::{
    FsError, FsResult, Ino, limits,
    ops::{RemoveXattr, SetXattr, WriteReply, XattrMode},
};

impl Partition {
    /// All attributes of an inode in name order.
    pub(crate) fn xattrs_of(&self, ino: Ino) -> impl Iterator<Item = (XattrKey, Xattr)> {
        let mut prefix = Vec::with_capacity(8);
        prefix.key64(ino.0);
        self.t.xattrs.prefix(prefix)
    }
}

fn check_name(name: &Bytes) -> FsResult<()> {
    if name.is_empty() || name.len() > limits::XATTR_NAME_MAX || name.contains(&0) {
        return Err(FsError::Range);
    }
    if name.starts_with(b"system.") { Err(FsError::NotSupported) } else { Ok(()) }
}

pub(super) fn set(p: &mut Partition, cx: &mut Cx, x: &SetXattr) -> FsResult<WriteReply> {
    check_name(&x.name)?;
    if x.value.len() > limits::XATTR_VALUE_MAX {
        return Err(FsError::TooBig);
    }
    let mut inode = p.inode(x.ino)?;
    let key = XattrKey { ino: x.ino, name: x.name.clone() };
    match (p.t.xattrs.contains(&key), x.mode) {
        (true, XattrMode::Create) => return Err(FsError::Exists),
        (false, XattrMode::Replace) => return Err(FsError::NoData),
        (true, _) => {}
        (false, _) => {
            let names: usize = p.xattrs_of(x.ino).map(|(k, _)| k.name.len() + 1).sum();
            if names + x.name.len() + 1 > limits::XATTR_LIST_MAX {
                return Err(FsError::NoSpace);
            }
            inode.xattrs += 1;
        }
    }
    p.t.xattrs.put(&key, &Xattr { value: x.value.clone() });
    inode.touch(cx.stamp);
    p.put_inode(x.ino, &inode);
    Ok(WriteReply::Attr(inode.attr(x.ino)))
}

pub(super) fn remove(p: &mut Partition, cx: &mut Cx, x: &RemoveXattr) -> FsResult<WriteReply> {
    check_name(&x.name)?;
    let mut inode = p.inode(x.ino)?;
    if !p.t.xattrs.remove(&XattrKey { ino: x.ino, name: x.name.clone() }) {
        return Err(FsError::NoData);
    }
    inode.xattrs = inode.xattrs.saturating_sub(1);
    inode.touch(cx.stamp);
    p.put_inode(x.ino, &inode);
    Ok(WriteReply::Attr(inode.attr(x.ino)))
}

pub(super) fn get(p: &Partition, ino: Ino, name: &Bytes) -> FsResult<Bytes> {
    check_name(name)?;
    p.inode(ino)?;
    p.t.xattrs.get(&XattrKey { ino, name: name.clone() }).map(|x| x.value).ok_or(FsError::NoData)
}

pub(super) fn list(p: &Partition, ino: Ino) -> FsResult<Vec<Bytes>> {
    p.inode(ino)?;
    Ok(p.xattrs_of(ino).map(|(k, _)| k.name).collect())
}
