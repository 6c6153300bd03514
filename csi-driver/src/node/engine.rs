//! Carries plans out: records first, then the effect, then the record that it is done.

use super::{
    helper::{Bind, Helpers, Space},
    io_fault,
    model::{PublishRequest, StageRequest, VolumeId},
    mounts::{self, Mounts},
    options::MountOptions,
    paths::hashed,
    plan::{self, BindPlan, Health, PublishPlan, StagePlan, UnstagePlan, View},
    records::{Phase, Records, StageRecord, TargetRecord, VolumeRecords},
};
use crate::{
    Fault, Outcome,
    inflight::{Busy, Inflight},
    runtime::{MountSpec, Runtime, Unstaged},
    step::step,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Settings of the node half.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Name of the node.
    pub node: String,
    /// Directory of the records; survives reboots.
    pub records: PathBuf,
    /// Most volumes on this node; 0 = the orchestrator decides.
    pub max_volumes: i64,
    /// Topology segments.
    pub topology: HashMap<String, String>,
    /// How long a look at a mount may take in calls that need an answer.
    pub look_timeout: Duration,
    /// The same for statistics, which are asked for often.
    pub stats_timeout: Duration,
    /// How long a bind mount may take (a subdirectory needs the server).
    pub bind_timeout: Duration,
    /// After this, NodeUnstageVolume parks what could not be flushed.
    pub unstage_timeout: Duration,
}

impl NodeSettings {
    /// Defaults.
    pub fn new(node: impl Into<String>, records: impl Into<PathBuf>) -> NodeSettings {
        NodeSettings {
            node: node.into(),
            records: records.into(),
            max_volumes: 0,
            topology: HashMap::new(),
            look_timeout: Duration::from_secs(5),
            stats_timeout: Duration::from_millis(900),
            bind_timeout: Duration::from_secs(20),
            unstage_timeout: Duration::from_secs(90),
        }
    }
}

/// Something that people should know about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A mount ended before everything was in the object store.
    Parked(VolumeId, String),
    /// A mount was lost with all its holders and made again.
    Remounted(VolumeId),
    /// A mount was there without its records; they were written again.
    Found(VolumeId),
    /// A pod's bind mount was replaced.
    Rebound(VolumeId, PathBuf),
    /// A repair failed; it is tried again.
    Failed(VolumeId, String),
}

/// Where events go.
pub trait Events: Send + Sync + 'static {
    /// Must not block.
    fn tell(&self, event: Event);
}

/// Into the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogEvents;

impl Events for LogEvents {
    fn tell(&self, event: Event) {
        match event {
            Event::Parked(volume, why) => tracing::warn!(%volume, why, "unstaged with data left in the journal"),
            Event::Remounted(volume) => tracing::warn!(%volume, "every holder of the mount was gone; mounted again"),
            Event::Found(volume) => {
                tracing::warn!(%volume, "records were lost; written again from the masters' and kubelet's")
            }
            Event::Rebound(volume, target) => {
                tracing::warn!(%volume, target = %target.display(), "bound again; programs with open files need a restart");
            }
            Event::Failed(volume, why) => tracing::warn!(%volume, why, "the volume could not be repaired yet"),
        }
    }
}

/// Usage and condition of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// The last known space.
    pub space: Option<Space>,
    /// None = healthy.
    pub abnormal: Option<String>,
}

/// The node half.
pub struct Node {
    pub(super) settings: NodeSettings,
    pub(super) records: Records,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) helpers: Helpers,
    pub(super) events: Arc<dyn Events>,
    busy: Inflight,
    spaces: Mutex<HashMap<VolumeId, Space>>,
}

impl Node {
    /// Opens the records.
    pub fn open(
        settings: NodeSettings,
        runtime: Arc<dyn Runtime>,
        helpers: Helpers,
        events: Arc<dyn Events>,
    ) -> io::Result<Arc<Node>> {
        let records = Records::open(&settings.records)?;
        let (busy, spaces) = (Inflight::default(), Mutex::default());
        Ok(Arc::new(Node { settings, records, runtime, helpers, events, busy, spaces }))
    }

    /// Settings.
    pub fn settings(&self) -> &NodeSettings {
        &self.settings
    }

