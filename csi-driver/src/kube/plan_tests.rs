use super::{
    super::{PodSettings, fuse_pod},
    *,
};
use fusefs_types::{
    StoreId, VolumeId,
    cluster::{AccessMode, VolumeState},
    ops::PartitionUsage,
};
use serde_json::{Value, json};
use std::sync::Arc;

const NEW: &str = "image:2";

fn seat(node: &str, number: u64) -> Seat {
    Seat { node: node.into(), volume: format!("vol-{number}"), number }
}

/// A pod with a status; `extra` is merged into it one level deep.
fn pod(seat: &Seat, image: &str, status: Value) -> Pod {
    let mut v = serde_json::to_value(fuse_pod(&PodSettings::new("fuse", image), seat)).unwrap();
    v["metadata"]["uid"] = json!(format!("uid-of-{}", seat.pod()));
    v["status"] = status;
    serde_json::from_value(v).unwrap()
}

fn state(state: Value, restarts: i32) -> Value {
    json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": if state["running"].is_object() { "True" } else { "False" } }],
        "containerStatuses": [{ "name": "fuse", "image": "", "imageID": "", "ready": true, "restartCount": restarts, "state": state }] })
}

fn fine() -> Value {
    state(json!({ "running": {} }), 0)
}

fn waiting(reason: &str) -> Value {
    state(json!({ "waiting": { "reason": reason } }), 3)
}

#[derive(Default)]
struct Scene {
    known: Known,
    pods: PodsByName,
    busy: BTreeSet<String>,
    orphans: BTreeSet<String>,
    settling: bool,
}

impl Scene {
    fn live(mut self, seat: &Seat) -> Scene {
        self.known.live.insert(seat.pod(), seat.clone());
        self
    }
    fn with(mut self, seat: &Seat, image: &str, status: Value) -> Scene {
        self.pods.insert(seat.pod(), Arc::new(pod(seat, image, status)));
        self
    }
    fn change(mut self, seat: &Seat, change: impl FnOnce(&mut Pod)) -> Scene {
        let mut pod = (*self.pods[&seat.pod()]).clone();
        change(&mut pod);
        self.pods.insert(seat.pod(), Arc::new(pod));
        self
    }
    fn plan(&self) -> Vec<Action> {
        let Scene { known, pods, busy, orphans, settling } = self;
        plan(View { known, pods, busy, orphans, image: NEW, settling: *settling })
    }
}

fn kinds(actions: &[Action]) -> Vec<(&'static str, String)> {
    let kind = |a: &Action| match a {
        Action::Create(_) => "create",
        Action::Replace { .. } => "replace",
        Action::Remove { .. } => "remove",
        Action::SetImage { .. } => "image",
    };
    actions.iter().map(|a| (kind(a), a.name())).collect()
}

#[test]
fn missing_pods_are_made_unless_somebody_does_it() {
    let (a, b) = (seat("n", 1), seat("n", 2));
    let mut scene = Scene::default().live(&a).live(&b).with(&b, NEW, fine());
    assert_eq!(scene.plan(), [Action::Create(a.clone())]);
    scene.busy.insert(a.pod());
    assert_eq!(scene.plan(), []);
}

#[test]
fn broken_pods_are_replaced_and_others_are_left() {
    let a = seat("n", 1);
    for (status, replaced) in [
        (json!({}), false),
        (json!({ "phase": "Pending" }), false),
        (fine(), false),
        (waiting("ContainerCreating"), false),
        (waiting("ImagePullBackOff"), false),
        (waiting("CrashLoopBackOff"), true),
        (json!({ "phase": "Failed", "reason": "Evicted" }), true),
        (json!({ "phase": "Failed", "reason": "OutOfcpu" }), true),
        (json!({ "phase": "Succeeded" }), true),
        (json!({ "phase": "Unknown" }), false),
    ] {
        let scene = Scene::default().live(&a).with(&a, NEW, status.clone());
        let wanted = if replaced { vec![("replace", a.pod())] } else { vec![] };
        assert_eq!(kinds(&scene.plan()), wanted, "{status}");
        // One that is going is gone soon; one that is not needed is not replaced.
        let leaving = scene.change(&a, |p| {
            p.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        });
        assert_eq!(leaving.plan(), [], "{status}");
        assert_eq!(Scene::default().with(&a, NEW, status).plan(), []);
    }
}

