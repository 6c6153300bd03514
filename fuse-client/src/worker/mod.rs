//! The client process of a supervised mount, `fusefs client`: starts, takes over what the previous one left, serves, ends
//! (PROTOCOL 41).
//!
//! Order: journal lock (the previous client is dead) → everything from the keeper → INIT → new incarnation → session →
//! index of the journal → the kernel sends again what was under way → serve.

mod links;
mod session;
mod stats;
mod steps;

pub use links::{Alive, Links};
pub use steps::{STEPS, Step, Steps};

use crate::{
    Vfs,
    client::{Attach, ClientError, ClientSettings, connect_as},
    fuse::kernel::{InitRecord, Recovery, ServeSettings, SlotFile, handshake, poison, serve},
    keeper::{Store, sys},
    supervise::{
        SLOTS_MODE, names,
        record::{ClientRecord, EXIT_PARK, EndRecord, Phase},
    },
};
use bytes::Bytes;
use fusefs_meta_client::{Components, MetaClient};
use fusefs_types::{
    FsError, Token,
    ids::{Incarnation, MountId},
};
use session::SessionRecord;
use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{Arc, mpsc},
    time::Duration,
};

/// How long the runtime and a reading thread may take for one turn before a ping stays unanswered.
const TURN: Duration = Duration::from_secs(4);

/// Why a client process ends early.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The session, the store.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Keeper, kernel, journal.
    #[error("{0}: {1}")]
    Step(&'static str, #[source] io::Error),
    /// The journal belongs to an ended session; the supervisor puts it aside and starts another client.
    #[error("the journal's session has ended; it is put aside")]
    Park,
}

impl WorkerError {
    /// Exit code of the process.
    pub fn code(&self) -> u8 {
        match self {
            WorkerError::Park => EXIT_PARK as u8,
            _ => 1,
        }
    }
}

fn step(what: &'static str) -> impl Fn(io::Error) -> WorkerError {
    move |e| WorkerError::Step(what, e)
}

/// A client that has the journal's lock and everything that the keeper holds.
pub struct Worker {
    links: Arc<Links>,
    items: Store,
    /// Held open until the process ends: closing any fd of a journal file would free its lock.
    journal: Vec<File>,
    steps: Steps,
}

impl Worker {
    /// Says hello, waits until the previous client is really dead, gets everything. Blocks.
    pub fn start(runtime: &Path) -> Result<Worker, WorkerError> {
        sys::name_process(c"fusefs-client");
        let steps = Steps::from_env();
        steps.reached(Step::Started);
        let links = Links::start(runtime).map_err(step("connecting to the keeper"))?;
        let mut journal = Vec::new();
        while let Some(item) =
            links.get(&format!("{}{}", names::JOURNAL, journal.len())).map_err(step("getting the journal"))?
        {
            let fd = item.fd.ok_or_else(|| step("getting the journal")(io::ErrorKind::InvalidData.into()))?;
            journal.push(File::from(fd));
        }
        if let Some(first) = journal.first() {
            lock(first).map_err(step("locking the journal"))?;
        }
        steps.reached(Step::Locked);
        links.put(names::CLIENT, ClientRecord::own(Phase::Starting).encode()).map_err(step("telling the keeper"))?;
        // Only now: until its death the previous client wrote into these. Not the journal's fds a second time.
        let mut items = Store::default();
        for name in [
            names::FUSE,
            names::INIT,
            names::HANDLES,
            names::SLOTS,
            names::RECOVERY,
            names::SESSION,
            names::MOUNT,
            names::SPEC,
            names::DIRS,
        ] {
            if let Some(item) = links.get(name).map_err(step("getting the mount from the keeper"))? {
                items.put(name, item);
            }
        }
        steps.reached(Step::Fds);
        Ok(Worker { links, items, journal, steps })
    }

    /// Options of the mount.
    pub fn spec(&self) -> &[u8] {
        self.items.bytes(names::SPEC).unwrap_or_default()
    }

