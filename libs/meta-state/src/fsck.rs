//! Consistency of the records, of one partition and of a whole volume. Nothing is repaired; every finding is a sentence.

use crate::{
    Partition,
    record::{BlobKey, DeadKey, Dentry, DentryKey, Inode},
};
use fusefs_types::{FileKind, Ino, ObjectId, PartitionId, Source, name::name_hash};
use std::collections::{BTreeMap, BTreeSet};

/// What one partition found, and what only its neighbours can judge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsckReport {
    /// Partition.
    pub partition: PartitionId,
    /// Contradictions inside the partition; empty = clean.
    pub problems: Vec<String>,
    /// Names here, as (inode, directory, type), of inodes of other partitions.
    pub names_of_others: Vec<(Ino, Ino, FileKind)>,
    /// Inodes here that have fewer names here than their link count says: (missing names, type, parent).
    pub names_elsewhere: BTreeMap<Ino, (u32, FileKind, Ino)>,
    /// Directories here and their parents, for the search for cycles.
    pub parents: BTreeMap<Ino, Ino>,
}

#[derive(Default)]
struct Names {
    /// Names per inode: (count, last directory).
    of: BTreeMap<Ino, (u32, Ino)>,
    /// Subdirectories per directory.
    subdirs: BTreeMap<Ino, u32>,
}

