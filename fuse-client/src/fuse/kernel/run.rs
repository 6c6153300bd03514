//! From a decoded request to its answer: polled once on the thread that read it, else moved to the runtime, where an
//! interrupt, a poisoned mount or the time limit may end the wait.

use super::reply::Reply;
use super::session::Server;
use crate::vfs::Request;
use fusefs_types::FsResult;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How often an interrupted wait looks whether its application is being killed.
const KILL_LOOK: Duration = Duration::from_millis(200);

/// What an interrupt may do to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Asks, or writes what may be written again: ends with EINTR after a short patience, at once when the application is
    /// being killed. (Not at once for every signal: the kernel does not restart these calls, and few programs expect EINTR
    /// from stat or from reading a file.)
    Query,
    /// Changes something: its outcome must not be called "interrupted" while it may have happened. Only an application
    /// that is being killed stops waiting; the operation itself goes on.
    Definite,
    /// Waits for a lock: watches the token itself, because a lock that is granted to nobody would stay for ever.
    Lock,
}

/// A request and the duty to answer it.
pub(super) struct Job {
    pub rq: Arc<Request>,
    pub reply: Reply,
}

/// Requests that wait in the runtime, for INTERRUPT to find.
#[derive(Default)]
pub(super) struct InFlight(Mutex<HashMap<u64, Arc<Request>>>);

impl InFlight {
    fn enter(self: &Arc<Self>, rq: &Arc<Request>) -> Entered {
        self.0.lock().insert(rq.unique, rq.clone());
        Entered(self.clone(), rq.unique)
    }
    /// Raises the token of a request; false when it is not (yet) here.
    pub fn interrupt(&self, unique: u64) -> bool {
        let rq = self.0.lock().get(&unique).cloned();
        rq.inspect(|rq| rq.interrupt.raise()).is_some()
    }
    /// Number of waiting requests.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }
}

struct Entered(Arc<InFlight>, u64);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.0.lock().remove(&self.1);
    }
}

enum Waited<T> {
    Done(FsResult<T>),
    /// The application gets this errno and nothing more.
    Gone(i32),
}

impl Server {
    /// Answers from memory on this thread, else in the runtime. `answer` sends and tells whether the kernel has it.
    /// The calling thread is inside the runtime's context.
    pub fn run<T, F>(
        self: &Arc<Self>,
        job: Job,
        class: Class,
        work: F,
        answer: impl FnOnce(Reply, FsResult<T>) -> bool + Send + 'static,
    ) where
        T: Send + 'static,
        F: Future<Output = FsResult<T>> + Send + 'static,
    {
        let Job { rq, reply } = job;
        let mut work = Box::pin(work);
        // The waker does nothing: the runtime polls again after the move and leaves its own.
        match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => {
                self.link.stats.add(&self.link.stats.inline_answers);
                self.answered(&rq, answer(reply, result));
            }
            Poll::Pending => self.wait_for(Job { rq, reply }, class, work, answer),
        }
    }

    fn wait_for<T, F>(
        self: &Arc<Self>,
        job: Job,
        class: Class,
        mut work: Pin<Box<F>>,
        answer: impl FnOnce(Reply, FsResult<T>) -> bool + Send + 'static,
    ) where
        T: Send + 'static,
        F: Future<Output = FsResult<T>> + Send + 'static,
    {
        let (server, Job { rq, mut reply }) = (self.clone(), job);
        reply.waits();
        let entered = self.in_flight.enter(&rq);
        drop(self.runtime.spawn(async move {
            match server.wait(&rq, class, &mut work).await {
                Waited::Done(result) => {
                    drop(entered);
                    server.answered(&rq, answer(reply, result));
                }
                Waited::Gone(errno) => {
                    drop(entered);
                    if errno == libc::EINTR {
                        server.link.stats.add(&server.link.stats.interrupted);
                    }
                    let delivered = reply.error(errno);
                    if errno == libc::EINTR && class != Class::Query {
                        let _ = work.await; // nobody wants to know, but it has to come to its end
                        server.vfs.unheard(&rq);
                    }
                    if delivered {
                        server.vfs.replied(&rq);
                    }
                }
            }
        }));
    }

    fn answered(&self, rq: &Request, delivered: bool) {
        if delivered {
            self.vfs.replied(rq);
        } else {
            self.vfs.unheard(rq);
        }
    }

    async fn wait<T, F>(&self, rq: &Request, class: Class, work: &mut Pin<Box<F>>) -> Waited<T>
    where
        F: Future<Output = FsResult<T>>,
    {
        let limit = async {
            match self.io_timeout {
                // A lock may be held as long as its owner likes.
                Some(limit) if class != Class::Lock => sleep_until(Instant::now() + limit).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = work.as_mut() => Waited::Done(result),
            () = self.poisoned.cancelled() => Waited::Gone(libc::ESTALE),
            () = self.given_up(rq, class) => Waited::Gone(libc::EINTR),
            () = limit => Waited::Gone(libc::EIO),
        }
    }

    /// Returns when the application is not to wait any longer.
    async fn given_up(&self, rq: &Request, class: Class) {
        rq.interrupt.wait().await;
        let (since, pid) = (Instant::now(), if self.foreign_pids { 0 } else { rq.pid });
        let patience = match class {
            Class::Lock => return std::future::pending().await,
            Class::Query => Some(self.interrupt_patience),
            // Nobody can tell whether a process of another pid namespace is being killed: then only time decides.
            Class::Definite => (pid == 0).then_some(self.close_timeout),
        };
        loop {
            if pid != 0 && being_killed(pid) {
                return;
            }
            let waited = since.elapsed();
            match patience {
                Some(p) if waited >= p => return,
                Some(p) => sleep_until(Instant::now() + KILL_LOOK.min(p - waited)).await,
                None => sleep_until(Instant::now() + KILL_LOOK).await,
            }
        }
    }

    /// Every request from now on, and every one that waits, is answered ESTALE.
    pub fn poison(&self) {
        self.is_poisoned.store(true, Ordering::Release);
        self.poisoned.cancel();
    }
}

/// Whether SIGKILL is pending for a thread, or the thread is gone. Signals that end a process become SIGKILL for all of
/// its threads. A hint only: the number may name another process in our pid namespace.
fn being_killed(tid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{tid}/status")) {
        Ok(status) => pending_kill(&status),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    }
}

fn pending_kill(status: &str) -> bool {
    const KILL: u64 = 1 << (libc::SIGKILL - 1);
    status
        .lines()
        .filter_map(|l| l.strip_prefix("SigPnd:").or_else(|| l.strip_prefix("ShdPnd:")))
        .any(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|m| m & KILL != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_kill_is_seen() {
        assert!(pending_kill("Name:\tx\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n"));
        assert!(pending_kill("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n"));
        assert!(!pending_kill("SigPnd:\t0000000000000002\nShdPnd:\t0000000000004000\nSigBlk:\t0000000000000100\n"));
        assert!(!being_killed(std::process::id()));
        assert!(being_killed(u32::MAX));
    }

    #[test]
    fn an_interrupt_finds_only_what_waits() {
        let table = Arc::new(InFlight::default());
        let rq = Arc::new(Request::new(8, 0, 0));
        assert!(!table.interrupt(8));
        let entered = table.enter(&rq);
        assert!(table.interrupt(8) && rq.interrupt.raised() && !table.interrupt(10));
        drop(entered);
        assert!(!table.interrupt(8));
    }
}
