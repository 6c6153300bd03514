//! Ordered copy-on-write trees of packed records: 4 KiB blocks behind `Arc`, found through a small persistent index.
//! Cloning a tree is O(1); a changed block is copied only while a clone still holds it. Packing many records into one
//! allocation is what keeps an empty file near 100 bytes (`examples/memory.rs`).

use crate::record::Record;
use fusefs_types::{FsError, FsResult};
use siphasher::sip128::{Hasher128, SipHasher13};
use std::{hash::Hasher, marker::PhantomData, ops::Bound, sync::Arc};

/// Bytes of a block before it is split.
pub const BLOCK_BYTES: usize = 4096;
/// A block below this is merged with its right neighbour when both fit.
const BLOCK_SMALL: usize = 1024;
/// Most a merge may produce, so that the next insert does not split again.
const BLOCK_MERGED: usize = 3072;

/// What a partition needs of an ordered map from bytes to bytes.
pub trait Tree: Clone + Default {
    /// Value of a key.
    fn get(&self, key: &[u8]) -> Option<&[u8]>;
    /// Inserts or replaces; true when the key is new. `at` = log index of the change (PROTOCOL 29).
    fn put(&mut self, key: &[u8], value: &[u8], at: u64) -> bool;
    /// Removes; true when it was there.
    fn remove(&mut self, key: &[u8], at: u64) -> bool;
    /// Number of records.
    fn len(&self) -> u64;
    /// No records.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Records with a key at or above `from`, ascending.
    fn scan(&self, from: Vec<u8>) -> impl Iterator<Item = (&[u8], &[u8])>;
    /// Last record with a key at or below `key`.
    fn floor(&self, key: &[u8]) -> Option<(&[u8], &[u8])>;
    /// Blocks in key order: (log index of the last change, records).
    fn blocks(&self) -> impl Iterator<Item = (u64, Vec<(&[u8], &[u8])>)>;
}

/// One packed block: records `[key length u16][key][value]` in key order.
#[derive(Clone, Default)]
struct Block {
    changed: u64,
    offsets: Vec<u32>,
    data: Vec<u8>,
}

