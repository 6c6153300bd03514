//! What has to happen so that there is one good pod per publication. Pure.

use super::{cache::PodsByName, names, pod::Seat};
use fusefs_types::cluster::{Publication, VolumeRecord};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What the masters say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Publications by the name of their pod.
    pub live: BTreeMap<String, Seat>,
    /// Publications that are being withdrawn: their pods are left alone.
    pub ending: BTreeSet<String>,
    /// Publications, by volume number and node, of volumes that are not listed (any more): no pod is made or removed for them.
    pub unnamed: BTreeSet<(u64, String)>,
}

impl Known {
    /// From what the masters list. The publications must have been listed first.
    pub fn new(publications: &[Publication], volumes: &[VolumeRecord]) -> Known {
        let names: HashMap<_, _> = volumes.iter().map(|v| (v.id, v.name.as_str())).collect();
        let mut known = Known::default();
        for p in publications {
            let Some(name) = names.get(&p.volume) else {
                known.unnamed.insert((p.volume.0, p.node.clone()));
                continue;
            };
            let volume = if p.part.is_empty() { (*name).to_owned() } else { format!("{name}/{}", p.part) };
            let seat = Seat { node: p.node.clone(), volume, number: p.volume.0 };
            if p.ending {
                known.ending.insert(seat.pod());
            } else {
                known.live.insert(seat.pod(), seat);
            }
        }
        known
    }

    /// Nobody needs this pod.
    pub fn orphaned(&self, name: &str, pod: &Pod) -> bool {
        let Some((number, node)) = made_for(pod) else { return false };
        !(self.live.contains_key(name) || self.ending.contains(name) || self.unnamed.contains(&(number, node)))
    }
}

/// Volume number and node in the annotations; None = this driver did not make it, and it is left alone.
fn made_for(pod: &Pod) -> Option<(u64, String)> {
    let annotations = pod.metadata.annotations.as_ref()?;
    let number = annotations.get(names::VOLUME_NUMBER)?.parse().ok()?;
    Some((number, annotations.get(names::NODE)?.clone()))
}

/// Uid of a pod.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// Somebody deleted it, and it is ending.
pub fn leaving(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    let all = pod.status.as_ref()?.container_statuses.as_ref()?;
    all.iter().find(|c| c.name == super::pod::CONTAINER)
}

/// Its container runs.
pub fn running(pod: &Pod) -> bool {
    container(pod).and_then(|c| c.state.as_ref()).is_some_and(|s| s.running.is_some())
}

/// It serves, or could.
pub fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    running(pod) && conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// How often its container was started again.
pub fn restarts(pod: &Pod) -> i32 {
    container(pod).map_or(0, |c| c.restart_count)
}

/// What it is: Pending, Running, Succeeded, Failed, Unknown.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Why this pod will not serve again soon: over, or waiting in a back-off that a new pod does not have.
pub fn broken(pod: &Pod) -> Option<String> {
    if matches!(phase(pod), "Failed" | "Succeeded") {
        let reason = pod.status.as_ref().and_then(|s| s.reason.as_deref()).unwrap_or("over");
        return Some(format!("{} ({reason})", phase(pod)));
    }
    let waiting = container(pod).and_then(|c| c.state.as_ref()).and_then(|s| s.waiting.as_ref());
    waiting.and_then(|w| w.reason.clone()).filter(|r| r == "CrashLoopBackOff")
}

/// Image that it should run.
pub fn image(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    spec.containers.iter().find(|c| c.name == super::pod::CONTAINER)?.image.as_deref()
}

/// Its image was changed, and it does not run with it yet.
fn updating(pod: &Pod) -> bool {
    let noted = pod.metadata.annotations.as_ref().and_then(|a| a.get(names::RESTARTS));
    noted.and_then(|n| n.parse::<i32>().ok()).is_some_and(|before| restarts(pod) <= before || !ready(pod))
}

