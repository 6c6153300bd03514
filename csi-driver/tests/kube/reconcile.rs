//! The reconciler and each single thing that can happen.

use crate::{
    double::{Double, Fault, Served},
    masters::{Crimes, Guarded, Truth, pod_of, volume_name},
    watches::{PACE, until, until_within},
};
use fusefs_csi_driver::{
    Masters,
    controller::PodMaker,
    kube::{FusePods, KubePods, PodSettings, reconcile::Rhythm},
};
use serde_json::json;
use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// Fast.
pub const RHYTHM: Rhythm = Rhythm {
    look: Duration::from_millis(100),
    again: Duration::from_millis(20),
    settle: Duration::from_millis(200),
    pace: PACE,
    replace: (Duration::from_millis(20), Duration::from_millis(80), Duration::from_secs(1)),
};

/// A reconciler, what it sees, and what it must not do.
pub struct Rig {
    /// API server.
    pub served: Served,
    /// Masters.
    pub truth: Arc<Truth>,
    /// What went wrong.
    pub crimes: Arc<Crimes>,
}

impl Rig {
    /// Nothing there yet.
    pub async fn new() -> Rig {
        Rig { served: Double::start().await, truth: Arc::default(), crimes: Arc::default() }
    }

    /// A reconciler.
    pub fn reconciler(&self, image: &str, rhythm: Rhythm) -> FusePods {
        let pods = KubePods::new(self.served.client(), "fuse").patience(Duration::from_millis(300));
        let eyes = self.truth.eyes();
        let double = self.served.double.clone();
        let broken = move |uid: &str| double.was_broken(uid);
        let guarded = Guarded::new(pods, eyes.clone(), self.crimes.clone(), broken);
        FusePods::start(Masters::new(eyes), Arc::new(guarded), PodSettings::new("fuse", image), rhythm)
    }

    /// As the controller does it.
    pub fn publish(&self, pods: &FusePods, node: &str, volume: u64) {
        let claim = pods.claim(&volume_name(volume), node);
        self.truth.publish(node, volume);
        drop(claim);
    }

    /// As the controller does it.
    pub fn unpublish(&self, pods: &FusePods, node: &str, volume: u64) {
        self.truth.unpublish(node, volume);
        pods.changed();
    }

    /// Pods and publications are the same.
    pub fn same(&self) -> bool {
        self.served.all("pods").into_keys().collect::<BTreeSet<_>>() == self.truth.pods()
    }

    /// Waits for that.
    pub async fn settled(&self) {
        until(&self.served, "pods as published", || self.same()).await;
    }

    fn uid(&self, name: &str) -> String {
        let all = self.served.all("pods");
        all.get(name).map(|p| p["metadata"]["uid"].as_str().expect("a uid").to_owned()).unwrap_or_default()
    }
}

/// The kubelet has started the pod.
pub fn run(double: &Double, name: &str) {
    started(double, name, 0);
}

fn started(double: &Double, name: &str, restarts: i32) {
    double.change("pods", name, |p| {
        p["status"] = json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }],
            "containerStatuses": [{ "name": "fuse", "image": "", "imageID": "", "ready": true,
                "restartCount": restarts, "state": { "running": {} } }] });
    });
}

/// It waits in a back-off.
pub fn crash(double: &Double, name: &str) {
    double.change("pods", name, |p| {
        p["status"] = json!({ "phase": "Running", "containerStatuses": [{ "name": "fuse", "image": "", "imageID": "",
            "ready": false, "restartCount": 2, "state": { "waiting": { "reason": "CrashLoopBackOff" } } }] });
    });
}

