//! Each protection is switched off in turn; the tests must notice. A control that finds nothing fails.

use super::{
    seed,
    world::{Wish, World},
};
use anyhow::{Result, ensure};
use fusefs_chaos_tests::replay::{
    Rng,
    nemesis::{self, Mount, Role},
    record::Report,
    worker::Worker,
};
use std::time::Duration;

/// Kills under load with a planted bug: what the workload saw.
fn with_bug(wish: &Wish<'_>, seed: u64, kills: u64, only: &[&str], hang: Duration) -> Result<Report> {
    println!("seed {seed}");
    let world = World::start(wish)?;
    let mut plan = world.plan("work", seed)?;
    plan.hang = hang;
    plan.only = only.iter().map(|s| (*s).to_owned()).collect();
    let worker = Worker::start(&plan)?;
    let mut rng = Rng::new(seed, 80);
    let killed = nemesis::at_random(&world.mount, &mut rng, kills, &[Role::Client], |_| Ok(()))?;
    let report = worker.stop()?;
    let c = world.mount.counters()?;
    println!(
        "{} kills, {} resent: {} errors, {} mismatches, {} hangs",
        killed.len(),
        c.resent,
        report.errors,
        report.mismatches,
        report.hangs
    );
    report.problems.iter().take(3).for_each(|p| println!("  {} {}: {}", p.call, p.path, p.detail));
    Ok(report)
}

/// Operations that were executed, but not answered, are executed again: EEXIST, ENOENT.
pub fn without_dedupe_applications_see_errors() -> Result<()> {
    let wish = Wish { servers: &[("FUSEFS_PLANT", "no-dedupe")], ..Wish::default() };
    let report = with_bug(&wish, seed(301), 30, &["create", "dirs", "links"], Duration::from_secs(60))?;
    ensure!(report.errors > 0, "executing requests twice was not noticed");
    Ok(())
}

/// What a dead client had read is never answered.
pub fn without_resend_applications_hang() -> Result<()> {
    let wish = Wish { env: &[("FUSEFS_PLANT", "no-resend")], ..Wish::default() };
    let report = with_bug(&wish, seed(302), 4, &[], Duration::from_secs(5))?;
    ensure!(report.hangs > 0, "requests that nobody answers were not noticed");
    Ok(())
}
