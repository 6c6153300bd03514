//! The service's core: authenticates, finds the leader, answers within the caller's deadline. It takes and returns
//! `types`; gRPC and HTTP are translations around it.

use crate::{
    log::{Leadership, Log, LogError, view},
    memory::Memory,
    outside::Outside,
    settings::Settings,
    stores::Stores,
};
use bytes::Bytes;
use fusefs_cluster_state::{ClusterState, Command, Outcome, Reject};
use fusefs_types::{
    Clock, FsError, Rng, VolumeId,
    auth::{self, ClusterToken, MountClaim, Principal},
    cluster::{MasterCall, MasterRefusal, MasterReply, NodeCall, NodeReply, VolumeMap},
    ops::{Envelope, Refusal},
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout, timeout_at},
};

/// Nanoseconds in a second.
pub(crate) const NS_PER_S: u64 = 1_000_000_000;
/// Deadline of calls that name none.
const DEADLINE_DEFAULT: Duration = Duration::from_millis(fusefs_types::limits::CLI_TIMEOUT_MS);
/// No call waits longer, whatever its caller says.
const DEADLINE_MAX: Duration = Duration::from_secs(120);
/// How long a call waits for news (a leader, a heartbeat) before it looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Answer time of a metanode's order, short enough to try another node within a caller's deadline.
pub(crate) const NODE_CALL_MS: u32 = 4000;
/// One attempt to forward to the leader: long calls (create volume) are forwarded with what is left of the deadline.
const FORWARD_MARGIN: Duration = Duration::from_millis(300);

/// A refusal with its sentence.
pub(crate) fn refuse(error: FsError, message: impl Into<String>) -> MasterRefusal {
    MasterRefusal { error, message: message.into(), leader: None }
}

/// Why a step did not finish.
pub(crate) enum Halt {
    /// The caller is told.
    Refused(MasterRefusal),
    /// Leadership or quorum was lost midway: look for the leader again. Every call is idempotent.
    Again,
}

/// Result of a step.
pub(crate) type Step<T> = Result<T, Halt>;

impl From<MasterRefusal> for Halt {
    fn from(r: MasterRefusal) -> Halt {
        Halt::Refused(r)
    }
}

impl From<Reject> for Halt {
    fn from(r: Reject) -> Halt {
        Halt::Refused(refuse(r.error, r.message))
    }
}

impl From<LogError> for Halt {
    fn from(e: LogError) -> Halt {
        match e {
            LogError::NotLeader | LogError::Unavailable => Halt::Again,
            LogError::Refused(message) => Halt::Refused(refuse(FsError::Io, message)),
        }
    }
}

/// A refusal as a step's result.
pub(crate) fn halt<T>(error: FsError, message: impl Into<String>) -> Step<T> {
    Err(Halt::Refused(refuse(error, message)))
}

/// One call while it is answered.
pub(crate) struct Ask {
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// It may have been executed before by an earlier attempt.
    pub repeated: bool,
}

/// Counters for `/metrics`.
#[derive(Default)]
pub(crate) struct Counters {
    /// Calls by name and error code (0 = answered).
    pub calls: BTreeMap<(&'static str, u16), u64>,
}

/// One master.
pub struct Core {
    pub(crate) settings: Settings,
    pub(crate) token: Option<ClusterToken>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) outside: Arc<dyn Outside>,
    pub(crate) stores: Stores,
    pub(crate) memory: Mutex<Memory>,
    pub(crate) counters: Mutex<Counters>,
    /// Counts changes of the state and of leader hints; waiting calls and map watches look again.
    pub(crate) changed: watch::Sender<u64>,
    /// Wakes the reconciler.
    pub(crate) kick: Notify,
    /// One store or volume at a time is being added, so that a retry meets the first try.
    pub(crate) adding: tokio::sync::Mutex<()>,
}

