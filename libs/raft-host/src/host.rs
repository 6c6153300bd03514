//! All replicas of one node on one disk.

use crate::{
    api::{Components, GroupSpec, HostError, LogStats, Machine, MakeMachine, Settings},
    disk::Disk,
    group::{Group, Parts},
    log::{
        Log,
        format::{HardState, Key},
    },
    machine::{Cell, Sm, blocking},
    net::{
        PeerAnswer, PeerBody, PeerHandler, PeerReply, PeerRequest,
        raft_net::{Addresses, Factory, Links},
    },
    raft::{PeerNode, Raft},
    store::LogStore,
    superblock::Superblock,
};
use async_trait::async_trait;
use fusefs_types::{DiskId, NodeId, PartitionId, ReplicaId, Rng, cluster::Member};
use openraft::{Config, SnapshotPolicy};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{task::JoinHandle, time::Instant};

/// Elections are looked after this often.
const ELECTION_TICK: Duration = Duration::from_millis(50);
/// Checkpoints are looked after this often.
const CHECKPOINT_TICK: Duration = Duration::from_millis(500);
/// Longest label of a group.
const LABEL_BYTES_MAX: usize = 64 << 10;

/// All replicas of one node on one disk. See the crate documentation.
pub struct Host<M: Machine> {
    settings: Settings,
    components: Components,
    make: MakeMachine<M>,
    log: Log,
    superblock: Superblock,
    groups: RwLock<BTreeMap<PartitionId, Group<M>>>,
    /// Serialises create and destroy.
    changing: tokio::sync::Mutex<()>,
    addresses: Arc<Addresses>,
    seen: Mutex<BTreeMap<NodeId, Instant>>,
    failed: RwLock<BTreeMap<PartitionId, (GroupSpec, String)>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    closed: AtomicBool,
}

fn open_disk(disk: &Arc<dyn Disk>, settings: &Settings, rng: &Arc<dyn Rng>) -> Result<(Superblock, Log), HostError> {
    match Superblock::read(disk.as_ref()) {
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => Err(HostError::Damaged(e.to_string())),
        Err(e) => Err(e.into()),
        Ok(Some(found)) => {
            if found.cluster != settings.cluster || found.node != settings.node {
                let owner = format!("node {} of cluster {}", found.node, found.cluster);
                return Err(HostError::Foreign(owner));
            }
            disk.sync_dir("")?;
            Ok((found, Log::open(Arc::clone(disk), found.disk.0, settings.segment_bytes, false)?))
        }
        Ok(None) => {
            let disk_id = DiskId(rng.next_u128());
            let made = Superblock { cluster: settings.cluster, node: settings.node, disk: disk_id };
            // The log first: a disk with a superblock always has a log.
            let log = Log::open(Arc::clone(disk), disk_id.0, settings.segment_bytes, true)?;
            made.write(disk.as_ref())?;
            Ok((made, log))
        }
    }
}

fn raft_config(settings: &Settings) -> Result<Arc<Config>, HostError> {
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let timers = &settings.timers;
    let config = Config {
        cluster_name: settings.cluster.to_string(),
        heartbeat_interval: millis(timers.heartbeat),
        election_timeout_min: millis(timers.lease) * 4 / 5,
        election_timeout_max: millis(timers.lease),
        max_payload_entries: 1024,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX / 2,
        enable_elect: false,
        ..Config::default()
    };
    config.validate().map(Arc::new).map_err(|e| HostError::Invalid(e.to_string()))
}

impl<M: Machine> Host<M> {
    /// Opens the disk and restarts every group found on it. A group that cannot start is listed by
    /// [`Host::failed_groups`]; the others serve.
    ///
    /// # Errors
    /// Foreign, Damaged (the log as a whole), Io.
    pub async fn open(
        settings: Settings,
        components: Components,
        make: MakeMachine<M>,
    ) -> Result<Arc<Host<M>>, HostError> {
        let (disk, rng, s) = (Arc::clone(&components.disk), Arc::clone(&components.rng), settings.clone());
        let (superblock, log) = blocking(&components.disk, move || open_disk(&disk, &s, &rng)).await??;
        let host = Arc::new(Host {
            settings,
            components,
            make,
            superblock,
            groups: RwLock::new(BTreeMap::new()),
            changing: tokio::sync::Mutex::new(()),
            addresses: Arc::new(Addresses::default()),
            seen: Mutex::new(BTreeMap::new()),
            failed: RwLock::new(BTreeMap::new()),
            tasks: Mutex::new(Vec::new()),
            closed: AtomicBool::new(false),
            log,
        });
        for (_, state) in host.log.replicas() {
            let Some(spec) = state.spec.filter(|_| !state.tombstone) else { continue };
            if let Err(e) = host.start(spec.clone()).await {
                tracing::error!("group {} does not start: {e}", spec.group);
                host.failed.write().insert(spec.group, (spec, e.to_string()));
            }
        }
        let weak = Arc::downgrade(&host);
        let tasks = vec![
            tokio::spawn(elections(weak.clone())),
            tokio::spawn(heartbeats(weak.clone())),
            tokio::spawn(checkpoints(weak.clone())),
            tokio::spawn(disk_failure(weak, host.log.failure())),
        ];
        *host.tasks.lock() = tasks;
        Ok(host)
    }

