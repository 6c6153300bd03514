//! flock(2) and fcntl(2) locks (`docs/design/0007-file-locks.md`).
//!
//! - Owner = (session, family, number of the client's kernel). Owners of different families never conflict; of the same
//!   family two locks conflict when they overlap, belong to different owners and one is exclusive.
//! - A lock that is in the way is an outcome ([`WriteReply::LockBlocked`]), not an error: it is stored, so that a late copy
//!   of a refused attempt is never granted.
//! - POSIX: setting a range replaces what the owner has in it, atomically: splits, merges, upgrades, downgrades.
//! - flock: the whole file. A waiting conversion that is not free gives the old lock up first, as Linux does: two holders
//!   that both convert would else wait for each other for ever. A conversion that does not wait keeps the old lock.
//! - Inodes without a name can be locked; locks go with the inode and with the session. Nothing changes the inode.
//! - Errors: NotFound; Invalid: `start > end`, an end above LOCK_END, a flock of a part; NoLocks: the inode's table is full.

use crate::{
    Cx, Partition,
    codec::Put,
    record::{FileLock, FileLockKey},
};
use fusefs_types::{
    FsError, FsResult, Ino, SessionId, limits,
    lock::{HeldLock, LOCK_END, LockOp, LockOwner, LockSpace, SetLock},
    ops::WriteReply,
};

/// First and last byte.
type Span = (u64, u64);

fn check(owner: LockOwner, start: u64, end: u64) -> FsResult<()> {
    let whole = owner.space == LockSpace::Posix || (start, end) == (0, LOCK_END);
    if start <= end && end <= LOCK_END && whole { Ok(()) } else { Err(FsError::Invalid) }
}

impl Partition {
    /// Locks of one family on an inode, by owner and offset.
    fn locks_on(&self, ino: Ino, space: LockSpace) -> impl Iterator<Item = (FileLockKey, FileLock)> {
        let mut prefix = Vec::with_capacity(9);
        prefix.key64(ino.0).u8(space as u8);
        self.t.flocks.prefix(prefix)
    }
    /// Locks of one owner on an inode, by offset.
    fn locks_of(
        &self,
        ino: Ino,
        session: SessionId,
        owner: LockOwner,
    ) -> impl Iterator<Item = (FileLockKey, FileLock)> {
        let mut prefix = Vec::with_capacity(33);
        prefix.key64(ino.0).u8(owner.space as u8).key128(session.0).key64(owner.id);
        self.t.flocks.prefix(prefix)
    }
    /// What the owner would have to wait for.
    fn in_the_way(&self, ino: Ino, session: SessionId, owner: LockOwner, span: Span, write: bool) -> Option<HeldLock> {
        self.locks_on(ino, owner.space)
            .find(|(k, l)| {
                let other = (k.session, k.owner) != (session, owner.id);
                other && (write || l.write) && k.start <= span.1 && l.end >= span.0
            })
            .map(|(k, l)| k.held(&l))
    }
    /// All locks of a session go.
    pub(crate) fn drop_session_locks(&mut self, cx: &mut Cx, session: SessionId) {
        let keys: Vec<FileLockKey> = self.t.flocks.iter().map(|(k, _)| k).filter(|k| k.session == session).collect();
        self.drop_locks(cx, keys);
    }
    /// All locks on an inode go.
    pub(crate) fn drop_inode_locks(&mut self, cx: &mut Cx, ino: Ino) {
        let mut prefix = Vec::with_capacity(8);
        prefix.key64(ino.0);
        let keys: Vec<FileLockKey> = self.t.flocks.prefix(prefix).map(|(k, _)| k).collect();
        self.drop_locks(cx, keys);
    }
    fn drop_locks(&mut self, cx: &mut Cx, keys: Vec<FileLockKey>) {
        for key in keys {
            self.t.flocks.remove(&key);
            cx.unlocked.insert(key.ino);
        }
    }
    /// Number of application locks held.
    pub fn file_locks(&self) -> u64 {
        self.t.flocks.len()
    }
}

pub(super) fn set(p: &mut Partition, cx: &mut Cx, x: &SetLock) -> FsResult<WriteReply> {
    check(x.owner, x.start, x.end)?;
    let inode = p.inode(x.ino)?;
    let session = cx.caller.as_ref().ok_or(FsError::Invalid)?.session;
    let write = match x.op {
        LockOp::Unlock => None,
        LockOp::Read => Some(false),
        LockOp::Write => Some(true),
    };
    if let Some(write) = write
        && let Some(holder) = p.in_the_way(x.ino, session, x.owner, (x.start, x.end), write)
    {
        if x.wait && x.owner.space == LockSpace::Flock {
            let old = p.locks_of(x.ino, session, x.owner).map(|(k, _)| k).collect();
            p.drop_locks(cx, old);
        }
        return Ok(WriteReply::LockBlocked(holder));
    }
    replace(p, cx, session, x, write)?;
    Ok(WriteReply::Locked(inode.attr(x.ino)))
}

