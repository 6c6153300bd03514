//! A partition as coordinator: begin, collect answers, decide, finish. A crash at any point loses nothing: what to send
//! is derived from the records ([`Partition::txn_work`]).

use crate::{
    Cx, InternalReply, Partition,
    record::{TxnRecord, wire::fingerprint},
    session::{self, Admission},
    txn::{
        derive::{self, Derived},
        locks, participant, reply,
    },
};
use fusefs_types::{
    FsError, FsResult, RangeKey, SessionId, limits,
    ops::{Caller, Write, WriteReply},
    txn::{Part, PartReply, TxnId, TxnMessage, TxnStep},
};

/// States of a transaction (`TxnRecord::state`).
pub(crate) mod state {
    /// Asking participants.
    pub const PREPARING: u8 = 0;
    /// All prepared; the ancestry of a directory move is being checked.
    pub const ANCESTRY: u8 = 1;
    /// Decided: every part commits.
    pub const COMMITTED: u8 = 2;
    /// Decided: every part aborts.
    pub const ABORTED: u8 = 3;
}

/// States of a part.
pub(crate) mod part {
    /// Not asked yet.
    pub const HELD: u8 = 0;
    /// Prepare may have been sent.
    pub const ASKED: u8 = 1;
    /// Execute may have been sent: the participant decides.
    pub const DELEGATED: u8 = 2;
    /// Prepared by another partition.
    pub const READY: u8 = 3;
    /// Prepared here.
    pub const LOCAL: u8 = 4;
    /// Nothing more to do.
    pub const CLOSED: u8 = 5;
}

/// Answer to the client when the transaction is decided and, if committed, applied everywhere.
type Final = Option<FsResult<WriteReply>>;

/// Begins (or finds) the transaction of a client's request. Err = refused, nothing stored.
pub(crate) fn begin(
    p: &mut Partition,
    cx: &mut Cx,
    caller: &Caller,
    write: &Write,
    spill_to: Option<RangeKey>,
) -> FsResult<InternalReply> {
    if !p.owns(write.route()) {
        return Err(FsError::WrongRange);
    }
    let print = fingerprint(write);
    match session::check(p, caller, print)? {
        Admission::Done(result) => return Ok(InternalReply::Answer { op: None, result }),
        Admission::Running(seq) => return Ok(InternalReply::Begun(TxnId { coordinator: p.id, seq })),
        Admission::Fresh => {}
    }
    if p.meta.next_txn - floor(p) >= limits::TXN_WINDOW_MAX {
        return Err(FsError::Overloaded);
    }
    let parts = match derive::parts(p, write, spill_to) {
        Ok(Derived::Parts(parts)) => parts,
        Ok(Derived::Nothing(reply)) => return at_once(p, caller, print, Ok(reply)),
        Err(e) if session::is_outcome(e) => return at_once(p, caller, print, Err(e)),
        Err(e) => return Err(e),
    };
    let seq = p.meta.next_txn;
    p.meta.next_txn += 1;
    let record = TxnRecord {
        session: caller.session,
        token: caller.token,
        op: caller.op,
        write: write.clone(),
        spill_to,
        state: state::PREPARING,
        error: None,
        parts: parts.into_iter().map(|part| (part, (part::HELD, None))).collect(),
    };
    p.t.txns.put(&seq, &record);
    session::running(p, caller, print, seq);
    let txn = TxnId { coordinator: p.id, seq };
    match advance(p, cx, seq, record) {
        None => Ok(InternalReply::Begun(txn)),
        Some(Err(e)) if !session::is_outcome(e) => Err(e),
        Some(result) => Ok(InternalReply::Answer { op: Some(txn), result }),
    }
}

fn at_once(p: &mut Partition, caller: &Caller, print: u64, result: FsResult<WriteReply>) -> FsResult<InternalReply> {
    p.meta.operations += 1;
    session::remember(p, caller, print, &result);
    Ok(InternalReply::Answer { op: None, result })
}

