//! The network between clients, metanodes and the master: seeded delay, loss, repetition and partitions of plain calls.
//! Raft has its own ([`fusefs_raft_host::MemNet`]); the nemesis cuts both.

use crate::sim::{
    counts::Counts,
    env::{SimRng, pause_us},
    lock,
    master::Master,
};
use async_trait::async_trait;
use fusefs_meta_client::{CallError, EventStream, MapStream, Transport};
use fusefs_metanode::Metanode;
use fusefs_types::{
    FsError, FsResult, PartitionId, Rng, VolumeId,
    cluster::{MasterCall, MasterRefusal, MasterReply, NodeCall, NodeReply},
    ids::OpId,
    ops::{Envelope, Read, ReadReply, Refusal, Reply, ReplyHead, Write, WriteReply},
    txn::{PartReply, TxnMessage},
};
use futures::{StreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Who calls or is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A metanode.
    Node(usize),
    /// A mount.
    Client(usize),
    /// The masters, as one.
    Master,
}

/// `host:port` of a metanode.
pub fn addr(node: usize) -> String {
    format!("node{node}:1")
}

fn who(addr: &str) -> Who {
    let number = addr.strip_prefix("node").and_then(|a| a.strip_suffix(":1")).and_then(|a| a.parse().ok());
    number.map_or(Who::Master, Who::Node)
}

/// What the network does to calls, in parts per million.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Lost messages, each way.
    pub loss_ppm: u64,
    /// Requests that arrive again, up to seconds later.
    pub repeat_ppm: u64,
}

/// A running process of a metanode.
#[derive(Clone)]
pub struct Live {
    /// Its core.
    pub core: Arc<Metanode>,
    /// Cancelled when the process dies.
    pub life: CancellationToken,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<usize, Live>,
    cut: BTreeSet<(Who, Who)>,
    weather: Weather,
    answers: BTreeMap<OpId, FsResult<WriteReply>>,
}

/// The network.
pub struct Net {
    state: Mutex<State>,
    rng: Arc<SimRng>,
    /// What happened how often.
    pub counts: Counts,
    /// The scripted masters.
    pub master: Master,
    violations: Mutex<Vec<String>>,
}

enum Leg {
    Arrives(u64),
    Lost,
}

impl Net {
    /// A network whose chances follow `seed`.
    pub fn new(seed: u64) -> Arc<Net> {
        Arc::new(Net {
            state: Mutex::default(),
            rng: SimRng::new(seed),
            counts: Counts::default(),
            master: Master::default(),
            violations: Mutex::default(),
        })
    }

    /// The sending side of a participant; calls of a dead process go nowhere.
    pub fn endpoint(self: &Arc<Self>, me: Who, life: CancellationToken) -> Arc<Endpoint> {
        Arc::new(Endpoint { net: self.clone(), me, life })
    }

    /// A metanode comes up.
    pub fn join(&self, node: usize, live: Live) {
        lock(&self.state).nodes.insert(node, live);
    }

    /// A metanode is gone.
    pub fn leave(&self, node: usize) -> Option<Live> {
        lock(&self.state).nodes.remove(&node)
    }

    /// A running metanode.
    pub fn live(&self, node: usize) -> Option<Live> {
        lock(&self.state).nodes.get(&node).cloned()
    }

    /// Loses everything from `from` to `to`.
    pub fn cut(&self, from: Who, to: Who) {
        lock(&self.state).cut.insert((from, to));
    }

    /// Ends all partitions.
    pub fn heal(&self) {
        lock(&self.state).cut.clear();
    }

    /// Changes the chances.
    pub fn set(&self, weather: Weather) {
        lock(&self.state).weather = weather;
    }

    /// Contradictions between the answers to one operation, and panics.
    pub fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    /// Notes something that must never happen.
    pub fn violation(&self, what: String) {
        lock(&self.violations).push(what);
    }

    fn chance(&self, ppm: u64) -> bool {
        ppm > 0 && self.rng.next_u64() % 1_000_000 < ppm
    }

    fn leg(&self, from: Who, to: Who) -> Leg {
        let delay = 50 + self.rng.next_u64() % 1_500;
        let (cut, loss) = {
            let state = lock(&self.state);
            (state.cut.contains(&(from, to)), state.weather.loss_ppm)
        };
        if cut || self.chance(loss) {
            return Leg::Lost;
        }
        Leg::Arrives(delay)
    }

    /// One operation has one answer, however often it is asked (PROTOCOL 15).
    fn note(&self, op: OpId, result: &Result<WriteReply, Refusal>) {
        let result = match result {
            Ok(reply) => Ok(reply.clone()),
            // The end of a session is an answer to everything; what is not errno-shaped answers nothing.
            Err(r) if r.error.code() < 1000 && r.error != FsError::Stale => Err(r.error),
            Err(_) => return,
        };
        let mut state = lock(&self.state);
        match state.answers.get(&op) {
            None => {
                state.answers.insert(op, result);
            }
            Some(first) => {
                self.counts.add("dedupe hits");
                if *first != result {
                    self.violation(format!("{op:?} was answered {first:?} and later {result:?}"));
                }
            }
        }
    }
}

/// One participant's transport.
pub struct Endpoint {
    net: Arc<Net>,
    me: Who,
    life: CancellationToken,
}

fn wrap<T>(result: Result<T, Refusal>) -> Reply<T> {
    Reply { head: ReplyHead::default(), result }
}

impl Endpoint {
    /// A lost message: the caller hears of a broken connection, or nothing until it gives up.
    async fn lost<T>(&self, what: &'static str) -> Result<T, CallError> {
        self.net.counts.add(what);
        if self.net.rng.next_u64().is_multiple_of(4) {
            return std::future::pending().await;
        }
        pause_us(1_000 + self.net.rng.next_u64() % 200_000).await;
        Err(CallError::lost("connection reset"))
    }

