//! What a write costs, in which order it goes, what barriers and times do.

use crate::rig::{F, Rig, body, fresh_op};
use bytes::Bytes;
use fusefs_data_path::{Credits, DataPath, Settings, WriteContext, object::FaultPlan, testing::SinkFaults};
use fusefs_types::{FsError, FsResult, Ino, SessionId, Source, Time, ids::Incarnation, limits, ops::Piece};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

fn puts(r: &Rig) -> u64 {
    r.faulty.counters.puts.load(Relaxed)
}

#[tokio::test(start_paused = true)]
async fn a_small_file_is_one_commit_and_no_put() {
    let r = Rig::new(Settings::default());
    r.write(0, body(1024, 1)).await.expect("write");
    r.path.flush(F).await.expect("flush");
    assert_eq!((r.sink.count("commit"), puts(&r)), (1, 0));
    assert_eq!(r.committed(), body(1024, 1));
    r.path.flush(F).await.expect("flush of a clean file");
    r.path.fsync(F).await.expect("fsync of a clean file");
    assert_eq!(r.sink.count("commit"), 1, "a clean file costs nothing");
    assert_eq!(r.path.dirty_bytes(), 0);
    assert_eq!(r.path.dirty_attr(F), None);
}

#[tokio::test(start_paused = true)]
async fn sixteen_kib_are_inline_and_one_more_byte_is_not() {
    let r = Rig::new(Settings::default());
    for i in 0..4 {
        r.write(i * 4096, body(4096, i as u8)).await.expect("write");
    }
    r.path.fsync(F).await.expect("fsync");
    assert_eq!((r.sink.count("commit"), puts(&r)), (1, 0));
    r.write(0, body(16 * 1024 + 1, 9)).await.expect("write");
    r.path.fsync(F).await.expect("fsync");
    assert_eq!((r.sink.count("commit"), puts(&r)), (2, 1));
    assert_eq!(r.committed(), body(16 * 1024 + 1, 9));
}

#[tokio::test(start_paused = true)]
async fn sequential_writes_fill_whole_objects() {
    let r = Rig::new(Settings::default());
    let all = body(20 << 20, 3);
    for (i, chunk) in all.chunks(128 << 10).enumerate() {
        r.write((i * (128 << 10)) as u64, chunk).await.expect("write");
    }
    r.path.fsync(F).await.expect("fsync");
    assert_eq!(puts(&r), 5, "4 MiB each");
    assert!(r.sink.count("commit") <= 5);
    let extents = r.sink.extents_of(F);
    assert!(extents.len() == 5 && extents.iter().all(|x| x.len == 4 << 20), "{extents:?}");
    assert!(r.committed() == all);
    assert!(r.cold().read(F, 0, 21 << 20).await.expect("read") == all);
}

#[tokio::test(start_paused = true)]
async fn uploads_are_parallel_and_commits_are_in_order() {
    let r = Rig::new(Settings::default());
    r.faulty.set(|p| *p = FaultPlan { seed: 5, latency_max: Duration::from_secs(4), ..FaultPlan::default() });
    let begin = tokio::time::Instant::now();
    for i in 0..12u64 {
        r.write(i << 22, body(4 << 20, i as u8)).await.expect("write");
    }
    r.path.fsync(F).await.expect("fsync");
    assert!(begin.elapsed() < Duration::from_secs(5), "12 uploads of up to 4 s each took {:?}", begin.elapsed());
    let offsets: Vec<u64> = r
        .sink
        .committed()
        .iter()
        .flat_map(|c| &c.pieces)
        .map(|p| if let Piece::Extent(x) = p { x.offset >> 22 } else { panic!("inline") })
        .collect();
    assert_eq!(offsets, (0..12).collect::<Vec<u64>>());
}

#[tokio::test(start_paused = true)]
async fn dirty_data_is_committed_within_five_seconds() {
    let r = Rig::new(Settings::default());
    r.write(0, body(100, 1)).await.expect("write");
    tokio::time::advance(Duration::from_secs(1)).await;
    r.write(100, body(100, 2)).await.expect("write");
    assert_eq!(r.sink.count("commit"), 0);
    tokio::time::sleep_until(tokio::time::Instant::now() + Duration::from_millis(limits::DIRTY_AGE_MAX_MS - 1000))
        .await;
    assert_eq!(r.committed().len(), 200, "5 s after the first write");
    assert_eq!(r.sink.count("commit"), 1);
}

