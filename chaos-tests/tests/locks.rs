//! Locks across clients over real sockets, real raft and real disks: two clients without kernels, three metanodes. What
//! each part does is tested beside its code; here the parts meet.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use fusefs_chaos_tests::stack::scratch;
use fusefs_fuse_client::{
    ClientSettings, Vfs,
    client::connect,
    fuse::MountSettings,
    vfs::{FileLock, Request},
};
use fusefs_local_cluster::{ClusterDir, InprocCluster, Shape, SystemClock, SystemRng, Tuning};
use fusefs_meta_client::{Components, GrpcTransport, MasterClient, MetaClient, Settings};
use fusefs_types::{
    FsError, Ino, StoreId,
    auth::ClusterToken,
    cluster::{MasterCall, StoreKind, StoreRecord, VolumeSpec},
    lock::{LOCK_END, LockOp},
};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

const READY: Duration = Duration::from_secs(60);
/// Longer than the test: only locks make the other client's bytes visible.
const VALIDITY: Duration = Duration::from_secs(600);
const VOLUME: &str = "locks";
const ROUNDS: u64 = 50;

fn components() -> Components {
    Components { transport: Arc::new(GrpcTransport::new()), clock: Arc::new(SystemClock), rng: Arc::new(SystemRng) }
}

struct Client {
    meta: Arc<MetaClient>,
    vfs: Arc<Vfs>,
    unique: AtomicU64,
}

impl Client {
    async fn connect(dir: &ClusterDir, credential: Bytes, tmp: &Path) -> Result<Arc<Client>> {
        let settings = ClientSettings {
            masters: dir.master_addrs(),
            credential,
            volume: VOLUME.into(),
            attach: 0,
            name: "locks".into(),
            mount: MountSettings::new(tmp.join("unused"), "locks"),
            validity: VALIDITY,
            cache_inodes: 1000,
            data: fusefs_data_path::Settings::default(),
            flush_timeout: READY,
        };
        let (meta, vfs) = connect(&settings, components()).await?;
        Ok(Arc::new(Client { meta, vfs, unique: AtomicU64::new(2) }))
    }
    fn rq(&self) -> Request {
        Request::new(self.unique.fetch_add(2, Ordering::Relaxed), 0, 0)
    }
    async fn lock(&self, ino: Ino, owner: u64, op: LockOp, flock: bool, wait: bool) -> Result<(), FsError> {
        let lock = FileLock { owner, start: 0, end: LOCK_END, op, pid: 1 };
        self.vfs.setlk(&self.rq(), ino, 0, lock, flock, wait).await
    }
    /// Adds one to a number in the file, under a lock.
    async fn count(&self, ino: Ino, fh: u64, owner: u64, flock: bool) -> Result<()> {
        self.lock(ino, owner, LockOp::Write, flock, true).await?;
        let old = self.vfs.read(&self.rq(), ino, fh, 0, 8).await?;
        let n = u64::from_le_bytes(old[..].try_into()?) + 1;
        self.vfs.write(&self.rq(), ino, fh, 0, Bytes::copy_from_slice(&n.to_le_bytes()), 0).await?;
        Ok(self.lock(ino, owner, LockOp::Unlock, flock, true).await?)
    }
    fn rpcs(&self, name: &str) -> u64 {
        self.meta.counters().snapshot().get(name).copied().unwrap_or(0)
    }
}

