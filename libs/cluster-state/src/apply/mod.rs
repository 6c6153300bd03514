//! `apply`: one command, decided against the state. Each function checks everything first and changes afterwards, so that
//! a rejection has changed nothing.

mod publish;
mod session;
mod store;
mod volume;

pub(crate) use publish::of as publications_of;

use crate::{ClusterState, command::*, valid};
use fusefs_types::{ClusterId, cluster::NodeRecord};

impl ClusterState {
    /// Applies one command. Deterministic and total.
    pub fn apply(&mut self, command: &Command) -> Applied {
        match command {
            Command::Init(cluster) => self.init(*cluster),
            Command::RegisterNode(node) => self.register_node(node),
            Command::ReserveStore => self.reserve_store(),
            Command::AddStore(store) => self.add_store(store),
            Command::SetProbe((store, probe)) => self.set_probe(*store, probe),
            Command::CreateVolume(c) => self.create_volume(c),
            Command::ReplaceVolume(c) => self.replace_volume(c),
            Command::VolumeReady(volume) => self.volume_ready(*volume),
            Command::ExpandVolume(c) => self.expand_volume(c),
            Command::DeleteVolume(c) => self.delete_volume(c),
            Command::VolumeGone(volume) => self.volume_gone(*volume),
            Command::ReplicasDestroyed(replicas) => {
                replicas.iter().for_each(|r| {
                    self.doomed.remove(r);
                });
                Ok(Outcome::Ok)
            }
            Command::GrantRange(partition) => self.grant_range(*partition),
            Command::RangeDelivered((partition, grant)) => {
                if let Some(p) = self.partitions.get_mut(partition) {
                    p.undelivered.retain(|g| g != grant);
                }
                Ok(Outcome::Ok)
            }
            Command::OpenSession(c) => self.open_session(c),
            Command::AttachSession(c) => self.attach_session(c),
            Command::Fence(c) => self.fence(c),
            Command::EndSession(c) => self.end_session(c),
            Command::SessionEnded(c) => self.session_ended(c),
            Command::SweepDone((session, round)) => self.sweep_done(*session, *round),
            Command::BumpAttach((volume, node)) => self.bump_attach(*volume, node),
            Command::AddMounter((node, at_ns)) => self.add_mounter(node, *at_ns),
            Command::Publish(c) => self.publish(c),
            Command::Unpublish(c) => self.unpublish(c),
        }
    }

    fn init(&mut self, cluster: ClusterId) -> Applied {
        if self.cluster.0 == 0 {
            self.cluster = cluster;
        }
        Ok(Outcome::Cluster(self.cluster))
    }

    fn register_node(&mut self, node: &NodeRecord) -> Applied {
        valid::node(node)?;
        let mut node = node.clone();
        if node.host.is_empty() {
            node.host = node.addr.rsplit_once(':').map_or(node.addr.as_str(), |(host, _)| host).to_owned();
        }
        let moved = self.nodes.get(&node.id).is_some_and(|old| old.addr != node.addr);
        let id = node.id;
        self.nodes.insert(id, node);
        if moved {
            // Clients learn the new address from a newer map.
            let hosted = self.partitions.values().filter(|p| p.members.iter().any(|(_, n)| *n == id));
            for volume in hosted.map(|p| p.volume).collect::<std::collections::BTreeSet<_>>() {
                if let Some(v) = self.volumes.get_mut(&volume) {
                    v.generation += 1;
                }
            }
        }
        Ok(Outcome::Ok)
    }
}
