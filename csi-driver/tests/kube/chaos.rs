//! Whatever the network does: in the end there is one running pod per publication and no other, and on the way no pod was
//! made twice at once or removed while it was needed. `FUSEFS_KUBE_SEED=N` replays one, `FUSEFS_KUBE_SEEDS=N` runs more.

use crate::{
    double::{Double, Fault, pause},
    masters::pod_of,
    reconcile::{RHYTHM, Rig, crash, run},
    watches::until,
};
use fusefs_csi_driver::kube::FusePods;
use futures::StreamExt;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::Ordering},
};

/// Small and seeded.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

const STEPS: u64 = 80;
const VOLUMES: u64 = 5;
const NODES: [&str; 2] = ["node-a", "node-b"];

/// Seeds that run at once: they mostly wait.
const AT_ONCE: usize = 6;

type Counts = Arc<Mutex<BTreeMap<&'static str, u64>>>;

fn weather(seed: u64, percent: u64, counts: Counts) -> impl FnMut(&hyper::Method, &str, bool) -> Fault + Send {
    let mut dice = Dice(seed ^ 0xfau64);
    move |_, _, watching| {
        if dice.roll(100) >= percent {
            return Fault::None;
        }
        let (name, fault) = match dice.roll(8) {
            0 => ("error", Fault::Error),
            1 => ("cut", Fault::Cut),
            2 => ("lost answer", Fault::Lost),
            3 => ("slow", Fault::Slow(dice.roll(600))),
            4 => ("slow answer", Fault::SlowAnswer(dice.roll(600))),
            5 => ("conflict", Fault::Conflict),
            6 if watching => ("gone", Fault::Gone),
            _ => ("lost answer", Fault::Lost),
        };
        *counts.lock().expect("counts").entry(name).or_default() += 1;
        fault
    }
}

/// Kubelets: pods start, some crash, deleted ones go.
async fn kubelets(double: Arc<Double>, seed: u64) {
    let mut dice = Dice(seed ^ 0x6b);
    let mut changes = double.changes();
    loop {
        for (name, pod) in double.all("pods") {
            if pod["metadata"]["deletionTimestamp"].is_string() {
                double.delete_if("pods", &name, pod["metadata"]["uid"].as_str().expect("a uid"));
            } else if pod["status"]["phase"] == "Pending" {
                run(&double, &name);
            }
        }
        pause(dice.roll(4)).await;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn step(rig: &Rig, controllers: &[FusePods], dice: &mut Dice) {
    let node = NODES[usize::from(dice.roll(2) == 1)];
    let volume = 1 + dice.roll(VOLUMES);
    let controller = &controllers[usize::try_from(dice.roll(controllers.len() as u64)).expect("small")];
    let name = pod_of(node, volume);
    let exists = rig.served.all("pods").contains_key(&name);
    match dice.roll(16) {
        0..=4 => rig.publish(controller, node, volume),
        5..=7 => rig.unpublish(controller, node, volume),
        8 if exists => rig.served.delete_if_there("pods", &name, true),
        9 if exists => rig.served.delete_if_there("pods", &name, false),
        10 if exists => crash(&rig.served, &name),
        11 if exists => {
            rig.served
                .change("pods", &name, |p| p["status"] = serde_json::json!({ "phase": "Failed", "reason": "Evicted" }));
        }
        12 => rig.served.compact(),
        13 => rig.served.cut_watches(),
        14 => rig.truth.down.store(dice.roll(2) == 0, Ordering::SeqCst),
        _ => rig.truth.nameless.store(dice.roll(3) == 0, Ordering::SeqCst),
    }
    pause(dice.roll(25)).await;
}

async fn one(seed: u64, counts: &Counts) {
    let mut dice = Dice(seed);
    let rig = Rig::new().await;
    let nodes = tokio::spawn(kubelets(rig.served.double.clone(), seed));
    let percent = [0, 10, 30, 60][usize::try_from(dice.roll(4)).expect("small")];
    rig.served.faults(weather(seed, percent, counts.clone()));
    let mut controllers: Vec<_> = (0..=dice.roll(2)).map(|_| rig.reconciler("image:1", RHYTHM)).collect();
    for _ in 0..STEPS {
        step(&rig, &controllers, &mut dice).await;
        if dice.roll(40) == 0 {
            // A controller is killed and comes back.
            controllers.pop();
            controllers.push(rig.reconciler("image:1", RHYTHM));
        }
    }
    rig.served.heal();
    rig.truth.down.store(false, Ordering::SeqCst);
    rig.truth.nameless.store(false, Ordering::SeqCst);
    let running =
        || rig.served.all("pods").values().all(|p| !p["status"]["containerStatuses"][0]["state"]["running"].is_null());
    let mut calm = 0;
    until(&rig.served, &format!("seed {seed}: pods as published"), || {
        // Late requests are over, too.
        calm = if rig.same() && running() { calm + 1 } else { 0 };
        calm > 80
    })
    .await;
    rig.crimes.none(&format!("seed {seed}"));
    nodes.abort();
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

#[tokio::test]
async fn pods_are_as_published_whatever_happens() {
    let counts = Counts::default();
    let seeds = match number("FUSEFS_KUBE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + number("FUSEFS_KUBE_SEEDS").unwrap_or(24),
    };
    let many = seeds.end - seeds.start > 10;
    let runs = futures::stream::iter(seeds).map(|seed| one(seed, &counts)).buffer_unordered(AT_ONCE);
    runs.collect::<Vec<()>>().await;
    let counts = counts.lock().expect("counts");
    println!("faults: {counts:?}");
    for kind in ["error", "cut", "lost answer", "slow", "slow answer", "conflict", "gone"] {
        assert!(!many || counts.contains_key(kind), "no fault of the kind {kind}");
    }
}