#[tokio::test]
async fn pods_come_and_go_with_publications() {
    let rig = Rig::new().await;
    let pods = rig.reconciler("image:1", RHYTHM);
    assert_eq!(pods.pod("vol-1", "node-a"), format!("fuse/{}", pod_of("node-a", 1)));
    rig.publish(&pods, "node-a", 1);
    rig.publish(&pods, "node-b", 1);
    rig.publish(&pods, "node-a", 2);
    rig.settled().await;
    let pod = &rig.served.all("pods")[&pod_of("node-a", 2)];
    assert_eq!(
        (&pod["metadata"]["annotations"]["fusefs.io/volume"], &pod["spec"]["nodeName"]),
        (&json!("vol-2"), &json!("node-a"))
    );
    rig.unpublish(&pods, "node-a", 1);
    // With grace: the pod says when it is gone; but not with the grace of one that has something to flush.
    let name = pod_of("node-a", 1);
    let ending = || rig.served.all("pods")[&name]["metadata"]["deletionGracePeriodSeconds"].as_i64();
    until(&rig.served, "deleted", || ending().is_some()).await;
    assert_eq!(ending(), Some(30));
    rig.served.delete_now("pods", &name);
    rig.settled().await;
    rig.crimes.none("");
}

#[tokio::test]
async fn a_deleted_pod_is_back_in_a_fraction_of_a_second() {
    let rig = Rig::new().await;
    // Nothing but the watch can be the reason.
    let hour = Duration::from_secs(3600);
    let pods = rig.reconciler("image:1", Rhythm { look: hour, settle: hour, ..Rhythm::default() });
    rig.publish(&pods, "node-a", 1);
    rig.settled().await;
    let name = pod_of("node-a", 1);
    for _ in 0..10 {
        let before = rig.uid(&name);
        rig.served.delete_now("pods", &name);
        until_within(&rig.served, "back", Duration::from_secs(2), || {
            ![String::new(), before.clone()].contains(&rig.uid(&name))
        })
        .await;
    }
    // One that ends first.
    let before = rig.uid(&name);
    rig.served.delete_gracefully("pods", &name);
    let all = rig.served.all("pods");
    assert!(all[&name]["metadata"]["deletionTimestamp"].is_string());
    rig.served.delete_now("pods", &name);
    until_within(&rig.served, "back", Duration::from_secs(2), || {
        ![String::new(), before.clone()].contains(&rig.uid(&name))
    })
    .await;
    rig.crimes.none("");
}

#[tokio::test]
async fn broken_pods_are_replaced() {
    let rig = Rig::new().await;
    let pods = rig.reconciler("image:1", RHYTHM);
    rig.publish(&pods, "node-a", 1);
    rig.settled().await;
    let name = pod_of("node-a", 1);
    for how in 0..4 {
        run(&rig.served, &name);
        let before = rig.uid(&name);
        match how {
            0 => crash(&rig.served, &name),
            1 => drop(
                rig.served.change("pods", &name, |p| p["status"] = json!({ "phase": "Failed", "reason": "Evicted" })),
            ),
            2 => drop(rig.served.change("pods", &name, |p| p["status"] = json!({ "phase": "Succeeded" }))),
            _ => {
                // Its container runs still: it is asked to end.
                rig.served.change("pods", &name, |p| p["status"]["phase"] = json!("Failed"));
                until(&rig.served, "deleted", || {
                    rig.served.all("pods")[&name]["metadata"]["deletionTimestamp"].is_string()
                })
                .await;
                rig.served.delete_now("pods", &name);
            }
        }
        until(&rig.served, "replaced", || ![String::new(), before.clone()].contains(&rig.uid(&name))).await;
    }
    rig.crimes.none("");
}

#[tokio::test]
async fn nothing_is_removed_on_doubt() {
    let rig = Rig::new().await;
    let pods = rig.reconciler("image:1", RHYTHM);
    rig.publish(&pods, "node-a", 1);
    rig.publish(&pods, "node-a", 2);
    rig.settled().await;
    let deletions = || rig.served.calls("DELETE", "/pods");
    // Many looks later.
    let looked = || {
        let (truth, served) = (rig.truth.clone(), rig.served.double.clone());
        async move {
            let lists = served.clone();
            let _ = truth;
            until(&lists, "time", {
                let mut n = 0;
                move || {
                    n += 1;
                    n > 40
                }
            })
            .await;
        }
    };
    rig.truth.nameless.store(true, Ordering::SeqCst);
    looked().await;
    rig.truth.nameless.store(false, Ordering::SeqCst);
    rig.truth.ending("node-a", 1);
    looked().await;
    rig.truth.down.store(true, Ordering::SeqCst);
    rig.truth.unpublish("node-a", 2);
    pods.changed();
    looked().await;
    assert_eq!(deletions(), 0);
    rig.truth.down.store(false, Ordering::SeqCst);
    until(&rig.served, "removed", || deletions() > 0).await;
    rig.crimes.none("");
}

