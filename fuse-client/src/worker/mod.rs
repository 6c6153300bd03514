//! The client process of a supervised mount, `fusefs client`: starts, takes over what the previous one left, serves, ends
//! (PROTOCOL 41).
//!
//! Order: journal lock (the previous client is dead) → everything from the keeper → INIT → new incarnation → session →
//! index of the journal → the kernel sends again what was under way → serve.

pub mod journal;
mod links;
mod revive;
mod session;
mod stats;
mod steps;

pub use links::{Alive, Links};
pub use steps::{STEPS, Step, Steps};

use crate::{
    Vfs,
    client::{Attach, ClientError, ClientSettings, Kept, file_system, open_session},
    fuse::kernel::{InitOptions, InitRecord, Recovery, ServeSettings, SlotFile, handshake_in_slots, poison, serve},
    keeper::{Store, sys},
    supervise::{
        SLOTS_MODE, names,
        record::{ClientRecord, EXIT_PARK, EndRecord, Phase},
    },
    vfs::handle::OpenTable,
};
use bytes::Bytes;
use fusefs_data_path::journal::{Journal, JournalError, JournalSettings};
use fusefs_meta_client::{Components, MetaClient};
use fusefs_types::{
    FsError, SessionId, Token,
    ids::{Incarnation, MountId},
};
use journal::{Files, Found};
use session::SessionRecord;
use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{Arc, mpsc},
    time::Duration,
};

/// How long the runtime may take for one turn before a ping stays unanswered.
const TURN: Duration = Duration::from_secs(4);

/// Between two tries to open the session of a mount that served before: a refusal comes at once.
const SESSION_PAUSE: Duration = Duration::from_millis(250);

/// Items that a client gets, besides the journal.
const ITEMS: &[&str] = &[
    names::FUSE,
    names::INIT,
    names::HANDLES,
    names::SLOTS,
    names::RECOVERY,
    names::SESSION,
    names::MOUNT,
    names::SPEC,
    names::DIRS,
    names::BINARY,
    names::CREDENTIAL,
];

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
    #[error("the journal of session {0} cannot be written to the volume by itself; it is put aside")]
    Park(SessionId),
    /// A candidate of an upgrade: this version cannot go on with the mount, the one before perhaps can. No request was
    /// answered.
    #[error("this version cannot go on with the mount: {0}")]
    Unable(String),
}

