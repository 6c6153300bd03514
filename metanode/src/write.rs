//! The way of a client's mutation: owner, plan, one command or a transaction, reply. Also attaching sessions.

use crate::{
    group::{Counters, Hosted},
    node::Metanode,
};
use fusefs_meta_state::{InternalReply, Plan, session::Admission};
use fusefs_types::{
    FsError, FsResult, RangeKey, SessionId, Token,
    auth::Principal,
    cluster::{MasterCall, MasterReply},
    limits,
    ops::{Caller, Envelope, NewNode, Refusal, Write, WriteReply},
    txn::{Internal, TxnId},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Longest time a request is worked on here, whatever its deadline.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// How long conflicts are retried here before the client hears of one.
const CONFLICT_BUDGET: Duration = Duration::from_millis(500);

/// A create of a file while it is under way: the creator holds the new inode open without ever asking to open it.
struct Birth<'a> {
    hosted: Option<&'a Hosted>,
    session: SessionId,
}

impl<'a> Birth<'a> {
    fn of(hosted: &'a Hosted, session: SessionId, write: &Write) -> Birth<'a> {
        let creates = match write {
            Write::Create(c) => c.node == NewNode::File,
            Write::Tmpfile(_) => true,
            _ => false,
        };
        if creates {
            hosted.holders.lock().creating(session);
        }
        Birth { hosted: creates.then_some(hosted), session }
    }
    fn settle(&mut self, result: &Result<WriteReply, Refusal>) {
        let Some(hosted) = self.hosted.take() else { return };
        let ino = match result {
            Ok(WriteReply::Created { attr, .. }) => Some(attr.ino),
            _ => None,
        };
        let unknown = matches!(result, Err(r) if r.error == FsError::Unavailable);
        hosted.holders.lock().created(self.session, ino, unknown);
    }
}

impl Drop for Birth<'_> {
    fn drop(&mut self) {
        if let Some(hosted) = self.hosted {
            hosted.holders.lock().created(self.session, None, true);
        }
    }
}

/// Deadline of a request.
pub(crate) fn deadline(envelope: &Envelope) -> Instant {
    let asked = Duration::from_millis(u64::from(envelope.deadline_ms));
    Instant::now() + if asked.is_zero() { REQUEST_MAX } else { asked.min(REQUEST_MAX) }
}

impl Metanode {
    /// Executes a mutation exactly once. The refusal says whether and where to retry.
    pub async fn write(self: &Arc<Self>, envelope: Envelope, write: Write) -> Result<WriteReply, Refusal> {
        let session = match self.admit(&envelope)? {
            Principal::Session(session, _) => session,
            Principal::Cluster => envelope.session,
        };
        let op = envelope.op.filter(|_| session.0 != 0).ok_or(FsError::Invalid)?;
        let hosted = self.owner(envelope.volume, write.route())?;
        hosted.lead()?;
        Counters::add(&hosted.counters.writes);
        if let Write::SetLock(lock) = &write
            && lock.wait
        {
            hosted.shared.lock_waiters.add(lock.ino, session);
        }
        let caller = Caller { session, token: envelope.token, op, acks: envelope.acks.clone() };
        let (end, patience) = (deadline(&envelope), Instant::now() + CONFLICT_BUDGET);
        let mut attached = false;
        loop {
            let unlocked = hosted.shared.unlocked();
            // Anew for every attempt: an attach in between may have begun another reign with an empty table.
            let mut birth = Birth::of(&hosted, session, &write);
            let result = self.attempt(&hosted, &envelope, &caller, &write, end).await;
            birth.settle(&result);
            match result {
                Err(r) if r.error == FsError::NotAttached && !attached => {
                    attached = true;
                    self.attach(&hosted, session, envelope.token).await?;
                }
                Err(r) if r.error == FsError::Conflict && Instant::now() < patience.min(end) => {
                    Counters::add(&hosted.counters.conflicts);
                    // A lock that goes wakes us; the jitter parts those it wakes together.
                    let _ = tokio::time::timeout(Duration::from_millis(5), unlocked).await;
                    self.jitter(2).await;
                }
                Err(r) if r.error == FsError::WrongRange => return Err(self.wrong_range(envelope.volume)),
                other => return other,
            }
        }
    }

