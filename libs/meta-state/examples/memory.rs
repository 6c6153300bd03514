//! Bytes of memory per file, counted by the allocator, and the cost of freezing.
//!
//! `cargo run -p fusefs-meta-state --example memory -- [FILES]` (default 1,000,000), `--release` for the times. Prints a
//! line per case: empty files made in directories of 1,000; files with one extent in an object; the same after a random
//! 10 % were removed and made again (churn); then the longest single apply while a checkpoint holds the old root.
//!
//! The pause of a checkpoint is `freeze()` plus what the applies after it cost more: creates are timed one by one while
//! another thread writes the frozen copy away, beside as many before the freeze. CPU is this thread's own time (what the
//! design costs), wall includes whatever the machine did meanwhile.

#![allow(clippy::disallowed_methods)] // a measurement reads the clock

use fusefs_meta_state::{LogPos, Outcome, Partition, PartitionConfig, txn::work::Work};
use fusefs_types::{
    Extent, FsError, Hlc, Ino, KeyRange, Name, ObjectId, PartitionId, SessionId, Source, Token, VolumeId,
    ids::{AckRange, Incarnation, MountId, OpId, Origin},
    ops::*,
    txn::Internal,
};
use nix::time::{ClockId, clock_gettime};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

static LIVE: AtomicU64 = AtomicU64::new(0);

/// Counts what malloc really hands out: size rounded up to 16 bytes plus its 8 byte header, at least 32.
struct Counting;

fn real(size: usize) -> u64 {
    (size as u64 + 8).next_multiple_of(16).max(32)
}

#[allow(unsafe_code)]
// SAFETY: every call goes to the system allocator unchanged; only a counter is kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(real(layout.size()), Relaxed);
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(real(layout.size()), Relaxed);
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SESSION: SessionId = SessionId(7);

struct Driver {
    p: Partition,
    index: u64,
    /// Longest apply of a client's operation, and of an internal command (a batch of orphans).
    longest: [Duration; 2],
    /// The same in CPU time, of internal commands only: they are few.
    longest_internal: Duration,
}

impl Driver {
    fn new() -> Driver {
        let config = PartitionConfig {
            volume: VolumeId(1),
            partition: PartitionId(1),
            ranges: vec![KeyRange::inos(1, 1 << 40)],
            hash_key: [7; 16],
        };
        let p = Partition::new(config).expect("one good range");
        let mut d = Driver { p, index: 0, longest: [Duration::ZERO; 2], longest_internal: Duration::ZERO };
        d.apply(Body::Internal(Internal::Attach { session: SESSION, token: token() }));
        d
    }
    fn apply(&mut self, body: Body) -> Outcome {
        self.index += 1;
        let command = Command { stamp: Hlc(1_700_000_000_000_000_000 + self.index * 1000), level: 1, body };
        let internal = usize::from(matches!(command.body, Body::Internal(_)));
        let (start, cpu) = (Instant::now(), if internal == 1 { cpu_now() } else { Duration::ZERO });
        let applied = self.p.apply(LogPos { term: 1, index: self.index, n: 0 }, &command);
        self.longest[internal] = self.longest[internal].max(start.elapsed());
        if internal == 1 {
            self.longest_internal = self.longest_internal.max(cpu_now() - cpu);
        }
        applied.outcome
    }
    fn write(&mut self, write: Write) -> WriteReply {
        // Everything older is acknowledged: the reply table stays small, as with a real client.
        let number = self.index;
        let (mount, origin) = (MountId(1), Origin::Fuse);
        let acks = vec![AckRange { mount, origin, first: 0, last: number.saturating_sub(1) }];
        let caller = Caller { session: SESSION, token: token(), op: OpId { mount, origin, number, step: 0 }, acks };
        match self.apply(Body::Client(caller, write)) {
            Outcome::Client(Ok(r)) => r,
            other => panic!("{other:?}"),
        }
    }
    fn create(&mut self, parent: Ino, name: String, node: NewNode) -> Ino {
        let name = Name::new(name).expect("short");
        match self.write(Write::Create(Create {
            parent,
            name,
            node,
            mode: 0o644,
            uid: 1000,
            gid: 1000,
            exclusive: true,
        })) {
            WriteReply::Created { attr, .. } => attr.ino,
            other => panic!("{other:?}"),
        }
    }
    fn fill(&mut self, files: u64, extent: bool) -> Vec<(Ino, u64)> {
        let mut made = Vec::new();
        let mut dir = Ino::ROOT;
        for i in 0..files {
            if i % 1000 == 0 {
                dir = self.create(Ino::ROOT, format!("directory-{i}"), NewNode::Directory);
            }
            let ino = self.create(dir, file_name(i), NewNode::File);
            if extent {
                self.extent(ino, i);
            }
            made.push((dir, i));
        }
        made
    }
    fn extent(&mut self, ino: Ino, i: u64) {
        let id = ObjectId { session: SESSION, incarnation: Incarnation(1), counter: self.index };
        let e =
            Extent { offset: 0, len: 30_000 + i % 1000, codec: 0, source: Source::Object { id, home: ino, skip: 0 } };
        let file =
            CommitFile { ino, trunc_seq: 0, pieces: vec![Piece::Extent(e)], mtime: None, grow_to: 0, kill_priv: false };
        self.write(Write::Commit(Commit { files: vec![file] }));
    }
    fn churn(&mut self, made: &[(Ino, u64)]) {
        let mut seed = 1u64;
        for _ in 0..made.len() / 10 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (parent, i) = made[(seed >> 33) as usize % made.len()];
            let name = Name::new(file_name(i)).expect("short");
            self.write(Write::Unlink(Unlink { parent, name, directory: false }));
            self.create(parent, file_name(i), NewNode::File);
            if let Ok(ReadReply::StatFs(u)) = self.p.read(SESSION, &Read::StatFs)
                && u.orphans >= 1000
            {
                self.free_orphans();
            }
        }
        self.free_orphans();
    }
    /// What a leader does: asks who holds orphans (nobody does), then frees them.
    fn free_orphans(&mut self) {
        loop {
            let mut idle = true;
            for work in self.p.gc_work() {
                let internal = match work {
                    Work::AskHolders { session, inos } => Internal::Pin { session, held: vec![], released: inos },
                    Work::FreeOrphans(inos) => Internal::FreeOrphans { inos },
                    Work::DeleteObjects(dead) => {
                        Internal::ObjectsDeleted { objects: dead.into_iter().map(|(id, _)| id).collect() }
                    }
                    Work::SendTxn(_) | Work::CheckAncestry { .. } => continue,
                };
                idle = false;
                self.apply(Body::Internal(internal));
            }
            if idle {
                return;
            }
        }
    }
}

