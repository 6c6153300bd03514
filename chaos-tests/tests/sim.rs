//! The seeded cluster simulation (see `fusefs_chaos_tests::sim`). Replay: `FUSEFS_SIM_SEED=n cargo test -p
//! fusefs-chaos-tests --test sim`; more seeds: `FUSEFS_SIM_SEEDS=2000`; what happened inside: `RUST_LOG=debug`.

use fusefs_chaos_tests::sim::{FAULTS, Plan, Planted, counts::Counts, run};
use fusefs_meta_state::txn::Faults;
use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

fn trace() {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).without_time().try_init();
    }
}

/// Runs seeds on two threads, one runtime each; stops at the first failure.
fn seeds(first: u64, count: u64, plan: impl Fn(u64) -> Plan + Sync) -> (Counts, Option<(u64, String)>) {
    let (next, all, failed) = (AtomicU64::new(first), Counts::default(), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || failed.lock().unwrap().is_some() {
                        return;
                    }
                    // A planted bug may also trip a check inside.
                    let one = std::panic::AssertUnwindSafe(|| run(plan(seed)));
                    match std::panic::catch_unwind(one).unwrap_or_else(|_| Err("a panic".into())) {
                        Ok(outcome) => all.merge(&outcome.counts),
                        Err(why) => {
                            let mut failed = failed.lock().unwrap();
                            if failed.as_ref().is_none_or(|(s, _)| *s > seed) {
                                *failed = Some((seed, why));
                            }
                        }
                    }
                }
            });
        }
    });
    (all, failed.into_inner().unwrap())
}

#[test]
fn sim_two_hundred_seeds_are_linearizable_and_clean() {
    trace();
    let one = number("FUSEFS_SIM_SEED");
    let (first, count) = one.map_or((1, number("FUSEFS_SIM_SEEDS").unwrap_or(200)), |seed| (seed, 1));
    let (counts, failed) = seeds(first, count, Plan::new);
    if let Some((seed, why)) = failed {
        panic!("seed {seed}: {why}\nreplay: FUSEFS_SIM_SEED={seed} cargo test -p fusefs-chaos-tests --test sim");
    }
    println!("{count} seeds\n{counts}");
    if one.is_some() || count < 50 {
        return;
    }
    for fault in FAULTS {
        assert!(counts.get(fault) > 0, "in {count} seeds the fault {fault:?} never happened");
    }
    for needed in ["checkpoints", "dedupe hits", "transactions", "restarts", "retries", "questions"] {
        assert!(counts.get(needed) > 0, "in {count} seeds there were no {needed}");
    }
    assert!(counts.get("histories too hard to judge") * 20 <= count, "the search gives up too often");
}

/// One seed is one history, whatever else the machine does.
#[test]
fn sim_a_seed_replays() {
    for seed in [7, 8, 9] {
        let runs = [(); 3].map(|()| run(Plan::new(seed)).unwrap().trace);
        assert_eq!([runs[0]; 3], runs, "seed {seed} has several histories");
    }
}

/// The oracles see a planted bug within some seeds.
fn is_caught(what: &str, within: u64, planted: Planted) {
    // Its seeds are its own: replay with the same planted bug.
    let (_, failed) = seeds(1_000, within, |seed| Plan { planted, ..Plan::new(seed) });
    let (seed, why) = failed.unwrap_or_else(|| panic!("{what}: not noticed within {within} seeds"));
    println!("{what}: caught by seed {seed}: {}", why.lines().next().unwrap_or_default());
}

#[test]
fn sim_dedupe_off_is_caught() {
    is_caught(
        "dedupe off",
        40,
        Planted { state: Faults { no_dedupe: true, ..Faults::default() }, ..Planted::default() },
    );
}

#[test]
fn sim_trusted_prepare_is_caught() {
    let state = Faults { no_locks: true, ..Faults::default() };
    is_caught("apply trusts prepare", 200, Planted { state, ..Planted::default() });
}

#[test]
fn sim_resumed_leader_is_caught() {
    let mut planted = Planted::default();
    planted.raft.resume_leader = true;
    is_caught("a restarted leader resumes", 200, planted);
}

#[test]
fn sim_acknowledging_before_the_sync_is_caught() {
    let mut planted = Planted::default();
    planted.raft.ack_before_sync = true;
    is_caught("acknowledged before the sync", 200, planted);
}
