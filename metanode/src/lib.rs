//! Metanode: hosts the raft groups of meta-partitions and serves them.
//!
//! [`Metanode`] is the core: it takes and returns `fusefs-types`, so that the simulation drives it. [`Server`] puts it
//! behind one port. `write`, `read`, `peer` and `calls` are the four doors; `driver` and `janitor` the leader's background
//! work; `machine` and `blob` what a replica keeps.

mod blob;
mod calls;
mod driver;
mod events;
mod group;
mod heartbeat;
mod holders;
mod identity;
mod janitor;
mod machine;
mod maps;
mod metrics;
mod node;
mod outside;
mod peer;
mod read;
mod rpc;
mod server;
mod settings;
mod stores;
mod stream;
mod waiters;
mod write;

pub use identity::{Identity, IdentityError};
pub use machine::PartitionMachine;
pub use node::{Components, Metanode, NodeIdentity};
pub use server::{Server, ServerComponents, StartError};
pub use settings::{Planted, Settings};
pub use stream::{EventAnswers, EventStream};
