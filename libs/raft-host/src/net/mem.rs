//! A seeded network in memory: delay, loss, duplication, full and one-way partitions. Under a current-thread runtime
//! with paused time a seed replays.

use super::{NetError, PeerHandler, PeerNet, PeerReply, PeerRequest, codec};
use async_trait::async_trait;
use fusefs_types::{NodeId, cluster::Member};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::time::Instant;

/// Behaviour of a [`MemNet`].
#[derive(Clone, Debug)]
pub struct MemNetSettings {
    /// Shortest one-way delay.
    pub delay_min: Duration,
    /// Longest one-way delay.
    pub delay_max: Duration,
    /// Lost messages per million, each way.
    pub loss_ppm: u32,
    /// Requests delivered twice, per million.
    pub duplicate_ppm: u32,
}

impl Default for MemNetSettings {
    fn default() -> Self {
        MemNetSettings {
            delay_min: Duration::from_micros(50),
            delay_max: Duration::from_micros(500),
            loss_ppm: 0,
            duplicate_ppm: 0,
        }
    }
}

struct State {
    rng: u64,
    settings: MemNetSettings,
    handlers: BTreeMap<NodeId, Weak<dyn PeerHandler>>,
    /// (from, to) pairs that lose everything.
    cut: BTreeSet<(NodeId, NodeId)>,
    delivered: u64,
}

/// The network. Clones share it.
#[derive(Clone)]
pub struct MemNet(Arc<Mutex<State>>);

impl State {
    fn next(&mut self) -> u64 {
        self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn chance(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.next() % 1_000_000 < u64::from(ppm)
    }

    fn delay(&mut self) -> Duration {
        let (min, max) = (self.settings.delay_min, self.settings.delay_max.max(self.settings.delay_min));
        let spread = u64::try_from((max - min).as_nanos()).unwrap_or(0);
        min + Duration::from_nanos(if spread == 0 { 0 } else { self.next() % spread })
    }
}

impl MemNet {
    /// A network whose chances follow `seed`.
    #[must_use]
    pub fn new(seed: u64, settings: MemNetSettings) -> Self {
        MemNet(Arc::new(Mutex::new(State {
            rng: seed,
            settings,
            handlers: BTreeMap::new(),
            cut: BTreeSet::new(),
            delivered: 0,
        })))
    }

    /// The sending side of one node.
    #[must_use]
    pub fn endpoint(&self, node: NodeId) -> Arc<dyn PeerNet> {
        Arc::new(Endpoint { net: self.clone(), node })
    }

    /// Connects the receiving side of a node; the newest registration counts.
    pub fn register(&self, node: NodeId, handler: &Arc<dyn PeerHandler>) {
        self.0.lock().handlers.insert(node, Arc::downgrade(handler));
    }

    /// Takes a node off the network (a dead process).
    pub fn unregister(&self, node: NodeId) {
        self.0.lock().handlers.remove(&node);
    }

    /// Loses everything from `from` to `to`; the other direction is untouched.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.0.lock().cut.insert((from, to));
    }

    /// Cuts one node off from all others, both ways.
    pub fn isolate(&self, node: NodeId, others: &[NodeId]) {
        for other in others.iter().filter(|o| **o != node) {
            self.cut(node, *other);
            self.cut(*other, node);
        }
    }

    /// Ends all partitions.
    pub fn heal(&self) {
        self.0.lock().cut.clear();
    }

    /// Changes delay, loss and duplication.
    pub fn set(&self, settings: MemNetSettings) {
        self.0.lock().settings = settings;
    }

    /// Requests delivered so far.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.0.lock().delivered
    }

    /// One way: `Some(delay)` when the message arrives.
    fn leg(&self, from: NodeId, to: NodeId) -> Option<Duration> {
        let mut st = self.0.lock();
        let delay = st.delay();
        let ppm = st.settings.loss_ppm;
        let lost = st.chance(ppm) || st.cut.contains(&(from, to));
        if lost { None } else { Some(delay) }
    }

    fn handler(&self, to: NodeId) -> Option<Arc<dyn PeerHandler>> {
        let mut st = self.0.lock();
        st.delivered += 1;
        st.handlers.get(&to).and_then(Weak::upgrade)
    }

    async fn deliver(&self, from: NodeId, to: NodeId, request: PeerRequest) -> Option<PeerReply> {
        let delay = self.leg(from, to)?;
        tokio::time::sleep_until(Instant::now() + delay).await;
        let handler = self.handler(to)?;
        let reply = handler.handle(from, request).await;
        let back = self.leg(to, from)?;
        tokio::time::sleep_until(Instant::now() + back).await;
        // Through the wire encoding, so that the simulation exercises it.
        codec::decode_reply(codec::encode_reply(&reply)).ok()
    }
}

struct Endpoint {
    net: MemNet,
    node: NodeId,
}

#[async_trait]
impl PeerNet for Endpoint {
    async fn call(&self, to: &Member, request: PeerRequest) -> Result<PeerReply, NetError> {
        let bytes = codec::encode_request(&request);
        let copy =
            || codec::decode_request(request.group.0, request.to.0, bytes.clone()).map_err(|e| NetError(e.to_string()));
        let (net, from, node) = (self.net.clone(), self.node, to.node);
        if self.net.0.lock().handlers.get(&node).is_none_or(|h| h.strong_count() == 0) {
            // A dead process refuses the connection after one round trip.
            let delay = self.net.0.lock().delay();
            tokio::time::sleep_until(Instant::now() + delay).await;
            return Err(NetError("connection refused".into()));
        }
        let twice = {
            let mut st = self.net.0.lock();
            let ppm = st.settings.duplicate_ppm;
            st.chance(ppm)
        };
        if twice {
            let (net, request) = (net.clone(), copy()?);
            tokio::spawn(async move { net.deliver(from, node, request).await });
        }
        // The receiver finishes what it began even if the caller gives up.
        let (request, serving) = (copy()?, net);
        let served = tokio::spawn(async move { serving.deliver(from, node, request).await });
        match served.await {
            Ok(Some(reply)) => Ok(reply),
            // Lost: the caller's own timeout decides when to give up.
            _ => std::future::pending().await,
        }
    }
}
