//! The supervisor's loop: one thread, one poll(2).

use super::{
    Ended, Phase, Plan, SuperviseError, WATCHDOG_MISSES,
    child::{KeeperProcess, Process, start_client},
    dirs::{Claim, Dirs},
    hosted::Hosted,
    journal,
    record::{ClientRecord, EXIT_PARK, EndRecord, names},
    setup,
    unmount::Unmounting,
    upgrade::Upgrade,
};
use crate::keeper::{
    Channel, Item, Store,
    protocol::{FDS_MAX, MESSAGE_BYTES_MAX, Message},
    server::{now_ms, same_user},
    sys,
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signalfd::SignalFd,
};
use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    process::ExitStatus,
};

/// Between two looks at the client's liveness.
const TICK_MS: u64 = 1_000;
/// First and longest pause before a client that dies while it starts is started again.
const BACKOFF_MS: (u64, u64) = (10, 5_000);
/// A keeper that lived this long was no false start.
const KEEPER_STEADY_MS: u64 = 1_000;
/// Starts of a client that may fail after the kernel connection is gone (the cluster is away), before the rest is left to
/// the journal.
const LAST_TRIES: u32 = 3;
/// Connections at once.
const PEERS_MAX: usize = 32;

/// Somebody who is connected.
pub(super) struct Peer {
    pub id: u64,
    pub pid: u32,
    channel: Channel,
    hello: bool,
    pong_due: bool,
}

/// The client that works, or is about to.
pub(super) struct Client {
    pub process: Process,
    pub phase: Phase,
}

/// One supervised mount.
pub(super) struct Supervisor {
    pub plan: Plan,
    pub dirs: Dirs,
    _claim: Claim,
    pub store: Store,
    pub served: bool,
    point: PathBuf,
    exe: OwnedFd,
    args: Vec<OsString>,
    listener: OwnedFd,
    peers: Vec<Peer>,
    next_peer: u64,
    signals: SignalFd,
    stdin: Option<OwnedFd>,
    keeper: Option<KeeperProcess>,
    keeper_at_ms: Option<u64>,
    pub client: Option<Client>,
    pub restart_at_ms: Option<u64>,
    backoff_ms: u64,
    pub upgrade: Option<Upgrade>,
    unmounting: Option<Unmounting>,
    next_tick_ms: u64,
    missed: u32,
    last_failures: u32,
    pub outcome: Option<Result<Ended, SuperviseError>>,
    /// Somebody else mounts and hands the items over; see [`super::host`].
    pub hosted: Option<Hosted>,
}

/// What a supervisor starts with, besides plan, directories and items.
pub(super) struct Found {
    pub claim: Claim,
    pub signals: SignalFd,
    pub point: PathBuf,
    pub exe: OwnedFd,
    /// None = to be started.
    pub keeper: Option<KeeperProcess>,
    pub stdin: Option<OwnedFd>,
    pub args: Vec<OsString>,
    pub listener: OwnedFd,
}

/// What became ready.
#[derive(Clone, Copy)]
enum Source {
    Listener,
    Signals,
    Stdin,
    Keeper,
    Client,
    Candidate,
    Unmounted,
    Peer(u64),
}

impl Supervisor {
    pub fn new(plan: Plan, dirs: Dirs, store: Store, found: Found) -> Supervisor {
        sys::name_process(c"fusefs-mount");
        let Found { claim, signals, point, exe, keeper, stdin, args, listener } = found;
        Supervisor {
            listener,
            plan,
            dirs,
            _claim: claim,
            store,
            served: false,
            point,
            exe,
            args,
            peers: Vec::new(),
            next_peer: 0,
            signals,
            stdin,
            keeper_at_ms: keeper.is_none().then(now_ms),
            keeper,
            client: None,
            restart_at_ms: None,
            backoff_ms: BACKOFF_MS.0,
            upgrade: None,
            unmounting: None,
            next_tick_ms: now_ms() + TICK_MS,
            missed: 0,
            last_failures: 0,
            outcome: None,
            hosted: None,
        }
    }

