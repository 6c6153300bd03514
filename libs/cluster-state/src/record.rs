//! What the master remembers. Everything here is replicated and survives; heartbeats, leases and usage do not belong
//! here (they are the leader's memory).

use crate::codec::{pack_enum, pack_struct};
use fusefs_types::{
    KeyRange, MountId, NodeId, PartitionId, ReplicaId, SessionId, StoreId, Token, VolumeId,
    cluster::{VolumeSpec, VolumeState},
};
use std::collections::BTreeSet;

/// A volume and the steps of its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Number.
    pub id: VolumeId,
    /// Parameters as asked, `store` resolved to a name. The same name with the same parameters is the same request, also
    /// after the volume was expanded.
    pub spec: VolumeSpec,
    /// Store.
    pub store: StoreId,
    /// State.
    pub state: VolumeState,
    /// Capacity in bytes now, 0 = unlimited.
    pub capacity: u64,
    /// Inodes now, 0 = unlimited.
    pub inodes: u64,
    /// Replicas of each partition as placed.
    pub replicas: u32,
    /// Key of the readdir name hash.
    pub hash_key: [u8; 16],
    /// What the placement survives, in words.
    pub redundancy: String,
    /// Partitions in order of their first range.
    pub partitions: Vec<PartitionId>,
    /// Number of the next range of inode numbers; never reused.
    pub next_range: u64,
    /// Generation of the partition map.
    pub generation: u64,
    /// When it was asked for (Unix ns).
    pub created_ns: u64,
    /// It was ready once, so that there may be objects.
    pub served: bool,
}

/// A range granted to a partition, and whether its leader has taken it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Range.
    pub range: KeyRange,
    /// Map generation that contains it.
    pub generation: u64,
}

/// A raft group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Group.
    pub id: PartitionId,
    /// Volume.
    pub volume: VolumeId,
    /// Replicas and their nodes, in the same order everywhere.
    pub members: Vec<(ReplicaId, NodeId)>,
    /// Ranges it owns; the last one is where it allocates.
    pub ranges: Vec<KeyRange>,
    /// Grants that its leader has not confirmed yet.
    pub undelivered: Vec<Grant>,
}

/// How far the end of a session is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// By force or expiry, rather than by a clean unmount.
    pub revoked: bool,
    /// Objects that may be unreferenced.
    pub leftovers: u64,
    /// Partitions that have not been told yet.
    pub pending: BTreeSet<PartitionId>,
}

/// A mount's state in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Session.
    pub id: SessionId,
    /// Volume.
    pub volume: VolumeId,
    /// Kernel connection.
    pub mount: MountId,
    /// Highest token seen.
    pub token: Token,
    /// Host name and pid, for people.
    pub client: String,
    /// Read-only mount.
    pub read_only: bool,
    /// When it was opened (Unix ns).
    pub opened_ns: u64,
    /// Partitions that may take its mutations.
    pub attached: BTreeSet<PartitionId>,
    /// Set once it is being ended; nothing undoes that.
    pub ending: Option<Ending>,
}

/// Which look for unreferenced objects comes next (PROTOCOL 33).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SweepRound {
    /// After the grace.
    First,
    /// Later again, for uploads that were under way.
    Second,
}

/// An ended session whose unreferenced objects are to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// Session.
    pub session: SessionId,
    /// Its volume; when that is gone, every object of the session is unreferenced.
    pub volume: VolumeId,
    /// Store that may hold the objects.
    pub store: StoreId,
    /// When all partitions had acknowledged the end (Unix ns); due times count from here.
    pub since_ns: u64,
    /// Next look.
    pub round: SweepRound,
}

/// A right to mount, by volume, node and part of the volume.
pub type PublicationKey = (VolumeId, (String, String));

/// A replica that must be destroyed on its node, however long the node stays away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doomed {
    /// Group.
    pub partition: PartitionId,
    /// Node.
    pub node: NodeId,
}

pack_struct!(Volume {
    id,
    spec,
    store,
    state,
    capacity,
    inodes,
    replicas,
    hash_key,
    redundancy,
    partitions,
    next_range,
    generation,
    created_ns,
    served,
});
pack_struct!(Grant { range, generation });
pack_struct!(Partition { id, volume, members, ranges, undelivered });
pack_struct!(Ending { revoked, leftovers, pending });
pack_struct!(Session { id, volume, mount, token, client, read_only, opened_ns, attached, ending });
pack_enum!(SweepRound { 1 => First, 2 => Second ; });
pack_struct!(Sweep { session, volume, store, since_ns, round });
pack_struct!(Doomed { partition, node });
