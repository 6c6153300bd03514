//! Which sessions have which inodes open: memory of one leader's reign (PROTOCOL 22). Never in the log, lost with the
//! reign; what it does not know for sure is asked of the sessions.

use fusefs_types::{Ino, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// Open table of one partition's leader.
#[derive(Default)]
pub struct Holders {
    /// Term the table belongs to; another term starts an empty one.
    term: u64,
    open: BTreeMap<SessionId, BTreeSet<Ino>>,
    /// Sessions that attached in this reign: every open of theirs is in the table.
    complete: BTreeSet<SessionId>,
    /// Creates of files under way: a file is born open, under a number that only the reply tells.
    creating: BTreeMap<SessionId, usize>,
}

impl Holders {
    /// Enters a term; a new one forgets everything.
    pub fn enter(&mut self, term: u64) {
        if self.term != term {
            *self = Holders { term, ..Holders::default() };
        }
    }
    /// A session opened an inode. Must happen before the state is read, so that an unlink decided later sees it.
    pub fn open(&mut self, session: SessionId, ino: Ino) {
        self.open.entry(session).or_default().insert(ino);
    }
    /// Last close of a session.
    pub fn close(&mut self, session: SessionId, ino: Ino) {
        if let Some(set) = self.open.get_mut(&session) {
            set.remove(&ino);
            if set.is_empty() {
                self.open.remove(&session);
            }
        }
    }
    /// The session's attach was recorded in this reign and it had nothing open here before.
    pub fn attached(&mut self, session: SessionId) {
        self.complete.insert(session);
    }
    /// A session is about to create a file; until [`Holders::created`] it may hold any inode.
    pub fn creating(&mut self, session: SessionId) {
        *self.creating.entry(session).or_default() += 1;
    }
    /// The create has an answer: the inode, which is open now, or None. An `unknown` outcome leaves the session in doubt
    /// for the rest of the reign.
    pub fn created(&mut self, session: SessionId, ino: Option<Ino>, unknown: bool) {
        if let Some(ino) = ino {
            self.open(session, ino);
        }
        if unknown {
            self.complete.remove(&session);
        }
        if let Some(n) = self.creating.get_mut(&session) {
            *n -= 1;
            if *n == 0 {
                self.creating.remove(&session);
            }
        }
    }
    /// The session ended.
    pub fn end(&mut self, session: SessionId) {
        self.open.remove(&session);
        self.complete.remove(&session);
    }
    /// True when the session surely does not hold the inode.
    pub fn surely_not(&self, session: SessionId, ino: Ino) -> bool {
        self.complete.contains(&session)
            && !self.creating.contains_key(&session)
            && !self.open.get(&session).is_some_and(|s| s.contains(&ino))
    }
    /// Open inodes in the table.
    pub fn len(&self) -> usize {
        self.open.values().map(BTreeSet::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_sessions_are_known_not_to_hold() {
        let mut h = Holders::default();
        let (a, b, x) = (SessionId(1), SessionId(2), Ino(9));
        h.enter(3);
        assert!(!h.surely_not(a, x));
        h.attached(a);
        h.attached(b);
        assert!(h.surely_not(a, x));
        h.open(a, x);
        assert!(!h.surely_not(a, x) && h.surely_not(b, x));
        h.close(a, x);
        assert!(h.surely_not(a, x));
        h.creating(a);
        assert!(!h.surely_not(a, x), "it may be the file that is being created");
        h.created(a, Some(x), false);
        assert!(!h.surely_not(a, x) && h.surely_not(a, Ino(10)), "a file is born open");
        h.creating(b);
        h.created(b, None, true);
        assert!(!h.surely_not(b, x), "nobody knows what became of it");
        h.enter(4);
        assert!(!h.surely_not(a, x), "a new reign knows nothing");
    }
}
