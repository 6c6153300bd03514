//! Counters of a connection.

use std::sync::atomic::{AtomicU64, Ordering};

/// What happened on a connection since [`super::serve`] began.
#[derive(Debug, Default)]
pub struct ServeStats {
    /// Requests that were read and want an answer.
    pub requests: AtomicU64,
    /// Of these: sent again by the kernel, because an earlier process died with them.
    pub resent: AtomicU64,
    /// Requests of an earlier process found in the slots and served again.
    pub reserved: AtomicU64,
    /// Answers of an earlier process found in the slots and sent again without execution.
    pub rewritten: AtomicU64,
    /// Answered on the thread that read the request.
    pub inline_answers: AtomicU64,
    /// The kernel did not wait for the answer any more.
    pub late_replies: AtomicU64,
    /// Requests whose answer was lost by a fault here: the application saw EIO.
    pub dropped_replies: AtomicU64,
    /// Requests that the application did not want to wait for any longer.
    pub interrupted: AtomicU64,
}

impl ServeStats {
    pub(super) fn add(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
