//! Dentry cache: names with a validity each, negative ones too, and directories whose names are all known.
//!
//! One LRU holds the names of a shard of directories; when a name is dropped for room, its directory stops being
//! complete.

use super::dirver::DirVersion;
use super::icache::SHARDS;
use fusefs_types::{Attr, FileKind, FsError, Ino, Name};
use lru::LruCache;
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

/// Rough bytes of one cached name with its share of the tables.
pub const DENTRY_COST: usize = 220;

/// Directories whose version is tracked, per shard.
const DIRS_PER_SHARD: usize = 4096;

/// What a name is known to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It names this inode, until then (boot time in ns).
    Is(Ino, FileKind, u64),
    /// There is no such name, until then.
    Absent(u64),
}

struct Dentry {
    target: Option<(Ino, FileKind)>,
    until: u64,
    /// Entry version of the directory at which this was true.
    version: u64,
}

impl Dentry {
    fn known(&self, until: u64) -> Known {
        match self.target {
            Some((ino, kind)) => Known::Is(ino, kind, until),
            None => Known::Absent(until),
        }
    }
}

struct Shard {
    names: LruCache<(Ino, Name), Dentry>,
    dirs: LruCache<Ino, DirVersion>,
    /// Numbers for [`DirVersion::epoch`].
    epochs: u64,
}

impl Shard {
    fn dir(&mut self, ino: Ino) -> &mut DirVersion {
        let epochs = &mut self.epochs;
        self.dirs.get_or_insert_mut(ino, || {
            *epochs += 1;
            DirVersion::with_epoch(*epochs)
        })
    }
}

/// See the module. All times are CLOCK_BOOTTIME nanoseconds.
pub struct DentryCache {
    shards: Vec<Mutex<Shard>>,
    evicted: AtomicU64,
}

impl DentryCache {
    /// A cache of about `entries` names.
    pub fn new(entries: usize) -> DentryCache {
        let names_max = NonZeroUsize::new(entries / SHARDS).unwrap_or(NonZeroUsize::MIN);
        let dirs_max = NonZeroUsize::new(DIRS_PER_SHARD).unwrap_or(NonZeroUsize::MIN);
        let shards = (0..SHARDS).map(|_| {
            let (mut names, mut dirs) = (LruCache::unbounded(), LruCache::unbounded());
            names.resize(names_max);
            dirs.resize(dirs_max);
            Mutex::new(Shard { names, dirs, epochs: 0 })
        });
        DentryCache { shards: shards.collect(), evicted: AtomicU64::new(0) }
    }

    fn shard(&self, dir: Ino) -> &Mutex<Shard> {
        &self.shards[(dir.0 as usize) & (SHARDS - 1)]
    }

    /// What is known about a name at `now`, without asking.
    pub fn get(&self, dir: Ino, name: &Name, now: u64) -> Option<Known> {
        let mut shard = self.shard(dir).lock();
        let Shard { names, dirs, .. } = &mut *shard;
        let complete = dirs.get(&dir).and_then(|d| Some((d.base(now)?, d.until())));
        match (names.get(&(dir, name.clone())), complete) {
            (Some(d), Some((base, checked))) if d.version >= base => Some(d.known(d.until.max(checked))),
            (_, Some((_, checked))) => Some(Known::Absent(checked)),
            (Some(d), None) => (now < d.until).then(|| d.known(d.until)),
            (None, None) => None,
        }
    }

    /// A lookup's answer: `target` of `name`, with the directory's attributes of the same instant.
    pub fn learn(&self, dir: &Attr, name: &Name, target: Option<(Ino, FileKind)>, until: u64, dir_until: u64) {
        let mut shard = self.shard(dir.ino).lock();
        if self.observe_in(&mut shard, dir, dir_until) {
            self.insert(&mut shard, dir.ino, name, Dentry { target, until, version: dir.trunc_seq });
        }
    }

    /// Attributes of a directory were seen: checks completeness.
    pub fn observe(&self, dir: &Attr, dir_until: u64) {
        let mut shard = self.shard(dir.ino).lock();
        if let Some(d) = shard.dirs.get_mut(&dir.ino) {
            d.observe(dir.trunc_seq, dir_until);
        }
    }

    /// True when the version is current, so names of the same instant may be cached.
    fn observe_in(&self, shard: &mut Shard, dir: &Attr, dir_until: u64) -> bool {
        let d = shard.dir(dir.ino);
        let current = d.is_current(dir.trunc_seq);
        d.observe(dir.trunc_seq, dir_until);
        current
    }

    fn insert(&self, shard: &mut Shard, dir: Ino, name: &Name, dentry: Dentry) {
        let Some((key, old)) = shard.names.push((dir, name.clone()), dentry) else { return };
        if key.0 == dir && key.1 == *name {
            return; // replaced itself
        }
        self.evicted.fetch_add(1, Ordering::Relaxed);
        if old.target.is_some() {
            shard.epochs += 1;
            let epoch = shard.epochs;
            if let Some(d) = shard.dirs.peek_mut(&key.0) {
                d.give_up();
                d.epoch = epoch;
            }
        }
    }

