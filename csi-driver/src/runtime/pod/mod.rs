//! Runtime `pod`: this process mounts, and an unprivileged pod serves. Every fd is held here, by the node keeper and in the
//! pod: a mount is lost only when all three are gone at once (PROTOCOL 47).

pub mod dial;
mod keeper;
mod tend;

pub use keeper::NodeKeeper;
pub use tend::{HostFinder, State};

use super::{MountSpec, Runtime, RuntimeStatus, Unstaged};
use crate::{
    Fault, Outcome,
    node::{io_fault, mounts::Mounts},
};
use async_trait::async_trait;
use fusefs_fuse_client::{
    fuse::MountSettings,
    keeper::Store,
    supervise::{self, Held, HeldPlan},
};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tend::Tended;
use tokio::sync::watch;
use tokio::time::Instant;

/// Between two looks whether the node keeper was started anew and is empty.
const KEEPER_LOOK: Duration = Duration::from_millis(200);
/// Credentials are good for much longer; a mount needs one whenever one of its processes starts.
const RENEW_AFTER: Duration = Duration::from_secs(24 * 3600);
/// A lazy unmount does not wait for anybody.
const DETACH_PATIENCE: Duration = Duration::from_secs(10);

/// How a mount is made.
pub struct MountOrder {
    /// Where and how.
    pub settings: MountSettings,
    /// Options for the client.
    pub spec: Vec<u8>,
    /// Size of a new journal, in bytes.
    pub journal_bytes: u64,
    /// Keep requests in slots on every kernel.
    pub slots: bool,
}

/// What the runtime does not know by itself.
#[async_trait]
pub trait MountMaker: Send + Sync + 'static {
    /// Options of a mount.
    fn order(&self, spec: &MountSpec) -> Outcome<MountOrder>;
    /// What its client shows to the masters; a secret.
    async fn credential(&self, spec: &MountSpec) -> Outcome<Vec<u8>>;
    /// Random.
    fn mount_id(&self) -> u128;
}

/// Settings of the runtime.
#[derive(Clone, Debug)]
pub struct PodSettings {
    /// Directory above the sockets of those who serve: kubelet's, at the same path as on the node.
    pub base: PathBuf,
    /// Journals go below it, one directory per volume.
    pub state_dir: PathBuf,
    /// How long NodeStageVolume waits for the pod and its client.
    pub start_timeout: Duration,
    /// The binary `fusefs`, for unmounts.
    pub binary: PathBuf,
}

/// Mounts for fuse pods.
pub struct PodRuntime {
    settings: PodSettings,
    maker: Arc<dyn MountMaker>,
    finder: Arc<dyn HostFinder>,
    keeper: NodeKeeper,
    tended: Mutex<HashMap<String, Arc<Tended>>>,
    /// Keys at the node keeper that nobody wanted the last time.
    unwanted: Mutex<HashSet<String>>,
}

