//! What operations cost, in counts and never in times: RPCs, raft proposals and fsyncs per operation, objects stored, and
//! what a walk keeps in memory. Servers run inside the test process, on a real disk, behind real sockets.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use fusefs_chaos_tests::stack::scratch;
use fusefs_fuse_client::{
    ClientSettings, Vfs,
    client::connect,
    fuse::MountSettings,
    vfs::{Change, Lookup, Request},
};
use fusefs_local_cluster::{ClusterDir, InprocCluster, Shape, SystemClock, SystemRng, Tuning};
use fusefs_meta_client::{Components, GrpcTransport, MasterClient, MetaClient, Settings};
use fusefs_types::{
    Ino, StoreId,
    auth::ClusterToken,
    cluster::{MasterCall, MasterReply, StoreKind, StoreRecord, VolumeSpec},
    ops::RenameMode,
};
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

const READY: Duration = Duration::from_secs(60);
/// Longer than the test: what is cached stays valid, so that every RPC is one that the operation needs.
const VALIDITY: Duration = Duration::from_secs(600);
const VOLUME: &str = "costs";

/// The tests measure the process they share.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A running cluster with one volume and one client without a kernel mount.
struct Rig {
    cluster: InprocCluster,
    dir: ClusterDir,
    meta: Arc<MetaClient>,
    vfs: Arc<Vfs>,
    root: Ino,
    unique: AtomicU64,
    _tmp: tempfile::TempDir,
}

impl Rig {
    async fn start(metanodes: usize, replicas: u32, cache_inodes: usize) -> Result<Rig> {
        let tmp = scratch()?;
        let dir = ClusterDir::open(&tmp.path().join("cluster"), Shape { masters: 1, metanodes })?;
        let cluster = InprocCluster::start(&dir, &Tuning::default()).await?;
        let credential = ClusterToken::new(&std::fs::read(dir.token_file())?).context("token")?.credential();
        create_volume(&dir, credential.clone(), replicas).await?;
        let mount = MountSettings::new(tmp.path().join("unused"), "costs");
        let settings = ClientSettings {
            masters: dir.master_addrs(),
            credential,
            volume: VOLUME.into(),
            attach: 0,
            name: "costs".into(),
            mount,
            validity: VALIDITY,
            cache_inodes,
            data: fusefs_data_path::Settings::default(),
            flush_timeout: READY,
        };
        let (meta, vfs) = connect(&settings, components()).await?;
        let root = meta.grant().root;
        Ok(Rig { cluster, dir, meta, vfs, root, unique: AtomicU64::new(2), _tmp: tmp })
    }

    async fn stop(self) -> Result<()> {
        let end = self.vfs.data().shutdown(READY).await;
        ensure!(end.unflushed == 0, "{} bytes stayed dirty", end.unflushed);
        self.meta.close(end.leftovers).await.map_err(|r| anyhow::anyhow!("{}", r.message))?;
        self.cluster.stop().await;
        Ok(())
    }

    fn request(&self) -> Request {
        Request::new(self.unique.fetch_add(2, Ordering::Relaxed), 0, 0)
    }

    async fn mkdir(&self, parent: Ino, name: &str) -> Result<Ino> {
        let rq = self.request();
        let entry = self.vfs.mkdir(&rq, parent, Bytes::from(name.to_owned()), 0o755).await?;
        self.vfs.replied(&rq);
        Ok(entry.attr.ino)
    }

    /// open(O_CREAT | O_EXCL), write, close.
    async fn create(&self, parent: Ino, name: &str, data: &[u8]) -> Result<Ino> {
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
        let rq = self.request();
        let (entry, opened) = self.vfs.create(&rq, parent, Bytes::from(name.to_owned()), 0o644, flags).await?;
        self.vfs.replied(&rq);
        let ino = entry.attr.ino;
        if !data.is_empty() {
            self.vfs.write(&self.request(), ino, opened.fh, 0, Bytes::copy_from_slice(data), flags).await?;
        }
        self.vfs.flush(&self.request(), ino).await?;
        self.vfs.release(&self.request(), ino, opened.fh).await;
        Ok(ino)
    }