    /// A page of a listing; returns whether it was current (its names were cached).
    pub fn learn_page<'a>(
        &self,
        dir: &Attr,
        entries: impl Iterator<Item = (&'a Name, Ino, FileKind)>,
        until: u64,
        dir_until: u64,
    ) -> bool {
        let mut shard = self.shard(dir.ino).lock();
        if !self.observe_in(&mut shard, dir, dir_until) {
            return false;
        }
        for (name, ino, kind) in entries {
            let dentry = Dentry { target: Some((ino, kind)), until, version: dir.trunc_seq };
            self.insert(&mut shard, dir.ino, name, dentry);
        }
        true
    }

    /// A listing starts; its end gives this number to [`DentryCache::set_complete`].
    pub fn epoch(&self, dir: Ino) -> u64 {
        self.shard(dir).lock().dir(dir).epoch
    }

    /// Every name of the directory as of this version was cached since [`DentryCache::epoch`] said `epoch`. Ignored if
    /// one of them had to make room already.
    pub fn set_complete(&self, dir: Ino, epoch: u64, version: u64, until: u64) {
        let mut shard = self.shard(dir).lock();
        let d = shard.dir(dir);
        if d.epoch == epoch {
            d.set_complete(version, until);
        }
    }

    /// An own mutation of the directory starts; end it with one of the methods of [`Mutation`].
    pub fn begin(&self, dir: Ino) -> Mutation<'_> {
        let began = self.shard(dir).lock().dir(dir).begin();
        Mutation { cache: self, dir, began, open: true }
    }

    /// Forgets one name without a statement about it.
    pub fn drop_name(&self, dir: Ino, name: &Name) {
        let mut shard = self.shard(dir).lock();
        if let Some(d) = shard.dirs.peek_mut(&dir) {
            d.give_up();
        }
        shard.names.pop(&(dir, name.clone()));
    }

    /// [`DentryCache::drop_name`] if `condition`.
    pub fn drop_name_if(&self, dir: Ino, name: &Name, condition: bool) {
        if condition {
            self.drop_name(dir, name);
        }
    }

    /// Cached names.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().names.len()).sum()
    }

    /// Names dropped for room so far.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }
}

/// An own mutation of a directory's entries on its way. Dropped without an end, its outcome is unknown.
pub struct Mutation<'a> {
    cache: &'a DentryCache,
    dir: Ino,
    began: u64,
    open: bool,
}

impl Mutation<'_> {
    /// It was done. `after` = the directory afterwards if the reply told; `names` = what it did to names.
    pub fn done(
        mut self,
        after: Option<&Attr>,
        names: &[(&Name, Option<(Ino, FileKind)>)],
        until: u64,
        dir_until: u64,
    ) {
        self.open = false;
        let mut shard = self.cache.shard(self.dir).lock();
        let d = shard.dir(self.dir);
        let newest = after.is_none_or(|a| d.is_current(a.trunc_seq));
        let version = after.map(|a| a.trunc_seq);
        d.end_changed(self.began, version, dir_until);
        let complete = d.is_complete();
        for (name, target) in names {
            // An older reply that arrives late says nothing about names that a later own mutation may have touched; the
            // kernel serialises mutations of one name, so only an unrelated validity is at stake.
            let until = if newest { until } else { 0 };
            if target.is_none() && complete {
                shard.names.pop(&(self.dir, (*name).clone())); // absent by completeness, without a negative entry
                continue;
            }
            let dentry = Dentry { target: *target, until, version: version.unwrap_or(self.began + 1) };
            self.cache.insert(&mut shard, self.dir, name, dentry);
        }
    }

    /// It changed nothing (an existing file was found).
    pub fn unchanged(mut self) {
        self.open = false;
        if let Some(d) = self.cache.shard(self.dir).lock().dirs.get_mut(&self.dir) {
            d.end_unchanged();
        }
    }

    /// It failed. A definite refusal changed nothing; after anything else the outcome is unknown.
    pub fn failed(self, error: FsError) {
        if is_refusal(error) {
            self.unchanged();
        }
    }
}

impl Drop for Mutation<'_> {
    fn drop(&mut self) {
        if self.open
            && let Some(d) = self.cache.shard(self.dir).lock().dirs.get_mut(&self.dir)
        {
            d.end_unknown();
        }
    }
}

/// Errors with which a partition refuses before it changes anything.
fn is_refusal(error: FsError) -> bool {
    use FsError as E;
    matches!(
        error,
        E::NotPermitted
            | E::NotFound
            | E::AccessDenied
            | E::Exists
            | E::CrossDevice
            | E::NotDirectory
            | E::IsDirectory
            | E::Invalid
            | E::NoSpace
            | E::ReadOnly
            | E::TooManyLinks
            | E::NameTooLong
            | E::NotEmpty
            | E::Loop
            | E::Quota
            | E::NotSupported
    )
}
