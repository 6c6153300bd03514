//! Objects that an ended session uploaded and nobody references (PROTOCOL 33). When this runs, every partition has
//! acknowledged the end, so no commit can name an object of the session any more.

use super::remove::PAGE;
use crate::core::Core;
use fusefs_cluster_state::{
    Command,
    record::{Sweep, SweepRound},
};
use fusefs_data_path::ObjectStore;
use fusefs_types::{Incarnation, ObjectId, PartitionId, SessionId};
use futures::stream::{self, StreamExt, TryStreamExt};
use std::{collections::BTreeSet, sync::Arc};

/// Prefixes listed at once.
const PARALLEL: usize = 16;

impl Core {
    pub(super) async fn sweep_pass(&self) {
        let now = self.now_ns();
        let due = |s: &Sweep| {
            let after = match s.round {
                SweepRound::First => self.settings.sweep_grace_ms,
                SweepRound::Second => self.settings.second_sweep_ms.max(self.settings.sweep_grace_ms),
            };
            now >= s.since_ns.saturating_add(after.saturating_mul(1_000_000))
        };
        let due: Vec<Sweep> = self.view(|s| s.sweeps().filter(|x| due(x)).cloned().collect());
        for sweep in due {
            match self.sweep(&sweep).await {
                Ok(deleted) => {
                    if deleted > 0 {
                        tracing::info!(session = %sweep.session, deleted, "unreferenced objects deleted");
                    }
                    self.memory.lock().sweeping.remove(&sweep.session);
                    let _ = self.commit(Command::SweepDone((sweep.session, sweep.round))).await;
                }
                Err(why) => {
                    tracing::warn!(session = %sweep.session, why, "sweep failed; it will be tried again");
                    self.memory.lock().sweeping.insert(sweep.session, why);
                }
            }
        }
    }

    /// Number of deleted objects, or why it could not be finished.
    async fn sweep(&self, sweep: &Sweep) -> Result<usize, String> {
        let store = self.view(|s| s.store(sweep.store).cloned()).ok_or("its store is unknown")?;
        let store = self.stores.open(&store).await.map_err(|r| r.message)?;
        let found = list_session(&store, sweep.session).await?;
        if found.is_empty() {
            return Ok(0);
        }
        // A volume that is gone references nothing; one that is being deleted takes its objects along anyway.
        let partitions = self.view(|s| s.volume(sweep.volume).map(|v| v.partitions.clone())).unwrap_or_default();
        let mut referenced = BTreeSet::new();
        for p in partitions {
            self.referenced(p, sweep.session, &mut referenced).await?;
        }
        let keys: Vec<String> = found.iter().filter(|id| !referenced.contains(*id)).map(ObjectId::key).collect();
        for page in keys.chunks(PAGE as usize) {
            store.delete(page).await.map_err(|e| format!("deleting objects: {e}"))?;
        }
        Ok(keys.len())
    }

    /// Objects of the session that a partition has a record of. Pages start just below the session's first object.
    async fn referenced(
        &self,
        partition: PartitionId,
        session: SessionId,
        into: &mut BTreeSet<ObjectId>,
    ) -> Result<(), String> {
        let last_before = ObjectId {
            session: SessionId(session.0.saturating_sub(1)),
            incarnation: Incarnation(u32::MAX),
            counter: u64::MAX,
        };
        let mut after = Some(last_before);
        loop {
            let page = self.objects_of(partition, after).await?;
            after = page.last().copied();
            let own = page.iter().filter(|id| id.session == session).copied();
            into.extend(own);
            let past = page.last().is_none_or(|id| id.session > session);
            if past || page.len() < PAGE as usize {
                return Ok(());
            }
        }
    }
}

/// All objects of a session that the store has: 256 short listings, because keys are spread over prefixes.
async fn list_session(store: &Arc<dyn ObjectStore>, session: SessionId) -> Result<Vec<ObjectId>, String> {
    let pages: Vec<Vec<ObjectId>> = stream::iter(0u16..256)
        .map(|shard| list_shard(store.clone(), format!("{shard:02x}/{session}.")))
        .buffer_unordered(PARALLEL)
        .try_collect()
        .await?;
    Ok(pages.into_iter().flatten().collect())
}

async fn list_shard(store: Arc<dyn ObjectStore>, prefix: String) -> Result<Vec<ObjectId>, String> {
    let mut found = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page =
            store.list(&prefix, after.as_deref(), PAGE as usize).await.map_err(|e| format!("listing objects: {e}"))?;
        found.extend(page.iter().filter_map(|(key, _)| ObjectId::parse(key)));
        if page.len() < PAGE as usize {
            return Ok(found);
        }
        after = page.into_iter().next_back().map(|(key, _)| key);
    }
}
