//! The keeper: a tiny process that holds the fds and a few bytes of a mount, so that any other process of the mount may
//! die (PROTOCOL 42). It knows no flags, no policy and no network.

pub mod client;
pub mod protocol;
pub mod server;
mod shrink;
pub mod store;
pub mod sys;

pub use client::Channel;
pub use store::{Item, Store};
