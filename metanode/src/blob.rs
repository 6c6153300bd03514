//! Inline file bytes of one partition: a set of 64 MiB segment files with live counts (PROTOCOL 34).
//!
//! The files are a cache of what raft already keeps: a checkpoint or snapshot carries every live blob, and the log
//! behind it is replayed. So nothing here is synced, and opening starts empty; a torn or lost write cannot hurt.

use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Name of one put: (log index, position in the entry).
pub type BlobKey = (u64, u32);

/// index u64, n u32, len u32 in front of the bytes; lets compaction walk a segment without an index of its own.
const HEADER: u64 = 16;

/// Makes file names unique in the process: a store may be opened while an older one of the same replica still lives.
static STORES: AtomicU64 = AtomicU64::new(0);

/// Where segments live.
#[derive(Clone, Debug)]
pub enum Medium {
    /// Files in this directory, which is emptied at start.
    Dir(PathBuf),
    /// Memory (simulation, tests).
    Memory,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    segment: u64,
    /// Offset of the bytes, behind the header.
    offset: u64,
    len: u32,
    crc: u32,
}

enum Body {
    File(File, PathBuf),
    Memory(Mutex<Vec<u8>>),
}

/// One segment. The file goes with the last reference, so a frozen view keeps reading what was freed since.
struct Segment {
    body: Body,
}

