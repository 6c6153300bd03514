//! Calls to the masters: any order of addresses, follow the leader, and say what is wrong when nobody answers.

use crate::{
    calls::{Backoff, Identity, Settings, Who},
    counters::Counters,
    transport::{MapStream, Transport},
};
use fusefs_types::{
    FsError, Rng, VolumeId,
    cluster::{MasterCall, MasterRefusal, MasterReply},
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// One attempt of a call that only reads or records something.
const QUICK: Duration = Duration::from_secs(3);

/// Hints followed without a pause; after a change of leaders they may point in circles.
const HINTS_AT_ONCE: usize = 4;

/// Client of the masters' service.
pub struct MasterClient {
    settings: Settings,
    transport: Arc<dyn Transport>,
    rng: Arc<dyn Rng>,
    identity: Arc<Identity>,
    counters: Arc<Counters>,
    /// Leader as last heard, and the address to try next without one.
    place: Mutex<(Option<String>, usize)>,
}

/// Whether the master works on it for long (probes stores, waits for replicas).
fn slow(call: &MasterCall) -> bool {
    matches!(
        call,
        MasterCall::AddStore(_)
            | MasterCall::ProbeStore(_)
            | MasterCall::CreateVolume(_)
            | MasterCall::DeleteVolume(..)
            | MasterCall::CloseSession(..)
            | MasterCall::RevokeSession(_)
            | MasterCall::UnpublishVolume(..)
    )
}

impl MasterClient {
    /// A client with the credential of `settings`.
    pub fn new(settings: Settings, transport: Arc<dyn Transport>, rng: Arc<dyn Rng>) -> MasterClient {
        let identity = Arc::new(Identity::new(settings.credential.clone(), &*rng));
        MasterClient::with(settings, transport, rng, identity, Arc::default())
    }

    pub(crate) fn with(
        settings: Settings,
        transport: Arc<dyn Transport>,
        rng: Arc<dyn Rng>,
        identity: Arc<Identity>,
        counters: Arc<Counters>,
    ) -> MasterClient {
        MasterClient { settings, transport, rng, identity, counters, place: Mutex::new((None, 0)) }
    }

    /// Speaks for a cluster or volume from now on (both may be 0).
    pub fn identify(&self, cluster: fusefs_types::ClusterId, volume: VolumeId) {
        let who = self.identity.who();
        self.identity.set(Who { cluster, volume, ..who });
    }

    /// One call, retried within `Settings::master_timeout`. The refusal's sentence names every address and why it did
    /// not help.
    pub async fn call(&self, call: MasterCall) -> Result<MasterReply, MasterRefusal> {
        self.call_within(call, self.settings.master_timeout).await
    }

    /// The same with a limit of its own.
    pub async fn call_within(&self, call: MasterCall, limit: Duration) -> Result<MasterReply, MasterRefusal> {
        let (begin, end) = (Instant::now(), Instant::now() + limit);
        let mut failures: BTreeMap<String, String> = BTreeMap::new();
        let mut backoff = Backoff::new(20, 500);
        let mut busy = None;
        let mut tried = 0;
        loop {
            let Some(addr) = self.target() else { return Err(refusal(FsError::Invalid, "no master address given")) };
            let left = end.saturating_duration_since(Instant::now());
            let limit = if slow(&call) { left } else { left.min(QUICK) };
            self.counters.add("master");
            let envelope = self.identity.envelope(0, limit);
            let attempt = self.transport.master(&addr, envelope, &call);
            let mut moved = false;
            match tokio::time::timeout(limit, attempt).await {
                Ok(Ok(Ok(reply))) => {
                    self.place.lock().0 = Some(addr);
                    return Ok(reply);
                }
                Ok(Ok(Err(r))) => match r.error {
                    FsError::NotLeader => {
                        failures.insert(addr.clone(), not_leader(r.leader.as_deref()));
                        moved = self.redirect(&addr, r.leader);
                    }
                    FsError::Unavailable | FsError::Overloaded => {
                        failures.insert(addr.clone(), r.message.clone());
                        self.next(&addr);
                        busy = Some(r.error);
                    }
                    _ => return Err(r),
                },
                Ok(Err(e)) if e.error != FsError::Unavailable => {
                    return Err(refusal(e.error, &format!("master {addr}: {e}")));
                }
                Ok(Err(e)) => {
                    failures.insert(addr.clone(), e.reason);
                    self.next(&addr);
                }
                Err(_) => {
                    // The last attempt may have had no time; the reason of an earlier one says more.
                    failures.entry(addr.clone()).or_insert_with(|| format!("no answer within {limit:.1?}"));
                    self.next(&addr);
                }
            }
            if Instant::now() >= end {
                return Err(self.nobody(&failures, begin.elapsed(), busy));
            }
            tried += 1;
            // Every address of the first round and a few hints deserve an immediate try.
            let first_round = tried < self.settings.masters.len();
            if !(first_round || moved && tried <= HINTS_AT_ONCE) {
                backoff.pause(&*self.rng, 0, Some(end)).await;
            }
        }
    }

    fn nobody(&self, failures: &BTreeMap<String, String>, spent: Duration, busy: Option<FsError>) -> MasterRefusal {
        let lines: Vec<String> = failures.iter().map(|(a, why)| format!("{a}: {why}")).collect();
        let text = format!(
            "no master could answer within {:.0} s: {}. Check the addresses and that a majority of the masters runs.",
            spent.as_secs_f32(),
            lines.join("; ")
        );
        refusal(busy.unwrap_or(FsError::Unavailable), &text)
    }

    /// The map stream of a volume from whichever master gives one first.
    pub(crate) async fn watch(&self, volume: VolumeId) -> Option<MapStream> {
        let addr = self.target()?;
        let envelope = self.identity.envelope(0, QUICK);
        match tokio::time::timeout(QUICK, self.transport.watch_map(&addr, envelope, volume)).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(_)) | Err(_) => {
                self.next(&addr);
                None
            }
        }
    }

    fn target(&self) -> Option<String> {
        let place = self.place.lock();
        if place.0.is_some() {
            return place.0.clone();
        }
        let masters = &self.settings.masters;
        masters.get(place.1 % masters.len().max(1)).cloned()
    }

    /// `addr` does not help: forget it as the leader and go on with the next of the list.
    pub(crate) fn next(&self, addr: &str) {
        let mut place = self.place.lock();
        if place.0.as_deref() == Some(addr) {
            place.0 = None;
        }
        let masters = &self.settings.masters;
        if masters.get(place.1 % masters.len().max(1)).is_some_and(|a| a == addr) || place.0.is_none() {
            place.1 = place.1.wrapping_add(1);
        }
    }

    /// Follows a hint; true when there is somewhere new to go at once.
    fn redirect(&self, addr: &str, leader: Option<String>) -> bool {
        match leader {
            Some(leader) if leader != addr => {
                self.place.lock().0 = Some(leader);
                true
            }
            _ => {
                self.next(addr);
                false
            }
        }
    }
}

fn not_leader(hint: Option<&str>) -> String {
    match hint {
        Some(leader) => format!("is not the leader, names {leader}"),
        None => "is not the leader and knows none (no majority?)".to_owned(),
    }
}

pub(crate) fn refusal(error: FsError, message: &str) -> MasterRefusal {
    MasterRefusal { error, message: message.to_owned(), leader: None }
}
