//! Steps that operations and transaction parts are made of. `can_*` checks change nothing; the others are called only
//! after every check of the operation has passed, because `apply` has no rollback.

use crate::{
    Partition,
    apply::Cx,
    codec::Put,
    record::{Dentry, DentryKey, Inode, Orphan},
};
use fusefs_types::{
    Attr, FileKind, FsError, FsResult, Ino, Name, limits,
    name::{cookie, name_hash},
};

impl Partition {
    /// Inode that we own: WrongRange when it is somebody else's, NotFound when it does not exist.
    pub fn inode(&self, ino: Ino) -> FsResult<Inode> {
        if !self.owns(ino) {
            return Err(FsError::WrongRange);
        }
        self.t.inodes.get(&ino).ok_or(FsError::NotFound)
    }
    /// Directory that we own and that has not been removed.
    pub fn dir(&self, ino: Ino) -> FsResult<Inode> {
        let dir = self.inode(ino)?;
        if !dir.is_dir() {
            return Err(FsError::NotDirectory);
        }
        if dir.nlink == 0 { Err(FsError::NotFound) } else { Ok(dir) }
    }
    /// Stores an inode.
    pub(crate) fn put_inode(&mut self, ino: Ino, inode: &Inode) {
        self.t.inodes.put(&ino, inode);
    }
    /// Entry of a name.
    pub fn find(&self, parent: Ino, name: &Name) -> Option<(DentryKey, Dentry)> {
        self.same_hash(parent, name).find(|(_, d)| d.name == *name)
    }
    /// Entries whose names have the hash of `name`.
    fn same_hash(&self, parent: Ino, name: &Name) -> impl Iterator<Item = (DentryKey, Dentry)> {
        let hash = name_hash(&self.hash_key, name.as_bytes());
        let last = cookie(hash, 15);
        self.t
            .dentries
            .range(&DentryKey { parent, cookie: cookie(hash, 0) })
            .take_while(move |(k, _)| k.parent == parent && k.cookie <= last)
    }
    /// Smallest free cookie of a name that is not there; NoSpace at the 17th collision (PROTOCOL 5).
    pub(crate) fn free_cookie(&self, parent: Ino, name: &Name) -> FsResult<DentryKey> {
        let taken = self.same_hash(parent, name).fold(0u16, |bits, (k, _)| bits | 1 << (k.cookie & 15));
        let rank = taken.trailing_ones();
        if rank as usize >= limits::NAME_COLLISIONS_MAX {
            return Err(FsError::NoSpace);
        }
        Ok(DentryKey { parent, cookie: cookie(name_hash(&self.hash_key, name.as_bytes()), rank as u8) })
    }
    /// Adds an entry at a key of [`Partition::free_cookie`]. The directory's inode is the caller's to touch.
    pub(crate) fn add_name(&mut self, key: DentryKey, name: &Name, ino: Ino, kind: FileKind) {
        self.t.dentries.put(&key, &Dentry { ino, kind, name: name.clone() });
    }
    /// Whether a directory has no entry here.
    pub fn is_empty_dir(&self, ino: Ino) -> bool {
        let mut prefix = Vec::with_capacity(8);
        prefix.key64(ino.0);
        self.t.dentries.prefix(prefix).next().is_none()
    }
    /// The content of a directory changed: mtime, ctime, version, and `links` subdirectories more or less.
    pub(crate) fn touch_dir(&mut self, cx: &Cx, ino: Ino, links: i32) -> FsResult<Attr> {
        let mut dir = self.inode(ino)?;
        dir.touch_data(cx.stamp);
        // Entry version: with it a client proves that nobody else changed the directory (`Attr::trunc_seq`).
        dir.trunc_seq += 1;
        dir.nlink = dir.nlink.saturating_add_signed(links);
        self.put_inode(ino, &dir);
        Ok(dir.attr(ino))
    }
    /// One name less: link count and ctime; an inode without names becomes an orphan.
    pub(crate) fn drop_link(&mut self, cx: &Cx, ino: Ino) -> FsResult<Attr> {
        let mut inode = self.inode(ino)?;
        // A directory has one name; its links from `.` and from below go with it.
        inode.nlink = if inode.is_dir() { 0 } else { inode.nlink.saturating_sub(1) };
        inode.touch(cx.stamp);
        self.put_inode(ino, &inode);
        if inode.nlink == 0 {
            self.t.orphans.put(&ino, &Orphan { since: cx.stamp, maker: None });
        }
        Ok(inode.attr(ino))
    }
    /// One name more: link count and ctime. TooManyLinks at the limit.
    pub(crate) fn add_link(&mut self, cx: &Cx, ino: Ino) -> FsResult<Attr> {
        let mut inode = self.inode(ino)?;
        if inode.nlink >= limits::LINK_MAX {
            return Err(FsError::TooManyLinks);
        }
        inode.nlink += 1;
        inode.touch(cx.stamp);
        self.put_inode(ino, &inode);
        if inode.nlink == 1 {
            self.drop_orphan(ino);
        }
        Ok(inode.attr(ino))
    }
    /// A moved inode: ctime; a directory also gets its new parent.
    pub(crate) fn moved(&mut self, cx: &Cx, ino: Ino, parent: Ino) -> FsResult<Attr> {
        let mut inode = self.inode(ino)?;
        inode.touch(cx.stamp);
        if inode.is_dir() {
            inode.parent = parent;
        }
        self.put_inode(ino, &inode);
        Ok(inode.attr(ino))
    }
    /// A new inode under the next number. The caller has checked [`Partition::can_alloc`].
    pub(crate) fn new_inode(&mut self, inode: &Inode) -> FsResult<Ino> {
        let ino = self.alloc_ino()?;
        self.put_inode(ino, inode);
        Ok(ino)
    }
    /// Removes an inode with its extents, xattrs, locks and orphan row. What its objects and inline puts lose is counted.
    pub(crate) fn destroy_inode(&mut self, cx: &mut Cx, ino: Ino) {
        let Some(inode) = self.t.inodes.get(&ino) else { return };
        if inode.kind == FileKind::Regular {
            self.cut_extents(cx, ino, 0, u64::MAX);
        }
        if inode.xattrs > 0 {
            let names: Vec<_> = self.xattrs_of(ino).map(|(k, _)| k).collect();
            for key in names {
                self.t.xattrs.remove(&key);
            }
        }
        self.drop_inode_locks(cx, ino);
        self.t.inodes.remove(&ino);
        self.t.orphans.remove(&ino);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PartitionConfig;
    use fusefs_types::{KeyRange, PartitionId, VolumeId};

    #[test]
    fn the_seventeenth_collision_is_enospc() {
        let mut p = Partition::new(PartitionConfig {
            volume: VolumeId(1),
            partition: PartitionId(1),
            ranges: vec![KeyRange::inos(1, 100)],
            hash_key: [3; 16],
        })
        .unwrap();
        let name = |i: u64| Name::new(format!("n{i}")).unwrap();
        let wanted = name(99);
        let hash = name_hash(&p.hash_key, wanted.as_bytes());
        for rank in 0..16 {
            let key = p.free_cookie(Ino::ROOT, &wanted).unwrap();
            assert_eq!(key.cookie, cookie(hash, rank), "the smallest free rank");
            p.add_name(key, &name(u64::from(rank)), Ino(50), FileKind::Regular);
        }
        assert_eq!(p.free_cookie(Ino::ROOT, &wanted), Err(FsError::NoSpace));
        assert!(p.find(Ino::ROOT, &wanted).is_none(), "equal hashes are not equal names");
        p.t.dentries.remove(&DentryKey { parent: Ino::ROOT, cookie: cookie(hash, 5) });
        assert_eq!(p.free_cookie(Ino::ROOT, &wanted).unwrap().cookie & 15, 5);
    }
}
