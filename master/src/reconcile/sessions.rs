//! Ends of sessions, expiry, and ranges of inode numbers.

use crate::core::Core;
use fusefs_cluster_state::{
    Command,
    command::SessionEnded,
    record::{Grant, Session},
};
use fusefs_types::{
    FsError, PartitionId,
    cluster::{NodeCall, VolumeState},
    txn::Internal,
};
use futures::future::join_all;

impl Core {
    pub(super) async fn session_pass(&self) {
        self.expire().await;
        let ending: Vec<Session> = self.view(|s| s.sessions().filter(|x| x.ending.is_some()).cloned().collect());
        join_all(ending.iter().map(|s| self.tell_partitions(s))).await;
        self.deliver_ranges().await;
        self.grant_ranges().await;
    }

    /// Sessions that nobody has renewed for the whole time to live end; that is a committed decision.
    async fn expire(&self) {
        let now = self.clock.boot_ns();
        let expired: Vec<_> = {
            let memory = self.memory.lock();
            self.view(|s| {
                let open = s.sessions().filter(|x| x.ending.is_none());
                open.filter(|x| memory.idle_ms(x.id, now) > self.settings.session_ttl_ms).map(|x| x.id).collect()
            })
        };
        for session in expired {
            tracing::info!(%session, "session expired");
            if self.end(session, None, 0).await.is_err() {
                return;
            }
        }
    }

    async fn tell_partitions(&self, s: &Session) {
        let Some(ending) = &s.ending else { return };
        let end = Internal::EndSession { session: s.id, revoked: ending.revoked };
        let told = join_all(ending.pending.iter().map(|p| {
            let call = NodeCall::Command(*p, end.clone());
            async move { self.told(*p, &call).await.then_some(*p) }
        }))
        .await;
        let partitions: Vec<PartitionId> = told.into_iter().flatten().collect();
        if !partitions.is_empty() {
            let at_ns = self.now_ns();
            // Not committed: the next round tells them again, which is idempotent.
            let _ = self.commit(Command::SessionEnded(SessionEnded { session: s.id, partitions, at_ns })).await;
        }
    }

    async fn told(&self, partition: PartitionId, call: &NodeCall) -> bool {
        match self.order_leader(partition, call).await {
            Ok(_) => true,
            // It knew already, and has forgotten the session since.
            Err(r) => {
                let known = matches!(r.error, FsError::Stale | FsError::NotAttached);
                if !known {
                    tracing::debug!(%partition, error = %r.error, "a partition could not be told of a session's end");
                }
                known
            }
        }
    }

    /// Grants that were committed but have not reached their partition.
    async fn deliver_ranges(&self) {
        let undelivered: Vec<(PartitionId, Grant)> =
            self.view(|s| s.partitions().flat_map(|p| p.undelivered.iter().map(|g| (p.id, *g))).collect());
        for (partition, grant) in undelivered {
            let grant_range = Internal::GrantRange { range: grant.range, generation: grant.generation };
            if self.order_leader(partition, &NodeCall::Command(partition, grant_range)).await.is_ok() {
                let _ = self.commit(Command::RangeDelivered((partition, grant))).await;
            }
        }
    }

    /// The next range is granted ahead of need (PROTOCOL 2).
    async fn grant_ranges(&self) {
        let low: Vec<PartitionId> = {
            let memory = self.memory.lock();
            let low =
                |p: &PartitionId| memory.leaders.get(p).is_some_and(|l| l.inos_left < self.settings.range_low_water);
            self.view(|s| {
                let ready = s.volumes().filter(|v| v.state == VolumeState::Ready);
                let all = ready.flat_map(|v| v.partitions.iter().copied()).filter(low);
                all.filter(|p| s.partition(*p).is_some_and(|p| p.undelivered.is_empty())).collect()
            })
        };
        for partition in low {
            if self.commit(Command::GrantRange(partition)).await.is_ok() {
                // Until the next report the number is not known; without this the next round would grant again.
                if let Some(l) = self.memory.lock().leaders.get_mut(&partition) {
                    l.inos_left = u64::MAX;
                }
            }
        }
        self.deliver_ranges().await;
    }
}
