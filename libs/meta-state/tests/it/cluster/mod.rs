//! The multi-partition model: real partitions under lost, repeated and reordered messages, crashing leaders and clients,
//! compared with a single tree. A failure prints the minimal scripts and the seed: pass both to `run` to see it again.
//! `PROPTEST_CASES=100000` looks longer.

mod check;
mod harness;
mod model;
mod session;

use fusefs_meta_state::txn::Faults;
use harness::{Cluster, Step, Weather};
use proptest::{prelude::*, strategy::ValueTree as _};
use std::collections::{BTreeMap, VecDeque};

fn step() -> impl Strategy<Value = Step> {
    let (dir, name) = (0..8u8, 0..3u8);
    prop_oneof![
        6 => (dir.clone(), name.clone(), any::<bool>()).prop_map(|(dir, name, directory)| Step::Make { dir, name, directory }),
        3 => (0..8u8, dir.clone(), name.clone()).prop_map(|(file, dir, name)| Step::Link { file, dir, name }),
        4 => (dir.clone(), name.clone(), any::<bool>()).prop_map(|(dir, name, directory)| Step::Unlink { dir, name, directory }),
        7 => (dir.clone(), name.clone(), dir.clone(), name.clone(), prop::bool::weighted(0.2))
            .prop_map(|(dir, name, to, new, no_replace)| Step::Rename { dir, name, to, new, no_replace }),
        4 => (dir, name).prop_map(|(dir, name)| Step::Lookup { dir, name }),
        4 => (0..8u8).prop_map(|file| Step::Nlink { file }),
        1 => (0..8u8).prop_map(|file| Step::Open { file }),
        1 => (0..8u8).prop_map(|file| Step::Close { file }),
        2 => (0..8u8, 0..3u8).prop_map(|(file, block)| Step::Commit { file, block }),
        2 => prop::bool::ANY.prop_map(|die| if die { Step::Die } else { Step::Restart }),
    ]
}

/// Few inodes, one client that changes them, two that ask all the time: looks for answers that depend on a transaction
/// that is half done.
fn narrow_scripts() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let (file, dir, name) = (0..2u8, 0..3u8, 0..2u8);
    let change = prop_oneof![
        3 => (dir.clone(), name.clone(), prop::bool::weighted(0.6))
            .prop_map(|(dir, name, directory)| Step::Make { dir, name, directory }),
        5 => (file.clone(), dir.clone(), name.clone()).prop_map(|(file, dir, name)| Step::Link { file, dir, name }),
        4 => (dir.clone(), name.clone()).prop_map(|(dir, name)| Step::Unlink { dir, name, directory: false }),
        3 => (dir.clone(), name.clone(), dir.clone(), name.clone())
            .prop_map(|(dir, name, to, new)| Step::Rename { dir, name, to, new, no_replace: false }),
    ];
    let ask = || {
        prop_oneof![
            (dir.clone(), name.clone()).prop_map(|(dir, name)| Step::Lookup { dir, name }),
            file.clone().prop_map(|file| Step::Nlink { file }),
        ]
    };
    let list = |steps: BoxedStrategy<Step>, n: std::ops::Range<usize>| prop::collection::vec(steps, n);
    (list(change.boxed(), 10..25), list(ask().boxed(), 20..45), list(ask().boxed(), 20..45))
        .prop_map(|(a, b, c)| vec![a, b, c])
}

/// Directories moving below and over each other.
fn move_step() -> impl Strategy<Value = Step> {
    let (dir, name) = (0..6u8, 0..2u8);
    prop_oneof![
        4 => (dir.clone(), name.clone()).prop_map(|(dir, name)| Step::Make { dir, name, directory: true }),
        1 => (dir.clone(), name.clone()).prop_map(|(dir, name)| Step::Unlink { dir, name, directory: true }),
        9 => (dir.clone(), name.clone(), dir.clone(), name.clone())
            .prop_map(|(dir, name, to, new)| Step::Rename { dir, name, to, new, no_replace: false }),
        1 => (dir, name).prop_map(|(dir, name)| Step::Lookup { dir, name }),
    ]
}

fn move_scripts() -> impl Strategy<Value = Vec<Vec<Step>>> {
    prop::collection::vec(prop::collection::vec(move_step(), 6..22), 3)
}

fn scripts() -> impl Strategy<Value = Vec<Vec<Step>>> {
    prop::collection::vec(prop::collection::vec(step(), 6..22), 3)
}

const ROUGH: Weather = Weather { lose: 40, repeat: 60, crash: 20 };

