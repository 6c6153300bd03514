//! The journal: kills at every write to its files, damage, a ring that is full, a disk that fails.

mod bench;
mod damage;
mod kill;
mod reboot;
mod ring;
mod tools;

use crate::rig::TestClock;
use async_trait::async_trait;
use fusefs_data_path::{
    DataPath, ExtentMap, MetaSink, Settings,
    journal::{Journal, JournalError, JournalSettings, Mode, Storage},
    object::{MemoryStore, ObjectStore},
    testing::ModelSink,
    writer::Unlimited,
};
use fusefs_types::{
    Attr, FsResult, Ino, SessionId,
    ids::{Incarnation, MountId, OpId},
    ops::{Append, CommitFile},
};
use parking_lot::Mutex;
use std::{io, sync::Arc};
use tokio::sync::Notify;

pub const MOUNT: MountId = MountId(0xabcd);
pub const BOOT: u128 = 77;

/// How much of the last write reached the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Torn {
    Nothing,
    /// Per mille of its bytes.
    Part(u32),
    All,
}

#[derive(Default)]
struct Fate {
    writes: u64,
    kill_at: Option<(u64, Torn)>,
    killed: bool,
    failing: bool,
    takes_no_header: bool,
    /// A file that cannot be cut.
    uncut: Option<usize>,
}

/// Journal files in memory, and the end of the process that writes them.
pub struct Disk {
    files: Vec<Mutex<Vec<u8>>>,
    /// The first file as it was synced last.
    synced: Mutex<Vec<u8>>,
    fate: Mutex<Fate>,
    pub died: Notify,
}

struct DiskFile(Arc<Disk>, usize);

impl Disk {
    pub fn new(files: usize, bytes: u64) -> Arc<Disk> {
        let disk = Disk::from(vec![vec![0; bytes as usize]; files]);
        let views: Vec<DiskFile> = (0..files).map(|i| DiskFile(disk.clone(), i)).collect();
        let views: Vec<&dyn Storage> = views.iter().map(|f| f as &dyn Storage).collect();
        Journal::format_storage(&views, MOUNT, BOOT).expect("format");
        disk.fate.lock().writes = 0;
        disk
    }
    pub fn from(image: Vec<Vec<u8>>) -> Arc<Disk> {
        let synced = Mutex::new(image[0].clone());
        let files = image.into_iter().map(Mutex::new).collect();
        Arc::new(Disk { files, synced, fate: Mutex::default(), died: Notify::new() })
    }
    /// What the files hold: for a killed process, at the instant of its death.
    pub fn image(&self) -> Vec<Vec<u8>> {
        self.files.iter().map(|f| f.lock().clone()).collect()
    }
    /// What a power loss leaves at the least.
    pub fn durable(&self) -> Vec<Vec<u8>> {
        let mut image = self.image();
        image[0] = self.synced.lock().clone();
        image
    }
    /// The process dies at its `n`th write from now.
    pub fn kill_at(&self, n: u64, torn: Torn) {
        let mut fate = self.fate.lock();
        fate.kill_at = Some((fate.writes + n, torn));
    }
    /// The process dies now.
    pub fn kill(&self) {
        self.fate.lock().killed = true;
        self.died.notify_one();
    }
    pub fn killed(&self) -> bool {
        self.fate.lock().killed
    }
    pub fn writes(&self) -> u64 {
        self.fate.lock().writes
    }
    /// Writes fail from now on; `headers` too, or only records.
    pub fn fail(&self, headers: bool) {
        let mut fate = self.fate.lock();
        (fate.failing, fate.takes_no_header) = (true, headers);
    }
    /// This file keeps its length.
    pub fn refuse_to_cut(&self, file: usize) {
        self.fate.lock().uncut = Some(file);
    }
    pub fn repair(&self) {
        self.fate.lock().failing = false;
    }
    pub fn open(self: &Arc<Self>) -> Result<Journal, JournalError> {
        let files = (0..self.files.len()).map(|i| Box::new(DiskFile(self.clone(), i)) as Box<dyn Storage>);
        Journal::open_storage(files.collect())
    }
}

impl Storage for DiskFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let file = self.0.files[self.1].lock();
        let from = file.len().min(at as usize);
        let n = buffer.len().min(file.len() - from);
        buffer[..n].copy_from_slice(&file[from..from + n]);
        Ok(n)
    }
    fn write_at(&self, parts: &[&[u8]], at: u64) -> io::Result<()> {
        let bytes = parts.concat();
        let mut keep = bytes.len();
        {
            let mut fate = self.0.fate.lock();
            if fate.killed {
                return Ok(()); // nobody is there any more
            }
            if fate.failing && (at >= 4096 || fate.takes_no_header) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            fate.writes += 1;
            if let Some((_, torn)) = fate.kill_at.filter(|k| k.0 == fate.writes) {
                keep = match torn {
                    Torn::Nothing => 0,
                    Torn::Part(p) => keep * p as usize / 1000,
                    Torn::All => keep,
                };
                fate.killed = true;
                self.0.died.notify_one();
            }
        }
        let mut file = self.0.files[self.1].lock();
        assert!(at as usize + bytes.len() <= file.len(), "a write beyond the preallocated file");
        file[at as usize..at as usize + keep].copy_from_slice(&bytes[..keep]);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        *self.0.synced.lock() = self.0.files[self.1].lock().clone();
        Ok(())
    }
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.files[self.1].lock().len() as u64)
    }
    fn clear(&self) -> io::Result<()> {
        if self.0.fate.lock().uncut == Some(self.1) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.0.files[self.1].lock().clear();
        Ok(())
    }
}

