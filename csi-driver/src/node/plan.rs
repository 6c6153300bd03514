//! Decisions: pure functions over the records, a snapshot of mountinfo and the request.

use super::{
    model::{PublishRequest, SOURCE_PREFIX, StageRequest},
    mounts::{BindFlags, Mount, Mounts},
    records::{Phase, StageRecord, TargetRecord, VolumeRecords},
};
use crate::{Fault, Outcome};
use std::path::{Path, PathBuf};

/// How the mount on top of the staging path answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Its root answers.
    Alive,
    /// The kernel itself says that nobody serves it and nobody can: the connection is gone.
    Dead,
    /// No answer in time. Slow is not dead: nothing is ever detached for this.
    Silent,
}

/// What a decision looks at.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Records of the volume.
    pub records: &'a VolumeRecords,
    /// Snapshot.
    pub mounts: &'a Mounts,
    /// Of the mount on top of the staging path; meaningless when there is none.
    pub health: Health,
}

/// Source of our mounts of the volume `name`.
pub fn source(name: &str) -> String {
    format!("{SOURCE_PREFIX}{name}")
}

/// Whether a mount is one of ours, of any volume.
pub fn ours(m: &Mount) -> bool {
    m.source.starts_with(SOURCE_PREFIX)
}

/// What lies at the staging path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staging<'a> {
    /// Nothing.
    Absent,
    /// Our mount, serving.
    Live(&'a Mount),
    /// Our mount; it does not answer now.
    Silent(&'a Mount),
    /// Our mount, and this many layers of ours, without anybody who could serve them.
    Dead(usize),
    /// Somebody else's.
    Foreign,
}

/// Looks at the staging path of volume `name`.
pub fn staging<'a>(mounts: &'a Mounts, path: &Path, name: &str, health: Health) -> Staging<'a> {
    let layers = mounts.at(path);
    let wanted = source(name);
    match (layers.last(), health) {
        (None, _) => Staging::Absent,
        (Some(top), _) if top.source != wanted => Staging::Foreign,
        (Some(top), Health::Alive) => Staging::Live(top),
        (Some(top), Health::Silent) => Staging::Silent(top),
        (Some(_), Health::Dead) => Staging::Dead(layers.iter().rev().take_while(|m| m.source == wanted).count()),
    }
}

/// What NodeStageVolume does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StagePlan {
    /// The mount is there and serves; only the record may be behind.
    Adopt,
    /// Take dead layers off, mount, bind the recorded targets again.
    Mount {
        /// Dead layers of ours.
        detach: usize,
    },
}

/// A request that names no group, for a volume that is staged with one, means that one: pods with and without a group may
/// share a volume, and which of them the orchestrator speaks for is chance.
pub fn inherited(view: View<'_>, request: &StageRequest) -> StageRequest {
    let mut request = request.clone();
    if let Some(record) = view.records.stage.as_ref().filter(|r| standing(r, view)) {
        request.capability.group = request.capability.group.or(record.capability.group);
    }
    request
}

/// Whether a record's mount was promised, or exists.
fn standing(record: &StageRecord, view: View<'_>) -> bool {
    record.phase == Phase::Made || view.mounts.top(&record.staging).is_some_and(ours)
}

/// Decides NodeStageVolume.
pub fn stage(view: View<'_>, request: &StageRequest) -> Outcome<StagePlan> {
    let found = staging(view.mounts, &request.staging, &request.name, view.health);
    if let Some(record) = &view.records.stage {
        same_stage(record, view, request)?;
    }
    match found {
        Staging::Live(_) => Ok(StagePlan::Adopt),
        Staging::Absent => Ok(StagePlan::Mount { detach: 0 }),
        Staging::Dead(detach) => Ok(StagePlan::Mount { detach }),
        Staging::Silent(_) => Err(silent(&request.staging)),
        Staging::Foreign => Err(foreign(&request.staging)),
    }
}