impl Block {
    fn entry(&self, i: usize) -> (&[u8], &[u8]) {
        let start = self.offsets[i] as usize;
        let end = self.offsets.get(i + 1).map_or(self.data.len(), |o| *o as usize);
        let klen = u16::from_le_bytes([self.data[start], self.data[start + 1]]) as usize;
        let body = &self.data[start + 2..end];
        body.split_at(klen)
    }
    fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut lo, mut hi) = (0, self.offsets.len());
        while lo < hi {
            let mid = (lo + hi) / 2;
            match self.entry(mid).0.cmp(key) {
                std::cmp::Ordering::Less => lo = mid + 1,
                std::cmp::Ordering::Greater => hi = mid,
                std::cmp::Ordering::Equal => return Ok(mid),
            }
        }
        Err(lo)
    }
    /// Replaces the bytes `[start, end)` by a gap of `len` bytes.
    fn gap(&mut self, start: usize, end: usize, len: usize) {
        let old = self.data.len();
        let new = old - (end - start) + len;
        if new > self.data.capacity() {
            // Exact growth in small steps: doubling would waste a quarter of the memory target.
            self.data.reserve_exact((new - old).next_multiple_of(256));
        }
        if new > old {
            self.data.resize(new, 0);
        }
        self.data.copy_within(end..old, start + len);
        self.data.truncate(new);
    }
    fn write(&mut self, start: usize, key: &[u8], value: &[u8]) {
        self.data[start..start + 2].copy_from_slice(&(key.len() as u16).to_le_bytes());
        self.data[start + 2..start + 2 + key.len()].copy_from_slice(key);
        self.data[start + 2 + key.len()..start + 2 + key.len() + value.len()].copy_from_slice(value);
    }
    fn shift(&mut self, from: usize, delta: i64) {
        for o in &mut self.offsets[from..] {
            *o = (i64::from(*o) + delta) as u32;
        }
    }
    fn insert(&mut self, i: usize, key: &[u8], value: &[u8]) {
        let start = self.offsets.get(i).map_or(self.data.len(), |o| *o as usize);
        let len = 2 + key.len() + value.len();
        self.gap(start, start, len);
        self.write(start, key, value);
        if self.offsets.len() == self.offsets.capacity() {
            self.offsets.reserve_exact(8);
        }
        self.offsets.insert(i, start as u32);
        self.shift(i + 1, len as i64);
    }
    fn replace(&mut self, i: usize, key: &[u8], value: &[u8]) {
        let start = self.offsets[i] as usize;
        let end = self.offsets.get(i + 1).map_or(self.data.len(), |o| *o as usize);
        let len = 2 + key.len() + value.len();
        self.gap(start, end, len);
        self.write(start, key, value);
        self.shift(i + 1, len as i64 - (end - start) as i64);
    }
    fn remove(&mut self, i: usize) {
        let start = self.offsets[i] as usize;
        let end = self.offsets.get(i + 1).map_or(self.data.len(), |o| *o as usize);
        self.gap(start, end, 0);
        self.offsets.remove(i);
        self.shift(i, -((end - start) as i64));
    }
    /// Moves the records from `at` on into a new block.
    fn split_off(&mut self, at: usize) -> Block {
        let start = self.offsets[at];
        let data = self.data.split_off(start as usize);
        let mut offsets = self.offsets.split_off(at);
        for o in &mut offsets {
            *o -= start;
        }
        self.data.shrink_to_fit();
        self.offsets.shrink_to_fit();
        Block { changed: self.changed, offsets, data }
    }
    fn append(&mut self, other: &Block) {
        let base = self.data.len() as u32;
        self.data.extend_from_slice(&other.data);
        self.offsets.extend(other.offsets.iter().map(|o| o + base));
        self.changed = self.changed.max(other.changed);
    }
    /// Where to split an oversized block whose record `last_insert` is new.
    fn split_point(&self, last_insert: usize) -> usize {
        if last_insert + 1 == self.offsets.len() {
            return last_insert; // ascending inserts leave full blocks behind
        }
        let half = (self.data.len() / 2) as u32;
        self.offsets.partition_point(|o| *o < half).clamp(1, self.offsets.len() - 1)
    }
}

/// The tree: separator -> block; the first separator is the empty key, a block holds keys at or above its separator.
#[derive(Clone, Default)]
pub struct PackedTree {
    index: imbl::OrdMap<Arc<[u8]>, Arc<Block>>,
    len: u64,
}

impl PackedTree {
    fn split_large(&mut self, separator: &[u8], inserted: usize) {
        let Some(block) = self.index.get_mut(separator) else { return };
        if block.data.len() <= BLOCK_BYTES || block.offsets.len() < 2 {
            return;
        }
        let block = Arc::make_mut(block);
        let at = block.split_point(inserted);
        let right = block.split_off(at);
        let key: Arc<[u8]> = right.entry(0).0.into();
        self.index.insert(key, Arc::new(right));
    }
    /// Joins a small block with a neighbour, so that scattered removals do not leave a tree of crumbs.
    fn merge_small(&mut self, separator: &[u8]) {
        let Some(block) = self.index.get(separator) else { return };
        let fits = |other: &Arc<Block>| block.data.len() + other.data.len() <= BLOCK_MERGED;
        let after = (Bound::Excluded(separator), Bound::Unbounded);
        let before = (Bound::Unbounded, Bound::Excluded(separator));
        let next = self.index.range::<_, [u8]>(after).next().filter(|(_, b)| fits(b)).map(|(k, _)| k.clone());
        let left = match next {
            Some(_) => Some(Arc::from(separator)),
            None => self.index.range::<_, [u8]>(before).next_back().filter(|(_, b)| fits(b)).map(|(k, _)| k.clone()),
        };
        let Some(left) = left else {
            if block.offsets.is_empty() && self.index.len() == 1 {
                self.index.remove(separator);
            }
            return;
        };
        let right: Arc<[u8]> = next.unwrap_or_else(|| Arc::from(separator));
        let Some(moved) = self.index.remove(&right) else { return };
        if let Some(block) = self.index.get_mut(&left) {
            Arc::make_mut(block).append(&moved);
        }
    }
}

