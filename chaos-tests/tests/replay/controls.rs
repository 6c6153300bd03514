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

/// Hang limit of a control that is not about hangs.
const LONG: Duration = Duration::from_secs(60);

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
    if hang < LONG {
        nemesis::pause(hang + Duration::from_secs(1));
    }
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
    let report = with_bug(&wish, seed(301), 30, &["create", "dirs", "links"], LONG)?;
    ensure!(report.errors > 0, "executing requests twice was not noticed");
    Ok(())
}

/// What a dead client had read is never answered. With RESEND the same kill is no hang.
pub fn without_resend_applications_hang() -> Result<()> {
    // No locks: waiting for them is not hanging.
    const JOBS: &[&str] = &["create", "dirs", "random", "truncate", "times", "direct"];
    const DEADLINE: Duration = Duration::from_secs(5);
    for (env, hangs) in [(&[][..], false), (&[("FUSEFS_PLANT", "no-resend")][..], true)] {
        let report = with_bug(&Wish { env, ..Wish::default() }, seed(302), 2, JOBS, DEADLINE)?;
        ensure!(hangs || report.bad() == 0, "with RESEND: {}", report.problems_text());
        ensure!(!hangs || report.hangs > 0, "requests that nobody answers were not noticed");
    }
    Ok(())
}

/// The journal brings writes back that a truncation had cut off.
pub fn without_trunc_seq_replay_brings_cut_bytes_back() -> Result<()> {
    let wish = Wish { env: &[("FUSEFS_PLANT", "replay_ignores_trunc_seq")], ..Wish::default() };
    let report = with_bug(&wish, seed(303), 60, &["truncate"], LONG)?;
    ensure!(report.mismatches > 0, "bytes that came back were not noticed");
    Ok(())
}
