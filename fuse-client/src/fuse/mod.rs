//! Kernel adapters: fuser's callbacks on the vfs, mounting, and a passthrough file system for measuring.

mod adapter;
mod convert;
mod flags;

pub use adapter::Adapter;
