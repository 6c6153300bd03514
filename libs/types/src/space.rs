//! Space of volumes: what they may have, what they have, and who hears of it when.

use crate::{cluster::VolumeRecord, limits, ops::PartitionUsage};

/// A renewed lease, and what the holder should know of its volume by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseGrant {
    /// Length in ms.
    pub ms: u64,
    /// Generation of the volume's map.
    pub map_generation: u64,
    /// The volume's space; None from a master that does not say.
    pub space: Option<VolumeSpace>,
}

/// Space of a volume as the masters last counted it, from the heartbeats of its partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeSpace {
    /// Bytes that it may have, 0 = unlimited.
    pub capacity: u64,
    /// Inodes that it may have, 0 = unlimited.
    pub inodes: u64,
    /// Bytes that it has.
    pub used: u64,
}

impl VolumeRecord {
    /// Its space.
    pub fn space(&self) -> VolumeSpace {
        VolumeSpace { capacity: self.capacity, inodes: self.inodes, used: self.usage.space() }
    }
}

impl PartitionUsage {
    /// Bytes that count against a volume's capacity.
    pub fn space(&self) -> u64 {
        self.bytes.saturating_add(self.inline_bytes.min(limits::INLINE_BUDGET_BYTES))
    }
}
