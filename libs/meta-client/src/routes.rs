//! The partition map as an index from key to partition, and the leaders as far as known.

use fusefs_types::{
    KeyRange, PartitionId, RangeKey,
    cluster::{PartitionInfo, VolumeMap},
};
use parking_lot::RwLock;
use std::{collections::BTreeMap, sync::Arc};

/// One version of the map.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    pub map: VolumeMap,
    /// Ranges in order, with the position of their partition.
    index: Vec<(KeyRange, usize)>,
}

impl Routes {
    fn new(map: VolumeMap) -> Routes {
        let mut index: Vec<(KeyRange, usize)> =
            map.partitions.iter().enumerate().flat_map(|(i, p)| p.ranges.iter().map(move |r| (*r, i))).collect();
        index.sort_unstable();
        Routes { map, index }
    }
    /// Owner of a key.
    pub fn owner(&self, key: RangeKey) -> Option<&PartitionInfo> {
        let i = self.index.partition_point(|(r, _)| r.end <= key);
        let (range, p) = self.index.get(i)?;
        range.contains(key).then(|| self.map.partitions.get(*p)).flatten()
    }
    /// By number.
    pub fn partition(&self, id: PartitionId) -> Option<&PartitionInfo> {
        self.map.partitions.iter().find(|p| p.id == id)
    }
    /// Addresses of all metanodes in the map, sorted.
    pub fn addresses(&self) -> Vec<String> {
        let mut all: Vec<String> =
            self.map.partitions.iter().flat_map(|p| p.members.iter().map(|m| m.addr.clone())).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Newest map and the leader of each partition.
#[derive(Default)]
pub(crate) struct Cache {
    routes: RwLock<Arc<Routes>>,
    leaders: RwLock<BTreeMap<PartitionId, Arc<str>>>,
}

impl Cache {
    pub fn routes(&self) -> Arc<Routes> {
        self.routes.read().clone()
    }
    pub fn generation(&self) -> u64 {
        self.routes.read().map.generation
    }
    /// Takes a map unless it is older; true when it was newer.
    pub fn put(&self, map: VolumeMap) -> bool {
        let mut routes = self.routes.write();
        let newer = map.generation > routes.map.generation || routes.map.partitions.is_empty();
        if newer {
            *routes = Arc::new(Routes::new(map));
        }
        newer
    }
    /// Where to send a call for a partition: the known leader, else the map's hint, else the member that `attempt`
    /// selects.
    pub fn target(&self, partition: &PartitionInfo, attempt: usize) -> Option<Arc<str>> {
        if let Some(leader) = self.leaders.read().get(&partition.id) {
            return Some(leader.clone());
        }
        let hinted = partition.leader.filter(|_| attempt == 0);
        let member = hinted
            .and_then(|r| partition.members.iter().find(|m| m.replica == r))
            .or_else(|| partition.members.get(attempt % partition.members.len().max(1)))?;
        Some(member.addr.as_str().into())
    }
    pub fn set_leader(&self, id: PartitionId, addr: &Arc<str>) {
        if self.leaders.read().get(&id) != Some(addr) {
            self.leaders.write().insert(id, addr.clone());
        }
    }
    /// Forgets the leader if it is still that one.
    pub fn drop_leader(&self, id: PartitionId, addr: &str) {
        let mut leaders = self.leaders.write();
        if leaders.get(&id).is_some_and(|l| &**l == addr) {
            leaders.remove(&id);
        }
    }
}
