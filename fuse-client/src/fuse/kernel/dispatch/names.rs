//! Names: lookup, create, mkdir, mknod, symlink, link, unlink, rmdir, rename.

use super::{bytes, mode_bits, parts, refuse};
use crate::fuse::kernel::encode::absent_out;
use crate::fuse::kernel::run::{Class, Job};
use crate::fuse::kernel::session::Server;
use crate::vfs::{Entry, Lookup, Request, Vfs};
use fusefs_types::{FsError, FsResult, Ino, ops::RenameMode};
use std::sync::Arc;
use std::time::Duration;

pub(super) fn lookup(server: &Arc<Server>, job: Job, dir: Ino, name: &[u8]) {
    let (root, (vfs, rq)) = (server.root, parts(server, &job));
    if matches!(name, b"." | b"..") {
        let up = name.len() == 2;
        let work = async move { by_number(&vfs, &rq, dir, up).await };
        return server.run(job, Class::Query, work, move |reply, r| reply.result(r.map(|e| root.entry_out(&e))));
    }
    let name = bytes(name);
    let work = async move { vfs.lookup(&rq, dir, name).await };
    server.run(job, Class::Query, work, move |reply, r| {
        reply.result(match r {
            Ok(Lookup::Found(e)) => Ok(root.entry_out(&e)),
            Ok(Lookup::Absent(ttl)) if ttl.is_zero() => Err(FsError::NotFound),
            Ok(Lookup::Absent(ttl)) => Ok(absent_out(ttl)),
            Err(e) => Err(e),
        })
    });
}

/// A server that exports the mount to others (NFS) finds inodes by number, and parents of directories.
async fn by_number(vfs: &Vfs, rq: &Request, ino: Ino, up: bool) -> FsResult<Entry> {
    let (mut attr, mut attr_ttl) = vfs.getattr(rq, ino).await?;
    if up && ino != vfs.settings().root {
        if attr.parent.0 == 0 {
            return Err(FsError::Stale);
        }
        (attr, attr_ttl) = vfs.getattr(rq, attr.parent).await?;
    }
    Ok(Entry { attr, attr_ttl, entry_ttl: Duration::ZERO })
}

pub(super) fn readlink(server: &Arc<Server>, job: Job, ino: Ino) {
    let (vfs, rq) = parts(server, &job);
    let work = async move { vfs.readlink(&rq, ino).await };
    server.run(job, Class::Query, work, |reply, r| match r {
        Ok(target) => reply.data(&target),
        Err(e) => reply.empty(Err(e)),
    });
}

pub(super) fn symlink(server: &Arc<Server>, job: Job, dir: Ino, name: &[u8], target: &[u8]) {
    let ((vfs, rq), name, target) = (parts(server, &job), bytes(name), bytes(target));
    entry(server, job, async move { vfs.symlink(&rq, dir, name, target).await });
}

pub(super) fn mknod(server: &Arc<Server>, job: Job, dir: Ino, name: &[u8], (mode, rdev): (u32, u32)) {
    let ((vfs, rq), name) = (parts(server, &job), bytes(name));
    entry(server, job, async move { vfs.mknod(&rq, dir, name, mode, rdev).await });
}

pub(super) fn mkdir(server: &Arc<Server>, job: Job, dir: Ino, name: &[u8], mode: u32) {
    let ((vfs, rq), name) = (parts(server, &job), bytes(name));
    entry(server, job, async move { vfs.mkdir(&rq, dir, name, mode_bits(mode)).await });
}

pub(super) fn link(server: &Arc<Server>, job: Job, ino: Ino, dir: Ino, name: &[u8]) {
    let ((vfs, rq), name) = (parts(server, &job), bytes(name));
    entry(server, job, async move { vfs.link(&rq, ino, dir, name).await });
}

/// A new or linked entry.
fn entry(server: &Arc<Server>, job: Job, work: impl Future<Output = FsResult<Entry>> + Send + 'static) {
    let root = server.root;
    server.run(job, Class::Definite, work, move |reply, r| reply.result(r.map(|e| root.entry_out(&e))));
}

pub(super) fn create(server: &Arc<Server>, job: Job, dir: Ino, name: &[u8], (mode, flags): (u32, i32)) {
    let (root, (vfs, rq), name) = (server.root, parts(server, &job), bytes(name));
    let work = async move { vfs.create(&rq, dir, name, mode_bits(mode), flags).await };
    server.run(job, Class::Definite, work, move |reply, r| reply.result(r.map(|(e, o)| root.created_out(&e, &o))));
}

pub(super) fn tmpfile(server: &Arc<Server>, job: Job, dir: Ino, (mode, flags): (u32, i32)) {
    let (root, (vfs, rq)) = (server.root, parts(server, &job));
    let work = async move { vfs.tmpfile(&rq, dir, mode_bits(mode), flags).await };
    server.run(job, Class::Definite, work, move |reply, r| reply.result(r.map(|(e, o)| root.created_out(&e, &o))));
}

pub(super) fn remove(server: &Arc<Server>, job: Job, dir: Ino, name: &[u8], directory: bool) {
    let ((vfs, rq), name) = (parts(server, &job), bytes(name));
    let work =
        async move { if directory { vfs.rmdir(&rq, dir, name).await } else { vfs.unlink(&rq, dir, name).await } };
    server.run(job, Class::Definite, work, |reply, r| reply.empty(r));
}

pub(super) fn rename(server: &Arc<Server>, job: Job, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: u32) {
    let mode = match flags {
        0 => RenameMode::Replace,
        libc::RENAME_NOREPLACE => RenameMode::NoReplace,
        libc::RENAME_EXCHANGE => RenameMode::Exchange,
        _ => return refuse(server, job, libc::EINVAL),
    };
    let ((vfs, rq), from, to) = (parts(server, &job), (from.0, bytes(from.1)), (to.0, bytes(to.1)));
    let work = async move { vfs.rename(&rq, from, to, mode).await };
    server.run(job, Class::Definite, work, |reply, r| reply.empty(r));
}
