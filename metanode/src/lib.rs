//! Metanode: hosts the raft groups of meta-partitions and serves them.

pub mod blob;
mod holders;
mod identity;
mod settings;

pub use identity::{Identity, IdentityError};
pub use settings::Settings;
