//! Partition maps of the volumes that this node serves, for messages to other partitions. Hints: the groups' own ranges
//! win over them.

use fusefs_types::{
    RangeKey, VolumeId,
    cluster::{PartitionInfo, VolumeMap},
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};

/// Newest known map per volume.
#[derive(Default)]
pub(crate) struct Maps(Mutex<BTreeMap<VolumeId, Arc<VolumeMap>>>);

impl Maps {
    /// Takes a map unless a newer one is known.
    pub(crate) fn put(&self, map: VolumeMap) {
        let mut maps = self.0.lock();
        if maps.get(&map.volume).is_none_or(|old| old.generation <= map.generation) {
            maps.insert(map.volume, Arc::new(map));
        }
    }
    pub(crate) fn get(&self, volume: VolumeId) -> Option<Arc<VolumeMap>> {
        self.0.lock().get(&volume).cloned()
    }
    /// Generation of the newest map, 0 = none.
    pub(crate) fn generation(&self, volume: VolumeId) -> u64 {
        self.0.lock().get(&volume).map_or(0, |m| m.generation)
    }
    /// Partition that owns a key.
    pub(crate) fn owner(&self, volume: VolumeId, key: RangeKey) -> Option<PartitionInfo> {
        let map = self.get(volume)?;
        map.partitions.iter().find(|p| p.ranges.iter().any(|r| r.contains(key))).cloned()
    }
}

/// Addresses to try, the likely leader first.
pub(crate) fn candidates(info: &PartitionInfo) -> Vec<String> {
    let leads = |m: &&fusefs_types::cluster::Member| Some(m.replica) == info.leader;
    let first = info.members.iter().filter(leads);
    let rest = info.members.iter().filter(|m| !leads(m));
    first.chain(rest).map(|m| m.addr.clone()).collect()
}
