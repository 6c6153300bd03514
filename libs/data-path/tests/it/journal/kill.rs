//! Random operations, a kill at any write to the journal's files, and a model.
//!
//! The kernel sends the request that was not answered again; every other one was answered once. So the files must look
//! as if every operation had been executed exactly once, after every restart and at the end; and after every commit
//! the file in the cluster is a state of its history, never an older one than before.

use super::{Disk, Life, Torn};
use crate::rig::body;
use fusefs_data_path::{
    MetaSink, Settings, WriteContext,
    journal::ReplayStats,
    object::{FaultPlan, Faulty, MemoryStore, RetryPolicy, Retrying},
    testing::{ModelSink, OtherClient, SinkFaults},
};
use fusefs_types::{
    FsError, Ino, Time,
    ids::OpId,
    ops::{CommitFile, Piece},
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    time::Duration,
};

const INOS: [Ino; 3] = [Ino(100), Ino(101), Ino(102)];
const FILE_BYTES: u64 = 128 << 10;

#[derive(Clone, Debug)]
enum Op {
    Write { ino: usize, at: u64, len: usize },
    Append { ino: usize, len: usize },
    Truncate { ino: usize, size: u64 },
    Punch { ino: usize, at: u64, len: u64 },
    Utimens { ino: usize },
    Fsync { ino: usize },
    Advance { ms: u64 },
    Faults { store: u32, sink: u32 },
}

fn op() -> impl Strategy<Value = Op> {
    let ino = || 0usize..3;
    prop_oneof![
        10 => (ino(), 0u64..60_000, 1usize..9_000).prop_map(|(ino, at, len)| Op::Write { ino, at, len }),
        3 => (ino(), 0u64..200_000, 17_000usize..220_000).prop_map(|(ino, at, len)| Op::Write { ino, at, len }),
        2 => (ino(), 1usize..30_000).prop_map(|(ino, len)| Op::Append { ino, len }),
        3 => (ino(), 0u64..60_000).prop_map(|(ino, size)| Op::Truncate { ino, size: size / 20_000 * 10_000 }),
        2 => (ino(), 0u64..60_000, 1u64..50_000).prop_map(|(ino, at, len)| Op::Punch { ino, at, len }),
        2 => ino().prop_map(|ino| Op::Utimens { ino }),
        2 => ino().prop_map(|ino| Op::Fsync { ino }),
        3 => (1u64..6_000).prop_map(|ms| Op::Advance { ms }),
        1 => (0u32..250, 0u32..250).prop_map(|(store, sink)| Op::Faults { store, sink }),
    ]
}

/// SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn digest(b: &[u8]) -> u64 {
    let mut h = DefaultHasher::new();
    b.hash(&mut h);
    h.finish()
}

/// States of one file in order, and how far the cluster has come.
#[derive(Default)]
struct History {
    states: Vec<u64>,
    reached: usize,
}

#[derive(Default)]
struct Watched {
    files: BTreeMap<Ino, History>,
    broken: Option<String>,
}

/// What happened in all lives of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    kills: u64,
    writes: u64,
    replayed: ReplayStats,
    resent: u64,
    deduped: u64,
    full: u64,
    copied: u64,
    stored: u64,
    foreign: u64,
}

impl Totals {
    fn add(&mut self, t: &Totals) {
        self.kills += t.kills;
        self.writes += t.writes;
        self.replayed.writes += t.replayed.writes;
        self.replayed.intents += t.replayed.intents;
        self.replayed.torn += t.replayed.torn;
        self.resent += t.resent;
        self.deduped += t.deduped;
        self.full += t.full;
        self.copied += t.copied;
        self.stored += t.stored;
        self.foreign += t.foreign;
    }
}

struct World {
    life: Life,
    faulty: Arc<Faulty>,
    model: Vec<Vec<u8>>,
    mtime: Vec<Option<Time>>,
    watched: Arc<Mutex<Watched>>,
    seed: u64,
    kills_left: u64,
    totals: Totals,
    n: u64,
}

