//! Room: turns of the ring, pinned segments, a full journal, a disk that fails.

use super::{Disk, Life};
use crate::rig::body;
use bytes::Bytes;
use fusefs_data_path::{
    Settings, StoreError, WriteContext,
    journal::JournalError,
    object::{FaultPlan, Faulty, MemoryStore},
    testing::{ModelSink, SinkFaults},
};
use fusefs_types::{FsError, Ino, Time};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::time::timeout;

const A: Ino = Ino(100);
const B: Ino = Ino(101);
const FILE: u64 = 128 << 10;

struct Ring {
    life: Life,
    faulty: Arc<Faulty>,
}

impl Ring {
    fn new(files: usize) -> Ring {
        Ring::with(files, Settings::default())
    }
    fn with(files: usize, settings: Settings) -> Ring {
        let bodies = MemoryStore::new();
        let faulty = Faulty::new(bodies.clone(), FaultPlan::default());
        let sink = ModelSink::new(1);
        [A, B].iter().for_each(|i| _ = sink.create(*i));
        let life = Life::over(settings, sink, bodies, faulty.clone(), Disk::new(files, FILE));
        Ring { life, faulty }
    }
    async fn write(&self, ino: Ino, at: u64, data: Vec<u8>) -> Result<(), FsError> {
        self.life.path.write(ino, at, data.into(), WriteContext::default()).await
    }
    fn stat(&self, what: impl Fn(&fusefs_data_path::journal::JournalStats) -> u64) -> u64 {
        what(self.life.path.journal().expect("journal").stats())
    }
    fn content(&self, ino: Ino) -> Vec<u8> {
        self.life.sink.content(ino, &self.life.bodies)
    }
}

