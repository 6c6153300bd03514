//! The way of a question: owner, ReadIndex, state under the shared lock. Open and close keep the table of holders.

use crate::{
    group::{Counters, Hosted},
    node::Metanode,
    write::deadline,
};
use fusefs_types::{
    FsError, FsResult, Hlc, Ino, PartitionId, SessionId,
    auth::Principal,
    ops::{Envelope, Read, ReadReply, Refusal},
    txn::Internal,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long a question about a locked name waits here (PROTOCOL 20).
const LOCKED_BUDGET: Duration = Duration::from_secs(1);

impl Metanode {
    /// Answers a question, linearizably. `partition` names the replica for StatFs, which has no key; 0 = by key.
    pub async fn read(
        self: &Arc<Self>,
        envelope: Envelope,
        partition: PartitionId,
        read: Read,
    ) -> Result<ReadReply, Refusal> {
        let session = match self.admit(&envelope)? {
            Principal::Session(session, _) => session,
            Principal::Cluster => envelope.session,
        };
        let hosted = self.asked(&envelope, partition, &read)?;
        hosted.lead()?;
        Counters::add(&hosted.counters.reads);
        match read {
            Read::Open { ino, .. } => self.open_file(&hosted, &envelope, session, ino, &read).await,
            Read::Close { ino } => self.close_file(&hosted, session, ino).await,
            Read::GetLock { ino, wait: true, .. } => {
                hosted.shared.lock_waiters.add(ino, session);
                self.answer(&hosted, &envelope, session, &read).await
            }
            _ => self.answer(&hosted, &envelope, session, &read).await,
        }
    }

    fn asked(&self, envelope: &Envelope, partition: PartitionId, read: &Read) -> Result<Arc<Hosted>, Refusal> {
        if partition.0 != 0 && matches!(read, Read::StatFs) {
            let hosted = self.hosted(partition).filter(|h| h.volume == envelope.volume);
            return hosted.ok_or_else(|| self.wrong_range(envelope.volume));
        }
        self.owner(envelope.volume, read.route())
    }

    async fn answer(
        &self,
        hosted: &Hosted,
        envelope: &Envelope,
        session: SessionId,
        read: &Read,
    ) -> Result<ReadReply, Refusal> {
        let patience = (Instant::now() + LOCKED_BUDGET).min(deadline(envelope));
        loop {
            let unlocked = hosted.shared.unlocked();
            let answer = match hosted.group.read_leased(|m| m.read(session, read)) {
                Some(answer) => answer,
                None => {
                    hosted.barrier().await?;
                    hosted.group.read(|m| m.read(session, read))
                }
            };
            match answer {
                Err(FsError::Conflict) if Instant::now() < patience => {
                    let _ = tokio::time::timeout(Duration::from_millis(5), unlocked).await;
                }
                Err(FsError::WrongRange) => return Err(self.wrong_range(hosted.volume)),
                other => return Ok(other?),
            }
        }
    }

    async fn open_file(
        &self,
        hosted: &Hosted,
        envelope: &Envelope,
        session: SessionId,
        ino: Ino,
        read: &Read,
    ) -> Result<ReadReply, Refusal> {
        // Into the table first: an unlink that is decided after our read must see it.
        hosted.holders.lock().open(session, ino);
        let mut reply = self.answer(hosted, envelope, session, read).await;
        if matches!(&reply, Err(r) if r.error == FsError::NotAttached) && session.0 != 0 {
            self.attach(hosted, session, envelope.token).await?;
            // Again: a change of leadership in between would have emptied the table.
            hosted.holders.lock().open(session, ino);
            reply = self.answer(hosted, envelope, session, read).await;
        }
        // A failed open keeps its entry: an earlier open of the same session may stand behind it, and asking once too
        // often is harmless.
        reply
    }

    async fn close_file(&self, hosted: &Hosted, session: SessionId, ino: Ino) -> Result<ReadReply, Refusal> {
        hosted.holders.lock().close(session, ino);
        let held = hosted.group.read(|m| Ok::<_, FsError>(m.partition()?.must_log_close(session, ino)))?;
        if held {
            let pin = Internal::Pin { session, held: Vec::new(), released: vec![ino] };
            match hosted.internal(pin, Hlc(0)).await {
                Ok(_) => hosted.slow_wake.notify_one(),
                // The session is gone and its pins with it.
                Err(r) if matches!(r.error, FsError::Stale | FsError::NotAttached) => {}
                Err(r) => return Err(r),
            }
        }
        Ok(ReadReply::Closed)
    }

    /// Attributes by a linearizable read anywhere in the volume (ancestry checks).
    pub(crate) async fn parent_of(self: &Arc<Self>, volume: fusefs_types::VolumeId, ino: Ino) -> FsResult<Ino> {
        let read = Read::GetAttr { ino };
        match self.ask(volume, &read).await? {
            ReadReply::Attr(attr) => Ok(attr.parent),
            _ => Err(FsError::Io),
        }
    }
}
