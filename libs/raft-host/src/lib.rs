//! Raft for masters and metanodes: many groups per process, one log per disk, one network stream per pair of nodes.
//! The only crate that names openraft and the log.
//!
//! [`Host::open`] finds the groups on a [`Disk`] and runs them; [`Group::propose`] replicates a command to the
//! [`Machine`], [`Group::read_barrier`] makes the next [`Group::read`] linearizable. See PROTOCOL §6 for the rules.

mod api;
#[doc(hidden)]
pub mod bench;
mod checkpoint;
mod codec;
mod disk;
mod group;
mod host;
mod log;
mod machine;
mod net;
mod raft;
mod store;
mod superblock;
#[cfg(test)]
mod tests;

pub use api::{
    Components, Frozen, GroupSpec, GroupStats, GroupStatus, HostError, LogPos, LogStats, Machine, MakeMachine, Planted,
    ProposeError, Settings, Stop, Timers,
};
pub use disk::{Disk, DiskFile, RealDisk, SimDisk, SimFault};
pub use group::Group;
pub use host::Host;
pub use net::{
    CREDENTIAL_METADATA, GrpcNet, GrpcServer, GrpcSettings, MemNet, MemNetSettings, NetError, PeerHandler, PeerNet,
    PeerReply, PeerRequest,
};
pub use superblock::Superblock;
