//! Conversions between messages and `fusefs-types`, both ways. `to_wire` never fails; `from_wire` checks bounds and
//! answers [`fusefs_types::FsError::Invalid`] (or the POSIX errno of the limit) for what no correct sender writes.

pub mod common;
pub mod master;
pub mod ops;
pub mod raft;
pub mod txn;
