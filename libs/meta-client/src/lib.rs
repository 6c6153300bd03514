//! The client side of the metadata services: transport, session, partition map, and the one retry loop of the project.
//!
//! [`MetaClient`] serves one mount; [`MasterClient`] is for everything that talks to masters only. Both see the network
//! through [`Transport`], so that the simulation can replace it.

mod acks;
mod calls;
mod client;
mod counters;
mod events;
mod grpc;
mod master;
mod routes;
mod session;
mod transport;

pub use calls::Settings;
pub use client::{Components, MetaClient};
pub use counters::Counters;
pub use events::Holders;
pub use grpc::GrpcTransport;
pub use master::MasterClient;
pub use session::RECOUNT_EVERY;
pub use transport::{CallError, EventStream, MapStream, ServerEvents, Transport};

/// Feature level of this binary, sent in every envelope.
pub const FEATURE_LEVEL: u32 = 1;