#[tokio::test]
async fn pods_are_kept_through_detaching_and_attaching() {
    let rig = Rig::new().await;
    let pods = rig.reconciler("image:1", RHYTHM);
    rig.publish(&pods, "node-a", 1);
    rig.settled().await;
    let claim = pods.claim("vol-1", "node-a");
    rig.truth.unpublish("node-a", 1);
    let mut n = 0;
    until(&rig.served, "time", || {
        n += 1;
        n > 40
    })
    .await;
    assert_eq!(rig.served.calls("DELETE", "/pods"), 0, "claimed");
    rig.truth.publish("node-a", 1);
    drop(claim);
    assert!(rig.same());
    rig.crimes.none("");
}

#[tokio::test]
async fn images_change_one_pod_at_a_time() {
    let rig = Rig::new().await;
    let pods = rig.reconciler("image:1", RHYTHM);
    for (node, volume) in [("node-a", 1), ("node-a", 2), ("node-b", 1), ("node-b", 2)] {
        rig.publish(&pods, node, volume);
    }
    rig.settled().await;
    for name in rig.truth.pods() {
        run(&rig.served, &name);
    }
    drop(pods);
    let _pods = rig.reconciler("image:2", RHYTHM);
    let changed = || {
        let all = rig.served.all("pods");
        all.into_iter()
            .filter(|(_, p)| p["spec"]["containers"][0]["image"] == "image:2")
            .map(|(n, _)| n)
            .collect::<BTreeSet<_>>()
    };
    let mut done = BTreeSet::new();
    let mut nodes = vec![];
    for n in 1..=4 {
        until(&rig.served, "the next", || changed().len() == n).await;
        let new: Vec<_> = changed().difference(&done).cloned().collect();
        let pod = &rig.served.all("pods")[&new[0]];
        nodes.push(pod["spec"]["nodeName"].as_str().expect("a node").to_owned());
        // Nothing happens until it runs again.
        let mut ticks = 0;
        until(&rig.served, "time", || {
            ticks += 1;
            ticks > 30
        })
        .await;
        assert_eq!(changed().len(), n);
        started(&rig.served, &new[0], 1);
        done = changed();
    }
    assert_eq!(nodes, ["node-a", "node-a", "node-b", "node-b"]);
    rig.crimes.none("");
}

#[tokio::test]
async fn two_controllers_do_no_harm() {
    let rig = Rig::new().await;
    let (a, b) = (rig.reconciler("image:1", RHYTHM), rig.reconciler("image:1", RHYTHM));
    for n in 1..=20 {
        rig.publish(if n % 2 == 0 { &a } else { &b }, "node-a", n);
    }
    rig.settled().await;
    let uids: Vec<_> = rig.truth.pods().iter().map(|n| rig.uid(n)).collect();
    let mut ticks = 0;
    until(&rig.served, "time", || {
        ticks += 1;
        ticks > 40
    })
    .await;
    assert_eq!(uids, rig.truth.pods().iter().map(|n| rig.uid(n)).collect::<Vec<_>>(), "made once");
    rig.crimes.none("");
}

#[tokio::test]
async fn a_slow_or_refusing_server_delays_only_what_it_hits() {
    let rig = Rig::new().await;
    let slow = pod_of("node-a", 1);
    let pods = rig.reconciler("image:1", RHYTHM);
    until(&rig.served, "watching", || rig.served.watching() == 1).await;
    let mut first = true;
    rig.served.faults(move |method, _, _| {
        let hit = method == "POST" && std::mem::take(&mut first);
        if hit { Fault::Slow(3_000_000) } else { Fault::None }
    });
    rig.publish(&pods, "node-a", 1);
    until(&rig.served, "hanging", || rig.served.calls("POST", "/pods") == 1).await;
    rig.publish(&pods, "node-a", 2);
    until_within(&rig.served, "the other", Duration::from_secs(2), || {
        rig.served.all("pods").contains_key(&pod_of("node-a", 2))
    })
    .await;
    rig.settled().await;
    assert!(rig.served.all("pods").contains_key(&slow));
    rig.crimes.none("");
}
