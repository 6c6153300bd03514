//! The log on a simulated disk, compared with a model that remembers every prefix of history.

use super::{Log, format::Key};
use crate::{
    api::HostError,
    codec,
    disk::{Disk, SimDisk, SimFault},
    raft::{Batch, Entry, Vote},
};
use bytes::Bytes;
use fusefs_types::{PartitionId, ReplicaId};
use openraft::EntryPayload;
use proptest::prelude::*;
use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

const DISK: u128 = 42;
const SEGMENT: u64 = 8 << 10;

/// (vote term, purged index, entries) of one replica.
type Image = (Option<u64>, Option<u64>, Vec<(u64, u64, Bytes)>);
type State = BTreeMap<u64, Image>;

fn run<T>(f: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(f)
}

async fn pause(us: u64) {
    tokio::time::sleep_until(tokio::time::Instant::now() + Duration::from_micros(us)).await;
}

fn key(n: u64) -> Key {
    Key { group: PartitionId(n), replica: ReplicaId(n + 100) }
}

fn open(disk: &SimDisk, fresh: bool) -> Result<Log, HostError> {
    Log::open(Arc::new(disk.clone()) as Arc<dyn Disk>, DISK, SEGMENT, fresh)
}

fn entry(term: u64, index: u64, payload: Bytes) -> Entry {
    let batch = Batch { payloads: vec![payload], waiters: None };
    Entry { log_id: codec::log_id(term, index), payload: EntryPayload::Normal(batch) }
}

fn image(log: &Log) -> State {
    let mut all = State::new();
    for (k, state) in log.replicas() {
        let read = log.entries(k, 0, u64::MAX, usize::MAX).unwrap();
        let entries = read.into_iter().map(|e| match e.payload {
            EntryPayload::Normal(batch) => (e.log_id.leader_id.term, e.log_id.index, batch.payloads[0].clone()),
            other => panic!("{other:?}"),
        });
        all.insert(k.group.0, (state.vote.map(|v| v.leader_id.term), state.purged.map(|p| p.index), entries.collect()));
    }
    all
}

#[derive(Clone, Debug)]
enum Op {
    Append {
        key: u64,
        count: u64,
        size: usize,
    },
    Truncate {
        key: u64,
        back: u64,
    },
    Vote {
        key: u64,
    },
    Purge {
        key: u64,
        back: u64,
    },
    Pause(u64),
    Flush,
    Crash(u64),
    /// SIGKILL: the page cache survives, and what was read back from it must then survive power loss.
    Kill,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..3u64, 1..4u64, 0..1500usize).prop_map(|(key, count, size)| Op::Append { key, count, size }),
        1 => (0..3u64, 0..5u64).prop_map(|(key, back)| Op::Truncate { key, back }),
        1 => (0..4u64).prop_map(|key| Op::Vote { key }),
        3 => (0..3u64, 0..6u64).prop_map(|(key, back)| Op::Purge { key, back }),
        4 => (0..600u64).prop_map(Op::Pause),
        2 => Just(Op::Flush),
        1 => any::<u64>().prop_map(Op::Crash),
        1 => Just(Op::Kill),
        1 => Just(Op::Restart),
    ]
}

/// The log, its disk and every state it went through since what is surely durable.
struct Model {
    disk: SimDisk,
    log: Log,
    now: State,
    /// (sequence number, state after it); the first one is durable.
    history: Vec<(u64, State)>,
    term: u64,
}

impl Model {
    fn new() -> Model {
        let disk = SimDisk::new(Duration::from_micros(200));
        let log = open(&disk, true).unwrap();
        Model { disk, log, now: State::new(), history: vec![(0, State::new())], term: 1 }
    }

    fn note(&mut self, lsn: u64) {
        self.history.push((lsn, self.now.clone()));
    }

