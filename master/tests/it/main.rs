//! Tests of the master: its core on a log without raft (paused time), then the service with raft on real ports.

mod core_auth;
mod core_sessions;
mod core_stores;
mod core_volumes;
mod fake;
mod service;
