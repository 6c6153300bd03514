//! Metanodes: register, heartbeat, and who may take replicas.

use crate::core::{Core, Step, halt};
use fusefs_cluster_state::{Command, placement::Candidate};
use fusefs_types::{
    FsError,
    cluster::{Heartbeat, MasterReply, NodeRecord},
};

impl Core {
    pub(super) async fn register(&self, node: &NodeRecord) -> Step<MasterReply> {
        let known = self.view(|s| s.node(node.id) == Some(node));
        if !known {
            self.commit(Command::RegisterNode(node.clone())).await?;
        }
        Ok(MasterReply::Registered(self.named().await?))
    }

    pub(super) async fn heartbeat(&self, h: &Heartbeat) -> Step<MasterReply> {
        // A leader that was cut off must not keep the reports from the one that replaced it.
        self.barrier().await?;
        if self.view(|s| s.node(h.node).is_none()) {
            return halt(FsError::NotFound, "this metanode is not registered; register again");
        }
        let moved = self.memory.lock().heartbeat(h.clone(), self.clock.boot_ns());
        if moved {
            self.announce();
        }
        Ok(MasterReply::Ok)
    }

    /// Metanodes that live, with their load: what they report plus what was placed on them and is not reported yet.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let memory = self.memory.lock();
        let now = self.clock.boot_ns();
        self.view(|s| {
            let placed = |node| s.partitions().filter(|p| p.members.iter().any(|(_, n)| *n == node)).count() as u32;
            let leads = |node| s.partitions().filter(|p| p.members.first().is_some_and(|(_, n)| *n == node)).count();
            s.nodes()
                .filter(|n| memory.nodes.contains_key(&n.id))
                .filter(|n| memory.silent_ms(n.id, now) <= self.settings.node_silent_ms)
                .map(|n| {
                    let used = memory.nodes.get(&n.id).map_or(0, |seen| seen.heartbeat.memory_used);
                    Candidate {
                        node: n.id,
                        addr: n.addr.clone(),
                        host: n.host.clone(),
                        memory: n.memory,
                        memory_used: used,
                        replicas: placed(n.id),
                        leaders: leads(n.id) as u32,
                    }
                })
                .collect()
        })
    }

    /// A leader that has just begun has not heard from everybody: true while a missing heartbeat proves nothing.
    pub(crate) fn still_listening(&self) -> bool {
        let memory = self.memory.lock();
        let now = self.clock.boot_ns();
        let young = now.saturating_sub(memory.since) / 1_000_000 < self.settings.node_silent_ms;
        young && self.view(|s| s.nodes().any(|n| !memory.nodes.contains_key(&n.id)))
    }
}
