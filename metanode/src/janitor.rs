//! The leader's slow background work: orphans that nobody holds, bodies of dead objects (PROTOCOL 22, 32).

use crate::{
    group::{Counters, Hosted},
    node::Metanode,
};
use fusefs_meta_state::{Work, gc::orphans::ORPHAN_BATCH};
use fusefs_types::{FsError, FsResult, Hlc, Ino, ObjectId, SessionId, stream::ServerBody, txn::Internal};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::Instant;

/// Questions of one reign: which stream of a session was asked about what, so that nobody is asked twice.
#[derive(Default)]
struct Asked {
    term: u64,
    by_session: BTreeMap<SessionId, (u64, BTreeSet<Ino>)>,
    /// Streams that were asked about what their sessions had said to hold.
    again: BTreeMap<SessionId, u64>,
    /// All streams up to this one were.
    newest: u64,
}

impl Asked {
    fn enter(&mut self, term: u64) {
        if self.term != term {
            *self = Asked { term, ..Asked::default() };
        }
    }
    /// Those not yet asked on this stream.
    fn fresh(&mut self, session: SessionId, stream: u64, inos: &[Ino]) -> Vec<Ino> {
        let entry = self.by_session.entry(session).or_default();
        if entry.0 != stream {
            *entry = (stream, BTreeSet::new());
        }
        // What is not asked for any more was answered.
        entry.1.retain(|i| inos.contains(i));
        inos.iter().copied().filter(|i| !entry.1.contains(i)).collect()
    }
    fn note(&mut self, session: SessionId, inos: &[Ino]) {
        if let Some(entry) = self.by_session.get_mut(&session) {
            entry.1.extend(inos);
        }
    }
}

impl Metanode {
    /// Runs until the replica or the node stops.
    pub(crate) async fn tend(self: Arc<Self>, hosted: Arc<Hosted>) {
        let mut stopping = self.stopping();
        let tick = Duration::from_millis(self.settings.background_ms.max(10));
        let mut asked = Asked::default();
        loop {
            tokio::select! {
                biased;
                _ = stopping.wait_for(|s| *s) => return,
                () = hosted.stop.cancelled() => return,
                () = hosted.slow_wake.notified() => {}
                () = tokio::time::sleep_until(Instant::now() + tick) => {}
            }
            let Ok(term) = hosted.lead() else { continue };
            asked.enter(term);
            tokio::select! {
                biased;
                _ = stopping.wait_for(|s| *s) => return,
                () = hosted.stop.cancelled() => return,
                () = self.round(&hosted, term, &mut asked) => {}
            }
        }
    }

    /// Tells sessions that wait for locks when one goes; runs until the replica or the node stops. A session without a
    /// stream finds out by asking.
    pub(crate) async fn tell_unlocked(self: Arc<Self>, hosted: Arc<Hosted>) {
        let mut stopping = self.stopping();
        loop {
            tokio::select! {
                biased;
                _ = stopping.wait_for(|s| *s) => return,
                () = hosted.stop.cancelled() => return,
                () = hosted.shared.lock_waiters.wake.notified() => {}
            }
            for (session, inos) in hosted.shared.lock_waiters.take() {
                let event = ServerBody::LocksFreed { group: hosted.id, inos: inos.into_iter().collect() };
                if self.events.send(session, event).is_some() {
                    Counters::add(&hosted.counters.lock_events);
                }
            }
        }
    }

