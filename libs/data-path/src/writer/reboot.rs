//! A journal that outlived its machine.
//!
//! After a power loss any of its pages may be missing, also those that say that a write was committed long ago and
//! overwritten since. Such a write must not be replayed. So a write counts only if the inode is still the version
//! that the journal knows: the newest one that a writer had seen, or that one of our commits made.

use crate::{journal::Recovered, pace, sink::MetaSink};
use fusefs_types::{FsError, Hlc, Ino};

/// Finishes the commits that were on their way and takes out the inodes that changed since. Returns those.
pub(super) async fn screen(sink: &dyn MetaSink, recovered: &mut Recovered) -> Vec<Ino> {
    let numbers: Vec<u64> = recovered.pending.values().flat_map(|p| p.intents.iter().map(|i| i.number)).collect();
    sink.resume(&numbers);
    let mut left = Vec::new();
    let pending = std::mem::take(&mut recovered.pending);
    for (ino, mut p) in pending {
        let mut known = p.known;
        for intent in std::mem::take(&mut p.intents) {
            match pace::meta(None, || sink.commit(intent.number, intent.file.clone())).await {
                Ok(attr) => known = known.max(attr.change),
                Err(FsError::TooOld) => {} // executed; what it made of the file is not known
                Err(_) => continue,        // nothing was applied: its writes are as pending as the others
            }
            p.writes.retain(|w| w.lsn > intent.covers);
        }
        if p.writes.is_empty() {
            continue;
        }
        match pace::meta(None, || sink.extents(ino, 0, 1)).await {
            Ok(map) if known != Hlc(0) && map.attr.change == known => _ = recovered.pending.insert(ino, p),
            Ok(_) => {
                tracing::warn!(%ino, "the file changed since: its uncommitted bytes stay in the journal");
                left.push(ino);
            }
            Err(FsError::NotFound) => tracing::info!(%ino, "the file is gone"),
            Err(error) => {
                tracing::warn!(%ino, %error, "the file cannot be asked for: its bytes stay in the journal");
                left.push(ino);
            }
        }
    }
    left
}
