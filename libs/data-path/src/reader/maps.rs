//! Cached extent maps. What is cached of one file is of one version (`change`).

use crate::sink::ExtentMap;
use bytes::Bytes;
use fusefs_types::{Attr, Extent, Ino};
use lru::LruCache;
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};

/// Charge of one extent.
const EXTENT_COST: u64 = 96;
/// Charge of one file.
const FILE_COST: u64 = 512;
/// First window asked for (its inline bytes fit into one answer), and alignment of windows.
pub(super) const WINDOW_FIRST: u64 = 4 << 20;
/// Window of files without inline bytes.
const WINDOW_PLAIN: u64 = 64 << 20;

/// An extent and its bytes when they came inline.
pub(super) type Part = (Extent, Option<Bytes>);

struct Window {
    end: u64,
    parts: Arc<Vec<Part>>,
}

struct Entry {
    attr: Attr,
    windows: BTreeMap<u64, Window>,
    cost: u64,
    inline: bool,
}

/// Parts of a range.
pub(super) struct View {
    pub size: u64,
    pub parts: Vec<Part>,
    /// Complete up to here.
    pub end: u64,
}

struct Maps {
    files: LruCache<Ino, Entry>,
    cost: u64,
    /// Fetches under way: (how many, their answers are stale already).
    pending: BTreeMap<Ino, (u32, bool)>,
}

pub(super) struct MapCache {
    maps: Mutex<Maps>,
    budget: u64,
}

impl MapCache {
    pub fn new(budget: u64) -> MapCache {
        let maps = Maps { files: LruCache::unbounded(), cost: 0, pending: BTreeMap::new() };
        MapCache { maps: Mutex::new(maps), budget }
    }

    /// Cached parts from `offset` on, as far as they go.
    pub fn view(&self, ino: Ino, offset: u64, len: u64) -> Option<View> {
        let mut maps = self.maps.lock();
        let e = maps.files.get(&ino)?;
        let size = e.attr.size;
        if offset >= size {
            return Some(View { size, parts: Vec::new(), end: u64::MAX });
        }
        let (_, w) = e.windows.range(..=offset).next_back().filter(|(_, w)| w.end > offset)?;
        let to = offset.saturating_add(len).min(w.end);
        let first = w.parts.partition_point(|(x, _)| x.end() <= offset);
        let parts = w.parts[first..].iter().take_while(|(x, _)| x.offset < to);
        let parts = parts.filter_map(|(x, b)| {
            let cut = x.slice(offset, to)?;
            let at = (cut.offset - x.offset) as usize;
            // Inline bytes that are shorter than their extent are the server's fault; the reader reports them.
            let bytes = b.as_ref().map(|b| b.slice(at.min(b.len())..(at + cut.len as usize).min(b.len())));
            Some((cut, bytes))
        });
        Some(View { size, parts: parts.collect(), end: w.end })
    }

    /// Announces a fetch; tells how much to ask for.
    pub fn begin(&self, ino: Ino) -> u64 {
        let mut maps = self.maps.lock();
        maps.pending.entry(ino).or_default().0 += 1;
        match maps.files.peek(&ino) {
            Some(e) if !e.inline => WINDOW_PLAIN,
            _ => WINDOW_FIRST,
        }
    }

    /// Ends a fetch. Its answer is kept unless the file changed meanwhile.
    pub fn end(&self, ino: Ino, offset: u64, answer: Option<&ExtentMap>) {
        let mut maps = self.maps.lock();
        let stale = match maps.pending.get_mut(&ino) {
            Some((n, stale)) => {
                *n -= 1;
                let (gone, stale) = (*n == 0, *stale);
                if gone {
                    maps.pending.remove(&ino);
                }
                stale
            }
            None => true,
        };
        if let Some(a) = answer.filter(|_| !stale) {
            maps.insert(ino, offset, a);
            maps.shrink(self.budget);
        }
    }

    /// Forgets a file; fetches under way are not kept either.
    pub fn drop_file(&self, ino: Ino) {
        let mut maps = self.maps.lock();
        maps.remove(ino);
        if let Some(p) = maps.pending.get_mut(&ino) {
            p.1 = true;
        }
    }

    /// Forgets a file if these attributes are newer.
    pub fn observe(&self, attr: &Attr) {
        let mut maps = self.maps.lock();
        if maps.files.peek(&attr.ino).is_some_and(|e| attr.change > e.attr.change) {
            maps.remove(attr.ino);
        }
        if let Some(p) = maps.pending.get_mut(&attr.ino) {
            p.1 = true; // cannot tell which version is on its way
        }
    }
}

impl Maps {
    fn remove(&mut self, ino: Ino) {
        if let Some(e) = self.files.pop(&ino) {
            self.cost -= e.cost;
        }
    }

    fn insert(&mut self, ino: Ino, offset: u64, a: &ExtentMap) {
        if self.files.peek(&ino).is_some_and(|e| e.attr.change != a.attr.change) {
            self.remove(ino);
        }
        let mut parts: Vec<Part> = a.extents.iter().map(|x| (*x, None)).collect();
        let mut cost = parts.len() as u64 * EXTENT_COST;
        for (i, b) in &a.inline {
            if let Some(p) = parts.get_mut(*i as usize) {
                p.1 = Some(b.clone());
                cost += b.len() as u64;
            }
        }
        let end = if a.end >= a.attr.size { u64::MAX } else { a.end };
        let fresh = Entry { attr: a.attr, windows: BTreeMap::new(), cost: FILE_COST, inline: false };
        if !self.files.contains(&ino) {
            self.cost += FILE_COST;
            self.files.put(ino, fresh);
        }
        let Some(e) = self.files.get_mut(&ino) else { return };
        e.inline |= !a.inline.is_empty();
        e.cost += cost;
        self.cost += cost;
        if let Some(old) = e.windows.insert(offset, Window { end, parts: Arc::new(parts) }) {
            let back = window_cost(&old);
            e.cost -= back;
            self.cost -= back;
        }
    }

    fn shrink(&mut self, budget: u64) {
        while self.cost > budget {
            let Some((_, e)) = self.files.pop_lru() else { break };
            self.cost -= e.cost;
        }
    }
}

fn window_cost(w: &Window) -> u64 {
    w.parts.iter().map(|(_, b)| EXTENT_COST + b.as_ref().map_or(0, |b| b.len() as u64)).sum()
}