    /// Excludes other calls for the volume; waits a little for upkeep.
    pub async fn enter(&self, volume: &VolumeId) -> Outcome<Busy> {
        self.busy.enter_after_upkeep(volume.as_str()).await
    }

    /// Excludes calls for the volume, which wait meanwhile.
    pub fn upkeep(&self, volume: &VolumeId) -> Outcome<Busy> {
        self.busy.upkeep(volume.as_str())
    }

    pub(super) fn load(&self, volume: &VolumeId) -> Outcome<VolumeRecords> {
        self.records.load(volume).map_err(|e| io_fault("reading the node's records", &e))
    }

    pub(super) fn mounts(&self) -> Outcome<Mounts> {
        Mounts::read().map_err(|e| io_fault("reading mountinfo", &e))
    }

    /// How the mount on top of `path` answers; not asked when there is none of ours.
    pub(super) async fn health(&self, mounts: &Mounts, path: &Path) -> Health {
        match mounts.top(path).filter(|m| plan::ours(m)) {
            Some(_) => self.helpers.look(path, self.settings.look_timeout).await.0,
            None => Health::Silent,
        }
    }

    /// NodeStageVolume.
    pub async fn stage(&self, request: &StageRequest) -> Outcome<()> {
        step("node.stage.entered");
        let records = self.load(&request.volume)?;
        if let Some(stage) = &records.stage {
            self.runtime.adopt(&spec(stage)).await?;
        }
        let mounts = self.mounts()?;
        let health = self.health(&mounts, &request.staging).await;
        let view = View { records: &records, mounts: &mounts, health };
        let request = &plan::inherited(view, request);
        let mut record = StageRecord::new(request, Phase::Made);
        match plan::stage(view, request)? {
            StagePlan::Adopt if records.stage.as_ref() == Some(&record) => return Ok(()),
            StagePlan::Adopt => {}
            StagePlan::Mount { detach } => {
                record.phase = Phase::Making;
                self.put_stage(&record)?;
                step("node.stage.recorded");
                self.mount(&record, detach).await?;
                step("node.stage.mounted");
                record.phase = Phase::Made;
            }
        }
        self.put_stage(&record)?;
        step("node.stage.promised");
        if records.targets.is_empty() { Ok(()) } else { self.rebind(&request.volume).await }
    }

    /// Takes dead layers off and mounts. Answers only when somebody serves the root.
    pub(super) async fn mount(&self, record: &StageRecord, detach: usize) -> Outcome<()> {
        let path = &record.staging;
        mounts::detach(path, detach).map_err(|e| io_fault(format_args!("detaching {}", path.display()), &e))?;
        if detach == 0 || self.mounts()?.top(path).is_none() {
            mounts::make_target(path).map_err(|e| io_fault(format_args!("making {}", path.display()), &e))?;
        }
        step("node.mount.ready");
        self.runtime.stage(&spec(record)).await?;
        step("node.mount.made");
        let mounts = self.mounts()?;
        let served = mounts.top(path).is_some_and(|m| m.source == plan::source(&record.name))
            && self.health(&mounts, path).await == Health::Alive;
        if served {
            Ok(())
        } else {
            Err(Fault::unavailable(format!("the mount at {} does not answer", path.display())))
        }
    }

    fn put_stage(&self, record: &StageRecord) -> Outcome<()> {
        self.records.put_stage(record).map_err(|e| io_fault("writing the node's records", &e))
    }

