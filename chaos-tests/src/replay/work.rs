//! One workload process: all jobs until it is told to stop, then the final comparisons.

use super::{
    Rng,
    io::{Io, Step},
    jobs::{CounterCheck, FCNTL, Job, Place, RangeLocks, SPECS, Shared, Spec},
    nemesis::pause,
    plant::Plant,
    record::{Kind, Recorder, Report},
    shadow::Shadow,
    worker::Locker,
};
use anyhow::{Context, Result};
use parking_lot::Mutex;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// A job that had this many problems ends.
const PROBLEMS_PER_JOB: u32 = 20;
/// How often calls in flight are looked at.
const WATCH: Duration = Duration::from_millis(200);
/// Exit code of a process in which a call did not come back.
pub const EXIT_HANG: i32 = 3;

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// An existing empty directory of the file system under test.
    pub dir: PathBuf,
    /// Outside of it: report, expected tree, copies of contents.
    pub out: PathBuf,
    /// Everything but the scheduling follows from it.
    pub seed: u64,
    /// Steps of each thread; without it, until told to stop.
    pub steps: Option<u64>,
    /// Only these jobs; empty = all.
    pub only: Vec<String>,
    /// Processes of the fcntl job.
    pub lockers: u64,
    /// A call that takes longer than this is a hang and ends the process.
    pub hang: Duration,
    /// Planted corruption.
    pub plant: Option<Plant>,
    /// Between two steps of a thread, for machines where other things have to run, too.
    pub pace: Duration,
}

impl Plan {
    /// All jobs, until told to stop.
    pub fn new(dir: &Path, out: &Path, seed: u64) -> Plan {
        Plan {
            dir: dir.into(),
            out: out.into(),
            seed,
            steps: None,
            only: Vec::new(),
            lockers: 3,
            hang: Duration::from_secs(180),
            plant: None,
            pace: Duration::ZERO,
        }
    }
    /// Where the report is written.
    pub fn report(&self) -> PathBuf {
        self.out.join("report.json")
    }
    /// Where the expected tree is written.
    pub fn shadow(&self) -> PathBuf {
        self.out.join("shadow.json")
    }
    fn copies(&self) -> PathBuf {
        self.out.join("copies")
    }
    fn wants(&self, job: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|o| o == job)
    }
}

struct Run {
    plan: Plan,
    recorder: Arc<Recorder>,
    stop: Arc<AtomicBool>,
    shadow: Mutex<Shadow>,
    /// All threads have stopped working before the first one compares.
    all_stopped: Barrier,
}

/// Runs the plan; `ready` is called when every job stands. The report is also written to a file.
pub fn run(plan: Plan, stop: Arc<AtomicBool>, ready: impl FnOnce()) -> Result<Report> {
    fs::create_dir_all(plan.copies())?;
    let recorder = Recorder::new(plan.seed);
    watch(&recorder, plan.hang, plan.report());
    let specs: Vec<&Spec> = SPECS.iter().filter(|s| plan.wants(s.name)).collect();
    let threads: usize = specs.iter().map(|s| s.threads as usize).sum();
    let run = Run {
        recorder,
        stop,
        shadow: Mutex::new(Shadow::new(&plan.dir, &plan.copies())),
        all_stopped: Barrier::new(threads + 1),
        plan,
    };
    // What can fail comes before the first thread, which could not be told to end at the barrier.
    let mut groups = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        let shared = Arc::new(Shared { done: (0..spec.threads).map(|_| AtomicU64::new(0)).collect() });
        if spec.shared {
            run.prepare(spec, i, &shared)?;
        }
        groups.push((i, *spec, shared));
    }
    let lockers = run.start_lockers()?;
    std::thread::scope(|scope| -> Result<()> {
        let mut standing = Vec::new();
        for (i, spec, shared) in &groups {
            let (i, spec) = (*i, *spec);
            for me in 0..spec.threads {
                let (run, shared) = (&run, shared.clone());
                let (up, is_up) = std::sync::mpsc::channel();
                standing.push(is_up);
                scope.spawn(move || run.thread(spec, i, me, shared, up));
            }
        }
        standing.iter().for_each(|up| _ = up.recv());
        ready();
        run.all_stopped.wait();
        run.end_lockers(lockers)
    })?;
    run.shadow.lock().save(&run.plan.shadow())?;
    run.recorder.edit(|r| r.finished = true);
    let report = run.recorder.report();
    fs::write(run.plan.report(), serde_json::to_vec(&report)?)?;
    Ok(report)
}

