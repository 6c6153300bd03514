//! Makes the pods that [`super::plan`] asks for. Several controllers may do so at once: creations meet under one name, and
//! everything else names the uid of the pod that it means.

use super::{
    api::{ApiError, ApiResult, Pods},
    cache::{Pace, PodCache, PodsByName},
    plan::{self, Action, Known, View},
    pod::{PodSettings, Seat, fuse_pod},
};
use crate::{
    cluster::Masters,
    controller::{Claim, PodMaker},
};
use fusefs_types::cluster::MasterRefusal;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, timeout},
};

/// Calls to the API server at once.
const PARALLEL: usize = 32;
/// How long the masters may take to list.
const LIST: Duration = Duration::from_secs(10);
/// Looks at publications in which a pod must have been needless before it is removed.
const LOOKS: u8 = 2;
/// Seconds that a needless pod gets. Its volume is not attached, so nobody would take what it could still flush. It ends at
/// once, unless the signal came before the container's first process listened: such a signal is lost.
const NEEDLESS_GRACE: u32 = 30;
/// How long a claim is remembered after it ended.
const CLAIM_MEMORY: Duration = Duration::from_secs(60);
/// Errors with a pod are forgotten after this.
const FORGET: Duration = Duration::from_secs(60);
/// How often is looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhythm {
    /// Publications, when nobody says that they changed.
    pub look: Duration,
    /// The same while a pod waits to be removed.
    pub again: Duration,
    /// How long the effect of a call is waited for.
    pub settle: Duration,
    /// After errors, and of the watch.
    pub pace: Pace,
    /// Between replacements of one pod: the first pause, which doubles, the longest one, and when they are forgotten.
    pub replace: (Duration, Duration, Duration),
}

impl Default for Rhythm {
    fn default() -> Rhythm {
        Rhythm {
            look: Duration::from_secs(5),
            again: Duration::from_millis(500),
            settle: Duration::from_secs(2),
            pace: Pace::default(),
            replace: (Duration::from_secs(2), Duration::from_secs(60), Duration::from_secs(600)),
        }
    }
}

/// Who claims pods now, or did a moment ago.
#[derive(Default)]
struct Claims(BTreeMap<String, (u32, Instant)>);

impl Claims {
    fn take(&mut self, name: &str) {
        let claim = self.0.entry(name.to_owned()).or_insert((0, Instant::now()));
        *claim = (claim.0 + 1, Instant::now());
    }

    fn release(&mut self, name: &str) {
        if let Some(claim) = self.0.get_mut(name) {
            *claim = (claim.0.saturating_sub(1), Instant::now());
        }
        self.0.retain(|_, (holders, last)| *holders > 0 || last.elapsed() < CLAIM_MEMORY);
    }

    fn claimed_since(&self, name: &str, moment: Instant) -> bool {
        self.0.get(name).is_some_and(|(holders, last)| *holders > 0 || *last >= moment)
    }
}

#[derive(Default)]
struct Shared {
    poked: Notify,
    claims: Mutex<Claims>,
}

/// The reconciler's handle. It ends when this is dropped.
pub struct FusePods {
    shared: Arc<Shared>,
    namespace: String,
    task: JoinHandle<()>,
}

impl Drop for FusePods {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FusePods {
    /// Starts to reconcile.
    pub fn start(masters: Masters, pods: Arc<dyn Pods>, settings: PodSettings, rhythm: Rhythm) -> FusePods {
        let shared = Arc::new(Shared::default());
        let namespace = settings.namespace.clone();
        let cache = PodCache::follow(pods.clone(), rhythm.pace);
        let world = Arc::new(World { masters, pods, settings, shared: shared.clone() });
        let task = tokio::spawn(Reconciler::new(world, cache, rhythm).run());
        FusePods { shared, namespace, task }
    }
}

impl PodMaker for FusePods {
    fn claim(&self, volume: &str, node: &str) -> Claim {
        let (shared, name) = (self.shared.clone(), super::pod_name(node, volume));
        shared.claims.lock().take(&name);
        Claim::new(move || {
            shared.claims.lock().release(&name);
            shared.poked.notify_one();
        })
    }

    fn changed(&self) {
        self.shared.poked.notify_one();
    }