impl Partition {
    /// Checks names, link counts, parents, extents, objects, inline puts, xattrs, orphans, locks and counters. At rest (no
    /// transaction running) a clean partition has no problems; [`fsck_volume`] joins the reports of all partitions.
    pub fn fsck(&self) -> FsckReport {
        let mut report = FsckReport { partition: self.id, ..FsckReport::default() };
        let names = self.fsck_dentries(&mut report);
        self.fsck_inodes(&names, &mut report);
        self.fsck_data(&mut report.problems);
        self.fsck_rest(&mut report.problems);
        report
    }
    fn fsck_dentries(&self, report: &mut FsckReport) -> Names {
        let mut names = Names::default();
        for (key, d) in self.t.dentries.iter() {
            self.fsck_dentry(&key, &d, report);
            let n = names.of.entry(d.ino).or_insert((0, key.parent));
            *n = (n.0 + 1, key.parent);
            if d.kind == FileKind::Directory {
                *names.subdirs.entry(key.parent).or_default() += 1;
            }
        }
        names
    }
    fn fsck_dentry(&self, key: &DentryKey, d: &Dentry, report: &mut FsckReport) {
        let place = format!("entry {:?} in {}", d.name, key.parent);
        match self.t.inodes.get(&key.parent) {
            Some(dir) if dir.is_dir() && dir.nlink > 0 => {}
            Some(dir) if dir.is_dir() => report.problems.push(format!("{place}: the directory was removed")),
            Some(_) => report.problems.push(format!("{place}: not a directory")),
            None => report.problems.push(format!("{place}: no such directory here")),
        }
        if key.cookie >> 4 != name_hash(&self.hash_key, d.name.as_bytes()).max(1) {
            report.problems.push(format!("{place}: cookie {:x} is not its hash", key.cookie));
        }
        match self.t.inodes.get(&d.ino) {
            Some(inode) if inode.kind != d.kind => {
                report.problems.push(format!("{place}: type differs from inode {}", d.ino))
            }
            Some(_) => {}
            None if self.owns(d.ino) => report.problems.push(format!("{place}: inode {} does not exist", d.ino)),
            None => report.names_of_others.push((d.ino, key.parent, d.kind)),
        }
    }
    fn fsck_inodes(&self, names: &Names, report: &mut FsckReport) {
        for (ino, inode) in self.t.inodes.iter() {
            let say = |what: String| format!("inode {ino}: {what}");
            let problems = &mut report.problems;
            if !self.owns(ino) {
                problems.push(say("outside our ranges".into()));
            }
            if (inode.nlink == 0) != self.t.orphans.contains(&ino) {
                problems.push(say(format!("nlink {} and orphan row disagree", inode.nlink)));
            }
            let (found, parent) = names.of.get(&ino).copied().unwrap_or((0, Ino(0)));
            let wanted = match &inode {
                _ if ino == Ino::ROOT => 0,
                i if i.is_dir() => i.nlink.min(1),
                i => i.nlink,
            };
            if found > wanted {
                problems.push(say(format!("{found} names, link count {}", inode.nlink)));
            } else if found < wanted {
                report.names_elsewhere.insert(ino, (wanted - found, inode.kind, inode.parent));
            }
            if inode.is_dir() {
                fsck_directory(ino, &inode, (found, parent), names, problems);
                if inode.nlink > 0 {
                    report.parents.insert(ino, inode.parent);
                }
            }
            if inode.kind == FileKind::Symlink && inode.size != inode.target.len() as u64 {
                problems.push(say("size is not the target's".into()));
            }
        }
    }
    fn fsck_data(&self, problems: &mut Vec<String>) {
        let mut objects: BTreeMap<ObjectId, u64> = BTreeMap::new();
        let mut blobs: BTreeMap<BlobKey, u64> = BTreeMap::new();
        let mut allocated: BTreeMap<Ino, u64> = BTreeMap::new();
        let mut last: Option<(Ino, u64)> = None;
        for (key, e) in self.t.extents.iter() {
            if last.is_some_and(|(ino, end)| ino == key.ino && end > key.offset) {
                problems.push(format!("inode {}: extents overlap at {}", key.ino, key.offset));
            }
            last = Some((key.ino, key.offset + e.len));
            *allocated.entry(key.ino).or_default() += e.len;
            match e.source {
                Source::Object { id, .. } => *objects.entry(id).or_default() += e.len,
                Source::Inline { index, n, .. } => *blobs.entry(BlobKey { index, n }).or_default() += e.len,
                Source::Zero => {}
            }
        }
        for ino in allocated.keys() {
            if self.t.inodes.get(ino).is_none_or(|i| i.kind != FileKind::Regular) {
                problems.push(format!("inode {ino}: extents of something that is not a file"));
            }
        }
        for (ino, inode) in self.t.inodes.iter() {
            let sum = allocated.get(&ino).copied().unwrap_or(0);
            if inode.allocated != sum {
                problems.push(format!("inode {ino}: allocated {}, extents say {sum}", inode.allocated));
            }
        }
        let bytes: u64 = allocated.values().sum();
        if bytes != self.meta.bytes {
            problems.push(format!("bytes counter {}, extents say {bytes}", self.meta.bytes));
        }
        self.fsck_objects(&objects, problems);
        self.fsck_blobs(&blobs, problems);
    }
    fn fsck_objects(&self, used: &BTreeMap<ObjectId, u64>, problems: &mut Vec<String>) {
        for (id, o) in self.t.objects.iter() {
            let live = used.get(&id).copied().unwrap_or(0);
            if live != o.live {
                problems.push(format!("object {}: {} live bytes, extents say {live}", id.key(), o.live));
            }
            if o.dead.is_some() != (o.live == 0) {
                problems.push(format!("object {}: {} live bytes, dead {:?}", id.key(), o.live, o.dead));
            }
            if o.dead.is_some_and(|since| !self.t.dead.contains(&DeadKey { since, id })) {
                problems.push(format!("object {}: dead without a row for the work list", id.key()));
            }
            if !self.owns(o.home) {
                problems.push(format!("object {}: home {} is elsewhere", id.key(), o.home));
            }
        }
        for id in used.keys().filter(|id| !self.t.objects.contains(id)) {
            problems.push(format!("object {}: referenced, but without a record", id.key()));
        }
        for (key, _) in self.t.dead.iter() {
            if self.t.objects.get(&key.id).is_none_or(|o| o.dead != Some(key.since)) {
                problems.push(format!("object {}: on the work list, but not dead", key.id.key()));
            }
        }
    }
    fn fsck_blobs(&self, used: &BTreeMap<BlobKey, u64>, problems: &mut Vec<String>) {
        let mut total = 0;
        for (key, b) in self.t.blobs.iter() {
            total += u64::from(b.len);
            let live = used.get(&key).copied().unwrap_or(0);
            if live != u64::from(b.live) || live == 0 {
                problems.push(format!("inline put {key:?}: {} live bytes, extents say {live}", b.live));
            }
        }
        for key in used.keys().filter(|k| !self.t.blobs.contains(k)) {
            problems.push(format!("inline put {key:?}: referenced, but without a record"));
        }
        if total != self.meta.inline_bytes {
            problems.push(format!("inline counter {}, puts say {total}", self.meta.inline_bytes));
        }
    }
    fn fsck_rest(&self, problems: &mut Vec<String>) {
        let mut xattrs: BTreeMap<Ino, u32> = BTreeMap::new();
        for (key, _) in self.t.xattrs.iter() {
            *xattrs.entry(key.ino).or_default() += 1;
        }
        for ino in xattrs.keys().filter(|i| !self.t.inodes.contains(i)) {
            problems.push(format!("inode {ino}: xattrs without an inode"));
        }
        for (ino, inode) in self.t.inodes.iter() {
            let sum = xattrs.get(&ino).copied().unwrap_or(0);
            if sum != inode.xattrs {
                problems.push(format!("inode {ino}: {} xattrs, {sum} found", inode.xattrs));
            }
        }
        for (ino, _) in self.t.orphans.iter().filter(|(i, _)| !self.t.inodes.contains(i)) {
            problems.push(format!("inode {ino}: orphan row without an inode"));
        }
        let mut replies: BTreeMap<_, u32> = BTreeMap::new();
        for (key, _) in self.t.replies.iter() {
            *replies.entry(key.session).or_default() += 1;
        }
        for (id, s) in self.t.sessions.iter() {
            let sum = replies.remove(&id).unwrap_or(0);
            if s.replies != sum {
                problems.push(format!("session {id}: {} replies, {sum} found", s.replies));
            }
        }
        for id in replies.keys() {
            problems.push(format!("session {id}: replies without a session"));
        }
        crate::ops::flock::fsck(self, problems);
    }
}

