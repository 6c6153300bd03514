//! Reads: extents -> coalesced range reads of whole frames, verified; block cache; read-ahead.

mod blocks;
mod maps;
mod streams;

pub use blocks::ReadStats;

use crate::{
    layout,
    object::ObjectStore,
    pace,
    settings::Settings,
    sink::{ExtentMap, MetaSink},
    writer::{CommitListener, Overlay},
};
use blocks::{Blocks, FetchError};
use bytes::{Bytes, BytesMut};
use fusefs_types::{Attr, Extent, FsError, FsResult, Ino, ObjectId, Source, limits};
use lru::LruCache;
use maps::{MapCache, Part, View};
use parking_lot::Mutex;
use std::{
    num::NonZeroUsize,
    ops::Range,
    sync::{Arc, atomic::Ordering},
};
use streams::Streams;
use tokio::{runtime::Handle, sync::Semaphore, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Files whose read pattern is remembered.
const STREAM_FILES: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Times a read starts over because the file's objects changed under it.
const RESTARTS_MAX: u32 = 16;

/// Reads of one mount.
pub struct Reader {
    sink: Arc<dyn MetaSink>,
    maps: MapCache,
    blocks: Arc<Blocks>,
    streams: Mutex<LruCache<Ino, Streams>>,
    ahead: Arc<Semaphore>,
    settings: Settings,
    runtime: Handle,
    cancel: CancellationToken,
    _stop: DropGuard,
}

/// Why a read could not be assembled.
enum Trouble {
    /// This object is gone or broken.
    Object(ObjectId),
    Fs(FsError),
}

/// A read with everything known but the object bytes.
struct Plan {
    offset: u64,
    len: usize,
    parts: Vec<Part>,
}

impl Reader {
    /// Must be called inside a tokio runtime.
    pub fn new(store: Arc<dyn ObjectStore>, sink: Arc<dyn MetaSink>, settings: Settings) -> Arc<Reader> {
        let (runtime, cancel) = (Handle::current(), CancellationToken::new());
        let (budget, fetches) = (settings.cache_bytes, settings.fetches_max);
        Arc::new(Reader {
            sink,
            maps: MapCache::new(settings.map_bytes),
            blocks: Blocks::new(store, budget, fetches, settings.fetch_bytes, runtime.clone()),
            streams: Mutex::new(LruCache::new(STREAM_FILES)),
            ahead: Arc::new(Semaphore::new((fetches / 2).max(1))),
            settings,
            runtime,
            _stop: cancel.clone().drop_guard(),
            cancel,
        })
    }

    /// Counters.
    pub fn stats(&self) -> &ReadStats {
        &self.blocks.stats
    }
    /// Newer attributes were seen.
    pub fn observe(&self, attr: &Attr) {
        self.maps.observe(attr);
    }
    /// The cached extent map of a file is not to be used any more.
    pub fn invalidate(&self, ino: Ino) {
        self.maps.drop_file(ino);
    }

    /// Bytes from memory, None when anything has to be fetched. Short at the end of the file.
    pub fn try_read(self: &Arc<Self>, ino: Ino, offset: u64, len: usize, over: &Overlay) -> Option<Bytes> {
        let done = self.memory_read(ino, offset, len, over)?;
        self.note(ino, offset, done.len() as u64);
        Some(done)
    }

    fn memory_read(&self, ino: Ino, offset: u64, len: usize, over: &Overlay) -> Option<Bytes> {
        if let Some(b) = covered(offset, len, over) {
            return Some(b);
        }
        let view = self.maps.view(ino, offset, len as u64)?;
        let len = answer_len(offset, len, over, view.size);
        if view.end < offset + len as u64 {
            return None;
        }
        let plan = plan_of(offset, len, view.parts);
        let mut frames = Vec::with_capacity(plan.parts.len());
        for part in &plan.parts {
            frames.push(match object_frames(part, over) {
                Some((id, range)) => self.blocks.cached(&id, range)?,
                None => Vec::new(),
            });
        }
        assemble(&plan, &frames, over).ok()
    }

    /// Bytes of a file with uncommitted ones on top. Short at the end of the file. `over` was taken before the call.
    pub async fn read(self: &Arc<Self>, ino: Ino, offset: u64, len: usize, over: &Overlay) -> FsResult<Bytes> {
        let deadline = self.settings.io_timeout.map(|t| Instant::now() + t);
        if let Some(b) = covered(offset, len, over) {
            return Ok(b);
        }
        self.note(ino, offset, len as u64);
        let mut broken: Option<ObjectId> = None;
        let mut fresh = false;
        for _ in 0..RESTARTS_MAX {
            if fresh {
                self.maps.drop_file(ino);
            }
            let plan = self.plan(ino, offset, len, over, deadline).await?;
            match self.fetch_all(&plan, over, deadline).await {
                Ok(frames) => match assemble(&plan, &frames, over) {
                    Ok(b) => return Ok(b),
                    Err(id) => {
                        if fresh && broken == id {
                            return Err(FsError::Io);
                        }
                        for (id, frames) in plan.parts.iter().filter_map(|p| object_frames(p, over)) {
                            self.blocks.forget(id, frames);
                        }
                        broken = id;
                    }
                },
                Err(Trouble::Fs(e)) => return Err(e),
                Err(Trouble::Object(id)) => {
                    // The map was fetched after this object failed before, and still names it.
                    if fresh && broken == Some(id) {
                        tracing::error!(%ino, object = %id.key(), "file data is missing or broken in the object store");
                        return Err(FsError::Io);
                    }
                    broken = Some(id);
                }
            }
            fresh = true;
        }
        Err(FsError::Io)
    }

    /// Extents of the range from cache or cluster.
    async fn plan(
        &self,
        ino: Ino,
        offset: u64,
        len: usize,
        over: &Overlay,
        deadline: Option<Instant>,
    ) -> FsResult<Plan> {
        let mut parts = Vec::new();
        let mut at = offset;
        loop {
            let want = offset + len as u64 - at;
            let view = match self.maps.view(ino, at, want) {
                Some(v) => v,
                None => self.fetch_map(ino, at, want, deadline).await?,
            };
            parts.extend(view.parts);
            let len = answer_len(offset, len, over, view.size);
            if view.end >= offset + len as u64 {
                return Ok(plan_of(offset, len, parts));
            }
            at = view.end; // a view reaches beyond its start
        }
    }

    async fn fetch_map(&self, ino: Ino, offset: u64, len: u64, deadline: Option<Instant>) -> FsResult<View> {
        // From an aligned start, so that neighbours share a window; a long answer may end before it gets to `offset`.
        for start in [offset - offset % maps::WINDOW_FIRST, offset] {
            let window = self.maps.begin(ino).max(len) + (offset - start);
            let mut guard = Fetching { maps: &self.maps, ino, offset: start, answer: None };
            self.blocks.stats.maps.fetch_add(1, Ordering::Relaxed);
            let map = pace::meta(deadline, || self.sink.extents(ino, start, window)).await?;
            let view = view_of(&map, offset, len);
            guard.answer = Some(map);
            if view.end > offset {
                return Ok(view);
            }
        }
        Err(FsError::Io) // an answer without progress
    }

    /// Fetches the frames of all parts in parallel.
    async fn fetch_all(
        &self,
        plan: &Plan,
        over: &Overlay,
        deadline: Option<Instant>,
    ) -> Result<Vec<Vec<Bytes>>, Trouble> {
        let all = plan.parts.iter().map(|part| async move {
            if part.0.codec != 0 {
                return Err(Trouble::Fs(FsError::UpgradeNeeded));
            }
            let Some((id, range)) = object_frames(part, over) else { return Ok(Vec::new()) };
            let mut tries = 0;
            loop {
                let error = match pace::until(deadline, self.blocks.frames(id, range.clone())).await {
                    None => return Err(Trouble::Fs(FsError::Io)),
                    Some(Ok(f)) => return Ok(f),
                    Some(Err(FetchError::Missing | FetchError::Corrupt)) => return Err(Trouble::Object(id)),
                    Some(Err(FetchError::Store(e))) => e,
                };
                tracing::warn!(object = %id.key(), %error, "read failed");
                let next = Instant::now() + pace::PACE.backoff(tries, id.counter);
                if !error.is_transient() || deadline.is_some_and(|d| next >= d) {
                    return Err(Trouble::Fs(FsError::Io));
                }
                tokio::time::sleep_until(next).await;
                tries += 1;
            }
        });
        futures::future::join_all(all).await.into_iter().collect()
    }

    /// Follows the reader and fetches ahead in the background.
    fn note(self: &Arc<Self>, ino: Ino, offset: u64, len: u64) {
        if self.settings.readahead_bytes == 0 || len == 0 {
            return;
        }
        let ahead = {
            let mut streams = self.streams.lock();
            let s = streams.get_or_insert_mut(ino, Streams::default);
            s.on_read(offset, len, self.settings.readahead_bytes)
        };
        let Some(range) = ahead else { return };
        // The task must not keep the reader alive: it would never be dropped while a store hangs.
        let (weak, cancel) = (Arc::downgrade(self), self.cancel.clone());
        self.runtime.spawn(async move {
            let Some(this) = weak.upgrade() else { return };
            tokio::select! { biased; () = cancel.cancelled() => {}, () = this.fetch_ahead(ino, range) => {} }
        });
    }

    /// Best effort: errors are met again, and reported, by the read that needs the bytes.
    async fn fetch_ahead(&self, ino: Ino, range: Range<u64>) {
        let deadline = Some(Instant::now() + std::time::Duration::from_secs(30));
        let (mut at, run) = (range.start, self.settings.fetch_bytes.max(layout::FRAME));
        while at < range.end {
            let view = match self.maps.view(ino, at, range.end - at) {
                Some(v) => v,
                None => match self.fetch_map(ino, at, range.end - at, deadline).await {
                    Ok(v) => v,
                    Err(_) => return,
                },
            };
            for part in &view.parts {
                let Some((id, frames)) = object_frames(part, &Overlay::default()) else { continue };
                for f in frames.clone().step_by((run / layout::FRAME) as usize) {
                    let Ok(permit) = self.ahead.clone().acquire_owned().await else { return };
                    let (blocks, to) = (self.blocks.clone(), frames.end.min(f + (run / layout::FRAME) as u32));
                    self.runtime.spawn(async move {
                        let _ = blocks.frames(id, f..to).await;
                        drop(permit);
                    });
                }
            }
            if view.end <= at || view.end >= view.size {
                return;
            }
            at = view.end;
        }
    }
}

impl CommitListener for Reader {
    fn committed(&self, ino: Ino, _: Option<&Attr>) {
        self.maps.drop_file(ino);
    }
}

/// Ends a map fetch however it ends.
struct Fetching<'a> {
    maps: &'a MapCache,
    ino: Ino,
    offset: u64,
    answer: Option<ExtentMap>,
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.maps.end(self.ino, self.offset, self.answer.as_ref());
    }
}

