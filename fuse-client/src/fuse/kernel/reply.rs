//! Answers to the kernel, each given exactly once.

use super::abi::Out;
use super::buffers::touch_for_reading;
use super::encode::errno;
use super::slots::Held;
use super::stats::ServeStats;
use fusefs_types::FsResult;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The connection, as everybody who writes to it sees it.
pub(super) struct Link {
    pub device: File,
    pub stats: Arc<ServeStats>,
    /// Unmounted: answers go nowhere and nobody misses them.
    pub ended: AtomicBool,
    /// This process plays dead: it answers nothing any more.
    pub abandoned: AtomicBool,
}

impl Link {
    /// One message without data.
    pub fn write(&self, message: &[u8]) -> io::Result<()> {
        (&self.device).write(message).map(|_| ())
    }
    /// An answer that needs no [`Reply`].
    pub fn error(&self, raw_unique: u64, errno: i32) {
        // An error means that nobody waits any more.
        let _ = self.write(Out::default().finish(-errno, raw_unique, 0));
    }
}

/// The duty to answer one request. Whoever drops it without an answer makes the application see EIO.
pub(super) struct Reply {
    link: Arc<Link>,
    raw_unique: u64,
    /// Where the request lies until it is answered (kernels without RESEND).
    held: Option<Held>,
    answered: bool,
}

impl Reply {
    /// `raw_unique` as the kernel gave it, resend bit included.
    pub fn new(link: Arc<Link>, raw_unique: u64, held: Option<Held>) -> Reply {
        Reply { link, raw_unique, held, answered: false }
    }

    /// The request has to wait: a small one makes room for others.
    pub fn waits(&mut self) {
        if let Some(held) = &mut self.held {
            held.move_aside();
        }
    }

    /// An error, by number. True when the kernel waits no more.
    pub fn error(self, errno: i32) -> bool {
        self.send(Out::default(), -errno, &[])
    }
    /// A fixed-size answer.
    pub fn out(self, out: Out) -> bool {
        self.send(out, 0, &[])
    }
    /// An answer that is data.
    pub fn data(self, data: &[u8]) -> bool {
        self.send(Out::default(), 0, data)
    }
    /// Either.
    pub fn result(self, result: FsResult<Out>) -> bool {
        match result {
            Ok(out) => self.out(out),
            Err(e) => self.error(errno(e)),
        }
    }
    /// An answer without a value.
    pub fn empty(self, result: FsResult<()>) -> bool {
        self.result(result.map(|()| Out::default()))
    }

    fn send(mut self, mut out: Out, error: i32, data: &[u8]) -> bool {
        self.answered = true;
        if self.link.abandoned.load(Ordering::Acquire) {
            return false;
        }
        let head = out.finish(error, self.raw_unique, data.len());
        let written = if data.is_empty() {
            if let Some(held) = &mut self.held {
                held.keep_reply(head);
            }
            self.link.write(head)
        } else {
            touch_for_reading(data);
            (&self.link.device).write_vectored(&[IoSlice::new(head), IoSlice::new(data)]).map(|_| ())
        };
        let delivered = self.delivered(written);
        if let Some(mut held) = self.held.take() {
            held.release();
        }
        delivered
    }

    fn delivered(&self, written: io::Result<()>) -> bool {
        let Err(error) = written else { return true };
        match error.raw_os_error() {
            // The kernel does not wait any more (an interrupted wait that was never sent, an earlier answer).
            Some(libc::ENOENT) => {
                self.link.stats.add(&self.link.stats.late_replies);
                true
            }
            Some(libc::ENODEV | libc::ECONNABORTED) => false,
            _ => {
                tracing::error!(%error, unique = self.raw_unique, "the kernel refused a reply; the application sees EIO");
                self.link.stats.add(&self.link.stats.dropped_replies);
                self.link.error(self.raw_unique, libc::EIO);
                true
            }
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.answered || self.link.abandoned.load(Ordering::Acquire) || self.link.ended.load(Ordering::Acquire) {
            return;
        }
        tracing::error!(unique = self.raw_unique, "a request was dropped without an answer; the application sees EIO");
        self.link.stats.add(&self.link.stats.dropped_replies);
        self.link.error(self.raw_unique, libc::EIO);
        if let Some(mut held) = self.held.take() {
            held.release();
        }
    }
}
