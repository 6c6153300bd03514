//! One call, made as kubelet and the sidecars make it: after a code that is not final the same call again with the same
//! arguments, later and later; a final code ends it.

use super::plugin::Plugin;
use crate::replay::{nemesis::pause, now_ns};
use anyhow::{Result, anyhow};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tonic::{Code, Status, transport::Channel};

/// First and longest time between two tries (kubelet: 0.5 s to 2 min).
const BACK_OFF_MS: (u64, u64) = (20, 500);
/// A call that has not converged after this is a failure.
const PATIENCE: Duration = Duration::from_secs(60);
/// Limit of one try (kubelet: 2 min).
const TRY: Duration = Duration::from_secs(30);

/// What calls came to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Calls that converged, by name.
    pub done: BTreeMap<&'static str, u64>,
    /// Tries that had to be repeated, by code.
    pub again: BTreeMap<String, u64>,
    /// Longest call until it converged, in ms.
    pub longest_ms: u64,
}

/// Makes calls.
#[derive(Clone)]
pub struct Caller {
    runtime: Arc<tokio::runtime::Runtime>,
    tally: Arc<Mutex<Tally>>,
}

/// Codes after which kubelet keeps the volume and calls again, and broken connections.
fn is_final(status: &Status) -> bool {
    use std::error::Error;
    let known = matches!(
        status.code(),
        Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::ResourceExhausted | Code::Aborted
    );
    // A connection that broke has no code of its own here; Go's library answers Unavailable.
    let broken = status.source().is_some() || matches!(status.code(), Code::Unknown);
    !known && !broken
}

impl Caller {
    /// With a runtime of its own.
    pub fn new() -> Result<Caller> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        Ok(Caller { runtime: Arc::new(runtime), tally: Arc::default() })
    }

    /// What calls came to so far.
    pub fn tally(&self) -> Tally {
        self.tally.lock().clone()
    }

    /// One try; a plugin that is dead is started first.
    pub fn once<T, F>(&self, plugin: &Plugin, make: F) -> Result<T, Status>
    where
        F: AsyncFnOnce(Channel) -> Result<tonic::Response<T>, Status>,
    {
        plugin.revive().map_err(|e| Status::unavailable(e.to_string()))?;
        self.runtime.block_on(async {
            let tried = async {
                let channel = plugin.connect().await?;
                make(channel).await.map(tonic::Response::into_inner)
            };
            tokio::time::timeout(TRY, tried).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))
        })
    }

    /// Until it works.
    pub fn call<T, F>(&self, what: &'static str, plugin: &Plugin, make: F) -> Result<T>
    where
        F: AsyncFn(Channel) -> Result<tonic::Response<T>, Status>,
    {
        let told = |s: Status| anyhow!("{what} at {}: a final {:?}: {}", plugin.name, s.code(), s.message());
        self.settled(what, plugin, make)?.map_err(told)
    }

    /// Until it works or the answer is final.
    pub fn settled<T, F>(&self, what: &'static str, plugin: &Plugin, make: F) -> Result<Result<T, Status>>
    where
        F: AsyncFn(Channel) -> Result<tonic::Response<T>, Status>,
    {
        let (start, mut wait) = (now_ns(), BACK_OFF_MS.0);
        loop {
            let status = match self.once(plugin, &make) {
                Ok(reply) => {
                    let mut tally = self.tally.lock();
                    *tally.done.entry(what).or_default() += 1;
                    tally.longest_ms = tally.longest_ms.max((now_ns() - start) / 1_000_000);
                    return Ok(Ok(reply));
                }
                Err(status) => status,
            };
            if is_final(&status) {
                return Ok(Err(status));
            }
            if now_ns() - start > PATIENCE.as_nanos() as u64 {
                return Err(anyhow!("{what} at {}: {status:?} after {PATIENCE:?}", plugin.name));
            }
            *self.tally.lock().again.entry(format!("{:?}", status.code())).or_default() += 1;
            pause(Duration::from_millis(wait));
            wait = (wait * 2).min(BACK_OFF_MS.1);
        }
    }

    /// Waits until the plugin answers.
    pub fn wait_ready(&self, plugin: &Plugin) -> Result<()> {
        let start = now_ns();
        while !self.runtime.block_on(plugin.answers()) {
            plugin.revive()?;
            if now_ns() - start > PATIENCE.as_nanos() as u64 {
                return Err(anyhow!("{} does not answer; its log ends with:\n{}", plugin.name, plugin.log_tail()));
            }
            pause(Duration::from_millis(20));
        }
        Ok(())
    }
}
