//! What happened: problems, latencies, slow calls. One [`Recorder`] per process; the report is JSON.

use super::now_ns;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// Problems kept with all their words; more are only counted.
const PROBLEMS_KEPT: usize = 100;
/// Calls slower than this are kept one by one, for the pauses (µs).
const SLOW_US: u64 = 5_000;
/// Calls that the kernel never answers by itself: their ends show that somebody serves.
const SERVED: &[&str] = &[
    "create",
    "append",
    "pwrite",
    "fsync",
    "rename",
    "unlink",
    "mkdir",
    "rmdir",
    "symlink",
    "link",
    "getdents",
    "ftruncate",
];
/// Ends of such calls kept per process.
const ANSWERS_KEPT: usize = 1_000_000;
/// Slow calls kept per process.
const SLOW_KEPT: usize = 50_000;
/// Buckets of a histogram: bucket i counts calls below 2^i µs.
const BUCKETS: usize = 32;

/// What kind of problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An errno that the call may not give here.
    Error,
    /// Success with a wrong result.
    Mismatch,
    /// A call that did not come back.
    Hang,
}

/// One problem.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// Error, mismatch, hang.
    pub kind: Kind,
    /// Job and its number.
    pub job: String,
    /// Step of the job.
    pub step: u64,
    /// Call, or what was compared.
    pub call: String,
    /// File.
    pub path: String,
    /// Name of the errno, or what differs.
    pub detail: String,
    /// CLOCK_MONOTONIC in ns.
    pub at_ns: u64,
}

/// Latencies of one call.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Calls.
    pub count: u64,
    /// Slowest in µs.
    pub max_us: u64,
    /// Bucket i counts calls below 2^i µs.
    pub buckets: Vec<u64>,
}

impl Latency {
    /// Adds one call.
    pub fn add(&mut self, us: u64) {
        self.buckets.resize(BUCKETS, 0);
        self.count += 1;
        self.max_us = self.max_us.max(us);
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
    }
    /// Adds all calls of another.
    pub fn merge(&mut self, other: &Latency) {
        self.buckets.resize(BUCKETS, 0);
        self.count += other.count;
        self.max_us = self.max_us.max(other.max_us);
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(a, b)| *a += b);
    }
    /// Upper bound in µs of the given quantile.
    pub fn quantile_us(&self, q: f64) -> u64 {
        let mut left = (self.count as f64 * q) as u64;
        for (i, n) in self.buckets.iter().enumerate() {
            if left < *n {
                return (1 << i).min(self.max_us);
            }
            left -= n;
        }
        self.max_us
    }
}

/// One slow call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Slow {
    /// Call.
    pub call: String,
    /// Start, CLOCK_MONOTONIC in ns.
    pub start_ns: u64,
    /// End.
    pub end_ns: u64,
    /// A lock wait: it may be long because of other lockers.
    pub wait: bool,
}

/// What a process reports.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Seed.
    pub seed: u64,
    /// Problems of each kind; the first ones with words.
    pub errors: u64,
    /// Wrong results.
    pub mismatches: u64,
    /// Calls that did not come back.
    pub hangs: u64,
    /// The first problems.
    pub problems: Vec<Problem>,
    /// Steps by job.
    pub steps: BTreeMap<String, u64>,
    /// Latencies by call.
    pub latency: BTreeMap<String, Latency>,
    /// Slow calls.
    pub slow: Vec<Slow>,
    /// When calls ended that needed an answer of the file system (CLOCK_MONOTONIC, ns), in order.
    pub answers: Vec<u64>,
    /// Whether the final comparisons were made.
    pub finished: bool,
}

