//! The CSI driver: volumes of fusefs for orchestrators such as Kubernetes.
//!
//! [`Identity`](fusefs_proto::csi::identity_server::Identity) and
//! [`Controller`](fusefs_proto::csi::controller_server::Controller) run anywhere and speak to the masters through the
//! trait `Cluster`; the node service runs on each node and mounts through a runtime. Everything that arrives over the
//! socket is hostile until it was parsed into a type of [`valid`].

pub mod fault;
pub mod inflight;
pub mod node;
pub mod runtime;
pub mod valid;

pub use fault::{Fault, Outcome};
pub use inflight::{Busy, Inflight};

/// Name of the driver: the CSIDriver object, the StorageClasses' provisioner.
pub const DRIVER_NAME: &str = "csi.fusefs.io";
