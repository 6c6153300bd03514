//! Random operations with faults against a plain byte vector; and after every commit the file is a prefix of its history.

use crate::rig::{F, Rig, body, fresh_op};
use fusefs_data_path::{Settings, object::FaultPlan, testing::SinkFaults};
use fusefs_types::{FsError, ops::Piece};
use proptest::prelude::*;
use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    sync::{Arc, Mutex},
    time::Duration,
};

#[derive(Clone, Debug)]
enum Op {
    Write { at: u64, len: usize },
    BigWrite { at: u64, len: usize },
    Append { len: usize },
    Truncate { size: u64 },
    Punch { at: u64, len: u64 },
    Read { at: u64, len: usize },
    Fsync,
    Flush,
    Advance { ms: u64 },
    Invalidate,
    Permanent,
    Faults { store: u32, sink: u32 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0u64..120_000, 1usize..9_000).prop_map(|(at, len)| Op::Write { at, len }),
        2 => (0u64..900_000, 60_000usize..700_000).prop_map(|(at, len)| Op::BigWrite { at, len }),
        2 => (1usize..40_000).prop_map(|len| Op::Append { len }),
        2 => (0u64..200_000).prop_map(|size| Op::Truncate { size }),
        1 => (0u64..150_000, 1u64..50_000).prop_map(|(at, len)| Op::Punch { at, len }),
        6 => (0u64..200_000, 1usize..150_000).prop_map(|(at, len)| Op::Read { at, len }),
        2 => Just(Op::Fsync),
        1 => Just(Op::Flush),
        2 => (1u64..6_000).prop_map(|ms| Op::Advance { ms }),
        1 => Just(Op::Invalidate),
        1 => Just(Op::Permanent),
        1 => (0u32..250, 0u32..250).prop_map(|(store, sink)| Op::Faults { store, sink }),
    ]
}

fn digest(b: &[u8]) -> u64 {
    let mut h = DefaultHasher::new();
    b.hash(&mut h);
    h.finish()
}

/// States of the file in order, and how far the partition has come.
#[derive(Default)]
struct History {
    states: Vec<u64>,
    reached: usize,
    broken: Option<String>,
}

struct World {
    rig: Rig,
    model: Vec<u8>,
    history: Arc<Mutex<History>>,
    n: u8,
}

impl World {
    fn record(&mut self) {
        self.history.lock().unwrap().states.push(digest(&self.model));
    }
    fn fill(&mut self, at: u64, len: usize) -> Vec<u8> {
        self.n = self.n.wrapping_add(1);
        let data = body(len, self.n);
        let (from, to) = (at as usize, at as usize + len);
        self.model.resize(self.model.len().max(to), 0);
        self.model[from..to].copy_from_slice(&data);
        self.record();
        data
    }
    async fn run(&mut self, op: &Op) {
        let path = self.rig.path.clone();
        match op {
            Op::Write { at, len } | Op::BigWrite { at, len } => {
                let data = self.fill(*at, *len);
                self.rig.write(*at, data).await.expect("write");
            }
            Op::Append { len } => {
                let at = self.model.len() as u64;
                let data = self.fill(at, *len);
                let (got, attr) = path.append(F, data.into(), fresh_op()).await.expect("append");
                assert_eq!((got, attr.size), (at, at + *len as u64));
            }
            Op::Truncate { size } => {
                self.model.resize(*size as usize, 0);
                self.record();
                self.rig.truncate(*size).await.expect("truncate");
            }
            Op::Punch { at, len } => {
                let end = self.model.len() as u64;
                let (from, to) = ((*at).min(end), (at + len).min(end));
                self.model[from as usize..to as usize].fill(0);
                self.record();
                let hole = Piece::Hole { offset: *at, len: *len };
                path.commit_pieces(F, vec![hole], 0, self.rig.cx()).await.expect("punch");
            }
            Op::Read { at, len } => {
                let got = path.read(F, *at, *len).await.expect("read");
                let (from, to) = (self.model.len().min(*at as usize), self.model.len().min(*at as usize + len));
                assert!(got == self.model[from..to], "read {at}+{len}: {} bytes", got.len());
            }
            Op::Fsync => path.fsync(F).await.expect("fsync"),
            Op::Flush => path.flush(F).await.expect("flush"),
            Op::Advance { ms } => tokio::time::advance(Duration::from_millis(*ms)).await,
            Op::Invalidate => path.invalidate(F),
            Op::Permanent => self.permanent().await,
            Op::Faults { store, sink } => {
                self.rig.faulty.set(|p| {
                    (p.busy, p.lost_replies, p.truncated) = (*store, *store / 2, *store / 8);
                    p.latency_max = Duration::from_millis(u64::from(*store) * 3);
                });
                let latency_max = Duration::from_millis(u64::from(*sink));
                let (refused, lost_replies, use_object) = (*sink, *sink, *sink);
                self.rig.sink.faults(SinkFaults {
                    refused,
                    lost_replies,
                    use_object,
                    latency_max,
                    ..SinkFaults::default()
                });
            }
        }
        let attr = self.rig.sink.attr(F).expect("attr");
        let size = attr.size.max(path.dirty_attr(F).map_or(0, |d| d.size));
        assert_eq!(size, self.model.len() as u64, "overlaid size after {op:?}");
    }
    /// For a while nothing can be committed; what was written stays and reads see it.
    async fn permanent(&mut self) {
        self.rig.sink.faults(SinkFaults { always: Some(FsError::Quota), ..SinkFaults::default() });
        let was_dirty = self.rig.path.dirty_attr(F).is_some();
        let sync = self.rig.path.fsync(F).await;
        assert!(sync == Ok(()) || was_dirty, "{sync:?}");
        self.rig.sink.faults(SinkFaults::default());
    }
}

