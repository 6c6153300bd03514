//! Locks of applications.

use super::common::{self, need};
use crate::metanode::v1 as pb;
use fusefs_types::{
    FsError, FsResult, Ino,
    lock::{HeldLock, LOCK_END, LockOp, LockOwner, LockSpace, SetLock},
    ops::Read,
};

/// First and last byte: inside what a lock can name.
fn from_span(start: u64, end: u64) -> FsResult<(u64, u64)> {
    if start <= end && end <= LOCK_END { Ok((start, end)) } else { Err(FsError::Invalid) }
}

/// Owner to the wire.
pub fn owner(o: LockOwner) -> pb::LockOwner {
    let space = match o.space {
        LockSpace::Posix => pb::LockSpace::Posix,
        LockSpace::Flock => pb::LockSpace::Flock,
    };
    pb::LockOwner { space: space.into(), id: o.id }
}

/// Owner from the wire.
pub fn from_owner(o: Option<pb::LockOwner>) -> FsResult<LockOwner> {
    let o = need(o)?;
    let space = match pb::LockSpace::try_from(o.space) {
        Ok(pb::LockSpace::Posix) => LockSpace::Posix,
        Ok(pb::LockSpace::Flock) => LockSpace::Flock,
        Err(_) => return Err(FsError::Invalid),
    };
    Ok(LockOwner { space, id: o.id })
}

/// Request to the wire.
pub fn set_lock(x: &SetLock) -> pb::SetLock {
    let op = match x.op {
        LockOp::Read => pb::LockOp::Read,
        LockOp::Write => pb::LockOp::Write,
        LockOp::Unlock => pb::LockOp::Unlock,
    };
    pb::SetLock {
        ino: x.ino.0,
        owner: Some(owner(x.owner)),
        start: x.start,
        end: x.end,
        op: op.into(),
        pid: x.pid,
        wait: x.wait,
    }
}

/// Request from the wire.
pub fn from_set_lock(x: pb::SetLock) -> FsResult<SetLock> {
    let op = match pb::LockOp::try_from(x.op) {
        Ok(pb::LockOp::Read) => LockOp::Read,
        Ok(pb::LockOp::Write) => LockOp::Write,
        Ok(pb::LockOp::Unlock) => LockOp::Unlock,
        Err(_) => return Err(FsError::Invalid),
    };
    let (start, end) = from_span(x.start, x.end)?;
    Ok(SetLock { ino: Ino(x.ino), owner: from_owner(x.owner)?, start, end, op, pid: x.pid, wait: x.wait })
}

/// Held lock to the wire.
pub fn held(l: &HeldLock) -> pb::HeldLock {
    pb::HeldLock {
        session: common::id128(l.session.0),
        owner: Some(owner(l.owner)),
        start: l.start,
        end: l.end,
        write: l.write,
        pid: l.pid,
    }
}

/// Held lock from the wire.
pub fn from_held(l: pb::HeldLock) -> FsResult<HeldLock> {
    let (start, end) = from_span(l.start, l.end)?;
    let session = common::session(l.session);
    Ok(HeldLock { session, owner: from_owner(l.owner)?, start, end, write: l.write, pid: l.pid })
}

/// Question from the wire.
pub fn from_get_lock(g: pb::GetLock) -> FsResult<Read> {
    let (start, end) = from_span(g.start, g.end)?;
    let (ino, owner) = (Ino(g.ino), from_owner(g.owner)?);
    Ok(Read::GetLock { ino, owner, start, end, write: g.write, wait: g.wait })
}
