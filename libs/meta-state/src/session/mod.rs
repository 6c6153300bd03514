//! Sessions, fences, stored replies (`docs/design/0002-transactions.md`).

pub mod acks;

use crate::{
    Cx, InternalReply, Partition,
    record::{PinKey, Reply, ReplyKey, Session, reply::Outcome},
    txn,
};
use fusefs_types::{
    FsError, FsResult, Hlc, SessionId, Token,
    ids::OpId,
    limits,
    ops::{Caller, WriteReply},
    txn::Internal,
};

/// What a mutation meets before it may execute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Nothing: execute it.
    Fresh,
    /// It was executed: this is its reply.
    Done(FsResult<WriteReply>),
    /// Transaction `seq` of this partition works on it.
    Running(u64),
}

/// Checks session, token, acknowledgements and stored replies of a mutation (PROTOCOL 10-18).
///
/// Errors, none of which changes anything: Stale (session ended), NotAttached, Fenced (older token), TooOld (its reply was
/// acknowledged), FingerprintMismatch, Overloaded (reply table full). A newer token is remembered, acknowledged replies
/// are dropped.
pub fn check(p: &mut Partition, caller: &Caller, fingerprint: u64) -> FsResult<Admission> {
    let mut session = live(p, caller.session)?;
    if caller.token < session.token && !p.faults.no_fence {
        return Err(FsError::Fenced);
    }
    let before = session.clone();
    session.token = session.token.max(caller.token);
    let key = ReplyKey { session: caller.session, op: caller.op };
    acks::take(p, caller.session, &mut session, &caller.acks);
    if session != before {
        p.t.sessions.put(&caller.session, &session);
    }
    if p.faults.no_dedupe {
        return Ok(Admission::Fresh);
    }
    if let Some(reply) = p.t.replies.get(&key) {
        return match reply.outcome {
            _ if reply.fingerprint != fingerprint => Err(FsError::FingerprintMismatch),
            Outcome::Done(result) => {
                p.repeated += 1;
                Ok(Admission::Done(result))
            }
            Outcome::Running(seq) => Ok(Admission::Running(seq)),
        };
    }
    if acks::contains(&session.acked, &caller.op) {
        return Err(FsError::TooOld);
    }
    if session.replies as usize >= limits::REPLIES_PER_SESSION_MAX {
        return Err(FsError::Overloaded);
    }
    Ok(Admission::Fresh)
}

/// [`check`] for a command that runs here alone: a stored reply answers a retry; a transaction that works on the same
/// operation is Conflict (the retry must be planned again, as a transaction).
pub fn admit(p: &mut Partition, caller: &Caller, fingerprint: u64) -> FsResult<Option<FsResult<WriteReply>>> {
    match check(p, caller, fingerprint)? {
        Admission::Fresh => Ok(None),
        Admission::Done(result) => Ok(Some(result)),
        Admission::Running(_) => Err(FsError::Conflict),
    }
}

/// Whether an error is an outcome of the operation, to be stored, rather than a refusal to try it now.
pub fn is_outcome(error: FsError) -> bool {
    error.code() < 1000
}

/// Stores the reply of a mutation in the command that has its effect. Refusals are not stored.
pub fn remember(p: &mut Partition, caller: &Caller, fingerprint: u64, result: &FsResult<WriteReply>) {
    store(p, caller.session, caller.op, fingerprint, Outcome::Done(result.clone()));
}

/// Notes that transaction `seq` works on the operation.
pub(crate) fn running(p: &mut Partition, caller: &Caller, fingerprint: u64, seq: u64) {
    store(p, caller.session, caller.op, fingerprint, Outcome::Running(seq));
}

/// Replaces the note of [`running`] by the result; a refusal leaves nothing, so that a retry starts afresh.
pub(crate) fn finished(p: &mut Partition, session: SessionId, op: OpId, result: &FsResult<WriteReply>) {
    let Some(row) = p.t.replies.get(&ReplyKey { session, op }) else { return };
    store(p, session, op, row.fingerprint, Outcome::Done(result.clone()));
}

fn store(p: &mut Partition, id: SessionId, op: OpId, fingerprint: u64, outcome: Outcome) {
    let Ok(mut session) = live(p, id) else { return };
    let key = ReplyKey { session: id, op };
    let drop = matches!(&outcome, Outcome::Done(Err(e)) if !is_outcome(*e))
        || (matches!(outcome, Outcome::Done(_)) && acks::contains(&session.acked, &op));
    let before = session.replies;
    if drop {
        session.replies -= u32::from(p.t.replies.remove(&key));
    } else {
        session.replies += u32::from(p.t.replies.put(&key, &Reply { fingerprint, outcome }));
    }
    if session.replies != before {
        p.t.sessions.put(&id, &session);
    }
}