    fn pod(&self, volume: &str, node: &str) -> String {
        format!("{}/{}", self.namespace, super::pod_name(node, volume))
    }
}

/// What calls need.
struct World {
    masters: Masters,
    pods: Arc<dyn Pods>,
    settings: PodSettings,
    shared: Arc<Shared>,
}

/// What came of a step.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// The API server did it.
    Done,
    /// It made the pod of this uid.
    Made(String),
    /// It was not right any more.
    Moot,
}

enum Finished {
    Looked(Result<Known, String>, PodsByName),
    Acted(Action, ApiResult<Step>),
}

impl World {
    async fn look(&self) -> Result<Known, String> {
        let listed = timeout(LIST, async {
            // In this order: a volume that is published is listed, unless it was deleted in between.
            let publications = self.masters.publications(None).await?;
            Ok::<_, MasterRefusal>((publications, self.masters.list().await?))
        });
        match listed.await {
            Ok(Ok((publications, volumes))) => Ok(Known::new(&publications, &volumes)),
            Ok(Err(refusal)) => Err(refusal.message),
            Err(_) => Err("the masters do not answer".into()),
        }
    }

    async fn act(&self, action: &Action) -> ApiResult<Step> {
        match action {
            Action::Create(seat) => self.create(seat).await,
            Action::Replace { name, uid, .. } => self.replace(name, uid).await,
            Action::Remove { name, uid } => self.remove(name, uid).await,
            Action::SetImage { name, uid, restarts } => {
                self.pods.set_image(name, uid, &self.settings.image, *restarts).await.map(|()| Step::Done)
            }
        }
    }

    async fn create(&self, seat: &Seat) -> ApiResult<Step> {
        let pod = self.pods.create(&fuse_pod(&self.settings, seat)).await?;
        tracing::info!(
            pod = seat.pod(),
            node = seat.node,
            volume = seat.volume,
            uid = plan::uid(&pod),
            "fuse pod made"
        );
        Ok(Step::Made(plan::uid(&pod).to_owned()))
    }

    /// Deletes a broken pod that is still the one and still broken.
    async fn replace(&self, name: &str, uid: &str) -> ApiResult<Step> {
        let Some(pod) = self.pods.get(name).await?.filter(|p| plan::uid(p) == uid && !plan::leaving(p)) else {
            return Ok(Step::Moot);
        };
        let Some(why) = plan::broken(&pod) else { return Ok(Step::Moot) };
        tracing::warn!(pod = name, uid, why, "fuse pod is replaced");
        self.pods.delete(name, uid, (!plan::running(&pod)).then_some(0)).await?;
        Ok(Step::Done)
    }

    /// Deletes a pod that nobody needs, if that is still so.
    async fn remove(&self, name: &str, uid: &str) -> ApiResult<Step> {
        let before = Instant::now();
        let Some(pod) = self.pods.get(name).await?.filter(|p| plan::uid(p) == uid && !plan::leaving(p)) else {
            return Ok(Step::Moot);
        };
        let known = self.look().await.map_err(ApiError::Unavailable)?;
        if !known.orphaned(name, &pod) || self.shared.claims.lock().claimed_since(name, before) {
            return Ok(Step::Moot);
        }
        tracing::info!(pod = name, uid, "fuse pod is removed: its volume is not attached to its node any more");
        self.pods.delete(name, uid, Some(NEEDLESS_GRACE)).await?;
        Ok(Step::Done)
    }
}

/// A name that has to wait.
#[derive(Clone, Debug)]
struct Hold {
    until: Instant,
    errors: u32,
    /// The pod that is waited for.
    made: Option<String>,
}

struct Reconciler {
    world: Arc<World>,
    cache: PodCache,
    rhythm: Rhythm,
    known: Option<Known>,
    /// The pods that the last plan was made of.
    pods: PodsByName,
    /// When publications are looked at next; None = somebody looks now.
    look: Option<Instant>,
    /// They changed while somebody looked.
    stale: bool,
    look_errors: u32,
    /// Uids of needless pods, with the number of looks that said so.
    needless: BTreeMap<String, u8>,
    acting: BTreeSet<String>,
    holds: BTreeMap<String, Hold>,
    replaced: BTreeMap<String, Hold>,
    settling: Option<(String, Instant)>,
    running: FuturesUnordered<BoxFuture<'static, Finished>>,
}

