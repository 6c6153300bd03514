//! openraft's network on top of [`PeerNet`].
//!
//! A leader hears "stored up to i" from a follower only after its own disk holds i too: openraft counts the leader's
//! copy at once (see `store.rs`), so this wait is what makes a commit mean "on a quorum's disks" while the leader's
//! sync runs in parallel with replication.

use super::{PeerAnswer, PeerBody, PeerNet, PeerReply, PeerRequest, SnapshotChunk};
use crate::{
    checkpoint::SnapshotFile,
    disk::Disk,
    log::{Log, format::Key},
    machine::blocking,
    raft::{AppendReply, AppendRequest, PeerNode, SnapshotMeta, Types, Vote, VoteReply, VoteRequest},
};
use bytes::Bytes;
use fusefs_types::{Clock, NodeId, ReplicaId, cluster::Member, limits};
use openraft::{
    AnyError, EntryPayload, OptionalSend, Snapshot,
    error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory},
    raft::SnapshotResponse,
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};
use tokio::time::Instant;

/// An unreachable follower is tried again this often.
const BACKOFF: Duration = Duration::from_millis(50);
/// One snapshot chunk. Installing may take longer: then the sender asks again and is told when it is done.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(5);
/// Failed chunks in one transfer before openraft is told. It begins again where the receiver is.
const CHUNK_FAILURES_MAX: u32 = 20;

/// Addresses learnt after a membership was written (a node that moved to another port).
#[derive(Default)]
pub(crate) struct Addresses(pub Mutex<BTreeMap<NodeId, String>>);

impl Addresses {
    pub(crate) fn resolve(&self, member: &Member) -> Member {
        match self.0.lock().get(&member.node) {
            Some(addr) => Member { addr: addr.clone(), ..member.clone() },
            None => member.clone(),
        }
    }
}

/// What all links of one group share.
pub(crate) struct Links {
    pub net: Arc<dyn PeerNet>,
    pub addresses: Arc<Addresses>,
    pub log: Log,
    pub key: Key,
    pub disk: Arc<dyn Disk>,
    /// When the last append that a replica accepted was sent to it: for patience, and on CLOCK_BOOTTIME for leases.
    pub acked: Mutex<BTreeMap<u64, (Instant, u64)>>,
    /// Clocks.
    pub clock: Arc<dyn Clock>,
    /// See [`crate::api::Planted`].
    pub ack_before_sync: bool,
}

impl Links {
    /// The sequence number that must be durable before anybody hears of entries up to `upto`; 0 = nothing to wait for.
    pub(crate) fn gate(&self, upto: Option<u64>) -> u64 {
        upto.filter(|_| !self.ack_before_sync).map_or(0, |index| self.log.gate(self.key, index))
    }

    pub(crate) async fn call(&self, to: &Member, body: PeerBody) -> Result<PeerReply, super::NetError> {
        let request = PeerRequest { group: self.key.group, to: to.replica, body };
        self.net.call(&self.addresses.resolve(to), request).await
    }
}

/// Makes links; openraft asks for one per peer and ReadIndex round, so this copies two small values.
#[derive(Clone)]
pub(crate) struct Factory(pub Arc<Links>);

impl RaftNetworkFactory<Types> for Factory {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &PeerNode) -> Link {
        Link { links: Arc::clone(&self.0), to: node.member(target) }
    }
}

/// One group's way to one replica.
pub(crate) struct Link {
    links: Arc<Links>,
    to: Member,
}

type Rpc<T> = Result<T, RPCError<u64, PeerNode, RaftError<u64>>>;

fn unreachable<E: std::error::Error>(e: &E) -> RPCError<u64, PeerNode, RaftError<u64>> {
    RPCError::Unreachable(Unreachable::new(&AnyError::error(e.to_string())))
}

impl Link {
    async fn call(&self, body: PeerBody) -> Result<PeerAnswer, super::NetError> {
        match self.links.call(&self.to, body).await?.0 {
            PeerAnswer::Refused(why) => Err(super::NetError(why)),
            answer => Ok(answer),
        }
    }