    /// Owner of the disk.
    #[must_use]
    pub fn superblock(&self) -> Superblock {
        self.superblock
    }

    /// Creates this node's replica of a group, durably; the replica that is first in `members` founds the group.
    /// Repeating it is fine.
    ///
    /// # Errors
    /// Destroyed, Invalid (another replica of the group is here, `replica` is no member), Stopped, Io.
    pub async fn create_group(&self, spec: GroupSpec) -> Result<Group<M>, HostError> {
        let _changing = self.changing.lock().await;
        let unique: BTreeSet<ReplicaId> = spec.members.iter().map(|m| m.replica).collect();
        if !unique.contains(&spec.replica) || unique.len() != spec.members.len() || spec.label.len() > LABEL_BYTES_MAX {
            return Err(HostError::Invalid("the replica must be one of its distinct members".into()));
        }
        if let Some(group) = self.group(spec.group) {
            return if group.spec().replica == spec.replica {
                Ok(group)
            } else {
                Err(HostError::Invalid(format!("another replica of group {} is on this node", spec.group)))
            };
        }
        let key = Key { group: spec.group, replica: spec.replica };
        if self.log.state(key).tombstone {
            return Err(HostError::Destroyed(spec.group, spec.replica));
        }
        if let Some((_, why)) = self.failed.read().get(&spec.group) {
            return Err(HostError::Damaged(why.clone()));
        }
        let keep = spec.clone();
        let lsn = self.log.update(key, move |s| s.spec = Some(keep))?;
        self.log.flushed(lsn).await?;
        self.start(spec).await
    }

    async fn start(&self, spec: GroupSpec) -> Result<Group<M>, HostError> {
        let key = Key { group: spec.group, replica: spec.replica };
        let disk = Arc::clone(&self.components.disk);
        let (s, make, d, log) = (spec.clone(), Arc::clone(&self.make), Arc::clone(&disk), self.log.clone());
        let cell = blocking(&disk, move || Cell::load(s, make, d, log)).await??;
        let links = Arc::new(Links {
            net: Arc::clone(&self.components.net),
            addresses: Arc::clone(&self.addresses),
            log: self.log.clone(),
            key,
            disk: Arc::clone(&disk),
            acked: Mutex::new(BTreeMap::new()),
            clock: Arc::clone(&self.components.clock),
            ack_before_sync: self.settings.planted.ack_before_sync,
        });
        let planted = self.settings.planted;
        let store = LogStore::new(self.log.clone(), key, spec.members.len()).plant(planted.resume_leader);
        let config = raft_config(&self.settings)?;
        let sm = Sm(Arc::clone(&cell));
        let raft = Raft::new(key.replica.0, config, Factory(Arc::clone(&links)), store, sm)
            .await
            .map_err(|e| HostError::Stopped(e.to_string()))?;
        let first = spec.members.first().is_some_and(|m| m.replica == spec.replica);
        if first && !raft.is_initialized().await.unwrap_or(true) {
            let nodes: BTreeMap<u64, PeerNode> =
                spec.members.iter().map(|m| (m.replica.0, PeerNode::from(m))).collect();
            // Refused unless the replica is fresh, which is checked above only to keep the library from logging an error.
            let _ = raft.initialize(nodes).await;
        }
        let group = Group::new(Parts {
            spec,
            raft,
            cell,
            log: self.log.clone(),
            disk,
            links,
            settings: self.settings.clone(),
            seed: self.components.rng.next_u64(),
        });
        self.groups.write().insert(key.group, group.clone());
        Ok(group)
    }

    /// Destroys a replica: its data goes, a tombstone stays. A replica that never was here only gets the tombstone.
    ///
    /// # Errors
    /// Stopped, Io.
    pub async fn destroy_group(&self, group: PartitionId, replica: ReplicaId) -> Result<(), HostError> {
        let _changing = self.changing.lock().await;
        let key = Key { group, replica };
        let found = self.group(group).filter(|g| g.spec().replica == replica);
        if let Some(found) = found {
            self.groups.write().remove(&group);
            found.0.stop("the replica was destroyed").await;
        }
        self.failed.write().retain(|_, (spec, _)| spec.group != group || spec.replica != replica);
        let lsn = self.log.update(key, |s| *s = HardState { tombstone: true, ..HardState::default() })?;
        self.log.flushed(lsn).await?;
        let disk = Arc::clone(&self.components.disk);
        blocking(&self.components.disk, move || crate::checkpoint::remove_all(disk.as_ref(), key)).await??;
        Ok(())
    }

    /// This node's replica of a group.
    #[must_use]
    pub fn group(&self, group: PartitionId) -> Option<Group<M>> {
        self.groups.read().get(&group).cloned()
    }