fn view_of(map: &ExtentMap, offset: u64, len: u64) -> View {
    let to = offset.saturating_add(len).min(map.end.max(map.attr.size));
    let mut parts: Vec<Part> = map.extents.iter().map(|x| (*x, None)).collect();
    for (i, b) in &map.inline {
        if let Some(p) = parts.get_mut(*i as usize) {
            p.1 = Some(b.clone());
        }
    }
    let parts = parts.into_iter().filter_map(|(x, b)| {
        let cut = x.slice(offset, to)?;
        let at = (cut.offset - x.offset) as usize;
        Some((cut, b.map(|b| b.slice(at.min(b.len())..(at + cut.len as usize).min(b.len())))))
    });
    let end = if map.end >= map.attr.size { u64::MAX } else { map.end };
    View { size: map.attr.size, parts: parts.collect(), end }
}

/// Length of the answer: cut at the end of the file, uncommitted bytes included.
fn answer_len(offset: u64, len: usize, over: &Overlay, size: u64) -> usize {
    let end = size.max(over.end).min(limits::FILE_SIZE_MAX);
    end.saturating_sub(offset).min(len as u64) as usize
}

/// A plan with the parts that the answer needs.
fn plan_of(offset: u64, len: usize, parts: Vec<Part>) -> Plan {
    let to = offset + len as u64;
    let parts = parts.into_iter().filter_map(|(x, b)| {
        let cut = x.slice(offset, to)?; // starts where `x` does: only bytes behind the end of the file are cut
        let b = b.map(|b| b.slice(..b.len().min(cut.len as usize)));
        Some((cut, b))
    });
    Plan { offset, len, parts: parts.collect() }
}