    async fn lookup(&self, parent: Ino, name: Bytes) -> Result<Ino> {
        match self.vfs.lookup(&self.request(), parent, name.clone()).await? {
            Lookup::Found(entry) => Ok(entry.attr.ino),
            Lookup::Absent(_) => bail!("{name:?} is gone"),
        }
    }

    /// Counters now.
    fn counts(&self) -> Counts {
        let mut rpcs = self.meta.counters().snapshot();
        rpcs.remove("master"); // lease and map, in the background
        let mut out =
            Counts { rpcs, puts: self.vfs.data().write_stats().puts.load(Ordering::Relaxed), ..Counts::default() };
        for (i, node) in self.cluster.nodes().enumerate() {
            out.fsyncs.push(node.host().log_stats().fsyncs);
            for group in node.host().groups() {
                let (stats, status) = (group.stats(), group.status());
                out.proposals += stats.proposals;
                out.entries += stats.entries;
                if status.is_leader {
                    out.reign.insert(group.spec().group.0, (i, status.term));
                    out.operations += group.read(|m| m.partition().map_or(0, |p| p.usage().operations));
                }
            }
        }
        out
    }

    /// Files in the `dir` store, the marker included.
    fn objects(&self) -> Result<usize> {
        let (mut dirs, mut n) = (vec![self.dir.objects_dir()], 0);
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() { dirs.push(entry.path()) } else { n += 1 }
            }
        }
        Ok(n)
    }
}

fn components() -> Components {
    Components { transport: Arc::new(GrpcTransport::new()), clock: Arc::new(SystemClock), rng: Arc::new(SystemRng) }
}

async fn create_volume(dir: &ClusterDir, credential: Bytes, replicas: u32) -> Result<()> {
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
    let spec = VolumeSpec {
        name: VOLUME.into(),
        store: "local".into(),
        capacity: 0,
        inodes: 0,
        partitions: 0,
        replicas,
        labels: Vec::new(),
    };
    // Metanodes register within their first second.
    let end = tokio::time::Instant::now() + READY;
    let mut every = tokio::time::interval(Duration::from_millis(200));
    loop {
        every.tick().await;
        match masters.call_within(MasterCall::CreateVolume(spec.clone()), READY).await {
            Ok(MasterReply::Volume(_)) => return Ok(()),
            Ok(other) => bail!("unexpected answer {other:?}"),
            Err(r) if tokio::time::Instant::now() > end => bail!("creating the volume: {}", r.message),
            Err(_) => {}
        }
    }
}

/// Counters at one moment, or what was added between two.
#[derive(Clone, Debug, Default)]
struct Counts {
    /// Client RPCs to metanodes, by name.
    rpcs: BTreeMap<&'static str, u64>,
    /// Commands proposed, all partitions.
    proposals: u64,
    /// Client operations committed and applied, all partitions.
    operations: u64,
    /// Raft entries that carried them.
    entries: u64,
    /// fdatasync calls of the log, by metanode.
    fsyncs: Vec<u64>,
    /// Objects stored.
    puts: u64,
    /// Leader and term of each partition.
    reign: BTreeMap<u64, (usize, u64)>,
}

impl Counts {
    fn since(&self, before: &Counts) -> Counts {
        let mut out = self.clone();
        for (name, n) in &mut out.rpcs {
            *n -= before.rpcs.get(name).copied().unwrap_or_default();
        }
        out.rpcs.retain(|_, n| *n > 0);
        out.proposals -= before.proposals;
        out.operations = out.operations.saturating_sub(before.operations); // less only after a change of leader
        out.entries -= before.entries;
        out.puts -= before.puts;
        for (n, b) in out.fsyncs.iter_mut().zip(&before.fsyncs) {
            *n -= b;
        }
        out
    }
    fn total(&self) -> u64 {
        self.rpcs.values().sum()
    }
}