fn fsck_directory(ino: Ino, dir: &Inode, name: (u32, Ino), names: &Names, problems: &mut Vec<String>) {
    let wanted = if dir.nlink == 0 { 0 } else { 2 + names.subdirs.get(&ino).copied().unwrap_or(0) };
    if dir.nlink != wanted {
        problems.push(format!("inode {ino}: directory with link count {}, entries say {wanted}", dir.nlink));
    }
    let (found, parent) = name;
    if found > 0 && ino != Ino::ROOT && dir.parent != parent {
        problems.push(format!("inode {ino}: parent {}, but its name is in {parent}", dir.parent));
    }
}

/// Joins the reports of all partitions of a volume, taken at rest: every name has its inode, every link its name, and
/// every directory is below the root.
pub fn fsck_volume(reports: &[FsckReport]) -> Vec<String> {
    let mut problems: Vec<String> =
        reports.iter().flat_map(|r| r.problems.iter().map(|p| format!("partition {}: {p}", r.partition))).collect();
    let mut wanted: BTreeMap<Ino, (u32, FileKind, Ino)> = BTreeMap::new();
    let mut parents: BTreeMap<Ino, Ino> = BTreeMap::new();
    for r in reports {
        wanted.extend(&r.names_elsewhere);
        parents.extend(&r.parents);
    }
    for (ino, dir, kind) in reports.iter().flat_map(|r| &r.names_of_others) {
        match wanted.get_mut(ino) {
            Some((missing, ..)) if *missing == 0 => problems.push(format!("inode {ino}: more names than links")),
            None => problems.push(format!("inode {ino}: a name in {dir}, but no such link")),
            Some((missing, is, parent)) => {
                *missing -= 1;
                if is != kind {
                    problems.push(format!("inode {ino}: type differs from its entry in {dir}"));
                }
                if *is == FileKind::Directory && parent != dir {
                    problems.push(format!("inode {ino}: parent {parent}, but its name is in {dir}"));
                }
            }
        }
    }
    for (ino, (missing, ..)) in wanted.iter().filter(|(_, w)| w.0 > 0) {
        problems.push(format!("inode {ino}: {missing} links without a name"));
    }
    problems.extend(unreachable(&parents));
    problems
}

/// Directories that do not reach the root.
fn unreachable(parents: &BTreeMap<Ino, Ino>) -> Vec<String> {
    let mut good: BTreeSet<Ino> = BTreeSet::from([Ino::ROOT]);
    let mut problems = Vec::new();
    for start in parents.keys() {
        let (mut path, mut at) = (Vec::new(), *start);
        while !good.contains(&at) && !path.contains(&at) {
            path.push(at);
            match parents.get(&at) {
                Some(up) => at = *up,
                None => break,
            }
        }
        if good.contains(&at) {
            good.extend(path);
        } else {
            problems.push(format!("directory {start} is not below the root"));
        }
    }
    problems
}
