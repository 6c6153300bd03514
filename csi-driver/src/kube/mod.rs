//! Kubernetes: a pod for each publication, events, and what the API server knows about attached volumes.
//!
//! [`pod`] says what a fuse pod is, [`plan`] what has to happen (pure functions over publications and pods), [`reconcile`] does
//! it, [`finder`] tells the node plugin where a pod is. Nothing here is needed for I/O: while the API server is away,
//! what runs goes on.

pub mod api;
pub mod attachments;
pub mod cache;
pub mod events;
pub mod finder;
pub mod names;
pub mod plan;
pub mod pod;
pub mod reconcile;

pub use api::{ApiError, ApiResult, KubePods, Pods, connect, connect_with};
pub use attachments::{Attachment, Attachments};
pub use events::KubeEvents;
pub use finder::{FoundPod, KubePodFinder};
pub use names::pod_name;
pub use pod::{PodSettings, Seat, fuse_pod};
pub use reconcile::FusePods;
