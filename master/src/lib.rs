//! Master: keeps nodes, stores, volumes, the partition map and sessions, replicated by one raft group. One port serves
//! gRPC for components, HTTP/JSON for people, and raft between masters.

mod calls;
pub mod core;
pub mod http;
pub mod log;
mod machine;
mod memory;
mod metrics;
mod outbound;
pub mod outside;
pub mod raft;
mod reconcile;
pub mod rpc;
mod server;
pub mod settings;
mod stores;

pub use crate::core::Core;
pub use machine::MasterMachine;
pub use outbound::GrpcOutside;
pub use outside::{Outside, Unreachable};
pub use server::{Server, ServerComponents, StartError};
pub use settings::{Settings, SettingsError};
