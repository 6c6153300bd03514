//! Test servers, workloads and drivers for whole clusters.

pub mod s3double;
pub mod sim;
pub mod stack;
pub mod tree;
pub mod versitygw;
