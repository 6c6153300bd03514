//! CPU that idle groups cost: nobody proposes, only raft's own timers and heartbeats run.
//!
//! `cargo run --release -p fusefs-raft-host --example idle -- [GROUPS] [REPLICAS] [SECONDS]` (default 1000 groups of 1
//! replica, 20 s). All nodes live in this process, one real log each below target/bench-idle, on the in-memory network
//! without delay: what gRPC and the kernel's network cost comes on top. Leaders are spread over the nodes.

#![allow(clippy::disallowed_methods)] // a measurement reads the clock

use bytes::Bytes;
use fusefs_raft_host::{
    Components, Frozen, GroupSpec, Host, LogPos, Machine, MemNet, MemNetSettings, PeerHandler, RealDisk, Settings, Stop,
};
use fusefs_types::{Clock, ClusterId, NodeId, PartitionId, ReplicaId, Rng, cluster::Member};
use nix::sys::resource::{UsageWho, getrusage};
use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long elections may take before the measurement starts without the rest.
const SETTLE: Duration = Duration::from_secs(60);

struct Nothing;

impl Machine for Nothing {
    type Reply = ();
    fn apply(&mut self, _: LogPos, _: &[u8]) -> Result<(), Stop> {
        Ok(())
    }
    fn freeze(&self) -> Box<dyn Frozen> {
        Box::new(Nothing)
    }
    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        io::copy(from, &mut io::sink()).map(|_| ())
    }
}

impl Frozen for Nothing {
    fn write_to(&self, _: &mut dyn io::Write) -> io::Result<()> {
        Ok(())
    }
}

/// This machine's clock, and numbers that need not be good.
struct Outside(Instant, AtomicU64);

impl Clock for Outside {
    fn wall_ns(&self) -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
    fn boot_ns(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Rng for Outside {
    fn next_u64(&self) -> u64 {
        let mut z = self.1.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn cpu() -> Result<Duration, Failure> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = |t: nix::sys::time::TimeVal| t.tv_sec() as u64 * 1_000_000 + t.tv_usec() as u64;
    Ok(Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time())))
}

fn rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default().trim();
    line.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn member(node: u64) -> Member {
    Member { replica: ReplicaId(node), node: NodeId(u128::from(node)), addr: format!("n{node}") }
}

/// The replica that founds the group is first, so leaders are spread.
fn spec(group: u64, node: u64, replicas: u64) -> GroupSpec {
    let members = (0..replicas).map(|i| member((group + i) % replicas + 1)).collect();
    GroupSpec { group: PartitionId(group), replica: ReplicaId(node), members, label: Bytes::new() }
}

async fn start(dir: &Path, net: &MemNet, node: u64) -> Result<Arc<Host<Nothing>>, Failure> {
    let outside = Arc::new(Outside(Instant::now(), AtomicU64::new(node)));
    let components = Components {
        disk: RealDisk::open(dir.join(node.to_string()))?,
        net: net.endpoint(NodeId(u128::from(node))),
        clock: Arc::<Outside>::clone(&outside),
        rng: outside,
    };
    let settings = Settings::new(ClusterId(1), NodeId(u128::from(node)));
    let host = Host::open(settings, components, Arc::new(|_| Nothing)).await?;
    let handler: Arc<dyn PeerHandler> = host.clone();
    net.register(NodeId(u128::from(node)), &handler);
    Ok(host)
}

/// Groups with a ready leader, and the sum of all terms: it grows when a leader changes.
fn census(hosts: &[Arc<Host<Nothing>>]) -> (usize, u64) {
    let statuses = || hosts.iter().flat_map(|h| h.groups()).map(|g| g.status());
    (statuses().filter(|s| s.ready).count(), statuses().filter(|s| s.ready).map(|s| s.term).sum())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let mut next = |default: u64| args.next().map_or(Ok(default), |a| a.parse::<u64>());
    let (groups, replicas, seconds) = (next(1000)?, next(1)?.max(1), next(20)?);
    let dir = Path::new("target/bench-idle");
    let _ = std::fs::remove_dir_all(dir);
    let still = MemNetSettings { delay_min: Duration::ZERO, delay_max: Duration::ZERO, ..MemNetSettings::default() };
    let net = MemNet::new(1, still);
    let mut hosts = Vec::new();
    for node in 1..=replicas {
        hosts.push(start(dir, &net, node).await?);
    }
    let begun = Instant::now();
    for group in 1..=groups {
        let each = hosts.iter().zip(1..).map(|(host, node)| host.create_group(spec(group, node, replicas)));
        futures::future::try_join_all(each).await?;
    }
    let created = begun.elapsed();
    while census(&hosts).0 < groups as usize && begun.elapsed() < created + SETTLE {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!(
        "{groups} groups of {replicas} created in {created:.1?}, {} led after {:.1?}",
        census(&hosts).0,
        begun.elapsed()
    );
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (before, start, used) = (census(&hosts), Instant::now(), cpu()?);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let (took, spent) = (start.elapsed(), cpu()? - used);
    let after = census(&hosts);
    let percent = 100.0 * spent.as_secs_f64() / took.as_secs_f64();
    println!(
        "idle for {took:.1?}: {percent:.1} % of one core for {replicas} nodes, {:.1} % per node; {} MiB resident; \
         led {} -> {}, sum of terms {} -> {}",
        percent / replicas as f64,
        rss_mib(),
        before.0,
        after.0,
        before.1,
        after.1,
    );
    for host in &hosts {
        host.shutdown().await;
    }
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
