//! The mount: a kernel-free [`vfs`] (files, directories, handles, caches) and the FUSE adapter under [`fuse`].
//!
//! `vfs` takes its own request type and talks to metadata and file data through the traits [`Meta`] and [`Data`], so
//! that tests, the simulation and other gateways drive it without a kernel. `fuse` only translates.

pub mod data;
pub mod fuse;
pub mod meta;
pub mod vfs;

pub use data::Data;
pub use meta::Meta;
pub use vfs::{Settings, Vfs};
