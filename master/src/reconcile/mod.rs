//! The leader's background work: what the committed state asks for and is not done yet. Every step is idempotent and
//! derived from the state, so a new leader simply continues; nothing is remembered that is not committed.

mod create;
mod remove;
mod sessions;
mod sweep;

use crate::core::Core;
use fusefs_types::{
    FsError, NodeId, PartitionId, VolumeId,
    cluster::{Member, NodeCall, NodeReply},
    ops::Refusal,
};
use futures::future::BoxFuture;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Another member may answer what this one refused: it does not lead, is away, or has lost its replica.
fn elsewhere(e: FsError) -> bool {
    matches!(e, FsError::NotLeader | FsError::Unavailable | FsError::TimedOut | FsError::NotFound)
}

/// Kinds of work, each with its own loop, so that a slow sweep delays no creation.
type Pass = for<'a> fn(&'a Core) -> BoxFuture<'a, ()>;

const PASSES: [Pass; 6] = [
    |c| Box::pin(c.lead_pass()),
    |c| Box::pin(c.create_pass()),
    |c| Box::pin(c.session_pass()),
    |c| Box::pin(c.delete_pass()),
    |c| Box::pin(c.doomed_pass()),
    |c| Box::pin(c.sweep_pass()),
];

impl Core {
    /// Runs the background work until the returned future is dropped. Call it once.
    pub async fn reconcile(self: Arc<Core>) {
        futures::future::join_all(PASSES.iter().map(|pass| self.repeat(*pass))).await;
    }

    async fn repeat(&self, pass: Pass) {
        let rest = Duration::from_millis(self.settings.background_ms);
        loop {
            let kicked = self.kick.notified();
            let status = self.log.leadership().borrow().clone();
            if status.ready {
                self.enter(&status);
                pass(self).await;
            }
            let _ = timeout(rest, kicked).await;
        }
    }

    /// What a leader does first and now and then: names the cluster, forgets sessions that ended.
    async fn lead_pass(&self) {
        if self.named().await.is_err() {
            return;
        }
        let mut memory = self.memory.lock();
        let gone: Vec<_> =
            self.view(|s| memory.renewed.keys().filter(|id| s.session(**id).is_none()).copied().collect());
        gone.iter().for_each(|id| {
            memory.renewed.remove(id);
        });
        let gone: Vec<_> =
            self.view(|s| memory.leaders.keys().filter(|id| s.partition(**id).is_none()).copied().collect());
        gone.iter().for_each(|id| {
            memory.leaders.remove(id);
        });
    }

    /// Sends an order to whoever leads a partition: the reported leader first, then the addresses that refusals name,
    /// then the other members.
    pub(crate) async fn order_leader(&self, partition: PartitionId, call: &NodeCall) -> Result<NodeReply, Refusal> {
        let Some((volume, members, hint)) = self.leader_hint(partition) else {
            return Err(FsError::NotFound.into());
        };
        let mut queue: Vec<String> = members.iter().map(|m| m.addr.clone()).collect();
        queue.sort_by_key(|addr| !members.iter().any(|m| m.addr == *addr && Some(m.node) == hint));
        let mut tried: Vec<String> = Vec::new();
        let mut last = Refusal::from(FsError::Unavailable);
        while let Some(addr) = queue.iter().find(|a| !tried.contains(a)).cloned() {
            tried.push(addr.clone());
            match self.order(&addr, volume, call.clone()).await {
                Ok(reply) => return Ok(reply),
                Err(r) if elsewhere(r.error) => {
                    if let Some(next) = r.leader.clone().filter(|l| !tried.contains(l)) {
                        queue.insert(0, next);
                    }
                    last = r;
                }
                Err(r) => return Err(r),
            }
        }
        Err(last)
    }

    fn leader_hint(&self, partition: PartitionId) -> Option<(VolumeId, Vec<Member>, Option<NodeId>)> {
        let hint = self.memory.lock().leaders.get(&partition).map(|l| l.node);
        self.view(|s| s.partition(partition).map(|p| (p.volume, s.members(p), hint)))
    }
}
