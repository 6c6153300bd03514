//! lookup, forget and directory streams.

use super::handle::{Handle, HandleKind};
use super::{DirItem, Entry, Lookup, Opened, Request, Vfs, attrs::overlay, dcache::Known, left, unexpected};
use bytes::Bytes;
use fusefs_types::{
    Attr, FileKind, FsError, FsResult, Ino, Name, limits,
    ops::{DirEntry, Read, ReadReply},
};
use futures::StreamExt;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Readdir offset behind `..`; cookies of names are above it.
const AFTER_DOTS: u64 = 2;

/// Questions about remote children that one listing has under way.
const REMOTE_ATTRS_AT_ONCE: usize = 32;

/// How often a lookup asks for a name whose inode was removed meanwhile.
const LOOKUPS_MAX: usize = 8;

/// Which attributes a listing gives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attrs {
    None,
    /// What the directory's partition has.
    Known,
    All,
}

/// The page of names that each open directory stream read last. Soft state: without it a page is asked for again.
#[derive(Default)]
pub(super) struct Listings(Mutex<HashMap<(Ino, u64), DirPage>>);

/// Names of a directory behind some offset, as one reply of the partition gave them.
#[derive(Clone)]
pub struct DirPage {
    dir: Attr,
    /// Cookie behind which the page starts.
    after: u64,
    entries: Arc<Vec<DirEntry>>,
    end: bool,
    /// First item to give out; 0 and 1 are the dots.
    from: usize,
    /// The listing so far was one unbroken walk over this version: (version, dentry cache epoch).
    walk: Option<(u64, u64)>,
}

impl DirPage {
    /// Where `offset` is in the page, None when it is outside.
    fn position(&self, offset: u64) -> Option<usize> {
        if offset < AFTER_DOTS {
            return (self.after == AFTER_DOTS).then_some(offset as usize);
        }
        let i = self.entries.partition_point(|e| e.cookie <= offset);
        let inside = offset >= self.after && (i < self.entries.len() || self.end);
        inside.then_some(i + 2)
    }
    /// Number of items from the asked offset on; 0 = end of the directory.
    pub fn len(&self) -> usize {
        (self.entries.len() + 2).saturating_sub(self.from)
    }
    /// End of the directory.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Vfs {
    /// Looks a name up. 0 RPCs while the name and its attributes are valid, or absent from a directory that is known
    /// completely; else 1 (2 when the inode lives in another partition than its name).
    pub async fn lookup(&self, _rq: &Request, parent: Ino, name: Bytes) -> FsResult<Lookup> {
        self.gate().await?;
        let name = Name::new(name)?;
        let now = self.now();
        match self.names.get(parent, &name, now) {
            Some(Known::Absent(until)) => {
                self.hit();
                return Ok(Lookup::Absent(left(until.min(self.negative_until(now)), now)));
            }
            Some(Known::Is(ino, _, until)) => match self.attr(ino).await {
                // Another file has the name by now, or none has.
                Ok((attr, _)) if attr.nlink == 0 => self.names.drop_name(parent, &name),
                Ok((attr, attr_until)) => {
                    let now = self.now();
                    return Ok(Lookup::Found(Entry {
                        attr,
                        attr_ttl: left(attr_until, now),
                        entry_ttl: left(until.min(self.entry_until(now)), now),
                    }));
                }
                Err(FsError::NotFound | FsError::Stale) => self.names.drop_name(parent, &name),
                Err(e) => return Err(e),
            },
            None => {}
        }
        self.lookup_remote(parent, &name).await
    }

    /// Asks for the name, then for the attributes where they live elsewhere. What was removed between the two questions may
    /// have been replaced: then the name is asked for again.
    async fn lookup_remote(&self, parent: Ino, name: &Name) -> FsResult<Lookup> {
        for _ in 0..LOOKUPS_MAX {
            self.miss();
            let sent = self.now();
            let reply = self.meta.read(Read::Lookup { parent, name: name.clone() }).await?;
            let ReadReply::Entry { entry, attr, parent: dir } = reply else { return Err(unexpected("lookup")) };
            let until = if entry.is_some() { self.entry_until(sent) } else { self.negative_until(sent) };
            self.names.learn(&dir, name, entry, until, self.attr_until(sent));
            self.learn_attr(&dir, sent);
            let Some((ino, _)) = entry else { return Ok(Lookup::Absent(left(until, self.now()))) };
            if let Some(attr) = attr {
                return Ok(Lookup::Found(self.entry(&attr, sent)));
            }
            match self.attr(ino).await {
                Ok((attr, _)) if attr.nlink == 0 => self.expire(ino),
                Ok((attr, attr_until)) => {
                    let now = self.now();
                    return Ok(Lookup::Found(Entry {
                        attr,
                        attr_ttl: left(attr_until, now),
                        entry_ttl: left(until, now),
                    }));
                }
                Err(FsError::NotFound) => {}
                Err(e) => return Err(e),
            }
            self.names.drop_name(parent, name);
        }
        Ok(Lookup::Absent(Duration::ZERO))
    }