impl PodRuntime {
    /// Makes the directory of the journals (mode 0700), and watches over the node keeper as long as the runtime lives.
    pub fn new(
        settings: PodSettings,
        maker: Arc<dyn MountMaker>,
        finder: Arc<dyn HostFinder>,
        keeper: NodeKeeper,
    ) -> io::Result<Arc<PodRuntime>> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&settings.state_dir)?;
        let runtime = Arc::new(PodRuntime {
            settings,
            maker,
            finder,
            keeper,
            tended: Mutex::default(),
            unwanted: Mutex::default(),
        });
        let watched = Arc::downgrade(&runtime);
        std::thread::Builder::new().name("node-keeper".into()).spawn(move || {
            let mut link = None;
            while let Some(runtime) = watched.upgrade() {
                runtime.refill(&mut link);
                drop(runtime);
                super::pause(KEEPER_LOOK); // nothing tells when its socket is there again
            }
        })?;
        Ok(runtime)
    }

    /// Gives everything to a keeper that was started anew. `link` stays open as long as one keeper lives.
    fn refill(&self, link: &mut Option<fusefs_fuse_client::keeper::Channel>) {
        use fusefs_fuse_client::keeper::sys;
        use std::os::fd::AsFd;
        if let Some(channel) = link {
            if sys::readiness(channel.as_fd(), nix::poll::PollFlags::POLLIN, 0).is_none() {
                return;
            }
            *link = None;
        }
        let Ok(Some(channel)) = self.keeper.connect() else { return };
        let all: Vec<_> = self.tended.lock().values().cloned().collect();
        for tended in all {
            let held = tended.held.lock();
            let Some(held) = &*held else { continue };
            if let Err(error) = held.share(&channel, &tended.key) {
                tracing::warn!(volume = tended.volume, %error, "the node keeper does not take a mount");
                return;
            }
        }
        *link = Some(channel);
    }

    fn state_of(&self, spec: &MountSpec) -> PathBuf {
        self.settings.state_dir.join(&spec.key)
    }

    /// The mount if its kernel connection lives here.
    fn living(&self, spec: &MountSpec) -> Option<Arc<Tended>> {
        let tended = self.tended.lock().get(&spec.key).cloned()?;
        let alive = tended.held.lock().as_ref().is_some_and(Held::alive);
        alive.then_some(tended)
    }

    /// From now on the keeper has the mount, too, and a thread looks after it.
    fn tend(&self, spec: &MountSpec, held: Held, ending: bool) -> Outcome<Arc<Tended>> {
        let journal_bytes = self.maker.order(spec)?.journal_bytes;
        let (state, _) = watch::channel(State::Waiting("its fuse pod is looked for".into()));
        let tended = Arc::new(Tended {
            key: spec.key.clone(),
            volume: spec.volume.clone(),
            base: self.settings.base.clone(),
            journal_bytes,
            finder: self.finder.clone(),
            keeper: self.keeper.clone(),
            runtime: tokio::runtime::Handle::current(),
            held: Mutex::new(Some(held)),
            state,
            ending: ending.into(),
            minted: Mutex::new(Instant::now()),
            renewed: false.into(),
            bell: fusefs_fuse_client::keeper::sys::pair().map_err(|e| io_fault("making a pipe", &e))?,
        });
        self.tended.lock().insert(spec.key.clone(), tended.clone());
        // After that line: a keeper that is away now gets everything that is tended when it is back.
        if let Some(held) = &*tended.held.lock()
            && let Err(error) = self.keeper.share(&spec.key, held)
        {
            tracing::warn!(%error, "the node keeper does not answer; it gets the mount when it is back");
        }
        let worker = tended.clone();
        let started = std::thread::Builder::new().name("tend".into()).spawn(move || worker.run());
        started.map_err(|e| io_fault("starting a thread", &e))?;
        Ok(tended)
    }

    /// Waits for a client that serves.
    async fn served(&self, spec: &MountSpec, tended: &Tended) -> Outcome<()> {
        let mut state = tended.state.subscribe();
        let ready = state.wait_for(|s| !matches!(s, State::Waiting(_)));
        let found = tokio::time::timeout(self.settings.start_timeout, ready).await;
        drop(found); // a borrow of the state
        let found = tended.state.borrow().clone();
        let why = match found {
            State::Serving => return Ok(()),
            State::Poisoned => "the cluster has ended its session".to_owned(),
            State::Waiting(why) => why,
            State::Ended(outcome) => {
                self.drop_failed(spec, tended).await?;
                match outcome {
                    supervise::Outcome::Failed(why) => format!("{why}; its fuse pod's log says more"),
                    other => format!("it ended: {other:?}"),
                }
            }
        };
        Err(Fault::unavailable(format!("volume {} is not served: {why}", spec.name)))
    }

    /// A mount whose client never served: nobody has used it.
    async fn drop_failed(&self, spec: &MountSpec, tended: &Tended) -> Outcome<()> {
        self.detach(&spec.staging).await?;
        self.let_go(tended, false);
        Ok(())
    }

    async fn detach(&self, staging: &Path) -> Outcome<()> {
        if is_mounted(staging)? && !self.umount(staging, true, DETACH_PATIENCE).await? && is_mounted(staging)? {
            return Err(Fault::unavailable(format!("{} cannot be unmounted", staging.display())));
        }
        Ok(())
    }

    /// `fusefs umount` in a process of its own: it may wait for whoever serves the mount. False = not in time.
    async fn umount(&self, staging: &Path, lazy: bool, patience: Duration) -> Outcome<bool> {
        let mut command = tokio::process::Command::new(&self.settings.binary);
        command.arg("umount").args(lazy.then_some("--lazy")).arg("--").arg(staging).env_clear().kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = tokio::time::timeout(patience, command.status()).await;
        let status = status.ok().transpose().map_err(|e| io_fault("starting fusefs umount", &e))?;
        Ok(status.is_some_and(|s| s.success()))
    }

    /// Closes every fd here and at the keeper.
    fn let_go(&self, tended: &Tended, clean: bool) {
        if let Err(error) = self.keeper.forget(&tended.key) {
            tracing::warn!(%error, volume = tended.volume, "the node keeper does not answer");
        }
        if let Some(held) = tended.held.lock().take() {
            held.unprotect();
            if clean {
                held.forget();
            }
        }
        self.tended.lock().remove(&tended.key);
    }

    /// A mount that was unmounted by an earlier call, perhaps of an earlier plugin, which did not see its end: the last
    /// flush may be under way, or still to be made.
    async fn ended(&self, spec: &MountSpec) -> Outcome<Option<Arc<Tended>>> {
        let known = self.tended.lock().get(&spec.key).cloned();
        if let Some(tended) = known.filter(|t| t.held.lock().is_some()) {
            return Ok(Some(tended));
        }
        // The host first: the keeper may still have an earlier mount.
        let (keeper, key, base, state) =
            (self.keeper.clone(), spec.key.clone(), self.settings.base.clone(), self.state_of(spec));
        let path = self.finder.find(&spec.volume).await.ok().flatten();
        let found = tokio::task::spawn_blocking(move || {
            let has = |store: &Store| store.fd(supervise::names::FUSE).is_some();
            let host = path.and_then(|path| dial::dial(&base, &path).and_then(|host| host.all()).ok());
            let store = host.filter(has).or_else(|| keeper.items(&key).ok().filter(has));
            store.map_or(Ok(None), |store| Held::adopt_ended(store, &state))
        });
        let held = found.await.map_err(|e| Fault::unavailable(e.to_string()))?;
        let held = held.map_err(|e| Fault::unavailable(format!("the end of {}: {e}", spec.name)))?;
        held.map(|held| self.tend(spec, held, true)).transpose()
    }

    /// Items of a living mount from whoever has them: the node keeper, or the pod.
    async fn found(&self, spec: &MountSpec) -> Option<Store> {
        let (keeper, key) = (self.keeper.clone(), spec.key.clone());
        let kept = tokio::task::spawn_blocking(move || keeper.items(&key)).await;
        match kept {
            // It may still have an earlier mount that has ended.
            Ok(Ok(store)) if alive(&store) => return Some(store),
            Ok(Err(error)) => tracing::warn!(%error, "the node keeper does not answer"),
            _ => {}
        }
        let path = self.finder.find(&spec.volume).await.ok().flatten()?;
        let base = self.settings.base.clone();
        let asked = tokio::task::spawn_blocking(move || dial::dial(&base, &path)?.all()).await;
        asked.ok()?.ok().filter(alive)
    }
}

