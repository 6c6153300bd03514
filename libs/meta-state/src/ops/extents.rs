//! Extent lists: cutting, inserting, and counting what objects and inline puts lose and gain.

use crate::{
    Cx, Partition,
    apply::BlobRef,
    record::{Blob, BlobKey, Dead, DeadKey, ExtentKey, Object, StoredExtent},
};
use fusefs_types::{Extent, FsError, FsResult, Ino, ObjectId, Source};

impl Partition {
    /// Extents overlapping `[from, to)`, in file order, whole.
    pub(crate) fn extents_in(&self, ino: Ino, from: u64, to: u64) -> impl Iterator<Item = Extent> {
        let first = match self.t.extents.floor(&ExtentKey { ino, offset: from }) {
            Some((k, e)) if k.ino == ino && k.offset.saturating_add(e.len) > from => k.offset,
            _ => from,
        };
        self.t
            .extents
            .range(&ExtentKey { ino, offset: first })
            .take_while(move |(k, _)| k.ino == ino && k.offset < to)
            .map(|(k, e)| e.at(k.offset))
    }
    /// Makes `[from, to)` unallocated; returns the bytes that were under extents.
    pub(crate) fn cut_extents(&mut self, cx: &mut Cx, ino: Ino, from: u64, to: u64) -> u64 {
        let hit: Vec<Extent> = self.extents_in(ino, from, to).collect();
        let mut removed = 0;
        for e in hit {
            let key = ExtentKey { ino, offset: e.offset };
            let birth = self.t.extents.get(&key).map_or(cx.stamp, |s| s.birth);
            self.t.extents.remove(&key);
            for part in [e.slice(0, from), e.slice(to, u64::MAX)].into_iter().flatten() {
                self.put_extent(ino, part, birth);
            }
            if let Some(gone) = e.slice(from, to) {
                removed += gone.len;
                self.release(cx, gone.source, gone.len);
            }
        }
        self.meta.bytes = self.meta.bytes.saturating_sub(removed);
        removed
    }
    fn put_extent(&mut self, ino: Ino, e: Extent, birth: fusefs_types::Hlc) {
        let record = StoredExtent { len: e.len, codec: e.codec, source: e.source, birth };
        self.t.extents.put(&ExtentKey { ino, offset: e.offset }, &record);
    }
    /// Puts an extent on top; returns (bytes removed, bytes added).
    pub(crate) fn lay_extent(&mut self, cx: &mut Cx, ino: Ino, e: Extent) -> (u64, u64) {
        let removed = self.cut_extents(cx, ino, e.offset, e.end());
        self.refer(cx, e.source, e.len);
        self.meta.bytes += e.len;
        let mut e_all = e;
        let mut birth = cx.stamp;
        if let Some((k, before)) =
            e.offset.checked_sub(1).and_then(|o| self.t.extents.floor(&ExtentKey { ino, offset: o }))
            && k.ino == ino
            && continues(&before.at(k.offset), &e)
        {
            self.t.extents.remove(&k);
            e_all = Extent { offset: k.offset, len: before.len + e.len, codec: e.codec, source: before.source };
            birth = before.birth;
        }
        self.put_extent(ino, e_all, birth);
        (removed, e.len)
    }
    /// `len` more bytes reference the source.
    fn refer(&mut self, cx: &mut Cx, source: Source, len: u64) {
        match source {
            Source::Object { id, home, .. } => {
                let mut object = self.object_or_new(cx, id, home);
                object.live += len;
                self.t.objects.put(&id, &object);
            }
            Source::Inline { index, n, .. } => {
                let key = BlobKey { index, n };
                if let Some(mut blob) = self.t.blobs.get(&key) {
                    blob.live = blob.live.saturating_add(len as u32);
                    self.t.blobs.put(&key, &blob);
                }
            }
            Source::Zero => {}
        }
    }
    fn object_or_new(&self, cx: &mut Cx, id: ObjectId, home: Ino) -> Object {
        cx.touched.insert(id);
        self.t.objects.get(&id).unwrap_or(Object { home, live: 0, birth: cx.stamp, dead: None })
    }
    /// A commit named the object, but all its bytes were clipped: it gets a record all the same, so that it is deleted.
    pub(crate) fn note_object(&mut self, cx: &mut Cx, id: ObjectId, home: Ino) {
        let object = self.object_or_new(cx, id, home);
        self.t.objects.put(&id, &object);
    }
    /// `len` bytes less reference the source.
    fn release(&mut self, cx: &mut Cx, source: Source, len: u64) {
        match source {
            Source::Object { id, .. } => {
                if let Some(mut object) = self.t.objects.get(&id) {
                    object.live = object.live.saturating_sub(len);
                    self.t.objects.put(&id, &object);
                    cx.touched.insert(id);
                }
            }
            Source::Inline { index, n, .. } => {
                let key = BlobKey { index, n };
                if let Some(mut blob) = self.t.blobs.get(&key) {
                    blob.live = blob.live.saturating_sub(len as u32);
                    self.t.blobs.put(&key, &blob);
                    cx.touched_blobs.insert(key);
                }
            }
            Source::Zero => {}
        }
    }
    /// Registers an inline put.
    pub(crate) fn new_blob(&mut self, cx: &mut Cx, key: BlobKey, len: u32) {
        self.t.blobs.put(&key, &Blob { len, live: 0 });
        self.meta.inline_bytes += u64::from(len);
        cx.touched_blobs.insert(key);
    }
    /// End of a command: what lost its last reference dies. Not earlier: a later piece of the same command may name it.
    pub(crate) fn settle(&mut self, cx: &mut Cx) {
        for id in std::mem::take(&mut cx.touched) {
            let Some(mut object) = self.t.objects.get(&id) else { continue };
            if object.live == 0 && object.dead.is_none() {
                object.dead = Some(cx.stamp);
                self.t.objects.put(&id, &object);
                self.t.dead.put(&DeadKey { since: cx.stamp, id }, &Dead);
            }
        }
        for key in std::mem::take(&mut cx.touched_blobs) {
            let Some(blob) = self.t.blobs.get(&key) else { continue };
            if blob.live == 0 {
                self.t.blobs.remove(&key);
                self.meta.inline_bytes = self.meta.inline_bytes.saturating_sub(u64::from(blob.len));
                // Put and overwritten within one command: the machine writes it and frees it, in this order.
                cx.freed.push(BlobRef { key, len: blob.len });
            }
        }
    }
    /// Whether a commit of the caller may name this extent (PROTOCOL 31-33): Invalid for an unknown codec, inline bytes by
    /// reference, a home elsewhere, a dead object, or an unknown object of somebody else's incarnation.
    pub(crate) fn may_refer(&self, cx: &Cx, e: &Extent) -> FsResult<()> {
        if e.codec != 0 || e.len == 0 {
            return Err(FsError::Invalid);
        }
        let Source::Object { id, home, skip } = e.source else {
            return if e.source == Source::Zero { Ok(()) } else { Err(FsError::Invalid) };
        };
        if skip.checked_add(e.len).is_none() {
            return Err(FsError::Invalid);
        }
        match self.t.objects.get(&id) {
            Some(object) if object.dead.is_some() || object.home != home => Err(FsError::Invalid),
            Some(_) => Ok(()),
            None => {
                let own = cx
                    .caller
                    .as_ref()
                    .is_some_and(|c| id.session == c.session && id.incarnation == c.token.incarnation);
                if own && self.owns(home) { Ok(()) } else { Err(FsError::Invalid) }
            }
        }
    }
}

/// Whether `next` starts in file and source where `before` ends, so that one record can hold both. Inline puts stay apart:
/// each has its own name.
fn continues(before: &Extent, next: &Extent) -> bool {
    if before.end() != next.offset || before.codec != next.codec {
        return false;
    }
    match (before.source, next.source) {
        (Source::Zero, Source::Zero) => true,
        (Source::Object { id, skip, .. }, Source::Object { id: next_id, skip: next_skip, .. }) => {
            id == next_id && skip + before.len == next_skip
        }
        _ => false,
    }
}
