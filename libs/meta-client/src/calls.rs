//! What every call needs: settings, waiting times, the identity in the envelopes.

use bytes::Bytes;
use fusefs_types::{ClusterId, Hlc, Rng, SessionId, Token, VolumeId, limits, ops::Envelope};
use parking_lot::RwLock;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::time::Instant;

/// How a client finds and waits for the cluster.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Master addresses, `host:port`, in any order.
    pub masters: Vec<String>,
    /// Cluster token; empty on loopback without one.
    pub credential: Bytes,
    /// How long one file-system operation waits for the cluster before EIO; None = for ever.
    pub io_timeout: Option<Duration>,
    /// How long [`crate::MetaClient::connect`] and the calls of [`crate::MasterClient`] try.
    pub master_timeout: Duration,
    /// Age of a kernel request's number before its stored reply may go: until then a thread that has read an older request
    /// may not have registered it.
    pub ack_hold: Duration,
}

/// Default of [`Settings::ack_hold`].
const ACK_HOLD: Duration = Duration::from_millis(1_500);

impl Settings {
    /// Waits for ever in operations, and a little less than the command line's 15 s for masters.
    pub fn new(masters: Vec<String>, credential: Bytes) -> Settings {
        let master_timeout = Duration::from_millis(limits::CLI_TIMEOUT_MS - 1_000);
        Settings { masters, credential, io_timeout: None, master_timeout, ack_hold: ACK_HOLD }
    }
}

/// One attempt of an operation: longer than any healthy commit, short enough to find the next leader in time.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(4);

/// Growing pauses with jitter.
pub(crate) struct Backoff {
    next: Duration,
    most: Duration,
}

impl Backoff {
    pub fn new(first_ms: u64, most_ms: u64) -> Backoff {
        Backoff { next: Duration::from_millis(first_ms), most: Duration::from_millis(most_ms) }
    }
    /// Next pause, at least `least`: half of it is random, so that clients do not return together.
    pub fn next(&mut self, rng: &dyn Rng, least: Duration) -> Duration {
        let step = self.next.min(self.most);
        self.next = (self.next * 2).min(self.most);
        let half = step / 2;
        let jitter = rng.next_u64() % (half.as_nanos() as u64).max(1);
        (half + Duration::from_nanos(jitter)).max(least)
    }
    /// Waits for the next pause, but not beyond `end`.
    pub async fn pause(&mut self, rng: &dyn Rng, least_ms: u32, end: Option<Instant>) {
        let until = Instant::now() + self.next(rng, Duration::from_millis(u64::from(least_ms)));
        tokio::time::sleep_until(end.map_or(until, |e| e.min(until))).await;
    }
}

/// Who speaks, for envelopes; shared by all calls of one client.
pub(crate) struct Identity {
    who: RwLock<Who>,
    hlc: AtomicU64,
    trace: AtomicU64,
}

/// The fixed part of an envelope.
#[derive(Clone, Debug, Default)]
pub(crate) struct Who {
    pub cluster: ClusterId,
    pub volume: VolumeId,
    pub session: SessionId,
    pub token: Token,
    pub credential: Bytes,
}

impl Identity {
    pub fn new(credential: Bytes, rng: &dyn Rng) -> Identity {
        Identity {
            who: RwLock::new(Who { credential, ..Who::default() }),
            hlc: AtomicU64::new(0),
            trace: AtomicU64::new(rng.next_u64()),
        }
    }
    pub fn set(&self, who: Who) {
        *self.who.write() = who;
    }
    pub fn who(&self) -> Who {
        self.who.read().clone()
    }
    /// Takes note of a server's clock. Ours does not matter here: servers check each other's.
    pub fn observe(&self, seen: Hlc) {
        self.hlc.fetch_max(seen.0, Ordering::Relaxed);
    }
    /// Envelope of a call that waits at most `wait`.
    pub fn envelope(&self, map_generation: u64, wait: Duration) -> Envelope {
        let who = self.who.read();
        Envelope {
            cluster: who.cluster,
            volume: who.volume,
            session: who.session,
            token: who.token,
            op: None,
            hlc: Hlc(self.hlc.load(Ordering::Relaxed)),
            map_generation,
            feature_level: crate::FEATURE_LEVEL,
            credential: who.credential.clone(),
            deadline_ms: wait.as_millis().try_into().unwrap_or(u32::MAX),
            trace: self.trace.fetch_add(1, Ordering::Relaxed),
            acks: Vec::new(),
        }
    }
}
