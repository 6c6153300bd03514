//! Dirty data is never dropped while the session lives (PROTOCOL 39).

use crate::rig::{F, Rig, body, fresh_op};
use bytes::Bytes;
use fusefs_data_path::{Settings, StoreError, testing::SinkFaults};
use fusefs_types::FsError;
use std::{sync::atomic::Ordering::Relaxed, time::Duration};
use tokio::time::{Instant, sleep_until, timeout};

fn down() -> StoreError {
    StoreError::Unreachable("connection refused".into())
}

#[tokio::test(start_paused = true)]
async fn a_transient_failure_makes_fsync_wait() {
    let r = Rig::new(Settings::default());
    r.faulty.set(|p| p.outage = Some(down()));
    r.write(0, body(100_000, 1)).await.expect("write is buffered");
    let sync = r.path.fsync(F);
    tokio::pin!(sync);
    assert!(timeout(Duration::from_secs(3600), &mut sync).await.is_err(), "it waits for an hour");
    r.faulty.set(|p| p.outage = None);
    sync.await.expect("and then it is done");
    assert_eq!(r.committed(), body(100_000, 1));
    assert!(r.faulty.counters.outages.load(Relaxed) > 10);
}

#[tokio::test(start_paused = true)]
async fn a_permanent_failure_fails_every_fsync_until_a_retry_succeeds() {
    for error in [StoreError::Denied("403".into()), StoreError::NoBucket("gone".into())] {
        let r = Rig::new(Settings::default());
        r.faulty.set(|p| p.outage = Some(error.clone()));
        r.write(0, body(100_000, 1)).await.expect("write is buffered");
        for i in 0..5 {
            let begin = Instant::now();
            assert_eq!(r.path.fsync(F).await, Err(FsError::Io), "fsync {i}");
            assert_eq!(r.path.flush(F).await, Err(FsError::Io), "close {i}");
            assert!(begin.elapsed() < Duration::from_secs(1), "a fresh try each, at once: {:?}", begin.elapsed());
            assert_eq!(r.path.read(F, 0, 200_000).await.expect("the bytes are still there"), body(100_000, 1));
        }
        assert!(r.faulty.counters.outages.load(Relaxed) >= 10, "each of them tried");
        r.faulty.set(|p| p.outage = None);
        r.path.fsync(F).await.expect("repaired");
        r.path.fsync(F).await.expect("and stays so");
        assert_eq!(r.committed(), body(100_000, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_commit_behaves_the_same() {
    let r = Rig::new(Settings::default());
    r.sink.faults(SinkFaults { always: Some(FsError::NoSpace), ..SinkFaults::default() });
    r.write(0, body(100, 1)).await.expect("write");
    for _ in 0..3 {
        assert_eq!(r.path.fsync(F).await, Err(FsError::NoSpace));
    }
    r.sink.faults(SinkFaults::default());
    sleep_until(Instant::now() + Duration::from_secs(10)).await;
    assert_eq!(r.committed(), body(100, 1), "the background retry found it repaired");
    r.path.fsync(F).await.expect("clean");
}

#[tokio::test(start_paused = true)]
async fn truncation_to_zero_gets_rid_of_data_that_cannot_be_stored() {
    let r = Rig::new(Settings::default());
    r.sink.faults(SinkFaults { always: Some(FsError::NoSpace), ..SinkFaults::default() });
    r.write(0, body(100, 1)).await.expect("write");
    assert_eq!(r.path.fsync(F).await, Err(FsError::NoSpace));
    r.truncate(0).await.expect("cancelled");
    r.path.fsync(F).await.expect("nothing left to fail");
}

/// What lies below the new size cannot be committed, so the file is not truncated: what lies beyond must stay.
#[tokio::test(start_paused = true)]
async fn a_truncation_that_cannot_begin_drops_nothing() {
    let r = Rig::new(Settings::default());
    r.faulty.set(|p| p.outage = Some(StoreError::Denied("403".into())));
    r.write(0, body(100_000, 1)).await.expect("write");
    assert_eq!(r.path.fsync(F).await, Err(FsError::Io));
    r.write(1_000_000, body(50_000, 2)).await.expect("write beyond");
    let dirty = r.path.dirty_bytes();
    assert_eq!(r.truncate(200_000).await, Err(FsError::Io));
    assert!(r.path.dirty_bytes() > 150_000 && r.path.dirty_bytes() <= dirty, "{} of {dirty}", r.path.dirty_bytes());
    let want = [body(100_000, 1), vec![0; 900_000], body(50_000, 2)].concat();
    assert!(r.path.read(F, 0, 2_000_000).await.expect("read") == want);
    r.faulty.set(|p| p.outage = None);
    r.path.fsync(F).await.expect("repaired");
    assert!(r.committed() == want);
    assert_eq!(r.path.dirty_bytes(), 0);
}

/// The partition refuses, or the caller goes away: at every stage of the bytes beyond.
#[tokio::test(start_paused = true)]
async fn a_truncation_that_is_not_done_drops_nothing() {
    for (len, after_ms, held_ms) in
        [(500, 0, 0), (50_000, 0, 0), (50_000, 3_500, 0), (50_000, 3_500, 30_000), (50_000, 30_000, 0)]
    {
        let r = Rig::new(Settings::default());
        r.write(0, body(1000, 1)).await.expect("write");
        r.path.fsync(F).await.expect("fsync");
        r.faulty.set(|p| p.latency_max = Duration::from_secs(9));
        r.sink.faults(SinkFaults { stuck: Some(F), ..SinkFaults::default() });
        if after_ms > 10_000 {
            r.write(1000, body(10, 3)).await.expect("write"); // its commit is on its way, the next one waits
            assert!(timeout(Duration::from_secs(1), r.path.fsync(F)).await.is_err());
        }
        r.write(5_000, body(len, 2)).await.expect("write beyond");
        sleep_until(Instant::now() + Duration::from_millis(after_ms)).await;
        r.sink.faults(SinkFaults::default());
        let barrier = r.path.truncate_barrier(F, 2_000).await.expect("barrier");
        let sync = r.path.fsync(F);
        tokio::pin!(sync);
        assert!(timeout(Duration::from_millis(held_ms + 1), &mut sync).await.is_err(), "they are not committed yet");
        drop(barrier);
        sync.await.expect("fsync");
        let below = if after_ms > 10_000 { body(10, 3) } else { Vec::new() };
        let gap = vec![0; 4_000 - below.len()];
        assert!(r.committed() == [body(1000, 1), below, gap, body(len, 2)].concat(), "{len} {after_ms} {held_ms}");
        sleep_until(Instant::now() + Duration::from_secs(60)).await;
        assert_eq!((r.path.dirty_bytes(), r.path.shutdown(Duration::ZERO).await.leftovers), (0, 0));
        assert_eq!(r.store.keys().len(), usize::from(len > 20_000), "no object too many");
    }
}

#[tokio::test(start_paused = true)]
async fn close_waits_no_longer_than_its_timeout_and_keeps_the_data() {
    let r = Rig::new(Settings::default());
    r.faulty.set(|p| p.outage = Some(down()));
    r.write(0, body(100_000, 1)).await.expect("write");
    let begin = Instant::now();
    assert_eq!(r.path.flush(F).await, Err(FsError::Io));
    assert!((29..32).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    r.faulty.set(|p| p.outage = None);
    sleep_until(Instant::now() + Duration::from_secs(30)).await;
    assert_eq!(r.committed(), body(100_000, 1), "retried in the background");
    assert_eq!(r.path.dirty_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn io_timeout_bounds_every_wait() {
    let io_timeout = Some(Duration::from_secs(7));
    let r = Rig::new(Settings { io_timeout, dirty_bytes_max: 1 << 20, ..Settings::default() });
    r.write(0, body(1 << 19, 1)).await.expect("write");
    r.path.fsync(F).await.expect("fsync");
    r.faulty.set(|p| p.outage = Some(down()));
    r.sink.faults(SinkFaults { refused: 1000, ..SinkFaults::default() });
    r.write(0, body(900_000, 2)).await.expect("write");
    let path = r.cold();
    let _ = path; // no io_timeout there: not used
    let begin = Instant::now();
    assert_eq!(r.path.fsync(F).await, Err(FsError::Io));
    assert_eq!(r.write(0, body(900_000, 2)).await, Err(FsError::Io), "full buffer");
    assert_eq!(r.path.append(F, Bytes::from_static(b"x"), fresh_op()).await.err(), Some(FsError::Io));
    r.path.invalidate(F);
    assert_eq!(r.path.read(F, 0, 1 << 20).await.map(|b| b.len()), Err(FsError::Io));
    assert_eq!(r.path.barrier(F).await.err(), Some(FsError::Io));
    assert!(begin.elapsed() <= Duration::from_secs(5 * 7 + 1), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_fenced_session_ends_everything_at_once() {
    let r = Rig::new(Settings::default());
    r.sink.faults(SinkFaults { always: Some(FsError::Fenced), ..SinkFaults::default() });
    r.write(0, body(100, 1)).await.expect("write");
    assert_eq!(r.path.fsync(F).await, Err(FsError::Stale));
    assert_eq!(r.path.fsync(F).await, Err(FsError::Stale));
    assert_eq!(r.write(0, body(1, 1)).await, Err(FsError::Stale));
    assert_eq!(r.path.append(F, Bytes::from_static(b"x"), fresh_op()).await.err(), Some(FsError::Stale));
    assert_eq!(r.path.dirty_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn data_of_a_vanished_file_is_dropped_and_its_objects_deleted() {
    let r = Rig::new(Settings::default());
    r.write(0, body(100_000, 1)).await.expect("write");
    r.sink.remove(F);
    let _ = r.path.fsync(F).await; // nothing left to wait for
    sleep_until(Instant::now() + Duration::from_secs(1)).await;
    assert_eq!((r.path.dirty_bytes(), r.store.keys().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_taken_object_name_is_not_overwritten() {
    let r = Rig::new(Settings { conditional_put: true, ..Settings::default() });
    for counter in 1..4 {
        let id = fusefs_types::ObjectId {
            session: fusefs_types::SessionId(0xfeed),
            incarnation: fusefs_types::Incarnation(1),
            counter,
        };
        r.store.tamper(&id.key(), Some(Bytes::from_static(b"somebody's")));
    }
    r.write(0, body(100_000, 1)).await.expect("write");
    r.path.fsync(F).await.expect("fsync");
    assert_eq!(r.committed(), body(100_000, 1));
    assert_eq!(r.store.keys().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_path_stops_its_tasks() {
    let r = Rig::new(Settings::default());
    r.faulty.set(|p| p.outage = Some(down()));
    r.write(0, body(100_000, 1)).await.expect("write");
    let left = r.path.shutdown(Duration::from_secs(20)).await;
    assert!(left.unflushed >= 100_000 && left.leftovers > 0, "{left:?}");
    let Rig { path, faulty, .. } = r;
    drop(path);
    sleep_until(Instant::now() + Duration::from_secs(10)).await;
    let before = faulty.counters.puts.load(Relaxed);
    sleep_until(Instant::now() + Duration::from_secs(600)).await;
    assert_eq!(faulty.counters.puts.load(Relaxed), before, "nobody tries any more");
}