/// Runs one case; Ok = what happened how often.
fn run(seed: u64, scripts: &[Vec<Step>], faults: Faults) -> Result<BTreeMap<String, u64>, String> {
    let scripts = scripts.iter().map(|s| s.iter().cloned().collect::<VecDeque<_>>()).collect();
    let mut c = Cluster::new(seed, ROUGH, faults, scripts);
    c.run()?;
    c.complete_history();
    let tree = c.tree()?;
    if !check::linearizable(&c.history, &tree) {
        let lines: Vec<String> = c.history.iter().map(|e| format!("{e:?}")).collect();
        return Err(format!("not linearizable:\n{}\nends in {tree:?}", lines.join("\n")));
    }
    c.fsck()?;
    c.replay_late()?;
    c.end_all()?;
    if c.tree()? != tree {
        return Err("ending the sessions changed the tree".into());
    }
    if c.inodes() != tree.0.len() as u64 {
        return Err(format!("{} inodes, {} in the tree", c.inodes(), tree.0.len()));
    }
    c.fsck()?;
    if faults == Faults::default() {
        c.replicas_agree()?;
    }
    Ok(c.counts)
}

fn config(cases: u32) -> ProptestConfig {
    // PROPTEST_CASES asks for more, never for fewer.
    let cases = cases.max(ProptestConfig::default().cases);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(2000))]
    #[test]
    fn partitions_behave_like_one_tree(seed in any::<u64>(), scripts in scripts()) {
        if let Err(e) = run(seed, &scripts, Faults::default()) {
            panic!("seed {seed:#x}: {e}");
        }
    }
}

proptest! {
    #![proptest_config(config(1000))]
    #[test]
    fn reads_are_linearizable(seed in any::<u64>(), scripts in narrow_scripts()) {
        if let Err(e) = run(seed, &scripts, Faults::default()) {
            panic!("seed {seed:#x}: {e}");
        }
    }
    #[test]
    fn directories_move_safely(seed in any::<u64>(), scripts in move_scripts()) {
        if let Err(e) = run(seed, &scripts, Faults::default()) {
            panic!("seed {seed:#x}: {e}");
        }
    }
}

/// The cases reach what they are meant to reach.
#[test]
fn the_weather_is_bad_enough() {
    let mut all: BTreeMap<String, u64> = BTreeMap::new();
    for (seed, scripts) in cases(500, scripts()) {
        for (what, n) in run(seed, &scripts, Faults::default()).unwrap_or_else(|e| panic!("seed {seed:#x}: {e}")) {
            *all.entry(what).or_default() += n;
        }
    }
    for (what, n) in &all {
        println!("{n:>8} {what}");
    }
    for what in [
        "transaction: Created",
        "transaction: Linked",
        "transaction: Unlinked",
        "transaction: Renamed",
        "transaction: Conflict",
        "session ended during its transaction",
        "end of session waits for a transaction",
        "request: TooOld",
        "transaction: NotEmpty",
        "Prepare: TooOld",
        "Execute: TooOld",
        "Abort: ok",
        "Commit: ok",
        "ancestry: cycle",
        "ancestry: free",
        "objects deleted",
        "orphans freed",
        "leader crash",
        "client killed",
    ] {
        assert!(all.get(what).is_some_and(|n| *n > 0), "{what} never happened");
    }
}

/// A fixed series of cases.
fn cases(n: u32, scripts: impl Strategy<Value = Vec<Vec<Step>>>) -> impl Iterator<Item = (u64, Vec<Vec<Step>>)> {
    let rng = proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha);
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(config(1), rng);
    (0..n).map(move |n| (u64::from(n) * 77 + 5, scripts.new_tree(&mut runner).unwrap().current()))
}

/// The harness finds a planted bug within a number of cases.
fn is_caught(faults: Faults, cases_max: u32) {
    is_caught_by(faults, cases_max, scripts());
}

fn is_caught_by(faults: Faults, cases_max: u32, scripts: impl Strategy<Value = Vec<Vec<Step>>>) {
    let found = cases(cases_max, scripts).enumerate().find_map(|(n, (seed, scripts))| {
        // A bug may also show as a panic of a check inside.
        let result = std::panic::catch_unwind(|| run(seed, &scripts, faults));
        let why = result.map_or_else(|_| Some("panic".into()), |r| r.err())?;
        Some((n, why))
    });
    if let Some((n, why)) = &found {
        println!("{faults:?}: case {n}: {}", why.lines().next().unwrap_or_default());
    }
    assert!(found.is_some(), "{faults:?} was not noticed in {cases_max} cases");
}

#[test]
fn dedupe_off_is_caught() {
    is_caught(Faults { no_dedupe: true, ..Faults::default() }, 200);
}

#[test]
fn ignored_floor_is_caught() {
    is_caught(Faults { ignore_floor: true, ..Faults::default() }, 400);
}

#[test]
fn trusting_prepare_is_caught() {
    is_caught(Faults { no_locks: true, ..Faults::default() }, 400);
}

#[test]
fn reading_undecided_state_is_caught() {
    is_caught_by(Faults { no_block: true, ..Faults::default() }, 3000, narrow_scripts());
}

#[test]
fn unchecked_directory_moves_are_caught() {
    is_caught(Faults { no_ancestry: true, ..Faults::default() }, 400);
}
