//! open, release, read, write, flush, fsync.

use super::handle::Handle;
use super::{Opened, Request, Vfs, check_size, unexpected};
use bytes::Bytes;
use fusefs_data_path::WriteContext;
use fusefs_types::{
    FsError, FsResult, Ino,
    ops::{Read, ReadReply},
};

/// Takes an open back unless it succeeded.
pub(super) struct Opening<'a> {
    vfs: &'a Vfs,
    ino: Ino,
    /// Number of the request, if an earlier process may have made a handle for it.
    resent: Option<u64>,
    keep: bool,
}

impl Opening<'_> {
    /// It succeeded.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if !self.keep {
            if let Some(unique) = self.resent {
                self.vfs.open.disown(unique);
            }
            // If the cluster was told of this open, it soon hears of its end.
            self.vfs.open.abandon(self.ino);
        }
    }
}

impl Vfs {
    /// Notes an open under way, before the cluster is asked or as soon as the inode is known.
    pub(super) fn opening(&self, rq: &Request, ino: Ino) -> Opening<'_> {
        self.open.opening(ino);
        Opening { vfs: self, ino, resent: rq.resent.then_some(rq.unique), keep: false }
    }

    /// Opens a file. Always 1 RPC: close-to-open consistency asks for attributes as of now. The kernel keeps its pages
    /// only if the file has not changed since they were read. [`FsError::Stale`] when it is gone: its name may be another
    /// file's by now, and the kernel looks.
    pub async fn open(&self, rq: &Request, ino: Ino, flags: i32) -> FsResult<Opened> {
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if write {
            self.gate_change().await?;
        } else {
            self.gate().await?;
        }
        let opening = self.opening(rq, ino);
        self.miss();
        let sent = self.now();
        let reply = self.meta.read(Read::Open { ino, write }).await;
        let ReadReply::Attr(attr) = reply.map_err(|e| self.by_number(ino, e))? else {
            return Err(unexpected("open"));
        };
        self.learn_attr(&attr, sent);
        let keep_cache = self.inodes.pages(ino) == Some(attr.change);
        if !keep_cache {
            self.inodes.set_pages(ino, attr.change);
        }
        let opened = self.opened(rq, ino, flags, keep_cache, true);
        opening.keep();
        Ok(opened)
    }

    /// Last reference to a handle is gone. 0 RPCs, unless the cluster asked who holds the inode and waits to hear of the
    /// last close. Bytes written through a mapping after the last close are committed in the background.
    ///
    /// A release that is sent again may have ended its handle in an earlier process, without a word to the cluster: that
    /// is told now if nothing else is open.
    pub async fn release(&self, rq: &Request, ino: Ino, fh: u64) {
        if Handle::unpack(fh).is_none() {
            return;
        }
        let awaited = self.open.release(ino, fh);
        if awaited || (rq.resent && !self.open.is_open(ino)) {
            self.tell_closed(ino).await;
        }
    }

    /// An orphan is not held here any more.
    pub(super) async fn tell_closed(&self, ino: Ino) {
        self.expire(ino);
        if let Err(error) = self.meta.read(Read::Close { ino }).await {
            // The end of the session frees it at the latest.
            tracing::debug!(%ino, %error, "closing an orphan");
        }
    }

    /// Reads. 0 metadata RPCs while attributes are valid and the extents are known.
    pub async fn read(&self, _rq: &Request, ino: Ino, fh: u64, offset: u64, len: u32) -> FsResult<Bytes> {
        self.gate().await?;
        Handle::unpack(fh).ok_or(FsError::BadHandle)?;
        // Bounds how long a reader may go on with an old extent map.
        self.attr(ino).await?;
        self.data.read(ino, offset, len as usize).await
    }

    /// Writes into the buffer of the data path. 0 RPCs (1 per attribute validity); O_SYNC and O_DSYNC commit first;
    /// O_APPEND is 1 RPC (the partition assigns the offset, PROTOCOL 38). Returns the bytes taken: all.
    pub async fn write(&self, rq: &Request, ino: Ino, fh: u64, offset: u64, data: Bytes, flags: i32) -> FsResult<u32> {
        self.gate_change().await?;
        Handle::unpack(fh).ok_or(FsError::BadHandle)?;
        let len = u32::try_from(data.len()).map_err(|_| FsError::Invalid)?;
        if len == 0 {
            return Ok(0);
        }
        // What the write is relative to must not be older than the validity: a commit is clipped by truncations that
        // it did not know of.
        let (attr, _) = self.attr(ino).await?;
        if flags & libc::O_APPEND != 0 {
            check_size(attr.size, u64::from(len))?;
            self.data.append(ino, data, rq.next_op(self.settings.mount)).await?;
            if rq.resent {
                // The reply may be an old one.
                self.expire(ino);
                self.data.invalidate(ino);
            }
            return Ok(len);
        }
        check_size(offset, u64::from(len))?;
        let cx = WriteContext {
            trunc_seq: attr.trunc_seq,
            kill_priv: false,
            unique: rq.unique,
            resent: rq.resent,
            change: attr.change,
        };
        match self.data.try_write(ino, offset, &data, cx) {
            Some(done) => done?,
            None => self.data.write(ino, offset, data, cx).await?,
        }
        if flags & (libc::O_SYNC | libc::O_DSYNC) != 0 {
            self.data.fsync(ino).await?;
        }
        Ok(len)
    }

    /// close(2) of one descriptor. 0 RPCs when clean; else commits, at most for the close timeout, then EIO with the
    /// data kept (PROTOCOL 39).
    /// Then the fcntl locks of the closing process on the inode go (`rq.lock.owner`).
    pub async fn flush(&self, rq: &Request, ino: Ino) -> FsResult<()> {
        let since = tokio::time::Instant::now();
        let clean = self.data.dirty_attr(ino).is_none();
        let flushed = if clean { Ok(()) } else { self.data.flush(ino).await };
        self.unlock_after_flush(rq, ino, since, flushed.is_ok()).await;
        flushed
    }

    /// fsync(2), fdatasync(2): commits.
    pub async fn fsync(&self, _rq: &Request, ino: Ino) -> FsResult<()> {
        self.gate().await?;
        self.data.fsync(ino).await
    }
}