/// Everything below is finished everywhere.
pub(crate) fn floor(p: &Partition) -> u64 {
    p.t.txns.iter().next().map_or(p.meta.next_txn, |(seq, _)| seq)
}

/// Asks what can be asked, decides when everything is answered.
fn advance(p: &mut Partition, cx: &mut Cx, seq: u64, mut r: TxnRecord) -> Final {
    match ask(p, cx, seq, &mut r) {
        Ok(true) => {}
        Ok(false) => return abort(p, seq, r, None),
        Err(e) => return abort(p, seq, r, Some(e)),
    }
    let all_prepared = r.parts.iter().all(|(_, (s, _))| matches!(*s, part::READY | part::LOCAL | part::CLOSED));
    if !all_prepared {
        p.t.txns.put(&seq, &r);
        return None;
    }
    if moves_directory(&r) && !p.faults.no_ancestry {
        r.state = state::ANCESTRY;
        p.t.txns.put(&seq, &r);
        return None;
    }
    commit(p, cx, seq, r)
}

fn moves_directory(r: &TxnRecord) -> bool {
    matches!(r.parts.first(), Some((Part::Topology, _)))
}

/// Prepares local parts, marks remote ones as asked. Ok(false): the request turned out to be a no-op.
fn ask(p: &mut Partition, cx: &mut Cx, seq: u64, r: &mut TxnRecord) -> FsResult<bool> {
    let txn = TxnId { coordinator: p.id, seq };
    if moves_directory(r) {
        match r.parts[0].1.0 {
            part::HELD if p.owns(Part::Topology.route()) => {
                let reply = participant::prepare(p, cx, txn, &Part::Topology)?;
                r.parts[0].1 = (part::LOCAL, Some(reply));
            }
            part::HELD => r.parts[0].1.0 = part::ASKED,
            _ => {}
        }
        if r.parts[0].1.0 == part::ASKED {
            return Ok(true); // the topology before everything else (PROTOCOL 19)
        }
    }
    let mut i = 0;
    while i < r.parts.len() {
        let (todo, (s, _)) = &r.parts[i];
        if *s == part::HELD && p.owns(todo.route()) {
            let todo = todo.clone();
            let reply = participant::prepare(p, cx, txn, &todo)?;
            r.parts[i].1 = (part::LOCAL, Some(reply));
            if !found(r, i) {
                return Ok(false);
            }
        }
        i += 1;
    }
    let waiting = r.parts.iter().any(|(_, (s, _))| matches!(*s, part::ASKED | part::DELEGATED));
    let held = r.parts.iter().filter(|(_, (s, _))| *s == part::HELD).count();
    let how = if held == 1 && !waiting && !moves_directory(r) { part::DELEGATED } else { part::ASKED };
    for (_, (s, _)) in &mut r.parts {
        if *s == part::HELD {
            *s = how;
        }
    }
    Ok(true)
}

/// Part `i` has been prepared: an insert that found something adds the part that replaces it. False: it found the moved
/// inode itself (rename between two names of one file does nothing).
fn found(r: &mut TxnRecord, i: usize) -> bool {
    let (Part::Insert { child, .. }, (_, Some(reply))) = &r.parts[i] else { return true };
    match reply.existing {
        Some((ino, _)) if ino == *child => false,
        Some((ino, kind)) if !reply.done => {
            r.parts.push((participant::replaced(ino, kind), (part::HELD, None)));
            true
        }
        _ => true,
    }
}