    async fn step(&mut self, op: Op) {
        match op {
            Op::Append { key: k, count, size } => {
                let image = self.now.entry(k).or_default();
                let next = image.2.last().map(|e| e.1 + 1).or(image.1.map(|p| p + 1)).unwrap_or(0);
                for index in next..next + count {
                    let payload = Bytes::from(vec![(index % 251) as u8; size]);
                    let lsn = self.log.append(key(k), vec![entry(self.term, index, payload.clone())]).unwrap();
                    self.now.entry(k).or_default().2.push((self.term, index, payload));
                    self.note(lsn);
                }
            }
            Op::Truncate { key: k, back } => {
                let image = self.now.entry(k).or_default();
                let keep = image.2.len().saturating_sub(back as usize);
                let Some(from) = image.2.get(keep).map(|e| e.1) else { return };
                image.2.truncate(keep);
                self.term += 1;
                let lsn = self.log.truncate(key(k), from).unwrap();
                self.note(lsn);
            }
            Op::Vote { key: k } => {
                self.term += 1;
                self.now.entry(k).or_default().0 = Some(self.term);
                let vote = Vote::new(self.term, 1);
                let lsn = self.log.update(key(k), |s| s.vote = Some(vote)).unwrap();
                self.note(lsn);
            }
            Op::Purge { key: k, back } => {
                let image = self.now.entry(k).or_default();
                let n = image.2.len().saturating_sub(back as usize);
                let Some((term, index)) = n.checked_sub(1).map(|i| (image.2[i].0, image.2[i].1)) else { return };
                image.2.drain(..n);
                image.1 = Some(index);
                let lsn = self.log.update(key(k), |s| s.purged = Some(codec::log_id(term, index))).unwrap();
                self.note(lsn);
            }
            Op::Pause(us) => pause(us).await,
            Op::Flush => {
                let (lsn, state) = self.history.last().cloned().unwrap();
                self.log.flushed(lsn).await.unwrap();
                self.history = vec![(lsn, state)];
            }
            Op::Crash(seed) => self.reopen(|disk| disk.crash(seed)).await,
            Op::Kill => self.reopen(SimDisk::kill).await,
            Op::Restart => {
                self.log.close().await;
                self.history.drain(..self.history.len() - 1);
                self.reopen(SimDisk::kill).await;
            }
        }
        assert_eq!(clean(image(&self.log)), clean(self.now.clone()));
    }

    /// What comes back must be one of the states since the last one that was surely durable.
    async fn reopen(&mut self, boot: impl FnOnce(&SimDisk) -> SimDisk) {
        self.log.abort();
        self.disk = boot(&self.disk);
        self.log = open(&self.disk, false).unwrap();
        let found = clean(image(&self.log));
        let known = self.history.iter().any(|(_, state)| clean(state.clone()) == found);
        assert!(known, "recovered a state that never was:\n{found:?}\nexpected one of {:?}", self.history);
        self.now = found.clone();
        self.history = vec![(0, found)];
    }
}

