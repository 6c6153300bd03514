//! Conversions between messages and `fusefs-types`, both ways. `x(&X) -> pb::X` never fails; `from_x(pb::X)` checks
//! bounds and answers [`fusefs_types::FsError::Invalid`], the POSIX errno of the limit, or
//! [`fusefs_types::FsError::UpgradeNeeded`] for a oneof member that this binary does not know.

pub mod common;
pub mod data;
pub mod lock;
pub mod master;
pub mod node;
pub mod ops;
pub mod raft;
pub mod stream;
pub mod txn;
