//! A model of a partition: files, extents, exactly-once by operation, faults on order.

use crate::{
    layout,
    object::{MemoryStore, ObjectStore, faulty::mix},
    sink::{ExtentMap, MetaSink},
};
use async_trait::async_trait;
use bytes::Bytes;
use fusefs_types::{
    Attr, Extent, FileKind, FsError, FsResult, Hlc, Ino, ObjectId, Source, Time,
    ids::{Incarnation, OpId, Origin},
    ops::{Append, CommitFile, Piece},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// What may go wrong with calls, per mille.
#[derive(Clone, Debug, Default)]
pub struct SinkFaults {
    /// Unavailable before any effect.
    pub refused: u32,
    /// Unavailable after the effect.
    pub lost_replies: u32,
    /// UseObject for inline bytes.
    pub use_object: u32,
    /// Every mutation gets this definite answer.
    pub always: Option<FsError>,
    /// Every mutation is turned away with this before anybody looks at it.
    pub turned_away: Option<FsError>,
    /// Commits of this file are Unavailable.
    pub stuck: Option<Ino>,
    /// Longest time a call takes.
    pub latency_max: Duration,
}

#[derive(Default)]
struct Model {
    files: BTreeMap<Ino, (Attr, Vec<Extent>)>,
    inline: BTreeMap<u64, Bytes>,
    replies: BTreeMap<OpId, (String, FsResult<(u64, Attr)>)>,
    /// Operations whose answer was acknowledged, with their content.
    acknowledged: BTreeMap<OpId, String>,
    /// Numbers given out or resumed and not settled.
    begun: BTreeSet<u64>,
    next_number: u64,
    /// Objects that some commit named.
    known: BTreeSet<ObjectId>,
    incarnation: Option<Incarnation>,
    clock: u64,
    random: u64,
    faults: SinkFaults,
    counts: BTreeMap<&'static str, u64>,
    committed: Vec<CommitFile>,
}

/// Files in memory behind [`MetaSink`]. Panics when an operation is reused with other content, when a commit's number was
/// not begun, or when a commit breaks a rule.
#[derive(Default)]
pub struct ModelSink {
    model: Mutex<Model>,
    /// Called with (ino, bytes of the whole file) after every applied mutation; needs `bodies`.
    watch: Mutex<Option<Box<dyn FnMut(Ino, Vec<u8>) + Send>>>,
    bodies: Mutex<Option<Arc<MemoryStore>>>,
}

impl ModelSink {
    /// An empty partition; `seed` drives its faults.
    pub fn new(seed: u64) -> Arc<ModelSink> {
        let sink = ModelSink::default();
        sink.model.lock().random = seed;
        Arc::new(sink)
    }
    /// A new client process works from now on: objects of others are refused unless a commit named them before
    /// (PROTOCOL 33), and what the old one had begun is forgotten unless the new one resumes it.
    pub fn restart(&self, incarnation: Incarnation) {
        let mut m = self.model.lock();
        m.incarnation = Some(incarnation);
        m.begun.clear();
        m.next_number = m.next_number.max(u64::from(incarnation.0) << 32);
    }
    /// Numbers begun and not settled.
    pub fn outstanding(&self) -> Vec<u64> {
        self.model.lock().begun.iter().copied().collect()
    }
    /// Calls `f` with the whole file after every applied mutation; object bytes come from `bodies`.
    pub fn watch(&self, bodies: Arc<MemoryStore>, f: impl FnMut(Ino, Vec<u8>) + Send + 'static) {
        *self.bodies.lock() = Some(bodies);
        *self.watch.lock() = Some(Box::new(f));
    }
    /// Makes an empty file.
    pub fn create(&self, ino: Ino) -> Attr {
        let mut m = self.model.lock();
        let change = m.tick();
        let t = Time::from(change);
        let attr = Attr {
            ino,
            kind: FileKind::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            nlink: 1,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: t,
            mtime: t,
            ctime: t,
            btime: t,
            change,
            trunc_seq: 0,
            flags: 0,
            project: 0,
            parent: Ino(0),
            has_xattr: false,
        };
        m.files.insert(ino, (attr, Vec::new()));
        attr
    }
    /// Removes a file: later commits get NotFound.
    pub fn remove(&self, ino: Ino) {
        self.model.lock().files.remove(&ino);
    }
    /// Attributes.
    pub fn attr(&self, ino: Ino) -> Option<Attr> {
        self.model.lock().files.get(&ino).map(|f| f.0)
    }
    /// truncate(2).
    pub fn set_size(&self, ino: Ino, size: u64) -> FsResult<Attr> {
        let done = {
            let mut m = self.model.lock();
            let change = m.tick();
            let (attr, extents) = m.files.get_mut(&ino).ok_or(FsError::NotFound)?;
            if size < attr.size {
                attr.trunc_seq += 1;
                *extents = extents.iter().filter_map(|x| x.slice(0, size)).collect();
            }
            attr.size = size;
            attr.change = change;
            Ok(*attr)
        };
        self.notify(ino);
        done
    }
    /// utimens(2).
    pub fn set_mtime(&self, ino: Ino, mtime: Time) -> FsResult<Attr> {
        let mut m = self.model.lock();
        let change = m.tick();
        let (attr, _) = m.files.get_mut(&ino).ok_or(FsError::NotFound)?;
        attr.mtime = mtime;
        attr.change = change;
        Ok(*attr)
    }
    /// Changes the faults.
    pub fn faults(&self, f: SinkFaults) {
        self.model.lock().faults = f;
    }
    /// Calls so far: commit, append, extents, refused, lost, use_object, always.
    pub fn count(&self, what: &str) -> u64 {
        self.model.lock().counts.iter().find(|(k, _)| **k == what).map_or(0, |(_, n)| *n)
    }
    /// Commits applied so far, in order.
    pub fn committed(&self) -> Vec<CommitFile> {
        self.model.lock().committed.clone()
    }
    /// Extents of a file.
    pub fn extents_of(&self, ino: Ino) -> Vec<Extent> {
        self.model.lock().files.get(&ino).map(|f| f.1.clone()).unwrap_or_default()
    }
    /// Replaces the extents of a file (as a packer would).
    pub fn set_extents(&self, ino: Ino, extents: Vec<Extent>) {
        let mut m = self.model.lock();
        let change = m.tick();
        if let Some(f) = m.files.get_mut(&ino) {
            f.1 = extents;
            f.0.change = change;
        }
    }
    /// The whole file, object bytes from `bodies`. Panics when bytes are missing or wrong.
    pub fn content(&self, ino: Ino, bodies: &MemoryStore) -> Vec<u8> {
        let m = self.model.lock();
        let Some((attr, extents)) = m.files.get(&ino) else { return Vec::new() };
        let mut out = vec![0; attr.size as usize];
        for x in extents.iter().filter_map(|x| x.slice(0, attr.size)) {
            let bytes = match x.source {
                Source::Zero => continue,
                Source::Inline { index, skip, .. } => m.inline[&index].slice(skip as usize..),
                Source::Object { id, home, skip } => {
                    assert_eq!(home, ino, "home of an object is its inode");
                    let body = futures::executor::block_on(bodies.get(&id.key(), None)).expect("object is there");
                    let header = layout::decode_header(&body).expect("header");
                    assert_eq!((header.id, header.home), (id, ino));
                    let frames = layout::frames_of(0, header.plain_len);
                    let plain = layout::decode_frames(&id, &frames, &body.slice(64..)).expect("frames").concat();
                    assert_eq!(plain.len() as u64, header.plain_len);
                    Bytes::from(plain).slice(skip as usize..)
                }
            };
            out[x.offset as usize..x.end() as usize].copy_from_slice(&bytes[..x.len as usize]);
        }
        out
    }
    fn notify(&self, ino: Ino) {
        let bodies = self.bodies.lock().clone();
        if let Some(bodies) = bodies {
            let content = self.content(ino, &bodies);
            if let Some(f) = &mut *self.watch.lock() {
                f(ino, content);
            }
        }
    }
    async fn mutate(
        &self,
        what: &'static str,
        op: OpId,
        ino: Ino,
        (print, inline): (String, bool),
        apply: impl FnOnce(&mut Model) -> FsResult<(u64, Attr)>,
    ) -> FsResult<(u64, Attr)> {
        let (wait, faults, dice) = {
            let mut m = self.model.lock();
            *m.counts.entry(what).or_default() += 1;
            let wait = Duration::from_nanos(m.next() % (m.faults.latency_max.as_nanos() as u64).max(1));
            (wait, m.faults.clone(), [m.next(), m.next(), m.next()].map(|x| (x % 1000) as u32))
        };
        if !wait.is_zero() {
            tokio::time::sleep_until(tokio::time::Instant::now() + wait).await;
        }
        let mut m = self.model.lock();
        let count = |m: &mut Model, what| *m.counts.entry(what).or_default() += 1;
        if dice[0] < faults.refused || faults.stuck == Some(ino) {
            count(&mut m, "refused");
            return Err(FsError::Unavailable);
        }
        if let Some(e) = faults.turned_away {
            return Err(e);
        }
        let known = m.replies.get(&op).cloned();
        if let Some(old) = m.acknowledged.get(&op) {
            assert_eq!(*old, print, "{op:?} was reused with other content");
            count(&mut m, "too_old");
            return Err(FsError::TooOld);
        }
        let reply = match known {
            Some((old, reply)) => {
                assert_eq!(old, print, "{op:?} was reused with other content");
                count(&mut m, "stored");
                reply
            }
            None => {
                let reply = match faults.always {
                    Some(e) => {
                        count(&mut m, "always");
                        Err(e)
                    }
                    None if inline && dice[1] < faults.use_object => {
                        count(&mut m, "use_object");
                        Err(FsError::UseObject)
                    }
                    None => apply(&mut m),
                };
                // A refusal leaves nothing behind (meta-state `session::is_outcome`).
                if !matches!(reply, Err(e) if e.code() >= 1000) {
                    m.replies.insert(op, (print, reply));
                }
                reply
            }
        };
        let lost = dice[2] < faults.lost_replies;
        if lost {
            count(&mut m, "lost");
        }
        drop(m);
        if reply.is_ok() {
            self.notify(ino);
        }
        if lost { Err(FsError::Unavailable) } else { reply }
    }
}

impl Model {
    fn tick(&mut self) -> Hlc {
        self.clock += 1;
        Hlc(self.clock)
    }
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.random)
    }
    fn put(&mut self, ino: Ino, shift: u64, pieces: &[Piece], clip: u64) {
        for p in pieces {
            let (offset, len, extent) = match p {
                Piece::Hole { offset, len } => (*offset, *len, None),
                Piece::Extent(x) => (x.offset, x.len, Some(*x)),
                Piece::Inline { offset, bytes } => {
                    let index = self.inline.len() as u64 + 1;
                    self.inline.insert(index, bytes.clone());
                    let source = Source::Inline { index, n: 0, skip: 0 };
                    (
                        *offset,
                        bytes.len() as u64,
                        Some(Extent { offset: *offset, len: bytes.len() as u64, codec: 0, source }),
                    )
                }
            };
            assert!(len > 0, "empty piece");
            let (from, to) = (offset + shift, offset + shift + len);
            let Some((_, extents)) = self.files.get_mut(&ino) else { return };
            let mut next: Vec<Extent> = Vec::new();
            for x in extents.iter() {
                next.extend(x.slice(0, from));
                next.extend(x.slice(to, u64::MAX));
            }
            next.extend(extent.and_then(|x| Extent { offset: from, ..x }.slice(0, clip)));
            next.sort_by_key(|x| x.offset);
            *extents = next;
        }
    }
    fn may_refer(&mut self, pieces: &[Piece]) -> FsResult<()> {
        for p in pieces {
            let Piece::Extent(Extent { source: Source::Object { id, .. }, .. }) = p else { continue };
            if !self.known.contains(id) && self.incarnation.is_some_and(|i| i != id.incarnation) {
                *self.counts.entry("foreign").or_default() += 1;
                return Err(FsError::Invalid);
            }
            self.known.insert(*id);
        }
        Ok(())
    }
    fn commit(&mut self, file: &CommitFile) -> FsResult<(u64, Attr)> {
        let inline: usize =
            file.pieces.iter().map(|p| if let Piece::Inline { bytes, .. } = p { bytes.len() } else { 0 }).sum();
        assert!(inline <= fusefs_types::limits::INLINE_COMMIT_BYTES_MAX, "inline bytes over the limit");
        assert!(file.pieces.len() <= fusefs_types::limits::COMMIT_ITEMS_MAX, "too many pieces");
        let change = self.tick();
        let attr = self.files.get(&file.ino).ok_or(FsError::NotFound)?.0;
        self.may_refer(&file.pieces)?;
        // Simplification: older than the last truncation = clipped to the current size.
        let clip = if file.trunc_seq < attr.trunc_seq { attr.size } else { u64::MAX };
        self.put(file.ino, 0, &file.pieces, clip);
        let Some((attr, _)) = self.files.get_mut(&file.ino) else { return Err(FsError::NotFound) };
        attr.size = attr.size.max(file.grow_to.min(clip));
        attr.mtime = file.mtime.unwrap_or(attr.mtime);
        attr.change = change;
        let attr = *attr;
        self.committed.push(file.clone());
        Ok((0, attr))
    }
    fn append(&mut self, a: &Append) -> FsResult<(u64, Attr)> {
        let change = self.tick();
        let at = self.files.get(&a.ino).ok_or(FsError::NotFound)?.0.size;
        self.put(a.ino, at, &a.pieces, u64::MAX);
        let Some((attr, _)) = self.files.get_mut(&a.ino) else { return Err(FsError::NotFound) };
        attr.size = at + a.len;
        attr.change = change;
        Ok((at, *attr))
    }
}

