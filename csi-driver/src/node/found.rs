//! Records that are lost, written again from what others still know: the rights to mount that the masters keep, the mounts
//! that the kernel shows (dead ones, too), and the files that kubelet keeps beside its paths.
//!
//! Where one of the three is missing nothing is made up: the orchestrator calls again, and that is enough.

use super::{
    engine::{Event, Node},
    io_fault,
    model::{Capability, Subdir, VolumeId},
    mounts::{Mount, Mounts},
    options::MountOptions,
    plan,
    records::{Phase, StageRecord, TargetRecord, VERSION},
};
use crate::{DRIVER_NAME, Fault, Masters, Outcome, step::step, valid};
use async_trait::async_trait;
use fusefs_types::cluster::AccessMode;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// kubelet's name of staging paths.
const STAGING: &str = "globalmount";
/// kubelet's name of target paths.
const TARGET: &str = "mount";
/// kubelet's file beside them.
const DATA: &str = "vol_data.json";
/// No such file is longer.
const DATA_BYTES_MAX: u64 = 64 << 10;

/// How long one of several authorities may take ([`FirstOf`]).
pub const AUTHORITY_PATIENCE: Duration = Duration::from_secs(5);

/// The right of this node to mount a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Volume's name in the cluster.
    pub name: String,
    /// Directory in it; empty = all of it.
    pub part: String,
    /// Mode.
    pub mode: AccessMode,
    /// This node may write.
    pub writer: bool,
    /// Attach generation.
    pub generation: u64,
}

/// Whoever knows which volumes are attached to a node.
#[async_trait]
pub trait Attachments: Send + Sync + 'static {
    /// All of `node`, without those that are being withdrawn.
    async fn of_node(&self, node: &str) -> Outcome<Vec<Attachment>>;
}

#[async_trait]
impl Attachments for Masters {
    async fn of_node(&self, node: &str) -> Outcome<Vec<Attachment>> {
        let all = self.publications(None).await?;
        let mine: Vec<_> = all.into_iter().filter(|p| p.node == node && !p.ending).collect();
        if mine.is_empty() {
            return Ok(Vec::new());
        }
        let names: HashMap<_, _> = self.list().await?.into_iter().map(|v| (v.id, v.name)).collect();
        let named = |p: fusefs_types::cluster::Publication| {
            let name = names.get(&p.volume)?.clone();
            Some(Attachment { name, part: p.part, mode: p.mode, writer: p.writer, generation: p.generation })
        };
        Ok(mine.into_iter().filter_map(named).collect())
    }
}

/// The first of several that answers. A list is one authority's, never a mixture.
pub struct FirstOf(pub Vec<Arc<dyn Attachments>>);

#[async_trait]
impl Attachments for FirstOf {
    async fn of_node(&self, node: &str) -> Outcome<Vec<Attachment>> {
        let mut last = Fault::unavailable("nobody can be asked what is attached to this node");
        for authority in &self.0 {
            match tokio::time::timeout(AUTHORITY_PATIENCE, authority.of_node(node)).await {
                Ok(Ok(all)) => return Ok(all),
                Ok(Err(fault)) => last = fault,
                Err(_) => last = Fault::unavailable("whoever knows what is attached to this node does not answer"),
            }
        }
        Err(last)
    }
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "driverName")]
    driver: String,
    #[serde(rename = "volumeHandle")]
    handle: String,
}

/// What kubelet's file beside a path says about the volume that belongs there.
fn handle_at(point: &Path) -> Option<valid::VolumeHandle> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(point.parent()?.join(DATA)).ok()?;
    file.take(DATA_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let data: Data = serde_json::from_slice(&bytes).ok()?;
    (data.driver == DRIVER_NAME).then(|| valid::VolumeHandle::parse(&data.handle).ok())?
}

/// Mounts of one volume at paths of kubelet.
#[derive(Debug, Default)]
struct Found<'a> {
    staging: Option<&'a Mount>,
    targets: BTreeMap<PathBuf, &'a Mount>,
}