async fn create_volume(dir: &ClusterDir, credential: Bytes) -> Result<()> {
    let Components { transport, rng, .. } = components();
    let masters = MasterClient::new(Settings::new(dir.master_addrs(), credential), transport, rng);
    std::fs::create_dir_all(dir.objects_dir())?;
    let store = StoreRecord {
        id: StoreId(0),
        name: "local".into(),
        kind: StoreKind::Dir,
        endpoint: dir.objects_dir().display().to_string(),
        region: String::new(),
        bucket: String::new(),
        prefix: String::new(),
        path_style: true,
        credential: String::new(),
        probe: Vec::new(),
    };
    let added = masters.call_within(MasterCall::AddStore(store), READY).await;
    added.map_err(|r| anyhow::anyhow!("adding the store: {}", r.message))?;
    let (name, labels) = (VOLUME.into(), Vec::new());
    let spec = VolumeSpec { name, store: "local".into(), capacity: 0, inodes: 0, partitions: 0, replicas: 3, labels };
    // Metanodes register within their first second.
    let end = Instant::now() + READY;
    let mut every = tokio::time::interval(Duration::from_millis(200));
    loop {
        every.tick().await;
        match masters.call_within(MasterCall::CreateVolume(spec.clone()), READY).await {
            Ok(_) => return Ok(()),
            Err(r) if Instant::now() >= end => anyhow::bail!("creating the volume: {}", r.message),
            Err(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clients_lock_each_other_out_and_wake_each_other() -> Result<()> {
    let tmp = scratch()?;
    let dir = ClusterDir::open(&tmp.path().join("cluster"), Shape { masters: 1, metanodes: 3 })?;
    let cluster = InprocCluster::start(&dir, &Tuning::default()).await?;
    let credential = ClusterToken::new(&std::fs::read(dir.token_file())?).context("token")?.credential();
    create_volume(&dir, credential.clone()).await?;
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(Client::connect(&dir, credential.clone(), tmp.path()).await?);
    }
    let a = &clients[0];
    let root = a.meta.grant().root;
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
    let (entry, opened) = a.vfs.create(&a.rq(), root, Bytes::from_static(b"n"), 0o644, flags).await?;
    let ino = entry.attr.ino;
    a.vfs.write(&a.rq(), ino, opened.fh, 0, Bytes::from_static(&[0; 8]), 0).await?;
    a.vfs.flush(&a.rq(), ino).await?;

    let since = Instant::now();
    for flock in [true, false] {
        let mut tasks = Vec::new();
        // Two processes on each of two clients.
        for (c, owner) in clients.iter().flat_map(|c| [(c.clone(), 11), (c.clone(), 12)]) {
            tasks.push(tokio::spawn(async move {
                let fh = c.vfs.open(&c.rq(), ino, libc::O_RDWR).await?.fh;
                for _ in 0..ROUNDS {
                    c.count(ino, fh, owner, flock).await?;
                }
                c.vfs.flush(&c.rq(), ino).await?;
                c.vfs.release(&c.rq(), ino, fh).await;
                anyhow::Ok(())
            }));
        }
        for task in tasks {
            task.await??;
        }
    }
    let elapsed = since.elapsed();
    let b = &clients[1];
    let bytes = b.vfs.read(&b.rq(), ino, b.vfs.open(&b.rq(), ino, libc::O_RDONLY).await?.fh, 0, 8).await?;
    let counted = u64::from_le_bytes(bytes[..].try_into()?);
    ensure!(counted == 2 * 4 * ROUNDS, "{counted} instead of {}", 2 * 4 * ROUNDS);
    let (attempts, polls): (Vec<u64>, Vec<u64>) =
        clients.iter().map(|c| (c.rpcs("setlock"), c.rpcs("getlock"))).unzip();
    println!("{counted} rounds in {elapsed:?}; attempts {attempts:?}, questions of waiters {polls:?}");

    // Woken by the event: a waiter alone would sleep for 200 ms or longer, twenty times.
    let since = Instant::now();
    for round in 0..20u64 {
        let (holder, waiter) = (&clients[(round % 2) as usize], clients[((round + 1) % 2) as usize].clone());
        holder.lock(ino, 11, LockOp::Write, true, false).await?;
        let refused = waiter.rpcs("setlock");
        let c = waiter.clone();
        let waiting = tokio::spawn(async move { c.lock(ino, 12, LockOp::Write, true, true).await });
        while waiter.rpcs("setlock") == refused {
            tokio::task::yield_now().await;
        }
        holder.lock(ino, 11, LockOp::Unlock, true, false).await?;
        waiting.await??;
        waiter.lock(ino, 12, LockOp::Unlock, true, false).await?;
    }
    println!("20 hand-overs in {:?}", since.elapsed());
    ensure!(since.elapsed() < Duration::from_secs(3), "waiters are not told: {:?}", since.elapsed());

    // The end of a session ends its locks.
    a.lock(ino, 11, LockOp::Write, true, false).await?;
    ensure!(b.lock(ino, 11, LockOp::Write, true, false).await == Err(FsError::WouldBlock), "not locked");
    let c = b.clone();
    let waiting = tokio::spawn(async move { c.lock(ino, 11, LockOp::Write, true, true).await });
    a.meta.close(0).await.map_err(|r| anyhow::anyhow!("{}", r.message))?;
    tokio::time::timeout(READY, waiting).await???;
    b.meta.close(0).await.map_err(|r| anyhow::anyhow!("{}", r.message))?;
    cluster.stop().await;
    Ok(())
}
