//! Is there an order of the operations, compatible with real time, in which the reference gives the same answers?
//! Depth-first search with memory (Wing and Gong, 1993).

use super::model::Model;
use fusefs_types::{
    FsResult, Ino, Name,
    ops::{Write, WriteReply},
};
use std::{
    collections::{BTreeMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

/// States looked at before the search gives up.
const STATES_MAX: usize = 50_000;

/// What was done and answered.
#[derive(Clone, Debug)]
pub enum What {
    /// A mutation.
    Write(Write, FsResult<WriteReply>),
    /// A name, and the inode behind it.
    Lookup(Ino, Name, Option<u64>),
    /// Link count; 0 = gone.
    Nlink(Ino, u32),
    /// All names of a directory; None = gone.
    List(Ino, Option<BTreeMap<Vec<u8>, u64>>),
}

/// One operation between two instants.
#[derive(Clone, Debug)]
pub struct Event {
    /// Who asked.
    pub client: usize,
    /// Begun.
    pub from: u64,
    /// Answered.
    pub to: u64,
    /// What.
    pub what: What,
}

/// What the search found.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none; the longest prefix that has one ends before this event.
    Impossible(usize),
    /// The search was given up.
    Unknown,
}

fn fits(model: &mut Model, what: &What) -> bool {
    match what {
        What::Write(write, seen) => model.step(write, seen),
        What::Lookup(parent, name, seen) => model.lookup(*parent, name) == *seen,
        What::Nlink(ino, seen) => model.nlink(*ino) == *seen,
        What::List(ino, seen) => match (model.0.get(&ino.0), seen) {
            (Some(node), Some(seen)) => node.entries == *seen,
            // A removed directory is empty as long as somebody may have it open, then gone.
            (None, seen) => seen.as_ref().is_none_or(BTreeMap::is_empty),
            (Some(_), None) => false,
        },
    }
}

struct Search<'a> {
    events: &'a [Event],
    seen: HashSet<u64>,
    done: Vec<bool>,
    deepest: usize,
}

/// Judges a history, sorted by `from`.
pub fn linearizable(events: &[Event]) -> Verdict {
    let mut search = Search { events, seen: HashSet::new(), done: vec![false; events.len()], deepest: 0 };
    match search.go(0, &Model::new()) {
        Some(true) => Verdict::Linearizable,
        Some(false) => Verdict::Impossible(search.deepest),
        None => Verdict::Unknown,
    }
}

impl Search<'_> {
    /// `first` = lowest event not yet placed. None: given up.
    fn go(&mut self, first: usize, model: &Model) -> Option<bool> {
        let first = (first..self.events.len()).find(|i| !self.done[*i]).unwrap_or(self.events.len());
        self.deepest = self.deepest.max(first);
        if first == self.events.len() {
            return Some(true);
        }
        let mut hash = DefaultHasher::new();
        model.hash(&mut hash);
        first.hash(&mut hash);
        let mut horizon = u64::MAX;
        let mut open = Vec::new();
        for i in first..self.events.len() {
            let event = &self.events[i];
            if event.from > horizon {
                break;
            }
            if self.done[i] {
                i.hash(&mut hash);
            } else {
                horizon = horizon.min(event.to);
                open.push(i);
            }
        }
        // Everything done beyond the horizon began before it, too: nothing is left out.
        if !self.seen.insert(hash.finish()) {
            return Some(false);
        }
        if self.seen.len() > STATES_MAX {
            return None;
        }
        open.retain(|i| self.events[*i].from <= horizon);
        open.sort_by_key(|i| self.events[*i].to);
        for i in open {
            let mut next = model.clone();
            if !fits(&mut next, &self.events[i].what) {
                continue;
            }
            self.done[i] = true;
            let found = self.go(first, &next);
            self.done[i] = false;
            if found != Some(false) {
                return found;
            }
        }
        Some(false)
    }
}