#[tokio::test(start_paused = true)]
async fn holes_and_offsets_beyond_four_gib() {
    let r = Rig::new(Settings::default());
    let far = (5u64 << 32) + 12345;
    r.write(far, body(50_000, 1)).await.expect("write");
    r.write(10, body(10, 2)).await.expect("write");
    assert_eq!(r.path.dirty_attr(F).expect("dirty").size, far + 50_000);
    for round in 0..2 {
        let path = if round == 0 { r.path.clone() } else { r.cold() };
        assert_eq!(path.read(F, far - 5, 1 << 20).await.expect("read"), [vec![0; 5], body(50_000, 1)].concat());
        assert_eq!(path.read(F, 0, 30).await.expect("read"), [vec![0; 10], body(10, 2), vec![0; 10]].concat());
        assert_eq!(path.read(F, 1 << 33, 4096).await.expect("read"), vec![0; 4096], "a hole");
        assert_eq!(path.read(F, far + 50_000, 10).await.expect("read"), Bytes::new());
        r.path.fsync(F).await.expect("fsync");
    }
    assert_eq!(r.write(limits::FILE_SIZE_MAX - 3, b"1234").await, Err(FsError::FileTooBig));
    assert_eq!(r.write(u64::MAX - 1, b"1234").await, Err(FsError::FileTooBig));
}

#[tokio::test(start_paused = true)]
async fn truncation_drains_and_cancels() {
    let r = Rig::new(Settings::default());
    r.write(0, body(100, 1)).await.expect("write");
    r.write(200, body(100_000, 2)).await.expect("write");
    r.truncate(250).await.expect("truncate");
    assert_eq!(r.committed(), [body(100, 1), vec![0; 100], body(50, 2)].concat());
    let commits = r.sink.count("commit");
    r.write(1000, body(50, 3)).await.expect("write");
    r.truncate(0).await.expect("truncate");
    assert_eq!(r.sink.count("commit"), commits, "everything lay beyond: cancelled, not committed");
    assert_eq!((r.committed(), r.path.dirty_bytes()), (vec![], 0));
    assert_eq!(r.path.read(F, 0, 100).await, Ok(Bytes::new()));
    r.truncate(70).await.expect("grow");
    assert_eq!(r.path.read(F, 0, 100).await.expect("read"), vec![0; 70]);
}

#[tokio::test(start_paused = true)]
async fn cancelled_objects_are_deleted() {
    let r = Rig::new(Settings::default());
    r.faulty.set(|p| p.latency_max = Duration::from_secs(1));
    for i in 0..4u64 {
        r.write(i << 22, body(4 << 20, 1)).await.expect("write");
    }
    r.truncate(0).await.expect("truncate");
    tokio::time::sleep_until(tokio::time::Instant::now() + Duration::from_secs(30)).await;
    assert_eq!(r.store.keys(), Vec::<String>::new());
    assert_eq!(r.path.shutdown(Duration::from_secs(5)).await.leftovers, 0);
}

#[tokio::test(start_paused = true)]
async fn a_barrier_holds_writes_back() {
    let r = Rig::new(Settings::default());
    r.write(0, body(10, 1)).await.expect("write");
    let barrier = r.path.barrier(F).await.expect("barrier");
    assert_eq!(r.committed().len(), 10, "drained");
    assert!(r.path.try_write(F, 0, &Bytes::from_static(b"x"), r.cx()).is_none());
    let late = r.write(10, body(10, 2));
    tokio::pin!(late);
    assert!(tokio::time::timeout(Duration::from_secs(60), &mut late).await.is_err(), "it waits");
    drop(barrier);
    late.await.expect("write");
    r.path.fsync(F).await.expect("fsync");
    assert_eq!(r.committed(), [body(10, 1), body(10, 2)].concat());
    // Giving a barrier up half way frees the file, too.
    r.sink.faults(SinkFaults { always: Some(FsError::NoSpace), ..SinkFaults::default() });
    r.write(0, body(10, 3)).await.expect("write");
    assert_eq!(r.path.barrier(F).await.err(), Some(FsError::NoSpace));
    assert!(r.path.try_write(F, 0, &Bytes::from_static(b"x"), r.cx()).is_some());
}

#[tokio::test(start_paused = true)]
async fn commits_carry_the_mtime_until_an_explicit_one_is_set() {
    let r = Rig::new(Settings::default());
    r.write(0, body(10, 1)).await.expect("write");
    let stamp = r.path.dirty_attr(F).and_then(|d| d.mtime).expect("stamped at the write");
    r.path.fsync(F).await.expect("fsync");
    assert_eq!(r.sink.attr(F).map(|a| a.mtime), Some(stamp));
    r.write(10, body(10, 1)).await.expect("write");
    r.path.set_explicit_mtime(F).await;
    r.sink.set_mtime(F, Time(77)).expect("utimens");
    assert_eq!(r.path.dirty_attr(F).and_then(|d| d.mtime), None);
    r.path.flush(F).await.expect("flush");
    assert_eq!(r.sink.attr(F).map(|a| (a.mtime, a.size)), Some((Time(77), 20)), "the late commit leaves it alone");
    r.write(0, body(1, 1)).await.expect("write");
    r.path.flush(F).await.expect("flush");
    assert!(r.sink.attr(F).is_some_and(|a| a.mtime > stamp), "later writes stamp again");
}

