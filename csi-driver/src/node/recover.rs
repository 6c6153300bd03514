//! Recovery: what was promised is made true again. At the start of the plugin, and now and then while it runs.

use super::{
    engine::{Event, Node, spec},
    found::Attachments,
    model::VolumeId,
    paths::hashed,
    plan::{self, RepairPlan, View},
    records::{Phase, VolumeRecords},
};
use crate::{Fault, Outcome, step::step};
use std::{sync::Arc, time::Duration};
use tokio::task::JoinSet;

/// Volumes that are repaired at once.
const PARALLEL: usize = 16;
/// How long the masters may take to say what is attached.
const FIND_TIMEOUT: Duration = Duration::from_secs(15);

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Volumes with records.
    pub volumes: usize,
    /// Volumes that somebody else works on now.
    pub busy: usize,
    /// Volumes that could not be repaired.
    pub failed: usize,
}

impl Node {
    /// Looks at every recorded volume once. Volumes with a call in flight are left to that call.
    pub async fn reconcile(self: &Arc<Node>) -> std::io::Result<Pass> {
        let pass = self.repair_all().await?;
        self.collect().await?;
        Ok(pass)
    }

    async fn repair_all(self: &Arc<Node>) -> std::io::Result<Pass> {
        let all = self.records.load_all()?;
        let mut pass = Pass { volumes: all.len(), ..Pass::default() };
        let mut running = JoinSet::new();
        for volume in all.iter().filter_map(volume_of) {
            if running.len() >= PARALLEL {
                count(&mut pass, running.join_next().await);
            }
            let (node, volume) = (self.clone(), volume.clone());
            running.spawn(async move {
                let Ok(_busy) = node.upkeep(&volume) else { return None };
                let repaired = node.repair(&volume).await;
                if let Err(fault) = &repaired {
                    node.events.tell(Event::Failed(volume, fault.message.clone()));
                }
                Some(repaired)
            });
        }
        while let Some(done) = running.join_next().await {
            count(&mut pass, Some(done));
        }
        Ok(pass)
    }

    /// Lets the runtime go what no record names.
    async fn collect(&self) -> std::io::Result<()> {
        // Read again: what was staged meanwhile is wanted, too.
        let all = self.records.load_all()?;
        let wanted = all.iter().filter_map(volume_of).map(|v| hashed(v.as_str().as_bytes())).collect();
        self.runtime.collect(&wanted).await;
        Ok(())
    }

    /// [`Node::reconcile`] and [`Node::find_lost`] at once and then every `period`, until dropped.
    pub async fn keep_reconciled(self: Arc<Node>, attachments: Arc<dyn Attachments>, period: Duration) {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.reconcile_with(&*attachments).await {
                tracing::error!(%error, "the node's records cannot be read");
            }
        }
    }

    /// Records that are there do not wait for masters that are not, and while records may be missing nothing is let go.
    async fn reconcile_with(self: &Arc<Node>, attachments: &dyn Attachments) -> std::io::Result<()> {
        self.repair_all().await?;
        match tokio::time::timeout(FIND_TIMEOUT, self.find_lost(attachments)).await {
            Ok(Ok(0)) => {}
            Ok(Ok(_)) => _ = self.repair_all().await?,
            Ok(Err(fault)) => {
                tracing::warn!(%fault, "mounts without records are left alone for now");
                return Ok(());
            }
            Err(_) => {
                tracing::warn!("mounts without records are left alone: no master answers");
                return Ok(());
            }
        }
        self.collect().await
    }

    /// Repairs one volume; the caller has entered it.
    pub(super) async fn repair(&self, volume: &VolumeId) -> Outcome<()> {
        let records = self.load(volume)?;
        let Some(stage) = &records.stage else { return Ok(()) };
        self.runtime.adopt(&spec(stage)).await?;
        let mounts = self.mounts()?;
        let health = self.health(&mounts, &stage.staging).await;
        let decided = plan::repair(View { records: &records, mounts: &mounts, health });
        self.drop_dead_targets(&records)?;
        match decided {
            RepairPlan::Leave => return Ok(()),
            RepairPlan::Adopt => self.runtime.refresh(&spec(stage)).await,
            RepairPlan::Foreign => {
                let at = stage.staging.display();
                return Err(Fault::precondition(format!("something that is not of this driver is mounted at {at}")));
            }
            RepairPlan::Remount { detach } => {
                step("node.repair.entered");
                self.mount(stage, detach).await?;
                step("node.repair.remounted");
                self.events.tell(Event::Remounted(volume.clone()));
            }
        }
        self.rebind(volume).await
    }

    /// Forgets targets whose pod directory is gone with the pod.
    fn drop_dead_targets(&self, records: &VolumeRecords) -> Outcome<()> {
        for t in &records.targets {
            if t.target.parent().is_some_and(|p| matches!(p.try_exists(), Ok(false))) {
                let removed = self.records.remove_target(&t.volume, &t.target);
                removed.map_err(|e| super::io_fault("removing the node's records", &e))?;
            }
        }
        Ok(())
    }

    /// Replaces every promised target that does not show the mount; tries all before it answers.
    pub(super) async fn rebind(&self, volume: &VolumeId) -> Outcome<()> {
        let records = self.load(volume)?;
        let mut result = Ok(());
        for (target, decided) in plan::rebinds(&records, &self.mounts()?) {
            let Some(record) = records.targets.iter().find(|t| t.target == target && t.phase == Phase::Made) else {
                continue;
            };
            let bound = match decided {
                Ok(decided) => self.bind(&record.request(), decided).await,
                Err(fault) => Err(fault),
            };
            match bound {
                Ok(()) => {
                    step("node.repair.rebound");
                    self.events.tell(Event::Rebound(volume.clone(), target));
                }
                Err(fault) => result = Err(fault),
            }
        }
        result
    }
}

fn volume_of(records: &VolumeRecords) -> Option<&VolumeId> {
    let of_target = || records.targets.first().map(|t| &t.volume);
    records.stage.as_ref().map(|s| &s.volume).or_else(of_target)
}

fn count(pass: &mut Pass, done: Option<Result<Option<Outcome<()>>, tokio::task::JoinError>>) {
    match done {
        Some(Ok(Some(Ok(())))) | None => {}
        Some(Ok(None)) => pass.busy += 1,
        Some(Ok(Some(Err(_))) | Err(_)) => pass.failed += 1,
    }
}
