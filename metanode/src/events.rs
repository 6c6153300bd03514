//! Streams to clients: one per (session, metanode), each carrying one logical stream per partition (PROTOCOL 45).

use fusefs_types::{
    SessionId,
    stream::{ServerBody, ServerEvent},
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use tokio::sync::mpsc;

/// Events waiting for one client; a slower one is cut off and comes back.
const QUEUE: usize = 256;

struct Stream {
    /// Which stream of the session; a newer one replaces an older one.
    number: u64,
    next: u64,
    to: mpsc::Sender<ServerEvent>,
}

/// All streams of this node.
#[derive(Default)]
pub(crate) struct Events {
    streams: Mutex<(u64, BTreeMap<SessionId, Stream>)>,
}

impl Events {
    /// Registers a session's stream; the receiver gets Hello first.
    pub(crate) fn open(&self, session: SessionId) -> (u64, mpsc::Receiver<ServerEvent>) {
        let (to, from) = mpsc::channel(QUEUE);
        let mut all = self.streams.lock();
        all.0 += 1;
        let number = all.0;
        let _ = to.try_send(ServerEvent { id: 1, body: ServerBody::Hello });
        all.1.insert(session, Stream { number, next: 2, to });
        (number, from)
    }
    /// The stream broke.
    pub(crate) fn close(&self, session: SessionId, number: u64) {
        let mut all = self.streams.lock();
        if all.1.get(&session).is_some_and(|s| s.number == number) {
            all.1.remove(&session);
        }
    }
    /// Sends to a session; Some(stream number) when it has a stream that takes it.
    pub(crate) fn send(&self, session: SessionId, body: ServerBody) -> Option<u64> {
        let mut all = self.streams.lock();
        let stream = all.1.get_mut(&session)?;
        let event = ServerEvent { id: stream.next, body };
        if stream.to.try_send(event).is_err() {
            all.1.remove(&session);
            return None;
        }
        stream.next += 1;
        Some(stream.number)
    }
    /// Number of the newest stream.
    pub(crate) fn newest(&self) -> u64 {
        self.streams.lock().0
    }
    /// Every session with a stream, and its number.
    pub(crate) fn all(&self) -> BTreeMap<SessionId, u64> {
        self.streams.lock().1.iter().map(|(session, s)| (*session, s.number)).collect()
    }
    /// Number of the session's stream.
    pub(crate) fn number(&self, session: SessionId) -> Option<u64> {
        self.streams.lock().1.get(&session).map(|s| s.number)
    }
    /// Streams open.
    pub(crate) fn len(&self) -> usize {
        self.streams.lock().1.len()
    }
}
