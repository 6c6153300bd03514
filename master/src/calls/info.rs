//! Cluster info: what runs, and in words what is not safe.

use crate::{
    core::{Core, Step},
    memory::Memory,
};
use fusefs_cluster_state::{ClusterState, record::Volume};
use fusefs_types::cluster::{ClusterInfo, MasterReply, NodeStatus, VolumeState};

impl Core {
    pub(super) async fn info(&self) -> Step<MasterReply> {
        self.barrier().await?;
        Ok(MasterReply::Info(self.cluster_info()))
    }

    /// Everything `fusefs status` shows.
    pub(crate) fn cluster_info(&self) -> ClusterInfo {
        let masters = self.log.masters();
        let volumes = self.records(|_| true);
        let memory = self.memory.lock();
        let now = self.clock.boot_ns();
        self.view(|s| {
            let nodes: Vec<NodeStatus> = s.nodes().map(|n| self.node_status(s, &memory, n, now)).collect();
            let mut problems = Vec::new();
            let away: Vec<_> = masters.iter().filter(|m| !m.2).map(|m| m.0.as_str()).collect();
            if !away.is_empty() {
                problems.push(format!("{} of {} masters unreachable: {}", away.len(), masters.len(), away.join(", ")));
            }
            for n in nodes.iter().filter(|n| !n.alive) {
                let silent = n.silent_ms / 1000;
                problems.push(format!(
                    "metanode {} has been silent for {silent} s; {} replicas on it",
                    n.record.addr, n.replicas
                ));
            }
            s.volumes().for_each(|v| volume_problems(s, &memory, &nodes, v, &mut problems));
            problems.extend(memory.sweeping.values().map(|why| format!("looking for unreferenced objects: {why}")));
            ClusterInfo { cluster: s.cluster(), masters, nodes, volumes, problems }
        })
    }

    fn node_status(
        &self,
        s: &ClusterState,
        memory: &Memory,
        n: &fusefs_types::cluster::NodeRecord,
        now: u64,
    ) -> NodeStatus {
        let seen = memory.nodes.get(&n.id);
        let silent_ms = memory.silent_ms(n.id, now);
        let hosts = |p: &&fusefs_cluster_state::record::Partition| p.members.iter().any(|(_, node)| *node == n.id);
        NodeStatus {
            record: n.clone(),
            alive: silent_ms <= self.settings.node_silent_ms,
            silent_ms,
            replicas: s.partitions().filter(hosts).count() as u32,
            leaders: memory.leaders.values().filter(|l| l.node == n.id).count() as u32,
            memory_used: seen.map_or(0, |x| x.heartbeat.memory_used),
            disk_used: seen.map_or(0, |x| x.heartbeat.disk_used),
        }
    }
}

fn volume_problems(s: &ClusterState, memory: &Memory, nodes: &[NodeStatus], v: &Volume, out: &mut Vec<String>) {
    let name = &v.spec.name;
    match v.state {
        VolumeState::Creating => {
            let why = memory.creating.get(&v.id).map_or("its partitions are starting", |(_, why)| why.as_str());
            out.push(format!("volume {name} is being created: {why}"));
            return;
        }
        VolumeState::Deleting => {
            if let Some(why) = memory.deleting.get(&v.id) {
                out.push(format!("volume {name} is being deleted: {why}"));
            }
            return;
        }
        VolumeState::Ready => {}
    }
    for p in v.partitions.iter().filter_map(|id| s.partition(*id)) {
        if !memory.leaders.contains_key(&p.id) {
            out.push(format!("volume {name}: partition {} has no leader; its files wait", p.id));
            continue;
        }
        let alive = |n: &fusefs_types::NodeId| nodes.iter().any(|x| x.record.id == *n && x.alive);
        let up = p.members.iter().filter(|(_, n)| alive(n)).count();
        if up < p.members.len() {
            out.push(format!("volume {name}: partition {} has {up} of {} replicas", p.id, p.members.len()));
        }
    }
    for r in memory.nodes.values().flat_map(|seen| &seen.heartbeat.replicas) {
        if !r.failed.is_empty() && v.partitions.contains(&r.partition) {
            out.push(format!(
                "volume {name}: replica {} of partition {} stopped: {}",
                r.replica, r.partition, r.failed
            ));
        }
    }
}