impl World {
    fn new(seed: u64, kills: u64) -> World {
        let bodies = MemoryStore::new();
        let faulty = Faulty::new(bodies.clone(), FaultPlan { seed, ..FaultPlan::default() });
        let retrying = Arc::new(Retrying::new(faulty.clone(), RetryPolicy::default()));
        let sink = ModelSink::new(seed);
        INOS.iter().for_each(|i| _ = sink.create(*i));
        let watched = Arc::new(Mutex::new(Watched::default()));
        let seen = watched.clone();
        sink.watch(bodies.clone(), move |ino, content| {
            let mut w = seen.lock().unwrap();
            let h = w.files.entry(ino).or_default();
            let d = digest(&content);
            match h.states[h.reached..].iter().position(|s| *s == d) {
                Some(i) => h.reached += i,
                None => {
                    let text = format!("{ino}: {} bytes are no state after number {}", content.len(), h.reached);
                    w.broken = Some(text);
                }
            }
        });
        let settings = Settings { dirty_bytes_max: 600_000, ..Settings::default() };
        let life = Life::over(settings, sink, bodies, retrying, Disk::new(4 + (seed % 2) as usize, FILE_BYTES));
        let (model, mtime) = (vec![Vec::new(); 3], vec![None; 3]);
        let mut world =
            World { life, faulty, model, mtime, watched, seed, kills_left: kills, totals: Totals::default(), n: 0 };
        (0..3).for_each(|i| world.record(i));
        world
    }
    fn record(&mut self, ino: usize) {
        let mut w = self.watched.lock().unwrap();
        w.files.entry(INOS[ino]).or_default().states.push(digest(&self.model[ino]));
    }
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.seed)
    }
    /// Chooses the next death.
    fn doom(&mut self) {
        if self.kills_left == 0 {
            return;
        }
        self.kills_left -= 1;
        let torn = [Torn::Nothing, Torn::Part((self.random() % 1000) as u32), Torn::All][(self.random() % 3) as usize];
        let at = 1 + self.random() % 25;
        self.life.disk.kill_at(at, torn);
    }
    /// What the operation does to the model.
    fn foresee(&mut self, op: &Op) -> Vec<u8> {
        self.n += 1;
        let mut data = Vec::new();
        match op {
            Op::Write { ino, at, len } => {
                data = body(*len, self.n as u8);
                self.lay(*ino, *at as usize, &data);
            }
            Op::Append { ino, len } => {
                data = body(*len, self.n as u8);
                self.lay(*ino, self.model[*ino].len(), &data);
            }
            Op::Truncate { ino, size } => {
                self.model[*ino].resize(*size as usize, 0);
                self.record(*ino);
            }
            Op::Punch { ino, at, len } => {
                let end = self.model[*ino].len() as u64;
                let (from, to) = ((*at).min(end), (at + len).min(end));
                self.model[*ino][from as usize..to as usize].fill(0);
                self.record(*ino);
            }
            _ => {}
        }
        match op {
            Op::Write { ino, .. } | Op::Append { ino, .. } | Op::Truncate { ino, .. } | Op::Punch { ino, .. } => {
                self.mtime[*ino] = None;
            }
            Op::Utimens { ino } => self.mtime[*ino] = Some(Time(1_000 + self.n as i64)),
            _ => {}
        }
        data
    }
    fn lay(&mut self, ino: usize, at: usize, data: &[u8]) {
        let model = &mut self.model[ino];
        // A write that does not fit into one record may be seen in parts.
        for (i, part) in data.chunks(((FILE_BYTES - 4096) / 4) as usize).enumerate() {
            let from = at + i * ((FILE_BYTES - 4096) / 4) as usize;
            model.resize(model.len().max(from + part.len()), 0);
            model[from..from + part.len()].copy_from_slice(part);
            let d = digest(model);
            self.watched.lock().unwrap().files.entry(INOS[ino]).or_default().states.push(d);
        }
    }
    fn cx(&self, ino: usize, resent: bool) -> WriteContext {
        let trunc_seq = self.life.sink.attr(INOS[ino]).map_or(0, |a| a.trunc_seq);
        WriteContext { trunc_seq, unique: self.n * 2, resent, ..WriteContext::default() }
    }
    /// Executes an operation as the vfs would. `executed`: the cluster did its part for an earlier client process.
    async fn execute(&self, op: &Op, data: &[u8], resent: bool, executed: &mut bool) {
        let (path, sink) = (self.life.path.clone(), &self.life.sink);
        let data = bytes::Bytes::copy_from_slice(data);
        match op {
            Op::Write { ino, at, .. } => path.write(INOS[*ino], *at, data, self.cx(*ino, resent)).await.expect("write"),
            Op::Append { ino, .. } => {
                let op = OpId { number: self.n * 2, ..OpId::default() };
                path.append(INOS[*ino], data, op).await.map(drop).expect("append");
            }
            Op::Truncate { ino, size } => {
                let barrier = path.truncate_barrier(INOS[*ino], *size).await.expect("barrier");
                if !std::mem::replace(executed, true) {
                    sink.set_size(INOS[*ino], *size).expect("set size");
                }
                barrier.truncated(sink.attr(INOS[*ino]).expect("attr").trunc_seq);
            }
            Op::Punch { ino, at, len } => {
                let hole = Piece::Hole { offset: *at, len: *len };
                path.commit_pieces(INOS[*ino], vec![hole], 0, self.cx(*ino, resent)).await.map(drop).expect("punch");
            }
            Op::Utimens { ino } => {
                path.set_explicit_mtime(INOS[*ino]).await;
                if !std::mem::replace(executed, true) {
                    sink.set_mtime(INOS[*ino], self.mtime[*ino].expect("time")).expect("set mtime");
                }
            }
            Op::Fsync { ino } => path.fsync(INOS[*ino]).await.expect("fsync"),
            Op::Advance { ms } => tokio::time::advance(Duration::from_millis(*ms)).await,
            Op::Faults { store, sink: refused } => {
                self.faulty.set(|p| {
                    (p.busy, p.lost_replies) = (*store, *store / 2);
                    p.latency_max = Duration::from_millis(u64::from(*store) * 3);
                });
                let latency_max = Duration::from_millis(u64::from(*refused));
                let (refused, lost_replies, use_object) = (*refused, *refused, *refused);
                sink.faults(SinkFaults { refused, lost_replies, use_object, latency_max, ..SinkFaults::default() });
            }
        }
    }
    /// One operation, sent again to every next client process until one answers.
    async fn run(&mut self, op: &Op) {
        let data = self.foresee(op);
        let (mut resent, mut executed) = (false, false);
        loop {
            let disk = self.life.disk.clone();
            let answered = tokio::select! {
                biased;
                () = self.execute(op, &data, resent, &mut executed) => !disk.killed(),
                () = disk.died.notified() => false,
            };
            if answered {
                break;
            }
            self.rise();
            resent = true;
        }
        self.compare(op).await;
    }
    fn rise(&mut self) {
        loop {
            self.count();
            self.totals.kills += 1;
            self.life.restart().expect("the journal is readable after a kill");
            self.doom();
            if !self.life.disk.killed() {
                return;
            }
        }
    }
    fn count(&mut self) {
        let (t, path) = (&mut self.totals, &self.life.path);
        let r = path.replayed();
        t.replayed.writes += r.writes;
        t.replayed.intents += r.intents;
        t.replayed.torn += r.torn;
        t.writes += self.life.disk.writes();
        let stats = path.journal().expect("journal").stats();
        t.resent += stats.resent.load(Relaxed);
        t.deduped += stats.deduped.load(Relaxed);
        t.full += stats.full_waits.load(Relaxed);
        t.copied += stats.copied.load(Relaxed);
    }
    /// What an application would see.
    async fn compare(&mut self, op: &Op) {
        for (i, ino) in INOS.into_iter().enumerate() {
            let disk = self.life.disk.clone();
            let seen = tokio::select! {
                biased;
                () = disk.died.notified() => { disk.died.notify_one(); return }
                seen = self.life.path.read(ino, 0, 1 << 20) => seen.expect("read"),
            };
            if seen != self.model[i] {
                let first = seen.iter().zip(&self.model[i]).position(|(a, b)| a != b);
                panic!(
                    "after {op:?}: file {i} has {} bytes instead of {}, first difference at {first:?}",
                    seen.len(),
                    self.model[i].len()
                );
            }
            let attr = self.life.sink.attr(ino).expect("attr");
            let dirty = self.life.path.dirty_attr(ino);
            assert_eq!(attr.size.max(dirty.map_or(0, |d| d.size)), self.model[i].len() as u64, "size after {op:?}");
            if let Some(want) = self.mtime[i] {
                assert_eq!(dirty.and_then(|d| d.mtime).unwrap_or(attr.mtime), want, "mtime after {op:?}");
            }
        }
        assert_eq!(self.watched.lock().unwrap().broken, None, "after {op:?}: not a prefix of the history");
    }
    async fn end(mut self) -> Totals {
        self.kills_left = 0;
        if self.life.disk.killed() {
            self.rise();
        }
        self.life.disk.kill_at(u64::MAX / 2, Torn::All);
        self.faulty.set(|p| *p = FaultPlan::default());
        self.life.sink.faults(SinkFaults::default());
        self.life.path.sync_all().await.expect("everything is committed");
        for (i, ino) in INOS.into_iter().enumerate() {
            assert!(self.life.sink.content(ino, &self.life.bodies) == self.model[i], "file {i} is complete");
            if let Some(want) = self.mtime[i] {
                assert_eq!(self.life.sink.attr(ino).expect("attr").mtime, want, "mtime of file {i}");
            }
        }
        assert_eq!(self.watched.lock().unwrap().broken, None, "not a prefix of the history");
        assert_eq!(self.life.path.dirty_bytes(), 0);
        assert_eq!(self.life.sink.outstanding(), Vec::<u64>::new(), "every commit was settled");
        self.count();
        self.life.kill();
        let r = self.life.path.replayed();
        assert_eq!((r.writes, r.intents), (0, 0), "nothing is left to replay");
        self.totals.stored = self.life.sink.count("stored");
        self.totals.foreign = self.life.sink.count("foreign");
        self.totals
    }
}

