//! Operations that change names: create, mknod, mkdir, symlink, link, unlink, rmdir, rename. Each is one mutation, so
//! one RPC (PROTOCOL 15); directory replies keep the caches right.

use super::files::Opening;
use super::{Entry, Opened, Request, Vfs, dcache::Known, unexpected};
use bytes::Bytes;
use fusefs_types::{
    Attr, FileKind, FsError, FsResult, Ino, Name,
    ops::{Create, Link, NewNode, Read, ReadReply, Rename, RenameMode, Tmpfile, Unlink, Write, WriteReply},
};

impl Vfs {
    /// open(O_CREAT) of a name that the kernel believes absent. 1 RPC.
    ///
    /// When the name exists after all and O_EXCL was not given: [`FsError::Stale`]. The caller looks the name up again
    /// (Linux does that by itself on ESTALE) and opens it like any file, permission check and O_TRUNC included.
    pub async fn create(
        &self,
        rq: &Request,
        parent: Ino,
        name: Bytes,
        mode: u16,
        flags: i32,
    ) -> FsResult<(Entry, Opened)> {
        self.gate_change().await?;
        let exclusive = flags & libc::O_EXCL != 0;
        let creating = self.open.creating();
        let made = self.make(rq, parent, &Name::new(name)?, NewNode::File, mode, exclusive).await;
        let opening = match &made {
            Ok((attr, _, false)) => Some(self.opening(rq, attr.ino)),
            _ => None,
        };
        if rq.resent && opening.is_none() {
            self.open.disown(rq.unique);
        }
        drop(creating);
        for ino in self.open.mistaken() {
            self.tell_closed(ino).await;
        }
        let (attr, sent, existed) = made?;
        if existed {
            self.learn_attr(&attr, sent);
            return Err(FsError::Stale);
        }
        let entry = self.entry(&attr, sent);
        self.inodes.set_pages(attr.ino, attr.change);
        let opened = self.opened(rq, attr.ino, flags, true, true);
        opening.into_iter().for_each(Opening::keep);
        Ok((entry, opened))
    }

    /// open(O_TMPFILE): a file without a name. 1 RPC, and 1 for the last close if nobody has given it a name.
    pub async fn tmpfile(&self, rq: &Request, parent: Ino, mode: u16, flags: i32) -> FsResult<(Entry, Opened)> {
        self.gate_change().await?;
        let creating = self.open.creating();
        let sent = self.sent(rq);
        let write = Tmpfile { parent, mode: mode & 0o7777, uid: rq.uid, gid: rq.gid };
        let (attr, opening) = match self.mutate(rq, Write::Tmpfile(write)).await {
            Ok(WriteReply::Created { attr, .. }) => {
                // The partition knows that it is held, and waits to hear of the last close.
                let opening = self.opening(rq, attr.ino);
                self.open.awaited(attr.ino);
                (attr, opening)
            }
            other => {
                self.open.disown(rq.unique);
                return Err(other.err().unwrap_or_else(|| unexpected("tmpfile")));
            }
        };
        drop(creating);
        let entry = self.entry(&attr, sent);
        self.inodes.set_pages(attr.ino, attr.change);
        let opened = self.opened(rq, attr.ino, flags, true, true);
        opening.keep();
        Ok((entry, opened))
    }

    /// Makes the handle of an opened file; `counted` = the table knows of an open under way.
    pub(super) fn opened(&self, rq: &Request, ino: Ino, flags: i32, keep_cache: bool, counted: bool) -> Opened {
        let fh = self.open.opened(ino, flags, rq.unique, counted);
        // The partition assigns the offsets of appends, so the kernel must not place them in its page cache.
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        Opened { fh, keep_cache, direct_io: writes && flags & libc::O_APPEND != 0 }
    }

    /// mknod(2) of any type. 1 RPC.
    pub async fn mknod(&self, rq: &Request, parent: Ino, name: Bytes, mode: u32, rdev: u32) -> FsResult<Entry> {
        self.gate_change().await?;
        let node = match FileKind::from_mode(mode).ok_or(FsError::Invalid)? {
            FileKind::Regular => NewNode::File,
            FileKind::Directory | FileKind::Symlink => return Err(FsError::Invalid),
            kind => NewNode::Special(kind, rdev),
        };
        let (attr, sent, _) = self.make(rq, parent, &Name::new(name)?, node, (mode & 0o7777) as u16, true).await?;
        Ok(self.entry(&attr, sent))
    }

