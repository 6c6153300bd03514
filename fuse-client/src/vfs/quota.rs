//! The volume's capacity: writes are refused once the masters have counted that it is used up.
//!
//! The count is as old as the last heartbeat of a partition and the last renewal of the lease (7 s), so a volume can grow
//! beyond its capacity by what is written meanwhile. Near the end, and while writes are refused, the count is asked for
//! four times a second. Nothing acknowledged is ever refused later. Cost: no RPC of its own.

use crate::Meta;
use fusefs_data_path::writer::Credits;
use fusefs_types::{FsError, FsResult};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

pub(super) struct Quota {
    meta: Arc<dyn Meta>,
    /// Bytes written here since the count was last asked for ahead of time; the next count has them.
    since: AtomicU64,
}

impl Quota {
    pub fn new(meta: Arc<dyn Meta>) -> Quota {
        Quota { meta, since: AtomicU64::new(0) }
    }
}

impl Credits for Quota {
    fn take(&self, bytes: u64) -> FsResult<()> {
        let space = self.meta.space();
        if space.capacity == 0 {
            return Ok(());
        }
        if space.used >= space.capacity {
            self.meta.recount();
            return Err(FsError::NoSpace);
        }
        let since = self.since.fetch_add(bytes, Relaxed).saturating_add(bytes);
        // What overwrites counts here, too, and must not be refused for it: only the masters' count decides.
        if space.used.saturating_add(since) >= space.capacity && self.meta.recount() {
            self.since.store(0, Relaxed);
        }
        Ok(())
    }

    fn settle(&self, _: u64) {}
}