/// What a client process says ends with it; what is on its way may still arrive.
struct Mortal {
    sink: Arc<ModelSink>,
    disk: Arc<Disk>,
}

impl Mortal {
    async fn alive(&self) {
        if self.disk.killed() {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl MetaSink for Mortal {
    fn begin(&self) -> u64 {
        // What is left of a dead process in this one says nothing more.
        if self.disk.killed() { u64::MAX } else { self.sink.begin() }
    }
    fn resume(&self, unfinished: &[u64]) {
        if !self.disk.killed() {
            self.sink.resume(unfinished);
        }
    }
    fn settled(&self, number: u64) {
        if !self.disk.killed() {
            self.sink.settled(number);
        }
    }
    async fn commit(&self, number: u64, file: CommitFile) -> FsResult<Attr> {
        self.alive().await;
        let done = self.sink.commit(number, file).await;
        self.alive().await;
        done
    }
    async fn append(&self, op: OpId, append: Append) -> FsResult<(u64, Attr)> {
        self.alive().await;
        let done = self.sink.append(op, append).await;
        self.alive().await;
        done
    }
    async fn extents(&self, ino: Ino, offset: u64, len: u64) -> FsResult<ExtentMap> {
        self.sink.extents(ino, offset, len).await
    }
}

/// One client process after another over the same journal, cluster and store.
pub struct Life {
    pub disk: Arc<Disk>,
    pub sink: Arc<ModelSink>,
    pub bodies: Arc<MemoryStore>,
    pub store: Arc<dyn ObjectStore>,
    pub clock: Arc<TestClock>,
    pub path: Arc<DataPath>,
    pub settings: Settings,
    pub plant: bool,
}

impl Life {
    pub fn begin(settings: Settings, seed: u64, disk: Arc<Disk>) -> Life {
        let bodies = MemoryStore::new();
        Life::over(settings, ModelSink::new(seed), bodies.clone(), bodies, disk)
    }
    pub fn over(
        settings: Settings,
        sink: Arc<ModelSink>,
        bodies: Arc<MemoryStore>,
        store: Arc<dyn ObjectStore>,
        disk: Arc<Disk>,
    ) -> Life {
        let clock = Arc::new(TestClock::default());
        let path = start(&settings, &sink, &store, &clock, &disk, false).expect("an empty journal");
        Life { disk, sink, bodies, store, clock, path, settings, plant: false }
    }
    /// The next client process on the files that the last one left.
    pub fn restart(&mut self) -> Result<(), JournalError> {
        self.restart_on(self.disk.image())
    }
    pub fn restart_on(&mut self, image: Vec<Vec<u8>>) -> Result<(), JournalError> {
        self.disk = Disk::from(image);
        self.path = start(&self.settings, &self.sink, &self.store, &self.clock, &self.disk, self.plant)?;
        Ok(())
    }
    /// SIGKILL and restart.
    pub fn kill(&mut self) {
        self.disk.kill();
        self.restart().expect("restart");
    }
}

impl Life {
    /// The machine comes back from a crash that left this of its files. Returns the inodes whose bytes stay behind.
    pub async fn reboot(&mut self, image: Vec<Vec<u8>>) -> Vec<Ino> {
        self.disk = Disk::from(image);
        let journal = self.disk.open().expect("open");
        let (mode, incarnation) = journal.begin_replay(BOOT + 1).expect("begin");
        self.sink.restart(incarnation);
        let mortal = Arc::new(Mortal { sink: self.sink.clone(), disk: self.disk.clone() });
        let journal = JournalSettings { mode, ..JournalSettings::new(journal) };
        let owner = (SessionId(0xfeed), incarnation);
        let (store, clock, settings) = (self.store.clone(), self.clock.clone(), self.settings.clone());
        if mode == Mode::SameBoot {
            let credits = Arc::new(Unlimited::default());
            let started = DataPath::with_journal(store, mortal, clock, owner, settings, credits, journal);
            self.path = started.expect("what can be read is taken");
            return Vec::new();
        }
        let started = DataPath::after_reboot(store, mortal, clock, owner, settings, journal).await;
        let (path, left) = started.expect("what can be read is taken");
        self.path = path;
        left
    }
}

fn start(
    settings: &Settings,
    sink: &Arc<ModelSink>,
    store: &Arc<dyn ObjectStore>,
    clock: &Arc<TestClock>,
    disk: &Arc<Disk>,
    plant: bool,
) -> Result<Arc<DataPath>, JournalError> {
    let journal = disk.open()?;
    let incarnation: Incarnation = journal.begin_incarnation(BOOT)?;
    sink.restart(incarnation);
    let mortal = Arc::new(Mortal { sink: sink.clone(), disk: disk.clone() });
    let journal = JournalSettings { ignore_trunc_seq: plant, ..JournalSettings::new(journal) };
    let owner = (SessionId(0xfeed), incarnation);
    let credits = Arc::new(Unlimited::default());
    DataPath::with_journal(store.clone(), mortal, clock.clone(), owner, settings.clone(), credits, journal)
}