    async fn chunk(&self, chunk: SnapshotChunk) -> Result<PeerAnswer, super::NetError> {
        match tokio::time::timeout(CHUNK_TIMEOUT, self.call(PeerBody::Snapshot(chunk))).await {
            Ok(result) => result,
            Err(_) => Err(super::NetError("snapshot chunk timed out".into())),
        }
    }

    /// Sends the file from where the receiver wants it; answers the receiver's vote.
    async fn send_file(&self, vote: Vote, meta: &SnapshotMeta, file: SnapshotFile) -> Result<Vote, super::NetError> {
        let mut failures = 0;
        let (mut offset, mut ask) = (0, true);
        loop {
            let len = if ask { 0 } else { (file.len - offset).min(limits::SNAPSHOT_CHUNK_BYTES as u64) };
            let source = file.clone();
            let data = blocking(&self.links.disk, move || {
                let mut buf = vec![0; len as usize];
                source.file.read_at(offset, &mut buf).map(|()| Bytes::from(buf))
            });
            let data = data.await.and_then(|r| r).map_err(|e| super::NetError(e.to_string()))?;
            let crc = crc32c::crc32c(&data);
            let chunk = SnapshotChunk { vote, meta: meta.clone(), total: file.len, offset, crc, data };
            match self.chunk(chunk).await {
                Ok(PeerAnswer::SnapshotNext(next)) if next < file.len => {
                    if !ask && next <= offset {
                        failures += 1;
                    }
                    (offset, ask) = (next, false);
                }
                Ok(PeerAnswer::SnapshotDone(vote)) => return Ok(vote),
                Ok(_) => return Err(super::NetError("unexpected answer to a snapshot chunk".into())),
                Err(e) => {
                    failures += 1;
                    if failures > CHUNK_FAILURES_MAX {
                        return Err(e);
                    }
                    (offset, ask) = (0, true);
                    tokio::time::sleep_until(Instant::now() + 2 * BACKOFF).await;
                }
            }
            if failures > CHUNK_FAILURES_MAX {
                return Err(super::NetError("the receiver makes no progress".into()));
            }
        }
    }
}

impl RaftNetwork<Types> for Link {
    async fn append_entries(&mut self, mut rpc: AppendRequest, _option: RPCOption) -> Rpc<AppendReply> {
        for entry in &mut rpc.entries {
            if let EntryPayload::Normal(batch) = &mut entry.payload {
                batch.waiters = None;
            }
        }
        let upto = rpc.entries.last().map(|e| e.log_id.index).or(rpc.prev_log_id.map(|id| id.index));
        let gate = self.links.gate(upto);
        let sent = (Instant::now(), self.links.clock.boot_ns());
        match self.call(PeerBody::Append(rpc)).await.map_err(|e| unreachable(&e))? {
            PeerAnswer::Append(reply) => {
                if !matches!(reply, AppendReply::HigherVote(_)) {
                    self.links.acked.lock().insert(self.to.replica.0, sent);
                }
                if gate > 0 && matches!(reply, AppendReply::Success | AppendReply::PartialSuccess(_)) {
                    self.links.log.flushed(gate).await.map_err(|e| unreachable(&e))?;
                }
                Ok(reply)
            }
            _ => Err(unreachable(&super::NetError("unexpected answer to an append".into()))),
        }
    }

    async fn vote(&mut self, rpc: VoteRequest, _option: RPCOption) -> Rpc<VoteReply> {
        match self.call(PeerBody::Vote(rpc)).await.map_err(|e| unreachable(&e))? {
            PeerAnswer::Vote(reply) => Ok(reply),
            _ => Err(unreachable(&super::NetError("unexpected answer to a vote".into()))),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<Types, Fatal<u64>>> {
        let sending = self.send_file(vote, &snapshot.meta, *snapshot.snapshot);
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = sending => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(e) => Err(StreamingError::Unreachable(Unreachable::new(&AnyError::error(e.to_string())))),
            },
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}

/// The other members.
pub(crate) fn others(members: impl Iterator<Item = Member>, me: ReplicaId) -> Vec<Member> {
    members.filter(|m| m.replica != me).collect()
}
