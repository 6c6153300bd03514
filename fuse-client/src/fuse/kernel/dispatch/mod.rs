//! From requests to the vfs and back: translation only.
//!
//! Everything that a request's message says is copied before its work starts: the message's memory is free as soon as the
//! request is answered, which may be at once.

mod attrs;
mod dirs;
mod files;
mod names;

use super::abi::UNIQUE_INTERRUPT;
use super::decode::{Message, Op};
use super::encode::word_out;
use super::run::Job;
use super::session::Server;
use crate::vfs::{Request, Vfs};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM: regular files are always ready.
const READY: u32 = 0x1 | 0x4 | 0x40 | 0x100;

/// Serves a request that is answered.
pub(super) fn dispatch(server: &Arc<Server>, job: Job, message: &Message<'_>) {
    if server.is_poisoned.load(Ordering::Acquire) {
        return refuse(server, job, libc::ESTALE);
    }
    let ino = server.root.ino(message.header.node);
    match message.op {
        Op::Lookup { name } => names::lookup(server, job, ino, name),
        Op::Getattr => attrs::getattr(server, job, ino, false),
        Op::Statx => attrs::getattr(server, job, ino, true),
        Op::Setattr(args) => attrs::setattr(server, job, ino, &args),
        Op::Readlink => names::readlink(server, job, ino),
        Op::Symlink { name, target } => names::symlink(server, job, ino, name, target),
        Op::Mknod { name, mode, rdev, umask } => names::mknod(server, job, ino, name, (mode & !umask, rdev)),
        Op::Mkdir { name, mode, umask } => names::mkdir(server, job, ino, name, mode & !umask),
        Op::Unlink { name } => names::remove(server, job, ino, name, false),
        Op::Rmdir { name } => names::remove(server, job, ino, name, true),
        Op::Rename { name, new_node, new_name, flags } => {
            names::rename(server, job, (ino, name), (server.root.ino(new_node), new_name), flags);
        }
        Op::Link { node, name } => names::link(server, job, server.root.ino(node), ino, name),
        Op::Create { name, flags, mode, umask } => names::create(server, job, ino, name, (mode & !umask, flags)),
        Op::Tmpfile { flags, mode, umask } => names::tmpfile(server, job, ino, (mode & !umask, flags)),
        Op::Open { flags } => files::open(server, job, ino, flags),
        Op::Read(args) => files::read(server, job, ino, args),
        Op::Write(args) => files::write(server, job, ino, &args),
        Op::Release { fh, .. } => files::release(server, job, ino, fh),
        Op::Flush { .. } => files::flush(server, job, ino),
        Op::Fsync { .. } => files::fsync(server, job, ino),
        Op::Fallocate { fh, offset, len, mode } => files::fallocate(server, job, ino, fh, (offset, len, mode)),
        Op::Lseek { offset, whence } => files::lseek(server, job, ino, offset, whence),
        Op::CopyFileRange(args) => files::copy_file_range(server, job, ino, args),
        Op::Getlk(lock) => files::getlk(server, job, ino, lock),
        Op::Setlk { lock, wait } => files::setlk(server, job, ino, lock, wait),
        Op::Opendir { flags } => dirs::opendir(server, job, ino, flags),
        Op::Readdir(args) => dirs::readdir(server, job, ino, args, false),
        Op::Readdirplus(args) => dirs::readdir(server, job, ino, args, true),
        Op::Releasedir { fh } => dirs::releasedir(server, job, ino, fh),
        Op::Fsyncdir => dirs::fsyncdir(server, job, ino),
        Op::Statfs => attrs::statfs(server, job),
        Op::Syncfs => attrs::syncfs(server, job),
        Op::Setxattr { name, value, flags } => attrs::setxattr(server, job, ino, name, value, flags),
        Op::Getxattr { name, size } => attrs::getxattr(server, job, ino, name, size),
        Op::Listxattr { size } => attrs::listxattr(server, job, ino, size),
        Op::Removexattr { name } => attrs::removexattr(server, job, ino, name),
        _ => local(server, job, message),
    }
}

/// Requests that need no file system. Planned opcodes answer EOPNOTSUPP, never ENOSYS, which the kernel would remember for
/// the life of the connection (PROTOCOL 43).
fn local(server: &Server, job: Job, message: &Message<'_>) {
    let delivered = match message.op {
        // The kernel checks (`default_permissions`) and does not ask; should it ask all the same, it has checked.
        Op::Access | Op::Destroy => job.reply.empty(Ok(())),
        Op::Poll { events } => job.reply.out(word_out(events & READY)),
        Op::Ioctl => job.reply.error(libc::ENOTTY),
        Op::Unknown(opcode) => {
            tracing::warn!(opcode, "an opcode of a newer kernel");
            job.reply.error(libc::EOPNOTSUPP)
        }
        _ => job.reply.error(libc::EOPNOTSUPP),
    };
    if delivered {
        server.vfs.replied(&job.rq);
    }
}

/// Serves what is not answered, or not by way of a [`super::reply::Reply`].
pub(super) fn unanswered(server: &Server, message: &Message<'_>) {
    let header = &message.header;
    match message.op {
        Op::Forget { .. } => server.vfs.forget(server.root.ino(header.node)),
        Op::BatchForget(inodes) => {
            for (node, _lookups) in inodes.iter() {
                server.vfs.forget(server.root.ino(node));
            }
        }
        Op::Interrupt { unique } if server.in_flight.interrupt(unique) => {}
        // Answered already, which the kernel knows better, or another reader has just read it: the kernel sends the
        // interrupt again if the request still waits.
        Op::Interrupt { .. } => server.link.error(header.raw_unique | UNIQUE_INTERRUPT, libc::EAGAIN),
        // The process before this one died before its answer was written.
        Op::Init(_) => {
            if let Err(error) = server.link.write(&server.negotiated.reply(header.raw_unique)) {
                tracing::error!(%error, "answering INIT again");
            }
        }
        _ => {}
    }
}

/// The vfs and the request's head, for the future that does the work.
fn parts(server: &Arc<Server>, job: &Job) -> (Arc<Vfs>, Arc<Request>) {
    (server.vfs.clone(), job.rq.clone())
}

/// An error that needs no work.
fn refuse(server: &Server, job: Job, errno: i32) {
    if job.reply.error(errno) {
        server.vfs.replied(&job.rq);
    }
}

fn bytes(name: &[u8]) -> Bytes {
    Bytes::copy_from_slice(name)
}

fn mode_bits(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}