#[test]
fn needless_pods_go_only_when_that_is_sure() {
    let a = seat("n", 1);
    let name = a.pod();
    let scene =
        || Scene { orphans: BTreeSet::from([format!("uid-of-{name}")]), ..Scene::default() }.with(&a, NEW, fine());
    assert_eq!(kinds(&scene().plan()), [("remove", name.clone())]);
    assert_eq!(Scene { orphans: BTreeSet::from(["another".into()]), ..scene() }.plan(), [], "not looked at twice");
    assert_eq!(Scene { busy: BTreeSet::from([name.clone()]), ..scene() }.plan(), []);
    assert_eq!(scene().live(&a).plan(), [], "there is a publication again");
    let mut ending = scene();
    ending.known.ending.insert(name.clone());
    assert_eq!(ending.plan(), [], "its sessions are being fenced");
    let mut unnamed = scene();
    unnamed.known.unnamed.insert((1, "n".into()));
    assert_eq!(unnamed.plan(), [], "its volume is not listed");
    let foreign = scene().change(&a, |p| p.metadata.annotations = None);
    assert_eq!(foreign.plan(), [], "not made by the driver");
}

fn patched(p: &mut Pod, before: i32) {
    let annotations = p.metadata.annotations.as_mut().unwrap();
    annotations.insert(names::RESTARTS.into(), before.to_string());
}

#[test]
fn images_change_one_after_another() {
    let mut seats = [seat("b", 1), seat("a", 2), seat("a", 3)];
    seats.sort_by_key(|s| (s.node.clone(), s.pod()));
    let [first, second, third] = seats.clone();
    let all = |images: [&str; 3]| {
        seats.iter().zip(images).fold(Scene::default(), |s, (seat, image)| s.live(seat).with(seat, image, fine()))
    };
    let old = "image:1";
    assert_eq!(kinds(&all([old; 3]).plan()), [("image", first.pod())]);
    assert_eq!(all([NEW; 3]).plan(), []);
    assert_eq!(Scene { settling: true, ..all([old; 3]) }.plan(), []);
    // Patched, not started again yet.
    let patching = all([NEW, old, old]).change(&first, |p| patched(p, 0));
    assert_eq!(patching.plan(), []);
    // Started again and ready.
    let done =
        all([NEW, old, old]).with(&first, NEW, state(json!({ "running": {} }), 1)).change(&first, |p| patched(p, 0));
    assert_eq!(kinds(&done.plan()), [("image", second.pod())]);
    // The new image does not start: nobody else gets it, but who does not run anyway does.
    for status in [waiting("ImagePullBackOff"), waiting("RunContainerError")] {
        assert_eq!(all([NEW, old, old]).with(&first, NEW, status.clone()).plan(), [], "{status}");
        let scene = all([NEW, old, old]).with(&first, NEW, status).with(&third, old, waiting("ErrImagePull"));
        assert_eq!(kinds(&scene.plan()), [("image", third.pod())]);
    }
    let crashing = all([NEW, old, old]).with(&first, NEW, waiting("CrashLoopBackOff"));
    assert_eq!(kinds(&crashing.plan()), [("replace", first.pod())]);
}

#[test]
fn only_ready_pods_are_changed_while_they_run() {
    let a = seat("n", 1);
    let mut unready = fine();
    unready["conditions"][0]["status"] = json!("False");
    assert_eq!(Scene::default().live(&a).with(&a, "image:1", unready).plan(), []);
    let fresh = Scene::default().live(&a).with(&a, "image:1", json!({ "phase": "Pending" }));
    assert_eq!(kinds(&fresh.plan()), [("image", a.pod())]);
}

fn publication(volume: u64, part: &str, ending: bool) -> Publication {
    Publication {
        volume: VolumeId(volume),
        part: part.into(),
        node: "n".into(),
        mode: AccessMode::MultiNodeMultiWriter,
        read_only: false,
        writer: true,
        generation: 1,
        ending,
    }
}

#[test]
fn publications_become_seats() {
    let volume = VolumeRecord {
        id: VolumeId(1),
        name: "home".into(),
        state: VolumeState::Ready,
        store: StoreId(1),
        capacity: 0,
        inodes: 0,
        replicas: 1,
        hash_key: [0; 16],
        redundancy: String::new(),
        labels: vec![],
        usage: PartitionUsage::default(),
    };
    let all =
        [publication(1, "", false), publication(1, "a/b", false), publication(1, "c", true), publication(2, "", false)];
    let known = Known::new(&all, &[volume]);
    let ids: BTreeSet<_> = known.live.values().map(|s| s.volume.as_str()).collect();
    assert_eq!(ids, BTreeSet::from(["home", "home/a/b"]));
    assert_eq!(known.ending, BTreeSet::from([names::pod_name("n", "home/c")]));
    assert_eq!(known.unnamed, BTreeSet::from([(2, "n".to_owned())]));
    assert!(known.live.contains_key(&names::pod_name("n", "home/a/b")));
}
