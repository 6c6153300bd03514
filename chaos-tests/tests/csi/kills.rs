//! Random kills of everything, never of all holders of a mount.

use super::{on_runtime, seconds, seed};
use anyhow::{Context, Result, ensure};
use fusefs_chaos_tests::{
    csi::{
        census,
        chaos::Nemesis,
        driver::{Driver, Published, Staged},
        pod::{Pod, View},
        process::{Rig, Runtime},
    },
    replay::{
        Rng, now_ns,
        record::Report,
        work::Plan,
        worker::{Worker, verify_under},
    },
};
use fusefs_proto::csi::volume_capability::access_mode::Mode;
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    time::Duration,
};

/// What the pods do: held fds and unsynced data, logs, renames, files made and removed. Each checks what it reads.
const JOBS: &[&str] = &["random", "append", "dirs", "create"];
/// Between two steps of a pod's thread: many processes share the machine.
const PACE: Duration = Duration::from_millis(30);
/// A call that takes longer is a hang.
const HANG: Duration = Duration::from_secs(60);
/// Limit of a comparison of one pod's tree.
const VERIFY: Duration = Duration::from_secs(60);

/// Kinds that are killed where mounts have processes of their own.
const KINDS: &[&str] = &["plugin", "controller", "keeper", "supervisor", "client"];
/// Kinds that are killed where they are handed over.
const KINDS_HANDED_OVER: &[&str] =
    &["plugin", "controller", "node keeper", "mountd", "mountd with all hosts", "supervisor", "client"];

/// Kills: `FUSEFS_CSI_KILLS`.
fn kills(default: u64) -> u64 {
    std::env::var("FUSEFS_CSI_KILLS").ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// A pod that works all the time.
struct Busy {
    published: Published,
    pod: Pod,
    plan: Plan,
    worker: Worker,
}

impl Busy {
    fn start(rig: &Rig, staged: &Staged, seed: u64, i: u64) -> Result<Busy> {
        let published = rig.publish(staged, &format!("busy-{i}"), false)?;
        let pod = rig.pod(&published, View::Private)?;
        let out = rig.stack.tmp().join(format!("out-{i}"));
        let mut plan = Plan::new(&pod.data.join(format!("p{i}")), &out, seed + i);
        (plan.only, plan.pace, plan.hang) = (JOBS.iter().map(|j| (*j).to_owned()).collect(), PACE, HANG);
        let worker = Worker::start_under(&pod.enter(), &plan)?;
        Ok(Busy { published, pod, plan, worker })
    }
}

/// One life of a volume on a node: every call once, with some I/O of a short-lived pod.
fn life(rig: &Rig, node: usize, i: u64) -> Result<()> {
    let (name, mode) = match i % 3 {
        0 => (format!("churn-{node}-{i}"), Mode::MultiNodeMultiWriter),
        1 => (format!("churn-{node}-{i}"), Mode::SingleNodeMultiWriter),
        _ => (format!("churn-{node}-{i}"), Mode::SingleNodeSingleWriter),
    };
    let volume = rig.create(&name, mode)?;
    let staged = rig.stage(&volume, node)?;
    let first = rig.publish(&staged, &format!("{name}-a"), false)?;
    let second = match mode {
        Mode::SingleNodeSingleWriter => None,
        _ => Some(rig.publish(&staged, &format!("{name}-b"), true)?),
    };
    let pod = rig.pod(&first, View::Private)?;
    pod.writes("file", &name).map_err(|e| anyhow::anyhow!("{name}: writing in a new pod: {e}"))?;
    rig.healthy(node, &volume.id, &first.target)?;
    if let Some(second) = &second {
        let pod = rig.pod(second, View::Private)?;
        ensure!(pod.reads("file").as_deref() == Ok(name.as_str()), "{name}: the second pod reads something else");
        ensure!(pod.writes("other", "x").is_err(), "{name}: a read-only pod could write");
        drop(pod);
        rig.unpublish(second)?;
    }
    drop(pod);
    rig.unpublish(&first)?;
    rig.unstage(&staged)?;
    rig.delete(&volume)
}

/// 64 SIGKILLs over plugin, controller, keeper, supervisor and client, alone and in pairs, while four pods on two nodes
/// work and other volumes come and go.
pub fn pods_notice_nothing_while_everything_is_killed() -> Result<()> {
    run(Runtime::Process, seed(501), kills(64), KINDS)
}

/// 40 SIGKILLs over plugin, controller, node keeper, mountd alone and with all hosts, hosted supervisor and client: any
/// two of plugin, keeper and host at once, while four pods on two nodes work and other volumes come and go.
pub fn handed_over_pods_notice_nothing_while_everything_is_killed() -> Result<()> {
    run(Runtime::Mountd, seed(503), kills(40), KINDS_HANDED_OVER)
}

fn run(runtime: Runtime, seed: u64, kills: u64, kinds: &[&str]) -> Result<()> {
    println!("seed {seed}, {kills} kills; replay: FUSEFS_CSI_SEED={seed} FUSEFS_CSI_KILLS={kills}");
    on_runtime(runtime, 2, |rig| scenario(rig, seed, kills, kinds))
}

fn scenario(rig: &Rig, seed: u64, kills: u64, kinds: &[&str]) -> Result<()> {
    (0..rig.nodes()).try_for_each(|n| life(rig, n, 1000).context("before any kill"))?;
    let fds = census::fds(rig)?;
    let shared = rig.create("shared", Mode::MultiNodeMultiWriter)?;
    let own = [rig.create("own-0", Mode::SingleNodeMultiWriter)?, rig.create("own-1", Mode::SingleNodeMultiWriter)?];
    let mut mounts = Vec::new();
    for (node, alone) in own.iter().enumerate() {
        mounts.push(rig.stage(&shared, node)?);
        mounts.push(rig.stage(alone, node)?);
    }
    let busy = mounts.iter().zip(0..).map(|(m, i)| Busy::start(rig, m, seed, i)).collect::<Result<Vec<_>>>()?;
    let start = now_ns();
    let (stop, lives) = (AtomicBool::new(false), AtomicU64::new(0));
    let killed = std::thread::scope(|scope| -> Result<_> {
        let churn = |node: usize| {
            let (stop, lives) = (&stop, &lives);
            move || -> Result<()> {
                for i in 0.. {
                    if stop.load(SeqCst) {
                        break;
                    }
                    life(rig, node, i).with_context(|| format!("volume {i} that came and went on node {node}"))?;
                    lives.fetch_add(1, SeqCst);
                }
                Ok(())
            }
        };
        let threads: Vec<_> = (0..2).map(|node| scope.spawn(churn(node))).collect();
        let killed = Nemesis::new(rig, &mounts, Rng::new(seed, 7)).run(kills);
        stop.store(true, SeqCst);
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        }
        killed
    });
    let took = seconds(start);
    let mut reports: Vec<Report> = Vec::new();
    let mut rest = Vec::new();
    for b in busy {
        reports.push(b.worker.stop()?);
        rest.push((b.published, b.pod, b.plan));
    }
    summary(&reports, lives.load(SeqCst), took);
    println!("{:?}", rig.caller.tally());
    let killed = killed?;
    println!("{}", killed.text());
    for report in &reports {
        ensure!(report.bad() == 0, "seed {seed}: {}", report.problems_text());
        ensure!(report.finished, "a pod's final comparisons were not made");
        ensure!(report.steps.values().all(|n| *n > 10), "a pod hardly worked: {:?}", report.steps);
    }
    ensure!(lives.load(SeqCst) >= 2, "hardly any volume came and went");
    ensure!(killed.survivors_min >= 1 && killed.total() >= kills, "{}", killed.text());
    let missed: Vec<_> = kinds.iter().filter(|k| !killed.by_kind.contains_key(*k)).collect();
    ensure!(missed.is_empty(), "never killed: {missed:?}");
    ensure!(!rig.hands_over() || killed.along > 0, "no hosts were killed with their mountd");
    // Through the other node's mount of the shared volume, then through new mounts of all.
    let differences = verify_under(&rest[0].1.enter(), &rest[2].2, &rest[0].1.data.join("p2"), VERIFY)?;
    ensure!(differences.is_empty(), "seen from the other node: {differences:#?}");
    again(rig, rest, &mounts)?;
    for volume in [&shared, &own[0], &own[1]] {
        rig.delete(volume)?;
    }
    println!("left: {}", census::nothing_left(rig, &fds)?);
    Ok(())
}

