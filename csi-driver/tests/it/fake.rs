//! The masters' state machine without raft, metanodes and clients.

use async_trait::async_trait;
use fusefs_cluster_state::{
    ClusterState, Command, Outcome, Reject,
    command::{self, CreateVolume, OpenSession},
};
use fusefs_csi_driver::Cluster;
use fusefs_types::{cluster::*, ops::PartitionUsage, *};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use tokio::sync::{RwLock, RwLockWriteGuard};

/// See the module.
pub struct Fake {
    state: Mutex<ClusterState>,
    /// Nobody answers.
    pub down: AtomicBool,
    /// Calls so far.
    pub calls: AtomicU64,
    gate: RwLock<()>,
}

fn refusal(r: Reject) -> MasterRefusal {
    MasterRefusal { error: r.error, message: r.message, leader: None }
}

impl Fake {
    /// One metanode, one store, two nodes that can mount: `node-a` and `node-b`.
    pub fn new() -> Arc<Fake> {
        let mut s = ClusterState::new();
        let node = NodeRecord {
            id: NodeId(1),
            addr: "h:1".into(),
            host: String::new(),
            capacity: 0,
            memory: 0,
            feature_level: 1,
        };
        let store = StoreRecord {
            id: StoreId(1),
            name: "st".into(),
            kind: StoreKind::Memory,
            endpoint: String::new(),
            region: String::new(),
            bucket: String::new(),
            prefix: String::new(),
            path_style: false,
            credential: String::new(),
            probe: vec![],
        };
        let nodes = ["node-a", "node-b"].map(|n| Command::AddMounter((n.to_owned(), 1)));
        let begin =
            [Command::Init(ClusterId(7)), Command::RegisterNode(node), Command::ReserveStore, Command::AddStore(store)];
        for c in begin.into_iter().chain(nodes) {
            s.apply(&c).expect("a cluster");
        }
        Arc::new(Fake {
            state: Mutex::new(s),
            down: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            gate: RwLock::new(()),
        })
    }

    /// Every call waits until this is dropped.
    pub async fn hold(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().await
    }

    /// Applies a command.
    pub fn apply(&self, c: &Command) -> Result<Outcome, Reject> {
        self.state.lock().expect("state").apply(c)
    }

    /// Ready volumes.
    pub fn volumes(&self) -> Vec<VolumeRecord> {
        let s = self.state.lock().expect("state");
        s.volumes().filter(|v| v.state == VolumeState::Ready).map(|v| v.record(PartitionUsage::default())).collect()
    }

    /// A client of `volume` that has written to its first partition.
    pub fn mount(&self, volume: &str, session: u128, attach: u64) -> Result<PartitionId, FsError> {
        let token = Token { attach, incarnation: Incarnation(1) };
        let open = OpenSession {
            volume: volume.into(),
            session: SessionId(session),
            resume: false,
            mount: ids::MountId(session),
            token,
            client: "pod".into(),
            read_only: false,
            at_ns: 1,
        };
        self.apply(&Command::OpenSession(open)).map_err(|r| r.error)?;
        let partition = {
            let s = self.state.lock().expect("state");
            s.live_volume(volume).expect("mounted").partitions[0]
        };
        let attach = command::Attach { session: SessionId(session), partition, token };
        self.apply(&Command::AttachSession(attach)).map_err(|r| r.error)?;
        Ok(partition)
    }

    /// A volume made by hand.
    pub fn make(&self, name: &str) {
        self.create(&VolumeSpec {
            name: name.into(),
            store: "st".into(),
            capacity: 0,
            inodes: 0,
            partitions: 1,
            replicas: 1,
            labels: vec![],
        })
        .expect("made");
    }

    fn create(&self, spec: &VolumeSpec) -> Result<VolumeId, Reject> {
        let store = if spec.store.is_empty() { "st".to_owned() } else { spec.store.clone() };
        let create = CreateVolume {
            spec: VolumeSpec { store, ..spec.clone() },
            placement: vec![vec![NodeId(1)]],
            redundancy: String::new(),
            hash_key: [0; 16],
            at_ns: 1,
        };
        let Outcome::Volume(id) = self.apply(&Command::CreateVolume(create))? else { panic!("no volume") };
        self.apply(&Command::VolumeReady(id))?;
        Ok(id)
    }

    fn record(&self, wanted: impl Fn(&VolumeRecord) -> bool) -> Result<MasterReply, Reject> {
        let found = self.volumes().into_iter().find(wanted);
        found.map(MasterReply::Volume).ok_or(Reject { error: FsError::NotFound, message: "no such volume".into() })
    }

    fn answer(&self, call: MasterCall) -> Result<MasterReply, Reject> {
        let done = |_| MasterReply::Ok;
        match call {
            MasterCall::CreateVolume(spec) => {
                let id = self.create(&spec)?;
                self.record(|v| v.id == id)
            }
            MasterCall::GetVolume(name) => self.record(|v| v.name == name),
            MasterCall::ListVolumes => {
                let mut volumes = self.volumes();
                volumes.sort_by(|a, b| a.name.cmp(&b.name));
                Ok(MasterReply::Volumes(volumes))
            }
            MasterCall::ExpandVolume(name, capacity, inodes) => {
                self.apply(&Command::ExpandVolume(command::ExpandVolume { name: name.clone(), capacity, inodes }))?;
                self.record(|v| v.name == name)
            }
            MasterCall::DeleteVolume(name, force) => {
                self.apply(&Command::DeleteVolume(command::DeleteVolume { name, force, at_ns: 2 })).map(done)
            }
            MasterCall::AddMounter(node) => self.apply(&Command::AddMounter((node, 2))).map(done),
            MasterCall::PublishVolume(spec) => match self.apply(&Command::Publish(spec))? {
                Outcome::Publication(p) => Ok(MasterReply::Published(p)),
                other => panic!("{other:?}"),
            },
            MasterCall::UnpublishVolume(volume, part, node) => {
                let c = command::Unpublish { volume, part, node, at_ns: 3 };
                self.apply(&Command::Unpublish(c))?;
                // The real call waits; it ends like this when the fence takes too long.
                if self.state.lock().expect("state").publications().any(|p| p.ending) {
                    return Err(Reject { error: FsError::Unavailable, message: "still fencing".into() });
                }
                Ok(MasterReply::Ok)
            }
            MasterCall::ListPublications(volume) => {
                let s = self.state.lock().expect("state");
                let wanted = |p: &&Publication| volume.0 == 0 || p.volume == volume;
                Ok(MasterReply::Publications(s.publications().filter(wanted).cloned().collect()))
            }
            other => panic!("not for the driver: {other:?}"),
        }
    }
}

#[async_trait]
impl Cluster for Fake {
    async fn call(&self, call: MasterCall) -> Result<MasterReply, MasterRefusal> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let _open = self.gate.read().await;
        if self.down.load(Ordering::Relaxed) {
            let message = "no master could answer".to_owned();
            return Err(MasterRefusal { error: FsError::Unavailable, message, leader: None });
        }
        self.answer(call).map_err(refusal)
    }
}
