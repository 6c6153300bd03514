//! A disk in memory that forgets what was not synced, tears writes at sector borders, flips bits and runs full.

use super::{Disk, DiskFile};
use parking_lot::Mutex;
use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

const SECTOR: usize = 512;

/// What goes wrong next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimFault {
    /// The next sync fails, and so does every later call.
    SyncFails,
    /// Writes fail with StorageFull once this many more bytes were written.
    FullAfter(u64),
}

#[derive(Clone)]
enum DirOp {
    Link(String, u64),
    Unlink(String),
    Rename(String, String),
}

#[derive(Default)]
struct FileState {
    data: Vec<u8>,
    synced: Vec<u8>,
    dirty: Vec<(u64, Vec<u8>)>,
}

#[derive(Default)]
struct State {
    epoch: u64,
    next_id: u64,
    files: BTreeMap<u64, FileState>,
    live: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    ops: Vec<DirOp>,
    sync_fails: bool,
    dead: bool,
    room: Option<u64>,
    syncs: u64,
}

/// A simulated disk. Clones share the platter; after [`SimDisk::crash`] old handles fail.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    sync_latency: Duration,
    epoch: u64,
}

fn gone() -> io::Error {
    io::Error::other("simulated disk: the machine crashed or the disk died")
}

fn dir_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// splitmix64: the caller's seed decides what survives.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn apply_dir(map: &mut BTreeMap<String, u64>, op: &DirOp) {
    match op {
        DirOp::Link(name, id) => {
            map.insert(name.clone(), *id);
        }
        DirOp::Unlink(name) => {
            map.remove(name);
        }
        DirOp::Rename(from, to) => {
            if let Some(id) = map.remove(from) {
                map.insert(to.clone(), id);
            }
        }
    }
}

fn overlay(base: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX - data.len());
    if base.len() < start + data.len() {
        base.resize(start + data.len(), 0);
    }
    base[start..start + data.len()].copy_from_slice(data);
}

impl SimDisk {
    /// An empty disk whose syncs take this long in virtual time.
    #[must_use]
    pub fn new(sync_latency: Duration) -> Self {
        SimDisk { state: Arc::new(Mutex::new(State::default())), sync_latency, epoch: 0 }
    }

    /// Power loss: unsynced sectors and directory changes survive as the seed says. Answers the disk as the next boot
    /// finds it; every older handle fails from now on.
    #[must_use]
    pub fn crash(&self, seed: u64) -> SimDisk {
        let mut rng = seed;
        let mut st = self.state.lock();
        st.epoch += 1;
        st.dead = false;
        st.sync_fails = false;
        let keep = if st.ops.is_empty() { 0 } else { (next(&mut rng) % (st.ops.len() as u64 + 1)) as usize };
        let ops = std::mem::take(&mut st.ops);
        let mut durable = std::mem::take(&mut st.durable);
        for op in &ops[..keep] {
            apply_dir(&mut durable, op);
        }
        st.live = durable.clone();
        st.durable = durable;
        for file in st.files.values_mut() {
            let mut data = file.synced.clone();
            for (offset, bytes) in std::mem::take(&mut file.dirty) {
                for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                    if next(&mut rng) & 1 == 0 {
                        overlay(&mut data, offset + (i * SECTOR) as u64, sector);
                    }
                }
            }
            file.synced = data.clone();
            file.data = data;
        }
        let named: Vec<u64> = st.live.values().copied().collect();
        st.files.retain(|id, _| named.contains(id));
        SimDisk { state: Arc::clone(&self.state), sync_latency: self.sync_latency, epoch: st.epoch }
    }

    /// SIGKILL: everything written survives, handles of the dead process fail.
    #[must_use]
    pub fn kill(&self) -> SimDisk {
        let mut st = self.state.lock();
        st.epoch += 1;
        SimDisk { state: Arc::clone(&self.state), sync_latency: self.sync_latency, epoch: st.epoch }
    }

    /// Plants a fault.
    pub fn fault(&self, fault: SimFault) {
        let mut st = self.state.lock();
        match fault {
            SimFault::SyncFails => st.sync_fails = true,
            SimFault::FullAfter(bytes) => st.room = Some(bytes),
        }
    }

    /// Ends a full disk.
    pub fn make_room(&self) {
        self.state.lock().room = None;
    }

    /// Flips bits of a byte on the platter. Answers false when there is no such byte.
    pub fn flip(&self, name: &str, offset: u64, mask: u8) -> bool {
        let mut st = self.state.lock();
        let Some(id) = st.live.get(name).copied() else { return false };
        let Some(file) = st.files.get_mut(&id) else { return false };
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        for copy in [&mut file.data, &mut file.synced] {
            match copy.get_mut(at) {
                Some(byte) => *byte ^= mask,
                None => return false,
            }
        }
        true
    }

    /// Loses a file.
    pub fn lose(&self, name: &str) {
        let mut st = self.state.lock();
        st.live.remove(name);
        st.durable.remove(name);
    }

    /// Syncs so far.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    fn check(&self) -> io::Result<parking_lot::MutexGuard<'_, State>> {
        let st = self.state.lock();
        if st.epoch != self.epoch || st.dead { Err(gone()) } else { Ok(st) }
    }

    fn handle(&self, id: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { disk: self.clone(), id })
    }
}