fn alive(store: &Store) -> bool {
    use fusefs_fuse_client::keeper::sys;
    store.fd(supervise::names::FUSE).is_some_and(|fd| !sys::connection_gone(fd))
}

fn is_mounted(staging: &Path) -> Outcome<bool> {
    let mounts = Mounts::read().map_err(|e| io_fault("reading mountinfo", &e))?;
    Ok(mounts.top(staging).is_some_and(crate::node::plan::ours))
}

#[async_trait]
impl Runtime for PodRuntime {
    async fn stage(&self, spec: &MountSpec) -> Outcome<()> {
        if let Some(tended) = self.living(spec) {
            return self.served(spec, &tended).await;
        }
        let order = self.maker.order(spec)?;
        let credential = self.maker.credential(spec).await?;
        let (mount_id, state) = (self.maker.mount_id(), self.state_of(spec));
        let made = tokio::task::spawn_blocking(move || {
            Held::make(&HeldPlan {
                mount: &order.settings,
                state: &state,
                journal_bytes: order.journal_bytes,
                slots: order.slots,
                spec: &order.spec,
                mount_id,
                credential: &credential,
            })
        });
        let held = made.await.map_err(|e| Fault::unavailable(e.to_string()))?;
        let held = held.map_err(|e| Fault::unavailable(format!("mounting volume {}: {e}", spec.name)))?;
        let tended = self.tend(spec, held, false)?;
        self.served(spec, &tended).await
    }

