//! The runner: like the standard one, but this executable is also the pods' process.

mod fence;
mod handed;
mod kills;
mod loss;
mod steps;

use anyhow::Result;
use fusefs_chaos_tests::{
    csi::process::{Rig, Runtime},
    replay::{cli, now_ns},
};
use std::process::ExitCode;

type Test = (&'static str, fn() -> Result<()>);

/// Names are those of the functions.
macro_rules! tests {
    ($($module:ident :: $name:ident,)*) => { &[$((stringify!($name), $module::$name as fn() -> Result<()>),)*] };
}

const TESTS: &[Test] = tests! {
    kills::pods_notice_nothing_while_everything_is_killed,
    kills::handed_over_pods_notice_nothing_while_everything_is_killed,
    loss::total_loss_converges,
    loss::handed_over_total_loss_converges,
    handed::handed_over_journals_are_replayed_or_parked,
    handed::a_host_that_dies_before_it_serves_leaves_no_mount,
    steps::every_step_of_every_call_may_be_the_last,
    fence::access_modes_hold_between_nodes,
    fence::a_detached_node_that_comes_back_cannot_write,
};

/// Seed of this run: `FUSEFS_CSI_SEED`, or a fixed one per test.
fn seed(default: u64) -> u64 {
    std::env::var("FUSEFS_CSI_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Runs a scenario on a rig whose nodes mount by themselves.
fn on(nodes: usize, scenario: impl FnOnce(&Rig) -> Result<()>) -> Result<()> {
    on_runtime(Runtime::Process, nodes, scenario)
}

/// Runs a scenario on a rig; after a failure the logs are kept.
fn on_runtime(runtime: Runtime, nodes: usize, scenario: impl FnOnce(&Rig) -> Result<()>) -> Result<()> {
    let rig = Rig::start(nodes, runtime)?;
    let result = scenario(&rig);
    if result.is_err() {
        rig.keep_logs();
        for daemon in rig.daemons() {
            println!("the log of {} ends with:\n{}", daemon.name, daemon.log_tail());
        }
    }
    result
}

fn seconds(since: u64) -> f64 {
    (now_ns() - since) as f64 / 1e9
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
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: mount namespaces need root");
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
        let took = seconds(start);
        times.push((*name, took));
        match result {
            Ok(()) => println!("test {name} ... ok ({took:.1} s)"),
            Err(e) => {
                println!("test {name} ... FAILED ({took:.1} s)\n{e:#}");
                println!("replay: cargo test -p fusefs-chaos-tests --test csi_chaos {name}");
                failed.push(*name);
            }
        }
    }
    println!();
    times.iter().for_each(|(name, seconds)| println!("{seconds:>8.1} s  {name}"));
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("test result: {word}. {} passed; {} failed", times.len() - failed.len(), failed.len());
    failed.iter().for_each(|name| println!("    {name}"));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
