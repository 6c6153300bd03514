//! A served connection: settings, start, end.

use super::abi;
use super::decode::{Header, Message};
use super::encode::Root;
use super::init::{InitRecord, Negotiated, resend};
use super::locks::Locks;
use super::notify::Notifier;
use super::reader;
use super::reply::Link;
use super::run::{InFlight, Job};
use super::slots::{SlotFile, Slots};
use super::stats::ServeStats;
use crate::keeper::sys::connection_gone;
use crate::vfs::Vfs;
use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Threads that read requests unless configured otherwise: answers from memory go out on them, so two keep a second CPU
/// from waiting, and more only help on larger machines.
const READERS: usize = 2;
/// How often idle slots are looked for.
const PUNCH_INTERVAL: Duration = Duration::from_secs(2);

/// How requests survive the death of the process that read them. The same for every process of one connection.
#[derive(Debug)]
pub enum Recovery {
    /// The kernel sends them again (Linux 6.9 and later).
    Resend,
    /// They lie in a file that the keeper holds.
    Slots(SlotFile),
}

/// Knobs of [`serve`].
pub struct ServeSettings {
    /// Threads that read requests, at least 1.
    pub readers: usize,
    /// Operations that wait fail with EIO after this long; None waits as long as it takes.
    pub io_timeout: Option<Duration>,
    /// See [`Recovery`].
    pub recovery: Recovery,
    /// Where lock requests go; only if INIT asked for them ([`super::InitOptions::locks`]).
    pub locks: Option<Arc<dyn Locks>>,
    /// An application in a foreign pid namespace that was interrupted in the middle of a change waits this much longer
    /// (PROTOCOL 39).
    pub close_timeout: Duration,
    /// An interrupted question waits this much longer for its answer before it ends with EINTR.
    pub interrupt_patience: Duration,
    /// The kernel gives numbers of processes as whoever mounted sees them; that is somebody in another pid namespace, or
    /// may be. Such a number says nothing here.
    pub foreign_pids: bool,
}

impl ServeSettings {
    /// Defaults.
    pub fn new(recovery: Recovery) -> ServeSettings {
        ServeSettings {
            readers: READERS,
            io_timeout: None,
            recovery,
            locks: None,
            close_timeout: Duration::from_secs(30),
            interrupt_patience: Duration::from_secs(1),
            foreign_pids: false,
        }
    }
}

/// What all threads and tasks of a connection share.
pub(super) struct Server {
    pub vfs: Arc<Vfs>,
    pub runtime: Handle,
    pub root: Root,
    pub link: Arc<Link>,
    pub negotiated: Negotiated,
    pub slots: Option<Arc<Slots>>,
    pub locks: Option<Arc<dyn Locks>>,
    pub io_timeout: Option<Duration>,
    pub close_timeout: Duration,
    pub interrupt_patience: Duration,
    pub foreign_pids: bool,
    pub in_flight: Arc<InFlight>,
    pub poisoned: CancellationToken,
    pub is_poisoned: AtomicBool,
    /// Requests of the earlier process are still to come: one thread at a time reads and registers.
    pub resuming: AtomicBool,
    pub resume: Mutex<()>,
    readers_left: AtomicUsize,
    ended: CancellationToken,
}

/// A connection that is being served. Dropping it changes nothing: the threads serve until the unmount.
pub struct Serving {
    server: Arc<Server>,
    readers: Vec<JoinHandle<io::Result<()>>>,
}

/// Serves a connection until it is unmounted, with threads of its own that read and `runtime` for what has to wait.
///
/// `resumed`: another client process served this connection before; what it read and did not answer comes first.
/// `init` is what [`super::handshake`] gave, in whatever process. An error means that nothing was read yet: an INIT record
/// of another format, or a kernel without RESEND.
pub fn serve(
    fd: OwnedFd,
    init: InitRecord,
    resumed: bool,
    vfs: Arc<Vfs>,
    runtime: Handle,
    settings: ServeSettings,
) -> io::Result<Serving> {
    let negotiated = init.open()?;
    let stats = Arc::new(ServeStats::default());
    let (ended, abandoned) = (AtomicBool::new(false), AtomicBool::new(false));
    let link = Arc::new(Link { device: File::from(fd), stats, ended, abandoned });
    let slots = match settings.recovery {
        Recovery::Resend => None,
        Recovery::Slots(file) => Some(Slots::open(file)?),
    };
    let by_resend = resumed && slots.is_none();
    let readers = settings.readers.max(1);
    let server = Arc::new(Server {
        root: Root(vfs.settings().root),
        vfs,
        runtime,
        link,
        negotiated,
        slots,
        locks: settings.locks,
        io_timeout: settings.io_timeout,
        close_timeout: settings.close_timeout,
        interrupt_patience: settings.interrupt_patience,
        foreign_pids: settings.foreign_pids,
        in_flight: Arc::default(),
        poisoned: CancellationToken::new(),
        is_poisoned: AtomicBool::new(false),
        resuming: AtomicBool::new(by_resend),
        resume: Mutex::new(()),
        readers_left: AtomicUsize::new(readers),
        ended: CancellationToken::new(),
    });
    if by_resend {
        // Before the first read: what this process reads must not be asked for again.
        server.link.write(&resend())?;
    }
    if resumed {
        server.serve_again()?;
    }
    server.punch_regularly();
    let readers = (0..readers).map(|i| reader::start(server.clone(), i)).collect::<io::Result<_>>()?;
    Ok(Serving { server, readers })
}

