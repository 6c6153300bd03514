//! A client's event stream, without gRPC: who may open it, and what its answers do.

use crate::node::Metanode;
use fusefs_types::{
    FsError, Hlc, Ino, SessionId, VolumeId,
    auth::Principal,
    ops::{Envelope, Refusal},
    stream::{ClientBody, ServerEvent},
    txn::Internal,
};
use std::{collections::BTreeSet, sync::Arc};
use tokio::sync::mpsc;

/// An open stream; dropping it unregisters.
pub struct EventStream {
    node: Arc<Metanode>,
    /// Session that listens.
    pub session: SessionId,
    volume: VolumeId,
    number: u64,
    /// Events for the client.
    pub events: mpsc::Receiver<ServerEvent>,
}

/// The client's side of the same stream.
#[derive(Clone)]
pub struct EventAnswers {
    node: Arc<Metanode>,
    session: SessionId,
    volume: VolumeId,
}

impl Metanode {
    /// Registers a session's stream.
    pub fn open_stream(self: &Arc<Self>, envelope: &Envelope) -> Result<EventStream, Refusal> {
        let (session, volume) = match self.admit(envelope)? {
            Principal::Session(session, volume) => (session, volume),
            Principal::Cluster => (envelope.session, envelope.volume),
        };
        if session.0 == 0 {
            return Err(FsError::Invalid.into());
        }
        let (number, events) = self.events.open(session);
        // Questions that waited for this session go out now.
        self.all().iter().filter(|h| h.volume == volume).for_each(|h| h.slow_wake.notify_one());
        Ok(EventStream { node: self.clone(), session, volume, number, events })
    }
}

impl EventStream {
    /// Handle for what the client says.
    pub fn answers(&self) -> EventAnswers {
        EventAnswers { node: self.node.clone(), session: self.session, volume: self.volume }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.node.events.close(self.session, self.number);
    }
}

impl EventAnswers {
    /// Takes one event of the client. An answer that finds no leader is dropped: the next leader asks again.
    pub async fn take(&self, body: ClientBody) {
        let ClientBody::Holders { group, term, asked, held } = body else { return };
        let Some(hosted) = self.node.hosted(group).filter(|h| h.volume == self.volume) else { return };
        if hosted.lead() != Ok(term) || asked.is_empty() {
            return;
        }
        let held: BTreeSet<Ino> = held.into_iter().filter(|i| asked.contains(i)).collect();
        let released: Vec<Ino> = asked.into_iter().filter(|i| !held.contains(i)).collect();
        // What it has said before need not be written again.
        let held: Vec<Ino> = hosted.group.read(|m| match m.partition() {
            Ok(p) => held.into_iter().filter(|i| !p.is_held_by(self.session, *i)).collect(),
            Err(_) => held.into_iter().collect(),
        });
        if held.is_empty() && released.is_empty() {
            return;
        }
        let pin = Internal::Pin { session: self.session, held, released };
        if let Err(r) = hosted.internal(pin, Hlc(0)).await {
            tracing::debug!(session = %self.session, error = %r.error, "answer of a holder not recorded");
        }
        hosted.slow_wake.notify_one();
    }
}
