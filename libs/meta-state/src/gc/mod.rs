//! Orphans and dead objects (`docs/design/0002-transactions.md`).

mod list;
pub mod orphans;

use crate::{Cx, InternalReply, Partition, record::DeadKey, txn::Work};
use fusefs_types::{FsError, FsResult, ObjectId, SessionId, ids::Incarnation, txn::Internal};

/// Dead objects in one piece of work.
pub const DELETE_BATCH: usize = 1000;

/// Executes a garbage command.
pub fn apply(p: &mut Partition, cx: &mut Cx, internal: &Internal) -> FsResult<InternalReply> {
    match internal {
        Internal::Pin { session, held, released } => orphans::answer(p, *session, held, released)?,
        Internal::FreeOrphans { inos } => {
            let mut extents = 0;
            for ino in inos {
                if extents < orphans::EXTENTS_BATCH && orphans::is_free(p, *ino) {
                    extents += orphans::free(p, cx, *ino);
                }
            }
        }
        Internal::ObjectsDeleted { objects } => {
            for id in objects {
                forget(p, id);
            }
        }
        _ => return Err(FsError::Invalid),
    }
    Ok(InternalReply::Done)
}

/// The body of a dead object is gone. One that lives is never forgotten, whatever a leader says.
fn forget(p: &mut Partition, id: &ObjectId) {
    let Some(since) = p.t.objects.get(id).and_then(|o| o.dead) else { return };
    p.t.dead.remove(&DeadKey { since, id: *id });
    p.t.objects.remove(id);
}

impl Partition {
    /// What a leader must do about orphans and dead objects.
    pub fn gc_work(&self) -> Vec<Work> {
        let mut out = orphans::work(self);
        let dead: Vec<_> = self.t.dead.iter().take(DELETE_BATCH).map(|(k, _)| (k.id, k.since)).collect();
        if !dead.is_empty() {
            out.push(Work::DeleteObjects(dead));
        }
        out
    }
    /// Objects of one incarnation that have a record here, living or dead: the sweeper keeps its hands off them
    /// (PROTOCOL 33). `after` = last one of the page before; at most `limit`.
    pub fn list_objects(
        &self,
        session: SessionId,
        incarnation: Incarnation,
        after: Option<u64>,
        limit: usize,
    ) -> Vec<ObjectId> {
        let counter = match after {
            None => 0,
            Some(u64::MAX) => return Vec::new(),
            Some(c) => c + 1,
        };
        self.t
            .objects
            .range(&ObjectId { session, incarnation, counter })
            .map(|(id, _)| id)
            .take_while(|id| (id.session, id.incarnation) == (session, incarnation))
            .take(limit)
            .collect()
    }
}