    /// mkdir(2). 1 RPC (a transaction behind it when the directory spills). The new directory's names are all known:
    /// there are none.
    pub async fn mkdir(&self, rq: &Request, parent: Ino, name: Bytes, mode: u16) -> FsResult<Entry> {
        self.gate_change().await?;
        let (attr, sent, _) = self.make(rq, parent, &Name::new(name)?, NewNode::Directory, mode, true).await?;
        let entry = self.entry(&attr, sent);
        self.names.set_complete(attr.ino, self.names.epoch(attr.ino), attr.trunc_seq, self.attr_until(sent));
        Ok(entry)
    }

    /// symlink(2). 1 RPC.
    pub async fn symlink(&self, rq: &Request, parent: Ino, name: Bytes, target: Bytes) -> FsResult<Entry> {
        self.gate_change().await?;
        if target.is_empty() {
            return Err(FsError::NotFound);
        }
        if target.len() > fusefs_types::limits::SYMLINK_MAX {
            return Err(FsError::NameTooLong);
        }
        let (attr, sent, _) = self.make(rq, parent, &Name::new(name)?, NewNode::Symlink(target), 0o777, true).await?;
        Ok(self.entry(&attr, sent))
    }

    /// readlink(2). 1 RPC; the kernel caches the target.
    pub async fn readlink(&self, _rq: &Request, ino: Ino) -> FsResult<Bytes> {
        self.gate().await?;
        match self.meta.read(Read::ReadLink { ino }).await? {
            ReadReply::Target(target) => Ok(target),
            _ => Err(unexpected("readlink")),
        }
    }

    /// The new inode (or the existing one: true), and when the question was sent.
    async fn make(
        &self,
        rq: &Request,
        parent: Ino,
        name: &Name,
        node: NewNode,
        mode: u16,
        exclusive: bool,
    ) -> FsResult<(Attr, u64, bool)> {
        let mutation = self.names.begin(parent);
        let sent = self.sent(rq);
        let write = Write::Create(Create {
            parent,
            name: name.clone(),
            node,
            mode: mode & 0o7777,
            uid: rq.uid,
            gid: rq.gid,
            exclusive,
        });
        match self.mutate(rq, write).await {
            Ok(WriteReply::Created { attr, existed, parent: dir }) => {
                let target = Some((attr.ino, attr.kind));
                if existed {
                    mutation.unchanged();
                    self.names.learn(&dir, name, target, self.entry_until(sent), self.attr_until(sent));
                } else {
                    mutation.done(Some(&dir), &[(name, target)], self.entry_until(sent), self.attr_until(sent));
                }
                self.learn_attr(&dir, sent);
                Ok((attr, sent, existed))
            }
            Ok(_) => Err(unexpected("create")),
            Err(e) => {
                // The kernel believed the name absent, so did we perhaps: ask next time.
                if e == FsError::Exists {
                    self.names.drop_name(parent, name);
                }
                mutation.failed(e);
                Err(e)
            }
        }
    }

    /// link(2). 1 RPC.
    pub async fn link(&self, rq: &Request, ino: Ino, parent: Ino, name: Bytes) -> FsResult<Entry> {
        self.gate_change().await?;
        let name = Name::new(name)?;
        // A file without a name lives as long as it is held, so its last close is told after this.
        let _held = self.opening(rq, ino);
        let mutation = self.names.begin(parent);
        let sent = self.sent(rq);
        match self.mutate(rq, Write::Link(Link { ino, parent, name: name.clone() })).await {
            Ok(WriteReply::Linked { attr, parent: dir }) => {
                let target = Some((attr.ino, attr.kind));
                mutation.done(Some(&dir), &[(&name, target)], self.entry_until(sent), self.attr_until(sent));
                self.learn_attr(&dir, sent);
                Ok(self.entry(&attr, sent))
            }
            Ok(_) => Err(unexpected("link")),
            Err(e) => {
                self.names.drop_name_if(parent, &name, e == FsError::Exists);
                mutation.failed(e);
                Err(e)
            }
        }
    }

