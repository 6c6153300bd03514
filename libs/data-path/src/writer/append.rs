//! Mutations that do not wait in the queue: O_APPEND, holes, allocations.

use super::{
    MemoryLog, Shared, WriteContext, WriteLog,
    file::{File, Sending},
    segments::Segments,
};
use crate::{object::StoreError, pace};
use bytes::Bytes;
use fusefs_types::{
    Attr, Extent, FsError, FsResult, Hlc, Ino, Source,
    ids::OpId,
    limits,
    ops::{Append, CommitFile, Piece},
};
use std::sync::{Arc, atomic::Ordering};
use tokio::time::Instant;

impl MemoryLog {
    /// Writes at the end of the file as the partition sees it: atomic between clients, durable when it returns
    /// (PROTOCOL 38). Earlier buffered writes of the file are committed first. `op` is the operation of the kernel's
    /// request: when the request is sent again to another client process, the stored reply answers it. Returns the
    /// offset the bytes got.
    pub async fn append(&self, ino: Ino, data: Bytes, op: OpId) -> FsResult<(u64, Attr)> {
        self.fsync(ino).await?;
        let (shared, deadline) = (&self.shared, self.shared.io_deadline());
        if shared.fenced.load(Ordering::Acquire) {
            return Err(FsError::Stale);
        }
        shared.credits.take(data.len() as u64)?;
        let done = shared.append(ino, &data, op, deadline).await;
        shared.credits.settle(data.len() as u64);
        if matches!(done, Err(FsError::Stale | FsError::Fenced)) {
            shared.fence();
        }
        // On an error too: the outcome may be unknown.
        shared.listener.committed(ino, done.as_ref().ok().map(|(_, a)| a));
        done
    }

    /// Commits holes or allocated zeroes. The caller holds the file ([`WriteLog::hold`]), so that nothing is queued.
    /// A request that the kernel sent again, and that an earlier client process had begun, is not executed again.
    /// Waits for the answer as long as it takes: before it is known, nothing may come behind.
    pub async fn commit_pieces(&self, ino: Ino, pieces: Vec<Piece>, grow_to: u64, cx: WriteContext) -> FsResult<Attr> {
        let shared = &self.shared;
        if let Some(outcome) = shared.outcome_of(&cx) {
            outcome?;
            return pace::meta(None, || shared.sink.extents(ino, 0, 1)).await.map(|map| map.attr);
        }
        let file = CommitFile {
            ino,
            trunc_seq: cx.trunc_seq,
            pieces,
            mtime: Some(shared.now()),
            grow_to,
            kill_priv: cx.kill_priv,
        };
        let mut sending = Sending {
            number: shared.sink.begin(),
            batches: 0,
            file,
            inline_bytes: 0,
            covers: 0,
            unique: cx.unique,
            resent: false,
            place: None,
        };
        let queue = shared.file(ino);
        shared.record_intent(&queue, &mut sending).await;
        let done = pace::meta(None, || shared.sink.commit(sending.number, sending.file.clone())).await;
        shared.listener.committed(ino, done.as_ref().ok());
        shared.answered(&queue, &sending, done.as_ref().map(|a| a.change).map_err(|e| *e));
        done
    }
}

impl Shared {
    /// Notes the answer of [`MemoryLog::commit_pieces`].
    fn answered(self: &Arc<Self>, queue: &File, sending: &Sending, answer: Result<Hlc, FsError>) {
        if answer == Err(FsError::Stale) {
            return; // the journal stays as it is for people
        }
        let recorded = self.record_answer(&mut queue.state.lock(), queue.ino, sending, answer);
        // Io may mean that nobody knows: the reply stays where it is.
        if recorded && answer != Err(FsError::Io) {
            self.sink.settled(sending.number);
        }
    }

    async fn append(
        self: &Arc<Self>,
        ino: Ino,
        data: &Bytes,
        op: OpId,
        deadline: Option<Instant>,
    ) -> FsResult<(u64, Attr)> {
        let len = data.len() as u64;
        // Both shapes go under one operation, so a repetition may choose the other one.
        if len <= self.inline_max() {
            let pieces = vec![Piece::Inline { offset: 0, bytes: data.clone() }];
            let append = Append { ino, pieces, len };
            match pace::meta(deadline, || self.sink.append(op, append.clone())).await {
                Err(FsError::UseObject) => {}
                done => return done,
            }
        }
        let mut parts = Vec::new();
        let mut rest = data.clone();
        while !rest.is_empty() {
            parts.push(rest.split_to(rest.len().min(limits::OBJECT_BYTES_MAX)));
        }
        let uploads = parts.into_iter().map(|p| self.append_object(ino, p, deadline));
        let mut pieces = Vec::new();
        let mut offset = 0;
        for done in futures::future::join_all(uploads).await {
            let (source, len) = done?;
            pieces.push(Piece::Extent(Extent { offset, len, codec: 0, source }));
            offset += len;
        }
        let append = Append { ino, pieces, len };
        let done = pace::meta(deadline, || self.sink.append(op, append.clone())).await;
        if done.is_err() {
            self.leftovers.fetch_add(append.pieces.len() as u64, Ordering::Relaxed);
        }
        done
    }

    /// Stores one object of an append. A permanent failure is the append's answer: nothing was acknowledged.
    async fn append_object(&self, home: Ino, data: Bytes, deadline: Option<Instant>) -> FsResult<(Source, u64)> {
        let len = data.len() as u64;
        let mut segments = Segments::default();
        segments.write(0, &data);
        let frozen = segments.freeze();
        loop {
            let stored = pace::store(deadline, || async {
                let _permit = self.uploads.acquire().await;
                self.put_object(home, &frozen).await
            });
            match stored.await {
                Ok(id) => return Ok((Source::Object { id, home, skip: 0 }, len)),
                Err(StoreError::Exists) => continue,
                Err(e) => {
                    tracing::warn!(ino = %home, error = %e, "append failed");
                    return Err(FsError::Io);
                }
            }
        }
    }
}
