//! The core of a metanode: replicas, maps, stores, and the way from a key to the replica that owns it. Knows no gRPC, so
//! that the simulation drives it.

use crate::{
    Settings,
    blob::Medium,
    events::Events,
    group::Hosted,
    machine::{Label, PartitionMachine, Shared},
    maps::Maps,
    outside::Outside,
};
use fusefs_data_path::object::ObjectStore;
use fusefs_meta_client::{MasterClient, Transport};
use fusefs_meta_state::LEVEL;
use fusefs_raft_host::{GroupSpec, Host, HostError};
use fusefs_types::{
    Clock, ClusterId, FsError, FsResult, Hlc, NodeId, PartitionId, RangeKey, ReplicaId, Rng, VolumeId,
    auth::{self, ClusterToken, Principal},
    cluster::{MasterCall, MasterRefusal, MasterReply},
    ops::{Envelope, Refusal},
};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// Who this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Cluster.
    pub cluster: ClusterId,
    /// Node.
    pub node: NodeId,
}

/// The outside world of a metanode.
pub struct Components {
    /// Disk, raft network, clock and entropy of the raft host.
    pub raft: fusefs_raft_host::Components,
    /// Raft timers.
    pub timers: fusefs_raft_host::Timers,
    /// Calls to other metanodes.
    pub transport: Arc<dyn Transport>,
    /// Calls to the masters; knows its own credential.
    pub masters: MasterClient,
    /// Directory for inline bytes; None = memory (simulation).
    pub blob_dir: Option<PathBuf>,
    /// Cluster token; None = open (loopback only).
    pub token: Option<ClusterToken>,
}

/// Sides of the replicas, by group and replica, from before the machine exists.
type Sides = Arc<Mutex<BTreeMap<(PartitionId, ReplicaId), Arc<Shared>>>>;

/// A running metanode without its port.
pub struct Metanode {
    pub(crate) settings: Settings,
    pub(crate) identity: NodeIdentity,
    pub(crate) host: Arc<Host<PartitionMachine>>,
    pub(crate) outside: Outside,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) token: Option<ClusterToken>,
    pub(crate) groups: RwLock<BTreeMap<PartitionId, Arc<Hosted>>>,
    pub(crate) maps: Maps,
    pub(crate) stores: Mutex<BTreeMap<VolumeId, Arc<dyn ObjectStore>>>,
    pub(crate) events: Events,
    pub(crate) tasks: TaskTracker,
    pub(crate) blob_dir: Option<PathBuf>,
    sides: Sides,
    stopping: tokio::sync::watch::Sender<bool>,
}

impl Metanode {
    /// Opens the data directory: every replica comes back from its checkpoint and the log, and its background work starts.
    /// Registering and reporting is [`Metanode::report`].
    pub async fn open(
        settings: Settings,
        identity: NodeIdentity,
        components: Components,
    ) -> Result<Arc<Metanode>, HostError> {
        let sides: Sides = Arc::default();
        let make = {
            let (sides, dir, bytes) = (sides.clone(), components.blob_dir.clone(), settings.blob_segment_bytes);
            let faults = settings.planted.state;
            Arc::new(move |spec: &GroupSpec| {
                let shared: Arc<Shared> = sides.lock().entry((spec.group, spec.replica)).or_default().clone();
                PartitionMachine::new(spec, medium(dir.as_ref(), spec), bytes, shared).plant(faults)
            })
        };
        let mut raft = fusefs_raft_host::Settings::new(identity.cluster, identity.node);
        raft.timers = components.timers;
        raft.planted = settings.planted.raft;
        raft.segment_bytes = settings.log_segment_bytes;
        raft.checkpoint_bytes = settings.checkpoint_bytes;
        let (clock, rng) = (components.raft.clock.clone(), components.raft.rng.clone());
        let host = Host::open(raft, components.raft, make).await?;
        let node = Arc::new(Metanode {
            settings,
            identity,
            host,
            outside: Outside::new(components.transport, components.masters),
            clock,
            rng,
            token: components.token,
            groups: RwLock::default(),
            maps: Maps::default(),
            stores: Mutex::default(),
            events: Events::default(),
            tasks: TaskTracker::new(),
            blob_dir: components.blob_dir,
            sides,
            stopping: tokio::sync::watch::Sender::new(false),
        });
        for group in node.host.groups() {
            node.adopt(group);
        }
        Ok(node)
    }

    /// Takes a group of the host into service and starts its background work.
    pub(crate) fn adopt(self: &Arc<Self>, group: fusefs_raft_host::Group<PartitionMachine>) {
        let spec = group.spec().clone();
        let Some(label) = Label::decode(&spec.label) else {
            tracing::error!(group = %spec.group, "replica with an unknown label: upgrade needed");
            return;
        };
        let shared = self.sides.lock().get(&(spec.group, spec.replica)).cloned();
        let Some(shared) = shared else { return };
        let hosted = Arc::new(Hosted::new(group, label.volume(), shared, self.clock.clone()));
        self.groups.write().insert(spec.group, hosted.clone());
        self.tasks.spawn(self.clone().drive(hosted.clone()));
        self.tasks.spawn(self.clone().tell_unlocked(hosted.clone()));
        self.tasks.spawn(self.clone().tend(hosted));
    }

