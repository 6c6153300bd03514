//! The node half: one mount per volume at its staging path, a bind mount per pod.
//!
//! [`plan`] decides (pure functions over records, mountinfo and the request), [`engine`] does it, [`records`] remembers it
//! through any crash, [`recover`] repairs what was lost. Nothing here looks at a mount's path in this process: mountinfo
//! says what is mounted, and everything that may wait for a mount runs in a disposable process ([`helper`]).

pub mod announce;
pub mod engine;
pub mod found;
pub mod helper;
pub mod model;
pub mod mounts;
pub mod options;
pub mod paths;
pub mod plan;
pub mod records;
pub mod recover;
pub mod service;

pub use engine::{Node, NodeSettings};
pub use service::NodeService;

use crate::Fault;

/// What the node's own kernel or disk refused. Not final: the orchestrator must not forget the volume.
pub(crate) fn io_fault(what: impl std::fmt::Display, error: &std::io::Error) -> Fault {
    Fault::unavailable(format!("{what}: {error}"))
}
