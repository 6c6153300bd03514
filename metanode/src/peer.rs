//! Messages between partitions: receiving a step, and finding the owner of a key wherever it is.

use crate::{
    group::{Counters, Hosted},
    maps::candidates,
    node::Metanode,
};
use fusefs_meta_state::InternalReply;
use fusefs_types::{
    FsError, FsResult, Hlc, PartitionId, RangeKey, VolumeId,
    ops::{Envelope, Read, ReadReply, Refusal},
    txn::{Internal, PartReply, TxnMessage},
};
use std::sync::Arc;

/// Tries before a call that finds nobody gives up; its caller comes again.
const TRIES: usize = 8;

/// Whether an error says only that this was not the right door, or not the right time.
fn is_elsewhere(e: FsError) -> bool {
    matches!(
        e,
        FsError::NotLeader
            | FsError::WrongRange
            | FsError::Overloaded
            | FsError::Unavailable
            | FsError::ClockSkew
            | FsError::Unauthenticated
            | FsError::WrongCluster
    )
}

impl Metanode {
    /// Executes a step of another partition's transaction.
    pub async fn peer(&self, envelope: Envelope, message: TxnMessage) -> Result<PartReply, Refusal> {
        self.admit_cluster(&envelope)?;
        let hosted = self.owner(envelope.volume, message.route())?;
        self.step(&hosted, message, envelope.hlc).await
    }

    async fn step(&self, hosted: &Hosted, message: TxnMessage, seen: Hlc) -> Result<PartReply, Refusal> {
        Counters::add(&hosted.counters.messages);
        match hosted.internal(Internal::Txn(message), seen).await {
            Ok(InternalReply::Part(reply)) => Ok(reply),
            Ok(_) => Ok(PartReply::default()),
            Err(r) if r.error == FsError::WrongRange => Err(self.wrong_range(hosted.volume)),
            Err(r) => Err(r),
        }
    }

    /// Delivers a step to the owner of its key. Err(Unavailable): nobody could be reached, come again; any other error
    /// is the participant's answer. An answer comes with the participant's stamp.
    pub(crate) async fn deliver(
        self: &Arc<Self>,
        volume: VolumeId,
        seen: Hlc,
        message: TxnMessage,
    ) -> FsResult<(PartReply, Hlc)> {
        let mut doors = Doors::new(volume, message.route());
        for _ in 0..TRIES {
            let result = match doors.next(self).await {
                Some(Door::Local(hosted)) => {
                    self.step(&hosted, message.clone(), seen).await.map(|reply| (reply, hosted.shared.last()))
                }
                Some(Door::Remote(addr)) => self.outside.peer(&addr, self.envelope(volume, seen), &message).await,
                None => Err(FsError::Unavailable.into()),
            };
            match result {
                Ok(reply) => return Ok(reply),
                Err(r) if is_elsewhere(r.error) => doors.refused(self, &r).await,
                Err(r) => return Err(r.error),
            }
        }
        Err(FsError::Unavailable)
    }

    /// Asks the owner of a key a question.
    pub(crate) async fn ask(self: &Arc<Self>, volume: VolumeId, read: &Read) -> FsResult<ReadReply> {
        let mut doors = Doors::new(volume, read.route());
        for _ in 0..TRIES {
            let envelope = self.envelope(volume, Hlc(0));
            let result = match doors.next(self).await {
                Some(Door::Local(_)) => self.read(envelope, PartitionId(0), read.clone()).await,
                Some(Door::Remote(addr)) => self.outside.read(&addr, envelope, read).await,
                None => Err(FsError::Unavailable.into()),
            };
            match result {
                Ok(reply) => return Ok(reply),
                Err(r) if is_elsewhere(r.error) => doors.refused(self, &r).await,
                Err(r) => return Err(r.error),
            }
        }
        Err(FsError::Unavailable)
    }
}

enum Door {
    Local(Arc<Hosted>),
    Remote(String),
}

/// Where to knock for a key: a local leader, the hint of the last refusal, then the members of the map in turn.
struct Doors {
    volume: VolumeId,
    key: RangeKey,
    hint: Option<String>,
    turn: usize,
}

impl Doors {
    fn new(volume: VolumeId, key: RangeKey) -> Doors {
        Doors { volume, key, hint: None, turn: 0 }
    }

    async fn next(&mut self, node: &Arc<Metanode>) -> Option<Door> {
        if let Some(hosted) = node.local(self.volume, self.key) {
            match hosted.lead() {
                Ok(_) => return Some(Door::Local(hosted)),
                Err(r) => self.hint = self.hint.take().or(r.leader),
            }
        }
        if let Some(addr) = self.hint.take() {
            return Some(Door::Remote(addr));
        }
        let mut owner = node.maps.owner(self.volume, self.key);
        if owner.is_none() {
            let _ = node.refresh_map(self.volume).await;
            owner = node.maps.owner(self.volume, self.key);
        }
        let addrs = candidates(&owner?);
        let addr = addrs.get(self.turn % addrs.len().max(1))?.clone();
        self.turn += 1;
        Some(Door::Remote(addr))
    }

    async fn refused(&mut self, node: &Arc<Metanode>, refusal: &Refusal) {
        match refusal.error {
            FsError::NotLeader if refusal.leader.is_some() => {
                self.hint.clone_from(&refusal.leader);
                node.jitter(2).await;
            }
            FsError::WrongRange => {
                let _ = node.refresh_map(self.volume).await;
                node.jitter(10).await;
            }
            _ => {
                // All members tried in vain: the map may name the wrong ones.
                if self.turn % 4 == 3 {
                    let _ = node.refresh_map(self.volume).await;
                }
                node.jitter(20 + u64::from(refusal.backoff_ms)).await;
            }
        }
    }
}
