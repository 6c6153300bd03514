//! Questions: answered from the tree, never through the log. The caller has made sure that the state is recent enough
//! (ReadIndex); open holders are leader memory of the metanode (PROTOCOL 22).
//!
//! - Somebody else's key: WrongRange. No such inode: NotFound. A name or inode under an undecided transaction: Conflict,
//!   the metanode retries shortly.
//! - lookup of an absent name is an answer, not an error; in a removed directory it is NotFound.
//! - readdir: cookies above `after`, so that it is stateless and survives restarts and concurrent changes; a removed
//!   directory is empty.
//! - Extents: slices of the asked range; the bytes of inline ones are in the blob file, the shell adds them.

use super::{flock, xattr};
use crate::{Partition, record::DentryKey, txn::locks};
use fusefs_types::{
    FileKind, FsError, FsResult, Ino, Name, SessionId, limits,
    ops::{DirEntry, Read, ReadReply},
};

/// Conflict when the answer depends on a transaction that is not decided here.
fn wait(blocked: bool) -> FsResult<()> {
    if blocked { Err(FsError::Conflict) } else { Ok(()) }
}

impl Partition {
    /// Answers a read of `session`.
    pub fn read(&self, session: SessionId, read: &Read) -> FsResult<ReadReply> {
        match read {
            Read::Lookup { parent, name } => self.lookup(*parent, name),
            Read::GetAttr { ino } => self.getattr(*ino),
            Read::Open { ino, write } => {
                self.may_open(session, *ino)?;
                let inode = self.inode(*ino)?;
                if *write && inode.is_dir() {
                    return Err(FsError::IsDirectory);
                }
                self.getattr(*ino)
            }
            // Closing what is gone is fine: the holder is forgotten all the same.
            Read::Close { ino } if self.owns(*ino) => Ok(ReadReply::Closed),
            Read::Close { .. } => Err(FsError::WrongRange),
            Read::ReadLink { ino } => match self.inode(*ino)? {
                inode if inode.kind == FileKind::Symlink => Ok(ReadReply::Target(inode.target)),
                _ => Err(FsError::Invalid),
            },
            Read::ReadDir { ino, after, limit, plus } => self.readdir(*ino, *after, *limit, *plus),
            Read::GetXattr { ino, name } => Ok(ReadReply::Xattr(xattr::get(self, *ino, name)?)),
            Read::ListXattr { ino } => Ok(ReadReply::XattrNames(xattr::list(self, *ino)?)),
            Read::Extents { ino, offset, len } => self.extents(*ino, *offset, *len),
            Read::GetLock { ino, owner, start, end, write, .. } => {
                Ok(ReadReply::Lock(flock::get(self, session, *ino, *owner, (*start, *end), *write)?))
            }
            Read::ListLocks { ino } => Ok(ReadReply::Locks(flock::list(self, *ino)?)),
            Read::StatFs => Ok(ReadReply::StatFs(self.usage())),
        }
    }
    fn getattr(&self, ino: Ino) -> FsResult<ReadReply> {
        let inode = self.inode(ino)?;
        wait(locks::blocked_ino(self, ino))?;
        Ok(ReadReply::Attr(inode.attr(ino)))
    }
    fn lookup(&self, parent: Ino, name: &Name) -> FsResult<ReadReply> {
        let dir = self.dir(parent)?;
        wait(locks::blocked_name(self, parent, name))?;
        let found = self.find(parent, name).map(|(_, d)| (d.ino, d.kind));
        let attr = match found {
            Some((ino, _)) if self.owns(ino) => {
                wait(locks::blocked_ino(self, ino))?;
                Some(self.inode(ino)?.attr(ino))
            }
            _ => None,
        };
        Ok(ReadReply::Entry { entry: found, attr, parent: dir.attr(parent) })
    }
    fn readdir(&self, ino: Ino, after: u64, limit: u32, plus: bool) -> FsResult<ReadReply> {
        let dir = self.inode(ino)?;
        if !dir.is_dir() {
            return Err(FsError::NotDirectory);
        }
        let limit = (limit as usize).clamp(1, limits::READDIR_ENTRIES_MAX);
        let from = DentryKey { parent: ino, cookie: after.saturating_add(1) };
        let mut found = self.t.dentries.range(&from).take_while(|(k, _)| k.parent == ino && k.cookie > after);
        let entries = found
            .by_ref()
            .take(limit)
            .map(|(k, d)| DirEntry {
                attr: if plus && !locks::blocked_ino(self, d.ino) {
                    self.t.inodes.get(&d.ino).map(|i| i.attr(d.ino))
                } else {
                    None
                },
                name: d.name,
                ino: d.ino,
                kind: d.kind,
                cookie: k.cookie,
            })
            .collect();
        Ok(ReadReply::Entries { entries, end: found.next().is_none(), dir: dir.attr(ino) })
    }
    fn extents(&self, ino: Ino, offset: u64, len: u64) -> FsResult<ReadReply> {
        let inode = self.inode(ino)?;
        match inode.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(FsError::IsDirectory),
            _ => return Err(FsError::Invalid),
        }
        let to = offset.saturating_add(len);
        let mut found = self.extents_in(ino, offset, to).filter_map(|e| e.slice(offset, to));
        let extents: Vec<_> = found.by_ref().take(limits::EXTENTS_REPLY_MAX).collect();
        let end = found.next().map_or(to, |e| e.offset);
        Ok(ReadReply::Extents { attr: inode.attr(ino), extents, inline: Vec::new(), end })
    }
}
