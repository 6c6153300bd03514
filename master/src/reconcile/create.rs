//! Creating -> Ready: every member of every partition is told to create its replica; the volume is ready when every
//! partition has reported a leader. A node that does not come back is replaced, unless the volume is ready already.

use crate::core::Core;
use fusefs_cluster_state::{Command, command, placement, record::Volume};
use fusefs_types::{
    FsError, PartitionId, ReplicaId, VolumeId,
    cluster::{Member, NodeCall, ReplicaSpec, StoreCredentials, StoreRecord, VolumeState},
};
use futures::future::join_all;

impl Core {
    pub(super) async fn create_pass(&self) {
        let creating: Vec<Volume> =
            self.view(|s| s.volumes().filter(|v| v.state == VolumeState::Creating).cloned().collect());
        self.memory.lock().creating.retain(|id, _| creating.iter().any(|v| v.id == *id));
        join_all(creating.iter().map(|v| self.create_volume_step(v))).await;
    }

    async fn create_volume_step(&self, v: &Volume) {
        let Some(store) = self.view(|s| s.store(v.store).cloned()) else { return };
        let credentials = match self.stores.credentials(&store).await {
            Ok(c) => c,
            Err(r) => return self.stuck(v.id, r.message),
        };
        let failures: Vec<String> =
            join_all(v.partitions.iter().map(|p| self.create_partition(v, *p, &store, &credentials)))
                .await
                .into_iter()
                .flatten()
                .collect();
        if !failures.is_empty() {
            self.stuck(v.id, failures[0].clone());
            return self.place_anew(v).await;
        }
        let missing: Vec<PartitionId> = {
            let memory = self.memory.lock();
            v.partitions.iter().filter(|p| !memory.leaders.contains_key(p)).copied().collect()
        };
        if let Some(p) = missing.first() {
            let why = format!("{} of {} partitions (first: {p}) have no leader yet", missing.len(), v.partitions.len());
            // Replicas exist; an election takes a moment. The clock of `place_anew` does not run meanwhile.
            self.memory.lock().creating.insert(v.id, (self.clock.boot_ns(), why));
            return;
        }
        if self.commit(Command::VolumeReady(v.id)).await.is_ok() {
            tracing::info!(volume = v.spec.name, redundancy = v.redundancy, "volume ready");
            self.memory.lock().creating.remove(&v.id);
        }
    }

    /// Failures in words.
    async fn create_partition(
        &self,
        v: &Volume,
        partition: PartitionId,
        store: &StoreRecord,
        credentials: &StoreCredentials,
    ) -> Vec<String> {
        let found = self.view(|s| s.partition(partition).map(|p| (s.members(p), p.ranges.clone())));
        let Some((members, ranges)) = found else { return Vec::new() };
        let orders = members.iter().filter(|m| !self.reported(m, partition)).map(|m| {
            let spec = ReplicaSpec {
                partition,
                replica: m.replica,
                volume: v.id,
                members: members.clone(),
                ranges: ranges.clone(),
                hash_key: v.hash_key,
                store: store.clone(),
                credentials: credentials.clone(),
            };
            async move {
                match self.order(&m.addr, v.id, NodeCall::CreateReplica(spec)).await {
                    Ok(_) => None,
                    Err(r) if matches!(r.error, FsError::Unavailable | FsError::TimedOut) => {
                        Some(format!("metanode {} does not answer", m.addr))
                    }
                    Err(r) => Some(format!("metanode {} refuses replica {}: {}", m.addr, m.replica, r.error)),
                }
            }
        });
        join_all(orders).await.into_iter().flatten().collect()
    }

    /// The node's last heartbeat named the replica.
    fn reported(&self, m: &Member, partition: PartitionId) -> bool {
        let named = |id: ReplicaId, p: PartitionId| id == m.replica && p == partition;
        let memory = self.memory.lock();
        let seen = memory.nodes.get(&m.node);
        seen.is_some_and(|s| s.heartbeat.replicas.iter().any(|r| named(r.replica, r.partition)))
    }

    fn stuck(&self, volume: VolumeId, why: String) {
        let now = self.clock.boot_ns();
        let mut memory = self.memory.lock();
        let entry = memory.creating.entry(volume).or_insert((now, String::new()));
        entry.1 = why;
    }

    /// After `replace_after_ms` without an answer: another choice among the nodes that live. The old replicas are doomed.
    async fn place_anew(&self, v: &Volume) {
        let since = self.memory.lock().creating.get(&v.id).map(|(since, _)| *since);
        let waited = since.map_or(0, |s| self.clock.boot_ns().saturating_sub(s) / 1_000_000);
        if waited < self.settings.replace_after_ms {
            return;
        }
        let candidates = self.candidates();
        let Ok(placed) = placement::place(&candidates, v.partitions.len() as u32, v.spec.replicas) else { return };
        let replace = command::ReplaceVolume {
            volume: v.id,
            generation: v.generation,
            placement: placed.partitions,
            redundancy: placed.redundancy,
        };
        if self.commit(Command::ReplaceVolume(replace)).await.is_ok() {
            tracing::warn!(volume = v.spec.name, "a metanode did not answer; the volume is placed anew");
            self.memory.lock().creating.remove(&v.id);
        }
    }
}
