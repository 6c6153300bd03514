//! The seeded cluster simulation (see `fusefs_chaos_tests::sim`). Replay: `FUSEFS_SIM_SEED=n cargo test -p
//! fusefs-chaos-tests --test sim`; more seeds: `FUSEFS_SIM_SEEDS=2000`.

use fusefs_chaos_tests::sim::{Plan, counts::Counts, run};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

#[test]
fn sim_two_hundred_seeds_are_linearizable_and_clean() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).without_time().try_init();
    let seeds = match number("FUSEFS_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + number("FUSEFS_SIM_SEEDS").unwrap_or(200),
    };
    let all = Counts::default();
    for seed in seeds {
        match run(Plan::new(seed)) {
            Ok(counts) => all.merge(&counts),
            Err(why) => panic!(
                "seed {seed}: {why}\nreplay: FUSEFS_SIM_SEED={seed} cargo test -p fusefs-chaos-tests --test sim"
            ),
        }
    }
    println!("{all}");
}
