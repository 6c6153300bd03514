//! The master's state as a pure value: commands in, outcomes out. No clock, no randomness, no I/O, no async.
//!
//! [`ClusterState::apply`] is deterministic and total: the same commands in the same order give the same state on every
//! master, and a command that makes no sense is a [`Reject`] that changes nothing. Placement is a function that returns
//! a plan ([`placement`]); the leader proposes it, `apply` checks it.

mod apply;
pub mod codec;
pub mod command;
pub mod placement;
pub mod record;
mod snapshot;
pub mod valid;
mod view;

pub use command::{Applied, Command, Outcome, Reject};
pub use snapshot::SnapshotError;
pub use view::store_place;

use codec::pack_struct;
use fusefs_types::{
    ClusterId, NodeId, PartitionId, ReplicaId, SessionId, StoreId, VolumeId,
    cluster::{NodeRecord, Publication, StoreRecord},
};
use record::{Doomed, Partition, PublicationKey, Session, Sweep, Volume};
use std::collections::BTreeMap;

/// Everything the masters agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterState {
    cluster: ClusterId,
    next_volume: u64,
    next_partition: u64,
    next_replica: u64,
    next_store: u32,
    nodes: BTreeMap<NodeId, NodeRecord>,
    stores: BTreeMap<StoreId, StoreRecord>,
    volumes: BTreeMap<VolumeId, Volume>,
    partitions: BTreeMap<PartitionId, Partition>,
    sessions: BTreeMap<SessionId, Session>,
    sweeps: BTreeMap<SessionId, Sweep>,
    doomed: BTreeMap<ReplicaId, Doomed>,
    attachments: BTreeMap<(VolumeId, String), u64>,
    mounters: BTreeMap<String, u64>,
    publications: BTreeMap<PublicationKey, Publication>,
}

pack_struct!(ClusterState {
    cluster,
    next_volume,
    next_partition,
    next_replica,
    next_store,
    nodes,
    stores,
    volumes,
    partitions,
    sessions,
    sweeps,
    doomed,
    attachments,
    mounters,
    publications,
});

impl Default for ClusterState {
    fn default() -> Self {
        ClusterState::new()
    }
}

impl ClusterState {
    /// An empty cluster without a name. Numbers start at 1: 0 is "none" everywhere, and group 0 is the master's own.
    pub fn new() -> Self {
        ClusterState {
            cluster: ClusterId(0),
            next_volume: 1,
            next_partition: 1,
            next_replica: 1,
            next_store: 1,
            nodes: BTreeMap::new(),
            stores: BTreeMap::new(),
            volumes: BTreeMap::new(),
            partitions: BTreeMap::new(),
            sessions: BTreeMap::new(),
            sweeps: BTreeMap::new(),
            doomed: BTreeMap::new(),
            attachments: BTreeMap::new(),
            mounters: BTreeMap::new(),
            publications: BTreeMap::new(),
        }
    }
}
