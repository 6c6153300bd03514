//! Test servers, workloads and drivers for whole clusters.

#[cfg(target_os = "linux")]
pub mod csi;
pub mod kube;
#[cfg(target_os = "linux")]
pub mod replay;
pub mod s3double;
pub mod sim;
pub mod stack;
pub mod tree;
pub mod versitygw;
