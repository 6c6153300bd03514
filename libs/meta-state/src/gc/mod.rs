//! Orphans and dead objects (`docs/design/0002-transactions.md`).

use crate::{Cx, InternalReply, Partition};
use fusefs_types::{FsError, FsResult, txn::Internal};

/// Executes a garbage command.
pub fn apply(_p: &mut Partition, _cx: &mut Cx, _internal: &Internal) -> FsResult<InternalReply> {
    Err(FsError::NotImplemented)
}