impl Core {
    /// A core on a replicated log. `token` = None: everybody is trusted (loopback only, see [`Settings::token`]).
    pub fn new(
        settings: Settings,
        token: Option<ClusterToken>,
        log: Arc<dyn Log>,
        outside: Arc<dyn Outside>,
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
    ) -> Arc<Core> {
        let stores = Stores::new(settings.credentials_dir.clone());
        Arc::new(Core {
            settings,
            token,
            clock,
            rng,
            log,
            outside,
            stores,
            memory: Mutex::default(),
            counters: Mutex::default(),
            changed: watch::Sender::new(0),
            kick: Notify::new(),
            adding: tokio::sync::Mutex::new(()),
        })
    }

    /// Answers one call. `forwarded` = hops between masters so far. Ends by the envelope's deadline (15 s if it has
    /// none), with a sentence that says what was missing.
    pub async fn call(
        &self,
        envelope: Envelope,
        call: MasterCall,
        forwarded: u32,
    ) -> Result<MasterReply, MasterRefusal> {
        let name = call_name(&call);
        let result = match self.admit(&envelope, &call) {
            Ok(()) => self.answer(envelope, call, forwarded).await,
            Err(refusal) => Err(refusal),
        };
        let code = result.as_ref().err().map_or(0, |r| r.error.code());
        *self.counters.lock().calls.entry((name, code)).or_default() += 1;
        result
    }

    /// Authentication first, before anything is looked at.
    fn admit(&self, envelope: &Envelope, call: &MasterCall) -> Result<(), MasterRefusal> {
        let who = self.authenticate(envelope)?;
        self.check_cluster(envelope)?;
        permit(&who, call)
    }

    pub(crate) fn authenticate(&self, envelope: &Envelope) -> Result<Caller, MasterRefusal> {
        let refused = match auth::authenticate(self.token.as_ref(), envelope) {
            Ok(principal) => return Ok(Caller::Known(principal)),
            Err(e) => e,
        };
        self.mount_claim(envelope).map(Caller::Mount).ok_or_else(|| {
            refuse(refused, "no valid cluster token, session or mount token came with the request; pass the token file")
        })
    }

    /// What the mount token of a request claims, if it carries a valid one.
    pub(crate) fn mount_claim(&self, envelope: &Envelope) -> Option<MountClaim> {
        self.token.as_ref()?.mount_claim(&envelope.credential, self.now_ns() / NS_PER_S).ok()
    }

    pub(crate) fn check_cluster(&self, envelope: &Envelope) -> Result<(), MasterRefusal> {
        let own = self.view(ClusterState::cluster);
        if envelope.cluster.0 != 0 && own.0 != 0 && envelope.cluster != own {
            return Err(refuse(
                FsError::WrongCluster,
                format!("this is cluster {own}, not {}; check the master addresses", envelope.cluster),
            ));
        }
        Ok(())
    }

    async fn answer(&self, envelope: Envelope, call: MasterCall, hops: u32) -> Result<MasterReply, MasterRefusal> {
        let asked = Duration::from_millis(u64::from(envelope.deadline_ms));
        let wait = if asked.is_zero() { DEADLINE_DEFAULT } else { asked.min(DEADLINE_MAX) };
        let deadline = Instant::now() + wait;
        let mut ask = Ask { deadline, repeated: false };
        // Leave time for the sentence to reach the caller before it gives up itself.
        let until = Instant::now() + wait.mul_f32(0.9);
        let routed = async {
            loop {
                match self.attempt(&envelope, &call, hops, &ask).await {
                    Ok(reply) => return Ok(reply),
                    Err(Halt::Refused(r)) => return Err(r),
                    Err(Halt::Again) => ask.repeated = true,
                }
                let mut news = self.log.leadership();
                news.mark_unchanged();
                let _ = timeout(LOOK_AGAIN, news.changed()).await;
            }
        };
        match timeout_at(until, routed).await {
            Ok(result) => result,
            Err(_) => Err(self.too_late(&call)),
        }
    }