    /// All running replicas, by group.
    #[must_use]
    pub fn groups(&self) -> Vec<Group<M>> {
        self.groups.read().values().cloned().collect()
    }

    /// Replicas that could not be started, with the reason.
    #[must_use]
    pub fn failed_groups(&self) -> Vec<(GroupSpec, String)> {
        self.failed.read().values().cloned().collect()
    }

    /// Did this node answer lately? Nodes that no group here has to do with count as alive.
    #[must_use]
    pub fn node_alive(&self, node: NodeId) -> bool {
        let dead = self.settings.timers.node_dead;
        node == self.settings.node || self.seen.lock().get(&node).is_none_or(|at| at.elapsed() < dead)
    }

    /// A node's address changed since memberships named it.
    pub fn set_address(&self, node: NodeId, addr: String) {
        self.addresses.0.lock().insert(node, addr);
    }

    /// Counters of the log.
    #[must_use]
    pub fn log_stats(&self) -> LogStats {
        self.log.stats()
    }

    /// Why the disk failed, if it did.
    #[must_use]
    pub fn disk_failure(&self) -> Option<String> {
        self.log.failure().borrow().clone()
    }

    /// Stops all groups, writes out the log and releases the disk's threads. Proposals under way get Stopped.
    pub async fn shutdown(&self) {
        self.abort_tasks();
        for group in self.groups() {
            group.0.stop("the host is shut down").await;
        }
        self.log.close().await;
        self.components.disk.release();
    }

    /// Stops at once, as a killed process would: nothing more is written or sent.
    pub fn abort(&self) {
        self.abort_tasks();
        self.log.abort();
        for group in self.groups() {
            tokio::spawn(async move { group.0.stop("aborted").await });
        }
        self.groups.write().clear();
        self.components.disk.release();
    }

    fn abort_tasks(&self) {
        self.closed.store(true, Ordering::Release);
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
    }

    fn peers(&self) -> BTreeMap<NodeId, Member> {
        let mut peers = BTreeMap::new();
        for group in self.groups.read().values() {
            for member in &group.spec().members {
                if member.node != self.settings.node {
                    peers.insert(member.node, self.addresses.resolve(member));
                }
            }
        }
        peers
    }
}

#[async_trait]
impl<M: Machine> PeerHandler for Host<M> {
    async fn handle(&self, from: NodeId, request: PeerRequest) -> PeerReply {
        if let Some(at) = self.seen.lock().get_mut(&from) {
            *at = Instant::now();
        }
        if matches!(request.body, PeerBody::Ping) {
            return PeerReply(PeerAnswer::Pong);
        }
        let Some(group) = self.group(request.group) else {
            return PeerReply(PeerAnswer::Refused(format!("no replica of group {} here", request.group)));
        };
        if group.spec().replica != request.to {
            let here = group.spec().replica;
            return PeerReply(PeerAnswer::Refused(format!("replica {} is not here, {here} is", request.to)));
        }
        PeerReply(group.0.serve(request.body).await)
    }

    fn closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

async fn elections<M: Machine>(weak: Weak<Host<M>>) {
    let mut tick = tokio::time::interval(ELECTION_TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(host) = weak.upgrade() else { return };
        for group in host.groups() {
            group.tend_election(&|node| host.node_alive(node));
        }
    }
}

/// One heartbeat per pair of nodes, however many groups they share (PROTOCOL 25).
async fn heartbeats<M: Machine>(weak: Weak<Host<M>>) {
    let Some(timers) = weak.upgrade().map(|h| h.settings.timers.clone()) else { return };
    let mut tick = tokio::time::interval(timers.node_heartbeat);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(host) = weak.upgrade() else { return };
        for (node, member) in host.peers() {
            host.seen.lock().entry(node).or_insert_with(Instant::now);
            let (weak, net, limit) = (weak.clone(), Arc::clone(&host.components.net), timers.node_dead);
            tokio::spawn(async move {
                let ping = PeerRequest { group: PartitionId(0), to: ReplicaId(0), body: PeerBody::Ping };
                let answered = tokio::time::timeout(limit, net.call(&member, ping)).await;
                if let (Ok(Ok(_)), Some(host)) = (answered, weak.upgrade()) {
                    host.seen.lock().insert(node, Instant::now());
                }
            });
        }
    }
}

async fn checkpoints<M: Machine>(weak: Weak<Host<M>>) {
    let mut tick = tokio::time::interval(CHECKPOINT_TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(host) = weak.upgrade() else { return };
        for group in host.groups() {
            group.0.tend_checkpoint().await;
        }
    }
}

/// A failed disk stops every group on it (PROTOCOL 28).
async fn disk_failure<M: Machine>(weak: Weak<Host<M>>, mut failed: tokio::sync::watch::Receiver<Option<String>>) {
    let Ok(why) = failed.wait_for(Option::is_some).await.map(|why| why.clone().unwrap_or_default()) else { return };
    let Some(host) = weak.upgrade() else { return };
    for group in host.groups() {
        group.0.stop(&why).await;
    }
}