/// A participant answered prepare or execute.
pub(crate) fn prepared(
    p: &mut Partition,
    cx: &mut Cx,
    seq: u64,
    n: u32,
    result: &FsResult<PartReply>,
) -> FsResult<InternalReply> {
    let Some(mut r) = p.t.txns.get(&seq) else { return Ok(InternalReply::Done) };
    let Some((_, (s, _))) = r.parts.get(n as usize) else { return Err(FsError::Invalid) };
    let asked = *s;
    if r.state != state::PREPARING || !matches!(asked, part::ASKED | part::DELEGATED) {
        return Ok(InternalReply::Done); // a repeated answer
    }
    let i = n as usize;
    match result {
        Ok(reply) => {
            let closed = reply.done && asked == part::DELEGATED;
            r.parts[i].1 = (if closed { part::CLOSED } else { part::READY }, Some(reply.clone()));
            let go = closed || found(&mut r, i);
            let end = if go { advance(p, cx, seq, r) } else { abort(p, seq, r, None) };
            Ok(answer(p, seq, end))
        }
        // Only what the participant has remembered is an answer.
        Err(e) if !session::is_outcome(*e) && *e != FsError::Conflict => Err(FsError::Invalid),
        Err(e) => {
            r.parts[i].1.0 = part::CLOSED;
            let end = abort(p, seq, r, Some(*e));
            Ok(answer(p, seq, end))
        }
    }
}

fn answer(p: &Partition, seq: u64, end: Final) -> InternalReply {
    match end {
        None => InternalReply::Done,
        Some(result) => InternalReply::Answer { op: Some(TxnId { coordinator: p.id, seq }), result },
    }
}

/// The ancestry of a directory move was checked.
pub(crate) fn ancestry(p: &mut Partition, cx: &mut Cx, seq: u64, cycle: bool) -> InternalReply {
    let Some(r) = p.t.txns.get(&seq) else { return InternalReply::Done };
    if r.state != state::ANCESTRY {
        return InternalReply::Done;
    }
    let end = if cycle { abort(p, seq, r, Some(FsError::Invalid)) } else { commit(p, cx, seq, r) };
    answer(p, seq, end)
}

/// A participant finished commit or abort.
pub(crate) fn finished(p: &mut Partition, cx: &mut Cx, seq: u64, n: u32, reply: &PartReply) -> FsResult<InternalReply> {
    let Some(mut r) = p.t.txns.get(&seq) else { return Ok(InternalReply::Done) };
    let Some((_, slot)) = r.parts.get_mut(n as usize) else { return Err(FsError::Invalid) };
    match (r.state, slot.0) {
        (state::COMMITTED, part::READY) => {
            *slot = (part::CLOSED, Some(reply.clone()));
            let end = close(p, cx, seq, r);
            Ok(answer(p, seq, end))
        }
        (state::ABORTED, part::ASKED | part::READY) => {
            slot.0 = part::CLOSED;
            keep_or_remove(p, seq, &r);
            Ok(InternalReply::Done)
        }
        _ => Ok(InternalReply::Done),
    }
}

fn keep_or_remove(p: &mut Partition, seq: u64, r: &TxnRecord) {
    if r.parts.iter().all(|(_, (s, _))| *s == part::CLOSED) {
        p.t.txns.remove(&seq);
    } else {
        p.t.txns.put(&seq, r);
    }
}

/// Decides for commit: applies local parts, leaves the others to messages.
fn commit(p: &mut Partition, cx: &mut Cx, seq: u64, mut r: TxnRecord) -> Final {
    r.state = state::COMMITTED;
    reply::complete(&mut r);
    let txn = TxnId { coordinator: p.id, seq };
    for (todo, slot) in &mut r.parts {
        if slot.0 == part::LOCAL && *todo != Part::Topology {
            commit_local(p, cx, txn, todo, slot);
        }
    }
    close(p, cx, seq, r)
}

fn commit_local(p: &mut Partition, cx: &mut Cx, txn: TxnId, todo: &Part, slot: &mut (u8, Option<PartReply>)) {
    let before = slot.1.take().unwrap_or_default();
    // It cannot fail: prepare validated it and its locks kept it valid. On a damaged state fsck has the say.
    let after = participant::commit(p, cx, txn, todo, &before).unwrap_or(before);
    *slot = (part::CLOSED, Some(after));
}

