//! One thread per mount: finds whoever serves it now, hands everything over when that is another process than before, and
//! mirrors what the client writes.

use super::{dial, keeper::NodeKeeper};
use fusefs_fuse_client::{
    keeper::{Channel, sys},
    supervise::{ClientRecord, Held, Outcome, Phase, names},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;
use tokio::time::Instant;

/// Between two tries to reach a pod that is being started.
const RETRY: Duration = Duration::from_millis(20);
/// Between two questions for the pod's uid while it cannot be reached.
const ASK_AGAIN: Duration = Duration::from_millis(300);
/// Between two looks at what a client that does not serve yet says.
const LOOK_STARTING_MS: u16 = 20;
/// The same for one that serves.
const LOOK_SERVING_MS: u16 = 1_000;

/// Finds the process (`fusefs fuse-pod`) that serves a volume on this node.
#[async_trait::async_trait]
pub trait HostFinder: Send + Sync + 'static {
    /// Path of its socket below [`super::PodSettings::base`]; None when there is none (yet). Errors are words for the
    /// orchestrator's user.
    async fn find(&self, volume: &str) -> Result<Option<PathBuf>, String>;
    /// The volume's mount is over: nobody has to serve it any more.
    async fn release(&self, _volume: &str) {}
    /// As [`super::super::Runtime::collect`].
    async fn collect(&self, _wanted: &HashSet<String>) {}
}

/// How far the mount is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody serves it; why.
    Waiting(String),
    /// A client answers the kernel.
    Serving,
    /// A client answers with errors until the unmount: the cluster has ended the session.
    Poisoned,
    /// It is over.
    Ended(Outcome),
}

/// What a thread tends.
pub(super) struct Tended {
    pub key: String,
    pub volume: String,
    pub base: PathBuf,
    pub journal_bytes: u64,
    pub finder: Arc<dyn HostFinder>,
    pub keeper: NodeKeeper,
    pub runtime: tokio::runtime::Handle,
    /// None once the mount is over: every fd of this process is closed then.
    pub held: Mutex<Option<Held>>,
    pub state: watch::Sender<State>,
    /// An unmount is under way: when the connection ends, the outcome is waited for.
    pub ending: AtomicBool,
    /// When the credential was given out.
    pub minted: Mutex<Instant>,
    /// It was replaced; the host has to know.
    pub renewed: AtomicBool,
    /// Both ends of a pipe of ours; something in it wakes the thread.
    pub bell: (OwnedFd, OwnedFd),
}

impl Tended {
    /// From now on the mount's end is expected, and looked for.
    pub fn expect_end(&self) {
        self.ending.store(true, Ordering::Release);
        if let Err(error) = sys::send(self.bell.0.as_fd(), &[1], &[]) {
            tracing::debug!(%error, "the bell");
        }
    }

    /// Runs until the mount has ended.
    pub fn run(self: Arc<Tended>) {
        let (mut path, mut asked) = (None::<PathBuf>, None::<Instant>);
        while !self.over() {
            let reached = path.as_deref().map(|path| dial::dial(&self.base, path));
            match reached {
                Some(Ok(host)) => {
                    if let Err(error) = self.attend(&host) {
                        tracing::debug!(volume = self.volume, %error, "the fuse pod's connection ended");
                    }
                    asked = None;
                }
                _ if asked.is_none_or(|at| at.elapsed() >= ASK_AGAIN) => {
                    asked = Some(Instant::now());
                    path = self.ask();
                }
                _ => super::super::pause(RETRY), // nothing tells when a container's socket is there
            }
        }
    }

    fn over(&self) -> bool {
        if matches!(*self.state.borrow(), State::Ended(_)) {
            return true;
        }
        let mut held = self.held.lock();
        match &*held {
            None => true,
            // Nobody can serve it any more, and nobody waits for a last flush.
            Some(h) if !h.alive() && !self.ending.load(Ordering::Acquire) => {
                *held = None;
                self.state.send_replace(State::Waiting("the mount is gone".into()));
                true
            }
            Some(_) => false,
        }
    }

