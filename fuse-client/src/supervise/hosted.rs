//! A supervisor in a process of its own, for a mount that somebody else makes and hands over: PID 1 of a fuse pod
//! (PROTOCOL 47, 48). It never sees the mount point, needs no rights, and touches no disk.
//!
//! Whoever mounted connects to the supervisor's socket, puts all items, and says `Begin`. The items stay with them, so
//! this process may die: they hand everything over again. When the mount has ended, item [`names::OUTCOME`] says how;
//! after `End` the next mount may come.

use super::{
    Ended, Plan, SuperviseError,
    dirs::Dirs,
    record::{Outcome, names},
    run::{Found, Supervisor},
    setup,
};
use crate::{
    fuse::MountSettings,
    keeper::{Item, Store, protocol::Message, sys},
};
use std::{ffi::OsString, path::Path};

/// Items of an earlier host of the same mount that mean nothing here.
const FOREIGN: &[&str] = &[names::CLIENT, names::ENDED, names::OUTCOME, names::PARK];

/// What a hosted supervisor knows besides.
#[derive(Debug, Default)]
pub(super) struct Hosted {
    /// A mount was handed over and has not ended.
    begun: bool,
    /// Told to go: somebody else goes on with the mount.
    pub leaving: bool,
    /// The client asked to put the journal aside.
    pub park: bool,
}

/// Serves whatever is handed over at `runtime`/supervisor.sock until SIGTERM, or the end of its standard input if that is a
/// pipe. Must run before any other thread of the
/// process exists. A mount goes on without this process: whoever holds its items hands them to the next one.
pub fn host(runtime: &Path, common_args: Vec<OsString>) -> Result<(), SuperviseError> {
    let signals = setup::signals()?;
    let dirs = Dirs { state: runtime.to_owned(), runtime: runtime.to_owned() };
    let claim = setup::claim_again(&dirs)?;
    let plan = Plan {
        mount: MountSettings::new("/", crate::fuse::SUBTYPE),
        state_dir: None,
        journal_bytes: 0,
        protect: false,
        slots: false,
        watchdog: true,
        exit_with_parent: true, // where there is one: the input of a pod's process is no pipe
        mount_id: 0,
        spec: Vec::new(),
        common_args,
        labels: Vec::new(),
        announce: Box::new(|| tracing::info!("the mount is served")),
    };
    let (exe, listener) = (sys::executable(Path::new("/proc/self/exe"))?, setup::listen(&dirs)?);
    let stdin = setup::parent_pipe(&plan)?;
    let found = Found { claim, signals, point: "/".into(), exe, keeper: None, stdin, args: Vec::new(), listener };
    let mut supervisor = Supervisor::new(plan, dirs, Store::default(), found);
    supervisor.hosted = Some(Hosted::default());
    supervisor.without_keeper();
    supervisor.run().map(drop)
}

impl Supervisor {
    /// Whether there is nothing to serve.
    pub(super) fn idle(&self) -> bool {
        self.hosted.as_ref().is_some_and(|h| !h.begun)
    }

    /// Whether this process has to end.
    pub(super) fn done(&mut self) -> bool {
        let Some(hosted) = &self.hosted else { return self.outcome.is_some() };
        if hosted.leaving {
            self.outcome = Some(Ok(Ended { unflushed: 0, journal: None }));
            return true;
        }
        if let Some(outcome) = self.outcome.take() {
            self.tell_outcome(outcome);
        }
        false
    }

    /// Starts a client for what was handed over.
    pub(super) fn begin(&mut self) -> Message {
        if !self.idle() {
            return Message::Error("a mount is being served".into());
        }
        if self.store.fd(names::FUSE).is_none() || self.store.get(names::SPEC).is_none() {
            return Message::Error("the mount was not handed over whole".into());
        }
        // A client that a killed host had started may have said so since the last mount's end. It would keep the journal from
        // ours, and its record, which goes now, would not come again.
        if let Some(old) = self.client.take() {
            old.process.end();
        }
        FOREIGN.iter().for_each(|name| self.store.remove(name));
        match sys::executable(Path::new("/proc/self/exe")) {
            Ok(exe) => self.store.put(names::BINARY, Item { bytes: Vec::new(), fd: Some(exe) }),
            Err(e) => return Message::Error(format!("the executable cannot be opened: {e}")),
        };
        self.served = self.store.get(names::INIT).is_some();
        self.hosted = Some(Hosted { begun: true, ..Hosted::default() });
        self.start_client();
        Message::Ok
    }

    /// The mount is over for this process; only how it ended is kept.
    fn tell_outcome(&mut self, outcome: Result<Ended, SuperviseError>) {
        let park = self.hosted.as_ref().is_some_and(|h| h.park);
        let told = match outcome {
            Err(_) if park => Outcome::Park,
            Ok(ended) => Outcome::Ended(ended.unflushed),
            Err(e) => Outcome::Failed(e.to_string()),
        };
        tracing::info!(?told, "the mount ended");
        self.let_go();
        self.store.put(names::OUTCOME, Item { bytes: told.encode(), fd: None });
    }

    /// Closes everything of the mount.
    pub(super) fn let_go(&mut self) {
        if let Some(client) = self.client.take() {
            client.process.end();
        }
        if let Some(upgrade) = self.upgrade.take() {
            upgrade.candidate.end();
        }
        self.restart_at_ms = None;
        self.store = Store::default();
        self.served = false;
        self.hosted = Some(Hosted::default());
    }
}
