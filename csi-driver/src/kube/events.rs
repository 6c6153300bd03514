//! Events that people see with `kubectl describe`: on the claim of the volume, else on its persistent volume, else on the node.
//! Never waited for, few per volume, and also in the log, which has all of them.

use super::api::{ApiError, ApiResult, list_all, within};
use crate::node::{
    engine::{Event, Events, LogEvents},
    paths::hashed,
};
use fusefs_types::Clock;
use k8s_openapi::{
    api::core::v1::{self as core, EventSource, ObjectReference, PersistentVolume},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// Events that wait to be written; more are only in the log.
const QUEUE: usize = 256;
/// Longest text of an event that API servers take.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Where events about things without a namespace go.
const NO_NAMESPACE: &str = "default";

/// How many events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventLimits {
    /// The same thing about the same volume is said once in this time, with its count.
    pub repeat: Duration,
    /// Events at once.
    pub burst: u32,
    /// After that, one in this time.
    pub period: Duration,
    /// How long a call may take.
    pub limit: Duration,
    /// Attempts to write one.
    pub attempts: u32,
}

impl Default for EventLimits {
    fn default() -> EventLimits {
        EventLimits {
            repeat: Duration::from_secs(300),
            burst: 50,
            period: Duration::from_secs(5),
            limit: Duration::from_secs(5),
            attempts: 6,
        }
    }
}

/// See the module. What is not written yet is forgotten when this is dropped.
pub struct KubeEvents {
    queue: mpsc::Sender<Event>,
    writer: JoinHandle<()>,
}

impl Drop for KubeEvents {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

impl KubeEvents {
    /// Starts to write events of `node`.
    pub fn start(client: Client, node: &str, clock: Arc<dyn Clock>, limits: EventLimits) -> KubeEvents {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let writer = Writer { client, node: node.to_owned(), clock, limits, volumes: HashMap::new() };
        KubeEvents { queue, writer: tokio::spawn(writer.run(waiting, Gate::new(limits))) }
    }
}

impl Events for KubeEvents {
    fn tell(&self, event: Event) {
        LogEvents.tell(event.clone());
        if self.queue.try_send(event).is_err() {
            tracing::debug!("too many events at once: this one is only in the log");
        }
    }
}

/// Reason, and whether it is a warning. Reasons are part of the interface: alerts and the documentation name them.
fn reason(event: &Event) -> (&'static str, bool) {
    match event {
        Event::Parked(..) => ("VolumeParked", true),
        Event::Remounted(_) => ("VolumeRemounted", true),
        Event::Found(_) => ("VolumeFound", false),
        Event::Rebound(..) => ("VolumeRebound", false),
        Event::Failed(..) => ("VolumeRepairFailed", true),
    }
}

fn volume(event: &Event) -> &str {
    match event {
        Event::Parked(v, _) | Event::Rebound(v, _) | Event::Failed(v, _) => v.as_str(),
        Event::Remounted(v) | Event::Found(v) => v.as_str(),
    }
}

fn message(event: &Event) -> String {
    match event {
        Event::Parked(v, why) => {
            format!("volume {v} was unstaged with data that is not in the object store yet: {why}")
        }
        Event::Remounted(v) => format!(
            "every holder of the mount of volume {v} was gone, so it was mounted again; programs that had files open need a restart"
        ),
        Event::Found(v) => {
            format!(
                "the node's records of volume {v} were lost; they were written again from what the masters and kubelet know"
            )
        }
        Event::Rebound(v, target) => format!("volume {v} was bound again for pod {}", pod_of(target)),
        Event::Failed(v, why) => format!("volume {v} could not be repaired yet, it is tried again: {why}"),
    }
}

/// Uid of the pod that a target belongs to.
fn pod_of(target: &Path) -> &str {
    let mut parts = target.iter().filter_map(|p| p.to_str()).skip_while(|p| *p != "pods");
    parts.nth(1).unwrap_or("unknown")
}

/// Name of the persistent volume in a target's path.
fn persistent_volume_of(event: &Event) -> Option<&str> {
    let Event::Rebound(_, target) = event else { return None };
    let mut parts = target.iter().filter_map(|p| p.to_str()).skip_while(|p| *p != "kubernetes.io~csi");
    parts.nth(1)
}

/// Lets few through.
struct Gate {
    limits: EventLimits,
    said: HashMap<(String, &'static str), (Instant, i32)>,
    tokens: u32,
    filled: Instant,
}

impl Gate {
    fn new(limits: EventLimits) -> Gate {
        Gate { limits, said: HashMap::new(), tokens: limits.burst, filled: Instant::now() }
    }

    /// How often it happened since it was said last; None = not now.
    fn pass(&mut self, event: &Event) -> Option<i32> {
        let now = Instant::now();
        while self.tokens < self.limits.burst && now >= self.filled + self.limits.period {
            self.tokens += 1;
            self.filled += self.limits.period;
        }
        if self.tokens == self.limits.burst {
            self.filled = now;
        }
        let repeat = self.limits.repeat;
        self.said.retain(|_, (last, _)| *last + repeat * 4 > now);
        let key = (volume(event).to_owned(), reason(event).0);
        if let Some((last, count)) = self.said.get_mut(&key)
            && *last + repeat > now
        {
            *count = count.saturating_add(1);
            return None;
        }
        self.tokens = self.tokens.checked_sub(1)?;
        let missed = self.said.insert(key, (now, 0)).map_or(0, |(_, count)| count);
        Some(missed.saturating_add(1))
    }
}

struct Writer {
    client: Client,
    node: String,
    clock: Arc<dyn Clock>,
    limits: EventLimits,
    /// Persistent volumes by volume id.
    volumes: HashMap<String, ObjectReference>,
}

impl Writer {
    async fn run(mut self, mut waiting: mpsc::Receiver<Event>, mut gate: Gate) {
        while let Some(event) = waiting.recv().await {
            let Some(count) = gate.pass(&event) else { continue };
            if let Err(error) = self.write_patiently(&event, count).await {
                tracing::debug!(%error, ?event, "the event is only in the log");
            }
        }
    }

