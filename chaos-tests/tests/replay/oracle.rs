//! The workload by itself: clean where everything is right, and never clean where something is wrong.

use super::seed;
use anyhow::{Context, Result, ensure};
use fusefs_chaos_tests::{
    replay::{
        plant::{PLANTS, Plant},
        record::Report,
        work::Plan,
        worker::{Worker, verify},
    },
    stack::{Stack, scratch},
};
use fusefs_local_cluster::Shape;
use std::{fs, path::Path, time::Duration};

/// Limit of a comparison of the whole tree.
const VERIFY: Duration = Duration::from_secs(60);

fn plan(base: &Path, seed: u64) -> Result<Plan> {
    let dir = base.join("work");
    fs::create_dir_all(&dir)?;
    Ok(Plan::new(&dir, &base.join("out"), seed))
}

fn show(report: &Report) {
    println!("{} calls, longest {} ms, steps {:?}", report.calls(), report.longest_ms(), report.steps);
}

fn clean(report: &Report) -> Result<()> {
    show(report);
    ensure!(report.bad() == 0, "seed {}:\n{}", report.seed, report.problems_text());
    ensure!(report.finished, "the final comparisons were not made");
    Ok(())
}

fn clean_at(base: &Path, steps: u64) -> Result<()> {
    let mut plan = plan(base, seed(1))?;
    plan.steps = Some(steps);
    println!("seed {}", plan.seed);
    clean(&Worker::start(&plan)?.join()?)?;
    let wrong = verify(&plan, &plan.dir, VERIFY)?;
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

pub fn the_workload_is_clean_on_a_local_disk() -> Result<()> {
    clean_at(scratch()?.path(), 150)
}

pub fn the_workload_is_clean_in_memory() -> Result<()> {
    let base = tempfile::Builder::new().prefix("fusefs-test-").tempdir_in("/dev/shm")?;
    clean_at(base.path(), 150)
}

/// Steps that give each corruption several chances.
fn steps(plant: Plant) -> u64 {
    match plant.job() {
        "flock" | "fcntl" => 400,
        "direct" => 30,
        _ => 100,
    }
}

pub fn every_planted_corruption_is_caught() -> Result<()> {
    let base = scratch()?;
    for plant in PLANTS {
        let own = base.path().join(plant.name());
        fs::create_dir(&own)?;
        let mut plan = plan(&own, seed(2))?;
        (plan.plant, plan.steps, plan.only) = (Some(*plant), Some(steps(*plant)), vec![plant.job().into()]);
        let report = Worker::start(&plan)?.join()?;
        let first = report.problems.first();
        ensure!(report.bad() > 0, "{} was not caught in {:?}", plant.name(), report.steps);
        if let Some(p) = first {
            println!(
                "{:<20} {:>3} problems; first in step {} of {}: {} {}",
                plant.name(),
                report.bad(),
                p.step,
                p.job,
                p.call,
                p.detail
            );
        }
    }
    println!("{} corruptions caught", PLANTS.len());
    Ok(())
}

/// What the comparison after a remount must see.
pub fn every_change_of_the_tree_is_caught() -> Result<()> {
    use std::os::unix::fs::FileExt;
    let base = scratch()?;
    let mut plan = plan(base.path(), seed(3))?;
    plan.steps = Some(40);
    clean(&Worker::start(&plan)?.join()?)?;
    ensure!(verify(&plan, &plan.dir, VERIFY)?.is_empty());
    let file = fs::read_dir(plan.dir.join("times0/g0"))?.next().context("a file")??.path();
    let (bytes, mtime) = (fs::read(&file)?, fs::metadata(&file)?.modified()?);
    let restore = || -> Result<()> {
        fs::write(&file, &bytes)?;
        Ok(fs::File::options().write(true).open(&file)?.set_modified(mtime)?)
    };
    let check = |what: &str| -> Result<()> {
        let wrong = verify(&plan, &plan.dir, VERIFY)?;
        println!("{what}: {wrong:?}");
        ensure!(wrong.len() == 1, "{what} gave {wrong:?}");
        Ok(())
    };
    let open = fs::File::options().write(true).open(&file)?;
    open.write_all_at(&[bytes[0] ^ 1], 0)?;
    open.set_modified(mtime)?;
    check("a flipped byte")?;
    open.set_len(bytes.len() as u64 + 1)?;
    open.write_all_at(&bytes, 0)?;
    open.set_modified(mtime)?;
    check("a byte more")?;
    restore()?;
    open.set_modified(mtime + Duration::from_nanos(1))?;
    check("another mtime")?;
    restore()?;
    fs::write(plan.dir.join("times0/g0/new"), b"")?;
    check("a new file")?;
    fs::remove_file(plan.dir.join("times0/g0/new"))?;
    fs::rename(&file, base.path().join("away"))?;
    check("a missing file")?;
    fs::rename(base.path().join("away"), &file)?;
    ensure!(verify(&plan, &plan.dir, VERIFY)?.is_empty());
    Ok(())
}

pub fn the_workload_is_clean_on_a_quiet_mount() -> Result<()> {
    let mut stack = Stack::start(Shape { masters: 1, metanodes: 1 })?;
    stack.fusefs(&["volume", "create", "work"])?;
    let client = stack.mount("work", &[])?;
    let base = scratch()?;
    let mut plan = plan(base.path(), seed(4))?;
    plan.dir = stack.at(client).join("work");
    fs::create_dir(&plan.dir)?;
    plan.steps = Some(60);
    println!("seed {}", plan.seed);
    let report = Worker::start(&plan)?.join()?;
    println!("{}", report.latency_text());
    clean(&report)?;
    stack.clients[client].stop()?;
    stack.clients[client].start()?;
    let wrong = verify(&plan, &plan.dir, VERIFY)?;
    ensure!(wrong.is_empty(), "after mounting again: {wrong:#?}");
    Ok(())
}