    async fn attempt(
        self: &Arc<Self>,
        hosted: &Arc<Hosted>,
        envelope: &Envelope,
        caller: &Caller,
        write: &Write,
        end: Instant,
    ) -> Result<WriteReply, Refusal> {
        let (plan, running) = hosted.group.read(|m| {
            let p = m.partition()?;
            Ok::<_, FsError>((p.plan(write), p.reply_of(caller.session, caller.op)))
        })?;
        if let Some(Admission::Running(seq)) = running {
            return self.await_reply(hosted, caller, TxnId { coordinator: hosted.id, seq }, end).await;
        }
        let spill_to = match plan {
            Plan::Local => return hosted.client(caller.clone(), write.clone(), envelope.hlc).await,
            Plan::Transaction => None,
            Plan::MaySpill { depth } => match self.spill(hosted, depth).await {
                None => return hosted.client(caller.clone(), write.clone(), envelope.hlc).await,
                Some(key) => Some(key),
            },
        };
        Counters::add(&hosted.counters.transactions);
        let begin = Internal::TxnBegin { caller: caller.clone(), write: write.clone(), spill_to };
        match hosted.internal(begin, envelope.hlc).await? {
            InternalReply::Answer { result, .. } => Ok(result?),
            InternalReply::Begun(txn) => self.await_reply(hosted, caller, txn, end).await,
            _ => Err(FsError::Io.into()),
        }
    }

    /// Waits for the end of a running transaction.
    async fn await_reply(
        &self,
        hosted: &Hosted,
        caller: &Caller,
        txn: TxnId,
        end: Instant,
    ) -> Result<WriteReply, Refusal> {
        let reply = hosted.shared.wait(txn);
        // It may have ended before we began to wait.
        let state = hosted.group.read(|m| Ok::<_, FsError>(m.partition()?.reply_of(caller.session, caller.op)))?;
        match state {
            Some(Admission::Done(result)) => return Ok(result?),
            Some(_) => {}
            None => return Err(FsError::Conflict.into()),
        }
        match tokio::time::timeout_at(end, reply).await {
            Ok(Ok(result)) => Ok(result?),
            Ok(Err(_)) | Err(_) => Err(FsError::Unavailable.into()),
        }
    }

    /// Where a new directory goes; None = here (PROTOCOL 21).
    async fn spill(&self, hosted: &Hosted, depth: u8) -> Option<RangeKey> {
        if depth > limits::SPILL_DEPTH_MAX {
            return None;
        }
        if self.maps.get(hosted.volume).is_none() {
            let _ = self.refresh_map(hosted.volume).await;
        }
        let map = self.maps.get(hosted.volume)?;
        let count = map.partitions.len() as u64;
        let chosen = map.partitions.get((self.rng.next_u64() % count.max(1)) as usize)?;
        if chosen.id == hosted.id {
            return None;
        }
        chosen.ranges.last().map(|r| r.start)
    }

    /// Makes the partition accept a session: the master records it first (PROTOCOL 11). One at a time per session;
    /// whoever waited finds it done.
    pub(crate) async fn attach(&self, hosted: &Hosted, session: SessionId, token: Token) -> Result<(), Refusal> {
        let lock = hosted.attach_lock(session);
        let _one = lock.lock().await;
        let known = || hosted.group.read(|m| m.partition()?.session_token(session));
        match known() {
            Ok(_) => return Ok(()),
            Err(FsError::NotAttached) => {}
            Err(e) => return Err(e.into()),
        }
        Counters::add(&hosted.counters.attaches);
        let token = self.ask_attach(hosted, session, token).await?;
        let term = hosted.reign()?;
        hosted.internal(Internal::Attach { session, token }, fusefs_types::Hlc(0)).await?;
        if hosted.reign() == Ok(term) {
            hosted.holders.lock().attached(session);
        }
        Ok(())
    }

    async fn ask_attach(&self, hosted: &Hosted, session: SessionId, token: Token) -> FsResult<Token> {
        match self.master(MasterCall::AttachSession(session, hosted.id, token)).await {
            Ok(MasterReply::Attached(token)) => Ok(token),
            Ok(_) => Err(FsError::Io),
            // A master that cannot be asked now is no verdict on the session.
            Err(e) if e.error.is_retryable() => Err(FsError::Unavailable),
            Err(e) => Err(e.error),
        }
    }
}
