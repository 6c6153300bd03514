//! Kernel adapters: our own for Linux ([`kernel`]), fuser's callbacks on the vfs for other systems, mounting, and a passthrough file system for measuring.

mod adapter;
mod convert;
#[cfg(target_os = "linux")]
pub mod device;
mod flags;
#[cfg(target_os = "linux")]
pub mod kernel;
mod mount;
#[cfg(target_os = "linux")]
pub mod mountinfo;
pub mod passthrough;

pub use adapter::Adapter;
pub use mount::{MountError, MountSettings, Mounted, SUBTYPE, Unmounter, mount, mount_filesystem};
#[cfg(target_os = "linux")]
pub use mount::{prepare_point, untouched_point};
