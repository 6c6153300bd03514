//! Messages of other replicas.

use super::Inner;
use crate::{
    api::Machine,
    checkpoint,
    disk::DiskFile,
    machine::blocking,
    net::{PeerAnswer, PeerBody, SnapshotChunk},
    raft::{AppendReply, AppendRequest, Vote, VoteRequest},
};
use openraft::Snapshot;
use std::{io, sync::Arc};

/// A checkpoint on its way in.
pub(crate) struct Receiving {
    id: String,
    file: Arc<dyn DiskFile>,
    next: u64,
    /// Installed; a sender that missed the answer asks again.
    done: Option<Vote>,
}

impl<M: Machine> Inner<M> {
    pub(crate) async fn serve(&self, body: PeerBody) -> PeerAnswer {
        if let Some(why) = self.stopped() {
            return PeerAnswer::Refused(format!("replica stopped: {why}"));
        }
        match body {
            PeerBody::Ping => PeerAnswer::Pong,
            PeerBody::Append(request) => self.serve_append(request).await,
            PeerBody::Vote(request) => self.serve_vote(request).await,
            PeerBody::PreVote(ask) => {
                let (granted, term) = self.pre_vote(&ask);
                PeerAnswer::PreVote(granted, term)
            }
            PeerBody::Snapshot(chunk) => self.serve_snapshot(chunk).await.unwrap_or_else(|e| {
                tracing::warn!("group {}: receiving a snapshot: {e}", self.key.group);
                PeerAnswer::Refused(e.to_string())
            }),
        }
    }

    async fn serve_append(&self, request: AppendRequest) -> PeerAnswer {
        let upto = request.entries.last().map(|e| e.log_id.index).or(request.prev_log_id.map(|id| id.index));
        let reply = match self.raft.append_entries(request).await {
            Ok(reply) => reply,
            Err(e) => return PeerAnswer::Refused(e.to_string()),
        };
        if !matches!(reply, AppendReply::HigherVote(_)) && !self.heard_leader() {
            // An acknowledgement would lend the sender a lease that the own campaign does not respect.
            return PeerAnswer::Refused("this replica is about to campaign".into());
        }
        if matches!(reply, AppendReply::Success | AppendReply::PartialSuccess(_)) {
            // Nobody hears that these entries are here before they are on the disk.
            let gate = self.links.gate(upto);
            if gate > 0
                && let Err(e) = self.log.flushed(gate).await
            {
                return PeerAnswer::Refused(e.to_string());
            }
        }
        PeerAnswer::Append(reply)
    }

    async fn serve_vote(&self, request: VoteRequest) -> PeerAnswer {
        let term = request.vote.leader_id.term;
        match self.raft.vote(request).await {
            Ok(reply) => {
                if reply.vote_granted {
                    // Before the candidate hears of it.
                    self.voted_away(term);
                    self.granted_vote();
                }
                PeerAnswer::Vote(reply)
            }
            Err(e) => PeerAnswer::Refused(e.to_string()),
        }
    }

    /// Takes one chunk; the sender is told what to send next, so a broken transfer goes on where it was.
    async fn serve_snapshot(&self, chunk: SnapshotChunk) -> io::Result<PeerAnswer> {
        let mut slot = self.receiving.lock().await;
        let _ = self.heard_leader(); // a transfer lends no lease
        let name = checkpoint::receive_name(self.key);
        if slot.as_ref().is_none_or(|r| r.id != chunk.meta.snapshot_id) {
            let (disk, name) = (Arc::clone(&self.disk), name.clone());
            let file = blocking(&self.disk, move || disk.create(&name)).await??;
            *slot = Some(Receiving { id: chunk.meta.snapshot_id.clone(), file, next: 0, done: None });
        }
        let Some(receiving) = slot.as_mut() else { return Err(io::Error::other("no transfer")) };
        if let Some(vote) = receiving.done {
            return Ok(PeerAnswer::SnapshotDone(vote));
        }
        let len = chunk.data.len() as u64;
        let fits = chunk.offset == receiving.next && chunk.offset + len <= chunk.total;
        if len == 0 || !fits || crc32c::crc32c(&chunk.data) != chunk.crc {
            return Ok(PeerAnswer::SnapshotNext(receiving.next));
        }
        let (file, data, offset) = (Arc::clone(&receiving.file), chunk.data.clone(), chunk.offset);
        blocking(&self.disk, move || file.write_at(offset, &data)).await??;
        receiving.next += len;
        if receiving.next < chunk.total {
            return Ok(PeerAnswer::SnapshotNext(receiving.next));
        }
        let file = Arc::clone(&receiving.file);
        match self.finish_snapshot(chunk, file, name).await {
            Ok(PeerAnswer::SnapshotDone(vote)) => {
                receiving.done = Some(vote);
                Ok(PeerAnswer::SnapshotDone(vote))
            }
            other => {
                *slot = None;
                other
            }
        }
    }

    async fn finish_snapshot(
        &self,
        chunk: SnapshotChunk,
        file: Arc<dyn DiskFile>,
        name: String,
    ) -> io::Result<PeerAnswer> {
        let verifying = blocking(&self.disk, move || {
            file.sync()?;
            checkpoint::verify(file)
        });
        let (meta, key, snapshot) = match verifying.await? {
            Ok(found) => found,
            Err(e) => {
                tracing::warn!("group {}: received snapshot is damaged, starting again: {e}", self.key.group);
                return Ok(PeerAnswer::SnapshotNext(0));
            }
        };
        if key.group != self.key.group || meta.last_log_id != chunk.meta.last_log_id {
            return Err(io::Error::other("the snapshot is not what its meta data says"));
        }
        let (disk, mine, m) = (Arc::clone(&self.disk), self.key, meta.clone());
        blocking(&self.disk, move || checkpoint::publish(disk.as_ref(), mine, &m, &name)).await??;
        let snapshot = Snapshot { meta, snapshot: Box::new(snapshot) };
        let installed = self.raft.install_full_snapshot(chunk.vote, snapshot).await.map_err(io::Error::other)?;
        let _ = self.heard_leader();
        Ok(PeerAnswer::SnapshotDone(installed.vote))
    }
}