impl Server {
    /// Finishes what lies in the slots. Everything is registered before the first of it runs.
    fn serve_again(self: &Arc<Self>) -> io::Result<()> {
        let Some(slots) = &self.slots else { return Ok(()) };
        let _inside = self.runtime.enter();
        let mut admitted: Vec<(Message<'_>, Job)> = Vec::new();
        for mut held in slots.occupied()? {
            if let Some(reply) = held.kept_reply() {
                // ENOENT when the kernel had it already.
                let _ = self.link.write(reply);
                self.link.stats.add(&self.link.stats.rewritten);
                held.release();
                continue;
            }
            self.link.stats.add(&self.link.stats.reserved);
            #[allow(unsafe_code)]
            // SAFETY: the place is released by the reply only, which `dispatch` gives after its last look at the message.
            let message = unsafe { held.message_apart() };
            admitted.extend(reader::admit(self, message, Some(held), true));
        }
        self.vfs.resumed();
        for (message, job) in admitted {
            reader::serve(self, job, &message);
        }
        Ok(())
    }

    fn punch_regularly(self: &Arc<Self>) {
        let Some(slots) = self.slots.clone() else { return };
        let ended = self.ended.clone();
        drop(self.runtime.spawn(async move {
            let mut turn = tokio::time::interval(PUNCH_INTERVAL);
            while ended.run_until_cancelled(turn.tick()).await.is_some() {
                slots.punch_idle();
            }
        }));
    }

    /// A reader has ended.
    pub fn reader_ended(&self) {
        if self.readers_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.ended.cancel();
        }
    }

    /// The connection has ended (unmounted).
    pub fn connection_ended(&self) {
        self.link.ended.store(true, Ordering::Release);
    }

    /// Counts a request and tells whether the marker of PROTOCOL 16 was reached with it: everything that an earlier process
    /// left has been read. The caller holds `resume` while `resuming` is set.
    pub fn count(&self, header: &Header) -> bool {
        if header.unanswered() {
            return false;
        }
        self.link.stats.add(&self.link.stats.requests);
        if header.resent() {
            self.link.stats.add(&self.link.stats.resent);
            return false;
        }
        self.resuming.load(Ordering::Acquire) && header.opcode != abi::op::INIT
    }
}

impl Serving {
    /// Waits until the file system has been unmounted, by whomever. A reader's fault while others go on is no error.
    ///
    /// An error means that nobody reads any more although the kernel connection lives: what was read stays unanswered,
    /// so that the next process gets it.
    pub fn wait(self) -> io::Result<()> {
        let mut result = Ok(());
        for reader in self.readers {
            let ended =
                reader.join().unwrap_or_else(|_| Err(io::Error::other("a thread that reads requests panicked")));
            result = result.and(ended);
        }
        let link = &self.server.link;
        if result.is_err() && connection_gone(link.device.as_fd()) {
            tracing::warn!(error = ?result.err(), "a thread that read requests had ended before the unmount");
            return Ok(());
        }
        if result.is_err() {
            link.abandoned.store(true, Ordering::Release);
        }
        result
    }

    /// Sends notifications to this kernel.
    pub fn notifier(&self) -> Notifier {
        let server = &self.server;
        Notifier { link: server.link.clone(), root: server.root, runtime: server.runtime.clone() }
    }

    /// Counters.
    pub fn stats(&self) -> &ServeStats {
        &self.server.link.stats
    }

    /// The same counters, for somebody who outlives [`Serving::wait`].
    pub fn shared_stats(&self) -> Arc<ServeStats> {
        self.server.link.stats.clone()
    }

    /// Requests that wait in the runtime now.
    pub fn waiting(&self) -> usize {
        self.server.in_flight.len()
    }

    /// The mount cannot go on: every request, also those that wait, gets ESTALE from now on (PROTOCOL 41).
    pub fn poison(&self) {
        self.server.poison();
    }

    /// Plays dead, for tests of the resumption: nothing is answered any more, and each reader ends with the next request
    /// that it reads, which stays unanswered too, as if the process had been killed.
    #[doc(hidden)]
    pub fn abandon(&self) {
        self.server.link.abandoned.store(true, Ordering::Release);
    }
}