/// Operations that are counted one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Create,
    SmallFile,
    Stat,
    SetAttr,
    Rename,
    Unlink,
}

impl Op {
    /// (RPCs, proposals) of one.
    fn costs(self) -> (u64, u64) {
        match self {
            Op::SmallFile => (2, 2),
            Op::Stat => (0, 0),
            Op::Create | Op::SetAttr | Op::Rename | Op::Unlink => (1, 1),
        }
    }

    /// What must be there before.
    async fn prepare(self, rig: &Rig, dir: Ino, name: &str) -> Result<Ino> {
        match self {
            Op::Create | Op::SmallFile => Ok(dir),
            Op::Stat | Op::SetAttr | Op::Rename | Op::Unlink => rig.create(dir, name, b"").await,
        }
    }

    async fn run(self, rig: &Rig, dir: Ino, name: &str, ino: Ino) -> Result<()> {
        let (rq, bytes) = (rig.request(), Bytes::from(name.to_owned()));
        match self {
            Op::Create => drop(rig.create(dir, name, b"").await?),
            Op::SmallFile => drop(rig.create(dir, name, &[7; 1024]).await?),
            Op::Stat => {
                ensure!(rig.lookup(dir, bytes).await? == ino);
                rig.vfs.getattr(&rq, ino).await?;
            }
            Op::SetAttr => {
                let (attr, _) = rig.vfs.setattr(&rq, ino, Change { mode: Some(0o600), ..Change::default() }).await?;
                ensure!(attr.mode & 0o777 == 0o600);
            }
            Op::Rename => {
                let to = Bytes::from(format!("{name}-renamed"));
                rig.vfs.rename(&rq, (dir, bytes), (dir, to), RenameMode::Replace).await?;
            }
            Op::Unlink => rig.vfs.unlink(&rq, dir, bytes).await?,
        }
        rig.vfs.replied(&rq);
        Ok(())
    }
}

/// Counts `n` of an operation in a new directory that nothing else uses. An election in between costs RPCs and proposals
/// that are not the operation's: then it is counted again.
async fn measure(rig: &Rig, op: Op, n: u64) -> Result<Counts> {
    for attempt in 0..5 {
        let dir = rig.mkdir(rig.root, &format!("{op:?}-{attempt}")).await?;
        rig.create(dir, "warm", b"").await?; // the session attaches to the partition here
        let mut inos = Vec::new();
        for i in 0..n {
            inos.push(op.prepare(rig, dir, &format!("f{i}")).await?);
        }
        let before = rig.counts();
        for (i, ino) in inos.into_iter().enumerate() {
            op.run(rig, dir, &format!("f{i}"), ino).await?;
        }
        let after = rig.counts();
        if before.reign == after.reign {
            return Ok(after.since(&before));
        }
        println!("{op:?}: a partition changed its leader; counting again");
    }
    bail!("{op:?}: no five rounds without an election")
}

fn row(what: &str, n: u64, c: &Counts) {
    println!(
        "{what:<22}{n:>6}{:>7}{:>11}{:>9}{:>9}{:>6}   {:?}  {:?}",
        c.total(),
        c.proposals,
        c.operations,
        c.entries,
        c.puts,
        c.fsyncs,
        c.rpcs
    );
}

