//! Integration tests of the raft host.

mod chaos;
mod cluster;
mod groups;
mod grpc;
mod support;