impl Segment {
    fn create(medium: &Medium, store: u64, id: u64) -> io::Result<Segment> {
        let body = match medium {
            Medium::Memory => Body::Memory(Mutex::new(Vec::new())),
            Medium::Dir(dir) => {
                let path = dir.join(format!("{store}-{id:08}.blob"));
                let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
                Body::File(file, path)
            }
        };
        Ok(Segment { body })
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        match &self.body {
            Body::File(f, _) => f.write_all_at(bytes, at),
            Body::Memory(m) => {
                let mut m = m.lock();
                let end = at as usize + bytes.len();
                if m.len() < end {
                    m.resize(end, 0);
                }
                m[at as usize..end].copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn read_at(&self, len: usize, at: u64) -> io::Result<Vec<u8>> {
        match &self.body {
            Body::File(f, _) => {
                let mut out = vec![0; len];
                f.read_exact_at(&mut out, at)?;
                Ok(out)
            }
            Body::Memory(m) => {
                let m = m.lock();
                let at = at as usize;
                m.get(at..at + len).map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            }
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if let Body::File(_, path) = &self.body {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[derive(Clone)]
struct Slot {
    segment: Arc<Segment>,
    /// Bytes written including headers.
    end: u64,
    /// Bytes of blobs that are still named, including headers.
    live: u64,
}

/// Blob store of one replica. Owned by the state machine: `put` and `free` happen in `apply`, reads under its shared lock.
pub struct BlobStore {
    medium: Medium,
    number: u64,
    segment_bytes: u64,
    index: imbl::OrdMap<BlobKey, Place>,
    slots: BTreeMap<u64, Slot>,
    current: u64,
    /// Segment being emptied and how far.
    victim: Option<(u64, u64)>,
    bytes: u64,
}

impl BlobStore {
    /// An empty store; what an earlier run left in the directory is removed (see the module's comment).
    pub fn open(medium: Medium, segment_bytes: u64) -> io::Result<BlobStore> {
        if let Medium::Dir(dir) = &medium {
            std::fs::create_dir_all(dir)?;
            remove_segments(dir)?;
        }
        let segment_bytes = segment_bytes.max(1);
        Ok(BlobStore {
            medium,
            number: STORES.fetch_add(1, Ordering::Relaxed),
            segment_bytes,
            index: imbl::OrdMap::new(),
            slots: BTreeMap::new(),
            current: 0,
            victim: None,
            bytes: 0,
        })
    }

    /// Stores a blob; a second put under the same key replaces the first.
    pub fn put(&mut self, key: BlobKey, bytes: &[u8]) -> io::Result<()> {
        self.free(key);
        let place = self.append(key, bytes, crc32c::crc32c(bytes))?;
        self.index.insert(key, place);
        self.bytes += bytes.len() as u64;
        self.compact_step()
    }

    fn append(&mut self, key: BlobKey, bytes: &[u8], crc: u32) -> io::Result<Place> {
        let full = self.slots.get(&self.current).is_none_or(|s| s.end >= self.segment_bytes);
        if full {
            let id = self.current + 1;
            let segment = Arc::new(Segment::create(&self.medium, self.number, id)?);
            self.slots.insert(id, Slot { segment, end: 0, live: 0 });
            let sealed = std::mem::replace(&mut self.current, id);
            self.drop_if_empty(sealed);
        }
        let segment = self.current;
        let slot = self.slots.get_mut(&segment).ok_or_else(|| io::Error::other("current blob segment vanished"))?;
        let mut record = Vec::with_capacity(HEADER as usize + bytes.len());
        record.extend_from_slice(&key.0.to_le_bytes());
        record.extend_from_slice(&key.1.to_le_bytes());
        record.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        record.extend_from_slice(bytes);
        slot.segment.write_at(&record, slot.end)?;
        let place = Place { segment, offset: slot.end + HEADER, len: bytes.len() as u32, crc };
        slot.end += record.len() as u64;
        slot.live += record.len() as u64;
        Ok(place)
    }

    /// Forgets a blob; unknown keys are ignored (replay).
    pub fn free(&mut self, key: BlobKey) {
        let Some(place) = self.index.remove(&key) else { return };
        self.bytes = self.bytes.saturating_sub(u64::from(place.len));
        self.unlive(place);
    }

    fn unlive(&mut self, place: Place) {
        let Some(slot) = self.slots.get_mut(&place.segment) else { return };
        slot.live = slot.live.saturating_sub(HEADER + u64::from(place.len));
        if place.segment != self.current {
            self.drop_if_empty(place.segment);
        }
    }

    fn drop_if_empty(&mut self, id: u64) -> bool {
        let empty = self.slots.get(&id).is_some_and(|s| s.live == 0);
        if empty {
            self.slots.remove(&id);
            if self.victim.is_some_and(|(v, _)| v == id) {
                self.victim = None;
            }
        }
        empty
    }

    /// Moves a few blobs out of the victim: a bounded pause per put instead of one long one.
    fn compact_step(&mut self) -> io::Result<()> {
        for _ in 0..8 {
            let Some((id, at)) = self.victim.or_else(|| self.pick_victim()) else { return Ok(()) };
            let Some(slot) = self.slots.get(&id).cloned() else {
                self.victim = None;
                return Ok(());
            };
            if at + HEADER > slot.end {
                self.victim = None;
                return Ok(());
            }
            let header = slot.segment.read_at(HEADER as usize, at)?;
            let (key, len) = parse_header(&header);
            self.victim = Some((id, at + HEADER + u64::from(len)));
            let Some(place) = self.index.get(&key).copied() else { continue };
            if place.segment != id || place.offset != at + HEADER {
                continue;
            }
            let bytes = slot.segment.read_at(len as usize, at + HEADER)?;
            let moved = self.append(key, &bytes, place.crc)?;
            self.index.insert(key, moved);
            self.unlive(place);
        }
        Ok(())
    }

    fn pick_victim(&self) -> Option<(u64, u64)> {
        self.slots.iter().find(|(id, s)| **id != self.current && s.live * 2 < s.end).map(|(id, _)| (*id, 0))
    }

    /// Bytes `[skip, skip + len)` of a blob, its checksum verified. NotFound for an unknown key, InvalidData for damage.
    pub fn read(&self, key: BlobKey, skip: u32, len: u32) -> io::Result<Vec<u8>> {
        let place = self.index.get(&key).ok_or(io::ErrorKind::NotFound)?;
        let whole = read_place(&self.slots, place)?;
        let end = u64::from(skip) + u64::from(len);
        let range = skip as usize..usize::try_from(end).map_err(|_| io::ErrorKind::InvalidInput)?;
        whole.get(range).map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Forgets everything (before a restore).
    pub fn clear(&mut self) {
        self.index = imbl::OrdMap::new();
        self.slots.clear();
        self.victim = None;
        self.bytes = 0;
    }

    /// Live bytes.
    pub fn live_bytes(&self) -> u64 {
        self.bytes
    }

    /// Segments on disk.
    pub fn segments(&self) -> usize {
        self.slots.len()
    }

    /// A view that later puts and frees do not change; O(1) in the number of blobs.
    pub fn freeze(&self) -> FrozenBlobs {
        FrozenBlobs { index: self.index.clone(), slots: self.slots.clone() }
    }

    /// Adds the blobs of a stream written by [`FrozenBlobs::write_to`].
    pub fn read_from(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        let mut count = [0; 8];
        from.read_exact(&mut count)?;
        for _ in 0..u64::from_le_bytes(count) {
            let mut header = [0; HEADER as usize];
            from.read_exact(&mut header)?;
            let (key, len) = parse_header(&header);
            if len as usize > fusefs_types::limits::COMMAND_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "blob longer than any command"));
            }
            let mut rest = vec![0; len as usize + 4];
            from.read_exact(&mut rest)?;
            let (bytes, crc) = rest.split_at(len as usize);
            if crc != crc32c::crc32c(bytes).to_le_bytes() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "blob checksum"));
            }
            self.put(key, bytes)?;
        }
        Ok(())
    }
}

/// Frozen view of a store.
pub struct FrozenBlobs {
    index: imbl::OrdMap<BlobKey, Place>,
    slots: BTreeMap<u64, Slot>,
}

impl FrozenBlobs {
    /// Count u64, then per blob: index u64, n u32, len u32, bytes, CRC32C. Little endian.
    pub fn write_to(&self, out: &mut dyn io::Write) -> io::Result<()> {
        out.write_all(&(self.index.len() as u64).to_le_bytes())?;
        for (key, place) in self.index.iter() {
            let bytes = read_place(&self.slots, place)?;
            out.write_all(&key.0.to_le_bytes())?;
            out.write_all(&key.1.to_le_bytes())?;
            out.write_all(&place.len.to_le_bytes())?;
            out.write_all(&bytes)?;
            out.write_all(&place.crc.to_le_bytes())?;
        }
        Ok(())
    }
}

fn parse_header(h: &[u8]) -> (BlobKey, u32) {
    let word = |at: usize| u32::from_le_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]);
    let index = u64::from(word(0)) | (u64::from(word(4)) << 32);
    ((index, word(8)), word(12))
}

