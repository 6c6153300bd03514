//! Routing keys and the ranges that partitions own (PROTOCOL 2, 17).

use crate::Ino;

/// 16-byte boundary type: inode number, then a sub-key (name hash for dentries, so that one huge directory can be split
/// later). Today every boundary has `sub == 0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RangeKey {
    /// Inode.
    pub ino: Ino,
    /// Name hash, or 0.
    pub sub: u64,
}

impl From<Ino> for RangeKey {
    fn from(ino: Ino) -> Self {
        RangeKey { ino, sub: 0 }
    }
}

/// Half-open interval `[start, end)` of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyRange {
    /// First key inside.
    pub start: RangeKey,
    /// First key outside.
    pub end: RangeKey,
}

impl KeyRange {
    /// Range of whole inodes `[start, end)`.
    pub fn inos(start: u64, end: u64) -> KeyRange {
        KeyRange { start: Ino(start).into(), end: Ino(end).into() }
    }
    /// Whether `key` lies inside.
    pub fn contains(&self, key: RangeKey) -> bool {
        self.start <= key && key < self.end
    }
}

/// The ranges one partition owns, sorted and disjoint.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RangeSet(Vec<KeyRange>);

impl RangeSet {
    /// Builds a set; overlapping ranges are an error (None).
    pub fn new(mut ranges: Vec<KeyRange>) -> Option<RangeSet> {
        ranges.sort();
        let ok = ranges.iter().all(|r| r.start < r.end) && ranges.windows(2).all(|w| w[0].end <= w[1].start);
        ok.then_some(RangeSet(ranges))
    }
    /// Whether the partition owns `key`.
    pub fn contains(&self, key: impl Into<RangeKey>) -> bool {
        let key = key.into();
        let i = self.0.partition_point(|r| r.end <= key);
        self.0.get(i).is_some_and(|r| r.contains(key))
    }
    /// Adds a range that the master granted; false when it overlaps.
    pub fn insert(&mut self, range: KeyRange) -> bool {
        let mut all = self.0.clone();
        all.push(range);
        match RangeSet::new(all) {
            Some(set) => {
                *self = set;
                true
            }
            None => false,
        }
    }
    /// The ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = &KeyRange> {
        self.0.iter()
    }
}