/// The session if it is attached and lives. Errors: Stale, NotAttached.
pub(crate) fn live(p: &Partition, id: SessionId) -> FsResult<Session> {
    match p.t.sessions.get(&id) {
        None => Err(FsError::NotAttached),
        Some(s) if s.ended.is_some() => Err(FsError::Stale),
        Some(s) => Ok(s),
    }
}

/// Executes a session command.
pub fn apply(p: &mut Partition, cx: &mut Cx, internal: &Internal) -> FsResult<InternalReply> {
    match internal {
        Internal::Attach { session, token } => attach(p, cx.stamp, *session, *token)?,
        Internal::Fence { session, token } => fence(p, *session, *token),
        Internal::EndSession { session, revoked } => end(p, cx, *session, *revoked)?,
        _ => return Err(FsError::Invalid),
    }
    Ok(InternalReply::Done)
}

/// Errors: Stale (ended before; the master recorded the attachment too late), Fenced.
fn attach(p: &mut Partition, stamp: Hlc, id: SessionId, token: Token) -> FsResult<()> {
    let mut session = match live(p, id) {
        Err(FsError::NotAttached) => Session { since: stamp, ..Session::default() },
        other => other?,
    };
    if token < session.token {
        return Err(FsError::Fenced);
    }
    session.token = token;
    p.t.sessions.put(&id, &session);
    Ok(())
}

/// A session that is not here needs no fence: it must attach first, and the master refuses or knows the token.
fn fence(p: &mut Partition, id: SessionId, token: Token) {
    if let Ok(mut session) = live(p, id) {
        session.token = session.token.max(token);
        p.t.sessions.put(&id, &session);
    }
}

/// Conflict until no transaction of the session can have an effect any more.
fn end(p: &mut Partition, cx: &mut Cx, id: SessionId, revoked: bool) -> FsResult<()> {
    let mut session = p.t.sessions.get(&id).unwrap_or_default();
    if session.ended.is_none() {
        session.ended = Some((cx.stamp, revoked));
        session.replies = 0;
        session.acked.clear();
        let from = ReplyKey { session: id, op: OpId::default() };
        let replies: Vec<_> = p.t.replies.range(&from).map(|(k, _)| k).take_while(|k| k.session == id).collect();
        for key in replies {
            p.t.replies.remove(&key);
        }
        let pins: Vec<PinKey> = p.t.pins.iter().map(|(k, _)| k).filter(|k| k.session == id).collect();
        for key in pins {
            p.t.pins.remove(&key);
        }
        p.drop_session_locks(cx, id);
        p.t.sessions.put(&id, &session);
        forget_oldest(p);
    }
    if txn::coordinator::end_session(p, id) { Ok(()) } else { Err(FsError::Conflict) }
}

/// Keeps the newest ENDED_SESSIONS_MAX tombstones.
fn forget_oldest(p: &mut Partition) {
    if p.t.sessions.len() <= limits::ENDED_SESSIONS_MAX as u64 {
        return;
    }
    let mut ended: Vec<(Hlc, SessionId)> =
        p.t.sessions.iter().filter_map(|(id, s)| s.ended.map(|(at, _)| (at, id))).collect();
    ended.sort();
    let surplus = ended.len().saturating_sub(limits::ENDED_SESSIONS_MAX);
    for (_, id) in &ended[..surplus] {
        p.t.sessions.remove(id);
    }
}

impl Partition {
    /// Sessions that are attached and not ended, in order of their ids.
    pub fn attached(&self) -> Vec<SessionId> {
        self.t.sessions.iter().filter(|(_, s)| s.ended.is_none()).map(|(id, _)| id).collect()
    }
    /// Whether mutations of the session are accepted; the token is what `apply` compares with. Errors: Stale, NotAttached.
    pub fn session_token(&self, id: SessionId) -> FsResult<Token> {
        live(self, id).map(|s| s.token)
    }
    /// State of an operation: None = never heard of (or acknowledged).
    pub fn reply_of(&self, session: SessionId, op: OpId) -> Option<Admission> {
        Some(match self.t.replies.get(&ReplyKey { session, op })?.outcome {
            Outcome::Done(result) => Admission::Done(result),
            Outcome::Running(seq) => Admission::Running(seq),
        })
    }
}