fn read_place(slots: &BTreeMap<u64, Slot>, place: &Place) -> io::Result<Vec<u8>> {
    let slot = slots.get(&place.segment).ok_or(io::ErrorKind::NotFound)?;
    let bytes = slot.segment.read_at(place.len as usize, place.offset)?;
    if crc32c::crc32c(&bytes) != place.crc {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "blob checksum"));
    }
    Ok(bytes)
}

fn remove_segments(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "blob") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(i: u64) -> Vec<u8> {
        vec![i as u8; 100 + (i as usize * 37) % 400]
    }

    fn churn(medium: Medium) {
        let mut store = BlobStore::open(medium, 4096).unwrap();
        for i in 0..500u64 {
            store.put((i, 1), &body(i)).unwrap();
        }
        let frozen = store.freeze();
        for i in (0..500).filter(|i| i % 5 != 0) {
            store.free((i, 1));
        }
        for i in 1000..1200u64 {
            store.put((i, 0), &body(i)).unwrap();
        }
        for i in (0..500).step_by(5) {
            assert_eq!(store.read((i, 1), 3, 20).unwrap(), &body(i)[3..23]);
        }
        assert_eq!(store.read((1, 1), 0, 1).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(store.read((1000, 0), 90, 1000).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let used: u64 = store.slots.values().map(|s| s.end).sum();
        assert!(used < 2 * store.live_bytes() + 6 * 4096, "{used} used for {} live", store.live_bytes());

        let mut stream = Vec::new();
        frozen.write_to(&mut stream).unwrap();
        let mut again = BlobStore::open(Medium::Memory, 4096).unwrap();
        again.read_from(&mut &stream[..]).unwrap();
        for i in 0..500 {
            assert_eq!(again.read((i, 1), 0, body(i).len() as u32).unwrap(), body(i));
        }
        stream[40] ^= 1;
        assert!(again.read_from(&mut &stream[..]).is_err());
        for i in (0..500).step_by(5).chain(1000..1200) {
            store.free((i, u32::from(i < 1000)));
        }
        assert_eq!(store.live_bytes(), 0);
        assert!(store.segments() <= 1);
    }

    #[test]
    fn churn_in_memory() {
        churn(Medium::Memory);
    }

    #[test]
    fn churn_in_files_leaves_no_file_behind() {
        let dir = tempfile::tempdir().unwrap();
        churn(Medium::Dir(dir.path().into()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
