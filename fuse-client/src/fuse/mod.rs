//! Kernel adapters: fuser's callbacks on the vfs, mounting, and a passthrough file system for measuring.

mod adapter;
mod convert;
mod flags;
mod mount;
#[cfg(target_os = "linux")]
pub mod mountinfo;
pub mod passthrough;

pub use adapter::Adapter;
pub use mount::{MountError, MountSettings, Mounted, SUBTYPE, Unmounter, mount, mount_filesystem};