impl WorkerError {
    /// Exit code of the process.
    pub fn code(&self) -> u8 {
        match self {
            WorkerError::Park(_) => EXIT_PARK as u8,
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
    files: Files,
    steps: Steps,
    /// Another executable can serve the mount if this one cannot.
    candidate: bool,
}

/// What a client takes over, ready for the session.
struct Prepared {
    mount: MountId,
    init: InitRecord,
    resumed: bool,
    journal: Option<Journal>,
    record: SessionRecord,
}

impl Worker {
    /// Says hello, waits until the previous client is really dead, gets everything. Blocks. `candidate`: see
    /// [`WorkerError::Unable`].
    pub fn start(runtime: &Path, candidate: bool) -> Result<Worker, WorkerError> {
        sys::name_process(c"fusefs-client");
        let steps = Steps::from_env();
        steps.reached(Step::Started);
        let links = Links::start(runtime).map_err(step("connecting to the keeper"))?;
        let mut files = Vec::new();
        while let Some(item) =
            links.get(&format!("{}{}", names::JOURNAL, files.len())).map_err(step("getting the journal"))?
        {
            let fd = item.fd.ok_or_else(|| step("getting the journal")(io::ErrorKind::InvalidData.into()))?;
            files.push(File::from(fd));
        }
        let files = Files::lock(files).map_err(step("locking the journal"))?;
        steps.reached(Step::Locked);
        links.put(names::CLIENT, ClientRecord::own(Phase::Starting).encode()).map_err(step("telling the keeper"))?;
        // Only now: until its death the previous client wrote into these.
        let mut items = Store::default();
        for name in ITEMS {
            if let Some(item) = links.get(name).map_err(step("getting the mount from the keeper"))? {
                items.put(name, item);
            }
        }
        steps.reached(Step::Fds);
        Ok(Worker { links, items, files, steps, candidate })
    }

    /// Options of the mount.
    pub fn spec(&self) -> &[u8] {
        self.items.bytes(names::SPEC).unwrap_or_default()
    }

    /// What proves to the masters that this mount may have a session, if whoever mounted gave it.
    pub fn credential(&self) -> Option<Bytes> {
        self.items.bytes(names::CREDENTIAL).map(Bytes::copy_from_slice)
    }

    /// Whether somebody else mounts and starts supervisors: a keeper and a supervisor of this process' own would take the
    /// mount's directory from them.
    fn hosted(&self) -> bool {
        self.items.get(names::CREDENTIAL).is_some()
    }

    /// Serves until the unmount, flushes, closes the session. Must be called inside a multi-threaded tokio runtime.
    pub async fn serve(self, settings: &ClientSettings, components: Components) -> Result<EndRecord, WorkerError> {
        let clock = components.clock.clone();
        let mut prepared = match self.prepare(settings, components.clone()).await? {
            Ok(prepared) => prepared,
            Err((init, reason)) => return self.poisoned(init, &reason).await,
        };
        let meta = match self.session(settings, components, &mut prepared).await? {
            Ok(meta) => meta,
            Err(reason) => return self.poisoned(prepared.init, &reason).await,
        };
        self.steps.reached(Step::Session);
        let Prepared { mount, init, resumed, journal, record } = prepared;
        let attach = Attach { mount, session: record.session, token: meta.grant().token };
        let kept = Kept { handles: self.handles()?, journal: journal.map(JournalSettings::new) };
        let vfs = match file_system(settings, &meta, clock, attach, kept) {
            Err(ClientError::Journal(e)) => return self.poisoned(init, &e.to_string()).await,
            other => other?,
        };
        self.steps.reached(Step::Index);
        self.connection(settings, init, resumed, &vfs).await?;
        self.end(settings, &meta, &vfs).await
    }

    /// Serves the kernel connection until it ends.
    async fn connection(
        &self,
        settings: &ClientSettings,
        init: InitRecord,
        resumed: bool,
        vfs: &Arc<Vfs>,
    ) -> Result<(), WorkerError> {
        let mut serving = ServeSettings::new(self.recovery(&init)?);
        (serving.readers, serving.io_timeout) = (settings.mount.readers, settings.mount.io_timeout);
        serving.close_timeout = settings.data.close_timeout;
        serving.locks = Some(vfs.clone());
        serving.foreign_pids = self.hosted();
        let runtime = tokio::runtime::Handle::current();
        let ask_again = resumed && !planted("no-resend");
        let serving = serve(self.device()?, init, ask_again, vfs.clone(), runtime.clone(), serving)
            .map_err(step("serving the kernel"))?;
        vfs.set_kernel_caches(Arc::new(serving.notifier()));
        self.steps.reached(Step::Resend);
        self.links.set_alive(turn_of(runtime));
        stats::report(serving.shared_stats(), vfs.clone());
        self.tell(Phase::Serving)?;
        if !self.hosted() {
            self.links.set_copies(self.copies()?);
        }
        self.steps.reached(Step::Serving);
        // While the connection lives the session stays open for the next process, which serves what this one read.
        let ended = tokio::task::spawn_blocking(move || serving.wait()).await;
        ended.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(step("reading the kernel's requests"))
    }

    /// After the unmount: everything goes to the store. What does not stays in the journal, and then the session stays
    /// open for the next mount, which writes it.
    async fn end(&self, settings: &ClientSettings, meta: &MetaClient, vfs: &Vfs) -> Result<EndRecord, WorkerError> {
        let end = vfs.data().shutdown(settings.flush_timeout).await;
        if end.unflushed == 0 || vfs.data().journal().is_none() {
            if let Some(Err(error)) = vfs.data().journal().map(|j| j.make_void()) {
                tracing::warn!(%error, "the journal cannot be marked as empty");
            }
            // What earlier processes of this mount uploaded and did not commit is not counted anywhere.
            let leftovers = end.leftovers.max(u64::from(meta.grant().token.incarnation.0 > 1));
            if let Err(refusal) = meta.close(leftovers).await
                && refusal.error != FsError::Stale
            {
                tracing::warn!(reason = %refusal.message, "closing the session failed; the cluster ends it in time");
            }
        }
        self.finish(EndRecord { unflushed: end.unflushed, poisoned: false })
    }

    fn device(&self) -> Result<OwnedFd, WorkerError> {
        let fd = self.items.fd(names::FUSE).ok_or_else(|| io::Error::other("the keeper has no kernel connection"));
        fd.and_then(sys::duplicate).map_err(step("getting the kernel connection"))
    }

    fn handles(&self) -> Result<OpenTable, WorkerError> {
        let fd = self.items.fd(names::HANDLES).ok_or_else(|| io::Error::other("the keeper has no handles"));
        let file = fd.and_then(sys::duplicate).map(File::from);
        file.and_then(OpenTable::restore).map_err(step("reading the table of open handles"))
    }

    /// For the case that both holders die.
    fn copies(&self) -> Result<revive::Copies, WorkerError> {
        let items = self.items.iter().map(|(name, item)| Ok((name.to_owned(), item.duplicate()?)));
        let items = items.collect::<io::Result<_>>().map_err(step("copying the mount's files"))?;
        Ok(revive::Copies { items, journal: self.files.files() })
    }

    fn tell(&self, phase: Phase) -> Result<(), WorkerError> {
        self.links.put(names::CLIENT, ClientRecord::own(phase).encode()).map_err(step("telling the keeper"))
    }

    fn finish(&self, end: EndRecord) -> Result<EndRecord, WorkerError> {
        self.links.put(names::ENDED, end.encode()).map_err(step("telling the keeper"))?;
        Ok(end)
    }

    /// Everything before the session. The inner error: this mount cannot go on.
    async fn prepare(
        &self,
        settings: &ClientSettings,
        components: Components,
    ) -> Result<Result<Prepared, (InitRecord, String)>, WorkerError> {
        let mount = self.items.bytes(names::MOUNT).and_then(|b| b.try_into().ok()).map(u128::from_le_bytes);
        let mount = MountId(mount.ok_or_else(|| step("reading the mount's id")(io::ErrorKind::InvalidData.into()))?);
        let resumed = self.items.get(names::INIT).is_some();
        let found = match self.files.recognise(mount, resumed) {
            Err(e) if resumed => return Ok(Err((self.init().await?, e.to_string()))),
            other => other.map_err(ClientError::Journal)?,
        };
        let journal = match found {
            Found::Left(header) => match self.files.replay_left(header, mount, settings, components).await {
                Err(WorkerError::Park(session)) => {
                    self.links.put(names::PARK, session.to_string().into()).map_err(step("telling the keeper"))?;
                    return Err(WorkerError::Park(session));
                }
                other => other?,
            },
            other => other,
        };
        let mut journal = match journal {
            Found::Own(journal) => Some(journal),
            Found::Nothing | Found::Left(_) => {
                tracing::warn!("no journal: what is written is lost when the client is killed before fsync or close");
                None
            }
        };
        let init = self.init().await?;
        if resumed && planted("other-init") {
            return Ok(Err((init, "the INIT record is of another version (planted)".into())));
        }
        if resumed && let Err(e) = init.open() {
            return Ok(Err((init, e.to_string())));
        }
        self.steps.reached(Step::Init);
        let mut record = self.last_session(journal.as_ref())?;
        let counted = match count(journal.as_ref(), resumed) {
            Ok(counted) => counted,
            Err(e) if !resumed => return Err(ClientError::Journal(e).into()),
            Err(e) => match self.without_journal(&e) {
                Ok(()) => {
                    journal = None;
                    Incarnation(0)
                }
                Err(reason) => return Ok(Err((init, reason))),
            },
        };
        // Counted at the holders, too, for the case that the journal's disk fails, and before the cluster sees the token.
        record.incarnation = Incarnation(record.incarnation.0.saturating_add(1)).max(counted);
        self.links.put(names::SESSION, record.encode()).map_err(step("counting the incarnation"))?;
        self.steps.reached(Step::Incarnation);
        Ok(Ok(Prepared { mount, init, resumed, journal, record }))
    }

    /// How requests survive this process: the same for every process of the connection.
    fn recovery(&self, init: &InitRecord) -> Result<Recovery, WorkerError> {
        if !self.always_slots() && init.open().is_ok_and(|n| n.resend) {
            return Ok(Recovery::Resend);
        }
        self.slots().map(Recovery::Slots)
    }

    /// Slots although the kernel could send requests again.
    fn always_slots(&self) -> bool {
        self.items.bytes(names::RECOVERY) == Some(SLOTS_MODE)
    }

    fn slots(&self) -> Result<SlotFile, WorkerError> {
        let file = self.items.fd(names::SLOTS).ok_or_else(|| io::Error::other("the keeper has no slots"));
        file.and_then(sys::duplicate).and_then(SlotFile::from_fd).map_err(step("opening the request slots"))
    }

    /// The record of an earlier handshake, or the handshake.
    async fn init(&self) -> Result<InitRecord, WorkerError> {
        if let Some(bytes) = self.items.bytes(names::INIT) {
            return Ok(InitRecord(Bytes::copy_from_slice(bytes)));
        }
        let (device, links) = (self.device()?, self.links.clone());
        let (slots, always) = (self.slots()?, self.always_slots());
        let shaking = tokio::task::spawn_blocking(move || {
            handshake_in_slots(device.as_fd(), InitOptions { locks: true }, slots, always, |record| {
                links.put(names::INIT, record.0.to_vec())
            })
        });
        let shaken = shaking.await.unwrap_or_else(|e| Err(io::Error::other(e)));
        shaken.map_err(step("answering the kernel's INIT"))
    }

    /// The mount's session and the last process' number. Each holder may have an old record (one hands its items to the
    /// other while the client writes), and so may the journal (its disk failed for a while).
    fn last_session(&self, journal: Option<&Journal>) -> Result<SessionRecord, WorkerError> {
        let held = self.links.get_each(names::SESSION).map_err(step("getting the session's id"))?;
        let held = held.iter().filter_map(|i| SessionRecord::decode(&i.bytes));
        let header = journal.map(Journal::header);
        let written =
            header.map(|h| SessionRecord { session: h.session, attach: h.attach, incarnation: h.incarnation });
        Ok(SessionRecord::newest(held.chain(written)))
    }

    /// Whether a journal whose header cannot be written may be given up: only when nothing in it waits for the store. The
    /// error says why this mount cannot go on.
    fn without_journal(&self, error: &JournalError) -> Result<(), String> {
        match self.files.pending() {
            0 => {
                tracing::error!(%error, "the journal cannot be written; this mount goes on without it");
                Ok(())
            }
            bytes => {
                Err(format!("the journal cannot be written, and {bytes} bytes in it are not in the store: {error}"))
            }
        }
    }

    /// Opens the session or takes it over. A mount that served before waits for the cluster as long as it takes. The
    /// inner error: the cluster has ended or fenced the session.
    async fn session(
        &self,
        settings: &ClientSettings,
        components: Components,
        p: &mut Prepared,
    ) -> Result<Result<Arc<MetaClient>, String>, WorkerError> {
        // A session keeps the generation that it was opened with.
        let attach = if p.record.session.0 == 0 { settings.attach } else { p.record.attach };
        let token = Token { attach, incarnation: p.record.incarnation };
        loop {
            let attach = Attach { mount: p.mount, session: p.record.session, token };
            match open_session(settings, components.clone(), attach).await {
                Ok(meta) => {
                    let grant = meta.grant();
                    (p.record.session, p.record.attach) = (grant.session, grant.token.attach);
                    if let Some(Err(e)) = p.journal.as_ref().map(|j| j.set_session(grant.session, grant.token.attach)) {
                        if !p.resumed {
                            return Err(ClientError::Journal(e).into());
                        }
                        if let Err(reason) = self.without_journal(&e) {
                            return Ok(Err(reason));
                        }
                        p.journal = None;
                    }
                    self.links.put(names::SESSION, p.record.encode()).map_err(step("keeping the session's id"))?;
                    return Ok(Ok(meta));
                }
                Err(e) if !p.resumed => return Err(e.into()),
                Err(ClientError::Master(r)) if ends_session(r.error) => return Ok(Err(r.message)),
                Err(e) if self.items.fd(names::FUSE).is_none_or(sys::connection_gone) => return Err(e.into()),
                Err(error) => tracing::warn!(%error, "the cluster cannot be reached yet; applications wait"),
            }
            tokio::time::sleep_until(tokio::time::Instant::now() + SESSION_PAUSE).await;
        }
    }

    /// This mount cannot go on: every request gets an error, until the unmount.
    async fn poisoned(&self, init: InitRecord, reason: &str) -> Result<EndRecord, WorkerError> {
        if self.candidate {
            // Also when the session is gone: the version before finds that out by itself.
            return Err(WorkerError::Unable(reason.into()));
        }
        eprintln!("fusefs: this mount cannot go on, every access gets an error until it is unmounted: {reason}");
        let (device, recovery) = (self.device()?, self.recovery(&init)?);
        self.tell(Phase::Poisoned)?;
        let poisoning = tokio::task::spawn_blocking(move || poison(device, &init, recovery));
        if let Ok(Err(error)) = poisoning.await {
            tracing::warn!(%error, "the kernel connection ended with an error");
        }
        self.finish(EndRecord { unflushed: self.files.pending(), poisoned: true })
    }
}

/// Counts this process in the journal. 0 = there is none.
fn count(journal: Option<&Journal>, resumed: bool) -> Result<Incarnation, JournalError> {
    if resumed && planted("journal-header") {
        return Err(JournalError::Io(io::Error::from_raw_os_error(libc::EIO)));
    }
    journal.map_or(Ok(Incarnation(0)), |j| j.begin_incarnation(journal::boot_id()))
}

/// A bug for tests of the tests (`FUSEFS_PLANT`): never in a release build.
fn planted(bug: &str) -> bool {
    let list = std::env::var_os("FUSEFS_PLANT").filter(|_| cfg!(debug_assertions)).unwrap_or_default();
    list.to_string_lossy().split(',').any(|b| b == bug)
}

/// Refusals of a session after which no retry helps.
pub fn ends_session(error: FsError) -> bool {
    matches!(error, FsError::Stale | FsError::Fenced | FsError::NotFound)
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
