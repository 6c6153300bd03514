//! [`Log`] on one raft group of `fusefs-raft-host`.

use crate::{
    log::{Leadership, Log, LogError},
    machine::MasterMachine,
};
use async_trait::async_trait;
use fusefs_cluster_state::{Applied, ClusterState, Command};
use fusefs_raft_host::{Components, Group, GroupSpec, Host, HostError, ProposeError, Settings, Timers};
use fusefs_types::{ClusterId, NodeId, PartitionId, ReplicaId, cluster::Member};
use std::sync::Arc;
use tokio::{sync::watch, task::JoinHandle};

/// Owner of every master's disk. The cluster's own name is decided by the first leader and lives in the state, so the
/// disk cannot carry it; masters of different clusters are kept apart by their peer lists and the cluster token.
pub const MASTERS: ClusterId = ClusterId(u128::from_be_bytes(*b"fusefs-masters-1"));

/// Node id of the `index`th master: its place in the peer list, so that addresses may change and swapped data
/// directories are noticed.
pub fn master_node(index: usize) -> NodeId {
    NodeId(u128::from_be_bytes(*b"fusefs-master\0\0\0") + 1 + index as u128)
}

/// The masters' group on this node.
pub struct RaftLog {
    host: Arc<Host<MasterMachine>>,
    group: Group<MasterMachine>,
    peers: Vec<String>,
    index: usize,
    status: watch::Sender<Leadership>,
    follow: JoinHandle<()>,
}

impl Drop for RaftLog {
    fn drop(&mut self) {
        self.follow.abort();
    }
}

impl RaftLog {
    /// Opens the disk and joins the group of `peers` (all masters in the same order everywhere) as number `index`.
    pub async fn open(
        peers: Vec<String>,
        index: usize,
        timers: Timers,
        components: Components,
    ) -> Result<Arc<RaftLog>, HostError> {
        let settings = Settings { timers, ..Settings::new(MASTERS, master_node(index)) };
        let host = Host::open(settings, components, Arc::new(|_: &GroupSpec| MasterMachine::default())).await?;
        for (i, addr) in peers.iter().enumerate() {
            host.set_address(master_node(i), addr.clone());
        }
        let members = peers.iter().enumerate().map(|(i, addr)| Member {
            replica: ReplicaId(i as u64 + 1),
            node: master_node(i),
            addr: addr.clone(),
        });
        let spec = GroupSpec {
            group: PartitionId::MASTER,
            replica: ReplicaId(index as u64 + 1),
            members: members.collect(),
            label: bytes::Bytes::new(),
        };
        let group = host.create_group(spec).await?;
        let nodes = group.spec().members.len();
        if nodes != peers.len() {
            return Err(HostError::Invalid(format!(
                "this data directory is one of {nodes} masters, but {} are configured; the number cannot be changed yet",
                peers.len()
            )));
        }
        let status = watch::Sender::new(leadership(&group.status(), &peers));
        let follow = tokio::spawn(follow(group.watch(), status.clone(), peers.clone()));
        Ok(Arc::new(RaftLog { host, group, peers, index, status, follow }))
    }

    /// The host, for the peer service.
    pub fn host(&self) -> &Arc<Host<MasterMachine>> {
        &self.host
    }

    /// Stops in order.
    pub async fn shutdown(&self) {
        self.status.send_modify(|s| {
            s.ready = false;
            s.stopped = Some("it is shutting down".into());
        });
        self.host.shutdown().await;
    }
}

fn leadership(s: &fusefs_raft_host::GroupStatus, peers: &[String]) -> Leadership {
    // The present address of the leader, not the one of the time when the group was made.
    let place = |m: &Member| (0..peers.len()).find(|i| master_node(*i) == m.node).map(|i| peers[i].clone());
    Leadership {
        ready: s.ready && s.stopped.is_none(),
        leader: s.leader.as_ref().and_then(place),
        term: s.term,
        stopped: s.stopped.clone(),
    }
}

async fn follow(
    mut from: watch::Receiver<fusefs_raft_host::GroupStatus>,
    to: watch::Sender<Leadership>,
    peers: Vec<String>,
) {
    loop {
        let now = leadership(&from.borrow_and_update(), &peers);
        to.send_if_modified(|old| {
            let differs = *old != now && old.stopped.is_none();
            if differs {
                *old = now;
            }
            differs
        });
        if from.changed().await.is_err() {
            return;
        }
    }
}

impl From<ProposeError> for LogError {
    fn from(e: ProposeError) -> LogError {
        match e {
            ProposeError::NotLeader(_) => LogError::NotLeader,
            ProposeError::Unavailable | ProposeError::Busy | ProposeError::Stopped(_) => LogError::Unavailable,
            ProposeError::TooLarge => LogError::Refused("the request is too large for the masters' log".into()),
        }
    }
}

#[async_trait]
impl Log for RaftLog {
    async fn propose(&self, command: Command) -> Result<Applied, LogError> {
        Ok(self.group.propose(command.encode().into()).await?)
    }
    async fn barrier(&self) -> Result<(), LogError> {
        Ok(self.group.read_barrier().await?)
    }
    fn read(&self, f: &mut dyn FnMut(&ClusterState)) {
        self.group.read(|m| f(m.state()));
    }
    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.status.subscribe()
    }
    fn masters(&self) -> Vec<(String, bool, bool)> {
        let leader = self.status.borrow().leader.clone();
        let one = |(i, addr): (usize, &String)| {
            let reachable = i == self.index || self.host.node_alive(master_node(i));
            (addr.clone(), leader.as_ref() == Some(addr), reachable)
        };
        self.peers.iter().enumerate().map(one).collect()
    }
}