/// Runs operations with `kills` deaths; the first at write `first`, if given.
fn check(ops: &[Op], seed: u64, kills: u64, first: Option<(u64, Torn)>) -> Totals {
    let rt = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("runtime");
    rt.block_on(async {
        let mut w = World::new(seed, kills);
        match first {
            Some((at, torn)) => w.life.disk.kill_at(at, torn),
            None => w.doom(),
        }
        for op in ops {
            w.run(op).await;
        }
        w.end().await
    })
}

proptest! {
    // A failing case is printed shrunk, with its operations and seed: paste them into `check`.
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_operation_happens_once_whatever_dies(
        ops in prop::collection::vec(op(), 1..60), seed in any::<u64>(), kills in 0u64..12,
    ) {
        check(&ops, seed, kills, None);
    }
}

fn script(seed: u64) -> Vec<Op> {
    let mut ops = vec![Op::Faults { store: 60, sink: 120 }];
    for i in 0..12u64 {
        let ino = ((i + seed) % 3) as usize;
        ops.push(Op::Write { ino, at: i * 3000 % 30_000, len: 5000 });
        ops.push(Op::Write { ino, at: i * 700 % 9000, len: 500 });
        ops.push(match i % 6 {
            0 => Op::Truncate { ino, size: 0 },
            1 => Op::Append { ino, len: 20_000 },
            2 => Op::Utimens { ino },
            3 => Op::Punch { ino, at: 1000, len: 3000 },
            4 => Op::Fsync { ino },
            _ => Op::Write { ino, at: 0, len: 240_000 },
        });
        ops.push(Op::Advance { ms: 500 + 700 * (i % 4) });
    }
    ops
}

