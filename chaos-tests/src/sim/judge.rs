//! One seed from the first mount to the verdict.

use crate::sim::{
    Plan,
    check::{Event, Verdict, What, linearizable},
    env::pause_ms,
    lock,
    nemesis::Nemesis,
    work::{Book, Worker},
    world::{NODES, PARTITIONS, World},
};
use fusefs_meta_state::fsck::{FsckReport, fsck_volume};
use fusefs_types::{
    FileKind, FsResult, Ino, PartitionId,
    cluster::{NodeCall, NodeReply},
    ops::{NewNode, Write, WriteReply},
};
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// How long the healed cluster may take for anything.
const SETTLE: Duration = Duration::from_secs(60);

async fn in_time<T>(what: &str, f: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::time::timeout(SETTLE, f).await.unwrap_or_else(|_| Err(format!("healed, but {what} does not end")))
}

/// Plays and judges one history; its hash.
pub async fn history(world: &Arc<World>, plan: Plan) -> Result<u64, String> {
    let book = Arc::<Book>::default();
    let mut workers = Vec::new();
    for n in 0..plan.clients {
        workers.push(Worker::new(n, world.mount(n).await?, world, &book, plan.seed));
    }
    if let Some(first) = workers.first_mut() {
        first.found().await?;
    }
    let over = Arc::new(AtomicBool::new(false));
    let nemesis = tokio::spawn(Nemesis::new(world, plan.seed, plan.clients).run(plan.faults, over.clone()));
    let running: Vec<_> = workers.into_iter().map(|w| tokio::spawn(w.run(plan.operations))).collect();
    // While the nemesis rages there is no limit; healed, everybody must finish.
    let ended = async {
        let mut done = Vec::new();
        for worker in running {
            done.push(worker.await.map_err(|e| e.to_string())??);
        }
        over.store(true, Ordering::Relaxed);
        Ok::<_, String>(done)
    };
    let mut ended = Box::pin(ended);
    let (healed, early) = tokio::join!(
        async { nemesis.await.map_err(|e| e.to_string()).and_then(|r| r) },
        tokio::time::timeout(Duration::from_secs(120), &mut ended)
    );
    healed?;
    let mut workers = match early {
        Ok(done) => done?,
        Err(_) => in_time("the clients' work", ended).await?,
    };
    for worker in &mut workers {
        in_time("the liveness phase", worker.last_words()).await?;
    }
    in_time("reading the tree", walk(&mut workers[0])).await?;
    let trace = judge_history(world, &book)?;
    for worker in &workers {
        let calls: u64 =
            worker.client.counters().snapshot().iter().filter(|(k, _)| **k != "master").map(|(_, n)| n).sum();
        world.net.counts.more("calls", calls);
        worker.client.close(0).await.map_err(|e| format!("a session does not close: {}", e.message))?;
    }
    let counts = &world.net.counts;
    let operations = counts.get("mutations") + counts.get("questions");
    counts.more("retries", counts.get("calls").saturating_sub(operations));
    in_time("coming to rest", at_rest(world)).await?;
    in_time("the replicas' agreement", agreement(world)).await?;
    match world.net.violations().first() {
        Some(first) => Err(first.clone()),
        None => Ok(trace),
    }
}

/// Reads the whole tree, so that the search must explain it.
async fn walk(worker: &mut Worker) -> Result<(), String> {
    let mut todo = vec![Ino::ROOT];
    while let Some(dir) = todo.pop() {
        let all = worker.list(dir).await?;
        todo.extend(all.values().filter(|(_, kind)| *kind == FileKind::Directory).map(|(ino, _)| Ino(*ino)));
    }
    Ok(())
}

fn judge_history(world: &World, book: &Book) -> Result<u64, String> {
    let mut events = lock(&book.events).clone();
    events.sort_by_key(|e| (e.from, e.to));
    match linearizable(&events) {
        Verdict::Linearizable => world.net.counts.add("histories found linearizable"),
        Verdict::Unknown => world.net.counts.add("histories too hard to judge"),
        Verdict::Impossible(at) => {
            return Err(format!("not linearizable around event {at}:\n{}", excerpt(&events, at)));
        }
    }
    let mut hash = DefaultHasher::new();
    for event in &events {
        brief(event).hash(&mut hash);
    }
    Ok(hash.finish())
}