    /// The deadline has passed: says what was missing.
    fn too_late(&self, call: &MasterCall) -> MasterRefusal {
        let status = self.log.leadership().borrow().clone();
        let masters = self.log.masters();
        let reachable = masters.iter().filter(|m| m.2).count();
        let message = if let Some(why) = status.stopped {
            format!("this master has stopped: {why}")
        } else if reachable <= masters.len() / 2 {
            let silent: Vec<_> = masters.iter().filter(|m| !m.2).map(|m| m.0.as_str()).collect();
            format!(
                "no quorum: only {reachable} of {} masters can be reached; start or reconnect {}",
                masters.len(),
                silent.join(", ")
            )
        } else if status.ready {
            self.waiting_text(call)
        } else {
            match status.leader {
                Some(leader) => format!("the leading master {leader} did not answer in time; try again"),
                None => "the masters have not elected a leader yet; try again in a few seconds".into(),
            }
        };
        refuse(FsError::Unavailable, message)
    }

    fn waiting_text(&self, call: &MasterCall) -> String {
        if let MasterCall::CreateVolume(spec) = call {
            let id = self.view(|s| s.live_volume(&spec.name).map(|v| v.id));
            let memory = self.memory.lock();
            if let Some((_, why)) = id.and_then(|id| memory.creating.get(&id)) {
                return format!(
                    "volume {} is still being created: {why}; the same command continues to wait for it",
                    spec.name
                );
            }
        }
        "the call did not finish in time; trying again is safe".into()
    }

    /// One attempt: here if this master leads, otherwise at the leader.
    async fn attempt(&self, envelope: &Envelope, call: &MasterCall, hops: u32, ask: &Ask) -> Step<MasterReply> {
        let status = self.log.leadership().borrow().clone();
        if let Some(why) = &status.stopped {
            return halt(FsError::Unavailable, format!("this master has stopped: {why}"));
        }
        if status.ready {
            self.enter(&status);
            return self.lead(envelope, call, ask).await;
        }
        let own = self.settings.address();
        let leader = status.leader.filter(|l| l != own);
        if hops > 0 {
            let message = "this master does not lead".to_owned();
            return Err(MasterRefusal { error: FsError::NotLeader, message, leader }.into());
        }
        let Some(leader) = leader else { return Err(Halt::Again) };
        let left = ask.deadline.saturating_duration_since(Instant::now());
        let left = left.saturating_sub(FORWARD_MARGIN).max(FORWARD_MARGIN);
        let forward = Envelope { deadline_ms: left.as_millis() as u32, ..envelope.clone() };
        match self.outside.master(&leader, forward, call.clone()).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(r)) if r.error == FsError::NotLeader => Err(Halt::Again),
            Ok(Err(r)) if ask.repeated && r.error == FsError::NotFound && is_delete(call) => Ok(MasterReply::Ok),
            Ok(Err(r)) => Err(r.into()),
            Err(e) => {
                tracing::debug!(leader, error = %e, "forwarding failed");
                Err(Halt::Again)
            }
        }
    }

    /// Leader memory belongs to one term; the first call of a new one empties it.
    pub(crate) fn enter(&self, status: &Leadership) {
        self.memory.lock().enter(status.term, self.clock.boot_ns());
    }

    /// Looks at the state.
    pub(crate) fn view<R>(&self, f: impl FnOnce(&ClusterState) -> R) -> R {
        view(self.log.as_ref(), f)
    }

    /// Commits a command; wakes whoever waits for a change.
    pub(crate) async fn commit(&self, command: Command) -> Step<Outcome> {
        let outcome = self.log.propose(command).await??;
        self.announce();
        Ok(outcome)
    }

    pub(crate) fn announce(&self) {
        self.changed.send_modify(|n| *n += 1);
        self.kick.notify_waiters();
    }

    /// Envelope of our own calls to metanodes and masters.
    pub(crate) fn own_envelope(&self, volume: VolumeId) -> Envelope {
        Envelope {
            cluster: self.view(ClusterState::cluster),
            volume,
            credential: self.token.as_ref().map_or_else(Bytes::new, ClusterToken::credential),
            deadline_ms: NODE_CALL_MS,
            trace: self.rng.next_u64(),
            ..Envelope::default()
        }
    }

    /// An order to one metanode, as text when it fails.
    pub(crate) async fn order(&self, addr: &str, volume: VolumeId, call: NodeCall) -> Result<NodeReply, Refusal> {
        let wait = Duration::from_millis(u64::from(NODE_CALL_MS) + 500);
        match timeout(wait, self.outside.node(addr, self.own_envelope(volume), call)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => {
                tracing::debug!(addr, error = %e, "metanode unreachable");
                Err(FsError::Unavailable.into())
            }
            Err(_) => Err(FsError::TimedOut.into()),
        }
    }

    /// Partition map with the leaders as reported.
    pub(crate) fn map(&self, volume: VolumeId) -> Option<VolumeMap> {
        let memory = self.memory.lock();
        self.view(|s| s.map(volume, |p| memory.leaders.get(&p).map(|l| l.replica)))
    }

    /// Now, wall clock.
    pub(crate) fn now_ns(&self) -> u64 {
        self.clock.wall_ns()
    }

    /// True while this master leads.
    pub fn leads(&self) -> bool {
        self.log.leadership().borrow().ready
    }
}

