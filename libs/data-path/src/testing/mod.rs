//! Tools for tests of this crate and of others: a suite that every store must pass, and a model of a partition.

mod sink;
mod stores;

pub use sink::{ModelSink, OtherClient, SinkFaults};
pub use stores::store_suite;