fn journal_op(number: u64) -> OpId {
    OpId { origin: Origin::Journal, number, ..OpId::default() }
}

#[async_trait]
impl MetaSink for ModelSink {
    fn begin(&self) -> u64 {
        let mut m = self.model.lock();
        m.next_number += 1;
        let number = m.next_number;
        m.begun.insert(number);
        number
    }
    fn resume(&self, unfinished: &[u64]) {
        self.model.lock().begun.extend(unfinished);
    }
    fn settled(&self, number: u64) {
        let mut m = self.model.lock();
        assert!(m.begun.remove(&number), "commit {number} was settled twice");
        if let Some((print, _)) = m.replies.remove(&journal_op(number)) {
            m.acknowledged.insert(journal_op(number), print);
        }
    }
    async fn commit(&self, number: u64, file: CommitFile) -> FsResult<Attr> {
        let begun = self.model.lock().begun.contains(&number);
        assert!(begun, "commit {number} was not begun");
        let inline = file.pieces.iter().any(|p| matches!(p, Piece::Inline { .. }));
        let print = (format!("{file:?}"), inline);
        self.mutate("commit", journal_op(number), file.ino, print, |m| m.commit(&file)).await.map(|(_, a)| a)
    }
    async fn append(&self, op: OpId, a: Append) -> FsResult<(u64, Attr)> {
        let inline = a.pieces.iter().any(|p| matches!(p, Piece::Inline { .. }));
        let print = format!("append {} bytes to {}", a.len, a.ino);
        self.mutate("append", op, a.ino, (print, inline), |m| m.append(&a)).await
    }
    async fn extents(&self, ino: Ino, offset: u64, len: u64) -> FsResult<ExtentMap> {
        let mut m = self.model.lock();
        *m.counts.entry("extents").or_default() += 1;
        if m.next() % 1000 < u64::from(m.faults.refused) {
            return Err(FsError::Unavailable);
        }
        let (attr, all) = m.files.get(&ino).ok_or(FsError::NotFound)?;
        let mut extents: Vec<Extent> = all.iter().filter_map(|x| x.slice(offset, offset.saturating_add(len))).collect();
        let mut end = offset.saturating_add(len);
        if extents.len() > 8 {
            extents.truncate(8); // answers may be partial
            end = extents[7].end();
        }
        let inline = extents.iter().enumerate().filter_map(|(i, x)| match x.source {
            Source::Inline { index, skip, .. } => {
                Some((i as u32, m.inline[&index].slice(skip as usize..skip as usize + x.len as usize)))
            }
            _ => None,
        });
        let inline = inline.collect();
        Ok(ExtentMap { attr: *attr, extents, inline, end })
    }
}

/// Another client of the same partition: its numbers are its own.
pub struct OtherClient {
    sink: Arc<ModelSink>,
    mount: u128,
}

impl OtherClient {
    /// `n` tells clients apart.
    pub fn new(sink: Arc<ModelSink>, n: u32) -> Arc<OtherClient> {
        Arc::new(OtherClient { sink, mount: u128::from(n) })
    }
}

#[async_trait]
impl MetaSink for OtherClient {
    fn begin(&self) -> u64 {
        self.sink.begin()
    }
    fn resume(&self, unfinished: &[u64]) {
        self.sink.resume(unfinished);
    }
    fn settled(&self, number: u64) {
        self.sink.settled(number);
    }
    async fn commit(&self, number: u64, file: CommitFile) -> FsResult<Attr> {
        self.sink.commit(number, file).await
    }
    async fn append(&self, op: OpId, a: Append) -> FsResult<(u64, Attr)> {
        self.sink.append(OpId { mount: fusefs_types::ids::MountId(self.mount), ..op }, a).await
    }
    async fn extents(&self, ino: Ino, offset: u64, len: u64) -> FsResult<ExtentMap> {
        self.sink.extents(ino, offset, len).await
    }
}
