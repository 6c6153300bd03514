//! Who waits for application locks: memory of one replica, filled while it leads. Never in the log: whoever is forgotten
//! (change of leader, lost event) asks again by itself after at most a second, and is remembered again.

use fusefs_types::{Ino, SessionId, limits};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::Notify;

#[derive(Default)]
struct State {
    waiting: BTreeMap<Ino, BTreeSet<SessionId>>,
    /// Entries of `waiting`.
    count: usize,
    /// Whom to tell about which inodes.
    due: BTreeMap<SessionId, BTreeSet<Ino>>,
}

/// Sessions that wait for locks of one partition.
#[derive(Default)]
pub(crate) struct LockWaiters {
    state: Mutex<State>,
    /// Somebody is to be told.
    pub(crate) wake: Notify,
}

impl LockWaiters {
    /// A session is about to look whether a lock is free. Must happen before the look: an unlock that is applied between
    /// the two is then told.
    pub(crate) fn add(&self, ino: Ino, session: SessionId) {
        let mut s = self.state.lock();
        if s.count >= limits::LOCK_WAITERS_MAX {
            // They ask by themselves, only later.
            s.waiting.clear();
            s.count = 0;
        }
        let new = s.waiting.entry(ino).or_default().insert(session);
        s.count += usize::from(new);
    }
    /// Locks on these inodes went: whoever waits is to be told, once.
    pub(crate) fn unlocked(&self, inos: &[Ino]) {
        let mut s = self.state.lock();
        let mut any = false;
        for ino in inos {
            for session in s.waiting.remove(ino).unwrap_or_default() {
                s.count -= 1;
                s.due.entry(session).or_default().insert(*ino);
                any = true;
            }
        }
        drop(s);
        if any {
            self.wake.notify_one();
        }
    }
    /// What is to be told; the caller sends it.
    pub(crate) fn take(&self) -> BTreeMap<SessionId, BTreeSet<Ino>> {
        std::mem::take(&mut self.state.lock().due)
    }
    /// Sessions x inodes that wait.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_who_waits_is_told_once() {
        let w = LockWaiters::default();
        let (a, b) = (SessionId(1), SessionId(2));
        for (ino, session) in [(5, a), (5, b), (5, a), (6, a)] {
            w.add(Ino(ino), session);
        }
        assert_eq!(w.len(), 3);
        w.unlocked(&[Ino(5), Ino(7)]);
        let told = w.take();
        assert_eq!(told.keys().copied().collect::<Vec<_>>(), [a, b]);
        assert!(told.values().all(|inos| *inos == BTreeSet::from([Ino(5)])));
        assert_eq!(w.len(), 1);
        w.unlocked(&[Ino(5)]);
        assert!(w.take().is_empty());
    }

    #[test]
    fn the_table_is_bounded() {
        let w = LockWaiters::default();
        for n in 0..=limits::LOCK_WAITERS_MAX as u64 {
            w.add(Ino(n), SessionId(1));
        }
        assert_eq!(w.len(), 1);
    }
}
