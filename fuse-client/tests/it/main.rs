//! The vfs on one real partition in this process, and a real mount of the same.

mod cache;
mod cluster;
#[cfg(target_os = "linux")]
mod interrupts;
#[cfg(target_os = "linux")]
mod kmount;
mod local;
mod locks;
#[cfg(target_os = "linux")]
mod mounted;
#[cfg(target_os = "linux")]
mod restarts;
#[cfg(target_os = "linux")]
mod resume;
mod rng;
mod tree;
mod two;