    async fn adopt(&self, spec: &MountSpec) -> Outcome<()> {
        if let Some(tended) = self.living(spec) {
            let failed = matches!(*tended.state.borrow(), State::Ended(supervise::Outcome::Failed(_)));
            // Whoever had it made did not wait for the end.
            return if failed { self.drop_failed(spec, &tended).await } else { Ok(()) };
        }
        if !is_mounted(&spec.staging)? {
            return Ok(());
        }
        let Some(store) = self.found(spec).await else { return Ok(()) };
        let adopted = Held::adopt(store, &self.state_of(spec));
        let Some(held) = adopted.map_err(|e| Fault::unavailable(format!("taking over {}: {e}", spec.name)))? else {
            return Ok(());
        };
        tracing::info!(volume = spec.volume, "took over a living mount");
        self.tend(spec, held, false).map(drop)
    }

    async fn refresh(&self, spec: &MountSpec) {
        let Some(tended) = self.living(spec) else { return };
        if tended.minted.lock().elapsed() < RENEW_AFTER {
            return;
        }
        match self.maker.credential(spec).await {
            Ok(credential) => {
                let mut held = tended.held.lock();
                let Some(held) = &mut *held else { return };
                held.set_credential(credential);
                *tended.minted.lock() = Instant::now();
                tended.renewed.store(true, Ordering::Release);
                if let Err(error) = self.keeper.share(&spec.key, held) {
                    tracing::warn!(%error, "the node keeper does not answer");
                }
            }
            Err(fault) => tracing::warn!(volume = spec.volume, "the mount token cannot be renewed: {}", fault.message),
        }
    }

    async fn unstage(&self, spec: &MountSpec, patience: Duration) -> Outcome<Unstaged> {
        self.adopt(spec).await?;
        let tended = match self.living(spec) {
            Some(tended) => Some(tended),
            None => self.ended(spec).await?,
        };
        let Some(tended) = tended else {
            self.detach(&spec.staging).await?;
            self.finder.release(&spec.volume).await;
            let empty = Held::forget_unheld(&self.state_of(spec));
            return Ok(if empty { Unstaged::Flushed } else { Unstaged::Parked("nobody served the mount".into()) });
        };
        let deadline = tokio::time::Instant::now() + patience;
        tended.expect_end();
        if !self.umount(&spec.staging, false, patience).await? {
            self.detach(&spec.staging).await?;
        }
        let mut state = tended.state.subscribe();
        let ended = tokio::time::timeout_at(deadline, state.wait_for(|s| matches!(s, State::Ended(_)))).await;
        let ended = ended.ok().and_then(Result::ok).map(|s| s.clone());
        let journal = self.state_of(spec);
        let left =
            |why: &str| Unstaged::Parked(format!("{why}; what is not in the object store is in {}", journal.display()));
        let (answer, clean) = match ended {
            Some(State::Ended(supervise::Outcome::Ended(0))) => (Unstaged::Flushed, true),
            Some(State::Ended(other)) => (left(&format!("the end was not clean ({other:?})")), false),
            _ => (left("the flush did not end in time"), false),
        };
        self.let_go(&tended, clean);
        self.finder.release(&spec.volume).await;
        Ok(answer)
    }

    async fn collect(&self, wanted: &HashSet<String>) {
        let keeper = self.keeper.clone();
        let kept = tokio::task::spawn_blocking(move || keeper.keys()).await;
        let Ok(Ok(kept)) = kept else { return }; // away; there is another time
        let here: HashSet<String> = self.tended.lock().keys().cloned().collect();
        let unwanted: HashSet<String> = kept.into_iter().filter(|k| !wanted.contains(k) && !here.contains(k)).collect();
        let before = std::mem::replace(&mut *self.unwanted.lock(), unwanted.clone());
        for key in unwanted.intersection(&before) {
            // A living one may be somebody's whose record was lost.
            if self.keeper.items(key).is_ok_and(|store| alive(&store)) {
                continue;
            }
            tracing::warn!(key, "the node keeper holds a mount that nobody wants; it lets go");
            if let Err(error) = self.keeper.forget(key) {
                tracing::warn!(%error, "the node keeper does not answer");
            }
        }
        self.finder.collect(wanted).await;
    }

    async fn status(&self, spec: &MountSpec) -> RuntimeStatus {
        match self.living(spec).map(|t| t.state.borrow().clone()) {
            Some(State::Serving | State::Poisoned) => RuntimeStatus::Running,
            Some(_) => RuntimeStatus::Unknown,
            None => RuntimeStatus::Absent,
        }
    }
}
