//! A whole cluster in one thread under virtual time: real metanodes on simulated disks and networks, real metadata
//! clients, scripted masters. One seed decides everything: delays, losses, kills, and what the clients do.
//!
//! [`run`] plays one seed and judges it: the directory operations must be linearizable (`check` searches an order that
//! `model` accepts), every operation has one answer however often it was sent, whoever owns a name knows every outcome,
//! and after healing the volume is clean, at rest, equal on all replicas, and makes progress.

pub mod check;
pub mod counts;
mod env;
mod judge;
mod master;
pub mod model;
mod nemesis;
mod net;
mod work;
mod world;

use counts::Counts;
pub use fusefs_metanode::Planted;
pub use nemesis::FAULTS;
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How much one seed does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Seed.
    pub seed: u64,
    /// Mounts.
    pub clients: usize,
    /// Operations per mount.
    pub operations: u64,
    /// Faults at most.
    pub faults: u64,
    /// Bugs planted on purpose.
    pub planted: Planted,
}

impl Plan {
    /// The everyday size.
    pub fn new(seed: u64) -> Plan {
        Plan { seed, clients: 4, operations: 25, faults: 8, planted: Planted::default() }
    }
}

/// Longest virtual time of a seed.
const LIMIT: Duration = Duration::from_secs(900);

/// What a seed showed.
#[derive(Default)]
pub struct Outcome {
    /// What happened how often.
    pub counts: Counts,
    /// Hash of everything that the clients did and heard: a seed has one.
    pub trace: u64,
}

/// Plays one seed.
///
/// # Errors
/// What was wrong.
pub fn run(plan: Plan) -> Result<Outcome, String> {
    watch_panics();
    PANIC.take();
    let outcome = run_alone(plan);
    // A panic in a task of the runtime is swallowed there, and is a finding all the same.
    match (outcome, PANIC.take()) {
        (Ok(_), Some(panic)) => Err(format!("a task panicked: {panic}")),
        (outcome, _) => outcome,
    }
}

thread_local! {
    /// First panic of this thread since the seed began.
    static PANIC: std::cell::Cell<Option<String>> = const { std::cell::Cell::new(None) };
}

fn watch_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let first = PANIC.take().unwrap_or_else(|| info.to_string());
            PANIC.set(Some(first));
            before(info);
        }));
    });
}

fn run_alone(plan: Plan) -> Result<Outcome, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .map_err(|e| e.to_string())?;
    runtime.block_on(async {
        match tokio::time::timeout(LIMIT, play(plan)).await {
            Ok(result) => result,
            Err(_) => Err("the run does not end".into()),
        }
    })
}

async fn play(plan: Plan) -> Result<Outcome, String> {
    let world = world::World::new(plan.seed, plan.planted).await?;
    let result = judge::history(&world, plan).await;
    world.end();
    let outcome = Outcome { trace: result?, ..Outcome::default() };
    outcome.counts.merge(&world.net.counts);
    Ok(outcome)
}

/// Locks; a panic elsewhere is reported there.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
