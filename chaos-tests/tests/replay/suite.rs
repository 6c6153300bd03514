//! The runner: like the standard one, but this executable is also the workload process.

mod controls;
mod fence;
mod kills;
mod oracle;
mod outages;
mod shared;
mod world;

use anyhow::Result;
use fusefs_chaos_tests::replay::{cli, now_ns};
use std::process::ExitCode;

type Test = (&'static str, fn() -> Result<()>);

/// Names are those of the functions.
macro_rules! tests {
    ($($module:ident :: $name:ident,)*) => { &[$((stringify!($name), $module::$name as fn() -> Result<()>),)*] };
}

const TESTS: &[Test] = tests! {
    oracle::the_workload_is_clean_on_a_local_disk,
    oracle::the_workload_is_clean_in_memory,
    oracle::every_planted_corruption_is_caught,
    oracle::every_change_of_the_tree_is_caught,
    oracle::the_workload_is_clean_on_a_quiet_mount,
    kills::a_hundred_kills_are_pauses_when_the_kernel_resends,
    kills::a_hundred_kills_are_pauses_with_request_slots,
    kills::every_step_of_a_resume_may_be_the_last,
    kills::every_step_of_a_resume_from_slots_may_be_the_last,
    kills::the_keeper_may_be_killed,
    kills::the_supervisor_may_be_killed,
    kills::keeper_and_client_may_be_killed_in_turn,
    kills::upgrades_under_load_are_pauses,
    kills::an_application_in_a_private_mount_namespace_notices_nothing,
    kills::nothing_is_left_of_killed_processes,
    shared::locks_between_two_mounts_survive_kills_of_both,
    outages::a_leader_and_the_client_may_die_together,
    outages::a_leader_and_the_client_may_die_together_with_request_slots,
    outages::ten_seconds_without_the_store_are_a_pause,
    outages::five_seconds_without_the_store_are_a_pause_with_request_slots,
    outages::past_the_close_timeout_each_close_fails_once_and_nothing_is_lost,
    outages::a_client_that_was_stopped_past_its_lease_goes_on,
    outages::blocked_applications_can_be_killed,
    outages::a_fenced_mount_answers_estale_and_unmounts,
    controls::without_dedupe_applications_see_errors,
    controls::without_resend_applications_hang,
    controls::without_trunc_seq_replay_brings_cut_bytes_back,
    fence::without_a_fence_an_old_commit_lands,
};

/// Seed of this run: `FUSEFS_REPLAY_SEED`, or a fixed one per test.
fn seed(default: u64) -> u64 {
    std::env::var("FUSEFS_REPLAY_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|w| cli::COMMANDS.contains(&w.as_str())) {
        return cli::main(&words).map_or_else(
            |e| {
                eprintln!("{e:#}");
                ExitCode::from(2)
            },
            |code| ExitCode::from(code as u8),
        );
    }
    if words.iter().any(|w| w == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<_> = words.iter().filter(|w| !w.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str()));
    let (mut failed, mut times) = (Vec::new(), Vec::new());
    for (name, test) in TESTS.iter().filter(|(name, _)| wanted(name)) {
        println!("\ntest {name}");
        let start = now_ns();
        // A panic in a helper is a failure of this test, not of the others.
        let result = std::panic::catch_unwind(test).unwrap_or_else(|_| Err(anyhow::anyhow!("a panic")));
        let seconds = (now_ns() - start) as f64 / 1e9;
        times.push((*name, seconds));
        match result {
            Ok(()) => println!("test {name} ... ok ({seconds:.1} s)"),
            Err(e) => {
                println!("test {name} ... FAILED ({seconds:.1} s)\n{e:#}\nreplay: kill_replay {name}");
                failed.push(*name);
            }
        }
    }
    println!();
    times.iter().for_each(|(name, seconds)| println!("{seconds:>8.1} s  {name}"));
    println!(
        "test result: {}. {} passed; {} failed",
        if failed.is_empty() { "ok" } else { "FAILED" },
        times.len() - failed.len(),
        failed.len()
    );
    failed.iter().for_each(|name| println!("    {name}"));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