    fn ask(&self) -> Option<PathBuf> {
        let found = self.runtime.block_on(self.finder.find(&self.volume));
        let why = match found {
            Ok(Some(path)) => {
                self.say(format!("its fuse pod does not answer yet at {}", path.display()));
                return Some(path);
            }
            Ok(None) => "its fuse pod is not there yet".to_owned(),
            Err(why) => why,
        };
        self.say(why);
        super::super::pause(RETRY);
        None
    }

    fn say(&self, why: String) {
        let new = State::Waiting(why);
        self.state.send_if_modified(|s| {
            *s != new && {
                *s = new;
                true
            }
        });
    }

    /// While one connection to a supervisor lasts.
    fn attend(&self, host: &Channel) -> io::Result<()> {
        {
            let held = self.held.lock();
            let Some(held) = &*held else { return Ok(()) };
            if !held.is_at(host)? {
                tracing::info!(volume = self.volume, "handing the mount to its fuse pod");
                held.entrust(host)?;
            }
        }
        loop {
            let serving = self.look(host)?;
            if self.over() {
                return Ok(());
            }
            let wait = if serving { LOOK_SERVING_MS } else { LOOK_STARTING_MS };
            let mut fds = [self.bell.1.as_fd(), host.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            poll(&mut fds, PollTimeout::from(wait))?;
            // Nothing is ever sent unasked: readable means the end, too.
            if fds[1].revents().is_some_and(|f| !f.is_empty()) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if fds[0].revents().is_some_and(|f| !f.is_empty()) {
                sys::receive(self.bell.1.as_fd(), &mut [0; 8])?;
            }
        }
    }

    /// One look at what the supervisor has. True when a client serves and nothing is under way.
    fn look(&self, host: &Channel) -> io::Result<bool> {
        let outcome = host.get(names::OUTCOME)?.and_then(|i| Outcome::decode(&i.bytes));
        if let Some(outcome) = outcome {
            return self.ended(host, outcome).map(|()| false);
        }
        let phase = host.get(names::CLIENT)?.and_then(|i| ClientRecord::decode(&i.bytes)).map(|r| r.phase);
        let mut held = self.held.lock();
        let Some(held) = &mut *held else { return Ok(false) };
        if self.renewed.swap(false, Ordering::AcqRel) {
            held.give_credential(host)?;
        }
        if held.mirror(host)?
            && let Err(error) = self.keeper.share(&self.key, held)
        {
            tracing::warn!(%error, "the node keeper does not answer");
        }
        let ending = self.ending.load(Ordering::Acquire);
        match phase {
            Some(Phase::Serving) => self.state.send_if_modified(|s| {
                *s != State::Serving && {
                    *s = State::Serving;
                    true
                }
            }),
            Some(Phase::Poisoned) => self.state.send_if_modified(|s| {
                *s != State::Poisoned && {
                    *s = State::Poisoned;
                    true
                }
            }),
            Some(Phase::Starting) | None => {
                self.say("its client is starting".into());
                true
            }
        };
        Ok(phase == Some(Phase::Serving) && !ending)
    }

    fn ended(&self, host: &Channel, outcome: Outcome) -> io::Result<()> {
        if outcome == Outcome::Park {
            let mut held = self.held.lock();
            let Some(held) = &mut *held else { return Ok(()) };
            let parked = held.park(self.journal_bytes).map_err(io::Error::other)?;
            tracing::warn!(volume = self.volume, parked = %parked.display(), "a journal of an ended session was put aside");
            if let Err(error) = self.keeper.share(&self.key, held) {
                tracing::warn!(%error, "the node keeper does not answer");
            }
            return held.entrust(host);
        }
        let _ = host.end(); // only the outcome is left there
        self.state.send_replace(State::Ended(outcome));
        Ok(())
    }
}
