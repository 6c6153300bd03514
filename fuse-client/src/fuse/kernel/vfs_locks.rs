//! The vfs' locks and page invalidation, joined to a kernel connection.

use super::locks::{FileLock, Locks};
use super::notify::{Notification, Notifier};
use crate::vfs::{FileLock as VfsLock, KernelCaches, Request, Vfs};
use async_trait::async_trait;
use fusefs_types::{FsError, FsResult, Ino, lock::LockOp};

/// Offset and length of "the whole file" in an invalidation.
const WHOLE: (i64, i64) = (0, 0);

#[async_trait]
impl Locks for Vfs {
    async fn getlk(&self, rq: &Request, ino: Ino, lock: FileLock) -> FsResult<FileLock> {
        let in_the_way = Vfs::getlk(self, rq, ino, 0, asked(rq, lock)?).await?;
        Ok(match in_the_way {
            None => FileLock { kind: libc::F_UNLCK, ..lock },
            Some(held) => FileLock { start: held.start, end: held.end, kind: kind(held.op), pid: held.pid },
        })
    }
    async fn setlk(&self, rq: &Request, ino: Ino, lock: FileLock, wait: bool) -> FsResult<()> {
        Vfs::setlk(self, rq, ino, 0, asked(rq, lock)?, rq.lock.flock, wait).await
    }
    async fn closed(&self, rq: &Request, ino: Ino) -> FsResult<()> {
        // fcntl locks went with the flush, which knows whether the data was committed.
        if rq.lock.flock {
            self.release_flock(rq, ino, rq.lock.owner).await;
        }
        Ok(())
    }
}

fn asked(rq: &Request, lock: FileLock) -> FsResult<VfsLock> {
    let op = match lock.kind {
        libc::F_RDLCK => LockOp::Read,
        libc::F_WRLCK => LockOp::Write,
        libc::F_UNLCK => LockOp::Unlock,
        _ => return Err(FsError::Invalid),
    };
    Ok(VfsLock { owner: rq.lock.owner, start: lock.start, end: lock.end, op, pid: lock.pid })
}

fn kind(op: LockOp) -> i32 {
    match op {
        LockOp::Read => libc::F_RDLCK,
        LockOp::Write => libc::F_WRLCK,
        LockOp::Unlock => libc::F_UNLCK,
    }
}

#[async_trait]
impl KernelCaches for Notifier {
    async fn inval_inode(&self, ino: Ino) {
        let this = self.clone();
        let n = Notification::InvalInode { ino, offset: WHOLE.0, len: WHOLE.1 };
        let sent = tokio::task::spawn_blocking(move || this.send(&n)).await;
        if let Ok(Err(error)) = sent {
            tracing::warn!(%ino, %error, "the kernel's pages of a locked file could not be dropped");
        }
    }
}