/// The commit with an mtime may be on its way when utimens comes: its answer is awaited first.
#[tokio::test(start_paused = true)]
async fn an_explicit_mtime_waits_for_commits_on_their_way() {
    let r = Rig::seeded(Settings::default(), 3);
    r.sink.faults(SinkFaults { latency_max: Duration::from_secs(3), lost_replies: 500, ..SinkFaults::default() });
    for i in 0..20u64 {
        r.write(i, b"x").await.expect("write");
        let path = r.path.clone();
        let flush = tokio::spawn(async move { path.flush(F).await });
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        r.path.set_explicit_mtime(F).await;
        r.sink.set_mtime(F, Time(i as i64)).expect("utimens");
        flush.await.expect("task").expect("flush");
        assert_eq!(r.sink.attr(F).map(|a| a.mtime), Some(Time(i as i64)), "round {i}");
    }
    assert!(r.sink.count("lost") > 3);
}

#[tokio::test(start_paused = true)]
async fn writes_that_saw_an_older_truncation_are_clipped() {
    let r = Rig::new(Settings::default());
    r.write(0, body(100, 1)).await.expect("write");
    r.path.fsync(F).await.expect("fsync");
    r.write(50, body(100, 2)).await.expect("write");
    r.sink.set_size(F, 60).expect("another client truncates");
    r.write(0, body(5, 3)).await.expect("write, now knowing it");
    r.path.fsync(F).await.expect("fsync");
    let seqs: Vec<u64> = r.sink.committed().iter().map(|c| c.trunc_seq).collect();
    assert_eq!(seqs, [0, 0, 1], "each commit says what its writes had seen");
    assert_eq!(r.committed(), [&body(5, 3), &body(100, 1)[5..50], &body(100, 2)[..10]].concat());
}

#[tokio::test(start_paused = true)]
async fn an_exhausted_inline_budget_falls_back_to_objects() {
    let r = Rig::new(Settings::default());
    r.sink.faults(SinkFaults { use_object: 1000, ..SinkFaults::default() });
    r.write(0, body(1000, 1)).await.expect("write");
    r.path.fsync(F).await.expect("fsync");
    assert_eq!((r.sink.count("commit"), puts(&r)), (2, 1));
    r.write(1000, body(1000, 2)).await.expect("write");
    r.path.fsync(F).await.expect("fsync");
    assert_eq!((r.sink.count("commit"), puts(&r)), (3, 2), "remembered: no vain inline try");
    r.path.append(F, body(500, 3).into(), fresh_op()).await.expect("append");
    assert_eq!(r.committed(), [body(1000, 1), body(1000, 2), body(500, 3)].concat());
}

#[tokio::test(start_paused = true)]
async fn appends_get_their_offset_from_the_partition() {
    let r = Rig::new(Settings::default());
    r.write(0, body(100, 1)).await.expect("write");
    let (at, attr) = r.path.append(F, body(50, 2).into(), fresh_op()).await.expect("append");
    assert_eq!((at, attr.size), (100, 150), "after the buffered bytes");
    assert_eq!((r.sink.count("append"), puts(&r)), (1, 0), "small: inline");
    let big = body(9 << 20, 3);
    let (at, attr) = r.path.append(F, big.clone().into(), fresh_op()).await.expect("append");
    assert_eq!((at, attr.size), (150, 150 + (9 << 20)));
    assert_eq!((r.sink.count("append"), puts(&r)), (2, 3), "big: objects of 4 MiB and one command");
    let other = r.cold();
    let (a, b) =
        tokio::join!(r.path.append(F, body(10, 4).into(), fresh_op()), other.append(F, body(10, 5).into(), fresh_op()));
    assert_ne!(a.expect("append").0, b.expect("append").0, "two clients never overlap");
    assert!(r.path.read(F, 150, 9 << 20).await.expect("read") == big);
}

#[tokio::test(start_paused = true)]
async fn an_append_with_a_lost_reply_happens_once() {
    let r = Rig::seeded(Settings::default(), 8);
    r.sink.faults(SinkFaults { lost_replies: 500, refused: 300, ..SinkFaults::default() });
    let mut want = Vec::new();
    for i in 0..40u8 {
        let (at, _) = r.path.append(F, body(10, i).into(), fresh_op()).await.expect("append");
        assert_eq!(at, want.len() as u64);
        want.extend(body(10, i));
    }
    assert_eq!(r.committed(), want);
    assert!(r.sink.count("lost") > 10 && r.sink.count("refused") > 10);
}

