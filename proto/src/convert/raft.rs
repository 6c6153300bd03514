//! Conversions of `fusefs.raft.v1`.