impl Disk for SimDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let id = self.check()?.live.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(id))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut st = self.check()?;
        st.next_id += 1;
        let id = st.next_id;
        st.files.insert(id, FileState::default());
        st.live.insert(name.to_owned(), id);
        st.ops.push(DirOp::Link(name.to_owned(), id));
        drop(st);
        Ok(self.handle(id))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut st = self.check()?;
        if !st.live.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let op = DirOp::Rename(from.to_owned(), to.to_owned());
        apply_dir(&mut st.live, &op);
        st.ops.push(op);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut st = self.check()?;
        if st.live.remove(name).is_some() {
            st.ops.push(DirOp::Unlink(name.to_owned()));
        }
        Ok(())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let st = self.check()?;
        let base = |name: &String| name.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(st.live.keys().filter(|name| dir_of(name) == dir).map(base).collect())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut st = self.check()?;
        let ops = std::mem::take(&mut st.ops);
        for op in ops {
            let name = match &op {
                DirOp::Link(name, _) | DirOp::Unlink(name) | DirOp::Rename(name, _) => name,
            };
            if dir_of(name) == dir {
                apply_dir(&mut st.durable, &op);
            } else {
                st.ops.push(op);
            }
        }
        Ok(())
    }

    fn simulated(&self) -> Option<Duration> {
        Some(self.sync_latency)
    }
}

struct SimFile {
    disk: SimDisk,
    id: u64,
}

impl DiskFile for SimFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut st = self.disk.check()?;
        if let Some(room) = st.room {
            if room < data.len() as u64 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            st.room = Some(room - data.len() as u64);
        }
        let file = st.files.get_mut(&self.id).ok_or_else(gone)?;
        overlay(&mut file.data, offset, data);
        file.dirty.push((offset, data.to_vec()));
        Ok(())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let st = self.disk.check()?;
        let file = st.files.get(&self.id).ok_or_else(gone)?;
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let bytes = start.checked_add(buf.len()).and_then(|end| file.data.get(start..end));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut st = self.disk.check()?;
        st.syncs += 1;
        if st.sync_fails {
            st.dead = true;
            return Err(io::Error::other("simulated disk: sync failed"));
        }
        let file = st.files.get_mut(&self.id).ok_or_else(gone)?;
        for (offset, bytes) in std::mem::take(&mut file.dirty) {
            overlay(&mut file.synced, offset, &bytes);
        }
        file.synced.resize(file.data.len(), 0);
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut st = self.disk.check()?;
        if st.room.is_some_and(|room| room < len) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = st.files.get_mut(&self.id).ok_or_else(gone)?;
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::StorageFull)?;
        file.data.resize(len, 0);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let st = self.disk.check()?;
        Ok(st.files.get(&self.id).ok_or_else(gone)?.data.len() as u64)
    }
}