#[tokio::test(start_paused = true)]
async fn the_ring_turns_many_times() {
    let mut r = Ring::new(4);
    let (mut want, mut freed) = (vec![0; 30_000], 0);
    for i in 0..100u8 {
        want = body(30_000, i);
        r.write(A, 0, want.clone()).await.expect("write");
        r.write(B, u64::from(i), vec![i]).await.expect("write");
        r.life.path.fsync(A).await.expect("fsync");
        if i % 20 == 19 {
            r.write(A, 100, vec![i; 50]).await.expect("write");
            want[100..150].fill(i);
            freed += r.stat(|s| s.freed.load(Relaxed));
            r.life.kill();
            assert_eq!(r.life.path.read(A, 0, 40_000).await.expect("read"), want);
        }
    }
    assert!(freed > 20, "{freed}");
    r.life.path.sync_all().await.expect("sync");
    assert_eq!(r.content(A), want);
    assert_eq!(r.content(B), (0..100).collect::<Vec<u8>>());
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_committed_does_not_stop_the_ring() {
    let mut r = Ring::new(5);
    r.life.sink.faults(SinkFaults { stuck: Some(A), ..SinkFaults::default() });
    r.write(A, 0, body(9_000, 1)).await.expect("write");
    r.life.path.set_explicit_mtime(A).await;
    r.life.sink.set_mtime(A, Time(5)).expect("utimens");
    let mut want = body(9_000, 1);
    want[4_000..4_100].copy_from_slice(&body(100, 2));
    for i in 0..120u8 {
        if i == 6 {
            // In a later segment than what it overwrites: that is copied behind it.
            r.write(A, 4_000, body(100, 2)).await.expect("write");
        }
        let done = timeout(Duration::from_secs(60), async {
            r.write(B, 0, body(25_000, i)).await.expect("write");
            r.life.path.fsync(B).await.expect("fsync");
        });
        done.await.expect("the other file goes on");
        if i == 60 {
            r.life.kill();
        }
    }
    assert!(r.stat(|s| s.copied.load(Relaxed)) >= 2 * 3, "{}", r.stat(|s| s.copied.load(Relaxed)));
    r.life.kill();
    assert!(r.life.path.replayed().writes >= 2);
    assert_eq!(r.life.path.read(A, 0, 20_000).await.expect("read"), want, "copies replace what they were made of");
    r.life.sink.faults(SinkFaults::default());
    r.life.path.sync_all().await.expect("sync");
    assert_eq!((r.content(A), r.content(B)), (want, body(25_000, 119)));
    r.life.kill();
    assert_eq!(r.life.path.replayed().writes, 0);
}

/// The record that took the mtime away is long gone when the copy is read.
#[tokio::test(start_paused = true)]
async fn a_copied_write_keeps_no_mtime_that_was_taken_from_it() {
    let mut r = Ring::new(5);
    r.life.sink.faults(SinkFaults { stuck: Some(A), ..SinkFaults::default() });
    // The first commit hangs, the second batch waits behind it.
    for at in [0, 9_000] {
        r.write(A, at, body(9_000, 1)).await.expect("write");
        r.life.path.set_explicit_mtime(A).await;
        assert!(timeout(Duration::from_secs(1), r.life.path.fsync(A)).await.is_err(), "stuck");
    }
    for i in 0..60u8 {
        r.write(B, 0, body(25_000, i)).await.expect("write");
        r.life.path.fsync(B).await.expect("fsync");
    }
    assert!(r.stat(|s| s.copied.load(Relaxed)) > 0 && r.stat(|s| s.freed.load(Relaxed)) > 5);
    r.life.kill();
    assert_eq!(r.life.path.dirty_attr(A).map(|d| (d.size, d.mtime)), Some((18_000, None)));
}

#[tokio::test(start_paused = true)]
async fn a_full_journal_makes_writers_wait_and_loses_nothing() {
    let mut r = Ring::new(4);
    r.faulty.set(|p| p.outage = Some(StoreError::Unreachable("down".into())));
    let mut acknowledged = 0u64;
    while let Ok(done) =
        timeout(Duration::from_secs(60), r.write(A, acknowledged * 20_000, body(20_000, acknowledged as u8))).await
    {
        done.expect("write");
        acknowledged += 1;
        assert!(acknowledged < 20, "the journal is bounded");
    }
    assert!(acknowledged > 8, "two of four files take data: {acknowledged}");
    assert!(r.stat(|s| s.full_waits.load(Relaxed)) > 0);
    let all: Vec<u8> = (0..acknowledged).flat_map(|i| body(20_000, i as u8)).collect();
    r.life.kill();
    assert_eq!(r.life.path.read(A, 0, 1 << 20).await.expect("read"), all);
    assert!(timeout(Duration::from_secs(60), r.write(B, 0, body(20_000, 1))).await.is_err(), "still full");
    r.faulty.set(|p| p.outage = None);
    timeout(Duration::from_secs(60), r.write(B, 0, body(20_000, 1))).await.expect("room again").expect("write");
    r.life.path.sync_all().await.expect("sync");
    assert_eq!((r.content(A), r.content(B)), (all, body(20_000, 1)));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_writer_can_be_given_up() {
    let r = Ring::new(4);
    r.faulty.set(|p| p.outage = Some(StoreError::Unreachable("down".into())));
    let mut at = 0;
    while timeout(Duration::from_secs(1), r.write(A, at, body(20_000, 1))).await.is_ok() {
        at += 20_000;
    }
    for _ in 0..50 {
        assert!(timeout(Duration::from_millis(100), r.write(A, at, body(20_000, 1))).await.is_err());
    }
    r.faulty.set(|p| p.outage = None);
    r.life.path.sync_all().await.expect("sync");
    assert_eq!(r.content(A).len() as u64, at, "what was given up was not written");
}

/// After a disk error a write is acknowledged when it is committed, and what the journal still holds does not come back.
#[tokio::test(start_paused = true)]
async fn a_failing_disk_makes_writes_synchronous() {
    for headers in [false, true] {
        let mut r = Ring::new(4);
        r.write(A, 0, body(5_000, 1)).await.expect("write");
        assert_eq!(r.content(A), b"", "buffered");
        r.life.disk.fail(headers);
        r.write(A, 2_000, body(1_000, 2)).await.expect("write");
        let mut want = body(5_000, 1);
        want[2_000..3_000].copy_from_slice(&body(1_000, 2));
        assert_eq!(r.content(A), want, "committed when it was acknowledged, and what was before it too");
        assert_eq!(r.stat(|s| s.degraded.load(Relaxed)), 1);
        r.write(B, 0, body(10, 3)).await.expect("write");
        assert_eq!(r.content(B), body(10, 3));
        assert!(r.life.path.try_write(B, 0, &Bytes::from_static(b"x"), WriteContext::default()).is_none());
        let cx = WriteContext::default();
        r.life
            .path
            .commit_pieces(A, vec![fusefs_types::ops::Piece::Hole { offset: 0, len: 100 }], 0, cx)
            .await
            .expect("punch");
        want[..100].fill(0);
        r.life.disk.repair();
        r.life.disk.kill();
        match r.life.restart() {
            Ok(()) => {
                assert!(!headers);
                assert_eq!(r.life.path.replayed().writes, 0, "the journal was made void");
                r.write(A, 0, vec![9; 10]).await.expect("the next client has a journal again");
                want[..10].fill(9);
                r.life.kill();
                assert_eq!(r.life.path.replayed().writes, 1);
                r.life.path.sync_all().await.expect("sync");
                assert_eq!(r.content(A), want);
            }
            Err(JournalError::NoHeader | JournalError::Shape(_)) => assert!(headers, "cut to nothing"),
            Err(e) => panic!("{e}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_disk_waits_for_what_was_acknowledged_before() {
    let r = Ring::new(4);
    r.faulty.set(|p| p.outage = Some(StoreError::Unreachable("down".into())));
    r.write(A, 0, body(50_000, 1)).await.expect("write");
    r.life.disk.fail(false);
    let write = r.write(B, 0, body(10, 2));
    tokio::pin!(write);
    assert!(
        timeout(Duration::from_secs(600), &mut write).await.is_err(),
        "nothing new while old bytes are only in memory"
    );
    r.faulty.set(|p| p.outage = None);
    timeout(Duration::from_secs(60), write).await.expect("goes on").expect("write");
    assert_eq!((r.content(A), r.content(B)), (body(50_000, 1), body(10, 2)));
}

#[tokio::test(start_paused = true)]
async fn a_fenced_session_leaves_its_bytes_in_the_journal() {
    let mut r = Ring::new(4);
    r.write(A, 0, body(500, 1)).await.expect("write");
    r.life.path.fence();
    assert_eq!(r.write(A, 0, body(5, 1)).await, Err(FsError::Stale));
    r.life.kill();
    assert_eq!(r.life.path.replayed().writes, 1, "they can be exported");
}

/// The planted bug of the kill tests does what it says; without it truncated bytes stay away.
#[tokio::test(start_paused = true)]
async fn truncated_bytes_come_back_only_with_the_planted_bug() {
    for plant in [false, true] {
        let mut r = Ring::new(4);
        r.write(A, 0, body(500, 1)).await.expect("write");
        let barrier = r.life.path.truncate_barrier(A, 0).await.expect("barrier");
        let attr = r.life.sink.set_size(A, 0).expect("truncate");
        // Size 0 -> 0 gives no new trunc_seq in the model; a growing and a shrinking one do.
        r.life.sink.set_size(A, 10).and_then(|_| r.life.sink.set_size(A, 0)).expect("truncate");
        barrier.truncated(attr.trunc_seq + 1);
        drop(barrier);
        r.life.plant = plant;
        r.life.kill();
        let seen = r.life.path.read(A, 0, 1000).await.expect("read");
        r.life.path.sync_all().await.expect("sync");
        assert_eq!((seen.len(), r.content(A).len()), if plant { (500, 500) } else { (0, 0) });
    }
}

/// Killed between the truncation and its barrier: the server clips what the journal brings back.
#[tokio::test(start_paused = true)]
async fn without_the_barrier_record_the_server_clips() {
    let mut r = Ring::new(4);
    r.write(A, 0, body(500, 1)).await.expect("write");
    r.life.disk.kill();
    r.life.sink.set_size(A, 10).and_then(|_| r.life.sink.set_size(A, 0)).expect("truncate");
    r.life.restart().expect("restart");
    assert_eq!(r.life.path.replayed().writes, 1);
    r.life.path.sync_all().await.expect("sync");
    assert_eq!(r.content(A), b"");
}

/// The caller of a hole punch is interrupted while its commit is on the way.
#[tokio::test(start_paused = true)]
async fn an_abandoned_hole_is_finished_before_later_writes() {
    let mut r = Ring::new(4);
    r.write(A, 0, body(500, 1)).await.expect("write");
    r.life.path.fsync(A).await.expect("fsync");
    r.life.sink.faults(SinkFaults { latency_max: Duration::from_secs(100), ..SinkFaults::default() });
    let hole = vec![fusefs_types::ops::Piece::Hole { offset: 0, len: 100 }];
    let punch = r.life.path.commit_pieces(A, hole, 0, WriteContext { unique: 4, ..WriteContext::default() });
    assert!(timeout(Duration::from_nanos(1), punch).await.is_err(), "given up");
    r.write(A, 0, body(50, 2)).await.expect("write");
    r.life.path.fsync(A).await.expect("fsync");
    let mut want = body(500, 1);
    want[..100].fill(0);
    want[..50].copy_from_slice(&body(50, 2));
    assert_eq!(r.content(A), want);
    assert_eq!(r.life.sink.outstanding(), []);
    r.life.kill();
    assert_eq!(r.life.path.replayed().intents, 0);
    r.life.path.sync_all().await.expect("sync");
    assert_eq!(r.content(A), want);
}

/// Nobody knows whether it was executed when the caller's time is up: what comes later must stay behind it.
#[tokio::test(start_paused = true)]
async fn a_hole_that_takes_too_long_holds_later_writes_back() {
    let mut r = Ring::with(4, Settings { io_timeout: Some(Duration::from_secs(5)), ..Settings::default() });
    r.write(A, 0, body(500, 1)).await.expect("write");
    r.life.path.fsync(A).await.expect("fsync");
    r.life.sink.faults(SinkFaults { lost_replies: 1000, ..SinkFaults::default() });
    let hole = vec![fusefs_types::ops::Piece::Hole { offset: 0, len: 100 }];
    let cx = WriteContext { unique: 4, ..WriteContext::default() };
    let punch = timeout(Duration::from_secs(6), r.life.path.commit_pieces(A, hole, 0, cx));
    assert_eq!(punch.await.expect("in time"), Err(FsError::Io));
    assert_eq!(r.life.sink.outstanding().len(), 1, "its answer is still wanted");
    assert_eq!(r.write(A, 0, body(50, 2)).await, Err(FsError::Io), "not before the answer");
    r.life.sink.faults(SinkFaults::default());
    timeout(Duration::from_secs(20), async { while r.write(A, 0, body(50, 2)).await.is_err() {} })
        .await
        .expect("goes on");
    r.life.path.fsync(A).await.expect("fsync");
    assert_eq!(r.life.sink.outstanding(), []);
    let want = [body(50, 2), vec![0; 50], body(500, 1)[100..].to_vec()].concat();
    assert_eq!(r.content(A), want);
    r.life.kill();
    assert_eq!(r.life.path.replayed().intents, 0);
}