/// One kill at every write to the journal's files (records, segment heads, headers), before it, within it, after it.
#[test]
fn a_kill_at_every_write() {
    let ops = script(0);
    let all = check(&ops, 3, 0, None).writes;
    let mut sum = Totals::default();
    for at in 1..=all {
        for torn in [Torn::Nothing, Torn::Part(500), Torn::All] {
            sum.add(&check(&ops, 3, 0, Some((at, torn))));
        }
    }
    println!("{all} writes: {sum:?}");
    assert!(sum.kills >= all * 3 * 9 / 10 && sum.replayed.writes > 0 && sum.deduped > 0 && sum.resent > 0, "{sum:?}");
}

/// The things that the random test is about do happen in it.
#[test]
fn the_interesting_things_happen() {
    let mut sum = Totals::default();
    for seed in 0..25 {
        let mut ops = script(seed);
        ops.extend(script(seed + 1));
        sum.add(&check(&ops, seed, 30, None));
    }
    println!("{sum:?}");
    let replayed = [sum.replayed.writes, sum.replayed.intents, sum.replayed.torn];
    let seen = [&replayed[..], &[sum.kills, sum.resent, sum.deduped, sum.full]].concat();
    assert!(seen.iter().all(|n| *n > 10), "{sum:?}");
    assert!(sum.stored > 5 && sum.foreign > 5, "stored replies answered, foreign objects were refused: {sum:?}");
}