    /// NodeUnstageVolume.
    pub async fn unstage(&self, volume: &VolumeId, path: &Path) -> Outcome<()> {
        step("node.unstage.entered");
        let records = self.load(volume)?;
        let mounts = self.mounts()?;
        let health = self.health(&mounts, path).await;
        let decided = plan::unstage(View { records: &records, mounts: &mounts, health }, path)?;
        let found =
            mounts.top(path).and_then(|m| m.source.strip_prefix(super::model::SOURCE_PREFIX)).unwrap_or_default();
        let record = records.stage.filter(|r| r.staging == path);
        match decided {
            UnstagePlan::Nothing => return Ok(()),
            UnstagePlan::Detach(n) => {
                mounts::detach(path, n).map_err(|e| io_fault(format_args!("detaching {}", path.display()), &e))?;
                let why = "every holder of the mount was gone; what is not in the object store is in its journal";
                self.events.tell(Event::Parked(volume.clone(), why.into()));
            }
            UnstagePlan::Forget | UnstagePlan::Unmount => {
                if let Some(record) = &record {
                    self.put_stage(&StageRecord { phase: Phase::Ending, ..record.clone() })?;
                    step("node.unstage.recorded");
                }
                let spec = record.as_ref().map_or_else(|| unrecorded(volume, found, path), spec);
                if let Unstaged::Parked(why) = self.runtime.unstage(&spec, self.settings.unstage_timeout).await? {
                    self.events.tell(Event::Parked(volume.clone(), why));
                }
            }
        }
        step("node.unstage.unmounted");
        // A mount that died has left the directory underneath protected: the orchestrator wants to remove it.
        if self.mounts()?.top(path).is_some() {
            return Err(Fault::unavailable(format!("something is still mounted at {}", path.display())));
        }
        mounts::protect(path, false).map_err(|e| io_fault(format_args!("unprotecting {}", path.display()), &e))?;
        step("node.unstage.unprotected");
        self.forget(volume, &records.targets)?;
        step("node.unstage.forgotten");
        Ok(())
    }

    /// Removes the records of a volume whose mount is gone.
    fn forget(&self, volume: &VolumeId, targets: &[TargetRecord]) -> Outcome<()> {
        self.spaces.lock().remove(volume);
        let removed = targets.iter().try_for_each(|t| self.records.remove_target(volume, &t.target));
        let removed = removed.and_then(|()| self.records.remove_stage(volume));
        removed.map_err(|e| io_fault("removing the node's records", &e))
    }

    /// NodePublishVolume.
    pub async fn publish(&self, request: &PublishRequest) -> Outcome<()> {
        step("node.publish.entered");
        let mut repaired = false;
        loop {
            let records = self.load(&request.volume)?;
            let mounts = self.mounts()?;
            let health = self.health(&mounts, &request.staging).await;
            match plan::publish(View { records: &records, mounts: &mounts, health }, request)? {
                PublishPlan::Target(decided) => return self.bind_recorded(request, decided).await,
                PublishPlan::Repair if repaired => {
                    return Err(Fault::unavailable(format!("volume {} cannot be mounted again", request.volume)));
                }
                PublishPlan::Repair => self.repair(&request.volume).await?,
            }
            repaired = true;
        }
    }

    async fn bind_recorded(&self, request: &PublishRequest, decided: BindPlan) -> Outcome<()> {
        let record = |phase| {
            let record = TargetRecord::new(request, phase);
            self.records.put_target(&record).map_err(|e| io_fault("writing the node's records", &e))
        };
        if decided != BindPlan::Keep {
            record(Phase::Making)?;
            step("node.publish.recorded");
            self.bind(request, decided).await?;
        }
        record(Phase::Made)?;
        step("node.publish.promised");
        Ok(())
    }

