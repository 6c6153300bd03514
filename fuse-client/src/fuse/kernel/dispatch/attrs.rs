//! Attributes, extended attributes, the file system as a whole.

use super::{bytes, mode_bits, parts, refuse};
use crate::fuse::kernel::abi::fattr;
use crate::fuse::kernel::decode::SetattrIn;
use crate::fuse::kernel::encode::{statfs_out, word_out};
use crate::fuse::kernel::reply::Reply;
use crate::fuse::kernel::run::{Class, Job};
use crate::fuse::kernel::session::Server;
use crate::vfs::Change;
use bytes::Bytes;
use fusefs_types::{
    FsError, FsResult, Ino, Time,
    ops::{SetTime, XattrMode},
};
use std::sync::Arc;

/// Access control lists.
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

pub(super) fn getattr(server: &Arc<Server>, job: Job, ino: Ino, statx: bool) {
    let (root, (vfs, rq)) = (server.root, parts(server, &job));
    let work = async move { vfs.getattr(&rq, ino).await };
    server.run(job, Class::Query, work, move |reply, r| {
        reply.result(r.map(|(a, ttl)| if statx { root.statx_out(&a, ttl) } else { root.attr_out(&a, ttl) }))
    });
}

pub(super) fn setattr(server: &Arc<Server>, job: Job, ino: Ino, args: &SetattrIn) {
    let (root, (vfs, rq), change) = (server.root, parts(server, &job), change(args));
    let work = async move { vfs.setattr(&rq, ino, change).await };
    server.run(job, Class::Definite, work, move |reply, r| reply.result(r.map(|(a, ttl)| root.attr_out(&a, ttl))));
}

fn change(args: &SetattrIn) -> Change {
    let has = |bit: u32| args.valid & bit != 0;
    let time = |bit: u32, now: u32, (sec, nsec): (i64, u32)| match (has(bit), has(now)) {
        (false, _) => None,
        (true, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(Time::join(sec, nsec))),
    };
    Change {
        mode: has(fattr::MODE).then(|| mode_bits(args.mode)),
        uid: has(fattr::UID).then_some(args.uid),
        gid: has(fattr::GID).then_some(args.gid),
        size: has(fattr::SIZE).then_some(args.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, args.atime),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, args.mtime),
    }
}

pub(super) fn statfs(server: &Arc<Server>, job: Job) {
    let (vfs, rq) = parts(server, &job);
    let work = async move { vfs.statfs(&rq).await };
    server.run(job, Class::Query, work, |reply, r| reply.result(r.map(|s| statfs_out(&s))));
}

pub(super) fn syncfs(server: &Arc<Server>, job: Job) {
    let vfs = server.vfs.clone();
    let work = async move { vfs.sync_all().await };
    server.run(job, Class::Query, work, |reply, r| reply.empty(r));
}

pub(super) fn setxattr(server: &Arc<Server>, job: Job, ino: Ino, name: &[u8], value: &[u8], flags: i32) {
    let mode = match flags {
        0 => XattrMode::Any,
        libc::XATTR_CREATE => XattrMode::Create,
        libc::XATTR_REPLACE => XattrMode::Replace,
        _ => return refuse(server, job, libc::EINVAL),
    };
    let ((vfs, rq), name, value) = (parts(server, &job), bytes(name), bytes(value));
    let work = async move { vfs.setxattr(&rq, ino, name, value, mode).await };
    server.run(job, Class::Definite, work, |reply, r| reply.empty(r));
}

pub(super) fn getxattr(server: &Arc<Server>, job: Job, ino: Ino, name: &[u8], size: u32) {
    let ((vfs, rq), name) = (parts(server, &job), bytes(name));
    // A kernel that asks for lists before it judges takes "not supported" as the outcome of the access.
    let none_is_no_data = server.negotiated.posix_acl && name.starts_with(ACL_PREFIX);
    let work = async move {
        match vfs.getxattr(&rq, ino, name).await {
            Err(FsError::NotSupported) if none_is_no_data => Err(FsError::NoData),
            other => other,
        }
    };
    server.run(job, Class::Query, work, move |reply, r| xattr(reply, size, r));
}

pub(super) fn listxattr(server: &Arc<Server>, job: Job, ino: Ino, size: u32) {
    let (vfs, rq) = parts(server, &job);
    let work = async move { vfs.listxattr(&rq, ino).await };
    server.run(job, Class::Query, work, move |reply, r| xattr(reply, size, r));
}

/// Answers getxattr and listxattr: `size` 0 asks for the size only.
fn xattr(reply: Reply, size: u32, r: FsResult<Bytes>) -> bool {
    match r {
        Ok(v) if size == 0 => reply.out(word_out(v.len() as u32)), // at most 64 KiB
        Ok(v) if v.len() > size as usize => reply.error(libc::ERANGE),
        Ok(v) => reply.data(&v),
        Err(e) => reply.empty(Err(e)),
    }
}

pub(super) fn removexattr(server: &Arc<Server>, job: Job, ino: Ino, name: &[u8]) {
    let ((vfs, rq), name) = (parts(server, &job), bytes(name));
    let work = async move { vfs.removexattr(&rq, ino, name).await };
    server.run(job, Class::Definite, work, |reply, r| reply.empty(r));
}
