//! What the scenarios share: a cluster with a supervised mount, a workload on it, kills, and the judgement.

use anyhow::{Context, Result, ensure};
use fusefs_chaos_tests::{
    replay::{
        Rng,
        mounted::Mounted,
        nemesis::{self, Counters, Kill, Mount, Role, marks, quantile},
        proxy::Gate,
        record::Report,
        work::Plan,
        worker::{Worker, verify},
    },
    stack::{Stack, is_mounted},
};
use fusefs_local_cluster::Shape;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::Duration,
};

/// One of everything.
pub const ONE: Shape = Shape { masters: 1, metanodes: 1 };
/// Limit of a comparison of the whole tree.
const VERIFY: Duration = Duration::from_secs(120);
/// Volume of every scenario.
const VOLUME: &str = "work";

/// A running deployment. Mounts first: they end before the servers.
pub struct World {
    pub mount: Mounted,
    pub stack: Stack,
    /// In front of the store, if asked for.
    pub gate: Option<Gate>,
}

/// What to start.
#[derive(Default)]
pub struct Wish<'a> {
    pub shape: Option<Shape>,
    /// For the servers.
    pub servers: &'a [(&'a str, &'a str)],
    /// Of the mount command.
    pub options: &'a [&'a str],
    /// For the mount's processes.
    pub env: &'a [(&'a str, &'a str)],
    /// A gate in front of the store.
    pub gate: bool,
}

/// Which counters must not be zero.
#[derive(Clone, Copy)]
pub struct Expect {
    pub resent: bool,
    pub reserved: bool,
    pub repeated: bool,
    pub replayed: bool,
}

impl Expect {
    pub const RESEND: Expect = Expect { resent: true, reserved: false, repeated: true, replayed: true };
    pub const SLOTS: Expect = Expect { resent: false, reserved: true, repeated: true, replayed: true };
    /// Too few kills to insist on each.
    pub const NOTHING: Expect = Expect { resent: false, reserved: false, repeated: false, replayed: false };
}

impl World {
    pub fn start(wish: &Wish<'_>) -> Result<World> {
        let mut gate = None;
        let stack = Stack::start_behind(wish.shape.unwrap_or(ONE), wish.servers, |endpoint| {
            if !wish.gate {
                return Ok(endpoint.to_owned());
            }
            let started = Gate::start(endpoint.strip_prefix("http://").context("an http endpoint")?)?;
            let front = format!("http://{}", started.addr);
            gate = Some(started);
            Ok(front)
        })?;
        stack.fusefs(&["volume", "create", VOLUME])?;
        let options = [&["--no-protect", "--journal-mib", "64"], wish.options].concat();
        let mut mount = Mounted::new(&stack, VOLUME, "mnt", &options, wish.env)?;
        mount.start()?;
        Ok(World { mount, stack, gate })
    }
    /// A workload in a fresh directory of the mount.
    pub fn plan(&self, name: &str, seed: u64) -> Result<Plan> {
        let dir = self.mount.point.join(name);
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        Ok(Plan::new(&dir, &self.stack.tmp().join(format!("{name}.out")), seed))
    }
    /// The log of the mount, for a failure.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| format!("the mount's log ends with:\n{}", self.mount.log_tail()))
    }
    /// A workload with one kill: what its pauses were.
    pub fn control(&self, seed: u64) -> Result<String> {
        let plan = self.plan("control", seed)?;
        let worker = Worker::start(&plan)?;
        let mut rng = Rng::new(seed, 77);
        nemesis::pause(Duration::from_millis(1500));
        let kills = nemesis::at_random(&self.mount, &mut rng, 1, &[Role::Client], |_| Ok(()))?;
        nemesis::pause(Duration::from_millis(1000));
        let report = worker.stop()?;
        ensure!(report.bad() == 0, "control run: {}", report.problems_text());
        Ok(format!("{}, longest call {} ms", pauses(&report, &kills), report.longest_ms()))
    }
    /// Ends the workload, judges everything, mounts again, compares again.
    pub fn judge(
        &mut self,
        worker: Worker,
        plan: &Plan,
        kills: &[Kill],
        expect: Expect,
        control: Option<String>,
    ) -> Result<Report> {
        let report = worker.stop()?;
        let counters = self.mount.counters()?;
        summary(&report, &counters, kills, control.as_deref());
        let log = || format!("seed {}; the mount's log is {}", plan.seed, self.mount.log().display());
        if report.bad() > 0 {
            self.keep_log();
            println!("at the failure the mount is {}", if is_mounted(&self.mount.point) { "there" } else { "gone" });
        }
        ensure!(report.bad() == 0, "{}\n{}", log(), report.problems_text());
        ensure!(report.finished, "the final comparisons were not made");
        let need = |wanted: bool, n: u64, what: &str| -> Result<()> {
            ensure!(!wanted || n > 0, "{what}: 0; this run proves nothing");
            Ok(())
        };
        need(expect.resent, counters.resent, "requests sent again by the kernel")?;
        need(expect.reserved, counters.reserved, "requests served again from slots")?;
        need(expect.repeated, counters.repeated, "replies repeated by the cluster")?;
        need(expect.replayed, counters.replayed, "journal records replayed")?;
        self.mount.again().context("mounting again")?;
        self.compare(plan, &plan.dir)?;
        Ok(report)
    }
    /// The tree at `dir` must be what the workload told.
    pub fn compare(&self, plan: &Plan, dir: &Path) -> Result<()> {
        let wrong = verify(plan, dir, VERIFY)?;
        if !wrong.is_empty() {
            self.keep_log();
        }
        ensure!(wrong.is_empty(), "after mounting again, seed {}: {wrong:#?}", plan.seed);
        Ok(())
    }
    /// The scratch directory goes with the test, so a log that is needed is copied.
    fn keep_log(&self) {
        if let Some(dir) = std::env::var_os("FUSEFS_REPLAY_LOGS").map(PathBuf::from) {
            let _ = fs::create_dir_all(&dir); // only a help
            let _ = fs::copy(self.mount.log(), dir.join("mount.log"));
        }
    }
}