impl Run {
    fn place(&self, dir: PathBuf, stream: u64, me: u16, shared: &Arc<Shared>) -> Result<Place> {
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(Place { dir, rng: Rng::new(self.plan.seed, stream), me, shared: shared.clone() })
    }
    fn prepare(&self, spec: &Spec, i: usize, shared: &Arc<Shared>) -> Result<()> {
        let mut place = self.place(self.plan.dir.join(spec.name), i as u64, 0, shared)?;
        let mut io = Io::new(&self.recorder, spec.name, None);
        (spec.prepare)(&mut place, &mut io).map_err(|_| anyhow::anyhow!("preparing {} failed", spec.name))
    }
    /// A job from its start to its end. `up` is dropped when it stands.
    fn thread(&self, spec: &Spec, i: usize, me: u16, shared: Arc<Shared>, up: std::sync::mpsc::Sender<()>) {
        let name = format!("{}{me}", spec.name);
        let mut io = Io::new(&self.recorder, &name, self.plan.plant);
        let (mut generation, mut up) = (0, Some(up));
        let last = loop {
            let dir = self.directory(spec, &name, generation);
            let stream = (i as u64 + 1) << 32 | u64::from(me) << 16 | u64::from(generation);
            let started = match self.place(dir.clone(), stream, me, &shared) {
                Ok(place) => (spec.make)(place, &mut io),
                Err(e) => Err(io.mismatch("making the job's directory", &dir, format!("{e:#}"))),
            };
            drop(up.take());
            let result = started.and_then(|mut job| self.steps(&mut *job, &mut io).map(|()| job));
            match result {
                Ok(job) => break Some((job, dir)),
                Err(_) => {
                    self.shadow.lock().spoil(&dir);
                    generation += 1;
                    if spec.shared || generation >= PROBLEMS_PER_JOB {
                        break None;
                    }
                }
            }
        };
        self.all_stopped.wait();
        if let Some((job, dir)) = last {
            let mut tree = self.shadow.lock().empty();
            match job.finish(&mut io, &mut tree) {
                Ok(()) => self.shadow.lock().merge(tree),
                Err(_) => self.shadow.lock().spoil(&dir),
            }
        }
    }
    fn directory(&self, spec: &Spec, name: &str, generation: u32) -> PathBuf {
        if spec.shared {
            self.plan.dir.join(spec.name)
        } else {
            self.plan.dir.join(name).join(format!("g{generation}"))
        }
    }
    fn steps(&self, job: &mut dyn Job, io: &mut Io) -> Step {
        while !self.stop.load(Ordering::SeqCst) && self.plan.steps.is_none_or(|n| io.steps() < n) {
            io.next_step();
            job.step(io)?;
            if !self.plan.pace.is_zero() {
                pause(self.plan.pace);
            }
        }
        Ok(())
    }
    fn start_lockers(&self) -> Result<Vec<Locker>> {
        if !self.plan.wants(FCNTL) {
            return Ok(Vec::new());
        }
        let dir = self.plan.dir.join(FCNTL);
        fs::create_dir_all(&dir)?;
        let mut io = Io::new(&self.recorder, FCNTL, None);
        let made = CounterCheck { dir: dir.clone() }.prepare(&mut io);
        made.map_err(|_| anyhow::anyhow!("preparing the fcntl counter failed"))?;
        (0..self.plan.lockers).map(|me| Locker::start(&self.plan, &dir, me)).collect()
    }
    fn end_lockers(&self, lockers: Vec<Locker>) -> Result<()> {
        if lockers.is_empty() {
            return Ok(());
        }
        let (mut sum, mut complete) = (0, true);
        for locker in lockers {
            let (report, mine) = locker.end(self.plan.hang)?;
            (sum, complete) = (sum + mine, complete && report.finished);
            self.recorder.edit(|r| {
                r.finished = true;
                r.merge(report);
            });
        }
        let dir = self.plan.dir.join(FCNTL);
        let mut io = Io::new(&self.recorder, FCNTL, None);
        let mut tree = self.shadow.lock().empty();
        let counter = CounterCheck { dir: dir.clone() };
        match counter.run(&mut io, &mut tree, sum) {
            Ok(()) if complete => self.shadow.lock().merge(tree),
            _ => self.shadow.lock().spoil(&dir),
        }
        Ok(())
    }
}

/// One process of the fcntl job.
pub fn locker(plan: &Plan, dir: &Path, me: u64, stop: &AtomicBool) -> Result<()> {
    let recorder = Recorder::new(plan.seed);
    watch(&recorder, plan.hang, plan.report());
    let mut mine = 0;
    {
        let mut io = Io::new(&recorder, &format!("{FCNTL}{me}"), plan.plant);
        let rng = Rng::new(plan.seed, 0xfc00 + me);
        let result: Step = (|| {
            let mut job = RangeLocks::open(&mut io, dir, me, rng)?;
            while !stop.load(Ordering::SeqCst) && plan.steps.is_none_or(|n| io.steps() < n) {
                io.next_step();
                let done = job.step(&mut io);
                mine = job.mine;
                done?;
            }
            job.close(&mut io)
        })();
        recorder.edit(|r| r.finished = result.is_ok());
    }
    let report = recorder.report();
    fs::write(plan.report(), serde_json::to_vec(&(report, mine))?)?;
    Ok(())
}

/// Ends the process with a report when a call does not come back: its threads cannot be waited for.
#[allow(clippy::disallowed_methods)] // looks at other threads' calls from time to time
fn watch(recorder: &Arc<Recorder>, limit: Duration, report: PathBuf) {
    let recorder = Arc::clone(recorder);
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(WATCH);
            let stuck = recorder.stuck(limit.as_nanos() as u64);
            if stuck.is_empty() {
                continue;
            }
            for call in &stuck {
                let path = Path::new(&call.path);
                recorder.problem(Kind::Hang, &call.job, call.step, call.call, path, format!("for {limit:?}"));
            }
            let text = serde_json::to_vec(&recorder.report()).unwrap_or_default();
            let _ = fs::write(&report, text); // the exit code says it too
            println!("hang");
            std::process::exit(EXIT_HANG);
        }
    });
}
