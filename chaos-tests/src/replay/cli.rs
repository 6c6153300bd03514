//! Command line of the processes that a workload consists of: `work`, `locker`, `verify`. The test executable runs itself
//! with it, and so can a person: `kill_replay work --dir /mnt/x --out /tmp/out --seed 1 --steps 1000`.

use super::{
    plant::Plant,
    shadow::Shadow,
    work::{self, Plan},
};
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeMap,
    io::BufRead,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// First arguments that mean a workload process.
pub const COMMANDS: &[&str] = &["work", "locker", "verify"];

struct Args(BTreeMap<String, String>);

impl Args {
    fn parse(words: &[String]) -> Result<Args> {
        let mut out = BTreeMap::new();
        for pair in words.chunks(2) {
            match pair {
                [key, value] if key.starts_with("--") => out.insert(key[2..].to_owned(), value.clone()),
                _ => bail!("{pair:?}: options are --KEY VALUE"),
            };
        }
        Ok(Args(out))
    }
    fn text(&self, key: &str) -> Result<&str> {
        self.0.get(key).map(String::as_str).with_context(|| format!("--{key} is missing"))
    }
    fn number(&self, key: &str) -> Result<Option<u64>> {
        self.0.get(key).map(|v| v.parse().with_context(|| format!("--{key} {v}"))).transpose()
    }
    fn plan(&self) -> Result<Plan> {
        let (dir, out) = (PathBuf::from(self.text("dir")?), PathBuf::from(self.text("out")?));
        let mut plan = Plan::new(&dir, &out, self.number("seed")?.context("--seed is missing")?);
        plan.steps = self.number("steps")?;
        plan.lockers = self.number("lockers")?.unwrap_or(plan.lockers);
        plan.pace = self.number("pace-ms")?.map_or(plan.pace, Duration::from_millis);
        plan.hang = self.number("hang-ms")?.map_or(plan.hang, Duration::from_millis);
        if let Some(only) = self.0.get("only") {
            plan.only = only.split(',').map(str::to_owned).collect();
        }
        plan.plant = self.0.get("plant").map(|p| p.parse::<Plant>()).transpose().map_err(anyhow::Error::msg)?;
        Ok(plan)
    }
}

/// Words that give the same plan again.
pub fn words(plan: &Plan) -> Vec<String> {
    let mut out = vec![
        "--dir".into(),
        plan.dir.display().to_string(),
        "--out".into(),
        plan.out.display().to_string(),
        "--seed".into(),
        plan.seed.to_string(),
        "--lockers".into(),
        plan.lockers.to_string(),
        "--hang-ms".into(),
        plan.hang.as_millis().to_string(),
    ];
    if !plan.pace.is_zero() {
        out.extend(["--pace-ms".into(), plan.pace.as_millis().to_string()]);
    }
    if let Some(steps) = plan.steps {
        out.extend(["--steps".into(), steps.to_string()]);
    }
    if !plan.only.is_empty() {
        out.extend(["--only".into(), plan.only.join(",")]);
    }
    if let Some(plant) = plan.plant {
        out.extend(["--plant".into(), plant.name().into()]);
    }
    out
}

/// Stops when standard input says so or ends: no workload outlives the test.
fn stop_with_input() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = std::io::stdin().lock().read_line(&mut line); // an error means the same
        flag.store(true, Ordering::SeqCst);
    });
    stop
}

/// Runs one command; the exit code.
pub fn main(words: &[String]) -> Result<i32> {
    let (command, rest) = words.split_first().context("no command")?;
    let args = Args::parse(rest)?;
    match command.as_str() {
        "work" => {
            let stop = if args.0.contains_key("steps") { Arc::default() } else { stop_with_input() };
            let report = work::run(args.plan()?, stop, || println!("ready"))?;
            println!("done");
            if args.0.contains_key("print") {
                println!("{}\n{}", report.latency_text(), report.problems_text());
            }
            Ok(i32::from(report.bad() > 0))
        }
        "locker" => {
            let (plan, me) = (args.plan()?, args.number("me")?.context("--me is missing")?);
            let dir = plan.dir.clone();
            let stop = if plan.steps.is_some() { Arc::default() } else { stop_with_input() };
            work::locker(&plan, &dir, me, &stop)?;
            Ok(0)
        }
        "verify" => {
            let shadow = Shadow::load(&PathBuf::from(args.text("shadow")?))?;
            let wrong = shadow.differences(&PathBuf::from(args.text("dir")?))?;
            wrong.iter().for_each(|w| println!("{w}"));
            println!("done");
            Ok(i32::from(!wrong.is_empty()))
        }
        other => bail!("unknown command {other}"),
    }
}