    /// The kernel dropped the inode and its pages. 0 RPCs.
    pub fn forget(&self, ino: Ino) {
        self.inodes.forget_pages(ino);
    }

    /// Opens a directory stream. 0 RPCs: the first readdir asks.
    pub async fn opendir(&self, rq: &Request, _ino: Ino, flags: i32) -> FsResult<Opened> {
        self.gate().await?;
        let fh = Handle { flags, kind: HandleKind::Directory, number: (rq.unique >> 1) as u32 }.pack();
        Ok(Opened { fh, keep_cache: false, direct_io: false })
    }

    /// Closes a directory stream. 0 RPCs.
    pub fn releasedir(&self, ino: Ino, fh: u64) {
        self.listings.0.lock().remove(&(ino, fh));
    }

    /// Entries behind `offset`: 1 RPC per `READDIR_ENTRIES_MAX` names, 0 while the stream's page lasts. Reading from the
    /// start always asks.
    pub async fn readdir(&self, _rq: &Request, ino: Ino, fh: u64, offset: u64, plus: bool) -> FsResult<DirPage> {
        self.list(ino, fh, offset, if plus { Attrs::All } else { Attrs::None }).await
    }

    /// As [`Vfs::readdir`] with `plus`, but attributes of children that live in other partitions stay unknown: no RPC per
    /// child. For transports that can send an entry without attributes.
    pub async fn readdir_known(&self, _rq: &Request, ino: Ino, fh: u64, offset: u64) -> FsResult<DirPage> {
        self.list(ino, fh, offset, Attrs::Known).await
    }

    async fn list(&self, ino: Ino, fh: u64, offset: u64, attrs: Attrs) -> FsResult<DirPage> {
        self.gate().await?;
        let before = self.listings.0.lock().get(&(ino, fh)).cloned();
        if offset > 0
            && let Some(page) = &before
            && let Some(from) = page.position(offset)
        {
            return Ok(DirPage { from, ..page.clone() });
        }
        let after = offset.max(AFTER_DOTS);
        let walk = match (&before, offset) {
            (_, 0) => None,
            (Some(p), _) if p.entries.last().is_some_and(|e| e.cookie == after) => p.walk,
            _ => Some((u64::MAX, 0)), // not from the start: never complete
        };
        let mut page = self.fetch_page(ino, after, attrs, walk).await?;
        if Handle::unpack(fh).is_some() {
            self.listings.0.lock().insert((ino, fh), page.clone());
        }
        page.from = if offset < AFTER_DOTS { offset as usize } else { 2 };
        Ok(page)
    }

    async fn fetch_page(&self, ino: Ino, after: u64, attrs: Attrs, walk: Option<(u64, u64)>) -> FsResult<DirPage> {
        self.miss();
        let epoch = self.names.epoch(ino);
        let sent = self.now();
        let limit = limits::READDIR_ENTRIES_MAX as u32;
        let plus = attrs != Attrs::None;
        let reply = self.meta.read(Read::ReadDir { ino, after, limit, plus }).await?;
        let ReadReply::Entries { mut entries, end, dir } = reply else { return Err(unexpected("readdir")) };
        if attrs == Attrs::All {
            self.complete_attrs(&mut entries).await?;
        }
        let (until, dir_until) = (self.entry_until(sent), self.attr_until(sent));
        let names = entries.iter().map(|e| (&e.name, e.ino, e.kind));
        let current = self.names.learn_page(&dir, names, until, dir_until);
        self.learn_attr(&dir, sent);
        for attr in entries.iter().filter_map(|e| e.attr.as_ref()) {
            self.learn_attr(attr, sent);
        }
        let (version, epoch) = walk.unwrap_or((dir.trunc_seq, epoch));
        let walk = (current && version == dir.trunc_seq).then_some((version, epoch)).or(Some((u64::MAX, 0)));
        if let Some((version, epoch)) = walk.filter(|w| end && w.0 != u64::MAX) {
            self.names.set_complete(ino, epoch, version, dir_until);
        }
        Ok(DirPage { dir, after, entries: Arc::new(entries), end, from: 2, walk })
    }