    async fn call<T, F, R>(&self, addr: &str, run: R) -> Result<Reply<T>, CallError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Refusal>> + Send + 'static,
        R: Fn(Live) -> F + Send + Sync + Clone + 'static,
    {
        if self.life.is_cancelled() {
            return std::future::pending().await;
        }
        let to = who(addr);
        match self.net.leg(self.me, to) {
            Leg::Lost => return self.lost("requests lost").await,
            Leg::Arrives(us) => pause_us(us).await,
        }
        let Who::Node(node) = to else { return Err(CallError::unsent("no such node")) };
        let Some(live) = self.net.live(node) else { return Err(CallError::unsent("connection refused")) };
        let repeat = lock(&self.net.state).weather.repeat_ppm;
        if self.net.chance(repeat) {
            self.net.counts.add("requests repeated");
            let (net, run, late) = (self.net.clone(), run.clone(), self.net.rng.next_u64() % 2_000_000);
            tokio::spawn(async move {
                pause_us(late).await;
                if let Some(live) = net.live(node) {
                    let _ = run(live).await;
                }
            });
        }
        // The receiver finishes what it began even if the caller gives up.
        let served = tokio::spawn(run(live.clone()));
        let result = tokio::select! {
            biased;
            () = live.life.cancelled() => return Err(CallError::lost("the process died")),
            served = served => served,
        };
        let result = result.map_err(|e| {
            if e.is_panic() {
                self.net.violation(format!("panic in a metanode: {e}"));
            }
            CallError::lost("the server failed")
        })?;
        match self.net.leg(to, self.me) {
            Leg::Lost => self.lost("replies lost").await,
            Leg::Arrives(us) => {
                pause_us(us).await;
                Ok(wrap(result))
            }
        }
    }
}

#[async_trait]
impl Transport for Endpoint {
    async fn write(&self, addr: &str, envelope: Envelope, write: &Write) -> Result<Reply<WriteReply>, CallError> {
        let (net, write) = (self.net.clone(), write.clone());
        self.call(addr, move |live| {
            let (net, envelope, write) = (net.clone(), envelope.clone(), write.clone());
            async move {
                let op = envelope.op;
                let result = live.core.write(envelope, write).await;
                if let Some(op) = op.filter(|_| !live.life.is_cancelled()) {
                    net.note(op, &result);
                }
                result
            }
        })
        .await
    }

    async fn read(
        &self,
        addr: &str,
        envelope: Envelope,
        partition: PartitionId,
        read: &Read,
    ) -> Result<Reply<ReadReply>, CallError> {
        let read = read.clone();
        self.call(addr, move |live| {
            let (envelope, read) = (envelope.clone(), read.clone());
            async move { live.core.read(envelope, partition, read).await }
        })
        .await
    }

    async fn node(&self, addr: &str, envelope: Envelope, call: &NodeCall) -> Result<Reply<NodeReply>, CallError> {
        let call = call.clone();
        self.call(addr, move |live| {
            let (envelope, call) = (envelope.clone(), call.clone());
            async move { live.core.call(envelope, call).await }
        })
        .await
    }

    async fn peer(&self, addr: &str, envelope: Envelope, message: &TxnMessage) -> Result<Reply<PartReply>, CallError> {
        let message = message.clone();
        self.call(addr, move |live| {
            let (envelope, message) = (envelope.clone(), message.clone());
            async move { live.core.peer(envelope, message).await }
        })
        .await
    }

    async fn master(
        &self,
        _: &str,
        _: Envelope,
        call: &MasterCall,
    ) -> Result<Result<MasterReply, MasterRefusal>, CallError> {
        if self.life.is_cancelled() {
            return std::future::pending().await;
        }
        match self.net.leg(self.me, Who::Master) {
            Leg::Lost => return self.lost("requests lost").await,
            Leg::Arrives(us) => pause_us(us).await,
        }
        let answer = self.net.master.handle(&self.net, call).await;
        match self.net.leg(Who::Master, self.me) {
            Leg::Lost => self.lost("replies lost").await,
            Leg::Arrives(us) => {
                pause_us(us).await;
                Ok(answer)
            }
        }
    }

    async fn events(&self, addr: &str, envelope: Envelope) -> Result<EventStream, CallError> {
        let refused = || CallError::unsent("connection refused");
        let (Who::Node(node), Leg::Arrives(us)) = (who(addr), self.net.leg(self.me, who(addr))) else {
            return Err(refused());
        };
        pause_us(us).await;
        let Live { core, life } = self.net.live(node).ok_or_else(refused)?;
        let opened = core.open_stream(&envelope).map_err(|_| refused())?;
        let (send, mut from_client) = mpsc::channel::<fusefs_types::stream::ClientEvent>(16);
        let (answers, dying) = (opened.answers(), life.clone());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = dying.cancelled() => return,
                    event = from_client.recv() => match event {
                        Some(event) => answers.take(event.body).await,
                        None => return,
                    },
                }
            }
        });
        let receive = stream::unfold((opened, life), |(mut opened, life)| async move {
            tokio::select! {
                biased;
                () = life.cancelled() => None,
                event = opened.events.recv() => event.map(|e| (Ok(e), (opened, life))),
            }
        });
        Ok(EventStream { send, receive: receive.boxed() })
    }

    async fn watch_map(&self, _: &str, _: Envelope, _: VolumeId) -> Result<MapStream, CallError> {
        let map = self.net.master.map();
        Ok(stream::once(async move { Ok(Ok(map)) }).chain(stream::pending()).boxed())
    }
}
