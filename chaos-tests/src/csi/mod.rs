//! Chaos for the CSI driver without an orchestrator: nodes are mount namespaces, pods are namespaces below them, and
//! [`process::Rig`] makes the calls that kubelet and the attacher make, with their retry rules.
//!
//! * [`namespace`] holds a mount namespace open, [`plugin`] is one `fusefs csi`, [`calls`] retries as kubelet does,
//!   [`handed`] is what serves mounts that a plugin hands over.
//! * [`holders`] says who keeps a mount alive, so that the last one is only killed on purpose.
//! * [`chaos`] kills at random moments, [`census`] counts what is left.

pub mod calls;
pub mod census;
pub mod chaos;
pub mod daemon;
pub mod driver;
pub mod handed;
pub mod holders;
pub mod namespace;
pub mod plugin;
pub mod pod;
pub mod process;