    /// Until the mount has ended.
    pub fn run(mut self) -> Result<Ended, SuperviseError> {
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        if self.client.is_none() && self.restart_at_ms.is_none() {
            // Adopted between the client's end and our predecessor's.
            self.client_died(None);
        }
        while !self.done() {
            for source in self.wait()? {
                self.handle(source, &mut buffer);
            }
            self.due();
        }
        self.clean_up()
    }

    /// Blocks until something happens.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let upgrade = self.upgrade.as_ref();
        let timers = [Some(self.next_tick_ms), self.restart_at_ms, self.keeper_at_ms, upgrade.map(|u| u.deadline_ms)];
        let next = timers.into_iter().flatten().min().unwrap_or(self.next_tick_ms);
        let mut sources: Vec<(Source, BorrowedFd<'_>)> =
            vec![(Source::Listener, self.listener.as_fd()), (Source::Signals, self.signals.as_fd())];
        sources.extend(self.stdin.as_ref().map(|f| (Source::Stdin, f.as_fd())));
        sources.extend(self.keeper.as_ref().map(|k| (Source::Keeper, k.pidfd.as_fd())));
        sources.extend(self.client.as_ref().map(|c| (Source::Client, c.process.pidfd.as_fd())));
        sources.extend(upgrade.map(|u| (Source::Candidate, u.candidate.pidfd.as_fd())));
        sources.extend(self.unmounting.as_ref().map(|u| (Source::Unmounted, u.fd())));
        sources.extend(self.peers.iter().map(|p| (Source::Peer(p.id), p.channel.as_fd())));
        let mut fds: Vec<_> = sources.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        let left = u16::try_from(next.saturating_sub(now_ms())).unwrap_or(u16::MAX);
        match poll(&mut fds, PollTimeout::from(left)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready = |f: &PollFd<'_>| f.revents().is_some_and(|r| !r.is_empty());
        Ok(sources.iter().zip(&fds).filter(|(_, f)| ready(f)).map(|((s, _), _)| *s).collect())
    }

    fn handle(&mut self, source: Source, buffer: &mut [u8]) {
        match source {
            Source::Listener => self.admit(),
            Source::Signals => self.signalled(),
            Source::Stdin => self.parent_said(),
            Source::Keeper => self.keeper_died(),
            Source::Client => {
                if let Some(mut client) = self.client.take() {
                    let status = client.process.status();
                    self.note_death(&client, status);
                    self.client_died(Some((client.phase, status)));
                }
            }
            Source::Candidate => self.upgrade_failed("the new client ended before it served"),
            Source::Unmounted => self.unmounting = None,
            Source::Peer(id) => {
                if self.hear(id, buffer).is_err() {
                    self.peers.retain(|p| p.id != id);
                }
            }
        }
    }

    /// Timers.
    fn due(&mut self) {
        let now = now_ms();
        if self.restart_at_ms.is_some_and(|at| at <= now) {
            self.start_client();
        }
        if self.keeper_at_ms.is_some_and(|at| at <= now) {
            self.start_keeper();
        }
        if self.upgrade.as_ref().is_some_and(|u| u.deadline_ms <= now) {
            self.upgrade_failed("the new client did not serve in time");
        }
        if self.next_tick_ms <= now {
            // Not "+= TICK": what was slept through is not held against the client.
            self.next_tick_ms = now + TICK_MS;
            self.tick();
        }
    }

    /// Watches the client's liveness without touching the mount (PROTOCOL 48).
    fn tick(&mut self) {
        let Some(client) = self.client.as_ref().filter(|c| c.phase == Phase::Serving && self.plan.watchdog) else {
            self.missed = 0;
            return;
        };
        let pid = client.process.pid;
        match self.peers.iter_mut().find(|p| p.hello && p.pid == pid) {
            Some(peer) if !peer.pong_due => {
                peer.pong_due = peer.channel.send(&Message::Ping(self.next_tick_ms), &[]).is_ok();
                self.missed = 0;
            }
            _ => self.missed += 1,
        }
        if self.missed >= WATCHDOG_MISSES {
            tracing::error!(pid, "the client does not answer for {WATCHDOG_MISSES} s; it is replaced");
            self.missed = 0;
            if let Some(client) = &self.client {
                client.process.kill();
            }
        }
    }

    fn admit(&mut self) {
        while let Ok(Some(fd)) = sys::accept(self.listener.as_fd()) {
            let pid = sys::peer(fd.as_fd()).map_or(0, |p| p.0);
            if self.peers.len() < PEERS_MAX && same_user(&fd) {
                self.next_peer += 1;
                let peer = Peer { id: self.next_peer, pid, channel: Channel::new(fd), hello: false, pong_due: false };
                self.peers.push(peer);
            }
        }
    }

    fn signalled(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {
            self.told_to_end();
        }
    }

    fn told_to_end(&mut self) {
        match &mut self.hosted {
            Some(hosted) => hosted.leaving = true,
            None => self.unmount(),
        }
    }

    fn parent_said(&mut self) {
        let mut bytes = [0; 64];
        let ended = self.stdin.as_ref().is_none_or(|f| {
            // Anything but data is the end.
            !matches!(nix::unistd::read(f.as_fd(), &mut bytes), Ok(n) if n > 0)
        });
        if ended {
            self.stdin = None;
            self.told_to_end();
        }
    }

    fn unmount(&mut self) {
        if self.connection_gone() {
            return;
        }
        // Asked a second time while the first unmount still waits: detach, which never waits.
        let lazy = self.unmounting.is_some();
        match Unmounting::start(self.point.clone(), lazy) {
            Ok(u) => self.unmounting = Some(u),
            Err(error) => tracing::error!(%error, "no thread for the unmount"),
        }
    }

    /// Whether the kernel has ended the connection: unmounted, or aborted by an administrator.
    pub fn connection_gone(&self) -> bool {
        self.store.fd(names::FUSE).is_none_or(sys::connection_gone)
    }

    /// One message of a peer; an error closes the connection.
    fn hear(&mut self, id: u64, buffer: &mut [u8]) -> io::Result<()> {
        let Some(i) = self.peers.iter().position(|p| p.id == id) else { return Ok(()) };
        let (message, mut fds) = match self.peers[i].channel.receive_into(buffer) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            other => other?.ok_or(io::ErrorKind::UnexpectedEof)?,
        };
        if fds.len() > FDS_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if let Some((answer, fd)) = self.store.answer(&message, &mut fds) {
            self.peers[i].channel.send(&answer, fd.as_slice())?;
            if let Message::Put { name, .. } = &message
                && name == names::CLIENT
            {
                self.client_said();
            }
            return Ok(());
        }
        match message {
            Message::Hello => {
                self.peers[i].hello = true;
                let pid = self.peers[i].pid;
                self.candidate_is_there(pid);
            }
            Message::Pong(_) => self.peers[i].pong_due = false,
            Message::Begin if self.hosted.is_some() => {
                let answer = self.begin();
                self.tell(id, &answer);
            }
            Message::End if self.hosted.is_some() => {
                self.let_go();
                self.tell(id, &Message::Ok);
            }
            Message::Upgrade { timeout_ms } => match fds.pop() {
                Some(binary) => self.start_upgrade(id, binary, timeout_ms),
                None => self.tell(id, &Message::Error("no executable came along".into())),
            },
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        Ok(())
    }

    /// Sends to a peer if it is still there.
    pub fn tell(&mut self, id: u64, message: &Message) {
        if let Some(peer) = self.peers.iter().find(|p| p.id == id) {
            let _ = peer.channel.send(message, &[]); // it may have gone away
        }
    }

    /// A client wrote its record: it has the journal, or serves.
    fn client_said(&mut self) {
        let Some(record) = self.store.bytes(names::CLIENT).and_then(ClientRecord::decode) else { return };
        if self.upgrade.as_ref().is_some_and(|u| u.candidate.pid == record.pid) {
            match record.phase {
                Phase::Starting => {}
                Phase::Serving => self.upgrade_done(record.phase),
                Phase::Poisoned => self.upgrade_failed("the new client cannot go on with this mount"),
            }
            return;
        }
        match &mut self.client {
            Some(c) if c.process.pid == record.pid => c.phase = record.phase,
            _ => {
                // One that an earlier supervisor had started got the journal first: that one it is.
                let Some(process) = Process::adopt(&record) else { return };
                if let Some(waiting) = self.client.replace(Client { process, phase: record.phase }) {
                    waiting.process.end();
                }
                self.restart_at_ms = None;
            }
        }
        if record.phase != Phase::Starting {
            self.serves();
        }
    }

    pub fn serves(&mut self) {
        (self.backoff_ms, self.last_failures, self.missed) = (BACKOFF_MS.0, 0, 0);
        if !std::mem::replace(&mut self.served, true) {
            (self.plan.announce)();
        }
    }

    /// Keeps an item here and at the keeper.
    pub fn keep(&mut self, name: &str, item: Item) {
        if let Some(keeper) = &self.keeper
            && let Err(error) = keeper.channel.put(name, &item)
        {
            tracing::warn!(%error, "the keeper does not answer");
        }
        self.store.put(name, item);
    }

    /// For one whose items are kept elsewhere.
    pub fn without_keeper(&mut self) {
        self.keeper_at_ms = None;
    }

    fn keeper_died(&mut self) {
        let Some(mut keeper) = self.keeper.take() else { return };
        keeper.reap();
        tracing::warn!("the keeper died; it is started again");
        let steady = now_ms().saturating_sub(keeper.since_ms) >= KEEPER_STEADY_MS;
        self.keeper_at_ms = Some(now_ms() + if steady { 0 } else { KEEPER_STEADY_MS / 10 });
    }

    fn start_keeper(&mut self) {
        let started = KeeperProcess::start(self.exe.as_fd(), &self.dirs, &self.plan.common_args).and_then(|k| {
            let stdin = self.stdin.as_ref().map(AsFd::as_fd);
            match k.entrust(&self.store, self.exe.as_fd(), stdin, &self.args) {
                Ok(()) => Ok(k),
                Err(e) => {
                    k.kill();
                    Err(e)
                }
            }
        });
        match started {
            Ok(keeper) => (self.keeper, self.keeper_at_ms) = (Some(keeper), None),
            Err(error) => {
                tracing::error!(%error, "the keeper cannot be started");
                self.keeper_at_ms = Some(now_ms() + KEEPER_STEADY_MS);
            }
        }
    }

    /// Starts a client from the current executable.
    pub fn start_client(&mut self) {
        self.restart_at_ms = None;
        self.store.remove(names::ENDED);
        let Some(exe) = self.store.fd(names::BINARY) else { return };
        match start_client(exe, &self.dirs, &self.plan.common_args, &self.plan.labels, false) {
            Ok(process) => self.client = Some(Client { process, phase: Phase::Starting }),
            Err(error) => {
                tracing::error!(%error, "the client cannot be started");
                self.restart_later();
            }
        }
    }

    /// A client that lives already.
    pub fn adopt_client(&mut self, process: Process, phase: Phase) {
        tracing::warn!(pid = process.pid, "took over a living mount");
        self.client = Some(Client { process, phase });
    }

    fn note_death(&self, client: &Client, status: Option<ExitStatus>) {
        let how = status.map_or_else(|| "unknown".into(), |s| s.to_string());
        if self.end_record().is_some() {
            return tracing::debug!(pid = client.process.pid, %how, "the client ended");
        }
        tracing::warn!(pid = client.process.pid, phase = ?client.phase, %how, "the client ended");
    }

    /// What follows a client's end.
    fn client_died(&mut self, last: Option<(Phase, Option<ExitStatus>)>) {
        // Before the new client of an upgrade has said hello it may be anything, also a program that never does. Whoever
        // gets the journal's lock first serves.
        if self.upgrade.as_ref().is_some_and(|u| u.committed) || self.idle() {
            return;
        }
        let gone = self.connection_gone();
        if let Some(end) = self.end_record().filter(|_| gone) {
            self.outcome = Some(Ok(self.ended(end)));
            return;
        }
        let code = last.and_then(|(_, status)| status).and_then(|s| s.code());
        if code == Some(EXIT_PARK) {
            if self.upgrade.is_some() {
                // It has the files that are to be put aside. The client that is started instead asks again.
                return self.upgrade_failed("the journal has to be put aside first");
            }
            if let Some(hosted) = &mut self.hosted {
                hosted.park = true;
                self.outcome = Some(Err(SuperviseError::Client("a journal to be put aside".into())));
                return;
            }
            return self.park_journal();
        }
        if let (false, Some(code)) = (self.served, code.filter(|c| *c != 0)) {
            self.outcome = Some(Err(SuperviseError::Client(format!("code {code}"))));
            return;
        }
        if gone && code.is_some_and(|c| c != 0) {
            self.last_failures += 1;
            if self.last_failures >= LAST_TRIES {
                tracing::error!("the cluster cannot be reached; what is not in the store stays in the journal");
                let end = EndRecord { unflushed: u64::MAX, poisoned: false };
                self.outcome = Some(Ok(self.ended(end)));
                return;
            }
        }
        match last {
            Some((Phase::Serving, _)) => self.start_client(),
            _ => self.restart_later(),
        }
    }

    fn restart_later(&mut self) {
        self.restart_at_ms = Some(now_ms() + self.backoff_ms);
        self.backoff_ms = (self.backoff_ms * 2).min(BACKOFF_MS.1);
    }

    /// The journal belongs to a session that is over: it is put aside for the administrator (PROTOCOL 40).
    fn park_journal(&mut self) {
        let session =
            self.store.bytes(names::PARK).map(|b| String::from_utf8_lossy(b).into_owned()).unwrap_or_default();
        let fresh = fusefs_data_path::journal::park(&self.dirs.state).and_then(|parked| {
            eprintln!(
                "fusefs: data of the ended session {session} could not be written to the volume; it is kept in {}\n\
                 see: fusefs journal list {}",
                parked.display(),
                parked.display()
            );
            let mut store = Store::default();
            journal::open(&self.dirs.state, self.plan.journal_bytes, &mut store).map_err(io::Error::other)?;
            Ok(store)
        });
        match fresh {
            Ok(store) => {
                for (name, item) in store.iter() {
                    match item.duplicate() {
                        Ok(item) => self.keep(name, item),
                        Err(error) => tracing::error!(%error, name, "a journal file cannot be handed on"),
                    }
                }
                self.start_client();
            }
            Err(e) => self.outcome = Some(Err(SuperviseError::File("putting the journal aside".into(), e))),
        }
    }

    /// The end as the last client reported it.
    pub fn end_record(&self) -> Option<EndRecord> {
        setup::end_record(&self.store)
    }

    fn ended(&self, end: EndRecord) -> Ended {
        let journal = (end.unflushed > 0).then(|| self.dirs.state.clone());
        Ended { unflushed: end.unflushed, journal }
    }

    /// Everybody goes; the runtime directory too, and the journal if nothing is in it.
    fn clean_up(mut self) -> Result<Ended, SuperviseError> {
        let outcome = self.outcome.take().unwrap_or_else(|| Err(io::Error::other("no outcome").into()));
        if outcome.is_err()
            && self.hosted.is_none()
            && !self.connection_gone()
            && let Err(error) = setup::give_up(&self.point)
        {
            tracing::warn!(%error, "the mount cannot be detached");
        }
        if let Some(client) = self.client.take() {
            client.process.end();
        }
        if let Some(upgrade) = self.upgrade.take() {
            upgrade.candidate.end();
        }
        // From here on nobody starts us again.
        if let Some(keeper) = self.keeper.take() {
            keeper.end();
        }
        self.store.remove(names::FUSE);
        setup::unprotect(&self.dirs);
        let clean = matches!(&outcome, Ok(Ended { unflushed: 0, .. })) || (outcome.is_err() && !self.served);
        if clean && self.store.get(names::PARK).is_none() {
            journal::remove(&self.dirs.state);
        }
        tracing::debug!(fd = self.listener.as_raw_fd(), "the supervisor ends");
        if self.hosted.is_none() {
            let _ = std::fs::remove_dir_all(&self.dirs.runtime); // the next mount would do it
        }
        outcome
    }
}