fn same_stage(record: &StageRecord, view: View<'_>, request: &StageRequest) -> Outcome<()> {
    if record.found && record.staging == request.staging {
        return Ok(()); // what was not known is known now
    }
    let standing = standing(record, view);
    if record.staging != request.staging && standing {
        return Err(Fault::precondition(format!(
            "volume {} is staged at {} on this node",
            record.volume,
            record.staging.display()
        )));
    }
    let same = record.capability == request.capability && record.name == request.name;
    if !same && standing {
        return Err(Fault::exists(format!("volume {} is staged with another capability", record.volume)));
    }
    Ok(())
}

/// What NodeUnstageVolume does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnstagePlan {
    /// Not staged there.
    Nothing,
    /// Nothing is mounted (any more); wait for the end of what was, and forget the record.
    Forget,
    /// Nobody serves it: take the layers off.
    Detach(usize),
    /// Flush and unmount.
    Unmount,
}

/// Decides NodeUnstageVolume. Without a record, a mount of ours at the path still counts.
pub fn unstage(view: View<'_>, path: &Path) -> Outcome<UnstagePlan> {
    let record = view.records.stage.as_ref().filter(|r| r.staging == path);
    if let Some(target) =
        view.records.targets.iter().find(|t| t.staging == path && view.mounts.top(&t.target).is_some_and(ours))
    {
        return Err(Fault::precondition(format!(
            "volume {} is published at {}",
            target.volume,
            target.target.display()
        )));
    }
    let layers = view.mounts.at(path);
    match (layers.last(), record) {
        (None, None) => Ok(UnstagePlan::Nothing),
        (None, Some(_)) => Ok(UnstagePlan::Forget),
        (Some(top), _) if !ours(top) => Err(foreign(path)),
        (Some(top), Some(r)) if top.source != source(&r.name) => Err(foreign(path)),
        (Some(_), _) if view.health == Health::Dead => {
            Ok(UnstagePlan::Detach(layers.iter().rev().take_while(|m| ours(m)).count()))
        }
        (Some(_), _) => Ok(UnstagePlan::Unmount),
    }
}

/// What is done about one target path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindPlan {
    /// It is what it should be.
    Keep,
    /// The mount is right, its flags are not (a crash between the two calls).
    Flags,
    /// Take this many layers off and bind: replaced, never stacked.
    Bind {
        /// Layers of ours.
        detach: usize,
    },
}

/// What NodePublishVolume does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishPlan {
    /// The mount itself is gone: repair the volume first, then decide again.
    Repair,
    /// Only the target.
    Target(BindPlan),
}

/// Decides NodePublishVolume.
pub fn publish(view: View<'_>, request: &PublishRequest) -> Outcome<PublishPlan> {
    let Some(stage) = view.records.stage.as_ref().filter(|s| s.phase == Phase::Made && s.staging == request.staging)
    else {
        return Err(Fault::precondition(format!(
            "volume {} is not staged at {}",
            request.volume,
            request.staging.display()
        )));
    };
    if request.capability.group.is_some() && request.capability.group != stage.capability.group {
        return Err(Fault::exists(format!("volume {} is staged on this node for another group", request.volume)));
    }
    access(&view.records.targets, request)?;
    match staging(view.mounts, &stage.staging, &stage.name, view.health) {
        Staging::Live(mount) => Ok(PublishPlan::Target(bind(view.mounts, mount, request)?)),
        Staging::Silent(mount) => match bind(view.mounts, mount, request)? {
            // Already there: an answer now keeps other pods of the volume out of a shared back-off.
            BindPlan::Keep => Ok(PublishPlan::Target(BindPlan::Keep)),
            _ => Err(silent(&stage.staging)),
        },
        Staging::Absent | Staging::Dead(_) => Ok(PublishPlan::Repair),
        Staging::Foreign => Err(foreign(&stage.staging)),
    }
}