/// The whole range when one uncommitted piece, or several in a row, cover it.
fn covered(offset: u64, len: usize, over: &Overlay) -> Option<Bytes> {
    let to = offset.checked_add(len as u64)?;
    if len == 0 {
        return Some(Bytes::new());
    }
    if let Some((o, b)) = over.pieces.last().filter(|(o, b)| *o <= offset && o + b.len() as u64 >= to) {
        return Some(b.slice((offset - o) as usize..(to - o) as usize));
    }
    let mut at = offset;
    let mut pieces: Vec<(u64, u64)> = over.pieces.iter().map(|(o, b)| (*o, o + b.len() as u64)).collect();
    pieces.sort_unstable();
    for (from, end) in pieces {
        if from > at {
            return None;
        }
        at = at.max(end);
    }
    (at >= to).then(|| {
        let mut out = BytesMut::zeroed(len);
        lay_over(&mut out, offset, over);
        out.freeze()
    })
}

/// Frames a part needs; None for inline bytes, zeroes, and what uncommitted bytes hide anyway.
fn object_frames(part: &Part, over: &Overlay) -> Option<(ObjectId, Range<u32>)> {
    let (x, _) = part;
    let Source::Object { id, skip, .. } = x.source else { return None };
    if hidden(x, over) {
        return None;
    }
    Some((id, layout::frames_of(skip, x.len)))
}