/// Our mounts at paths of kubelet whose file names the same volume; the top one of each path. By volume id.
fn found(mounts: &Mounts) -> BTreeMap<String, (valid::VolumeHandle, Found<'_>)> {
    let mut out = BTreeMap::<_, (_, Found<'_>)>::new();
    for m in mounts.0.iter().filter(|m| plan::ours(m)) {
        let name = m.point.file_name().and_then(|n| n.to_str());
        if !matches!(name, Some(STAGING | TARGET)) {
            continue;
        }
        let Some(handle) = handle_at(&m.point).filter(|h| plan::source(h.volume.as_str()) == m.source) else {
            continue;
        };
        let (_, found) = out.entry(handle.to_string()).or_insert_with(|| (handle, Found::default()));
        if name == Some(STAGING) {
            found.staging = Some(m);
        } else {
            found.targets.insert(m.point.clone(), m);
        }
    }
    out
}

impl Node {
    /// Writes the records of volumes that have none and are mounted; how many volumes. The masters are only asked when
    /// there is such a volume.
    pub async fn find_lost(self: &Arc<Node>, attachments: &dyn Attachments) -> Outcome<usize> {
        let mounts = self.mounts()?;
        let mut lost = Vec::new();
        for (id, (handle, found)) in found(&mounts) {
            let volume = VolumeId::parse(&id)?;
            if found.staging.is_some() && self.load(&volume)?.stage.is_none() {
                lost.push((volume, handle, found));
            }
        }
        if lost.is_empty() {
            return Ok(0);
        }
        let attached = attachments.of_node(&self.settings().node).await?;
        let mut written = 0;
        for (volume, handle, found) in lost {
            let part = handle.subdir.as_ref().map_or("", |s| s.as_str());
            let right = attached.iter().find(|a| a.name == handle.volume.as_str() && a.part == part);
            // Without a right to mount it is garbage that the orchestrator takes away; a busy volume is no longer lost.
            let (Some(right), Ok(_busy)) = (right, self.upkeep(&volume)) else { continue };
            if self.load(&volume)?.stage.is_some() {
                continue;
            }
            self.write_found(&volume, right, &found)?;
            self.events.tell(Event::Found(volume));
            written += 1;
        }
        Ok(written)
    }

    /// Targets first: with a mount's record the volume is not lost any more.
    fn write_found(&self, volume: &VolumeId, right: &Attachment, found: &Found<'_>) -> Outcome<()> {
        let Some(mount) = found.staging else { return Ok(()) };
        let failed = |e| io_fault("writing the node's records", &e);
        let read_only = !right.writer;
        let capability = |no_exec| Capability {
            group: None,
            mode: right.mode,
            options: MountOptions { read_only, no_exec, ..MountOptions::default() },
        };
        for (target, at) in &found.targets {
            let record = TargetRecord {
                version: VERSION,
                volume: volume.clone(),
                staging: mount.point.clone(),
                target: target.clone(),
                capability: capability(at.has("noexec")),
                readonly: at.has("ro"),
                subdir: Subdir::parse(&right.part)?,
                phase: Phase::Made,
                found: true,
            };
            self.records.put_target(&record).map_err(failed)?;
        }
        let record = StageRecord {
            version: VERSION,
            volume: volume.clone(),
            name: right.name.clone(),
            staging: mount.point.clone(),
            capability: capability(false),
            generation: right.generation,
            phase: Phase::Made,
            found: true,
        };
        self.records.put_stage(&record).map_err(failed)?;
        step("node.found.recorded");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_that_kubelet_names_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str, data: &str| {
            let dir = dir.path().join(path);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join(DATA), data).unwrap();
            dir
        };
        let data =
            |driver: &str, handle: &str| format!(r#"{{"driverName":"{driver}","volumeHandle":"{handle}","x":1}}"#);
        let stage = at("stage", &data(DRIVER_NAME, "vol-a")).join(STAGING);
        let target = at("target", &data(DRIVER_NAME, "vol-a")).join(TARGET);
        let part = at("part", &data(DRIVER_NAME, "vol-a/x/y")).join(STAGING);
        let line = |point: &Path, source: &str| format!("1 2 0:7 / {} rw - fuse.fusefs {source} rw\n", point.display());
        let text = [
            line(&stage, "fusefs#vol-a"),
            line(&stage, "fusefs#vol-a"),
            line(&target, "fusefs#vol-a"),
            line(&part, "fusefs#vol-a"),
            line(&stage, "fusefs#vol-b"), // the file names another volume
            line(&stage, "tmpfs"),
            line(&at("other", &data("x.io", "vol-a")).join(STAGING), "fusefs#vol-a"),
            line(&at("torn", "{").join(STAGING), "fusefs#vol-a"),
            line(&at("name", &data(DRIVER_NAME, "vol-a")).join("elsewhere"), "fusefs#vol-a"),
            line(&dir.path().join("nothing/mount"), "fusefs#vol-a"),
        ];
        let mounts = Mounts::parse(text.concat().as_bytes());
        let all = found(&mounts);
        assert_eq!(all.keys().collect::<Vec<_>>(), ["vol-a", "vol-a/x/y"]);
        let (_, a) = &all["vol-a"];
        assert_eq!(a.staging.map(|m| &m.point), Some(&stage));
        assert_eq!(a.targets.keys().collect::<Vec<_>>(), [&target]);
        assert!(all["vol-a/x/y"].1.targets.is_empty());
    }

    struct Answers(Option<Outcome<Vec<Attachment>>>);

    #[async_trait]
    impl Attachments for Answers {
        async fn of_node(&self, _: &str) -> Outcome<Vec<Attachment>> {
            match &self.0 {
                Some(answer) => answer.clone(),
                None => std::future::pending().await,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_authority_that_answers_is_believed() {
        let attachment = |name: &str| Attachment {
            name: name.into(),
            part: String::new(),
            mode: AccessMode::MultiNodeMultiWriter,
            writer: true,
            generation: 1,
        };
        let known = |name: &str| Some(Ok(vec![attachment(name)]));
        let ask = async |answers: Vec<Option<Outcome<Vec<Attachment>>>>| {
            let all = answers.into_iter().map(|a| Arc::new(Answers(a)) as Arc<dyn Attachments>);
            FirstOf(all.collect()).of_node("n").await
        };
        let refused = || Some(Err(Fault::unavailable("no")));
        assert_eq!(ask(vec![known("a"), known("b")]).await.unwrap(), [attachment("a")]);
        assert_eq!(ask(vec![Some(Ok(vec![])), known("b")]).await.unwrap(), []);
        assert_eq!(ask(vec![refused(), known("b")]).await.unwrap(), [attachment("b")]);
        assert_eq!(ask(vec![None, known("b")]).await.unwrap(), [attachment("b")]);
        assert!(ask(vec![refused(), None]).await.is_err());
        assert!(ask(vec![]).await.is_err());
    }
}