/// CPU time of this thread and wall time since some start.
#[derive(Clone, Copy, Default)]
struct Times {
    cpu: Duration,
    wall: Duration,
}

fn cpu_now() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Times) {
    let (wall, cpu) = (Instant::now(), cpu_now());
    let out = work();
    (out, Times { cpu: cpu_now() - cpu, wall: wall.elapsed() })
}

/// Single creates, timed one by one.
#[derive(Default)]
struct Creates {
    count: u64,
    first: Times,
    longest: Times,
    total: Times,
}

impl Creates {
    fn run(&mut self, d: &mut Driver, tag: &str) {
        let dir = d.create(Ino::ROOT, format!("{tag}-{}", self.count), NewNode::Directory);
        for i in 0..1000 {
            let (_, t) = timed(|| d.create(dir, file_name(i), NewNode::File));
            if self.count == 0 {
                self.first = t;
            }
            self.count += 1;
            self.longest.cpu = self.longest.cpu.max(t.cpu);
            self.longest.wall = self.longest.wall.max(t.wall);
            self.total.cpu += t.cpu;
            self.total.wall += t.wall;
        }
    }

    fn print(&self, what: &str) {
        let mean = |d: Duration| d.as_nanos() as f64 / 1000.0 / self.count as f64;
        println!(
            "{} creates {what}: longest {:?} CPU, {:?} wall; mean {:.2} us CPU, {:.2} us wall; the first {:?} CPU, {:?} wall",
            self.count,
            self.longest.cpu,
            self.longest.wall,
            mean(self.total.cpu),
            mean(self.total.wall),
            self.first.cpu,
            self.first.wall,
        );
    }
}

/// Cuts a checkpoint as a replica does: freezes between two applies, then applies on while a thread writes.
fn checkpoint_pause(d: &mut Driver) {
    let mut before = Creates::default();
    for _ in 0..100 {
        before.run(d, "before");
    }
    before.print("before the freeze");
    let (frozen, freeze) = timed(|| d.p.freeze());
    let mut beside = Creates::default();
    let (bytes, wrote) = std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let mut out = Counted(0);
            let (result, t) = timed(|| frozen.write_to(&mut out));
            result.map(|()| (out.0, t)).expect("counting does not fail")
        });
        while !writer.is_finished() || beside.count < 1000 {
            beside.run(d, "beside");
        }
        writer.join().expect("the writer does not panic")
    });
    beside.print("while a checkpoint is written");
    println!(
        "checkpoint: freeze {:?} CPU, {:?} wall; {} MiB encoded in {:?} CPU, {:?} wall (no disk); \
         longest pause = freeze + longest create: {:?} CPU, {:?} wall",
        freeze.cpu,
        freeze.wall,
        bytes >> 20,
        wrote.cpu,
        wrote.wall,
        freeze.cpu + beside.longest.cpu,
        freeze.wall + beside.longest.wall,
    );
}

/// Counts bytes.
struct Counted(u64);

impl std::io::Write for Counted {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0 += data.len() as u64;
        Ok(data.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn file_name(i: u64) -> String {
    format!("file-{i:08}.txt")
}

fn token() -> Token {
    Token { attach: 0, incarnation: Incarnation(1) }
}

fn main() -> Result<(), FsError> {
    let files: u64 = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(1_000_000);
    for extent in [false, true] {
        let case = if extent { "with one extent" } else { "empty" };
        let before = LIVE.load(Relaxed);
        let mut d = Driver::new();
        let start = Instant::now();
        let made = d.fill(files, extent);
        let took = start.elapsed();
        let own = made.capacity() as u64 * 16;
        let per_file = |d: &Driver| (LIVE.load(Relaxed) - before - own) / d.p.usage().inodes;
        println!(
            "{files} files {case}: {} B/file, {:.2} us/operation",
            per_file(&d),
            took.as_micros() as f64 / d.index as f64
        );
        checkpoint_pause(&mut d);
        d.longest = [Duration::ZERO; 2];
        let start = Instant::now();
        let frozen = d.p.freeze();
        println!("freeze: {:?}", start.elapsed());
        d.churn(&made);
        let [client, internal] = d.longest;
        println!(
            "longest apply beside a frozen root: {client:?} of a client, {internal:?} ({:?} CPU) of a batch of orphans",
            d.longest_internal
        );
        drop(frozen);
        println!("after churn of 10 %: {} B/file", per_file(&d));
    }
    Ok(())
}