/// Killed when the commit was executed and its answer not yet recorded; then another client overwrites the bytes. The
/// next client process sends the commit again and must not execute it again.
#[tokio::test(start_paused = true)]
async fn an_executed_commit_does_not_overwrite_what_came_after_it() {
    for len in [500, 50_000] {
        let mut life = Life::begin(Settings::default(), 1, Disk::new(5, FILE_BYTES));
        life.sink.create(INOS[0]);
        let records = (len as u64).div_ceil((FILE_BYTES - 4096) / 4);
        life.path.write(INOS[0], 0, body(len, 1).into(), WriteContext::default()).await.expect("write");
        assert!(life.disk.writes() > records);
        life.disk.kill_at(2, Torn::Nothing); // 1 = intent, 2 = done
        let disk = life.disk.clone();
        tokio::select! { biased; () = disk.died.notified() => {}, r = life.path.fsync(INOS[0]) => panic!("{r:?}") }
        assert_eq!(life.sink.content(INOS[0], &life.bodies), body(len, 1), "executed");
        let other = OtherClient::new(life.sink.clone(), 1);
        let piece = Piece::Inline { offset: 0, bytes: body(400, 2).into() };
        let file =
            CommitFile { ino: INOS[0], trunc_seq: 0, pieces: vec![piece], mtime: None, grow_to: 0, kill_priv: false };
        other.commit(other.begin(), file).await.expect("another client");
        life.restart().expect("restart");
        assert_eq!(life.path.replayed().intents, 1);
        life.path.sync_all().await.expect("sync");
        let mut want = body(len, 1);
        want[..400].copy_from_slice(&body(400, 2));
        assert!(life.sink.content(INOS[0], &life.bodies) == want, "{len} bytes: executed once");
        assert_eq!(life.path.read(INOS[0], 0, 1 << 20).await.expect("read"), want);
    }
}

