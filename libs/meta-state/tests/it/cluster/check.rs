//! Is there an order of the operations, compatible with real time, in which the reference gives the same answers and ends
//! in the same tree? Depth-first search with memory (Wing and Gong, 1993).

use super::model::Model;
use fusefs_types::{
    FsResult, Ino, Name,
    ops::{Write, WriteReply},
};
use std::collections::BTreeSet;

/// What was done and answered.
#[derive(Clone, Debug)]
pub enum What {
    Write(Write, FsResult<WriteReply>),
    Lookup(Ino, Name, Option<u64>),
    /// Link count of a file; 0 = gone.
    Nlink(Ino, u32),
}

/// One operation between two instants.
#[derive(Clone, Debug)]
pub struct Event {
    pub from: u64,
    pub to: u64,
    pub what: What,
}

fn fits(model: &mut Model, what: &What) -> bool {
    match what {
        What::Write(write, seen) => model.step(write, seen),
        What::Lookup(parent, name, seen) => model.lookup(*parent, name) == *seen,
        What::Nlink(ino, seen) => model.nlink(*ino) == *seen,
    }
}

/// True when the history is linearizable and can end in `last`.
pub fn linearizable(history: &[Event], last: &Model) -> bool {
    assert!(history.len() <= 128, "history too long for the search: {}", history.len());
    let mut seen = BTreeSet::new();
    search(history, 0, Model::new(), last, &mut seen)
}

fn search(h: &[Event], done: u128, model: Model, last: &Model, seen: &mut BTreeSet<(u128, Model)>) -> bool {
    if done.count_ones() as usize == h.len() {
        return model == *last;
    }
    if !seen.insert((done, model.clone())) {
        return false;
    }
    let open = |i: &usize| done >> i & 1 == 0;
    let horizon = (0..h.len()).filter(open).map(|i| h[i].to).min().unwrap_or(u64::MAX);
    (0..h.len()).filter(open).filter(|i| h[*i].from <= horizon).any(|i| {
        let mut next = model.clone();
        fits(&mut next, &h[i].what) && search(h, done | 1 << i, next, last, seen)
    })
}
