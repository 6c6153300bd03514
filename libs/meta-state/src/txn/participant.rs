//! A partition as participant: prepare, execute, commit and abort of one part, each exactly once.

use crate::{
    Cx, Partition,
    ops::link::linkable,
    record::{Inode, Participant, ParticipantKey},
    txn::locks,
};
use fusefs_types::{
    FileKind, FsError, FsResult, Ino, Name, PartitionId,
    txn::{Part, PartReply, TxnId, TxnMessage, TxnStep},
};

/// Executes a message. Its row answers every repetition. Errors that are remembered: whatever prepare finds wrong.
/// Not remembered: WrongRange (send it to the new owner), TooOld (below the coordinator's floor).
pub(crate) fn step(p: &mut Partition, cx: &mut Cx, msg: &TxnMessage) -> FsResult<PartReply> {
    raise_floor(p, msg)?;
    let key = ParticipantKey { txn: msg.txn, part: msg.part };
    let row = if p.faults.no_dedupe { None } else { p.t.participants.get(&key) };
    match (&msg.step, row) {
        (TxnStep::Prepare(_) | TxnStep::Execute(_), Some(Participant::Prepared(_, r) | Participant::Done(r))) => Ok(r),
        (TxnStep::Prepare(_) | TxnStep::Execute(_), Some(Participant::Refused(e))) => Err(e),
        (TxnStep::Prepare(part), _) => {
            let result = owned(p, part).and_then(|()| prepare(p, cx, msg.txn, part));
            note(p, &key, part, result)
        }
        (TxnStep::Execute(part), _) => {
            owned(p, part)?;
            let result = execute(p, cx, msg.txn, part);
            note(p, &key, part, result)
        }
        (TxnStep::Commit(part), Some(Participant::Prepared(_, prepared))) => {
            let reply = commit(p, cx, msg.txn, part, &prepared)?;
            p.t.participants.put(&key, &Participant::Done(reply.clone()));
            Ok(reply)
        }
        (TxnStep::Commit(_), Some(Participant::Done(r))) => Ok(r),
        (TxnStep::Commit(part), None) if p.faults.no_dedupe => commit(p, cx, msg.txn, part, &PartReply::default()),
        // A coordinator commits only what was prepared, and never aborts what was done: refuse rather than guess.
        (TxnStep::Commit(_), _) | (TxnStep::Abort(_), Some(Participant::Done(_))) => Err(FsError::Invalid),
        (TxnStep::Abort(_), row) => {
            if let Some(Participant::Prepared(part, _)) = row {
                locks::release(p, msg.txn, &part);
            }
            p.t.participants.put(&key, &Participant::Refused(FsError::Conflict));
            Ok(PartReply::default())
        }
    }
}

fn owned(p: &Partition, part: &Part) -> FsResult<()> {
    if p.owns(part.route()) { Ok(()) } else { Err(FsError::WrongRange) }
}

/// Writes the row of a first prepare or execute.
fn note(p: &mut Partition, key: &ParticipantKey, part: &Part, result: FsResult<PartReply>) -> FsResult<PartReply> {
    let row = match &result {
        Err(FsError::WrongRange) => return result,
        Ok(r) if r.done => Participant::Done(r.clone()),
        Ok(r) => Participant::Prepared(part.clone(), r.clone()),
        Err(e) => Participant::Refused(*e),
    };
    p.t.participants.put(key, &row);
    result
}

/// Row that keeps a coordinator's floor; transaction numbers start at 1.
fn floor_key(coordinator: PartitionId) -> ParticipantKey {
    ParticipantKey { txn: TxnId { coordinator, seq: 0 }, part: 0 }
}

