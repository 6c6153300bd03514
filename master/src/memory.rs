//! Leader memory: heartbeats, leases, usage, who leads which partition. Nothing of it is replicated; a new leader starts
//! with an empty one and grants everyone a full lease (PROTOCOL 12).

use fusefs_types::{
    NodeId, PartitionId, ReplicaId, SessionId, VolumeId,
    cluster::{Heartbeat, ReplicaReport},
    ops::PartitionUsage,
};
use std::collections::BTreeMap;

/// Last word of one metanode.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When it came (boot ns).
    pub at: u64,
    /// What it said.
    pub heartbeat: Heartbeat,
}

/// What the leader of a partition reported last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderReport {
    /// Replica.
    pub replica: ReplicaId,
    /// Node.
    pub node: NodeId,
    /// Raft term; a report of an older one is ignored.
    pub term: u64,
    /// Counters.
    pub usage: PartitionUsage,
    /// Inode numbers left.
    pub inos_left: u64,
}

/// Memory of one term as leader.
#[derive(Debug, Default)]
pub struct Memory {
    /// Term it belongs to.
    pub term: u64,
    /// When this master became ready in it (boot ns).
    pub since: u64,
    /// Metanodes heard of.
    pub nodes: BTreeMap<NodeId, Seen>,
    /// Last renewal of sessions (boot ns).
    pub renewed: BTreeMap<SessionId, u64>,
    /// Leaders of partitions.
    pub leaders: BTreeMap<PartitionId, LeaderReport>,
    /// Since when a metanode does not answer while a volume is created (boot ns), and what is missing, in words.
    pub creating: BTreeMap<VolumeId, (u64, String)>,
    /// What the deletion of a volume waits for, in words.
    pub deleting: BTreeMap<VolumeId, String>,
    /// What a sweep failed with last.
    pub sweeping: BTreeMap<SessionId, String>,
}

impl Memory {
    /// Starts over when the term is a new one.
    pub fn enter(&mut self, term: u64, now: u64) {
        if self.term != term {
            *self = Memory { term, since: now, ..Memory::default() };
        }
    }

    /// Takes a heartbeat; true when a partition's leader is another one than before.
    pub fn heartbeat(&mut self, h: Heartbeat, now: u64) -> bool {
        let mut moved = false;
        for r in &h.replicas {
            moved |= self.report(h.node, r);
        }
        // A leader that does not say so any more leads no more, unless somebody else took over already.
        let leads = |p: &PartitionId, l: &LeaderReport| {
            h.replicas.iter().any(|r| r.partition == *p && r.replica == l.replica && r.leader)
        };
        let before = self.leaders.len();
        self.leaders.retain(|p, l| l.node != h.node || leads(p, l));
        moved |= self.leaders.len() != before;
        self.nodes.insert(h.node, Seen { at: now, heartbeat: h });
        moved
    }

    fn report(&mut self, node: NodeId, r: &ReplicaReport) -> bool {
        if !r.leader {
            return false;
        }
        let known = self.leaders.get(&r.partition);
        if known.is_some_and(|k| k.term > r.term) {
            return false;
        }
        let moved = known.is_none_or(|k| k.replica != r.replica || k.node != node);
        let report = LeaderReport { replica: r.replica, node, term: r.term, usage: r.usage, inos_left: r.inos_left };
        self.leaders.insert(r.partition, report);
        moved
    }

    /// Milliseconds since the node's last heartbeat; since this term began if there was none.
    pub fn silent_ms(&self, node: NodeId, now: u64) -> u64 {
        let last = self.nodes.get(&node).map_or(self.since, |s| s.at);
        now.saturating_sub(last) / 1_000_000
    }

    /// Milliseconds since the session's last renewal; a new leader counts from its own beginning.
    pub fn idle_ms(&self, session: SessionId, now: u64) -> u64 {
        let last = self.renewed.get(&session).copied().unwrap_or(self.since);
        now.saturating_sub(last) / 1_000_000
    }

    /// Sum of the usage of partitions.
    pub fn usage(&self, partitions: &[PartitionId]) -> PartitionUsage {
        let mut sum = PartitionUsage::default();
        for u in partitions.iter().filter_map(|p| self.leaders.get(p)).map(|l| l.usage) {
            sum.inodes += u.inodes;
            sum.bytes += u.bytes;
            sum.inline_bytes += u.inline_bytes;
            sum.transactions += u.transactions;
            sum.operations += u.operations;
            sum.orphans += u.orphans;
            sum.objects += u.objects;
        }
        sum
    }
}
