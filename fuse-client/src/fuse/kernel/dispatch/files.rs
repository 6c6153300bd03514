//! Open files: open, read, write, flush, release, fsync, space and locks.

use super::{parts, refuse};
use crate::fuse::kernel::abi::Out;
use crate::fuse::kernel::decode::{CopyIn, LockIn, ReadIn, WriteIn};
use crate::fuse::kernel::encode::{long_out, opened_out, word_out};
use crate::fuse::kernel::locks::FileLock;
use crate::fuse::kernel::run::{Class, Job};
use crate::fuse::kernel::session::Server;
use bytes::Bytes;
use fusefs_types::Ino;
use std::sync::Arc;

pub(super) fn open(server: &Arc<Server>, job: Job, ino: Ino, flags: i32) {
    let (vfs, rq) = parts(server, &job);
    let work = async move { vfs.open(&rq, ino, flags).await };
    server.run(job, Class::Query, work, |reply, r| reply.result(r.map(|o| opened_out(&o))));
}

pub(super) fn read(server: &Arc<Server>, job: Job, ino: Ino, args: ReadIn) {
    let (vfs, rq) = parts(server, &job);
    let work = async move { vfs.read(&rq, ino, args.fh, args.offset, args.size).await };
    server.run(job, Class::Query, work, move |reply, r| match r {
        Ok(data) => reply.data(data.get(..args.size as usize).unwrap_or(&data)),
        Err(e) => reply.empty(Err(e)),
    });
}

pub(super) fn write(server: &Arc<Server>, job: Job, ino: Ino, args: &WriteIn<'_>) {
    let ((vfs, rq), data) = (parts(server, &job), Bytes::copy_from_slice(args.data));
    let (fh, offset, flags) = (args.fh, args.offset, args.flags);
    // The same bytes may be written to the same place again, but not to the end.
    let class = if flags & libc::O_APPEND == 0 { Class::Query } else { Class::Definite };
    let work = async move { vfs.write(&rq, ino, fh, offset, data, flags).await };
    server.run(job, class, work, |reply, r| reply.result(r.map(word_out)));
}

pub(super) fn flush(server: &Arc<Server>, job: Job, ino: Ino) {
    let ((vfs, rq), locks) = (parts(server, &job), server.locks.clone());
    let work = async move {
        let flushed = vfs.flush(&rq, ino).await;
        match locks {
            // The owner's locks go even if its data could not be committed.
            Some(locks) => locks.closed(&rq, ino).await.and(flushed),
            None => flushed,
        }
    };
    server.run(job, Class::Definite, work, |reply, r| reply.empty(r));
}

pub(super) fn release(server: &Arc<Server>, job: Job, ino: Ino, fh: u64) {
    // Nobody waits for the answer, which comes when the cluster knows of the close of an orphan.
    let ((vfs, rq), locks) = (parts(server, &job), server.locks.clone());
    let work = async move {
        if let Some(locks) = locks.filter(|_| rq.lock.flock)
            && let Err(error) = locks.closed(&rq, ino).await
        {
            tracing::warn!(%ino, %error, "the locks of a closed file stay until the session ends");
        }
        vfs.release(&rq, ino, fh).await;
        Ok(())
    };
    server.run(job, Class::Definite, work, |reply, r| reply.empty(r));
}

pub(super) fn fsync(server: &Arc<Server>, job: Job, ino: Ino) {
    let (vfs, rq) = parts(server, &job);
    let work = async move { vfs.fsync(&rq, ino).await };
    server.run(job, Class::Query, work, |reply, r| reply.empty(r));
}

pub(super) fn fallocate(server: &Arc<Server>, job: Job, ino: Ino, fh: u64, (offset, len, mode): (u64, u64, i32)) {
    let (vfs, rq) = parts(server, &job);
    let work = async move { vfs.fallocate(&rq, ino, fh, offset, len, mode).await };
    server.run(job, Class::Definite, work, |reply, r| reply.empty(r));
}

pub(super) fn lseek(server: &Arc<Server>, job: Job, ino: Ino, offset: i64, whence: i32) {
    let Ok(offset) = u64::try_from(offset) else { return refuse(server, job, libc::ENXIO) };
    let (vfs, rq) = parts(server, &job);
    let work = async move { vfs.lseek(&rq, ino, offset, whence).await };
    server.run(job, Class::Query, work, |reply, r| reply.result(r.map(long_out)));
}

pub(super) fn copy_file_range(server: &Arc<Server>, job: Job, ino: Ino, args: CopyIn) {
    let ((vfs, rq), to) = (parts(server, &job), server.root.ino(args.to_node));
    let work = async move { vfs.copy_file_range(&rq, (ino, args.from), (to, args.to_fh, args.to), args.len).await };
    server.run(job, Class::Definite, work, move |reply, r| {
        reply.result(r.map(|n| if args.wide { long_out(u64::from(n)) } else { word_out(n) }))
    });
}

pub(super) fn getlk(server: &Arc<Server>, job: Job, ino: Ino, lock: LockIn) {
    let Some(locks) = server.locks.clone() else { return refuse(server, job, libc::EOPNOTSUPP) };
    let rq = job.rq.clone();
    let work = async move { locks.getlk(&rq, ino, FileLock::from(lock)).await };
    server.run(job, Class::Query, work, |reply, r| {
        reply.result(r.map(|l| {
            let mut out = Out::default();
            out.u64(l.start).u64(l.end).u32(l.kind as u32).u32(l.pid);
            out
        }))
    });
}

pub(super) fn setlk(server: &Arc<Server>, job: Job, ino: Ino, lock: LockIn, wait: bool) {
    let Some(locks) = server.locks.clone() else { return refuse(server, job, libc::EOPNOTSUPP) };
    let rq = job.rq.clone();
    let work = async move { locks.setlk(&rq, ino, FileLock::from(lock), wait).await };
    let class = if wait { Class::Lock } else { Class::Definite };
    server.run(job, class, work, |reply, r| reply.empty(r));
}
