//! The CSI driver: volumes of fusefs for orchestrators such as Kubernetes.
//!
//! [`Identity`](fusefs_proto::csi::identity_server::Identity) and
//! [`Controller`](fusefs_proto::csi::controller_server::Controller) run anywhere and speak to the masters through the
//! trait [`Cluster`]; the node service runs on each node and mounts through a runtime. Everything that arrives over the
//! socket is hostile until it was parsed into a type of [`valid`].

mod answer;
pub mod cluster;
pub mod controller;
pub mod fault;
pub mod identity;
pub mod inflight;
#[cfg(all(feature = "kube", target_os = "linux"))]
pub mod kube;
mod limits;
#[cfg(target_os = "linux")]
pub mod node;
#[cfg(target_os = "linux")]
pub mod runtime;
pub mod server;
pub mod step;
pub mod valid;

pub use answer::answer;
pub use cluster::{Cluster, Masters};
pub use controller::Controller;
pub use fault::{Fault, Outcome};
pub use identity::Identity;
pub use inflight::{Busy, Inflight};
pub use server::{Endpoint, Plugin, ServeError};

/// Name of the driver: the CSIDriver object, the StorageClasses' provisioner.
pub const DRIVER_NAME: &str = "csi.fusefs.io";
