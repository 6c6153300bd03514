//! Our own /dev/fuse layer (Linux): every opcode up to ABI 7.45, notifications, and the recovery of requests whose reader
//! died (PROTOCOL 16, 43, 44, 46).
//!
//! A few threads block in read(2) ([`reader`]); each request is decoded ([`decode`]), registered with the vfs, and polled
//! once where it was read ([`run`]): answers from memory go out right there. What has to wait goes on in the runtime and
//! holds a [`reply`] that answers exactly once.
//!
//! The fd may be a duplicate, and others may hold more: that is how the connection survives this process. Never clone it
//! with FUSE_DEV_IOC_CLONE: requests read through a clone die with it.

mod abi;
mod buffers;
pub mod decode;
mod dispatch;
mod encode;
mod init;
mod locks;
mod notify;
mod poison;
mod reader;
mod reply;
mod run;
mod session;
mod slots;
mod stats;
mod vfs_locks;

pub use init::{InitOptions, InitRecord, handshake, handshake_in_slots, handshake_with};
pub use locks::{FileLock, Locks};
pub use notify::{Notification, Notifier};
pub use poison::poison;
pub use session::{Recovery, ServeSettings, Serving, serve};
pub use slots::SlotFile;
pub use stats::ServeStats;