    /// Asks for the attributes of children that live in other partitions: 1 RPC each, [`REMOTE_ATTRS_AT_ONCE`] at a time.
    /// fuser sends an entry's attributes and its number in one, so an entry without them would be lost.
    async fn complete_attrs(&self, entries: &mut Vec<DirEntry>) -> FsResult<()> {
        let remote = entries.iter().enumerate().filter(|(_, e)| e.attr.is_none()).map(|(i, e)| (i, e.ino));
        let asked: Vec<_> = futures::stream::iter(remote.collect::<Vec<_>>())
            .map(|(i, ino)| async move { (i, self.attr(ino).await) })
            .buffer_unordered(REMOTE_ATTRS_AT_ONCE)
            .collect()
            .await;
        let mut gone = Vec::new();
        for (i, result) in asked {
            match result {
                Ok((attr, _)) => entries[i].attr = Some(attr),
                // Removed since the listing.
                Err(FsError::NotFound | FsError::Stale) => gone.push(entries[i].cookie),
                Err(e) => return Err(e),
            }
        }
        entries.retain(|e| !gone.contains(&e.cookie));
        Ok(())
    }

    /// Item `i` (counted from the asked offset) of a page; None behind its end. With `plus`, attributes are given only
    /// if the name still is what the page said: own changes since then would otherwise be undone in the kernel's cache.
    pub fn dir_item(&self, page: &DirPage, i: usize, plus: bool) -> Option<DirItem> {
        let position = page.from + i;
        if position < 2 {
            let (name, ino): (&'static [u8], Ino) =
                if position == 0 { (b".", page.dir.ino) } else { (b"..", self.parent_of(&page.dir)) };
            let (name, offset) = (Bytes::from_static(name), position as u64 + 1);
            // The kernel reads nothing but the number of the dots.
            let dot = || Entry { attr: Attr { ino, ..page.dir }, attr_ttl: Duration::ZERO, entry_ttl: Duration::ZERO };
            return Some(DirItem { name, ino, kind: FileKind::Directory, offset, entry: plus.then(dot) });
        }
        let e = page.entries.get(position - 2)?;
        let entry = if plus { self.cached_entry(page.dir.ino, e).or_else(|| self.momentary(e)) } else { None };
        Some(DirItem { name: e.name.bytes().clone(), ino: e.ino, kind: e.kind, offset: e.cookie, entry })
    }

    /// What a page says about a name that the caches no longer vouch for, with what is known to be newer: right at some
    /// moment, valid for no time, so the kernel asks again before it uses it.
    fn momentary(&self, e: &DirEntry) -> Option<Entry> {
        let read = e.attr?;
        let dirty = self.data.dirty_attr(e.ino);
        let newest = self.inodes.newest(e.ino).filter(|a| a.change > read.change).unwrap_or(read);
        Some(Entry { attr: overlay(newest, dirty), attr_ttl: Duration::ZERO, entry_ttl: Duration::ZERO })
    }

    fn parent_of(&self, dir: &Attr) -> Ino {
        if dir.ino == self.settings.root || dir.parent.0 == 0 { dir.ino } else { dir.parent }
    }

    fn cached_entry(&self, dir: Ino, e: &DirEntry) -> Option<Entry> {
        let now = self.now();
        let Some(Known::Is(ino, _, until)) = self.names.get(dir, &e.name, now) else { return None };
        let dirty = self.data.dirty_attr(ino);
        let (attr, attr_until) = self.inodes.get(ino, now).filter(|_| ino == e.ino)?;
        Some(Entry { attr: overlay(attr, dirty), attr_ttl: left(attr_until, now), entry_ttl: left(until, now) })
    }

    /// Directory changes are durable when they are answered. 0 RPCs.
    pub async fn fsyncdir(&self, _rq: &Request, _ino: Ino) -> FsResult<()> {
        self.gate().await
    }
}