    /// A lost answer makes no second event: the name is the same.
    async fn write_patiently(&mut self, event: &Event, count: i32) -> ApiResult<()> {
        let happened = self.clock.wall_ns();
        let mut pause = Duration::from_millis(500);
        for attempt in 1.. {
            match self.write(event, count, happened).await {
                Ok(()) | Err(ApiError::Exists(_)) => break,
                Err(error @ ApiError::Unavailable(_)) if attempt < self.limits.attempts => {
                    tracing::debug!(%error, attempt, "an event cannot be written; it is tried again");
                    sleep_until(Instant::now() + pause).await;
                    pause *= 2;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn write(&mut self, event: &Event, count: i32, happened: u64) -> ApiResult<()> {
        let object = self.object(event).await?;
        let namespace = object.namespace.clone().unwrap_or_else(|| NO_NAMESPACE.to_owned());
        let event = self.made(event, object, &namespace, (count, happened));
        let api: Api<core::Event> = Api::namespaced(self.client.clone(), &namespace);
        within(self.limits.limit, api.create(&PostParams::default(), &event)).await.map(|_| ())
    }

    fn made(&self, event: &Event, object: ObjectReference, namespace: &str, when: (i32, u64)) -> core::Event {
        let (count, happened) = when;
        let (reason, warning) = reason(event);
        let at = Timestamp::from_nanosecond(i128::from(happened)).map(Time).ok();
        let mut message = message(event);
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|n| message.is_char_boundary(*n)).unwrap_or(0);
        message.truncate(end.min(message.len()));
        let id = format!("{} {reason} {} {happened}", self.node, volume(event));
        core::Event {
            metadata: ObjectMeta {
                name: Some(format!("fusefs.{}", hashed(id.as_bytes()))),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: object,
            reason: Some(reason.to_owned()),
            message: Some(message),
            type_: Some(if warning { "Warning" } else { "Normal" }.to_owned()),
            count: Some(count),
            first_timestamp: at.clone(),
            last_timestamp: at,
            source: Some(EventSource { component: Some(crate::DRIVER_NAME.to_owned()), host: Some(self.node.clone()) }),
            reporting_component: Some(crate::DRIVER_NAME.to_owned()),
            reporting_instance: Some(self.node.clone()),
            ..core::Event::default()
        }
    }

    /// What the event is about.
    async fn object(&mut self, event: &Event) -> ApiResult<ObjectReference> {
        let id = volume(event);
        if let Some(known) = self.volumes.get(id) {
            return Ok(known.clone());
        }
        // Dynamic volumes are named like their persistent volume.
        let name = persistent_volume_of(event).unwrap_or(id);
        let found = match self.persistent_volume(name, id).await? {
            Some(v) => Some(v),
            None => self.search(id).await?,
        };
        let Some(found) = found else {
            let name = Some(self.node.clone());
            return Ok(ObjectReference {
                kind: Some("Node".into()),
                uid: name.clone(),
                name,
                ..ObjectReference::default()
            });
        };
        let about = reference(found);
        if self.volumes.len() >= QUEUE {
            self.volumes.clear();
        }
        self.volumes.insert(id.to_owned(), about.clone());
        Ok(about)
    }

    async fn persistent_volume(&self, name: &str, id: &str) -> ApiResult<Option<PersistentVolume>> {
        // An id may be no name of an object at all.
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)) {
            return Ok(None);
        }
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        match within(self.limits.limit, api.get_opt(name)).await {
            Ok(found) => Ok(found.filter(|v| is_of(v, id))),
            Err(ApiError::NotFound(_) | ApiError::Refused(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn search(&self, id: &str) -> ApiResult<Option<PersistentVolume>> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        match within(self.limits.limit * 3, list_all(&api, None, None)).await {
            Ok((all, _)) => Ok(all.into_iter().find(|v| is_of(v, id))),
            Err(ApiError::Refused(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn is_of(v: &PersistentVolume, id: &str) -> bool {
    let csi = v.spec.as_ref().and_then(|s| s.csi.as_ref());
    csi.is_some_and(|csi| csi.driver == crate::DRIVER_NAME && csi.volume_handle == id)
}

/// The claim, which is what users have; the volume if nobody claims it.
fn reference(v: PersistentVolume) -> ObjectReference {
    let kind = |kind: &str| (Some("v1".to_owned()), Some(kind.to_owned()));
    match v.spec.and_then(|s| s.claim_ref).filter(|c| c.name.is_some() && c.namespace.is_some()) {
        Some(claim) => {
            let (api_version, kind) = kind("PersistentVolumeClaim");
            ObjectReference {
                api_version,
                kind,
                name: claim.name,
                namespace: claim.namespace,
                uid: claim.uid,
                ..Default::default()
            }
        }
        None => {
            let (api_version, kind) = kind("PersistentVolume");
            ObjectReference { api_version, kind, name: v.metadata.name, uid: v.metadata.uid, ..Default::default() }
        }
    }
}
