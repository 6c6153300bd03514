//! Masters that know of publications and nothing else, and what may be done to pods while they do.

use async_trait::async_trait;
use fusefs_csi_driver::{
    Cluster,
    kube::{ApiResult, KubePods, Pods, Seat, api::Change, api::PodList, pod_name},
};
use fusefs_types::{FsError, VolumeId, cluster::*, ops::PartitionUsage};
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Publications by the name of their pod, with the moment since when they live.
#[derive(Default)]
pub struct Truth {
    live: Mutex<BTreeMap<String, (Publication, u64)>>,
    moment: AtomicU64,
    /// Nobody answers.
    pub down: AtomicBool,
    /// Volumes are not listed.
    pub nameless: AtomicBool,
}

impl Truth {
    /// Attaches `volume` (named `vol-N`) to a node.
    pub fn publish(&self, node: &str, volume: u64) {
        let p = Publication {
            volume: VolumeId(volume),
            part: String::new(),
            node: node.into(),
            mode: AccessMode::MultiNodeMultiWriter,
            read_only: false,
            writer: true,
            generation: 1,
            ending: false,
        };
        let since = self.moment.fetch_add(1, Ordering::SeqCst);
        self.live.lock().expect("live").entry(pod_of(node, volume)).or_insert((p, since));
    }

    /// Detaches.
    pub fn unpublish(&self, node: &str, volume: u64) {
        self.live.lock().expect("live").remove(&pod_of(node, volume));
    }

    /// It is being detached.
    pub fn ending(&self, node: &str, volume: u64) {
        if let Some((p, _)) = self.live.lock().expect("live").get_mut(&pod_of(node, volume)) {
            p.ending = true;
        }
    }

    /// Names of the pods that there should be.
    pub fn pods(&self) -> BTreeSet<String> {
        self.live.lock().expect("live").keys().cloned().collect()
    }

    /// What one controller sees of it.
    pub fn eyes(self: &Arc<Truth>) -> Arc<Eyes> {
        Arc::new(Eyes { truth: self.clone(), listed: AtomicU64::new(0) })
    }
}

/// Name of the volume with a number.
pub fn volume_name(number: u64) -> String {
    format!("vol-{number}")
}

/// Name of the pod of `vol-N` on a node.
pub fn pod_of(node: &str, volume: u64) -> String {
    pod_name(node, &volume_name(volume))
}

/// One controller's view.
pub struct Eyes {
    truth: Arc<Truth>,
    /// When it listed publications last.
    listed: AtomicU64,
}

#[async_trait]
impl Cluster for Eyes {
    async fn call(&self, call: MasterCall) -> Result<MasterReply, MasterRefusal> {
        if self.truth.down.load(Ordering::SeqCst) {
            let message = "no master could answer".to_owned();
            return Err(MasterRefusal { error: FsError::Unavailable, message, leader: None });
        }
        match call {
            MasterCall::ListPublications(_) => {
                let live = self.truth.live.lock().expect("live");
                self.listed.store(self.truth.moment.load(Ordering::SeqCst), Ordering::SeqCst);
                Ok(MasterReply::Publications(live.values().map(|(p, _)| p.clone()).collect()))
            }
            MasterCall::ListVolumes if self.truth.nameless.load(Ordering::SeqCst) => Ok(MasterReply::Volumes(vec![])),
            MasterCall::ListVolumes => Ok(MasterReply::Volumes((1..=20).map(volume).collect())),
            other => panic!("not for the reconciler: {other:?}"),
        }
    }
}

fn volume(number: u64) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId(number),
        name: volume_name(number),
        state: VolumeState::Ready,
        store: fusefs_types::StoreId(1),
        capacity: 0,
        inodes: 0,
        replicas: 1,
        hash_key: [0; 16],
        redundancy: String::new(),
        labels: vec![],
        usage: PartitionUsage::default(),
    }
}

/// What is forbidden and happened.
#[derive(Default)]
pub struct Crimes(Mutex<Vec<String>>);

impl Crimes {
    fn add(&self, what: String) {
        self.0.lock().expect("crimes").push(what);
    }

    /// None.
    pub fn none(&self, context: &str) {
        let all = self.0.lock().expect("crimes");
        assert!(all.is_empty(), "{context}: {all:#?}");
    }
}

/// Pods of the API server for one controller, with an eye on what it does.
pub struct Guarded {
    inner: KubePods,
    eyes: Arc<Eyes>,
    crimes: Arc<Crimes>,
    creating: Mutex<BTreeSet<String>>,
    broken: Box<dyn Fn(&str) -> bool + Send + Sync>,
}

impl Guarded {
    /// `broken` says of a uid whether its pod may be replaced.
    pub fn new(
        inner: KubePods,
        eyes: Arc<Eyes>,
        crimes: Arc<Crimes>,
        broken: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Guarded {
        Guarded { inner, eyes, crimes, creating: Mutex::default(), broken: Box::new(broken) }
    }
}

struct Creating<'a>(&'a Guarded, String);

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        self.0.creating.lock().expect("creating").remove(&self.1);
    }
}

#[async_trait]
impl Pods for Guarded {
    async fn list(&self) -> ApiResult<PodList> {
        self.inner.list().await
    }
    async fn watch(&self, version: &str) -> ApiResult<BoxStream<'static, ApiResult<Change>>> {
        self.inner.watch(version).await
    }
    async fn get(&self, name: &str) -> ApiResult<Option<Pod>> {
        self.inner.get(name).await
    }
    async fn create(&self, pod: &Pod) -> ApiResult<Pod> {
        let name = pod.metadata.name.clone().expect("a name");
        if !self.creating.lock().expect("creating").insert(name.clone()) {
            self.crimes.add(format!("{name} is created twice at once"));
        }
        let _creating = Creating(self, name);
        self.inner.create(pod).await
    }
    async fn delete(&self, name: &str, uid: &str, grace: Option<u32>) -> ApiResult<()> {
        if !(self.broken)(uid) {
            let live = self.eyes.truth.live.lock().expect("live");
            // Only who attached after the last look may have been missed, and only by another controller's look.
            let listed = self.eyes.listed.load(Ordering::SeqCst);
            if live.get(name).is_some_and(|(_, since)| *since < listed) {
                self.crimes.add(format!("{name} ({uid}) is deleted and has a publication"));
            }
            if grace == Some(0) {
                self.crimes.add(format!("{name} ({uid}) is not broken and gets no grace"));
            }
        }
        self.inner.delete(name, uid, grace).await
    }
    async fn set_image(&self, name: &str, uid: &str, image: &str, restarts: i32) -> ApiResult<()> {
        self.inner.set_image(name, uid, image, restarts).await
    }
}

/// A seat of `vol-N`.
pub fn seat(node: &str, number: u64) -> Seat {
    Seat { node: node.into(), volume: volume_name(number), number }
}