fn summary(report: &Report, c: &Counters, kills: &[Kill], control: Option<&str>) {
    let count = |role| kills.iter().filter(|k| k.role == role).count();
    println!(
        "seed {}: SIGKILLs: {} clients, {} keepers, {} supervisors; {} client processes served",
        report.seed,
        count(Role::Client),
        count(Role::Keeper),
        count(Role::Supervisor),
        c.clients
    );
    println!(
        "{} requests sent again by the kernel, {} served again from slots, {} replies repeated by the cluster, {} journal records replayed",
        c.resent, c.reserved, c.repeated, c.replayed
    );
    println!(
        "{} calls, {} errors, {} mismatches, {} hangs; steps {:?}",
        report.calls(),
        report.errors,
        report.mismatches,
        report.hangs,
        report.steps
    );
    println!(
        "{}; longest call {} ms{}",
        pauses(report, kills),
        report.longest_ms(),
        control.map_or_else(String::new, |c| format!("; control run with one kill: {c}"))
    );
}

/// How long nobody was answered, and how long the slowest call in flight at a kill went on.
fn pauses(report: &Report, kills: &[Kill]) -> String {
    let marks = marks(kills);
    let (silent, slow) = (report.silences_ms(&marks), report.pauses_ms(&marks));
    let show = |v: Vec<f64>| format!("median {:.0} ms, worst {:.0} ms", quantile(v.clone(), 0.5), quantile(v, 1.0));
    format!(
        "no answer to anybody after a kill: {} (target: median below 50); slowest call at a kill: {}",
        show(silent),
        show(slow)
    )
}

/// Starts a program that may block on the mount.
pub fn spawn(program: &str, args: &[&str]) -> Result<Child> {
    Command::new(program)
        .args(args)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .with_context(|| program.to_owned())
}

/// Waits for a child without ever blocking; None when it still runs after `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let mut left = limit.as_millis() / 5;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if left == 0 {
            return Ok(None);
        }
        left -= 1;
        nemesis::pause(Duration::from_millis(5));
    }
}

/// Waits until the child waits for the file system (or at least has stopped running for a while).
pub fn wait_blocked(child: &Child) -> Result<()> {
    let stat = format!("/proc/{}/stat", child.id());
    let mut quiet = 0;
    for _ in 0..2_000 {
        let text = fs::read_to_string(&stat).with_context(|| stat.clone())?;
        let state = text.rsplit(") ").next().and_then(|t| t.chars().next());
        quiet = if matches!(state, Some('S' | 'D')) { quiet + 1 } else { 0 };
        if quiet >= 40 {
            return Ok(());
        }
        nemesis::pause(Duration::from_millis(5));
    }
    anyhow::bail!("{} does not wait for anything", child.id())
}