impl Report {
    /// Calls made.
    pub fn calls(&self) -> u64 {
        self.latency.values().map(|l| l.count).sum()
    }
    /// Problems of all kinds.
    pub fn bad(&self) -> u64 {
        self.errors + self.mismatches + self.hangs
    }
    /// Longest call that is not a lock wait, in ms.
    pub fn longest_ms(&self) -> u64 {
        self.slow.iter().filter(|s| !s.wait).map(|s| (s.end_ns - s.start_ns) / 1_000_000).max().unwrap_or(0)
    }
    /// For each time in `marks` (ns, ascending): how long the longest call in flight then went on, in ms.
    pub fn pauses_ms(&self, marks: &[u64]) -> Vec<f64> {
        let pause = |mark: u64| {
            let hit = self.slow.iter().filter(|s| !s.wait && s.start_ns <= mark + SLOW_US * 1000 && s.end_ns > mark);
            hit.map(|s| (s.end_ns - s.start_ns.max(mark)) as f64 / 1e6).fold(0.0, f64::max)
        };
        marks.iter().map(|m| pause(*m)).collect()
    }
    /// For each time in `marks`: the longest time without any answer until the next mark (at most 10 s), in ms.
    pub fn silences_ms(&self, marks: &[u64]) -> Vec<f64> {
        let silence = |(i, mark): (usize, &u64)| {
            let end = marks.get(i + 1).copied().unwrap_or(u64::MAX).min(mark + 10_000_000_000);
            let inside = &self.answers[self.answers.partition_point(|a| a < mark)..];
            let mut last = *mark;
            let mut longest = 0;
            for answer in inside.iter().copied().take_while(|a| *a < end) {
                longest = longest.max(answer - last);
                last = answer;
            }
            longest as f64 / 1e6
        };
        marks.iter().enumerate().map(silence).collect()
    }
    /// Adds another process' report.
    pub fn merge(&mut self, other: Report) {
        self.errors += other.errors;
        self.mismatches += other.mismatches;
        self.hangs += other.hangs;
        self.problems.extend(other.problems);
        for (job, n) in other.steps {
            *self.steps.entry(job).or_default() += n;
        }
        for (call, latency) in &other.latency {
            self.latency.entry(call.clone()).or_default().merge(latency);
        }
        self.slow.extend(other.slow);
        self.answers.extend(other.answers);
        self.answers.sort_unstable();
        self.finished &= other.finished;
    }
    /// The problems in lines.
    pub fn problems_text(&self) -> String {
        let line =
            |p: &Problem| format!("  {:?} in {} step {}: {} {}: {}", p.kind, p.job, p.step, p.call, p.path, p.detail);
        self.problems.iter().map(line).collect::<Vec<_>>().join("\n")
    }
    /// Latencies in a table, slowest first.
    pub fn latency_text(&self) -> String {
        let mut rows: Vec<_> = self.latency.iter().collect();
        rows.sort_by_key(|(_, l)| std::cmp::Reverse(l.max_us));
        let row = |(call, l): &(&String, &Latency)| {
            let (p50, p99) = (l.quantile_us(0.5), l.quantile_us(0.99));
            format!("  {call:<14} {:>8} calls  p50 < {p50:>6} us  p99 < {p99:>8} us  max {:>9} us", l.count, l.max_us)
        };
        rows.iter().map(row).collect::<Vec<_>>().join("\n")
    }
}

/// A call that has not come back yet.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// Job.
    pub job: String,
    /// Step.
    pub step: u64,
    /// Call.
    pub call: &'static str,
    /// File.
    pub path: String,
    /// Start, CLOCK_MONOTONIC in ns.
    pub since_ns: u64,
}

/// One thread's call in flight.
pub type Slot = Arc<Mutex<Option<InFlight>>>;

/// Collects for one process.
#[derive(Default)]
pub struct Recorder {
    report: Mutex<Report>,
    slots: Mutex<Vec<Slot>>,
}

impl Recorder {
    /// Empty.
    pub fn new(seed: u64) -> Arc<Recorder> {
        let recorder = Recorder::default();
        recorder.report.lock().seed = seed;
        Arc::new(recorder)
    }
    /// A slot for a new thread.
    pub fn slot(&self) -> Slot {
        let slot = Slot::default();
        self.slots.lock().push(slot.clone());
        slot
    }
    /// Records a problem.
    pub fn problem(&self, kind: Kind, job: &str, step: u64, call: &str, path: &Path, detail: String) {
        let problem = Problem {
            kind,
            job: job.into(),
            step,
            call: call.into(),
            path: path.display().to_string(),
            detail,
            at_ns: now_ns(),
        };
        let mut report = self.report.lock();
        match kind {
            Kind::Error => report.errors += 1,
            Kind::Mismatch => report.mismatches += 1,
            Kind::Hang => report.hangs += 1,
        }
        if report.problems.len() < PROBLEMS_KEPT {
            report.problems.push(problem);
        }
    }
    /// Records a slow call.
    pub fn slow(&self, call: &'static str, start_ns: u64, end_ns: u64, wait: bool) {
        if (end_ns - start_ns) / 1000 >= SLOW_US {
            let mut report = self.report.lock();
            if report.slow.len() < SLOW_KEPT {
                report.slow.push(Slow { call: call.into(), start_ns, end_ns, wait });
            }
        }
    }
    /// Takes over what one thread counted.
    pub fn absorb(&self, job: &str, steps: u64, latency: &BTreeMap<&'static str, Latency>, answers: &[u64]) {
        let mut report = self.report.lock();
        if report.answers.len() + answers.len() <= ANSWERS_KEPT {
            report.answers.extend(answers);
            report.answers.sort_unstable();
        }
        *report.steps.entry(job.into()).or_default() += steps;
        for (call, l) in latency {
            report.latency.entry((*call).into()).or_default().merge(l);
        }
    }
    /// Whether the end of this call shows that somebody serves.
    pub fn is_served(call: &str) -> bool {
        SERVED.contains(&call)
    }
    /// Changes the report.
    pub fn edit(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock());
    }
    /// Copy of the report.
    pub fn report(&self) -> Report {
        self.report.lock().clone()
    }
    /// Calls in flight for longer than `limit_ns`.
    pub fn stuck(&self, limit_ns: u64) -> Vec<InFlight> {
        let now = now_ns();
        let slots = self.slots.lock();
        slots.iter().filter_map(|s| s.lock().clone()).filter(|f| now - f.since_ns.min(now) > limit_ns).collect()
    }
}