fn hidden(x: &Extent, over: &Overlay) -> bool {
    over.pieces.iter().any(|(o, b)| *o <= x.offset && o + b.len() as u64 >= x.end())
}

fn lay_over(out: &mut [u8], offset: u64, over: &Overlay) {
    for (o, b) in &over.pieces {
        fill(out, offset, *o, b);
    }
}

/// Copies `bytes`, which belong at `at` of the file, into a buffer that starts at `offset`.
fn fill(out: &mut [u8], offset: u64, at: u64, bytes: &[u8]) {
    let (from, to) = (at.max(offset), (at + bytes.len() as u64).min(offset + out.len() as u64));
    if from < to {
        let src = &bytes[(from - at) as usize..(to - at) as usize];
        out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(src);
    }
}

/// Builds the answer. Err = an object (or, with None, inline bytes) has fewer bytes than its extent says.
fn assemble(plan: &Plan, frames: &[Vec<Bytes>], over: &Overlay) -> Result<Bytes, Option<ObjectId>> {
    // One frame that holds it all: no copy.
    if let ([(x, None)], [frames], true) = (&plan.parts[..], frames, over.pieces.is_empty())
        && let (Source::Object { skip, .. }, [frame]) = (x.source, &frames[..])
    {
        let at = (skip % layout::FRAME + (plan.offset - x.offset.min(plan.offset))) as usize;
        if x.offset <= plan.offset && x.end() >= plan.offset + plan.len as u64 && at + plan.len <= frame.len() {
            return Ok(frame.slice(at..at + plan.len));
        }
    }
    let mut out = BytesMut::zeroed(plan.len);
    for ((x, inline), frames) in plan.parts.iter().zip(frames) {
        match (x.source, inline) {
            (Source::Zero, _) => {}
            (Source::Inline { .. }, Some(b)) if b.len() as u64 == x.len => fill(&mut out, plan.offset, x.offset, b),
            (Source::Inline { .. }, _) => return Err(None),
            (Source::Object { .. }, _) if hidden(x, over) => {}
            (Source::Object { id, skip, .. }, _) => {
                let (mut at, mut left, mut cut) = (x.offset, x.len, skip % layout::FRAME);
                for f in frames {
                    let usable = f.get(cut as usize..).unwrap_or(&[]);
                    let n = left.min(usable.len() as u64);
                    fill(&mut out, plan.offset, at, &usable[..n as usize]);
                    at += n;
                    left -= n;
                    cut = 0;
                }
                if left > 0 {
                    return Err(Some(id));
                }
            }
        }
    }
    lay_over(&mut out, plan.offset, over);
    Ok(out.freeze())
}