/// It has the new image and does not get to run with it: no other pod gets that image.
fn failing(pod: &Pod, wanted: &str) -> bool {
    let waiting = container(pod).and_then(|c| c.state.as_ref()).and_then(|s| s.waiting.as_ref());
    let starting = |reason: &String| matches!(reason.as_str(), "ContainerCreating" | "PodInitializing");
    let stuck = waiting.and_then(|w| w.reason.as_ref()).is_some_and(|reason| !starting(reason));
    image(pod) == Some(wanted) && !leaving(pod) && (stuck || broken(pod).is_some())
}

/// One step. All but creations name the pod's uid, so that two controllers cannot hit each other's new pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// There is none.
    Create(Seat),
    /// It is broken: delete it; the next one is made when it is gone.
    Replace {
        /// Name.
        name: String,
        /// Uid.
        uid: String,
        /// Why.
        why: String,
    },
    /// Nobody needs it.
    Remove {
        /// Name.
        name: String,
        /// Uid.
        uid: String,
    },
    /// It has an old image.
    SetImage {
        /// Name.
        name: String,
        /// Uid.
        uid: String,
        /// How often its container was started again so far.
        restarts: i32,
    },
}

impl Action {
    /// Name of the pod.
    pub fn name(&self) -> String {
        match self {
            Action::Create(seat) => seat.pod(),
            Action::Replace { name, .. } | Action::Remove { name, .. } | Action::SetImage { name, .. } => name.clone(),
        }
    }
}

/// What a plan is made of.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Publications.
    pub known: &'a Known,
    /// Pods.
    pub pods: &'a PodsByName,
    /// Names that somebody works on, or that have to wait.
    pub busy: &'a BTreeSet<String>,
    /// Uids of pods that nobody needed for long enough.
    pub orphans: &'a BTreeSet<String>,
    /// Image that pods should have.
    pub image: &'a str,
    /// An image was changed, or a pod replaced, a moment ago: what comes of it is not known yet.
    pub settling: bool,
}

/// All that can be done now.
pub fn plan(view: View<'_>) -> Vec<Action> {
    let mut actions = vec![];
    for (name, seat) in view.known.live.iter().filter(|(name, _)| !view.busy.contains(*name)) {
        match view.pods.get(name) {
            None => actions.push(Action::Create(seat.clone())),
            Some(pod) if leaving(pod) => {}
            Some(pod) => {
                let replace = |why| Action::Replace { name: name.clone(), uid: uid(pod).to_owned(), why };
                actions.extend(broken(pod).map(replace));
            }
        }
    }
    for (name, pod) in view.pods.iter().filter(|(name, _)| !view.busy.contains(*name)) {
        if view.orphans.contains(uid(pod)) && view.known.orphaned(name, pod) && !leaving(pod) {
            actions.push(Action::Remove { name: name.clone(), uid: uid(pod).to_owned() });
        }
    }
    actions.extend(updates(view));
    actions
}

/// Pods that do not run get the new image at once; the others one after another, node by node, each only when the one
/// before is ready again.
fn updates(view: View<'_>) -> Vec<Action> {
    let wanted: Vec<_> =
        view.known.live.iter().filter_map(|(name, seat)| Some((name, seat, view.pods.get(name)?))).collect();
    let calm = !view.settling && !wanted.iter().any(|(_, _, pod)| updating(pod) || failing(pod, view.image));
    let outdated = wanted.into_iter().filter(|(name, _, pod)| {
        !view.busy.contains(*name)
            && !leaving(pod)
            && broken(pod).is_none()
            && image(pod).is_some_and(|i| i != view.image)
    });
    let set = |name: &String, pod: &Pod| Action::SetImage {
        name: name.clone(),
        uid: uid(pod).to_owned(),
        restarts: restarts(pod),
    };
    let (running, idle): (Vec<_>, Vec<_>) = outdated.partition(|(_, _, pod)| running(pod));
    let next =
        running.iter().filter(|(_, _, pod)| calm && ready(pod)).min_by_key(|(name, seat, _)| (&seat.node, *name));
    idle.iter().chain(next).map(|(name, _, pod)| set(name, pod)).collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
