//! One file per operation; the contract is its first comment.

mod append;
mod commit;
mod create;
pub mod extents;
pub(crate) mod flock;
pub(crate) mod link;
pub mod prim;
pub mod read;
mod rename;
mod setattr;
mod unlink;
mod xattr;

use crate::{Cx, Partition, Plan};
use fusefs_types::{
    FsResult,
    ops::{Write, WriteReply},
};

/// Executes a client's mutation. Errors change nothing; Conflict also means "not local: plan again".
pub(crate) fn write(p: &mut Partition, cx: &mut Cx, write: &Write) -> FsResult<WriteReply> {
    match write {
        Write::Create(x) => create::apply(p, cx, x),
        Write::Link(x) => link::apply(p, cx, x),
        Write::Unlink(x) => unlink::apply(p, cx, x),
        Write::Rename(x) => rename::apply(p, cx, x),
        Write::SetAttr(x) => setattr::apply(p, cx, x),
        Write::Commit(x) => commit::apply(p, cx, x),
        Write::Append(x) => append::apply(p, cx, x),
        Write::SetXattr(x) => xattr::set(p, cx, x),
        Write::RemoveXattr(x) => xattr::remove(p, cx, x),
        Write::SetLock(x) => flock::set(p, cx, x),
        Write::Tmpfile(x) => create::unnamed(p, cx, x),
    }
}

impl Partition {
    /// How the leader must execute `write`. Advisory: errors are left to `apply`.
    pub fn plan(&self, write: &Write) -> Plan {
        match write {
            Write::Create(x) => create::plan(self, x),
            Write::Link(x) => link::plan(self, x),
            Write::Unlink(x) => unlink::plan(self, x),
            Write::Rename(x) => rename::plan(self, x),
            _ => Plan::Local,
        }
    }
}
