//! What a record costs. Printed, not asserted: `cargo test -p fusefs-data-path journal_costs -- --nocapture`.

use super::{BOOT, MOUNT};
use crate::rig::TestClock;
use bytes::Bytes;
use fusefs_data_path::{
    DataPath, Settings, WriteContext,
    journal::{self, Journal, JournalSettings},
    object::MemoryStore,
    testing::ModelSink,
    writer::Unlimited,
};
use fusefs_types::{Ino, SessionId, ids::Incarnation};
use std::sync::Arc;

/// CPU and wall nanoseconds.
fn now() -> (u64, u64) {
    let read = |id| {
        let t = nix::time::clock_gettime(id).expect("clock");
        t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
    };
    (read(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID), read(nix::time::ClockId::CLOCK_MONOTONIC))
}

fn measure(path: &DataPath, size: usize, n: u64) -> (f64, f64) {
    let data = Bytes::from(vec![7u8; size]);
    let begin = now();
    for i in 0..n {
        let cx = WriteContext { unique: i, ..WriteContext::default() };
        // Overwriting keeps the buffer small; every write is a record.
        path.try_write(Ino(100), i % 16 * size as u64, &data, cx).expect("room").expect("write");
    }
    let end = now();
    let per = |a: u64, b: u64| (b - a) as f64 / n as f64 / 1000.0;
    (per(begin.0, end.0), per(begin.1, end.1))
}

/// What is below it: the checksum alone, and the copy into the page cache alone.
fn parts(size: usize, n: u64) {
    let data = vec![7u8; size];
    let per = |a: (u64, u64), b: (u64, u64)| (b.0 - a.0) as f64 / n as f64 / 1000.0;
    let begin = now();
    let sum = (0..n).fold(0, |c, _| crc32c::crc32c_append(c, &data));
    let crc = per(begin, now());
    let dir = tempfile::tempdir_in("/var/tmp").expect("tempdir");
    let file = &journal::create_files(dir.path(), 1, 32 << 20).expect("create")[0];
    let begin = now();
    for i in 0..n {
        let at = i * size as u64 % (31 << 20);
        journal::Storage::write_at(file, &[&data[..80], &data], at).expect("write");
    }
    let copy = per(begin, now());
    println!("{size:>8} bytes: checksum {crc:7.2} us CPU, pwritev {copy:7.2} us CPU ({sum:x})");
}

#[test]
fn journal_costs() {
    let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    let _in = rt.enter();
    let sink = ModelSink::new(1);
    sink.create(Ino(100));
    let (store, clock) = (MemoryStore::new(), Arc::new(TestClock::default()));
    let settings = Settings { dirty_bytes_max: 1 << 30, ..Settings::default() };
    for (size, n) in [(4 << 10, 10_000), (1 << 20, 150)] {
        parts(size, n);
        let owner = (SessionId(1), Incarnation(1));
        let plain = DataPath::new(store.clone(), sink.clone(), clock.clone(), owner.0, owner.1, settings.clone());
        let (cpu, wall) = measure(&plain, size, n);
        println!("{size:>8} bytes, memory only:   {cpu:7.2} us CPU {wall:7.2} us wall per write");
        for dir in ["/var/tmp", "/dev/shm"] {
            let dir = tempfile::tempdir_in(dir).expect("tempdir");
            let files = journal::create_files(dir.path(), journal::FILES, journal::FILE_BYTES).expect("create");
            Journal::format(&files, MOUNT, BOOT).expect("format");
            let journal = Journal::open(files).expect("open");
            journal.begin_incarnation(BOOT).expect("begin");
            let logged = JournalSettings::new(journal);
            let credits = Arc::new(Unlimited::default());
            let (store, sink, clock, settings) = (store.clone(), sink.clone(), clock.clone(), settings.clone());
            let path = DataPath::with_journal(store, sink, clock, owner, settings, credits, logged);
            let path = path.expect("data path");
            for turn in ["first", "again"] {
                let (cpu, wall) = measure(&path, size, n / 2);
                println!(
                    "{size:>8} bytes, {:>8} {turn}: {cpu:7.2} us CPU {wall:7.2} us wall per write",
                    dir.path().parent().and_then(|p| p.to_str()).unwrap_or("?")
                );
            }
        }
    }
}
