//! `fusefs fsck`: metadata and objects against each other, while the volume is in use.

use crate::{args::FsckArgs, cluster::Cluster, show::json};
use anyhow::{Result, bail, ensure};
use fusefs_data_path::{ObjectStore, layout};
use fusefs_types::{
    ObjectId, PartitionId,
    cluster::{MasterCall, MasterReply, NodeCall, NodeReply, VolumeMap, VolumeRecord},
    limits,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    sync::Arc,
};

/// Objects asked of a partition at once.
const PAGE: u32 = 4096;
/// Keys asked of the store at once.
const KEYS: usize = 1000;
/// Exit code when something is wrong with the data.
const DAMAGED: u8 = 4;

struct Report {
    problems: Vec<String>,
    objects: usize,
    missing: Vec<ObjectId>,
    unreferenced: Vec<String>,
    damaged: Vec<String>,
}

/// Exit code 0: clean (unreferenced objects only cost money); 4: metadata or data is damaged.
pub async fn run(a: FsckArgs) -> Result<ExitCode> {
    let cluster = Cluster::new(&a.cluster)?;
    let volume = super::volume::expect_volume(cluster.call(MasterCall::GetVolume(a.volume.clone())).await?)?;
    let MasterReply::StoreAccess(store, credentials) = cluster.call(MasterCall::StoreAccess(volume.id)).await? else {
        bail!("unexpected answer")
    };
    let store = fusefs_data_path::object::open(&store, &credentials)?;
    let report = check(&cluster, &volume, store, a.read_data).await?;
    if a.output.json {
        json(&serde_json::json!({
            "problems": report.problems, "objects": report.objects,
            "missing": report.missing.iter().map(ObjectId::key).collect::<Vec<_>>(),
            "unreferenced": report.unreferenced, "damaged": report.damaged,
        }))?;
    } else {
        print(&a.volume, &report);
    }
    let clean = report.problems.is_empty() && report.missing.is_empty() && report.damaged.is_empty();
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::from(DAMAGED) })
}

async fn check(
    cluster: &Cluster,
    volume: &VolumeRecord,
    store: Arc<dyn ObjectStore>,
    read_data: bool,
) -> Result<Report> {
    // The store is listed first: what is committed later is in metadata but cannot be missed, what is deleted later is
    // asked for again below.
    let keys = list(&*store).await?;
    let mut problems = Vec::new();
    let mut ours = BTreeSet::new();
    let mut all = BTreeSet::new();
    let MasterReply::Volumes(volumes) = cluster.call(MasterCall::ListVolumes).await? else {
        bail!("unexpected answer")
    };
    for v in volumes.iter().filter(|v| v.store == volume.store) {
        let MasterReply::Map(map) = cluster.call(MasterCall::GetMap(v.id)).await? else { bail!("unexpected answer") };
        for p in &map.partitions {
            let objects = objects(cluster, &map, p.id).await?;
            all.extend(objects.iter().copied());
            if v.id == volume.id {
                eprintln!("partition {}: {} objects", p.id, objects.len());
                ours.extend(objects);
                if let NodeReply::Problems(found) = cluster.ask_leader(&map, p.id, NodeCall::Fsck(p.id)).await? {
                    problems.extend(found.into_iter().map(|t| format!("partition {}: {t}", p.id)));
                }
            }
        }
    }
    let mut missing = Vec::new();
    for id in ours.iter().filter(|id| !keys.contains_key(&id.key())) {
        if store.get(&id.key(), Some(0..1)).await.is_err() {
            missing.push(*id);
        }
    }
    let unreferenced =
        keys.keys().filter(|k| ObjectId::parse(k).is_some_and(|id| !all.contains(&id))).cloned().collect();
    let damaged = if read_data { read_all(&*store, &ours).await } else { Vec::new() };
    Ok(Report { problems, objects: ours.len(), missing, unreferenced, damaged })
}

async fn list(store: &dyn ObjectStore) -> Result<BTreeMap<String, u64>> {
    let mut keys = BTreeMap::new();
    loop {
        let after = keys.last_key_value().map(|(k, _): (&String, &u64)| k.clone());
        let page = store.list("", after.as_deref(), KEYS).await?;
        let done = page.len() < KEYS;
        keys.extend(page);
        if done {
            return Ok(keys);
        }
    }
}

async fn objects(cluster: &Cluster, map: &VolumeMap, partition: PartitionId) -> Result<Vec<ObjectId>> {
    let mut all: Vec<ObjectId> = Vec::new();
    loop {
        let call = NodeCall::ListObjects(partition, all.last().copied(), PAGE);
        let NodeReply::Objects(page) = cluster.ask_leader(map, partition, call).await? else {
            bail!("unexpected answer")
        };
        let done = page.len() < PAGE as usize;
        all.extend(page);
        if done {
            return Ok(all);
        }
    }
}

async fn read_all(store: &dyn ObjectStore, objects: &BTreeSet<ObjectId>) -> Vec<String> {
    let mut damaged = Vec::new();
    for (n, id) in objects.iter().enumerate() {
        if n % 1000 == 0 {
            eprintln!("reading object {n} of {}", objects.len());
        }
        match store.get(&id.key(), None).await {
            Ok(body) => {
                if let Err(e) = verify(id, &body) {
                    damaged.push(format!("{}: {e}", id.key()));
                }
            }
            Err(e) => damaged.push(format!("{}: {e}", id.key())),
        }
    }
    damaged
}

/// Header, every frame's checksum, and the length.
fn verify(id: &ObjectId, body: &bytes::Bytes) -> Result<()> {
    let header = layout::decode_header(body)?;
    ensure!(header.id == *id, "the body is that of object {}", header.id.key());
    let frames = layout::frames_of(0, header.plain_len);
    let plain: usize = layout::decode_frames(id, &frames, &body.slice(limits::OBJECT_HEADER_BYTES..))?
        .iter()
        .map(bytes::Bytes::len)
        .sum();
    ensure!(plain as u64 == header.plain_len, "{plain} bytes instead of {}", header.plain_len);
    Ok(())
}

fn print(volume: &str, r: &Report) {
    println!("volume {volume}: {} objects", r.objects);
    let section = |title: &str, lines: &[String]| {
        if !lines.is_empty() {
            println!("{} {title}", lines.len());
            lines.iter().take(20).for_each(|l| println!("  {l}"));
        }
    };
    section("metadata problem(s): ALARM", &r.problems);
    section(
        "object(s) missing although metadata names them: ALARM",
        &r.missing.iter().map(ObjectId::key).collect::<Vec<_>>(),
    );
    section("damaged object(s): ALARM", &r.damaged);
    section(
        "object(s) in the store that no metadata names (uploads under way, or waiting to be swept; they only cost space)",
        &r.unreferenced,
    );
    if r.problems.is_empty() && r.missing.is_empty() && r.damaged.is_empty() {
        println!("clean: everything that metadata names is there");
    }
}