/// Forgets what lies below the coordinator's floor. TooOld when the message itself does.
fn raise_floor(p: &mut Partition, msg: &TxnMessage) -> FsResult<()> {
    if p.faults.ignore_floor {
        // The planted bug: rows go at the floor, but messages below it are taken.
        forget(p, msg.txn.coordinator, msg.floor);
        return Ok(());
    }
    let key = floor_key(msg.txn.coordinator);
    let floor = match p.t.participants.get(&key) {
        Some(Participant::Floor(f)) => f,
        _ => 0,
    };
    if msg.floor > floor {
        forget(p, msg.txn.coordinator, msg.floor);
        p.t.participants.put(&key, &Participant::Floor(msg.floor));
    }
    if msg.txn.seq < floor.max(msg.floor) { Err(FsError::TooOld) } else { Ok(()) }
}

/// Drops finished rows below `floor`. A prepared one cannot be there; if it were, its locks must not be lost.
fn forget(p: &mut Partition, coordinator: PartitionId, floor: u64) {
    let from = ParticipantKey { txn: TxnId { coordinator, seq: 1 }, part: 0 };
    let rows: Vec<ParticipantKey> =
        p.t.participants
            .range(&from)
            .take_while(|(k, _)| k.txn.coordinator == coordinator && k.txn.seq < floor)
            .filter(|(_, row)| !matches!(row, Participant::Prepared(..)))
            .map(|(k, _)| k)
            .collect();
    for key in rows {
        p.t.participants.remove(&key);
    }
}

/// Locks and validates. After an Ok, [`commit`] cannot fail.
pub(crate) fn prepare(p: &mut Partition, cx: &mut Cx, txn: TxnId, part: &Part) -> FsResult<PartReply> {
    if !p.faults.no_locks {
        locks::available(p, txn, part)?;
    }
    let reply = validate(p, cx, part)?;
    locks::take(p, txn, part);
    Ok(reply)
}

fn validate(p: &mut Partition, cx: &mut Cx, part: &Part) -> FsResult<PartReply> {
    let mut reply = PartReply::default();
    match part {
        Part::Topology => {}
        Part::Remove { parent, name, child, .. } => {
            p.dir(*parent)?;
            match p.find(*parent, name) {
                Some((_, d)) if d.ino == *child => {}
                // Something else since the request was looked at (a directory move waits for the topology): look again.
                Some(_) => return Err(FsError::Conflict),
                None => return Err(FsError::NotFound),
            }
        }
        Part::Insert { parent, name, child, kind, replace } => {
            reply.existing = insertable(p, *parent, name, *child, *kind, *replace)?;
        }
        Part::MakeDirectory { parent, mode, uid, gid, depth, project, .. } => {
            // The number is taken now and lost if the transaction aborts; the inode appears with the commit.
            let ino = p.alloc_ino()?;
            let mut dir = Inode::new(FileKind::Directory, *mode, *uid, *gid, cx.stamp);
            (dir.parent, dir.depth, dir.project) = (*parent, *depth, *project);
            reply.attr = Some(dir.attr(ino));
        }
        Part::AddLink { ino } => {
            let inode = p.inode(*ino)?;
            linkable(p, *ino, &inode)?;
            reply.attr = Some(inode.attr(*ino));
        }
        Part::DropLink { ino } => {
            let inode = named(p, *ino)?;
            if inode.is_dir() {
                return Err(FsError::IsDirectory);
            }
            reply.attr = Some(inode.attr(*ino));
        }
        Part::RemoveDirectory { ino } => {
            let dir = p.dir(*ino)?;
            if *ino == Ino::ROOT {
                return Err(FsError::InUse);
            }
            if !p.is_empty_dir(*ino) {
                return Err(FsError::NotEmpty);
            }
            reply.attr = Some(dir.attr(*ino));
        }
        Part::Moved { ino, .. } => reply.attr = Some(named(p, *ino)?.attr(*ino)),
    }
    Ok(reply)
}

/// An inode that still has a name.
fn named(p: &Partition, ino: Ino) -> FsResult<Inode> {
    let inode = p.inode(ino)?;
    if inode.nlink == 0 { Err(FsError::NotFound) } else { Ok(inode) }
}