/// A write that was visible must not happen a second time, however late its repetition comes.
#[tokio::test(start_paused = true)]
async fn a_repeated_write_does_not_come_back_after_a_truncation() {
    let mut life = Life::begin(Settings::default(), 1, Disk::new(5, FILE_BYTES));
    life.sink.create(INOS[0]);
    let cx = WriteContext { unique: 10, ..WriteContext::default() };
    life.path.write(INOS[0], 0, body(500, 1).into(), cx).await.expect("write");
    life.kill();
    assert_eq!(life.path.read(INOS[0], 0, 1000).await.expect("read").len(), 500, "somebody saw it");
    let barrier = life.path.truncate_barrier(INOS[0], 0).await.expect("barrier");
    life.sink.set_size(INOS[0], 0).expect("set size");
    barrier.truncated(1);
    drop(barrier);
    let cx = WriteContext { resent: true, ..cx };
    life.path.write(INOS[0], 0, body(500, 1).into(), cx).await.expect("sent again");
    assert_eq!(life.path.read(INOS[0], 0, 1000).await.expect("read").len(), 0);
    let other = WriteContext { unique: 12, ..cx };
    life.path.write(INOS[0], 0, body(500, 1).into(), other).await.expect("another request of the dead client");
    assert_eq!(life.path.read(INOS[0], 0, 1000).await.expect("read").len(), 500);
    assert_eq!(life.path.journal().expect("journal").stats().deduped.load(Relaxed), 1);
}

/// Killed when the commit was executed; the next client process has a wrong cluster token at first. The objects are in
/// use and must stay.
#[tokio::test(start_paused = true)]
async fn an_executed_commit_that_is_turned_away_keeps_its_objects() {
    let mut life = Life::begin(Settings::default(), 1, Disk::new(5, FILE_BYTES));
    life.sink.create(INOS[0]);
    life.path.write(INOS[0], 0, body(50_000, 1).into(), WriteContext::default()).await.expect("write");
    life.disk.kill_at(2, Torn::Nothing); // 1 = intent, 2 = done
    let disk = life.disk.clone();
    tokio::select! { biased; () = disk.died.notified() => {}, r = life.path.fsync(INOS[0]) => panic!("{r:?}") }
    let denied = Some(FsError::Unauthenticated);
    life.sink.faults(SinkFaults { turned_away: denied, ..SinkFaults::default() });
    life.restart().expect("restart");
    assert_eq!(life.path.fsync(INOS[0]).await, Err(FsError::Unauthenticated));
    tokio::time::sleep_until(tokio::time::Instant::now() + Duration::from_secs(60)).await;
    assert!(life.sink.content(INOS[0], &life.bodies) == body(50_000, 1), "its objects are there");
    life.sink.faults(SinkFaults::default());
    life.path.fsync(INOS[0]).await.expect("fsync");
    assert!(life.sink.content(INOS[0], &life.bodies) == body(50_000, 1));
    assert_eq!(life.sink.committed().len(), 1, "executed once");
    assert_eq!(life.sink.outstanding(), Vec::<u64>::new());
}

/// The journal was made void because its disk failed; the write that the kernel asks for again is nowhere else.
#[tokio::test(start_paused = true)]
async fn a_repeated_write_that_is_void_in_the_journal_happens() {
    let mut life = Life::begin(Settings::default(), 1, Disk::new(5, FILE_BYTES));
    life.sink.create(INOS[0]);
    let cx = WriteContext { unique: 10, ..WriteContext::default() };
    life.path.write(INOS[0], 0, body(500, 1).into(), cx).await.expect("write");
    life.path.journal().expect("journal").make_void().expect("void");
    life.kill();
    let cx = WriteContext { resent: true, ..cx };
    life.path.write(INOS[0], 0, body(500, 1).into(), cx).await.expect("sent again");
    life.path.fsync(INOS[0]).await.expect("fsync");
    assert_eq!(life.sink.content(INOS[0], &life.bodies), body(500, 1));
}
