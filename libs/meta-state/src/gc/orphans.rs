//! Inodes without a name: who holds them, when they may go.

use crate::{
    Cx, Partition,
    record::{Orphan, Pin, PinKey, Session},
    session,
    txn::{Work, locks},
};
use fusefs_types::{FsError, FsResult, Ino, SessionId};
use std::collections::BTreeMap;

/// Orphans looked at in one piece of work.
pub const ORPHAN_BATCH: usize = 256;

/// Extents freed by one command.
pub const EXTENTS_BATCH: usize = 4096;

/// Logs what a session answered. `released` is final: it refuses later opens of that inode, so a late duplicate of an
/// older answer pins nothing. Answers of ended sessions and about other inodes are dropped.
pub(super) fn answer(p: &mut Partition, id: SessionId, held: &[Ino], released: &[Ino]) -> FsResult<()> {
    match session::live(p, id) {
        Err(FsError::Stale | FsError::NotAttached) => return Ok(()),
        other => other?,
    };
    for (inos, held) in [(held, true), (released, false)] {
        for ino in inos {
            let key = PinKey { ino: *ino, session: id };
            let final_answer = p.t.pins.get(&key).is_some_and(|pin| !pin.held);
            if !final_answer && p.t.orphans.contains(ino) {
                p.t.pins.put(&key, &Pin { held });
            }
        }
    }
    Ok(())
}

/// Sessions that were attached when the inode lost its last name and have not ended: only they can hold it. One that never
/// had a name is known to its maker only.
fn witnesses(sessions: &[(SessionId, Session)], orphan: &Orphan) -> impl Iterator<Item = SessionId> {
    let (since, maker) = (orphan.since, orphan.maker);
    let could = move |id: &SessionId, s: &Session| s.since < since && maker.is_none_or(|maker| maker == *id);
    sessions.iter().filter(move |(id, s)| s.ended.is_none() && could(id, s)).map(|(id, _)| *id)
}

fn all_sessions(p: &Partition) -> Vec<(SessionId, Session)> {
    p.t.sessions.iter().collect()
}

/// Whether every witness has answered and nobody holds it.
pub(super) fn is_free(p: &Partition, ino: Ino) -> bool {
    let Some(orphan) = p.t.orphans.get(&ino) else { return false };
    if locks::link_free(p, ino).is_err() {
        return false; // a transaction is giving it its first name
    }
    let released = |id| p.t.pins.get(&PinKey { ino, session: id }).is_some_and(|pin: Pin| !pin.held);
    witnesses(&all_sessions(p), &orphan).all(released)
}

/// Frees it, with its extents, attributes and pins. A file with many extents loses only the first EXTENTS_BATCH of them and
/// stays an orphan, so that no command takes long. Returns the extents freed.
pub(super) fn free(p: &mut Partition, cx: &mut Cx, ino: Ino) -> usize {
    let mut extents = p.extents_in(ino, 0, u64::MAX);
    let (count, next) = (extents.by_ref().take(EXTENTS_BATCH).count(), extents.next());
    drop(extents);
    if let (Some(next), Ok(mut inode)) = (next, p.inode(ino)) {
        let removed = p.cut_extents(cx, ino, 0, next.offset);
        inode.allocated = inode.allocated.saturating_sub(removed);
        p.put_inode(ino, &inode);
        return count;
    }
    p.destroy_inode(cx, ino);
    p.drop_orphan(ino);
    count
}

/// Questions and frees for the first orphans that need one. Held ones are passed over.
pub(super) fn work(p: &Partition) -> Vec<Work> {
    if p.t.orphans.is_empty() {
        return Vec::new();
    }
    let sessions = all_sessions(p);
    let mut asks: BTreeMap<SessionId, Vec<Ino>> = Default::default();
    let mut free = Vec::new();
    let mut taken = 0;
    for (ino, orphan) in p.t.orphans.iter() {
        let (mut held, mut asked) = (false, false);
        for session in witnesses(&sessions, &orphan) {
            match p.t.pins.get(&PinKey { ino, session }) {
                None => {
                    asked = true;
                    asks.entry(session).or_default().push(ino);
                }
                Some(pin) => held |= pin.held,
            }
        }
        held |= !asked && locks::link_free(p, ino).is_err();
        if !held && !asked {
            free.push(ino);
        }
        taken += usize::from(asked || !held);
        if taken >= ORPHAN_BATCH {
            break;
        }
    }
    let mut out: Vec<Work> = asks.into_iter().map(|(session, inos)| Work::AskHolders { session, inos }).collect();
    if !free.is_empty() {
        out.push(Work::FreeOrphans(free));
    }
    out
}

impl Partition {
    /// The inode has a name again, or is gone: nobody is asked about it any more.
    pub(crate) fn drop_orphan(&mut self, ino: Ino) {
        self.t.orphans.remove(&ino);
        let from = PinKey { ino, session: SessionId(0) };
        let pins: Vec<PinKey> = self.t.pins.range(&from).map(|(k, _)| k).take_while(|k| k.ino == ino).collect();
        for key in pins {
            self.t.pins.remove(&key);
        }
    }
    /// Whether link may give the inode its first name: it never had one, and its maker has not closed it.
    pub fn may_be_named(&self, ino: Ino) -> bool {
        let maker = self.t.orphans.get(&ino).and_then(|orphan| orphan.maker);
        maker.is_some_and(|session| self.is_held_by(session, ino))
    }
    /// Whether a session may open the inode: it must be attached (only then it is asked about orphans), and an orphan
    /// opens only for a session that may hold it already. Errors: NotAttached, Stale, NotFound.
    pub fn may_open(&self, id: SessionId, ino: Ino) -> FsResult<()> {
        let session = session::live(self, id)?;
        let Some(orphan) = self.t.orphans.get(&ino) else { return Ok(()) };
        let released = self.t.pins.get(&PinKey { ino, session: id }).is_some_and(|pin| !pin.held);
        if released || session.since >= orphan.since { Err(FsError::NotFound) } else { Ok(()) }
    }
    /// Orphans that sessions have said to hold. Another process of the same mount may know better.
    pub fn claims(&self) -> BTreeMap<SessionId, Vec<Ino>> {
        let mut claims: BTreeMap<SessionId, Vec<Ino>> = BTreeMap::new();
        for (key, _) in self.t.pins.iter().filter(|(_, pin)| pin.held) {
            claims.entry(key.session).or_default().push(key.ino);
        }
        claims
    }
    /// Whether the session has said to hold this orphan.
    pub fn is_held_by(&self, id: SessionId, ino: Ino) -> bool {
        self.t.pins.get(&PinKey { ino, session: id }).is_some_and(|pin| pin.held)
    }
    /// Whether the session's last close of the inode must be logged as `Pin { released }`: it is an orphan that the session
    /// may hold. Closes of inodes with a name log nothing (a late duplicate could release a later open).
    pub fn must_log_close(&self, id: SessionId, ino: Ino) -> bool {
        self.t.orphans.contains(&ino) && self.may_open(id, ino).is_ok()
    }
}