    /// unlink(2). 1 RPC. Open handles keep working: the inode becomes an orphan that this mount holds.
    pub async fn unlink(&self, rq: &Request, parent: Ino, name: Bytes) -> FsResult<()> {
        self.remove(rq, parent, name, false).await
    }

    /// rmdir(2). 1 RPC.
    pub async fn rmdir(&self, rq: &Request, parent: Ino, name: Bytes) -> FsResult<()> {
        self.remove(rq, parent, name, true).await
    }

    async fn remove(&self, rq: &Request, parent: Ino, name: Bytes, directory: bool) -> FsResult<()> {
        self.gate_change().await?;
        let name = Name::new(name)?;
        let mutation = self.names.begin(parent);
        let sent = self.sent(rq);
        match self.mutate(rq, Write::Unlink(Unlink { parent, name: name.clone(), directory })).await {
            Ok(WriteReply::Unlinked { ino, parent: dir, .. }) => {
                mutation.done(Some(&dir), &[(&name, None)], self.negative_until(sent), self.attr_until(sent));
                self.expire(ino);
                self.learn_attr(&dir, sent);
                Ok(())
            }
            Ok(_) => Err(unexpected("unlink")),
            Err(e) => {
                self.names.drop_name_if(parent, &name, e == FsError::NotFound);
                mutation.failed(e);
                Err(e)
            }
        }
    }

    /// renameat2(2). 1 RPC.
    pub async fn rename(&self, rq: &Request, from: (Ino, Bytes), to: (Ino, Bytes), mode: RenameMode) -> FsResult<()> {
        self.gate_change().await?;
        let (old, new) = (Name::new(from.1)?, Name::new(to.1)?);
        let (old_dir, new_dir) = (from.0, to.0);
        let known = (self.names.get(old_dir, &old, self.now()), self.names.get(new_dir, &new, self.now()));
        let source = self.names.begin(old_dir);
        let target = (new_dir != old_dir).then(|| self.names.begin(new_dir));
        let sent = self.sent(rq);
        let write = Write::Rename(Rename {
            parent: old_dir,
            name: old.clone(),
            new_parent: new_dir,
            new_name: new.clone(),
            mode,
        });
        let reply = self.mutate(rq, write).await;
        let (ino, other) = match reply {
            Ok(WriteReply::Renamed { ino, replaced }) => (ino, replaced),
            Ok(_) => return Err(unexpected("rename")),
            Err(e) => {
                source.failed(e);
                if let Some(t) = target {
                    t.failed(e);
                }
                self.names.drop_name_if(old_dir, &old, e == FsError::NotFound);
                self.names.drop_name_if(new_dir, &new, matches!(e, FsError::Exists | FsError::NotEmpty));
                return Err(e);
            }
        };
        for stale in [Some(ino), other, Some(old_dir), Some(new_dir)].into_iter().flatten() {
            self.expire(stale);
        }
        let exchange = mode == RenameMode::Exchange;
        // What happened to the names follows only from what they were: without a replaced inode the target was absent,
        // or it was another name of the same inode and nothing happened at all.
        let (kind, left_behind) = match (known, other, exchange) {
            ((Some(Known::Is(_, kind, _)), Some(Known::Is(_, k, _))), Some(other), true) => (kind, Some((other, k))),
            ((Some(Known::Is(_, kind, _)), Some(Known::Absent(_))), None, false) => (kind, None),
            ((Some(Known::Is(_, kind, _)), _), Some(_), false) => (kind, None),
            _ => {
                drop((source, target)); // not ended: the directories are not complete any more
                self.names.drop_name(old_dir, &old);
                self.names.drop_name(new_dir, &new);
                return Ok(());
            }
        };
        let until = self.entry_until(sent);
        let names = [(&old, left_behind), (&new, Some((ino, kind)))];
        match target {
            None => source.done(None, &names, until, 0),
            Some(target) => {
                source.done(None, &names[..1], until, 0);
                target.done(None, &names[1..], until, 0);
            }
        }
        Ok(())
    }
}
