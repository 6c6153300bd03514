//! The session's lease and its keeper (PROTOCOL 12, 13).

use crate::client::{Inner, MetaClient};
use fusefs_types::{
    Clock, FsError, FsResult,
    cluster::{MasterCall, MasterReply, VolumeSpace},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, watch};

/// A volume's space is asked for ahead of time at most this often.
pub const RECOUNT_EVERY: Duration = Duration::from_millis(250);

/// Until when others leave our session alone, on CLOCK_BOOTTIME: it goes on during suspend.
pub(crate) struct Lease {
    clock: Arc<dyn Clock>,
    deadline_ns: AtomicU64,
    ended: AtomicBool,
    /// Wakes the keeper.
    renew: Notify,
    changed: watch::Sender<()>,
}

impl Lease {
    pub fn new(clock: Arc<dyn Clock>) -> Lease {
        Lease {
            clock,
            deadline_ns: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            renew: Notify::new(),
            changed: watch::Sender::new(()),
        }
    }
    pub fn now_ns(&self) -> u64 {
        self.clock.boot_ns()
    }
    /// A grant of `ms` that was asked for at `asked_ns` (the send instant: the master's clock started later).
    pub fn extend(&self, asked_ns: u64, ms: u64) {
        self.deadline_ns.fetch_max(asked_ns.saturating_add(ms.saturating_mul(1_000_000)), Ordering::AcqRel);
        self.changed.send_replace(());
    }
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.changed.send_replace(());
    }
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
    pub fn valid(&self) -> bool {
        !self.ended() && self.clock.boot_ns() < self.deadline_ns.load(Ordering::Acquire)
    }
    /// Renew now rather than in time.
    pub fn poke(&self) {
        self.renew.notify_one();
    }
    pub async fn wait(&self) -> FsResult<()> {
        let mut changed = self.changed.subscribe();
        loop {
            if self.ended() {
                return Err(FsError::Stale);
            }
            if self.valid() {
                return Ok(());
            }
            self.poke();
            // The sender lives in self.
            let _ = changed.changed().await;
        }
    }
}

/// Renews the lease until the session ends.
pub(crate) async fn keep(inner: Arc<Inner>, lease_ms: u64) {
    let mut third = Duration::from_millis(lease_ms / 3).max(Duration::from_millis(1));
    loop {
        let _ = tokio::time::timeout(third, inner.lease.renew.notified()).await;
        let (asked, who) = (inner.lease.now_ns(), inner.identity.who());
        match inner.master.call_within(MasterCall::RenewSession(who.session, who.token), third).await {
            Ok(MasterReply::Lease(lease)) => {
                inner.lease.extend(asked, lease.ms);
                third = Duration::from_millis(lease.ms / 3).max(Duration::from_millis(1));
                inner.newer_map(lease.map_generation);
                if let Some(space) = lease.space {
                    *inner.space.lock() = space;
                }
            }
            Ok(_) => tracing::warn!("a master answered a renewal with something else"),
            Err(e) if matches!(e.error, FsError::Stale | FsError::Fenced | FsError::NotFound) => {
                tracing::error!(session = %who.session, "the cluster ended the session: {}", e.message);
                inner.lease.end();
                return;
            }
            Err(e) => {
                tracing::warn!("lease not renewed: {}", e.message);
                // Waiting callers see that time passes, and poke again.
                inner.lease.poke();
            }
        }
    }
}

impl MetaClient {
    /// The volume's space as of the last renewal of the lease; no RPC.
    pub fn space(&self) -> VolumeSpace {
        *self.inner.space.lock()
    }
    /// Renews the lease now to hear of the volume's space. False: it was asked a moment ago ([`RECOUNT_EVERY`]).
    pub fn recount(&self) -> bool {
        let (lease, last) = (&self.inner.lease, &self.inner.recounted_ns);
        let (now, every) = (lease.now_ns(), RECOUNT_EVERY.as_nanos() as u64);
        let ask = |last: u64| (last == 0 || now >= last.saturating_add(every)).then_some(now.max(1));
        let asked = last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, ask).is_ok();
        if asked {
            lease.poke();
        }
        asked
    }
}
