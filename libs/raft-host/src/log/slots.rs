//! What is kept in memory about one replica's part of the log.

use super::{
    Inner,
    format::{self, HardState, Key, Mark},
    segments::Segments,
};
use crate::{
    codec,
    disk::DiskFile,
    raft::{Entry, LogId},
};
use bytes::Bytes;
use std::{collections::VecDeque, io, sync::Arc};

/// One entry.
pub(crate) struct Slot {
    pub term: u64,
    /// Sequence number of the record that holds it now.
    pub lsn: u64,
    /// Where that record is, once written.
    pub at: Option<(Mark, u32)>,
    pub cached: Option<Entry>,
    /// About how many bytes it takes.
    pub size: usize,
}

/// One replica.
#[derive(Default)]
pub(crate) struct GroupLog {
    pub state: HardState,
    /// Where the last state record is: segment and length.
    pub state_at: Option<(u64, u32)>,
    pub state_lsn: u64,
    pub slots: VecDeque<Slot>,
    /// Index of `slots[0]`.
    pub first: u64,
    pub applied: u64,
    pub appended_bytes: u64,
    /// (sequence number, first index) of appends that may not be durable yet.
    pub unflushed: VecDeque<(u64, u64)>,
}

/// An entry in memory or on disk.
pub(crate) enum Fetch {
    Memory(Entry),
    File(Arc<dyn DiskFile>, u64, u32),
    Lost(u64),
}

impl Fetch {
    pub(crate) fn load(self, seed: u32, key: Key) -> io::Result<Entry> {
        match self {
            Fetch::Memory(entry) => Ok(entry),
            Fetch::File(file, offset, len) => {
                let mut buf = vec![0; len as usize];
                file.read_at(offset, &mut buf)?;
                format::get_entry_record(seed, key, Bytes::from(buf))
                    .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a log record is damaged"))
            }
            Fetch::Lost(index) => Err(io::Error::other(format!("entry {index} has no place"))),
        }
    }
}

impl GroupLog {
    /// Index that an append must have; `None` = any (empty log).
    pub(crate) fn next_index(&self) -> Option<u64> {
        if self.slots.is_empty() { None } else { Some(self.first + self.slots.len() as u64) }
    }

    pub(crate) fn last(&self) -> Option<LogId> {
        let slot = self.slots.back()?;
        Some(codec::log_id(slot.term, self.first + self.slots.len() as u64 - 1))
    }

    pub(crate) fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        let i = usize::try_from(index.checked_sub(self.first)?).ok()?;
        self.slots.get_mut(i)
    }

    pub(crate) fn push(&mut self, entry: Entry, lsn: u64, size: usize) {
        if self.slots.is_empty() {
            self.first = entry.log_id.index;
        }
        self.appended_bytes += size as u64;
        let term = entry.log_id.leader_id.term;
        self.slots.push_back(Slot { term, lsn, at: None, cached: Some(entry), size });
    }

    /// Takes the entries from `from` on.
    pub(crate) fn cut_from(&mut self, from: u64) -> Vec<Slot> {
        let keep = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.slots.len());
        self.slots.split_off(keep).into()
    }

    /// Takes the entries that the hard state says are gone.
    pub(crate) fn cut_purged(&mut self) -> Vec<Slot> {
        let n = if self.state.tombstone {
            self.slots.len()
        } else {
            let next = self.state.purged.map_or(0, |p| p.index + 1);
            usize::try_from(next.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.slots.len())
        };
        self.first += n as u64;
        self.slots.drain(..n).collect()
    }

    pub(crate) fn collect(&self, lo: u64, hi: u64, max_bytes: usize, segments: &Segments) -> Vec<Fetch> {
        let lo = lo.max(self.first);
        let hi = hi.min(self.first + self.slots.len() as u64);
        let (mut out, mut bytes) = (Vec::new(), 0);
        for index in lo..hi {
            let slot = &self.slots[(index - self.first) as usize];
            bytes += slot.size;
            if !out.is_empty() && bytes > max_bytes {
                break;
            }
            out.push(self.fetch(index, slot, segments));
        }
        out
    }

    fn fetch(&self, index: u64, slot: &Slot, segments: &Segments) -> Fetch {
        if let Some(entry) = &slot.cached {
            return Fetch::Memory(entry.clone());
        }
        match slot.at.and_then(|(mark, len)| Some((segments.file(mark.segment)?, mark.offset, len))) {
            Some((file, offset, len)) => Fetch::File(file, offset, len),
            None => Fetch::Lost(index),
        }
    }

    pub(crate) fn purge_point(&self, upto: u64, keep: u64) -> Option<u64> {
        let mut kept = 0;
        let end = upto.min((self.first + self.slots.len() as u64).checked_sub(1)?);
        for index in (self.first..=end).rev() {
            if kept >= keep {
                return Some(index);
            }
            kept += self.slots[(index - self.first) as usize].size as u64;
        }
        None
    }
}

impl Inner {
    /// Removes slots that `cut` takes, with their accounting. Call after the record that removes them was queued.
    pub(crate) fn drop_slots(&mut self, key: Key, cut: impl FnOnce(&mut GroupLog) -> Vec<Slot>) {
        // The record that says so was queued just before.
        let lsn = self.next_lsn - 1;
        let Some(group) = self.groups.get_mut(&key) else { return };
        for slot in cut(group) {
            if slot.cached.is_some() {
                self.cached_bytes = self.cached_bytes.saturating_sub(slot.size);
            }
            if let Some((mark, len)) = slot.at {
                self.segments.dead(mark.segment, len, lsn);
            }
        }
    }

    /// Forgets cached entries, oldest first, that are durable and applied.
    pub(crate) fn evict(&mut self) {
        for _ in 0..4 {
            let Some((key, index)) = self.cache_order.front().copied() else { break };
            let cached = self.groups.get_mut(&key).and_then(|g| g.slot_mut(index)).is_some_and(|s| s.cached.is_some());
            if cached {
                break;
            }
            self.cache_order.pop_front();
        }
        let mut tries = 64;
        while self.cached_bytes > super::CACHE_BYTES_MAX && tries > 0 {
            tries -= 1;
            let Some((key, index)) = self.cache_order.pop_front() else { return };
            let Some(group) = self.groups.get_mut(&key) else { continue };
            let applied = group.applied;
            let Some(slot) = group.slot_mut(index) else { continue };
            if slot.cached.is_none() {
                continue;
            }
            if slot.at.is_some() && index <= applied {
                slot.cached = None;
                self.cached_bytes = self.cached_bytes.saturating_sub(slot.size);
            } else {
                self.cache_order.push_back((key, index));
            }
        }
    }
}