/// Whether `name` in `parent` may be given to `child`; what it names now.
fn insertable(
    p: &Partition,
    parent: Ino,
    name: &Name,
    child: Ino,
    kind: FileKind,
    replace: bool,
) -> FsResult<Option<(Ino, FileKind)>> {
    p.dir(parent)?;
    let Some((_, old)) = p.find(parent, name) else {
        p.free_cookie(parent, name)?;
        return Ok(None);
    };
    if !replace {
        return Err(FsError::Exists);
    }
    let (dir, old_dir) = (kind == FileKind::Directory, old.kind == FileKind::Directory);
    if old.ino != child && dir && !old_dir {
        return Err(FsError::NotDirectory);
    }
    if old.ino != child && !dir && old_dir {
        return Err(FsError::IsDirectory);
    }
    Ok(Some((old.ino, old.kind)))
}

/// Part that takes the last name of an inode that an insert replaces.
pub(crate) fn replaced(ino: Ino, kind: FileKind) -> Part {
    if kind == FileKind::Directory { Part::RemoveDirectory { ino } } else { Part::DropLink { ino } }
}

/// Prepare and commit in one. An insert that replaces an inode takes that inode's link, too, when it is ours; if it is not,
/// or is the moved inode itself (nothing to do: the coordinator aborts), the part is only prepared.
fn execute(p: &mut Partition, cx: &mut Cx, txn: TxnId, part: &Part) -> FsResult<PartReply> {
    let prepared = prepare(p, cx, txn, part)?;
    if let (Part::Insert { child, .. }, Some((ino, kind))) = (part, prepared.existing) {
        if ino == *child || !p.owns(ino) {
            return Ok(prepared);
        }
        let also = replaced(ino, kind);
        match prepare(p, cx, txn, &also) {
            Ok(r) => _ = commit(p, cx, txn, &also, &r)?,
            Err(e) => {
                locks::release(p, txn, part);
                return Err(e);
            }
        }
    }
    commit(p, cx, txn, part, &prepared)
}

/// The effect of a prepared part; gives its locks back. Fails only if the state is damaged.
pub(crate) fn commit(
    p: &mut Partition,
    cx: &mut Cx,
    txn: TxnId,
    part: &Part,
    prepared: &PartReply,
) -> FsResult<PartReply> {
    let attr = match part {
        Part::Topology => None,
        Part::Remove { parent, name, kind, .. } => {
            if let Some((key, _)) = p.find(*parent, name) {
                p.t.dentries.remove(&key);
            }
            Some(p.touch_dir(cx, *parent, -i32::from(*kind == FileKind::Directory))?)
        }
        Part::Insert { parent, name, child, kind, .. } => {
            let old = p.find(*parent, name);
            let old_dir = old.as_ref().is_some_and(|(_, d)| d.kind == FileKind::Directory);
            let key = match old {
                Some((key, _)) => key,
                None => p.free_cookie(*parent, name)?,
            };
            p.add_name(key, name, *child, *kind);
            let links = i32::from(*kind == FileKind::Directory) - i32::from(old_dir);
            Some(p.touch_dir(cx, *parent, links)?)
        }
        Part::MakeDirectory { .. } => Some(make_directory(p, cx, part, prepared)?),
        Part::AddLink { ino } => Some(p.add_link(cx, *ino)?),
        Part::DropLink { ino } | Part::RemoveDirectory { ino } => Some(p.drop_link(cx, *ino)?),
        Part::Moved { ino, parent } => Some(p.moved(cx, *ino, *parent)?),
    };
    locks::release(p, txn, part);
    Ok(PartReply { done: true, existing: prepared.existing, attr })
}

fn make_directory(p: &mut Partition, cx: &Cx, part: &Part, prepared: &PartReply) -> FsResult<fusefs_types::Attr> {
    let (Part::MakeDirectory { parent, mode, uid, gid, depth, project, .. }, Some(attr)) = (part, prepared.attr) else {
        return Err(FsError::Corrupt);
    };
    let mut dir = Inode::new(FileKind::Directory, *mode, *uid, *gid, cx.stamp);
    (dir.parent, dir.depth, dir.project) = (*parent, *depth, *project);
    p.put_inode(attr.ino, &dir);
    Ok(dir.attr(attr.ino))
}