fn is_delete(call: &MasterCall) -> bool {
    matches!(call, MasterCall::DeleteVolume(..))
}

/// Who asks.
pub(crate) enum Caller {
    /// By cluster token or session secret.
    Known(Principal),
    /// By a mount token.
    Mount(MountClaim),
}

/// What a session's own secret opens: its lease, its end and its volume's map. A mount token opens sessions of its
/// attachment, which the leader looks at again. Everything else needs the cluster token.
pub(crate) fn permit(who: &Caller, call: &MasterCall) -> Result<(), MasterRefusal> {
    let own = match (who, call) {
        (Caller::Known(Principal::Cluster), _) => true,
        (
            Caller::Known(Principal::Session(own, _)),
            MasterCall::RenewSession(s, _) | MasterCall::CloseSession(s, ..),
        ) => s == own,
        (Caller::Known(Principal::Session(_, own)), MasterCall::GetMap(v)) => v == own,
        (Caller::Mount(claim), MasterCall::OpenSession(r)) => r.token.attach == claim.generation,
        _ => false,
    };
    if own { Ok(()) } else { Err(refuse(FsError::Unauthenticated, "this call needs the cluster token")) }
}

/// Name for logs and metrics.
pub(crate) fn call_name(call: &MasterCall) -> &'static str {
    match call {
        MasterCall::Register(_) => "register",
        MasterCall::Heartbeat(_) => "heartbeat",
        MasterCall::Info => "info",
        MasterCall::AddStore(_) => "add_store",
        MasterCall::ListStores => "list_stores",
        MasterCall::ProbeStore(_) => "probe_store",
        MasterCall::CreateVolume(_) => "create_volume",
        MasterCall::GetVolume(_) => "get_volume",
        MasterCall::ListVolumes => "list_volumes",
        MasterCall::ExpandVolume(..) => "expand_volume",
        MasterCall::DeleteVolume(..) => "delete_volume",
        MasterCall::GetMap(_) => "get_map",
        MasterCall::OpenSession(_) => "open_session",
        MasterCall::RenewSession(..) => "renew_session",
        MasterCall::AttachSession(..) => "attach_session",
        MasterCall::CloseSession(..) => "close_session",
        MasterCall::RevokeSession(_) => "revoke_session",
        MasterCall::SessionsOf(_) => "sessions_of",
        MasterCall::ListSessions(_) => "list_sessions",
        MasterCall::StoreAccess(_) => "store_access",
        MasterCall::AddMounter(_) => "add_mounter",
        MasterCall::PublishVolume(_) => "publish_volume",
        MasterCall::UnpublishVolume(..) => "unpublish_volume",
        MasterCall::ListPublications(_) => "list_publications",
        MasterCall::MountToken(..) => "mount_token",
    }
}
