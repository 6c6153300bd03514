//! Events: what they are about, how many, and that a lost answer makes no second one.

use crate::{
    double::{Double, Fault, Served},
    watches::until,
};
use fusefs_csi_driver::{
    kube::{KubeEvents, events::EventLimits},
    node::{
        engine::{Event, Events},
        model::VolumeId,
    },
};
use fusefs_types::Clock;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

struct Ticks(AtomicU64);

impl Clock for Ticks {
    fn wall_ns(&self) -> u64 {
        1_795_000_000_000_000_000 + self.0.fetch_add(1, Ordering::SeqCst)
    }
    fn boot_ns(&self) -> u64 {
        0
    }
}

const LIMITS: EventLimits = EventLimits {
    repeat: Duration::from_secs(300),
    burst: 6,
    period: Duration::from_secs(3600),
    limit: Duration::from_millis(500),
    attempts: 6,
};

fn start(served: &Served) -> KubeEvents {
    KubeEvents::start(served.client(), "node-a", Arc::new(Ticks(AtomicU64::new(0))), LIMITS)
}

fn id(text: &str) -> VolumeId {
    VolumeId::parse(text).expect("an id")
}

fn volume(served: &Served, name: &str, handle: &str, claim: Value) {
    let object = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name },
        "spec": { "csi": { "driver": "csi.fusefs.io", "volumeHandle": handle }, "claimRef": claim },
    });
    served.put("persistentvolumes", "", object);
}

fn reasons(served: &Served) -> Vec<(String, String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let all = served.all("events").into_values();
    let one = |e: Value| {
        let about = &e["involvedObject"];
        (
            text(&e["reason"]),
            format!("{}/{}", text(&about["kind"]), text(&about["name"])),
            text(&e["metadata"]["namespace"]),
        )
    };
    let mut all: Vec<_> = all.map(one).collect();
    all.sort();
    all
}

#[tokio::test]
async fn events_are_about_what_people_look_at() {
    let served = Double::start().await;
    let claim = json!({ "kind": "PersistentVolumeClaim", "namespace": "team", "name": "data", "uid": "c-1" });
    volume(&served, "pvc-1", "pvc-1", claim.clone());
    volume(&served, "static", "home/users/jane doe", Value::Null);
    volume(&served, "by-path", "vol-9", claim);
    let events = start(&served);
    events.tell(Event::Parked(id("pvc-1"), "slow".into()));
    events.tell(Event::Remounted(id("home/users/jane doe")));
    events.tell(Event::Failed(id("unknown"), "é".repeat(2000)));
    let target = "/var/lib/kubelet/pods/p-1/volumes/kubernetes.io~csi/by-path/mount";
    events.tell(Event::Rebound(id("vol-9"), target.into()));
    until(&served, "four events", || served.all("events").len() == 4).await;
    let wanted = [
        ("VolumeParked", "PersistentVolumeClaim/data", "team"),
        ("VolumeRebound", "PersistentVolumeClaim/data", "team"),
        ("VolumeRemounted", "PersistentVolume/static", "default"),
        ("VolumeRepairFailed", "Node/node-a", "default"),
    ];
    assert_eq!(reasons(&served), wanted.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned())));
    for e in served.all("events").into_values() {
        assert_eq!(e["source"], json!({ "component": "csi.fusefs.io", "host": "node-a" }));
        assert!(e["message"].as_str().expect("a message").len() <= 1024);
        let typed: k8s_openapi::api::core::v1::Event = serde_json::from_value(e.clone()).expect("an event");
        let mut back = serde_json::to_value(&typed).expect("json");
        back["metadata"] = e["metadata"].clone();
        assert_eq!(back, e, "nothing is dropped");
    }
}

#[tokio::test]
async fn the_same_thing_is_said_once_and_a_flood_is_cut() {
    let served = Double::start().await;
    let events = start(&served);
    for _ in 0..20 {
        events.tell(Event::Remounted(id("vol-1")));
    }
    for n in 0..20 {
        events.tell(Event::Failed(id(&format!("vol-{n}")), "x".into()));
    }
    until(&served, "a burst", || served.all("events").len() == 6).await;
    let remounted = reasons(&served).iter().filter(|(r, _, _)| r == "VolumeRemounted").count();
    assert_eq!(remounted, 1);
}

#[tokio::test]
async fn a_lost_answer_makes_no_second_event_and_an_outage_is_survived() {
    let served = Double::start().await;
    let mut posts = 0;
    served.faults(move |method, _, _| {
        posts += u32::from(method == "POST");
        match (method.as_str(), posts) {
            ("POST", 1) => Fault::Lost,
            ("POST", 3) => Fault::Error,
            _ => Fault::None,
        }
    });
    let events = start(&served);
    events.tell(Event::Remounted(id("vol-1")));
    events.tell(Event::Remounted(id("vol-2")));
    until(&served, "both", || served.calls("POST", "events") == 4 && served.all("events").len() == 2).await;
}
