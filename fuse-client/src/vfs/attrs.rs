//! getattr, setattr, statfs.

use super::{Change, Entry, FsStat, Request, Vfs, left, unexpected};
use fusefs_types::{
    Attr, FileKind, FsError, FsResult, Ino,
    ops::{Read, ReadReply, SetAttr, Write, WriteReply},
};
use std::time::Duration;

/// Shown as the capacity of a volume without a limit.
const UNLIMITED_BYTES: u64 = 1 << 50;
/// Shown as the inode capacity of a volume without a limit.
const UNLIMITED_INODES: u64 = 1 << 40;

impl Vfs {
    /// For requests that name a file by its number. The kernel got the number from a name; when the file is gone the name
    /// may be another file's by now (somebody else renamed one over it), so the answer is not "no such file" but "look
    /// again", which Linux does by itself. What is remembered of the file would only lead it back here.
    pub(super) fn by_number(&self, ino: Ino, e: FsError) -> FsError {
        if e != FsError::NotFound {
            return e;
        }
        self.expire(ino);
        FsError::Stale
    }

    /// Attributes and how long they may be used. 0 RPCs while valid, else 1.
    pub async fn getattr(&self, _rq: &Request, ino: Ino) -> FsResult<(Attr, Duration)> {
        self.gate().await?;
        let (attr, until) = self.attr(ino).await.map_err(|e| self.by_number(ino, e))?;
        Ok((attr, left(until, self.now())))
    }

    /// Attributes with dirty size and mtime, and until when they are valid.
    pub(super) async fn attr(&self, ino: Ino) -> FsResult<(Attr, u64)> {
        // The overlay must be read before the base: a commit that ends in between puts its result into the cache first.
        let dirty = self.data.dirty_attr(ino);
        if let Some((attr, until)) = self.inodes.get(ino, self.now()) {
            self.hit();
            return Ok((overlay(attr, dirty), until));
        }
        self.miss();
        let sent = self.now();
        match self.meta.read(Read::GetAttr { ino }).await? {
            ReadReply::Attr(attr) => Ok((self.learn_attr(&attr, sent), self.attr_until(sent))),
            _ => Err(unexpected("getattr")),
        }
    }

    /// Attributes that a reply carried, sent for at `sent`: cached, checked against the directory's names and overlaid.
    pub(super) fn learn_attr(&self, attr: &Attr, sent: u64) -> Attr {
        let until = self.attr_until(sent);
        let dirty = self.data.dirty_attr(attr.ino);
        self.inodes.put(attr, until);
        match attr.kind {
            FileKind::Directory => self.names.observe(attr, until),
            FileKind::Regular => self.data.observe(attr),
            _ => {}
        }
        // A later reply may have been faster; never show time running backwards.
        let newest = self.inodes.newest(attr.ino).filter(|a| a.change > attr.change).unwrap_or(*attr);
        overlay(newest, dirty)
    }

    /// An entry answer from attributes of a reply.
    pub(super) fn entry(&self, attr: &Attr, sent: u64) -> Entry {
        let shown = self.learn_attr(attr, sent);
        let now = self.now();
        Entry { attr: shown, attr_ttl: left(self.attr_until(sent), now), entry_ttl: left(self.entry_until(sent), now) }
    }

    /// chmod, chown, truncate, utimens: 1 RPC, after the dirty bytes that a truncation does not cut.
    pub async fn setattr(&self, rq: &Request, ino: Ino, change: Change) -> FsResult<(Attr, Duration)> {
        self.gate_change().await?;
        if change == Change::default() {
            return self.getattr(rq, ino).await;
        }
        let Some(size) = change.size else { return self.setattr_now(rq, ino, change).await };
        super::check_size(0, size)?;
        let held = self.data.truncate_barrier(ino, size).await?;
        let done = self.setattr_now(rq, ino, change).await?;
        held.truncated(done.0.trunc_seq);
        Ok(done)
    }

    async fn setattr_now(&self, rq: &Request, ino: Ino, change: Change) -> FsResult<(Attr, Duration)> {
        if change.mtime.is_some() {
            self.data.set_explicit_mtime(ino).await;
        }
        let sent = self.sent(rq);
        let write = Write::SetAttr(SetAttr {
            ino,
            mode: change.mode.map(|m| m & 0o7777),
            uid: change.uid,
            gid: change.gid,
            size: change.size,
            atime: change.atime,
            mtime: change.mtime,
            ctime: None,
            kill_priv: false,
        });
        match self.mutate(rq, write).await? {
            WriteReply::Attr(attr) => {
                let shown = self.learn_attr(&attr, sent);
                Ok((shown, left(self.attr_until(sent), self.now())))
            }
            _ => Err(unexpected("setattr")),
        }
    }

    /// Usage of the volume: 1 RPC per partition.
    pub async fn statfs(&self, _rq: &Request) -> FsResult<FsStat> {
        self.gate().await?;
        let usage = self.meta.usage().await?;
        let or = |n: u64, unlimited: u64| if n == 0 { unlimited } else { n };
        let space = self.meta.space();
        let (bytes, inodes) = (or(space.capacity, UNLIMITED_BYTES), or(space.inodes, UNLIMITED_INODES));
        Ok(FsStat {
            bytes,
            bytes_free: bytes.saturating_sub(usage.space()),
            inodes,
            inodes_free: inodes.saturating_sub(usage.inodes),
        })
    }
}

/// Lays uncommitted size and mtime over attributes (PROTOCOL 37).
pub(super) fn overlay(mut attr: Attr, dirty: Option<fusefs_data_path::DirtyAttr>) -> Attr {
    if let Some(d) = dirty {
        attr.size = attr.size.max(d.size);
        if let Some(mtime) = d.mtime {
            attr.mtime = mtime;
            attr.ctime = attr.ctime.max(mtime);
        }
    }
    attr
}