/// Finishes a committed transaction when everything is applied. The topology goes last: the next move's ancestry check
/// must see this one's parent pointer.
fn close(p: &mut Partition, cx: &mut Cx, seq: u64, mut r: TxnRecord) -> Final {
    if r.parts.iter().skip(1).all(|(_, (s, _))| *s == part::CLOSED)
        && let Some((Part::Topology, slot)) = r.parts.first_mut()
        && slot.0 == part::LOCAL
    {
        commit_local(p, cx, TxnId { coordinator: p.id, seq }, &Part::Topology, slot);
    }
    if r.parts.iter().any(|(_, (s, _))| *s != part::CLOSED) {
        p.t.txns.put(&seq, &r);
        return None;
    }
    p.t.txns.remove(&seq);
    p.meta.transactions += 1;
    p.meta.operations += 1;
    let result = reply::build(&r);
    session::finished(p, r.session, r.op, &result);
    Some(result)
}

/// Decides for abort. `error` None = the request was a no-op and succeeds.
fn abort(p: &mut Partition, seq: u64, mut r: TxnRecord, error: Option<FsError>) -> Final {
    let txn = TxnId { coordinator: p.id, seq };
    (r.state, r.error) = (state::ABORTED, error);
    for (todo, slot) in &mut r.parts {
        match slot.0 {
            part::LOCAL => {
                locks::release(p, txn, todo);
                slot.0 = part::CLOSED;
            }
            part::HELD => slot.0 = part::CLOSED,
            _ => {}
        }
    }
    keep_or_remove(p, seq, &r);
    let result = match error {
        None => reply::no_op(&r),
        Some(e) => Err(e),
    };
    session::finished(p, r.session, r.op, &result);
    Some(result)
}

/// Aborts the undecided transactions of an ended session. False while one that is decided, or that a participant may
/// decide, is not finished.
pub(crate) fn end_session(p: &mut Partition, id: SessionId) -> bool {
    let mine: Vec<(u64, TxnRecord)> = p.t.txns.iter().filter(|(_, r)| r.session == id).collect();
    let mut clear = true;
    for (seq, r) in mine {
        let delegated = r.parts.iter().any(|(_, (s, _))| *s == part::DELEGATED);
        match r.state {
            state::ABORTED => {}
            state::PREPARING | state::ANCESTRY if !delegated => {
                abort(p, seq, r, Some(FsError::Stale));
            }
            _ => clear = false,
        }
    }
    clear
}

/// Whether readers must not see what the transaction has locked here: it may have been decided by a participant.
pub(crate) fn hidden(p: &Partition, seq: u64) -> bool {
    p.t.txns.get(&seq).is_none_or(|r| {
        !matches!(r.state, state::PREPARING | state::ANCESTRY)
            || r.parts.iter().any(|(_, (s, _))| *s == part::DELEGATED)
    })
}

/// Messages that the transaction needs now.
pub(crate) fn messages(p: &Partition, seq: u64, r: &TxnRecord, floor: u64, out: &mut Vec<TxnMessage>) {
    let txn = TxnId { coordinator: p.id, seq };
    let rest_closed = r.parts.iter().skip(1).all(|(_, (s, _))| *s == part::CLOSED);
    for (n, (todo, (s, _))) in r.parts.iter().enumerate() {
        let step = match (r.state, *s) {
            (state::PREPARING, part::ASKED) => TxnStep::Prepare(todo.clone()),
            (state::PREPARING, part::DELEGATED) => TxnStep::Execute(todo.clone()),
            (state::COMMITTED, part::READY) if *todo != Part::Topology || rest_closed => TxnStep::Commit(todo.clone()),
            (state::ABORTED, part::ASKED | part::READY) => TxnStep::Abort(todo.route()),
            _ => continue,
        };
        out.push(TxnMessage { txn, part: n as u32, floor, session: r.session, step });
    }
}
