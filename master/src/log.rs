//! The replicated state as the rest of this crate sees it: propose a command, read the state, know who leads. The raft
//! adapter is in [`crate::raft`]; [`Solo`] applies directly and serves unit tests.

use async_trait::async_trait;
use fusefs_cluster_state::{Applied, ClusterState, Command};
use std::sync::Arc;
use tokio::sync::watch;

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Leadership {
    /// This master leads and has applied everything of earlier terms.
    pub ready: bool,
    /// Address of the leader, if known.
    pub leader: Option<String>,
    /// Raft term; leader memory is void when it changes.
    pub term: u64,
    /// This replica stopped: why.
    pub stopped: Option<String>,
}

/// Why a command or barrier got no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Not the leader: surely not executed.
    #[error("not the leader")]
    NotLeader,
    /// The outcome is unknown.
    #[error("no quorum of masters answered in time")]
    Unavailable,
    /// Never executed, and trying again does not help.
    #[error("{0}")]
    Refused(String),
}

/// Replicated state of the masters.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Commits a command and answers what it did.
    async fn propose(&self, command: Command) -> Result<Applied, LogError>;
    /// After it, [`Log::read`] sees everything that was answered before the call (ReadIndex).
    async fn barrier(&self) -> Result<(), LogError>;
    /// Looks at the state under a shared lock.
    fn read(&self, f: &mut dyn FnMut(&ClusterState));
    /// Who leads, now and in future.
    fn leadership(&self) -> watch::Receiver<Leadership>;
    /// All masters: (address, leads, reachable from here).
    fn masters(&self) -> Vec<(String, bool, bool)>;
}

/// [`Log::read`] with a result.
pub fn view<R>(log: &dyn Log, f: impl FnOnce(&ClusterState) -> R) -> R {
    let (mut f, mut out) = (Some(f), None);
    log.read(&mut |state| {
        if let Some(f) = f.take() {
            out = Some(f(state));
        }
    });
    match out {
        Some(out) => out,
        // `read` calls its argument exactly once; both implementations are in this crate.
        None => unreachable!("read did not call its argument"),
    }
}

/// One master without a log: for tests of what lies above.
pub struct Solo {
    state: parking_lot::RwLock<ClusterState>,
    status: watch::Sender<Leadership>,
    addr: String,
}

impl Solo {
    /// An empty cluster, led by this master at once.
    pub fn new(addr: &str) -> Arc<Solo> {
        let status = Leadership { ready: true, leader: Some(addr.into()), term: 1, stopped: None };
        Arc::new(Solo {
            state: parking_lot::RwLock::new(ClusterState::new()),
            status: watch::Sender::new(status),
            addr: addr.into(),
        })
    }
    /// Changes who leads, as an election would.
    pub fn set_leadership(&self, status: Leadership) {
        self.status.send_replace(status);
    }
}

#[async_trait]
impl Log for Solo {
    async fn propose(&self, command: Command) -> Result<Applied, LogError> {
        if !self.status.borrow().ready {
            return Err(LogError::NotLeader);
        }
        Ok(self.state.write().apply(&command))
    }
    async fn barrier(&self) -> Result<(), LogError> {
        if self.status.borrow().ready { Ok(()) } else { Err(LogError::NotLeader) }
    }
    fn read(&self, f: &mut dyn FnMut(&ClusterState)) {
        f(&self.state.read());
    }
    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.status.subscribe()
    }
    fn masters(&self) -> Vec<(String, bool, bool)> {
        vec![(self.addr.clone(), self.status.borrow().ready, true)]
    }
}