    /// Drops a replica from service.
    pub(crate) fn abandon(&self, group: PartitionId, replica: ReplicaId) {
        let mut groups = self.groups.write();
        if groups.get(&group).is_some_and(|h| h.group.spec().replica == replica)
            && let Some(hosted) = groups.remove(&group)
        {
            hosted.stop.cancel();
        }
        self.sides.lock().remove(&(group, replica));
    }

    /// Stops background work, then the replicas.
    pub async fn shutdown(&self) {
        self.stopping.send_replace(true);
        self.tasks.close();
        let all: Vec<_> = self.groups.read().values().cloned().collect();
        for hosted in all {
            hosted.stop.cancel();
        }
        let _ = tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await;
        self.host.shutdown().await;
    }

    /// Ends as a killed process would: nothing more is written or sent.
    pub fn abort(&self) {
        self.stopping.send_replace(true);
        self.tasks.close();
        self.all().iter().for_each(|h| h.stop.cancel());
        self.host.abort();
    }

    pub(crate) fn stopping(&self) -> tokio::sync::watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Who this node is.
    pub fn identity(&self) -> NodeIdentity {
        self.identity
    }

    /// The raft host (peer service, tests).
    pub fn host(&self) -> &Arc<Host<PartitionMachine>> {
        &self.host
    }

    pub(crate) fn all(&self) -> Vec<Arc<Hosted>> {
        self.groups.read().values().cloned().collect()
    }

    pub(crate) fn hosted(&self, group: PartitionId) -> Option<Arc<Hosted>> {
        self.groups.read().get(&group).cloned()
    }

    /// Replica on this node that owns a key.
    pub(crate) fn local(&self, volume: VolumeId, key: RangeKey) -> Option<Arc<Hosted>> {
        self.groups.read().values().find(|h| h.volume == volume && h.shared.owns(key)).cloned()
    }

    /// The same, or WrongRange with the newest map generation known here.
    pub(crate) fn owner(&self, volume: VolumeId, key: RangeKey) -> Result<Arc<Hosted>, Refusal> {
        self.local(volume, key).ok_or_else(|| self.wrong_range(volume))
    }

    pub(crate) fn wrong_range(&self, volume: VolumeId) -> Refusal {
        Refusal { map_generation: self.maps.generation(volume), ..FsError::WrongRange.into() }
    }

    /// Checks credential and cluster of a request: nothing else of it is looked at before.
    pub(crate) fn admit(&self, envelope: &Envelope) -> FsResult<Principal> {
        let principal = auth::authenticate(self.token.as_ref(), envelope)?;
        if envelope.cluster.0 != 0 && envelope.cluster != self.identity.cluster {
            return Err(FsError::WrongCluster);
        }
        if envelope.feature_level > LEVEL {
            tracing::debug!(level = envelope.feature_level, "request of a newer binary");
        }
        Ok(principal)
    }

    /// The same for requests that only masters and metanodes make.
    pub(crate) fn admit_cluster(&self, envelope: &Envelope) -> FsResult<()> {
        match self.admit(envelope)? {
            Principal::Cluster => Ok(()),
            Principal::Session(..) => Err(FsError::Unauthenticated),
        }
    }

    /// Envelope of our own requests.
    pub(crate) fn envelope(&self, volume: VolumeId, seen: Hlc) -> Envelope {
        Envelope {
            cluster: self.identity.cluster,
            volume,
            hlc: seen,
            map_generation: self.maps.generation(volume),
            feature_level: LEVEL,
            credential: self.token.as_ref().map(ClusterToken::credential).unwrap_or_default(),
            deadline_ms: 5000,
            trace: self.rng.next_u64(),
            ..Envelope::default()
        }
    }

    /// Highest stamp that replies should carry: of the replicas of a volume.
    pub fn seen(&self, volume: VolumeId) -> Hlc {
        let groups = self.groups.read();
        groups.values().filter(|h| h.volume == volume).map(|h| h.shared.last()).max().unwrap_or_default()
    }

    /// Generation of the newest partition map known here.
    pub fn map_generation(&self, volume: VolumeId) -> u64 {
        self.maps.generation(volume)
    }

    pub(crate) async fn master(&self, call: MasterCall) -> Result<MasterReply, MasterRefusal> {
        self.outside.master(call).await
    }

    /// Fetches the map of a volume.
    pub(crate) async fn refresh_map(&self, volume: VolumeId) -> FsResult<()> {
        match self.master(MasterCall::GetMap(volume)).await {
            Ok(MasterReply::Map(map)) => {
                self.maps.put(map);
                Ok(())
            }
            Ok(_) => Err(FsError::Io),
            Err(e) => Err(e.error),
        }
    }

    /// Waits `ms`, give or take half, so that colliding requests part.
    pub(crate) async fn jitter(&self, ms: u64) {
        let us = ms * 500 + self.rng.next_u64() % (ms * 1000).max(1);
        tokio::time::sleep_until(Instant::now() + Duration::from_micros(us)).await;
    }
}

/// Directory of a replica's inline bytes.
pub(crate) fn blob_path(dir: &Path, group: PartitionId, replica: ReplicaId) -> PathBuf {
    dir.join(format!("{group}-{replica}"))
}

fn medium(dir: Option<&PathBuf>, spec: &GroupSpec) -> Medium {
    dir.map_or(Medium::Memory, |d| Medium::Dir(blob_path(d, spec.group, spec.replica)))
}