impl Tree for PackedTree {
    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let (_, block) = self.index.get_prev(key)?;
        block.find(key).ok().map(|i| block.entry(i).1)
    }
    fn put(&mut self, key: &[u8], value: &[u8], at: u64) -> bool {
        if self.index.is_empty() {
            self.index.insert(Arc::from(&[][..]), Arc::new(Block::default()));
        }
        // The empty separator exists, so every key has a predecessor.
        let Some((separator, block)) = self.index.get_prev_mut(key) else { return false };
        let separator = separator.clone();
        let block = Arc::make_mut(block);
        block.changed = block.changed.max(at);
        let (place, new) = match block.find(key) {
            Ok(i) => {
                block.replace(i, key, value);
                (i, false)
            }
            Err(i) => {
                block.insert(i, key, value);
                (i, true)
            }
        };
        self.len += u64::from(new);
        if block.data.len() > BLOCK_BYTES {
            self.split_large(&separator, place);
        }
        new
    }
    fn remove(&mut self, key: &[u8], at: u64) -> bool {
        let Some((_, block)) = self.index.get_prev(key) else { return false };
        if block.find(key).is_err() {
            return false; // looked at first: get_prev_mut would copy shared blocks for nothing
        }
        let Some((separator, block)) = self.index.get_prev_mut(key) else { return false };
        let separator = separator.clone();
        let block = Arc::make_mut(block);
        if let Ok(i) = block.find(key) {
            block.remove(i);
            block.changed = at;
            self.len -= 1;
        }
        if block.data.len() < BLOCK_SMALL {
            self.merge_small(&separator);
        }
        true
    }
    fn len(&self) -> u64 {
        self.len
    }
    fn scan(&self, from: Vec<u8>) -> impl Iterator<Item = (&[u8], &[u8])> {
        let blocks = match self.index.get_prev(&from[..]) {
            Some((first, _)) => self.index.range::<_, [u8]>((Bound::Included(&first[..]), Bound::Unbounded)),
            None => self.index.range::<_, [u8]>((Bound::Unbounded, Bound::Unbounded)), // no block at all
        };
        blocks.flat_map(move |(_, block)| {
            let start = block.find(&from).unwrap_or_else(|i| i);
            (start..block.offsets.len()).map(move |i| block.entry(i))
        })
    }
    fn floor(&self, key: &[u8]) -> Option<(&[u8], &[u8])> {
        // Removals may leave the first block empty or a block without keys at or below `key`: look further left then.
        for (_, block) in self.index.range::<_, [u8]>((Bound::Unbounded, Bound::Included(key))).rev() {
            let end = block.find(key).map_or_else(|i| i, |i| i + 1);
            if end > 0 {
                return Some(block.entry(end - 1));
            }
        }
        None
    }
    fn blocks(&self) -> impl Iterator<Item = (u64, Vec<(&[u8], &[u8])>)> {
        self.index
            .values()
            .filter(|b| !b.offsets.is_empty())
            .map(|b| (b.changed, (0..b.offsets.len()).map(|i| b.entry(i)).collect()))
    }
}

/// 128-bit hash of one record, summed into the running digest.
pub(crate) fn record_hash(tree: u8, key: &[u8], value: &[u8]) -> u128 {
    let mut h = SipHasher13::new_with_keys(u64::from(tree), 0x6675_7365_6673);
    h.write_u32(key.len() as u32);
    h.write(key);
    h.write(value);
    h.finish128().as_u128()
}

/// A tree of one kind of record, with its part of the running digest (PROTOCOL 8).
pub struct Table<R> {
    tree: PackedTree,
    digest: u128,
    at: u64,
    kind: PhantomData<fn() -> R>,
}

impl<R> Clone for Table<R> {
    fn clone(&self) -> Self {
        Table { tree: self.tree.clone(), digest: self.digest, at: self.at, kind: PhantomData }
    }
}

