//! Locks that running transactions hold; local operations meet them with Conflict.

use crate::{
    Partition,
    record::{Lock, LockKey},
    txn::coordinator,
};
use fusefs_types::{FsError, FsResult, Ino, Name, txn::Part, txn::TxnId};

fn free(p: &Partition, key: LockKey) -> FsResult<()> {
    if p.t.locks.contains(&key) { Err(FsError::Conflict) } else { Ok(()) }
}

/// Conflict when a transaction holds the name.
pub fn name_free(p: &Partition, parent: Ino, name: &Name) -> FsResult<()> {
    if p.t.locks.is_empty() { Ok(()) } else { free(p, LockKey::Name(parent, name.clone())) }
}

/// Conflict when a transaction is removing the directory: entries must not be inserted.
pub fn entries_shared(p: &Partition, dir: Ino) -> FsResult<()> {
    if p.t.locks.is_empty() {
        return Ok(());
    }
    match p.t.locks.get(&LockKey::Entries(dir)) {
        Some(lock) if lock.exclusive.is_some() => Err(FsError::Conflict),
        _ => Ok(()),
    }
}

/// Conflict when a transaction inserts into or removes from the directory: it must not be removed.
pub fn entries_exclusive(p: &Partition, dir: Ino) -> FsResult<()> {
    if p.t.locks.is_empty() { Ok(()) } else { free(p, LockKey::Entries(dir)) }
}

/// Conflict when a transaction changes the link count or parent of the inode.
pub fn link_free(p: &Partition, ino: Ino) -> FsResult<()> {
    if p.t.locks.is_empty() { Ok(()) } else { free(p, LockKey::Link(ino)) }
}

/// Conflict when a directory move holds the topology.
pub fn topology_free(p: &Partition) -> FsResult<()> {
    free(p, LockKey::Topology)
}

/// Whether a linearizable read of the name must wait (answer Conflict, retry shortly): a transaction holds it and may
/// have been decided elsewhere (PROTOCOL 20).
pub fn blocked_name(p: &Partition, parent: Ino, name: &Name) -> bool {
    blocked(p, &LockKey::Name(parent, name.clone()))
}

/// The same for the attributes of an inode (link count, parent).
pub fn blocked_ino(p: &Partition, ino: Ino) -> bool {
    blocked(p, &LockKey::Link(ino))
}

fn blocked(p: &Partition, key: &LockKey) -> bool {
    if p.t.locks.is_empty() || p.faults.no_block {
        return false;
    }
    let Some(lock) = p.t.locks.get(key) else { return false };
    lock.exclusive.iter().chain(&lock.shared).any(|txn| txn.coordinator != p.id || coordinator::hidden(p, txn.seq))
}

/// How a part locks a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Shared,
    Exclusive,
}

/// What a part locks where it is executed.
fn keys(part: &Part) -> Vec<(LockKey, Mode)> {
    match part {
        Part::Topology => vec![(LockKey::Topology, Mode::Exclusive)],
        Part::Remove { parent, name, .. } | Part::Insert { parent, name, .. } => {
            vec![(LockKey::Name(*parent, name.clone()), Mode::Exclusive), (LockKey::Entries(*parent), Mode::Shared)]
        }
        Part::MakeDirectory { .. } => vec![],
        Part::AddLink { ino } | Part::DropLink { ino } | Part::Moved { ino, .. } => {
            vec![(LockKey::Link(*ino), Mode::Exclusive)]
        }
        Part::RemoveDirectory { ino } => {
            vec![(LockKey::Entries(*ino), Mode::Exclusive), (LockKey::Link(*ino), Mode::Exclusive)]
        }
    }
}

/// Conflict when somebody else holds what the part needs. A transaction never conflicts with itself.
pub(crate) fn available(p: &Partition, txn: TxnId, part: &Part) -> FsResult<()> {
    for (key, mode) in keys(part) {
        let Some(lock) = p.t.locks.get(&key) else { continue };
        let others = |held: &TxnId| *held != txn;
        if lock.exclusive.is_some_and(|h| others(&h)) || (mode == Mode::Exclusive && lock.shared.iter().any(others)) {
            return Err(FsError::Conflict);
        }
    }
    Ok(())
}

/// Takes the part's locks; [`available`] has said yes.
pub(crate) fn take(p: &mut Partition, txn: TxnId, part: &Part) {
    for (key, mode) in keys(part) {
        let mut lock = p.t.locks.get(&key).unwrap_or_default();
        match mode {
            Mode::Shared => lock.shared.push(txn),
            Mode::Exclusive => lock.exclusive = Some(txn),
        }
        p.t.locks.put(&key, &lock);
    }
}

/// Gives the part's locks back.
pub(crate) fn release(p: &mut Partition, txn: TxnId, part: &Part) {
    for (key, mode) in keys(part) {
        let Some(mut lock) = p.t.locks.get(&key) else { continue };
        match mode {
            Mode::Shared => {
                if let Some(i) = lock.shared.iter().position(|t| *t == txn) {
                    lock.shared.remove(i);
                }
            }
            Mode::Exclusive if lock.exclusive == Some(txn) => lock.exclusive = None,
            Mode::Exclusive => {}
        }
        if lock == Lock::default() {
            p.t.locks.remove(&key);
        } else {
            p.t.locks.put(&key, &lock);
        }
    }
}