/// `tasks` tasks create `each` files in one directory; answers the counts and the leader's index.
async fn in_parallel(rig: &Arc<Rig>, tasks: u64, each: u64) -> Result<(Counts, usize)> {
    for attempt in 0..5 {
        let dir = rig.mkdir(rig.root, &format!("parallel-{attempt}")).await?;
        rig.create(dir, "warm", b"").await?;
        let before = rig.counts();
        let mut running = tokio::task::JoinSet::new();
        for t in 0..tasks {
            let rig = rig.clone();
            running.spawn(async move {
                for i in 0..each {
                    rig.create(dir, &format!("t{t}-{i}"), b"").await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = running.join_next().await {
            done??;
        }
        let after = rig.counts();
        let Some((leader, _)) = leader_of(rig, dir, &after) else { continue };
        if before.reign == after.reign {
            return Ok((after.since(&before), leader));
        }
        println!("parallel creates: a partition changed its leader; counting again");
    }
    bail!("no five rounds without an election")
}

/// Leader of the partition that owns an inode.
fn leader_of(rig: &Rig, ino: Ino, counts: &Counts) -> Option<(usize, u64)> {
    let map = rig.meta.map();
    let owner = map.partitions.iter().find(|p| p.ranges.iter().any(|r| r.contains(ino.into())))?;
    counts.reign.get(&owner.id.0).copied()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_create_is_one_rpc_and_one_commit_and_parallel_creates_share_fsyncs() -> Result<()> {
    const EACH: u64 = 20;
    const TASKS: u64 = 8;
    const FILES_PER_TASK: u64 = 50;
    let _alone = ONE_AT_A_TIME.lock().await;
    let rig = Arc::new(Rig::start(3, 3, 1 << 16).await?);
    let objects = rig.objects()?;
    println!(
        "{:<22}{:>6}{:>7}{:>11}{:>9}{:>9}{:>6}   fsyncs by metanode, RPCs by name",
        "operation", "n", "RPCs", "proposals", "commits", "entries", "PUTs"
    );
    let mut results = Vec::new();
    for op in [Op::Create, Op::SmallFile, Op::Stat, Op::SetAttr, Op::Rename] {
        let counts = measure(&rig, op, EACH).await?;
        row(&format!("{op:?}"), EACH, &counts);
        results.push((op, counts));
    }
    let creates = TASKS * FILES_PER_TASK;
    let (parallel, leader) = in_parallel(&rig, TASKS, FILES_PER_TASK).await?;
    row("Create, 8 in parallel", creates, &parallel);
    let fsyncs = parallel.fsyncs[leader];
    println!("leader: metanode {leader}, {fsyncs} fsyncs for {creates} creates");
    // Last: freeing what was unlinked is work that the leader does later.
    let unlink = measure(&rig, Op::Unlink, EACH).await?;
    row("Unlink", EACH, &unlink);
    for (op, counts) in results {
        let (rpcs, proposals) = op.costs();
        assert_eq!(counts.total(), rpcs * EACH, "RPCs of {EACH} x {op:?}");
        assert_eq!(counts.proposals, proposals * EACH, "proposals of {EACH} x {op:?}");
        assert_eq!(counts.operations, proposals * EACH, "commits of {EACH} x {op:?}");
        assert_eq!(counts.puts, 0, "objects stored by {op:?}");
    }
    assert_eq!(unlink.total(), EACH, "RPCs of {EACH} unlinks");
    assert_eq!(unlink.operations, EACH, "commits of {EACH} unlinks");
    // Proposals may be more: the leader may free the first orphans while the last files are unlinked.
    assert!(unlink.proposals >= EACH, "{} proposals of {EACH} unlinks", unlink.proposals);
    assert_eq!(unlink.puts, 0, "objects stored by unlinks");
    assert_eq!(parallel.total(), creates, "RPCs of the parallel creates");
    assert_eq!(parallel.proposals, creates, "proposals of the parallel creates");
    assert!(fsyncs < creates, "{fsyncs} fsyncs for {creates} creates: none were shared");
    assert_eq!(rig.objects()?, objects, "objects in the store");
    Arc::into_inner(rig).context("a task still runs")?.stop().await
}

/// Resident memory of this process in KiB, servers included.
fn rss_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).context("VmRSS")?;
    line.split_whitespace().nth(1).context("VmRSS")?.parse().context("VmRSS")
}

/// Largest caches seen during a walk.
#[derive(Debug, Default)]
struct Walked {
    files: u64,
    inodes: usize,
    dentries: usize,
    rss_kib: u64,
}

/// readdirplus of every directory, then a lookup and a stat of every name, like `find -type f -newer`.
async fn walk(rig: &Rig, limit: usize) -> Result<Walked> {
    let mut seen = Walked::default();
    let mut dirs = vec![rig.root];
    while let Some(dir) = dirs.pop() {
        let opened = rig.vfs.opendir(&rig.request(), dir, libc::O_RDONLY | libc::O_DIRECTORY).await?;
        let mut offset = 0;
        loop {
            let page = rig.vfs.readdir(&rig.request(), dir, opened.fh, offset, true).await?;
            if page.is_empty() {
                break;
            }
            for item in (0..page.len()).filter_map(|i| rig.vfs.dir_item(&page, i, true)) {
                offset = item.offset;
                if item.name == "." || item.name == ".." {
                    continue;
                }
                ensure!(rig.lookup(dir, item.name.clone()).await? == item.ino, "{:?}", item.name);
                match item.kind {
                    fusefs_types::FileKind::Directory => dirs.push(item.ino),
                    _ => seen.files += 1,
                }
                rig.vfs.getattr(&rig.request(), item.ino).await?;
            }
            let stats = rig.vfs.stats();
            ensure!(stats.inodes <= limit && stats.dentries <= limit, "more than {limit} entries cached: {stats:?}");
            (seen.inodes, seen.dentries) = (seen.inodes.max(stats.inodes), seen.dentries.max(stats.dentries));
            seen.rss_kib = seen.rss_kib.max(rss_kib()?);
        }
        rig.vfs.releasedir(dir, opened.fh);
    }
    Ok(seen)
}

/// The long form: `FUSEFS_WALK_FILES=1000000 cargo test -p fusefs-chaos-tests --test costs walk -- --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_walk_keeps_memory_bounded() -> Result<()> {
    const CACHE: usize = 2_000;
    const PER_DIR: u64 = 1_000;
    const AT_ONCE: usize = 64;
    let files: u64 = match std::env::var("FUSEFS_WALK_FILES") {
        Ok(n) => n.parse().context("FUSEFS_WALK_FILES")?,
        Err(_) => 20_000,
    };
    ensure!(files > 2 * CACHE as u64, "FUSEFS_WALK_FILES: a walk over {files} files fits into the cache");
    let _alone = ONE_AT_A_TIME.lock().await;
    let rig = Arc::new(Rig::start(1, 1, CACHE).await?);
    for d in 0..files.div_ceil(PER_DIR) {
        let dir = rig.mkdir(rig.root, &format!("d{d}")).await?;
        let here = PER_DIR.min(files - d * PER_DIR);
        let one = |i| {
            let rig = &rig;
            async move { rig.create(dir, &format!("file-{i:06}"), b"").await }
        };
        stream::iter((0..here).map(one)).buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
    }
    let (before, rss_before) = (rig.vfs.stats(), rss_kib()?);
    let first = walk(&rig, CACHE).await?;
    let second = walk(&rig, CACHE).await?;
    let after = rig.vfs.stats();
    let (inodes, dentries) =
        (after.inodes_evicted - before.inodes_evicted, after.dentries_evicted - before.dentries_evicted);
    println!("walk over {files} files, twice, with a cache of {CACHE} entries");
    println!(
        "  cached at most:  {} inodes, {} names",
        second.inodes.max(first.inodes),
        second.dentries.max(first.dentries)
    );
    println!("  evicted:         {inodes} inodes, {dentries} names");
    println!(
        "  resident memory: {rss_before} KiB before (servers included), +{} KiB at most in the first walk, +{} in the second",
        first.rss_kib.saturating_sub(rss_before),
        second.rss_kib.saturating_sub(rss_before)
    );
    ensure!(first.files == files && second.files == files, "saw {} and {} of {files}", first.files, second.files);
    let must = 2 * (files - CACHE as u64);
    ensure!(inodes >= must, "{inodes} inodes evicted, at least {must} had to be");
    ensure!(dentries > 0, "no names were evicted");
    Arc::into_inner(rig).context("a task still runs")?.stop().await
}