/// The locks `before` with the range set to `write` (None: to nothing), in offset order, neighbours joined.
fn with_range(before: &[(FileLockKey, FileLock)], x: &SetLock, write: Option<bool>) -> Vec<(u64, FileLock)> {
    let mut out: Vec<(u64, FileLock)> = Vec::with_capacity(before.len() + 2);
    for (k, l) in before {
        if k.start < x.start {
            out.push((k.start, FileLock { end: l.end.min(x.start - 1), ..*l }));
        }
        if l.end > x.end {
            out.push((k.start.max(x.end + 1), *l));
        }
    }
    if let Some(write) = write {
        out.push((x.start, FileLock { end: x.end, write, pid: x.pid }));
    }
    out.sort_by_key(|(start, _)| *start);
    let mut joined: Vec<(u64, FileLock)> = Vec::with_capacity(out.len());
    for (start, lock) in out {
        match joined.last_mut() {
            // The joined lock shows the process that locked last.
            Some((_, last)) if last.write == lock.write && last.end + 1 == start => {
                let pid = if start == x.start { lock.pid } else { last.pid };
                *last = FileLock { end: lock.end, pid, ..*last };
            }
            _ => joined.push((start, lock)),
        }
    }
    joined
}

/// Gives the owner its new set of locks; notes the inode when somebody may have been waiting for what it lost.
fn replace(p: &mut Partition, cx: &mut Cx, session: SessionId, x: &SetLock, write: Option<bool>) -> FsResult<()> {
    // Those that the range meets or touches; the others stay as they are.
    let touches = |(k, l): &(FileLockKey, FileLock)| k.start <= x.end + 1 && l.end + 1 >= x.start;
    let before: Vec<_> = p.locks_of(x.ino, session, x.owner).filter(touches).collect();
    let after = with_range(&before, x, write);
    if after.len() > before.len() {
        let held = p.locks_on(x.ino, x.owner.space).count();
        if held + after.len() - before.len() > limits::LOCKS_PER_INODE_MAX {
            return Err(FsError::NoLocks);
        }
    }
    let lost = before.iter().any(|(k, l)| k.start <= x.end && l.end >= x.start && (write.is_none() || l.write));
    if lost && write != Some(true) {
        cx.unlocked.insert(x.ino);
    }
    for (key, _) in &before {
        p.t.flocks.remove(key);
    }
    for (start, lock) in after {
        let key = FileLockKey { ino: x.ino, space: x.owner.space, session, owner: x.owner.id, start };
        p.t.flocks.put(&key, &lock);
    }
    Ok(())
}

/// F_GETLK.
pub(super) fn get(
    p: &Partition,
    session: SessionId,
    ino: Ino,
    owner: LockOwner,
    span: Span,
    write: bool,
) -> FsResult<Option<HeldLock>> {
    check(owner, span.0, span.1)?;
    p.inode(ino)?;
    Ok(p.in_the_way(ino, session, owner, span, write))
}

/// All locks on an inode.
pub(super) fn list(p: &Partition, ino: Ino) -> FsResult<Vec<HeldLock>> {
    p.inode(ino)?;
    let all = [LockSpace::Posix, LockSpace::Flock].into_iter().flat_map(|space| p.locks_on(ino, space));
    Ok(all.map(|(k, l)| k.held(&l)).collect())
}

/// Contradictions: locks of nobody or on nothing, overlaps of one owner, conflicts between owners.
pub(crate) fn fsck(p: &Partition, problems: &mut Vec<String>) {
    let mut on_inode: Vec<(FileLockKey, FileLock)> = Vec::new();
    for (key, lock) in p.t.flocks.iter() {
        let say = |what: &str| format!("inode {}: lock of session {} {what}", key.ino, key.session);
        if !p.t.inodes.contains(&key.ino) {
            problems.push(say("without an inode"));
        }
        if p.t.sessions.get(&key.session).is_none_or(|s| s.ended.is_some()) {
            problems.push(say("that is not attached"));
        }
        if check(key.owner(), key.start, lock.end).is_err() {
            problems.push(say("with an impossible range"));
        }
        on_inode.retain(|(k, _)| (k.ino, k.space) == (key.ino, key.space));
        let meets = |(k, l): &&(FileLockKey, FileLock)| {
            let own = (k.session, k.owner) == (key.session, key.owner);
            (own || l.write || lock.write) && k.start <= lock.end && l.end >= key.start
        };
        if on_inode.iter().any(|x| meets(&x)) {
            problems.push(say("that overlaps another one"));
        }
        on_inode.push((key, lock));
    }
}
