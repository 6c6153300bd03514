//! The vfs on one real partition in this process, and a real mount of the same.

mod cache;
mod cluster;
#[cfg(target_os = "linux")]
mod kmount;
mod local;
mod locks;
mod mounted;
mod rng;
mod tree;
mod two;