impl Reconciler {
    fn new(world: Arc<World>, cache: PodCache, rhythm: Rhythm) -> Reconciler {
        Reconciler {
            world,
            cache,
            rhythm,
            known: None,
            pods: PodsByName::new(),
            look: Some(Instant::now()),
            stale: false,
            look_errors: 0,
            needless: BTreeMap::new(),
            acting: BTreeSet::new(),
            holds: BTreeMap::new(),
            replaced: BTreeMap::new(),
            settling: None,
            running: FuturesUnordered::new(),
        }
    }

    async fn run(mut self) {
        let mut changes = self.cache.changes();
        let world = self.world.clone();
        loop {
            // One moment for all: nothing may fall due between two of these unnoticed.
            let now = Instant::now();
            self.see();
            self.start_look(now);
            self.start_actions(now);
            let wake = self.wake(now);
            tokio::select! {
                Some(finished) = self.running.next() => self.finished(finished),
                _ = changes.changed() => {}
                () = world.shared.poked.notified() => self.poked(),
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    fn poked(&mut self) {
        match &mut self.look {
            Some(at) => *at = Instant::now(),
            None => self.stale = true,
        }
    }

    /// Takes the pods of now. A name whose pod came or went does not have to wait any more.
    fn see(&mut self) {
        let Some(now) = self.cache.all() else { return };
        let of = |pods: &PodsByName, name: &String| pods.get(name).map(|p| plan::uid(p).to_owned());
        let over = |hold: &Hold| hold.made.as_ref().is_some_and(|uid| self.cache.ended(uid));
        self.holds.retain(|name, hold| of(&now, name) == of(&self.pods, name) && !over(hold));
        if let Some((name, until)) = &self.settling {
            let shown = now.get(name).is_none_or(|p| plan::image(p) == Some(self.world.settings.image.as_str()));
            if shown || *until <= Instant::now() {
                self.settling = None;
            }
        }
        self.pods = now;
    }

    fn start_look(&mut self, now: Instant) {
        if self.look.is_none_or(|at| at > now) || self.cache.all().is_none() {
            return;
        }
        self.look = None;
        let (world, pods) = (self.world.clone(), self.pods.clone());
        self.running.push(async move { Finished::Looked(world.look().await, pods) }.boxed());
    }

    fn start_actions(&mut self, now: Instant) {
        let (Some(known), true) = (&self.known, self.acting.len() < PARALLEL) else { return };
        self.holds.retain(|_, hold| hold.until > now || (hold.errors > 0 && hold.until + FORGET > now));
        let forget = self.rhythm.replace.2;
        self.replaced.retain(|_, hold| hold.until + forget > now);
        let held = self.holds.iter().filter(|(_, hold)| hold.until > now).map(|(name, _)| name);
        let busy = self.acting.iter().chain(held).cloned().collect();
        let orphans = self.needless.iter().filter(|(_, n)| **n >= LOOKS).map(|(uid, _)| uid.clone()).collect();
        let calm = self.rhythm.replace.1;
        let recent = |hold: &Hold| hold.until + calm > now;
        let view = View {
            known,
            pods: &self.pods,
            busy: &busy,
            orphans: &orphans,
            image: &self.world.settings.image,
            settling: self.settling.is_some() || self.replaced.values().any(recent),
        };
        for action in plan::plan(view) {
            let name = action.name();
            let paced =
                matches!(action, Action::Replace { .. }) && self.replaced.get(&name).is_some_and(|h| h.until > now);
            if paced || self.acting.len() >= PARALLEL || !self.acting.insert(name) {
                continue;
            }
            let world = self.world.clone();
            let acted = async move {
                let result = world.act(&action).await;
                Finished::Acted(action, result)
            };
            self.running.push(acted.boxed());
        }
    }

    /// When something is to be done if nothing happens.
    fn wake(&self, now: Instant) -> Instant {
        let holds = self.holds.values().chain(self.replaced.values()).map(|h| h.until);
        let times = holds.chain(self.look).chain(self.settling.as_ref().map(|(_, until)| *until));
        // The first list of pods wakes by itself; a look that is due waits for it.
        let next = times.filter(|t| *t > now).min();
        next.unwrap_or(now + self.rhythm.look)
    }

    fn finished(&mut self, finished: Finished) {
        match finished {
            Finished::Looked(Ok(known), pods) => self.looked(known, &pods),
            Finished::Looked(Err(error), _) => {
                self.look_errors += 1;
                if self.look_errors.is_power_of_two() {
                    tracing::warn!(
                        error,
                        errors = self.look_errors,
                        "publications cannot be listed; no fuse pod is removed"
                    );
                }
                self.look = Some(Instant::now() + self.rhythm.pace.pause(self.look_errors));
            }
            Finished::Acted(action, result) => self.acted(action, result),
        }
    }

    /// Counts the pods that were there before the look and that it does not need.
    fn looked(&mut self, known: Known, pods: &PodsByName) {
        self.look_errors = 0;
        let needless = pods.iter().filter(|(name, pod)| known.orphaned(name, pod)).map(|(_, pod)| {
            let uid = plan::uid(pod).to_owned();
            let looks = self.needless.get(&uid).map_or(1, |n| n.saturating_add(1));
            (uid, looks)
        });
        let needless: BTreeMap<_, _> = needless.collect();
        let soon = needless.values().any(|n| *n < LOOKS);
        self.needless = needless;
        self.known = Some(known);
        let pause = if soon { self.rhythm.again } else { self.rhythm.look };
        let pause = if std::mem::take(&mut self.stale) { Duration::ZERO } else { pause };
        self.look = Some(Instant::now() + pause);
    }

    /// The pods that were seen last show what the action did.
    fn shown(&self, action: &Action) -> bool {
        let seen = |name: &String| self.pods.get(name).map(|p| plan::uid(p));
        match action {
            Action::Create(seat) => seen(&seat.pod()).is_some(),
            Action::Replace { name, uid, .. } | Action::Remove { name, uid } => seen(name) != Some(uid),
            Action::SetImage { .. } => false,
        }
    }

    fn acted(&mut self, action: Action, result: ApiResult<Step>) {
        let name = action.name();
        self.acting.remove(&name);
        let (now, settle) = (Instant::now(), self.rhythm.settle);
        let errors = if result.is_ok() { 0 } else { self.holds.get(&name).map_or(0, |h| h.errors) + 1 };
        let wait = if errors == 0 { settle } else { self.rhythm.pace.pause(errors) };
        let made = if let Ok(Step::Made(uid)) = &result { Some(uid.clone()) } else { None };
        if errors == 0 && self.shown(&action) {
            self.holds.remove(&name);
        } else {
            self.holds.insert(name.clone(), Hold { until: now + wait, errors, made });
        }
        if let Err(error) = &result {
            complain(&action, error, errors);
        }
        match action {
            Action::Replace { .. } if result == Ok(Step::Done) => {
                let before = self.replaced.get(&name).map_or(0, |h| h.errors);
                let pause = self.rhythm.replace.0.saturating_mul(1 << before.min(8)).min(self.rhythm.replace.1);
                self.replaced.insert(name, Hold { until: now + pause, errors: before + 1, made: None });
            }
            // Without an answer it may have happened, or happen yet.
            Action::SetImage { .. } => self.settling = Some((name, now + settle.max(wait))),
            _ => {}
        }
    }
}

fn complain(action: &Action, error: &ApiError, errors: u32) {
    let pod = action.name();
    match error {
        ApiError::Exists(_) | ApiError::Conflict(_) | ApiError::NotFound(_) if errors < 5 => {
            tracing::debug!(pod, ?action, %error, "somebody else was faster");
        }
        ApiError::Refused(_) | ApiError::Exists(_) if errors.is_power_of_two() => {
            tracing::error!(pod, ?action, %error, errors, "the API server refuses a change of a fuse pod; look at its quota, roles and policies");
        }
        _ if errors.is_power_of_two() => {
            tracing::warn!(pod, ?action, %error, errors, "a fuse pod cannot be changed; it is tried again")
        }
        _ => {}
    }
}
