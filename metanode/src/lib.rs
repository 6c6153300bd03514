//! Metanode: hosts the raft groups of meta-partitions and serves them.

pub mod blob;