/// Everything is unmounted and mounted again; the trees must be what the pods told.
fn again(rig: &Rig, pods: Vec<(Published, Pod, Plan)>, mounts: &[Staged]) -> Result<()> {
    let mut plans = Vec::new();
    for (published, pod, plan) in pods {
        drop(pod);
        rig.unpublish(&published)?;
        plans.push(plan);
    }
    mounts.iter().try_for_each(|m| rig.unstage(m))?;
    for ((old, plan), i) in mounts.iter().zip(&plans).zip(0..) {
        let staged = rig.stage(&old.volume, old.node)?;
        let published = rig.publish(&staged, &format!("check-{i}"), true)?;
        let pod = rig.pod(&published, View::Private)?;
        let differences = verify_under(&pod.enter(), plan, &pod.data.join(format!("p{i}")), VERIFY)?;
        ensure!(differences.is_empty(), "after mounting again, seed {}: {differences:#?}", plan.seed);
        drop(pod);
        rig.unpublish(&published)?;
        rig.unstage(&staged)?;
    }
    Ok(())
}

fn summary(reports: &[Report], lives: u64, took: f64) {
    let sum = |f: fn(&Report) -> u64| reports.iter().map(f).sum::<u64>();
    println!(
        "{} pods: {} calls, {} errors, {} mismatches, {} hangs, longest pause {} ms; {lives} volumes came and went; {took:.0} s",
        reports.len(),
        sum(Report::calls),
        sum(|r| r.errors),
        sum(|r| r.mismatches),
        sum(|r| r.hangs),
        reports.iter().map(Report::longest_ms).max().unwrap_or(0)
    );
}
