//! The mount: a kernel-free [`vfs`] (files, directories, handles, caches) and the FUSE adapter under [`fuse`].
//!
//! `vfs` takes its own request type and talks to metadata through the trait [`Meta`] and file data through `DataPath`, so
//! that tests, the simulation and other gateways drive it without a kernel. `fuse` only translates.

pub mod client;
pub mod fuse;
#[cfg(target_os = "linux")]
pub mod keeper;
pub mod meta;
#[cfg(target_os = "linux")]
pub mod supervise;
pub mod vfs;
#[cfg(target_os = "linux")]
pub mod worker;

pub use client::{Client, ClientError, ClientSettings};
pub use meta::Meta;
pub use vfs::{Settings, Vfs};
