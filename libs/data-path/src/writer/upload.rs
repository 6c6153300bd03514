//! Batches become objects, in parallel.

use super::{
    Shared,
    file::{File, State, Status},
    segments::Frozen,
};
use crate::{
    layout,
    object::{PutMode, StoreError},
    pace::{self, until},
};
use fusefs_types::{FsError, Ino, ObjectId};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::time::Instant;

impl Shared {
    /// Starts the way out of a batch: its upload, if it needs one, and the committing task.
    pub(super) fn start(self: &Arc<Self>, file: &Arc<File>, st: &mut State, seq: u64) {
        let batch = st.sealed.iter().rev().find(|s| s.seq == seq);
        if let Some(s) = batch.filter(|s| s.status == Status::Uploading) {
            let (this, file) = (self.clone(), file.clone());
            let (data, cancelled) = (s.data.clone(), s.cancelled.clone());
            self.runtime.spawn(async move {
                let work = this.upload(&file, seq, &data, &cancelled);
                tokio::select! { biased; () = this.cancel.cancelled() => {}, () = work => {} }
            });
        }
        self.work(file, st);
    }

    /// Makes the committing task look at the queue.
    pub(super) fn work(self: &Arc<Self>, file: &Arc<File>, st: &mut State) {
        if !st.worker {
            st.worker = true;
            let (this, file) = (self.clone(), file.clone());
            self.runtime.spawn(async move {
                tokio::select! { biased; () = this.cancel.cancelled() => {}, () = this.commits(&file) => this.tidy(file) }
            });
        } else {
            file.wake.notify_one();
        }
    }

    async fn upload(self: &Arc<Self>, file: &Arc<File>, seq: u64, data: &Frozen, cancelled: &AtomicBool) {
        let mut tries = 0;
        loop {
            let (attempt, kicks) = file.state.lock().begin_attempt();
            let stored = {
                // The semaphore is never closed; should it be, the upload goes on unbounded.
                let _permit = self.uploads.acquire().await;
                if cancelled.load(Ordering::Acquire) || self.fenced.load(Ordering::Acquire) {
                    return;
                }
                self.put_object(file.ino, data).await
            };
            match stored {
                Ok(id) => {
                    self.uploaded(file, seq, id, cancelled);
                    return;
                }
                Err(StoreError::Exists) => continue, // a name of ours is taken: the next counter
                Err(_) if cancelled.load(Ordering::Acquire) => return, // nobody waits for it
                Err(e) => {
                    tracing::warn!(ino = %file.ino, error = %e, "upload failed, the data stays in memory");
                    let verdict = (!e.is_transient()).then_some(FsError::Io);
                    self.after_failure(file, verdict, attempt, kicks, tries).await;
                }
            }
            tries += 1;
        }
    }

    /// One object from one batch.
    pub(super) async fn put_object(&self, home: Ino, data: &Frozen) -> Result<ObjectId, StoreError> {
        let id = self.next_object();
        let pieces = data.segments.iter().map(|(_, b)| &b[..]);
        let body = layout::encode(&id, home, data.bytes, pieces);
        let mode = if self.settings.conditional_put { PutMode::IfAbsent } else { PutMode::Any };
        let stored = self.store.put(&id.key(), body, mode).await;
        match stored {
            Ok(()) => {
                self.stats.puts.fetch_add(1, Ordering::Relaxed);
                self.stats.put_bytes.fetch_add(data.bytes, Ordering::Relaxed);
                Ok(id)
            }
            Err(e) => {
                self.leftovers.fetch_add(1, Ordering::Relaxed); // it may have arrived all the same
                Err(e)
            }
        }
    }

    fn uploaded(self: &Arc<Self>, file: &Arc<File>, seq: u64, id: ObjectId, cancelled: &AtomicBool) {
        let found = {
            let mut st = file.state.lock();
            // A batch that was taken out and came back is uploaded by somebody else now.
            let batch = st.sealed.iter_mut().find(|s| s.seq == seq && !cancelled.load(Ordering::Acquire));
            batch.map(|s| s.status = Status::Uploaded(id)).is_some()
        };
        if found {
            file.wake.notify_one();
        } else {
            self.discard(id); // cancelled meanwhile
        }
    }

    /// Records a verdict for waiting fsyncs and waits for the next try: back-off, or somebody who wants it now.
    pub(super) async fn after_failure(
        &self,
        file: &File,
        verdict: Option<FsError>,
        attempt: u64,
        kicks: u64,
        tries: u32,
    ) {
        self.stats.retries.fetch_add(1, Ordering::Relaxed);
        let kicked = file.kick.notified();
        let kicked_before = {
            let mut st = file.state.lock();
            if let Some(error) = verdict
                && st.failure.replace((error, attempt)).is_none()
            {
                self.failing.fetch_add(1, Ordering::AcqRel);
            }
            st.kicks != kicks
        };
        file.changed.notify_waiters();
        if kicked_before {
            return;
        }
        let wait = pace::PACE.backoff(tries, file.ino.0);
        until(Some(Instant::now() + wait), kicked).await;
    }
}