#[tokio::test(start_paused = true)]
async fn holes_are_punched_behind_a_barrier() {
    let r = Rig::new(Settings::default());
    r.write(0, body(100_000, 1)).await.expect("write");
    let hole = vec![Piece::Hole { offset: 10, len: 90_000 }];
    r.path.commit_pieces(F, hole, 0, r.cx()).await.expect("punch");
    let want = [&body(100_000, 1)[..10], &[0; 90_000], &body(100_000, 1)[90_010..]].concat();
    assert_eq!(r.path.read(F, 0, 200_000).await.expect("read"), want);
    let zero = fusefs_types::Extent { offset: 100_000, len: 500, codec: 0, source: Source::Zero };
    let attr = r.path.commit_pieces(F, vec![Piece::Extent(zero)], 100_500, r.cx()).await.expect("allocate");
    assert_eq!(attr.size, 100_500);
    assert_eq!(r.path.read(F, 99_990, 1000).await.expect("read"), [&want[99_990..], &[0; 500]].concat());
}

/// Many tiny scattered writes stay within the limits of a commit and of memory.
#[tokio::test(start_paused = true)]
async fn scattered_writes_respect_limits() {
    let settings = Settings { dirty_bytes_max: 64 << 10, ..Settings::default() };
    let r = Rig::new(settings);
    let mut want = vec![0; 5000 * 7];
    for i in 0..5000usize {
        let at = i * 2741 % 5000 * 7;
        want[at] = i as u8 | 1;
        r.write(at as u64, [i as u8 | 1]).await.expect("write");
        assert!(r.path.dirty_bytes() <= (64 << 10) + 1024, "bounded: {}", r.path.dirty_bytes());
    }
    r.path.fsync(F).await.expect("fsync");
    let end = want.iter().rposition(|b| *b != 0).expect("written") + 1;
    assert!(r.committed() == want[..end]);
}

#[tokio::test(start_paused = true)]
async fn a_full_buffer_makes_writers_wait_not_fail() {
    let r = Rig::new(Settings { dirty_bytes_max: 8 << 20, ..Settings::default() });
    r.faulty.set(|p| p.latency_max = Duration::from_secs(2));
    let all = body(64 << 20, 1);
    for (i, c) in all.chunks(1 << 20).enumerate() {
        r.write((i << 20) as u64, c).await.expect("write");
        assert!(r.path.dirty_bytes() <= (8 << 20) + 65536, "bounded: {}", r.path.dirty_bytes());
    }
    r.path.fsync(F).await.expect("fsync");
    assert!(r.committed() == all);
}

#[derive(Default)]
struct Lender {
    left: AtomicU64,
}

impl Credits for Lender {
    fn take(&self, bytes: u64) -> FsResult<()> {
        self.left.fetch_update(Relaxed, Relaxed, |l| l.checked_sub(bytes)).map(|_| ()).map_err(|_| FsError::NoSpace)
    }
    fn settle(&self, bytes: u64) {
        self.left.fetch_add(bytes, Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn space_is_taken_at_the_write_and_settled_once() {
    let r = Rig::new(Settings::default());
    let lender = Arc::new(Lender { left: AtomicU64::new(1000) });
    let s = (SessionId(1), Incarnation(1));
    let path = DataPath::with_credits(
        r.store.clone(),
        r.sink.clone(),
        r.clock.clone(),
        s,
        Settings::default(),
        lender.clone(),
    );
    let write = |at, n| path.write(F, at, Bytes::from(vec![1; n]), WriteContext::default());
    write(0, 600).await.expect("write");
    assert_eq!(write(600, 500).await, Err(FsError::NoSpace), "refused before it is acknowledged");
    write(0, 100).await.expect("overwrite in memory");
    assert_eq!(lender.left.load(Relaxed), 400, "overwritten bytes are settled at once");
    path.fsync(F).await.expect("fsync");
    assert_eq!(lender.left.load(Relaxed), 1000);
    write(0, 1000).await.expect("write");
    drop(path.truncate_barrier(F, 0).await.expect("cancel"));
    path.append(F, Bytes::from(vec![2; 1000]), fresh_op()).await.expect("append");
    assert_eq!(path.append(F, Bytes::from(vec![2; 1001]), fresh_op()).await.err(), Some(FsError::NoSpace));
    assert_eq!(lender.left.load(Relaxed), 1000);
}

#[tokio::test(start_paused = true)]
async fn many_files_at_once() {
    let r = Rig::new(Settings::default());
    for i in 0..200u64 {
        r.sink.create(Ino(1000 + i));
        r.path.write(Ino(1000 + i), 0, body(3000, i as u8).into(), WriteContext::default()).await.expect("write");
    }
    r.path.sync_all().await.expect("sync");
    assert_eq!((r.sink.count("commit"), puts(&r), r.path.dirty_bytes()), (200, 0, 0));
    for i in 0..200u64 {
        assert_eq!(r.path.read(Ino(1000 + i), 0, 5000).await.expect("read"), body(3000, i as u8));
    }
}
