//! Commits of one inode, in write order.

use super::{
    Shared,
    file::{File, Sending, State, Status},
};
use fusefs_types::{
    Attr, Extent, FsError, ObjectId, Source, limits,
    ops::{CommitFile, Piece},
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::Instant;

/// After "inline budget exhausted" everything goes into objects for this long.
const INLINE_OFF: Duration = Duration::from_secs(10);

enum Step {
    Done,
    Wait,
    Send(Sending),
}

impl Shared {
    /// Commits what is ready, in order, until the queue is empty.
    pub(super) async fn commits(self: &Arc<Self>, file: &Arc<File>) {
        let mut tries = 0;
        loop {
            if self.fenced.load(Ordering::Acquire) {
                self.drop_all(file);
                return;
            }
            let step = next_step(file, &mut file.state.lock());
            match step {
                Step::Done => return,
                Step::Wait => file.wake.notified().await,
                Step::Send(mut sending) => {
                    if !sending.resent {
                        sending.number = self.sink.begin();
                        self.record_intent(file, &mut sending).await;
                    }
                    tries = self.send(file, &sending, tries).await;
                }
            }
        }
    }

    /// Sends one commit until there is an answer. Returns the failed tries in a row.
    async fn send(self: &Arc<Self>, file: &Arc<File>, s: &Sending, mut tries: u32) -> u32 {
        if s.resent {
            self.count_resent();
        }
        loop {
            let (attempt, kicks) = file.state.lock().begin_attempt();
            self.stats.commits.fetch_add(1, Ordering::Relaxed);
            let error = match self.sink.commit(s.number, s.file.clone()).await {
                Ok(attr) => {
                    self.stats.inline_bytes.fetch_add(s.inline_bytes, Ordering::Relaxed);
                    self.finish(file, s, Some(&attr), None);
                    return 0;
                }
                Err(e) => e,
            };
            match error {
                FsError::Stale | FsError::Fenced => {
                    self.fence();
                    return tries;
                }
                FsError::NotFound => {
                    tracing::info!(ino = %file.ino, "the file is gone, its uncommitted data is dropped");
                    for id in objects(&s.file) {
                        self.discard(id);
                    }
                    self.finish(file, s, None, Some(FsError::NotFound));
                    return 0;
                }
                // Its answer was recorded and acknowledged by a client process whose journal lost the record.
                FsError::TooOld if s.resent => {
                    tracing::warn!(ino = %file.ino, number = s.number, "an old commit was acknowledged long ago");
                    self.finish(file, s, None, None);
                    return 0;
                }
                FsError::UseObject if s.inline_bytes > 0 => {
                    self.refused(file, s, error);
                    self.use_objects(file, s.batches);
                    return tries;
                }
                e if e.is_retryable() => self.after_failure(file, None, attempt, kicks, tries).await,
                // Nobody looked at it: it may have been applied for the client process before this one.
                e if s.resent && is_unanswered(e) => {
                    tracing::warn!(ino = %file.ino, error = %e, "an old commit cannot be sent again, the data stays");
                    self.after_failure(file, Some(e), attempt, kicks, tries).await;
                }
                e if s.resent => {
                    tracing::info!(ino = %file.ino, error = %e, "an old commit was not applied, its bytes are uploaded again");
                    self.refused(file, s, e);
                    self.leave(objects(&s.file), e);
                    self.restart(file, s.batches);
                    return tries;
                }
                e => {
                    tracing::warn!(ino = %file.ino, error = %e, "commit refused, the data stays in memory");
                    self.refused(file, s, e);
                    file.state.lock().sealed.iter_mut().take(s.batches).for_each(|s| s.committing = false);
                    self.after_failure(file, Some(e), attempt, kicks, tries).await;
                    return tries + 1; // refused = not applied: what is ready by then is a new commit
                }
            }
            tries += 1;
        }
    }

    /// Objects of a refused commit are deleted, if the partition surely did not apply it; the sweeper looks at others.
    fn leave(self: &Arc<Self>, ids: Vec<ObjectId>, refusal: FsError) {
        let applied_never = refusal == FsError::UseObject
            || (refusal.code() < FsError::NotLeader.code()
                && !matches!(refusal, FsError::Io | FsError::TimedOut | FsError::Interrupted));
        if applied_never {
            ids.into_iter().for_each(|id| self.discard(id));
        } else {
            self.leftovers.fetch_add(ids.len() as u64, Ordering::Relaxed);
        }
    }

    /// A commit was refused: nothing was applied, its batches stay.
    fn refused(self: &Arc<Self>, file: &File, s: &Sending, error: FsError) {
        if self.record_answer(&mut file.state.lock(), file.ino, s, Err(error)) {
            self.sink.settled(s.number);
        }
        self.note_outcome(s.unique, Err(error));
    }

    /// The batches of a commit are committed, or their inode is gone (`lost`).
    fn finish(self: &Arc<Self>, file: &File, s: &Sending, attr: Option<&Attr>, lost: Option<FsError>) {
        self.listener.committed(file.ino, attr);
        self.note_outcome(s.unique, lost.map_or(Ok(()), Err));
        let (mut cost, mut bytes, mut places) = (0, 0, Vec::new());
        let recorded = {
            let mut st = file.state.lock();
            let answer = lost.map_or(Ok(attr.map(|a| a.change).unwrap_or_default()), Err);
            let recorded = self.record_answer(&mut st, file.ino, s, answer);
            st.lost += u64::from(lost.is_some());
            for s in st.sealed.drain(..s.batches) {
                cost += s.data.cost() as i64;
                bytes += s.data.bytes;
                places.extend(s.logged.places);
            }
            if st.failure.take().is_some() {
                self.failing.fetch_sub(1, Ordering::AcqRel);
            }
            recorded
        };
        if recorded {
            self.sink.settled(s.number);
        }
        self.released(&places);
        self.charge(-cost);
        self.credits.settle(bytes);
        file.changed.notify_waiters();
    }

    /// The partition has no inline budget: the inline ones of the first `n` batches are uploaded instead.
    fn use_objects(self: &Arc<Self>, file: &Arc<File>, n: usize) {
        *self.inline_off_until.lock() = Some(Instant::now() + INLINE_OFF);
        let mut st = file.state.lock();
        let mut again = Vec::new();
        for s in st.sealed.iter_mut().take(n) {
            s.committing = false;
            if s.status == Status::Inline {
                s.status = Status::Uploading;
                again.push(s.seq);
            }
        }
        for seq in again {
            self.start(file, &mut st, seq);
        }
    }

    /// Ends everything: the cluster ended the session.
    pub(super) fn fence(&self) {
        if !self.fenced.swap(true, Ordering::AcqRel) {
            match &self.journal {
                None => tracing::error!("the session was ended by the cluster; uncommitted data is lost"),
                Some(_) => {
                    tracing::error!("the session was ended by the cluster; uncommitted data stays in the journal")
                }
            }
        }
        let files: Vec<Arc<File>> = self.files.lock().values().cloned().collect();
        for file in files {
            self.drop_all(&file);
            file.kick.notify_waiters();
            file.wake.notify_one();
        }
        self.space.notify_waiters();
    }

    fn drop_all(&self, file: &File) {
        let cost = {
            let mut st = file.state.lock();
            let open = st.open.take().map_or(0, |o| o.segments.cost());
            let parked = std::mem::take(&mut st.parked);
            let sealed: u64 = st.sealed.drain(..).chain(parked).map(|s| s.data.cost()).sum();
            if st.failure.take().is_some() {
                self.failing.fetch_sub(1, Ordering::AcqRel);
            }
            (st.worker, st.intent) = (false, None);
            st.resend.clear();
            open + sealed
        };
        self.charge(-(cost as i64));
        file.changed.notify_waiters();
    }

    /// Objects that are or may be in the store and not committed.
    pub(super) fn uncommitted_objects(&self) -> u64 {
        let files = self.files.lock();
        let of_file = |f: &Arc<File>| {
            let st = f.state.lock();
            st.sealed.iter().chain(&st.parked).filter(|s| s.status != Status::Inline).count() as u64
        };
        files.values().map(of_file).sum()
    }
}

/// Errors of a server that did not look at the operation.
fn is_unanswered(error: FsError) -> bool {
    matches!(error, FsError::Unauthenticated | FsError::UpgradeNeeded | FsError::ClockSkew | FsError::WrongCluster)
}

fn objects(file: &CommitFile) -> Vec<ObjectId> {
    let mut ids: Vec<ObjectId> = Vec::new();
    for p in &file.pieces {
        if let Piece::Extent(Extent { source: Source::Object { id, .. }, .. }) = p
            && ids.last() != Some(id)
        {
            ids.push(*id);
        }
    }
    ids
}

/// The next commit: one of an earlier client process, or the ready batches at the head of the queue.
fn next_step(file: &File, st: &mut State) -> Step {
    if let Some(sending) = st.resend.pop_front() {
        st.intent = sending.place;
        return Step::Send(sending);
    }
    let Some(head) = st.sealed.front() else {
        st.worker = false;
        return Step::Done;
    };
    let mut commit = CommitFile {
        ino: file.ino,
        trunc_seq: head.trunc_seq,
        pieces: Vec::new(),
        mtime: None,
        grow_to: 0,
        kill_priv: false,
    };
    let (mut batches, mut inline_bytes, mut covers) = (0, 0, 0);
    for s in &mut st.sealed {
        let inline = s.status == Status::Inline;
        let bytes = if inline { s.data.bytes } else { 0 };
        let runs = s.data.runs();
        if s.status == Status::Uploading
            || s.trunc_seq != commit.trunc_seq
            || (batches > 0 && commit.pieces.len() + runs.len() > limits::COMMIT_ITEMS_MAX)
            || (batches > 0 && inline_bytes + bytes > limits::INLINE_COMMIT_BYTES_MAX as u64)
        {
            break;
        }
        let mut skip = 0;
        for (offset, len, segments) in runs {
            commit.pieces.push(match s.status {
                Status::Uploaded(id) => {
                    let source = Source::Object { id, home: file.ino, skip };
                    Piece::Extent(Extent { offset, len, codec: 0, source })
                }
                _ => Piece::Inline { offset, bytes: s.data.join(segments) },
            });
            skip += len;
        }
        s.committing = true;
        commit.mtime = s.mtime;
        commit.grow_to = commit.grow_to.max(s.data.end());
        commit.kill_priv |= s.kill_priv;
        inline_bytes += bytes;
        covers = s.logged.last;
        batches += 1;
    }
    if batches == 0 {
        return Step::Wait;
    }
    let (number, unique, resent, place) = (0, 0, false, None); // the number comes with the intent
    Step::Send(Sending { number, batches, file: commit, inline_bytes, covers, unique, resent, place })
}
