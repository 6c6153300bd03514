//! What this node has promised, on disk: one small file per staged volume and per published target.
//!
//! A record is written before the effect it describes and removed after it is undone, each with fsync, so after any crash
//! the records name everything that may exist.

use super::{
    model::{Capability, PublishRequest, StageRequest, Subdir, VolumeId},
    paths::{hashed, hashed_path},
};
use crate::step::step;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Version of the files; a newer one is refused, not guessed at.
pub const VERSION: u32 = 1;
/// No record is larger.
const RECORD_BYTES_MAX: u64 = 64 << 10;
const STAGE_FILE: &str = "stage.json";
const TARGET_PREFIX: &str = "target-";
const TEMPORARY: &str = "tmp";

/// How far something got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Being made; may or may not exist.
    Making,
    /// Made and promised to the orchestrator.
    Made,
    /// Being undone.
    Ending,
}

/// The one mount of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageRecord {
    /// [`VERSION`].
    pub version: u32,
    /// Volume.
    pub volume: VolumeId,
    /// Its name in the cluster.
    pub name: String,
    /// Where.
    pub staging: PathBuf,
    /// How.
    pub capability: Capability,
    /// Attach generation.
    pub generation: u64,
    /// How far.
    pub phase: Phase,
    /// Written from what others knew: the next request says the rest.
    #[serde(default)]
    pub found: bool,
}

/// A bind mount for a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRecord {
    /// [`VERSION`].
    pub version: u32,
    /// Volume.
    pub volume: VolumeId,
    /// From where.
    pub staging: PathBuf,
    /// Where.
    pub target: PathBuf,
    /// How.
    pub capability: Capability,
    /// The pod may only read.
    pub readonly: bool,
    /// Part of the volume.
    pub subdir: Subdir,
    /// How far.
    pub phase: Phase,
    /// Written from what others knew: the next request says the rest.
    #[serde(default)]
    pub found: bool,
}

impl StageRecord {
    /// From a request.
    pub fn new(r: &StageRequest, phase: Phase) -> StageRecord {
        StageRecord {
            version: VERSION,
            volume: r.volume.clone(),
            name: r.name.clone(),
            staging: r.staging.clone(),
            capability: r.capability.clone(),
            generation: r.generation,
            phase,
            found: false,
        }
    }
}

impl TargetRecord {
    /// From a request.
    pub fn new(r: &PublishRequest, phase: Phase) -> TargetRecord {
        TargetRecord {
            version: VERSION,
            volume: r.volume.clone(),
            staging: r.staging.clone(),
            target: r.target.clone(),
            capability: r.capability.clone(),
            readonly: r.readonly,
            subdir: r.subdir.clone(),
            phase,
            found: false,
        }
    }
    /// What was asked for ("P" of the specification's table, without secrets).
    pub fn request(&self) -> PublishRequest {
        PublishRequest {
            volume: self.volume.clone(),
            staging: self.staging.clone(),
            target: self.target.clone(),
            capability: self.capability.clone(),
            readonly: self.readonly,
            subdir: self.subdir.clone(),
        }
    }
}

/// Everything recorded about one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeRecords {
    /// The mount.
    pub stage: Option<StageRecord>,
    /// Bind mounts, by path.
    pub targets: Vec<TargetRecord>,
}

/// The directory of records.
#[derive(Clone, Debug)]
pub struct Records {
    root: PathBuf,
}

#[derive(Deserialize)]
struct Header {
    version: u32,
}

impl Records {
    /// Opens or makes it (mode 0700) and clears unfinished writes.
    pub fn open(root: impl Into<PathBuf>) -> io::Result<Records> {
        let records = Records { root: root.into() };
        make_dir(&records.root)?;
        for dir in subdirs(&records.root)? {
            for file in entries(&dir)?.into_iter().filter(|f| f.extension().is_some_and(|e| e == TEMPORARY)) {
                fs::remove_file(file)?;
            }
        }
        Ok(records)
    }

    fn dir(&self, volume: &VolumeId) -> PathBuf {
        self.root.join(hashed(volume.as_str().as_bytes()))
    }

    fn target_file(&self, volume: &VolumeId, target: &Path) -> PathBuf {
        self.dir(volume).join(format!("{TARGET_PREFIX}{}.json", hashed_path(target)))
    }

    /// Records of a volume.
    pub fn load(&self, volume: &VolumeId) -> io::Result<VolumeRecords> {
        load_dir(&self.dir(volume))
    }

    /// Records of all volumes; one that cannot be read is reported and left alone.
    pub fn load_all(&self) -> io::Result<Vec<VolumeRecords>> {
        let mut out = Vec::new();
        for dir in subdirs(&self.root)? {
            match load_dir(&dir) {
                Ok(r) if r == VolumeRecords::default() => {}
                Ok(r) => out.push(r),
                Err(error) => tracing::error!(%error, dir = %dir.display(), "unreadable record"),
            }
        }
        Ok(out)
    }

    /// Durable when it returns.
    pub fn put_stage(&self, r: &StageRecord) -> io::Result<()> {
        write(&self.dir(&r.volume), &self.dir(&r.volume).join(STAGE_FILE), r)
    }