    /// Makes a target what it should be.
    pub(super) async fn bind(&self, request: &PublishRequest, decided: BindPlan) -> Outcome<()> {
        let target = &request.target;
        let at = |what: &str| format!("{what} {}", target.display());
        let detach = match decided {
            BindPlan::Keep => return Ok(()),
            // What other namespaces see cannot be changed from here: it is replaced.
            BindPlan::Flags => 1,
            BindPlan::Bind { detach } => detach,
        };
        mounts::detach(target, detach).map_err(|e| io_fault(at("detaching"), &e))?;
        if self.mounts()?.top(target).is_some() {
            return Err(Fault::unavailable(at("something was mounted meanwhile at")));
        }
        mounts::make_target(target).map_err(|e| io_fault(at("making"), &e))?;
        if let Err(error) = mounts::protect(target, true) {
            tracing::debug!(%error, "the directory underneath stays writable");
        }
        step("node.bind.ready");
        let subdir = request.subdir.as_str();
        let bind = Bind {
            from: request.staging.clone(),
            subdir: subdir.to_owned(),
            target: target.clone(),
            group: request.capability.group.filter(|_| !request.bind_read_only()),
            flags: plan::flags(request),
        };
        let bound = self.helpers.bind(bind, self.settings.bind_timeout).await;
        bound.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Fault::not_found(format!("the volume has no directory {subdir}")),
            _ => io_fault(at("binding"), &e),
        })?;
        step("node.bind.bound");
        mounts::set_flags(target, plan::flags(request)).map_err(|e| io_fault(at("setting flags of"), &e))?;
        step("node.bind.flagged");
        Ok(())
    }

    /// NodeUnpublishVolume.
    pub async fn unpublish(&self, volume: &VolumeId, target: &Path) -> Outcome<()> {
        step("node.unpublish.entered");
        let records = self.load(volume)?;
        let mounts = self.mounts()?;
        let view = View { records: &records, mounts: &mounts, health: Health::Silent };
        let layers = plan::unpublish(view, target)?;
        if let Some(record) = records.targets.iter().find(|t| t.target == target) {
            let ending = TargetRecord { phase: Phase::Ending, ..record.clone() };
            self.records.put_target(&ending).map_err(|e| io_fault("writing the node's records", &e))?;
            step("node.unpublish.recorded");
        }
        let at = |what: &str| format!("{what} {}", target.display());
        mounts::detach(target, layers).map_err(|e| io_fault(at("detaching"), &e))?;
        if self.mounts()?.top(target).is_some() {
            return Err(Fault::unavailable(at("something is still mounted at")));
        }
        step("node.unpublish.detached");
        mounts::remove_target(target).map_err(|e| io_fault(at("removing"), &e))?;
        step("node.unpublish.removed");
        self.records.remove_target(volume, target).map_err(|e| io_fault("removing the node's records", &e))?;
        step("node.unpublish.forgotten");
        Ok(())
    }

    /// NodeGetVolumeStats.
    pub async fn stats(&self, volume: &VolumeId, path: &Path) -> Outcome<Stats> {
        let records = self.load(volume)?;
        let stage = self.of_volume(&records, path)?;
        let mounts = self.mounts()?;
        let known = self.spaces.lock().get(volume).copied();
        let abnormal = |why: &str| Ok(Stats { space: known, abnormal: Some(why.into()) });
        match (mounts.top(path), mounts.top(&stage.staging)) {
            (None, _) | (_, None) => return abnormal("the volume is not mounted; it is being repaired"),
            (Some(m), Some(s)) if m.device != s.device => return abnormal("the pod still has an earlier, dead mount"),
            _ => {}
        }
        match self.helpers.look(&stage.staging, self.settings.stats_timeout).await {
            (Health::Alive, Some(space)) => {
                self.spaces.lock().insert(volume.clone(), space);
                Ok(Stats { space: Some(space), abnormal: None })
            }
            (Health::Dead, _) => abnormal("nobody serves the mount; it is being repaired"),
            _ => abnormal("the mount does not answer in time"),
        }
    }

    /// NodeExpandVolume: the quota is the cluster's; the size after it as far as it is known.
    pub async fn expand(&self, volume: &VolumeId, path: &Path) -> Outcome<Option<u64>> {
        Ok(self.stats(volume, path).await?.space.map(|s| s.bytes))
    }

    fn of_volume(&self, records: &VolumeRecords, path: &Path) -> Outcome<StageRecord> {
        let known = |s: &&StageRecord| s.staging == path || records.targets.iter().any(|t| t.target == path);
        let stage = records.stage.as_ref().filter(known).cloned();
        stage.ok_or_else(|| Fault::not_found(format!("the volume is not at {} on this node", path.display())))
    }
}

/// What the runtime needs of a record.
pub(super) fn spec(record: &StageRecord) -> MountSpec {
    MountSpec {
        key: hashed(record.volume.as_str().as_bytes()),
        volume: record.volume.as_str().to_owned(),
        name: record.name.clone(),
        staging: record.staging.clone(),
        read_only: record.capability.read_only(),
        options: record.capability.options.clone(),
        generation: record.generation,
    }
}

/// The same for a mount that is there without a record.
fn unrecorded(volume: &VolumeId, name: &str, path: &Path) -> MountSpec {
    MountSpec {
        key: hashed(volume.as_str().as_bytes()),
        volume: volume.as_str().to_owned(),
        name: name.to_owned(),
        staging: path.to_owned(),
        read_only: false,
        options: MountOptions::default(),
        generation: 0,
    }
}
