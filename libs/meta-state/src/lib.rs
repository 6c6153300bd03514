//! The meta-partition as a pure state machine: no async, no I/O, no clock, no randomness, no protobuf.
//!
//! `Partition` is a value; [`Partition::apply`] is the only way it changes. `record` holds what is stored, `ops` what
//! clients ask, `session` exactly-once and fences, `txn` operations over partitions, `gc` orphans and dead objects.

pub mod apply;
pub mod codec;
pub mod fsck;
pub mod gc;
pub mod ops;
pub mod partition;
pub mod record;
pub mod session;
mod snapshot;
pub mod store;
pub mod txn;

pub use apply::{Applied, BlobPut, BlobRef, Cx, InternalReply, LEVEL, LogPos, Outcome, Plan};
pub use fsck::{FsckReport, fsck_volume};
pub use partition::{Meta, Partition, PartitionConfig, Tables};
pub use txn::Work;
