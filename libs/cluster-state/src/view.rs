//! Read-only views: lookups, the map that clients get, records for people.

use crate::{ClusterState, record::*};
use fusefs_types::{
    ClusterId, NodeId, PartitionId, ReplicaId, SessionId, StoreId, VolumeId,
    cluster::{
        Member, NodeRecord, PartitionInfo, Publication, StoreKind, StoreRecord, VolumeMap, VolumeRecord, VolumeState,
    },
    ops::PartitionUsage,
};

impl ClusterState {
    /// The cluster's name; 0 before [`crate::Command::Init`].
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }
    /// Metanodes by id.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values()
    }
    /// One metanode.
    pub fn node(&self, id: NodeId) -> Option<&NodeRecord> {
        self.nodes.get(&id)
    }
    /// Stores by number.
    pub fn stores(&self) -> impl Iterator<Item = &StoreRecord> {
        self.stores.values()
    }
    /// One store.
    pub fn store(&self, id: StoreId) -> Option<&StoreRecord> {
        self.stores.get(&id)
    }
    /// One store by name.
    pub fn store_by_name(&self, name: &str) -> Option<&StoreRecord> {
        self.stores.values().find(|s| s.name == name)
    }
    /// All volumes in any state, by number.
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.values()
    }
    /// One volume in any state.
    pub fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.get(&id)
    }
    /// The volume that holds the name: Creating or Ready. A volume that is being deleted has given its name up.
    pub fn live_volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.values().find(|v| v.spec.name == name && v.state != VolumeState::Deleting)
    }
    /// The volume as users may see it: only when it is ready.
    pub fn ready_volume(&self, name: &str) -> Option<&Volume> {
        self.live_volume(name).filter(|v| v.state == VolumeState::Ready)
    }
    /// All partitions.
    pub fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.partitions.values()
    }
    /// One partition.
    pub fn partition(&self, id: PartitionId) -> Option<&Partition> {
        self.partitions.get(&id)
    }
    /// All sessions, open and ending.
    pub fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values()
    }
    /// One session.
    pub fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id)
    }
    /// Looks for unreferenced objects that are still to be done.
    pub fn sweeps(&self) -> impl Iterator<Item = &Sweep> {
        self.sweeps.values()
    }
    /// Replicas to destroy.
    pub fn doomed(&self) -> impl Iterator<Item = (ReplicaId, Doomed)> + '_ {
        self.doomed.iter().map(|(r, d)| (*r, *d))
    }

    /// Nodes that can mount volumes.
    pub fn mounters(&self) -> impl Iterator<Item = &str> {
        self.mounters.keys().map(String::as_str)
    }
    /// Rights to mount a volume, by node.
    pub fn publications_of(&self, volume: VolumeId) -> impl Iterator<Item = &Publication> {
        self.publications.range(crate::apply::publications_of(volume)).map(|(_, p)| p)
    }
    /// All rights to mount.
    pub fn publications(&self) -> impl Iterator<Item = &Publication> {
        self.publications.values()
    }

    /// Members of a partition with the nodes' present addresses.
    pub fn members(&self, partition: &Partition) -> Vec<Member> {
        let addr = |n: &NodeId| self.nodes.get(n).map_or_else(String::new, |n| n.addr.clone());
        partition.members.iter().map(|(r, n)| Member { replica: *r, node: *n, addr: addr(n) }).collect()
    }

    /// Partition map; leaders are the caller's knowledge (a hint).
    pub fn map(&self, volume: VolumeId, leader: impl Fn(PartitionId) -> Option<ReplicaId>) -> Option<VolumeMap> {
        let v = self.volumes.get(&volume)?;
        let partitions = v.partitions.iter().filter_map(|id| self.partitions.get(id));
        let partitions = partitions
            .map(|p| PartitionInfo {
                id: p.id,
                volume,
                ranges: p.ranges.clone(),
                members: self.members(p),
                leader: leader(p.id),
            })
            .collect();
        Some(VolumeMap { volume, generation: v.generation, partitions })
    }
}

impl Volume {
    /// The record that people and clients see.
    pub fn record(&self, usage: PartitionUsage) -> VolumeRecord {
        VolumeRecord {
            id: self.id,
            name: self.spec.name.clone(),
            state: self.state,
            store: self.store,
            capacity: self.capacity,
            inodes: self.inodes,
            replicas: self.replicas,
            hash_key: self.hash_key,
            redundancy: self.redundancy.clone(),
            labels: self.spec.labels.clone(),
            usage,
        }
    }
}

/// Where a store is, for people.
pub fn store_place(s: &StoreRecord) -> String {
    let prefix = if s.prefix.is_empty() { String::new() } else { format!("/{}", s.prefix) };
    match s.kind {
        StoreKind::S3 if s.endpoint.is_empty() => format!("s3://{}{prefix}", s.bucket),
        StoreKind::S3 => format!("bucket {}{prefix} at {}", s.bucket, s.endpoint),
        StoreKind::Dir => format!("directory {}{prefix}", s.endpoint),
        StoreKind::Memory => "memory".into(),
    }
}
