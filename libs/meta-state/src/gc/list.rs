//! Listing objects by id.

use crate::Partition;
use fusefs_types::ObjectId;

impl Partition {
    /// Objects with a record here, living or dead, in order of their ids: those after `after`, at most `limit`.
    pub fn objects(&self, after: Option<ObjectId>, limit: usize) -> Vec<ObjectId> {
        let first = ObjectId { session: Default::default(), incarnation: Default::default(), counter: 0 };
        self.t
            .objects
            .range(&after.unwrap_or(first))
            .map(|(id, _)| id)
            .filter(|id| Some(*id) != after)
            .take(limit)
            .collect()
    }
}