/// The specification's table for a second NodePublishVolume of a volume on one node.
pub fn access(targets: &[TargetRecord], request: &PublishRequest) -> Outcome<()> {
    if let Some(other) = targets.iter().find(|t| t.target == request.target) {
        if other.found || other.request() == *request {
            return Ok(());
        }
        return Err(Fault::exists(format!(
            "volume {} is published at {} with other properties",
            request.volume,
            request.target.display()
        )));
    }
    let one = |t: &&TargetRecord| !t.capability.mode.many_targets() || !request.capability.mode.many_targets();
    match targets.iter().find(one) {
        None => Ok(()),
        Some(held) => Err(Fault::precondition(format!(
            "volume {} is published at {}, and its access mode allows one target",
            request.volume,
            held.target.display()
        ))),
    }
}

/// Flags of the bind mount that a request wants.
pub fn flags(request: &PublishRequest) -> BindFlags {
    BindFlags { read_only: request.bind_read_only(), no_exec: request.capability.options.no_exec }
}

/// Decides about one target, given the live mount.
pub fn bind(mounts: &Mounts, stage: &Mount, request: &PublishRequest) -> Outcome<BindPlan> {
    let layers = mounts.at(&request.target);
    if layers.iter().any(|m| !ours(m)) {
        return Err(foreign(&request.target));
    }
    Ok(match layers.as_slice() {
        [one] if one.device == stage.device && one.root == request.subdir.root() => {
            if flags(request).are_set(one) {
                BindPlan::Keep
            } else {
                BindPlan::Flags
            }
        }
        all => BindPlan::Bind { detach: all.len() },
    })
}

/// What NodeUnpublishVolume does: layers to take off, then the directory goes.
pub fn unpublish(view: View<'_>, target: &Path) -> Outcome<usize> {
    let layers = view.mounts.at(target);
    if layers.iter().any(|m| !ours(m)) {
        return Err(foreign(target));
    }
    let staged_here = view.records.stage.as_ref().is_some_and(|s| s.staging == target);
    if staged_here {
        return Err(Fault::precondition(format!("{} is the staging path", target.display())));
    }
    Ok(layers.len())
}

/// What recovery does about a volume's mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairPlan {
    /// Nothing was promised, or it is being undone: the orchestrator calls again.
    Leave,
    /// It lives (or may live): only the targets are looked at.
    Adopt,
    /// Everybody who held it is gone: take dead layers off, mount again.
    Remount {
        /// Dead layers of ours.
        detach: usize,
    },
    /// Something else is mounted there; people have to look.
    Foreign,
}

/// Decides recovery of a volume's mount.
pub fn repair(view: View<'_>) -> RepairPlan {
    let Some(stage) = view.records.stage.as_ref().filter(|s| s.phase == Phase::Made) else { return RepairPlan::Leave };
    match staging(view.mounts, &stage.staging, &stage.name, view.health) {
        Staging::Live(_) | Staging::Silent(_) => RepairPlan::Adopt,
        Staging::Absent => RepairPlan::Remount { detach: 0 },
        Staging::Dead(detach) => RepairPlan::Remount { detach },
        Staging::Foreign => RepairPlan::Foreign,
    }
}

/// Targets that recovery binds again, after the mount was repaired: only those that were promised.
pub fn rebinds(records: &VolumeRecords, mounts: &Mounts) -> Vec<(PathBuf, Outcome<BindPlan>)> {
    let Some(stage) = &records.stage else { return Vec::new() };
    let Some(mount) = mounts.top(&stage.staging).filter(|m| m.source == source(&stage.name)) else { return Vec::new() };
    let made = records.targets.iter().filter(|t| t.phase == Phase::Made && t.staging == stage.staging);
    made.map(|t| (t.target.clone(), bind(mounts, mount, &t.request())))
        .filter(|(_, plan)| *plan != Ok(BindPlan::Keep))
        .collect()
}

fn silent(path: &Path) -> Fault {
    Fault::unavailable(format!("the mount at {} does not answer (yet)", path.display()))
}

fn foreign(path: &Path) -> Fault {
    Fault::precondition(format!("something that is not of this driver is mounted at {}", path.display()))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
