//! The master's orders.

use crate::{
    machine::Label,
    node::{Metanode, blob_path},
};
use fusefs_raft_host::{GroupSpec, HostError};
use fusefs_types::{
    FsError, FsResult, ObjectId, PartitionId,
    cluster::{NodeCall, NodeReply, ReplicaSpec},
    ops::{Envelope, Refusal},
    txn::Internal,
};
use std::sync::Arc;

impl Metanode {
    /// Executes an order of the master.
    pub async fn call(self: &Arc<Self>, envelope: Envelope, call: NodeCall) -> Result<NodeReply, Refusal> {
        self.admit_cluster(&envelope)?;
        match call {
            NodeCall::CreateReplica(spec) => self.create_replica(spec).await,
            NodeCall::DestroyReplica(group, replica) => {
                self.abandon(group, replica);
                self.host.destroy_group(group, replica).await.map_err(|e| host_error(&e))?;
                if let Some(dir) = &self.blob_dir {
                    let _ = std::fs::remove_dir_all(blob_path(dir, group, replica));
                }
                Ok(NodeReply::Ok)
            }
            NodeCall::Command(group, internal) => self.order(group, internal, &envelope).await,
            NodeCall::ListObjects(group, after, limit) => self.objects(group, after, limit).await,
            NodeCall::Fsck(group) => {
                let hosted = self.hosted(group).ok_or(FsError::NotFound)?;
                hosted.barrier().await?;
                let frozen = hosted.group.read(|m| m.partition().cloned())?;
                // Off the lock and the runtime: it walks the whole partition.
                let problems = self.aside(move || frozen.fsck().problems).await?;
                Ok(NodeReply::Problems(problems))
            }
            NodeCall::Digest(group) => {
                let hosted = self.hosted(group).ok_or(FsError::NotFound)?;
                let (applied, digest) = hosted.group.read(|m| m.digest())?;
                Ok(NodeReply::Digest(applied, digest))
            }
        }
    }

    async fn create_replica(self: &Arc<Self>, spec: ReplicaSpec) -> Result<NodeReply, Refusal> {
        let label = Label::new(spec.volume, &spec.ranges, spec.hash_key);
        match crate::stores::open(&spec.store, &spec.credentials) {
            Ok(store) => {
                self.stores.lock().insert(spec.volume, store);
            }
            // Only background work needs it, and that asks the master again.
            Err(error) => tracing::warn!(volume = %spec.volume, %error, "object store cannot be opened"),
        }
        if let Some(old) = self.hosted(spec.partition) {
            return if old.group.spec().replica == spec.replica {
                Ok(NodeReply::Ok)
            } else {
                Err(FsError::Exists.into())
            };
        }
        let spec =
            GroupSpec { group: spec.partition, replica: spec.replica, members: spec.members, label: label.encode() };
        let group = self.host.create_group(spec).await.map_err(|e| host_error(&e))?;
        self.adopt(group);
        Ok(NodeReply::Ok)
    }

    async fn order(&self, group: PartitionId, internal: Internal, envelope: &Envelope) -> Result<NodeReply, Refusal> {
        let hosted = self.hosted(group).ok_or(FsError::NotFound)?;
        let ended = match &internal {
            Internal::EndSession { session, .. } => Some(*session),
            _ => None,
        };
        hosted.internal(internal, envelope.hlc).await?;
        if let Some(session) = ended {
            hosted.holders.lock().end(session);
            hosted.slow_wake.notify_one();
        }
        Ok(NodeReply::Ok)
    }

    async fn objects(&self, group: PartitionId, after: Option<ObjectId>, limit: u32) -> Result<NodeReply, Refusal> {
        let hosted = self.hosted(group).ok_or(FsError::NotFound)?;
        hosted.barrier().await?;
        let limit = limit.clamp(1, 65_536) as usize;
        let list = hosted.group.read(|m| Ok::<_, FsError>(m.partition()?.objects(after, limit)))?;
        Ok(NodeReply::Objects(list))
    }

    /// Runs something long beside the runtime; in the simulation on it, so that a seed replays.
    async fn aside<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> FsResult<T> {
        if self.settings.data_dir.as_os_str().is_empty() {
            return Ok(f());
        }
        tokio::task::spawn_blocking(f).await.map_err(|_| FsError::Io)
    }
}

fn host_error(e: &HostError) -> Refusal {
    let error = match e {
        HostError::Destroyed(..) => FsError::Exists,
        HostError::Invalid(_) => FsError::Invalid,
        HostError::Foreign(_) => FsError::WrongCluster,
        HostError::Damaged(_) => FsError::Corrupt,
        HostError::Io(_) | HostError::Stopped(_) => FsError::Io,
    };
    tracing::warn!(error = %e, "the host refused an order of the master");
    error.into()
}