    /// Durable when it returns.
    pub fn put_target(&self, r: &TargetRecord) -> io::Result<()> {
        write(&self.dir(&r.volume), &self.target_file(&r.volume, &r.target), r)
    }

    /// Durable when it returns; absent is fine.
    pub fn remove_stage(&self, volume: &VolumeId) -> io::Result<()> {
        self.remove(volume, &self.dir(volume).join(STAGE_FILE))
    }

    /// Durable when it returns; absent is fine.
    pub fn remove_target(&self, volume: &VolumeId, target: &Path) -> io::Result<()> {
        self.remove(volume, &self.target_file(volume, target))
    }

    fn remove(&self, volume: &VolumeId, file: &Path) -> io::Result<()> {
        let dir = self.dir(volume);
        match fs::remove_file(file) {
            Ok(()) => sync_dir(&dir)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        }
        if fs::remove_dir(&dir).is_ok() {
            sync_dir(&self.root)?; // it was the last one
        }
        Ok(())
    }
}

fn load_dir(dir: &Path) -> io::Result<VolumeRecords> {
    let mut out = VolumeRecords::default();
    for file in entries(dir)? {
        let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name == STAGE_FILE {
            out.stage = Some(read(&file)?);
        } else if name.starts_with(TARGET_PREFIX) && name.ends_with(".json") {
            out.targets.push(read(&file)?);
        }
    }
    out.targets.sort_by(|a: &TargetRecord, b| a.target.cmp(&b.target));
    Ok(out)
}

fn read<T: DeserializeOwned>(file: &Path) -> io::Result<T> {
    let mut bytes = Vec::new();
    File::open(file)?.take(RECORD_BYTES_MAX).read_to_end(&mut bytes)?;
    let bad = |e: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", file.display()));
    let header: Header = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    if header.version != VERSION {
        return Err(bad(format!("version {} needs another version of the driver", header.version)));
    }
    serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))
}

fn write<T: Serialize>(dir: &Path, file: &Path, record: &T) -> io::Result<()> {
    make_dir(dir)?;
    let temporary = file.with_extension(TEMPORARY);
    let mut out = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    out.write_all(&serde_json::to_vec_pretty(record)?)?;
    out.sync_all()?;
    step("record.written");
    fs::rename(&temporary, file)?;
    step("record.renamed");
    sync_dir(dir)
}

fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    dir.parent().map_or(Ok(()), sync_dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(list) => list.map(|e| e.map(|e| e.path())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn subdirs(dir: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(entries(dir)?.into_iter().filter(|p| p.is_dir()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{model::AccessMode, options::MountOptions};

    fn target(volume: &str, path: &str) -> TargetRecord {
        TargetRecord {
            version: VERSION,
            volume: VolumeId::parse(volume).unwrap(),
            staging: "/s".into(),
            target: path.into(),
            capability: Capability {
                mode: AccessMode::SingleNodeWriter,
                options: MountOptions::default(),
                group: None,
            },
            readonly: true,
            subdir: Subdir::parse("a/b").unwrap(),
            phase: Phase::Made,
            found: false,
        }
    }

    fn stage(volume: &str) -> StageRecord {
        let t = target(volume, "/t");
        StageRecord {
            version: VERSION,
            volume: t.volume,
            name: "v".into(),
            staging: "/s".into(),
            capability: t.capability,
            generation: 7,
            phase: Phase::Making,
            found: false,
        }
    }

    #[test]
    fn records_come_back_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path().join("r")).unwrap();
        let volume = VolumeId::parse("../../etc").unwrap(); // hostile ids name no file
        let (s, a, b) = (stage("../../etc"), target("../../etc", "/a"), target("../../etc", "/b"));
        records.put_stage(&s).unwrap();
        records.put_target(&b).unwrap();
        records.put_target(&a).unwrap();
        records.put_target(&a).unwrap();
        let records = Records::open(dir.path().join("r")).unwrap();
        let all = VolumeRecords { stage: Some(s), targets: vec![a, b] };
        assert_eq!(records.load(&volume).unwrap(), all);
        assert_eq!(records.load_all().unwrap(), [all]);
        records.remove_target(&volume, Path::new("/a")).unwrap();
        records.remove_target(&volume, Path::new("/a")).unwrap();
        records.remove_target(&volume, Path::new("/b")).unwrap();
        records.remove_stage(&volume).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("r")).unwrap().count(), 0);
    }

    #[test]
    fn torn_and_newer_records_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let s = stage("v");
        records.put_stage(&s).unwrap();
        let file = records.dir(&s.volume).join(STAGE_FILE);
        fs::write(file.with_extension("tmp"), b"{").unwrap();
        let records = Records::open(dir.path()).unwrap();
        assert!(!file.with_extension("tmp").exists());
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
        assert_eq!(records.load(&s.volume).unwrap_err().kind(), io::ErrorKind::InvalidData);
        for cut in 0..text.len() {
            fs::write(&file, &text[..cut]).unwrap();
            assert!(records.load(&s.volume).is_err());
        }
        assert!(records.load_all().unwrap().is_empty()); // reported, not fatal
    }
}