impl<R> Default for Table<R> {
    fn default() -> Self {
        Table { tree: PackedTree::default(), digest: 0, at: 0, kind: PhantomData }
    }
}

impl<R: Record> Table<R> {
    fn key(key: &R::Key) -> Vec<u8> {
        let mut out = Vec::with_capacity(48);
        R::encode_key(key, &mut out);
        out
    }
    /// The record of a key. Records are decoded once when a snapshot is read, so a failure here cannot come from disk.
    pub fn get(&self, key: &R::Key) -> Option<R> {
        R::decode(self.tree.get(&Self::key(key))?).ok()
    }
    /// Whether there is a record.
    pub fn contains(&self, key: &R::Key) -> bool {
        self.tree.get(&Self::key(key)).is_some()
    }
    /// Inserts or replaces; true when new.
    pub fn put(&mut self, key: &R::Key, record: &R) -> bool {
        let key = Self::key(key);
        let mut value = Vec::with_capacity(96);
        record.encode(&mut value);
        self.put_raw(&key, &value, self.at)
    }
    /// Removes; true when it was there.
    pub fn remove(&mut self, key: &R::Key) -> bool {
        let key = Self::key(key);
        if let Some(old) = self.tree.get(&key) {
            self.digest = self.digest.wrapping_sub(record_hash(R::TREE, &key, old));
        }
        self.tree.remove(&key, self.at)
    }
    /// Number of records.
    pub fn len(&self) -> u64 {
        self.tree.len()
    }
    /// No records.
    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }
    /// All records at or above `from`, ascending.
    pub fn range<'a>(&'a self, from: &R::Key) -> impl Iterator<Item = (R::Key, R)> + use<'a, R> {
        self.tree.scan(Self::key(from)).filter_map(Self::both)
    }
    /// Last record at or below `key`.
    pub fn floor(&self, key: &R::Key) -> Option<(R::Key, R)> {
        Self::both(self.tree.floor(&Self::key(key))?)
    }
    /// All records, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (R::Key, R)> {
        self.tree.scan(Vec::new()).filter_map(Self::both)
    }
    /// Records whose encoded key starts with `prefix`.
    pub fn prefix(&self, prefix: Vec<u8>) -> impl Iterator<Item = (R::Key, R)> {
        self.tree.scan(prefix.clone()).take_while(move |(k, _)| k.starts_with(&prefix)).filter_map(Self::both)
    }
    fn both((k, v): (&[u8], &[u8])) -> Option<(R::Key, R)> {
        Some((R::decode_key(k).ok()?, R::decode(v).ok()?))
    }
    /// Log index that the following changes are noted under.
    pub(crate) fn at(&mut self, index: u64) {
        self.at = index;
    }
    /// Sum of the records' hashes.
    pub(crate) fn digest(&self) -> u128 {
        self.digest
    }
    /// Blocks for a snapshot.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (u64, Vec<(&[u8], &[u8])>)> {
        self.tree.blocks()
    }
    /// A record of a snapshot: checked by decoding, and in its newest version by re-encoding (one logical record has one
    /// encoding). Older versions stay as they are until they are written again.
    pub(crate) fn load(&mut self, key: &[u8], value: &[u8], at: u64) -> FsResult<()> {
        let (k, v) = (R::decode_key(key)?, R::decode(value)?);
        let (mut k2, mut v2) = (Vec::with_capacity(key.len()), Vec::with_capacity(value.len()));
        R::encode_key(&k, &mut k2);
        v.encode(&mut v2);
        let odd = v2 != value && v2.first() == value.first();
        if k2 != key || odd || !self.put_raw(key, value, at) {
            return Err(FsError::Corrupt);
        }
        Ok(())
    }
    fn put_raw(&mut self, key: &[u8], value: &[u8], at: u64) -> bool {
        if let Some(old) = self.tree.get(key) {
            self.digest = self.digest.wrapping_sub(record_hash(R::TREE, key, old));
        }
        self.digest = self.digest.wrapping_add(record_hash(R::TREE, key, value));
        self.tree.put(key, value, at)
    }
}
