//! `fusefs dev`: a complete system on this machine.

use super::{mount, serve::shutdown, store::parse_url};
use crate::{
    args::DevArgs,
    cluster::{Cluster, components, credential},
};
use anyhow::{Context, Result, bail, ensure};
use fusefs_fuse_client::Client;
use fusefs_local_cluster::{ClusterDir, InprocCluster, ProcessCluster, Shape, Tuning};
use fusefs_types::cluster::{MasterCall, MasterReply, StoreRecord, VolumeRecord, VolumeSpec};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// How long the first start may take until there is a volume.
const READY: Duration = Duration::from_secs(60);

enum Servers {
    Inproc(Box<InprocCluster>),
    Processes(ProcessCluster),
}

/// Runs until Ctrl-C or an unmount.
pub async fn run(a: DevArgs) -> Result<()> {
    prepare_mountpoint(&a.mountpoint)?;
    let data_dir = a.data_dir.clone().map_or_else(default_data_dir, Ok)?;
    ensure!(
        !data_dir.starts_with(&a.mountpoint),
        "the data directory {} lies below the mount point; choose another --data-dir",
        data_dir.display()
    );
    let shape = Shape { masters: a.masters as usize, metanodes: a.metanodes as usize };
    let dir = ClusterDir::open(&data_dir, shape)?;
    let mut servers = start(&dir, a.processes).await?;
    let result = match &mut servers {
        Servers::Inproc(cluster) => tokio::select! {
            biased;
            r = session(&a, &dir) => r,
            e = cluster.failed() => Err(e),
        },
        Servers::Processes(_) => session(&a, &dir).await,
    };
    match servers {
        Servers::Inproc(cluster) => cluster.stop().await,
        Servers::Processes(mut cluster) => tokio::task::spawn_blocking(move || cluster.stop()).await?,
    }
    result
}

async fn start(dir: &ClusterDir, processes: bool) -> Result<Servers> {
    if !processes {
        return Ok(Servers::Inproc(Box::new(InprocCluster::start(dir, &Tuning::default()).await?)));
    }
    let mut cluster = ProcessCluster::new(dir, &std::env::current_exe()?, &[])?;
    let cluster = tokio::task::spawn_blocking(move || cluster.start().map(|()| cluster)).await??;
    Ok(Servers::Processes(cluster))
}

/// Store, volume, mount, until the end.
async fn session(a: &DevArgs, dir: &ClusterDir) -> Result<()> {
    let credential = credential(Some(&dir.token_file()))?;
    let cluster = Cluster::at(dir.master_addrs(), credential.clone());
    let volume = volume(a, dir, &cluster).await?;
    let settings = mount::settings(&a.volume, &a.mountpoint, dir.master_addrs(), credential, &a.options);
    let client = Client::mount(&settings, components())
        .await
        .with_context(|| format!("mounting at {}", a.mountpoint.display()))?;
    println!("fusefs is mounted at {}", a.mountpoint.display());
    println!("  volume:  {} ({})", volume.name, volume.redundancy);
    println!("  data:    {}", dir.root().display());
    println!(
        "  admin:   export FUSEFS_MASTER={} FUSEFS_TOKEN_FILE={}",
        dir.master_addrs().join(","),
        dir.token_file().display()
    );
    println!("           fusefs status");
    println!("Ctrl-C unmounts; the same command brings everything back.");
    mount::serve(client, shutdown(false)).await?;
    println!("unmounted");
    Ok(())
}

/// The volume of an earlier run, or a new one on a new store.
async fn volume(a: &DevArgs, dir: &ClusterDir, cluster: &Cluster) -> Result<VolumeRecord> {
    let MasterReply::Volumes(volumes) = cluster.call_within(MasterCall::ListVolumes, READY).await? else {
        bail!("unexpected answer")
    };
    if let Some(v) = volumes.into_iter().find(|v| v.name == a.volume) {
        return Ok(v);
    }
    let record = store(a, dir)?;
    let name = record.name.clone();
    cluster.call_within(MasterCall::AddStore(record), READY).await?;
    let spec = VolumeSpec {
        name: a.volume.clone(),
        store: name,
        capacity: 0,
        inodes: 0,
        partitions: 0,
        replicas: 0,
        labels: Vec::new(),
    };
    super::volume::expect_volume(create(cluster, spec).await?)
}

/// Metanodes register within their first second: until then there is nowhere to put the volume.
async fn create(cluster: &Cluster, spec: VolumeSpec) -> Result<MasterReply> {
    let end = tokio::time::Instant::now() + READY;
    let mut every = tokio::time::interval(Duration::from_millis(200));
    loop {
        every.tick().await;
        match cluster.call_within(MasterCall::CreateVolume(spec.clone()), READY).await {
            Err(e) if tokio::time::Instant::now() > end => return Err(e),
            Err(_) => {}
            Ok(reply) => return Ok(reply),
        }
    }
}

fn store(a: &DevArgs, dir: &ClusterDir) -> Result<StoreRecord> {
    let record = match &a.s3 {
        Some(url) => {
            ensure!(
                cfg!(feature = "s3"),
                "this build has no S3 support; build it with: cargo build --release -p fusefs-cli"
            );
            parse_url(url)?
        }
        None => {
            std::fs::create_dir_all(dir.objects_dir())?;
            parse_url(&dir.objects_dir().display().to_string())?
        }
    };
    let name = if a.s3.is_some() { "s3" } else { "local" };
    Ok(StoreRecord { name: name.into(), region: a.s3_region.clone(), ..record })
}

/// A dead mount there is detached, a missing directory is made; anything else is left to the mount itself.
fn prepare_mountpoint(path: &Path) -> Result<()> {
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))
        }
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            eprintln!("a dead mount lies at {}: detaching it", path.display());
            Ok(fusefs_fuse_client::fuse::Unmounter::new(path).detach()?)
        }
        _ => Ok(()),
    }
}

fn default_data_dir() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/share")));
    Ok(base.context("neither XDG_DATA_HOME nor HOME is set; give --data-dir")?.join("fusefs/dev"))
}