/// Without replicas of which nothing was ever written.
fn clean(state: State) -> State {
    state.into_iter().filter(|(_, image)| *image != Image::default()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_crash_finds_a_prefix_that_holds_all_that_was_durable(ops in prop::collection::vec(op(), 1..80)) {
        run(async {
            let mut model = Model::new();
            model.step(Op::Vote { key: 3 }).await; // an idle group that must survive every reclaim
            model.step(Op::Flush).await;
            for op in ops {
                model.step(op).await;
            }
            model.step(Op::Flush).await;
            model.step(Op::Crash(1)).await;
            prop_assert!(model.now.contains_key(&3));
            Ok(())
        })?;
    }

    #[test]
    fn a_flipped_bit_is_noticed(ops in prop::collection::vec(op(), 10..40), at in any::<u64>(), bit in 0..8u8) {
        run(async {
            let mut model = Model::new();
            for op in ops {
                model.step(op).await;
            }
            model.step(Op::Restart).await; // ends with a mark
            let before = clean(image(&model.log));
            let end = model.log.shared.inner.lock().segments.end;
            model.log.abort();
            let files: Vec<String> = model.disk.list("log").unwrap();
            let name = format!("log/{}", files[(at % files.len() as u64) as usize]);
            let len = model.disk.open(&name).unwrap().len().unwrap();
            let offset = (at >> 8) % len;
            model.disk = model.disk.kill();
            prop_assert!(model.disk.flip(&name, offset, 1 << bit));
            match open(&model.disk, false) {
                Err(HostError::Damaged(_)) => {}
                Ok(log) => {
                    let same = clean(image(&log)) == before;
                    prop_assert!(same, "{name} {offset} of {end:?}: silently different");
                }
                Err(e) => prop_assert!(false, "{e}"),
            }
            Ok(())
        })?;
    }
}

/// Found by the random test above: a segment may go only after the record that made it dead is durable.
#[test]
fn a_purge_that_is_not_durable_keeps_its_segment() {
    for seed in 0..32 {
        run(async {
            let mut model = Model::new();
            model.step(Op::Append { key: 0, count: 3, size: 1043 }).await;
            model.step(Op::Pause(1)).await;
            model.step(Op::Append { key: 0, count: 6, size: 1117 }).await;
            model.step(Op::Purge { key: 0, back: 0 }).await;
            model.step(Op::Pause(250)).await;
            model.step(Op::Crash(seed)).await;
        });
    }
}

#[test]
fn a_missing_file_is_noticed() {
    run(async {
        for which in 0..8 {
            let mut model = Model::new();
            for _ in 0..30 {
                model.step(Op::Append { key: 0, count: 1, size: 1000 }).await;
                model.step(Op::Flush).await;
            }
            let files = model.disk.list("log").unwrap();
            assert!(files.len() > 3, "{files:?}");
            let Some(name) = files.get(which) else { return };
            model.log.abort();
            model.disk = model.disk.kill();
            model.disk.lose(&format!("log/{name}"));
            assert!(matches!(open(&model.disk, false), Err(HostError::Damaged(_))), "{name}");
        }
    });
}

#[test]
fn an_idle_group_does_not_pin_the_disk() {
    run(async {
        let mut model = Model::new();
        model.step(Op::Append { key: 1, count: 3, size: 500 }).await;
        for _ in 0..400 {
            model.step(Op::Append { key: 0, count: 2, size: 1000 }).await;
            model.step(Op::Purge { key: 0, back: 2 }).await;
            model.step(Op::Flush).await;
        }
        let stats = model.log.stats();
        assert!(stats.segments <= 6, "{stats:?}");
        model.step(Op::Crash(3)).await;
        assert_eq!(model.now[&1].2.len(), 3);
    });
}

#[test]
fn a_failed_sync_stops_the_log_for_good() {
    run(async {
        let model = Model::new();
        let first = model.log.append(key(0), vec![entry(1, 0, Bytes::new())]).unwrap();
        model.log.flushed(first).await.unwrap();
        model.disk.fault(SimFault::SyncFails);
        let lsn = model.log.append(key(0), vec![entry(1, 1, Bytes::new())]).unwrap();
        assert!(model.log.flushed(lsn).await.is_err());
        assert!(model.log.append(key(0), vec![entry(1, 2, Bytes::new())]).is_err());
        assert!(model.log.failure().borrow().is_some());
    });
}

#[test]
fn a_full_disk_waits_for_room() {
    run(async {
        let mut model = Model::new();
        model.disk.fault(SimFault::FullAfter(10 << 10));
        let mut lsn = 0;
        for index in 0..30 {
            lsn = model.log.append(key(0), vec![entry(1, index, Bytes::from(vec![1; 1000]))]).unwrap();
            pause(500).await;
        }
        let waiting = tokio::time::timeout(Duration::from_secs(5), model.log.flushed(lsn)).await;
        assert!(waiting.is_err(), "a full disk cannot have stored this");
        model.disk.make_room();
        model.log.flushed(lsn).await.unwrap();
        let all = image(&model.log);
        model.now = all.clone();
        model.history = vec![(lsn, all)];
        model.reopen(|disk| disk.crash(9)).await;
        assert_eq!(model.now[&0].2.len(), 30);
    });
}
