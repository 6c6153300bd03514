//! Deleting -> gone: after the sessions have ended, the volume's objects are deleted, then its replicas are destroyed.

use crate::core::Core;
use fusefs_cluster_state::{Command, record::Volume};
use fusefs_data_path::ObjectStore;
use fusefs_types::{
    FsError, ObjectId, PartitionId, ReplicaId,
    cluster::{NodeCall, NodeReply, VolumeState},
};
use futures::future::join_all;
use std::sync::Arc;

/// Object ids asked for at once, and keys deleted at once (S3 takes 1000).
pub(super) const PAGE: u32 = 1000;

impl Core {
    pub(super) async fn delete_pass(&self) {
        let deleting: Vec<Volume> =
            self.view(|s| s.volumes().filter(|v| v.state == VolumeState::Deleting).cloned().collect());
        self.memory.lock().deleting.retain(|id, _| deleting.iter().any(|v| v.id == *id));
        for v in deleting {
            match self.delete_volume_step(&v).await {
                Ok(()) => {
                    self.memory.lock().deleting.remove(&v.id);
                }
                Err(why) => {
                    self.memory.lock().deleting.insert(v.id, why);
                }
            }
        }
    }

    async fn delete_volume_step(&self, v: &Volume) -> Result<(), String> {
        let sessions = self.view(|s| s.sessions().filter(|x| x.volume == v.id).count());
        if sessions > 0 {
            return Err(format!("{sessions} sessions are being ended"));
        }
        // A volume that was never ready has no objects, and perhaps not even partitions that could be asked.
        if v.served {
            let store = self.view(|s| s.store(v.store).cloned()).ok_or("its store is unknown")?;
            let store = self.stores.open(&store).await.map_err(|r| r.message)?;
            for p in &v.partitions {
                self.delete_objects(*p, &store).await?;
            }
        }
        self.commit(Command::VolumeGone(v.id)).await.map_err(|_| "no quorum of masters".to_owned())?;
        tracing::info!(volume = v.spec.name, "volume deleted");
        Ok(())
    }

    async fn delete_objects(&self, partition: PartitionId, store: &Arc<dyn ObjectStore>) -> Result<(), String> {
        let mut after = None;
        loop {
            let page = self.objects_of(partition, after).await?;
            if page.is_empty() {
                return Ok(());
            }
            let keys: Vec<String> = page.iter().map(ObjectId::key).collect();
            store.delete(&keys).await.map_err(|e| format!("deleting objects: {e}"))?;
            if page.len() < PAGE as usize {
                return Ok(());
            }
            after = page.last().copied();
        }
    }

    /// One page of the objects that a partition knows.
    pub(super) async fn objects_of(
        &self,
        partition: PartitionId,
        after: Option<ObjectId>,
    ) -> Result<Vec<ObjectId>, String> {
        match self.order_leader(partition, &NodeCall::ListObjects(partition, after, PAGE)).await {
            Ok(NodeReply::Objects(objects)) => Ok(objects),
            Ok(_) => Err(format!("partition {partition} answers something else than was asked")),
            Err(r) => Err(format!("partition {partition} cannot be asked for its objects: {}", r.error)),
        }
    }

    /// Destroys doomed replicas on nodes that answer; the others stay doomed until they come back.
    pub(super) async fn doomed_pass(&self) {
        let doomed: Vec<_> = self.view(|s| {
            let with_addr = s.doomed().filter_map(|(r, d)| Some((r, d, s.node(d.node)?.addr.clone())));
            with_addr.collect()
        });
        if doomed.is_empty() {
            return;
        }
        let silent = |node| self.memory.lock().silent_ms(node, self.clock.boot_ns()) > self.settings.node_silent_ms;
        let orders = doomed.into_iter().filter(|(_, d, _)| !silent(d.node)).map(|(replica, d, addr)| async move {
            let call = NodeCall::DestroyReplica(d.partition, replica);
            match self.order(&addr, fusefs_types::VolumeId(0), call).await {
                Ok(_) => Some(replica),
                Err(r) if r.error == FsError::NotFound => Some(replica),
                Err(_) => None,
            }
        });
        let done: Vec<ReplicaId> = join_all(orders).await.into_iter().flatten().collect();
        if !done.is_empty() {
            // Not committed: the next round destroys again, which is idempotent.
            let _ = self.commit(Command::ReplicasDestroyed(done)).await;
        }
    }
}