    async fn round(&self, hosted: &Hosted, term: u64, asked: &mut Asked) {
        self.ask_again(hosted, term, asked);
        let work = hosted.group.read(|m| m.partition().map(|p| p.gc_work()).unwrap_or_default());
        for item in work {
            let result = match item {
                Work::AskHolders { session, inos } => self.ask_holders(hosted, term, asked, session, inos).await,
                Work::FreeOrphans(inos) => {
                    let freed = hosted.internal(Internal::FreeOrphans { inos }, Hlc(0)).await;
                    // The next batch waits. After an error the tick comes again: a refusal may take no time at all.
                    if freed.is_ok() {
                        hosted.slow_wake.notify_one();
                    }
                    freed.map(|_| ()).map_err(|r| r.error)
                }
                Work::DeleteObjects(dead) => self.delete_dead(hosted, dead).await,
                Work::SendTxn(_) | Work::CheckAncestry { .. } => Ok(()),
            };
            if let Err(error) = result {
                tracing::debug!(partition = %hosted.id, %error, "background work waits");
            }
        }
    }

    /// A session comes back on a new stream, perhaps with another process that does not hold any more what the one before
    /// it claimed to hold. Once per stream and reign.
    fn ask_again(&self, hosted: &Hosted, term: u64, asked: &mut Asked) {
        let newest = self.events.newest();
        if asked.newest == newest {
            return;
        }
        let streams = self.events.all();
        let mut claims = hosted.group.read(|m| m.partition().map(|p| p.claims()).unwrap_or_default());
        let mut complete = true;
        asked.again.retain(|session, _| streams.contains_key(session));
        for (session, stream) in streams {
            if asked.again.get(&session) == Some(&stream) {
                continue;
            }
            let sent = claims.remove(&session).unwrap_or_default().chunks(ORPHAN_BATCH).all(|inos| {
                let question = ServerBody::HoldersAsked { group: hosted.id, term, inos: inos.to_vec() };
                self.events.send(session, question) == Some(stream)
            });
            complete &= sent;
            if sent {
                asked.again.insert(session, stream);
            }
        }
        if complete {
            asked.newest = newest;
        }
    }

    /// Answers for sessions of which this leader has seen every open; the others are asked on their stream. A session
    /// without a stream is asked when it comes back.
    async fn ask_holders(
        &self,
        hosted: &Hosted,
        term: u64,
        asked: &mut Asked,
        session: SessionId,
        inos: Vec<Ino>,
    ) -> FsResult<()> {
        let (known, unknown): (Vec<Ino>, Vec<Ino>) = {
            let holders = hosted.holders.lock();
            inos.into_iter().partition(|i| holders.surely_not(session, *i))
        };
        if let Some(stream) = self.events.number(session) {
            let fresh = asked.fresh(session, stream, &unknown);
            let question = ServerBody::HoldersAsked { group: hosted.id, term, inos: fresh.clone() };
            if !fresh.is_empty() && self.events.send(session, question) == Some(stream) {
                asked.note(session, &fresh);
            }
        }
        if known.is_empty() {
            return Ok(());
        }
        let pin = Internal::Pin { session, held: Vec::new(), released: known };
        hosted.internal(pin, Hlc(0)).await.map_err(|r| r.error)?;
        hosted.slow_wake.notify_one();
        Ok(())
    }

    async fn delete_dead(&self, hosted: &Hosted, dead: Vec<(ObjectId, Hlc)>) -> FsResult<()> {
        let grace = self.settings.object_grace_ms.saturating_mul(1_000_000);
        let now = self.clock.wall_ns();
        let due: Vec<ObjectId> =
            dead.into_iter().take_while(|(_, died)| died.0.saturating_add(grace) <= now).map(|(id, _)| id).collect();
        if due.is_empty() {
            return Ok(());
        }
        // A deposed leader must not delete by an old list; the records are final, so this is only economy.
        hosted.barrier().await.map_err(|r| r.error)?;
        self.delete_bodies(hosted.volume, &due).await?;
        let count = due.len() as u64;
        hosted
            .internal(Internal::ObjectsDeleted { objects: due }, Hlc(0))
            .await
            .map_err(|r: fusefs_types::ops::Refusal| r.error)?;
        hosted.counters.objects_deleted.fetch_add(count, Ordering::Relaxed);
        hosted.slow_wake.notify_one();
        Ok::<(), FsError>(())
    }
}