fn excerpt(events: &[Event], at: usize) -> String {
    let from = at.saturating_sub(60);
    let lines: Vec<String> =
        events.iter().enumerate().skip(from).take(90).map(|(i, e)| format!("{i:>4} {}", brief(e))).collect();
    lines.join("\n")
}

fn brief(e: &Event) -> String {
    let text = match &e.what {
        What::Write(Write::Create(c), r) => format!("{} {}/{} ", kind(&c.node), c.parent, c.name) + &answer(r),
        What::Write(Write::Link(l), r) => format!("link {} {}/{} ", l.ino, l.parent, l.name) + &answer(r),
        What::Write(Write::Unlink(u), r) => {
            format!("{} {}/{} ", if u.directory { "rmdir" } else { "unlink" }, u.parent, u.name) + &answer(r)
        }
        What::Write(Write::Rename(x), r) => {
            format!("rename {:?} {}/{} {}/{} ", x.mode, x.parent, x.name, x.new_parent, x.new_name) + &answer(r)
        }
        other => format!("{other:?}"),
    };
    format!("client {} [{}..{}] {text}", e.client, e.from, e.to)
}

fn kind(node: &NewNode) -> &'static str {
    if *node == NewNode::Directory { "mkdir" } else { "create" }
}

fn answer(result: &FsResult<WriteReply>) -> String {
    match result {
        Ok(WriteReply::Created { attr, .. } | WriteReply::Linked { attr, .. }) => {
            format!("-> inode {} with {} links", attr.ino, attr.nlink)
        }
        Ok(WriteReply::Unlinked { ino, nlink, .. }) => format!("-> inode {ino} with {nlink} links"),
        other => format!("-> {other:?}"),
    }
}

/// Waits until nothing runs, nothing is locked and nothing is orphaned; then every record must fit every other.
async fn at_rest(world: &World) -> Result<(), String> {
    let mut last = String::new();
    for _ in 0..1_000 {
        let mut reports: Vec<FsckReport> = Vec::new();
        let mut transactions = 0;
        last.clear();
        for p in 1..=PARTITIONS {
            let node = world.leader(PartitionId(p)).await?;
            let Some(group) = world.net.live(node).and_then(|l| l.core.host().group(PartitionId(p))) else { continue };
            group.read(|m| {
                let Ok(partition) = m.partition() else { return };
                let (usage, counts) = (partition.usage(), partition.txn_counts());
                if counts != (0, 0) || usage.orphans > 0 {
                    last += &format!("partition {p}: (transactions, locks) {counts:?}, {} orphans; ", usage.orphans);
                }
                transactions += usage.transactions;
                reports.push(partition.fsck());
            });
        }
        if last.is_empty() && reports.len() as u64 == PARTITIONS {
            let problems = fsck_volume(&reports);
            world.net.counts.more("transactions", transactions);
            return if problems.is_empty() { Ok(()) } else { Err(format!("fsck: {}", problems.join("; "))) };
        }
        pause_ms(50).await;
    }
    Err(format!("not at rest: {last}"))
}

/// All replicas of a partition reach the same index and are equal there.
async fn agreement(world: &World) -> Result<(), String> {
    for p in 1..=PARTITIONS {
        loop {
            let mut by_index: BTreeMap<u64, u64> = BTreeMap::new();
            for node in 0..NODES {
                let NodeReply::Digest(at, digest) = world.order(node, NodeCall::Digest(PartitionId(p))).await? else {
                    return Err("no digest".into());
                };
                if *by_index.entry(at).or_insert(digest) != digest {
                    return Err(format!("partition {p}: replicas differ at index {at}"));
                }
            }
            if by_index.len() == 1 {
                break;
            }
            pause_ms(50).await;
        }
    }
    Ok(())
}
