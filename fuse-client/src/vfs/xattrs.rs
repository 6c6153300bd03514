//! Extended attributes.

use super::{Request, Vfs, unexpected};
use bytes::{BufMut, Bytes, BytesMut};
use fusefs_types::{
    FsError, FsResult, Ino, limits,
    ops::{Read, ReadReply, RemoveXattr, SetXattr, Write, WriteReply, XattrMode},
};

/// Access control lists come with the POSIX work; until then they are refused rather than stored without effect.
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

impl Vfs {
    /// getxattr(2). 0 RPCs on an inode without any attribute, else 1.
    pub async fn getxattr(&self, _rq: &Request, ino: Ino, name: Bytes) -> FsResult<Bytes> {
        self.gate().await?;
        check_name(&name)?;
        if !self.attr(ino).await?.0.has_xattr {
            return Err(FsError::NoData);
        }
        match self.meta.read(Read::GetXattr { ino, name }).await? {
            ReadReply::Xattr(value) => Ok(value),
            _ => Err(unexpected("getxattr")),
        }
    }

    /// listxattr(2): names, each ended by NUL. 0 RPCs on an inode without any, else 1.
    pub async fn listxattr(&self, _rq: &Request, ino: Ino) -> FsResult<Bytes> {
        self.gate().await?;
        if !self.attr(ino).await?.0.has_xattr {
            return Ok(Bytes::new());
        }
        let ReadReply::XattrNames(names) = self.meta.read(Read::ListXattr { ino }).await? else {
            return Err(unexpected("listxattr"));
        };
        let mut list = BytesMut::with_capacity(names.iter().map(|n| n.len() + 1).sum());
        for name in names {
            list.put_slice(&name);
            list.put_u8(0);
        }
        Ok(list.freeze())
    }

    /// setxattr(2). 1 RPC.
    pub async fn setxattr(&self, rq: &Request, ino: Ino, name: Bytes, value: Bytes, mode: XattrMode) -> FsResult<()> {
        self.gate_change().await?;
        check_name(&name)?;
        if value.len() > limits::XATTR_VALUE_MAX {
            return Err(FsError::TooBig);
        }
        self.change_xattr(rq, Write::SetXattr(SetXattr { ino, name, value, mode })).await
    }

    /// removexattr(2). 1 RPC.
    pub async fn removexattr(&self, rq: &Request, ino: Ino, name: Bytes) -> FsResult<()> {
        self.gate_change().await?;
        check_name(&name)?;
        self.change_xattr(rq, Write::RemoveXattr(RemoveXattr { ino, name })).await
    }

    async fn change_xattr(&self, rq: &Request, write: Write) -> FsResult<()> {
        let sent = self.sent(rq);
        match self.mutate(rq, write).await? {
            WriteReply::Attr(attr) => {
                self.learn_attr(&attr, sent);
                Ok(())
            }
            _ => Err(unexpected("xattr")),
        }
    }
}

fn check_name(name: &[u8]) -> FsResult<()> {
    match name {
        [] => Err(FsError::Range),
        n if n.len() > limits::XATTR_NAME_MAX => Err(FsError::Range),
        n if n.contains(&0) => Err(FsError::Invalid),
        n if n.starts_with(ACL_PREFIX) => Err(FsError::NotSupported),
        _ => Ok(()),
    }
}