fn check(ops: &[Op], seed: u64, settings: Settings) -> [u64; 4] {
    let rt = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("runtime");
    rt.block_on(async {
        let rig = Rig::seeded(settings, seed);
        let history = Arc::new(Mutex::new(History::default()));
        let seen = history.clone();
        rig.sink.watch(rig.store.clone(), move |_, content| {
            let mut h = seen.lock().unwrap();
            let d = digest(&content);
            match h.states[h.reached..].iter().position(|s| *s == d) {
                Some(i) => h.reached += i,
                None => h.broken = Some(format!("{} bytes are no state after number {}", content.len(), h.reached)),
            }
        });
        let mut w = World { rig, model: Vec::new(), history, n: 0 };
        w.record();
        for op in ops {
            w.run(op).await;
            let h = w.history.lock().unwrap();
            assert_eq!(h.broken, None, "after {op:?}: not a prefix of the history");
        }
        w.rig.faulty.set(|p| *p = FaultPlan::default());
        w.rig.sink.faults(SinkFaults::default());
        w.rig.path.fsync(F).await.expect("final fsync");
        assert!(w.rig.committed() == w.model, "committed = written");
        assert_eq!(w.rig.path.dirty_bytes(), 0, "nothing charged for a clean log");
        assert!(w.rig.cold().read(F, 0, 2 << 20).await.expect("cold read") == w.model, "a cold client reads the same");
        let h = w.history.lock().unwrap();
        assert_eq!(h.broken, None);
        let s = &w.rig.faulty.counters;
        let sum =
            [&s.busy, &s.lost_replies, &s.truncated].iter().map(|c| c.load(std::sync::atomic::Ordering::Relaxed)).sum();
        [sum, w.rig.sink.count("lost"), w.rig.sink.count("use_object"), w.rig.sink.count("always")]
    })
}

fn cramped() -> Settings {
    Settings {
        dirty_bytes_max: 400_000,
        cache_bytes: 200_000,
        map_bytes: 2_000,
        readahead_bytes: 300_000,
        fetch_bytes: 128 << 10,
        ..Settings::default()
    }
}

proptest! {
    // A failing case is printed shrunk, with its operations and seed: paste them into `check`.
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_data_path_is_a_byte_vector(ops in prop::collection::vec(op(), 1..60), seed in any::<u64>(), tight in any::<bool>()) {
        check(&ops, seed, if tight { cramped() } else { Settings::default() });
    }
}

/// The faults of the test above do happen.
#[test]
fn faults_fire() {
    let mut total = [0; 4];
    for seed in 0..6 {
        let mut ops = vec![Op::Faults { store: 200, sink: 200 }];
        for i in 0..40u64 {
            ops.push(Op::Write { at: i * 3000 % 70_000, len: 5000 });
            ops.push(Op::BigWrite { at: i * 1000, len: 70_000 });
            ops.push(Op::Fsync);
            ops.push(Op::Write { at: i * 100, len: 500 });
            ops.push(Op::Fsync);
            ops.push(Op::Invalidate);
            ops.push(Op::Read { at: 0, len: 100_000 });
        }
        ops.push(Op::Write { at: 0, len: 10 });
        ops.push(Op::Permanent);
        for (t, n) in total.iter_mut().zip(check(&ops, seed, cramped())) {
            *t += n;
        }
    }
    println!(
        "store faults {}, lost commit replies {}, use-object answers {}, refusals {}",
        total[0], total[1], total[2], total[3]
    );
    assert!(total.iter().all(|n| *n >= 5), "{total:?}");
}
