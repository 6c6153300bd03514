//! The threads that read requests. They block nowhere but in the read.

use super::abi::op;
use super::buffers::Pinned;
use super::decode::{Header, LockIn, Message, Op};
use super::dispatch;
use super::reply::Reply;
use super::run::Job;
use super::session::Server;
use super::slots::Held;
use crate::vfs::{LockFlags, Request};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use parking_lot::MutexGuard;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a reader waits for a free slot before it looks whether it should end.
const SLOT_PATIENCE: Duration = Duration::from_secs(1);

/// What a read came to.
enum Got {
    Bytes(usize),
    /// Nothing this time.
    Again,
    /// Unmounted.
    Ended,
}

/// Starts a reader.
pub(super) fn start(server: Arc<Server>, number: usize) -> io::Result<JoinHandle<io::Result<()>>> {
    std::thread::Builder::new().name(format!("fuse-reader-{number}")).spawn(move || {
        let runtime = server.runtime.clone();
        let _inside = runtime.enter();
        let result = if server.slots.is_some() { read_slots(&server) } else { read_private(&server) };
        server.reader_ended();
        if let Err(error) = &result {
            tracing::error!(%error, "reading requests");
        }
        result
    })
}

fn read_private(server: &Arc<Server>) -> io::Result<()> {
    let mut buffer = Pinned::new(super::abi::REQUEST_BYTES)?;
    loop {
        let resuming = server.one_at_a_time();
        let n = match server.read(buffer.ready()?)? {
            Got::Bytes(n) => n,
            Got::Again => continue,
            Got::Ended => return Ok(()),
        };
        if server.link.abandoned.load(Ordering::Acquire) {
            return Ok(());
        }
        let admitted = admit(server, buffer.bytes().get(..n).unwrap_or_default(), None, false);
        drop(resuming);
        if let Some((message, job)) = admitted {
            serve(server, job, &message);
        }
    }
}

/// A fault in the handling of one request must not end a reader: its reply is dropped, which is EIO, and reading goes on.
pub(super) fn serve(server: &Arc<Server>, job: Job, message: &Message<'_>) {
    let (unique, opcode) = (job.rq.unique, message.header.opcode);
    if catch_unwind(AssertUnwindSafe(|| dispatch::dispatch(server, job, message))).is_err() {
        tracing::error!(unique, opcode, "a request's handler panicked");
    }
}

fn read_slots(server: &Arc<Server>) -> io::Result<()> {
    let Some(slots) = &server.slots else { return Ok(()) };
    loop {
        let Some(mut held) = slots.take(SLOT_PATIENCE)? else {
            if server.link.ended.load(Ordering::Acquire) || server.link.abandoned.load(Ordering::Acquire) {
                return Ok(());
            }
            continue;
        };
        match server.read(held.buffer()) {
            Ok(Got::Bytes(_)) => {}
            other => {
                held.release();
                match other? {
                    Got::Ended => return Ok(()),
                    _ => continue,
                }
            }
        }
        if server.link.abandoned.load(Ordering::Acquire) {
            return Ok(());
        }
        #[allow(unsafe_code)]
        // SAFETY: the place is released by the reply only, which `dispatch` gives after its last look at the message.
        let message = unsafe { held.message_apart() };
        if let Some((message, job)) = admit(server, message, Some(held), false) {
            serve(server, job, &message);
        }
    }
}

/// Understands and registers a request. What needs no answer is served here, what is not understood is refused, and both
/// free their place at once: None.
pub(super) fn admit<'a>(
    server: &Server,
    bytes: &'a [u8],
    mut held: Option<Held>,
    again: bool,
) -> Option<(Message<'a>, Job)> {
    let free = |held: &mut Option<Held>| {
        if let Some(mut held) = held.take() {
            held.release();
        }
    };
    let Ok(header) = Header::parse(bytes) else {
        tracing::error!(len = bytes.len(), "the kernel sent less than a header");
        free(&mut held);
        return None;
    };
    let marker = server.count(&header);
    let Ok(message) = Message::parse(bytes, server.negotiated.layout) else {
        tracing::error!(?header, "a request that cannot be understood");
        if !header.unanswered() {
            server.link.error(header.raw_unique, libc::EIO);
        }
        free(&mut held);
        return None;
    };
    if header.unanswered() || header.opcode == op::INIT {
        dispatch::unanswered(server, &message);
        free(&mut held);
        return None;
    }
    let rq = Arc::new(head(&message, again));
    if !header.only_asks() {
        server.vfs.register(&rq);
    }
    if marker {
        server.resuming.store(false, Ordering::Release);
        server.vfs.resumed();
    }
    let reply = Reply::new(server.link.clone(), header.raw_unique, held);
    Some((message, Job { rq, reply }))
}

/// The request's head in our own words (PROTOCOL 46).
fn head(message: &Message<'_>, again: bool) -> Request {
    let h = &message.header;
    let mut rq = Request::new(h.unique(), h.uid, h.gid);
    rq.resent = h.resent() || again;
    rq.pid = h.pid;
    rq.gids.clone_from(&message.gids);
    rq.lock = match message.op {
        Op::Getlk(l) | Op::Setlk { lock: l, .. } => owner(&l),
        Op::Flush { owner, .. } => LockFlags { flock: false, owner },
        Op::Release { owner, flock_unlock, .. } => LockFlags { flock: flock_unlock, owner },
        _ => LockFlags::default(),
    };
    rq
}

fn owner(lock: &LockIn) -> LockFlags {
    LockFlags { flock: lock.flock, owner: lock.owner }
}

impl Server {
    /// While requests of an earlier process may come, one thread at a time reads and registers.
    fn one_at_a_time(&self) -> Option<MutexGuard<'_, ()>> {
        if !self.resuming.load(Ordering::Acquire) {
            return None;
        }
        let guard = self.resume.lock();
        self.resuming.load(Ordering::Acquire).then_some(guard)
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<Got> {
        match (&self.link.device).read(buffer) {
            Ok(0) => {
                self.connection_ended();
                Ok(Got::Ended)
            }
            Ok(n) => Ok(Got::Bytes(n)),
            Err(e) => match e.raw_os_error() {
                // ENOENT: the request was taken back before it was read.
                Some(libc::EINTR | libc::ENOENT) => Ok(Got::Again),
                // Whoever shares the open file made it non-blocking.
                Some(libc::EAGAIN) => {
                    let mut device = [PollFd::new(self.link.device.as_fd(), PollFlags::POLLIN)];
                    let _ = nix::poll::poll(&mut device, PollTimeout::NONE); // the next read says what is wrong
                    Ok(Got::Again)
                }
                Some(libc::ENODEV | libc::ECONNABORTED) => {
                    self.connection_ended();
                    Ok(Got::Ended)
                }
                _ => Err(e),
            },
        }
    }
}