    /// Serves until the unmount, flushes, closes the session. Must be called inside a multi-threaded tokio runtime.
    pub async fn serve(self, settings: &ClientSettings, components: Components) -> Result<EndRecord, WorkerError> {
        let resumed = self.items.get(names::INIT).is_some();
        let init = self.init().await?;
        self.steps.reached(Step::Init);
        let mut record = self.next_incarnation()?;
        self.steps.reached(Step::Incarnation);
        let (meta, vfs) = match self.session(settings, components, &mut record, resumed).await? {
            Some(both) => both,
            None => return self.poisoned(init).await,
        };
        self.steps.reached(Step::Session);
        self.steps.reached(Step::Index);
        let mut serving = ServeSettings::new(self.recovery(&init)?);
        (serving.readers, serving.io_timeout) = (settings.mount.readers, settings.mount.io_timeout);
        serving.close_timeout = settings.data.close_timeout;
        let runtime = tokio::runtime::Handle::current();
        let ask_again = resumed && !planted("no-resend");
        let serving = serve(self.device()?, init, ask_again, vfs.clone(), runtime.clone(), serving)
            .map_err(step("serving the kernel"))?;
        stats::publish(serving.shared_stats(), resumed, 0);
        self.steps.reached(Step::Resend);
        self.links.set_alive(turn_of(runtime));
        self.tell(Phase::Serving)?;
        self.steps.reached(Step::Serving);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || serving.wait()).await {
            tracing::warn!(%error, "the kernel connection ended with an error");
        }
        let end = vfs.data().shutdown(settings.flush_timeout).await;
        if let Err(refusal) = meta.close(end.leftovers).await
            && refusal.error != FsError::Stale
        {
            tracing::warn!(reason = %refusal.message, "closing the session failed; the cluster ends it when its time is up");
        }
        self.finish(EndRecord { unflushed: end.unflushed, poisoned: false })
    }

    fn device(&self) -> Result<OwnedFd, WorkerError> {
        let fd = self.items.fd(names::FUSE).ok_or_else(|| io::Error::other("the keeper has no kernel connection"));
        fd.and_then(sys::duplicate).map_err(step("getting the kernel connection"))
    }

    fn tell(&self, phase: Phase) -> Result<(), WorkerError> {
        self.links.put(names::CLIENT, ClientRecord::own(phase).encode()).map_err(step("telling the keeper"))
    }

    fn finish(&self, end: EndRecord) -> Result<EndRecord, WorkerError> {
        self.links.put(names::ENDED, end.encode()).map_err(step("telling the keeper"))?;
        Ok(end)
    }

    /// How requests survive this process: the same for every process of the connection.
    fn recovery(&self, init: &InitRecord) -> Result<Recovery, WorkerError> {
        let slots = self.items.get(names::RECOVERY).is_some_and(|i| i.bytes == SLOTS_MODE);
        if !slots && init.open().is_ok_and(|n| n.resend) {
            return Ok(Recovery::Resend);
        }
        let file = self.items.fd(names::SLOTS).ok_or_else(|| io::Error::other("the keeper has no slots"));
        let file = file.and_then(sys::duplicate).and_then(SlotFile::from_fd);
        file.map(Recovery::Slots).map_err(step("opening the request slots"))
    }

    /// The record of an earlier handshake, or the handshake.
    async fn init(&self) -> Result<InitRecord, WorkerError> {
        if let Some(bytes) = self.items.bytes(names::INIT) {
            return Ok(InitRecord(Bytes::copy_from_slice(bytes)));
        }
        let (device, links) = (self.device()?, self.links.clone());
        let shaking = tokio::task::spawn_blocking(move || {
            handshake(device.as_fd(), |record| links.put(names::INIT, record.0.to_vec()))
        });
        let shaken = shaking.await.unwrap_or_else(|e| Err(io::Error::other(e)));
        shaken.map_err(step("answering the kernel's INIT"))
    }

    /// Counts this process, before the cluster sees its token.
    fn next_incarnation(&self) -> Result<SessionRecord, WorkerError> {
        let mut record = self.items.bytes(names::SESSION).and_then(SessionRecord::decode).unwrap_or_default();
        record.incarnation = Incarnation(record.incarnation.0.saturating_add(1));
        self.links.put(names::SESSION, record.encode()).map_err(step("counting the incarnation"))?;
        Ok(record)
    }

    /// Opens the session or takes it over. A mount that served before waits for the cluster as long as it takes; None =
    /// the cluster has ended or fenced the session.
    async fn session(
        &self,
        settings: &ClientSettings,
        components: Components,
        record: &mut SessionRecord,
        resumed: bool,
    ) -> Result<Option<(Arc<MetaClient>, Arc<Vfs>)>, WorkerError> {
        let mount = self.items.bytes(names::MOUNT).and_then(|b| b.try_into().ok()).map(u128::from_le_bytes);
        let mount = mount.ok_or_else(|| step("reading the mount's id")(io::ErrorKind::InvalidData.into()))?;
        let token = Token { attach: record.attach, incarnation: record.incarnation };
        loop {
            let attach = Attach { mount: MountId(mount), session: record.session, token };
            match connect_as(settings, components.clone(), attach).await {
                Ok((meta, vfs)) => {
                    let grant = meta.grant();
                    (record.session, record.attach) = (grant.session, grant.token.attach);
                    self.links.put(names::SESSION, record.encode()).map_err(step("keeping the session's id"))?;
                    return Ok(Some((meta, vfs)));
                }
                Err(e) if !resumed => return Err(e.into()),
                Err(ClientError::Master(r)) if ends_session(r.error) => {
                    tracing::error!(session = %record.session, "the mount cannot go on: {}; unmount it", r.message);
                    return Ok(None);
                }
                Err(e) if self.items.fd(names::FUSE).is_none_or(sys::connection_gone) => return Err(e.into()),
                Err(error) => tracing::warn!(%error, "the cluster cannot be reached yet; applications wait"),
            }
        }
    }

    /// The session is gone for good: every request gets an error, until the unmount.
    async fn poisoned(&self, init: InitRecord) -> Result<EndRecord, WorkerError> {
        self.tell(Phase::Poisoned)?;
        let (device, recovery) = (self.device()?, self.recovery(&init)?);
        let poisoning = tokio::task::spawn_blocking(move || poison(device, &init, recovery));
        if let Ok(Err(error)) = poisoning.await {
            tracing::warn!(%error, "the kernel connection ended with an error");
        }
        self.finish(EndRecord { unflushed: 0, poisoned: true })
    }

    /// The journal's files.
    pub fn journal(&self) -> &[File] {
        &self.journal
    }
}

/// A bug for tests of the tests (`FUSEFS_PLANT`): never in a release build.
fn planted(bug: &str) -> bool {
    let list = std::env::var_os("FUSEFS_PLANT").filter(|_| cfg!(debug_assertions)).unwrap_or_default();
    list.to_string_lossy().split(',').any(|b| b == bug)
}

/// Refusals after which no retry helps.
fn ends_session(error: FsError) -> bool {
    matches!(error, FsError::Stale | FsError::Fenced | FsError::NotFound)
}

/// POSIX lock over the whole file: the kernel frees it when the process is really gone.
fn lock(file: &File) -> io::Result<()> {
    let all = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    loop {
        match nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_SETLKW(&all)) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// One turn of the runtime answers a ping.
fn turn_of(runtime: tokio::runtime::Handle) -> Alive {
    Arc::new(move || {
        let (tx, rx) = mpsc::channel();
        runtime.spawn(async move {
            let _ = tx.send(()); // the asker may have given up
        });
        rx.recv_timeout(TURN).is_ok()
    })
}
