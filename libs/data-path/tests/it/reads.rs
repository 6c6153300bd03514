//! Verified reads, cache, read-ahead, changed extent maps.

use crate::rig::{F, Rig, body, fresh_op};
use bytes::Bytes;
use fusefs_data_path::{
    Settings, StoreError, layout,
    object::{ObjectStore, PutMode},
};
use fusefs_types::{Extent, FsError, Ino, ObjectId, SessionId, Source, ids::Incarnation};
use std::{sync::atomic::Ordering::Relaxed, time::Duration};

async fn filled(settings: Settings, n: usize) -> (Rig, Vec<u8>) {
    let r = Rig::new(settings);
    let all = body(n, 5);
    for (i, c) in all.chunks(1 << 20).enumerate() {
        r.write((i << 20) as u64, c).await.expect("write");
    }
    r.path.fsync(F).await.expect("fsync");
    (r, all)
}

fn gets(r: &Rig) -> u64 {
    r.faulty.counters.gets.load(Relaxed)
}

#[tokio::test(start_paused = true)]
async fn small_reads_fetch_frames_once() {
    let (r, all) = filled(Settings { readahead_bytes: 0, ..Settings::default() }, 1 << 20).await;
    assert!(r.path.try_read(F, 70_000, 100).is_none());
    assert_eq!(r.path.read(F, 70_000, 100).await.expect("read"), all[70_000..70_100]);
    assert_eq!((gets(&r), r.path.read_stats().get_bytes.load(Relaxed)), (1, layout::STRIDE), "one frame");
    assert_eq!(r.path.try_read(F, 65_536, 65_536).expect("cached"), all[65_536..131_072]);
    assert_eq!(r.path.read(F, 0, 1 << 20).await.expect("read"), all);
    assert_eq!(gets(&r), 3, "the frames on both sides of the cached one");
    assert_eq!(r.sink.count("extents"), 1);
}

#[tokio::test(start_paused = true)]
async fn parallel_readers_share_one_fetch() {
    let (r, all) = filled(Settings { readahead_bytes: 0, ..Settings::default() }, 1 << 20).await;
    r.faulty.set(|p| p.latency_max = Duration::from_millis(100));
    let reads = (0..50u64).map(|i| r.path.read(F, i * 1000, 1000));
    for (i, b) in futures::future::join_all(reads).await.into_iter().enumerate() {
        assert_eq!(b.expect("read"), all[i * 1000..i * 1000 + 1000]);
    }
    assert_eq!(gets(&r), 1);
}

#[tokio::test(start_paused = true)]
async fn sequential_reads_are_fetched_ahead() {
    let (r, all) = filled(Settings::default(), 32 << 20).await;
    r.faulty.set(|p| p.latency_max = Duration::from_millis(100));
    let begin = tokio::time::Instant::now();
    for (i, want) in all.chunks(128 << 10).enumerate() {
        assert!(r.path.read(F, (i * (128 << 10)) as u64, 128 << 10).await.expect("read") == want);
    }
    assert!(begin.elapsed() < Duration::from_millis(900), "256 reads, 50 ms each: {:?}", begin.elapsed());
    assert!(gets(&r) <= 80, "{} range reads for 32 MiB", gets(&r));
}

#[tokio::test(start_paused = true)]
async fn the_cache_is_bounded() {
    let settings = Settings { cache_bytes: 1 << 20, readahead_bytes: 0, ..Settings::default() };
    let (r, all) = filled(settings, 8 << 20).await;
    assert!(r.path.read(F, 0, 8 << 20).await.expect("bigger than the cache") == all);
    assert!(r.path.read_stats().evicted.load(Relaxed) >= 112);
    assert!(r.path.try_read(F, 0, 10).is_none());
}

/// Cut and flipped bodies never reach a reader.
#[tokio::test(start_paused = true)]
async fn damaged_transfers_are_read_again() {
    let (r, all) = filled(Settings { readahead_bytes: 0, cache_bytes: 0, ..Settings::default() }, 4 << 20).await;
    r.faulty.set(|p| (p.truncated, p.flipped) = (80, 80));
    let (mut good, mut bad) = (0, 0);
    for i in 0..300u64 {
        let at = i * 7919 * 64 % (4 << 20);
        match r.path.read(F, at, 10_000).await {
            Ok(b) => {
                assert!(b == all[at as usize..all.len().min(at as usize + 10_000)], "wrong bytes at {at}");
                good += 1;
            }
            Err(e) => {
                assert_eq!(e, FsError::Io);
                bad += 1;
            }
        }
    }
    assert!(good > 290, "{good} good, {bad} bad: four damaged transfers in a row are rare");
    assert!(r.faulty.counters.truncated.load(Relaxed) > 5 && r.faulty.counters.flipped.load(Relaxed) > 5);
}

fn object(counter: u64) -> ObjectId {
    ObjectId { session: SessionId(9), incarnation: Incarnation(1), counter }
}

async fn put_object(r: &Rig, id: ObjectId, plain: &[u8]) -> Extent {
    let encoded = layout::encode(&id, F, plain.len() as u64, [plain].into_iter());
    r.store.put(&id.key(), encoded, PutMode::Any).await.expect("put");
    let source = Source::Object { id, home: F, skip: 0 };
    Extent { offset: 0, len: plain.len() as u64, codec: 0, source }
}

/// Another client replaced the data and the old object was deleted: the new map is fetched, no error.
#[tokio::test(start_paused = true)]
async fn a_missing_object_refetches_the_map() {
    let (r, _) = filled(Settings { readahead_bytes: 0, ..Settings::default() }, 200_000).await;
    assert!(r.path.read(F, 0, 10).await.is_ok());
    let old = r.store.keys();
    let fresh = body(200_000, 77);
    let x = put_object(&r, object(1), &fresh).await;
    r.sink.set_extents(F, vec![x]);
    r.store.delete(&old).await.expect("garbage collection");
    assert_eq!(r.path.read(F, 150_000, 50_000).await.expect("read"), fresh[150_000..]);
    // Now it is really gone, and the current map still names it.
    r.store.delete(&[object(1).key()]).await.expect("damage");
    assert_eq!(r.path.read(F, 0, 10).await, Err(FsError::Io));
}

#[tokio::test(start_paused = true)]
async fn swapped_and_short_bodies_are_errors() {
    let (r, _) = filled(Settings { readahead_bytes: 0, ..Settings::default() }, 10).await;
    let plain = body(100_000, 1);
    let x = put_object(&r, object(1), &plain).await;
    put_object(&r, object(2), &body(100_000, 2)).await;
    let other = r.store.get(&object(2).key(), None).await.expect("get");
    r.sink.set_extents(F, vec![x]);
    r.sink.set_size(F, 100_000).expect("size");
    r.path.invalidate(F);
    assert_eq!(r.path.read(F, 0, 100).await.expect("read"), plain[..100]);
    r.store.tamper(&object(1).key(), Some(other));
    assert_eq!(r.path.read(F, 90_000, 100).await, Err(FsError::Io), "another object's body");
    let cut = layout::encode(&object(1), F, 65_536, [&plain[..65_536]].into_iter());
    r.store.tamper(&object(1).key(), Some(cut));
    assert_eq!(r.path.read(F, 90_000, 100).await, Err(FsError::Io), "an object that ends before its extent");
    let codec = Extent { codec: 1, ..x };
    r.sink.set_extents(F, vec![codec]);
    r.path.invalidate(F);
    assert_eq!(r.path.read(F, 90_000, 100).await, Err(FsError::UpgradeNeeded), "an unknown codec is refused");
}

#[tokio::test(start_paused = true)]
async fn a_store_outage_makes_reads_wait_and_a_refusal_fails_them() {
    let (r, all) = filled(Settings { readahead_bytes: 0, ..Settings::default() }, 200_000).await;
    r.faulty.set(|p| p.outage = Some(StoreError::Unreachable("down".into())));
    let read = r.path.read(F, 0, 1000);
    tokio::pin!(read);
    assert!(tokio::time::timeout(Duration::from_secs(300), &mut read).await.is_err(), "it waits");
    r.faulty.set(|p| p.outage = None);
    assert_eq!(read.await.expect("read"), all[..1000]);
    r.faulty.set(|p| p.outage = Some(StoreError::Denied("403".into())));
    assert_eq!(r.path.read(F, 190_000, 1000).await, Err(FsError::Io));
}

#[tokio::test(start_paused = true)]
async fn newer_attributes_make_the_cached_map_void() {
    let (r, _) = filled(Settings::default(), 1000).await;
    assert_eq!(r.path.read(F, 0, 2000).await.expect("read").len(), 1000);
    let other = r.cold();
    other.append(F, Bytes::from(vec![9; 500]), fresh_op()).await.expect("another client");
    assert_eq!(r.path.read(F, 0, 2000).await.expect("read").len(), 1000, "not looked at again by itself");
    r.path.observe(&r.sink.attr(F).expect("attr"));
    assert_eq!(r.path.read(F, 0, 2000).await.expect("read").len(), 1500, "open after close sees the new data");
    let n = r.sink.count("extents");
    r.path.observe(&r.sink.attr(F).expect("attr"));
    assert_eq!(r.path.read(F, 0, 2000).await.expect("read").len(), 1500);
    assert_eq!(r.sink.count("extents"), n, "the same version costs nothing");
}

#[tokio::test(start_paused = true)]
async fn a_file_of_many_extents_is_read_in_parts() {
    let r = Rig::new(Settings { readahead_bytes: 0, ..Settings::default() });
    let mut want = vec![0; 100 * 3000];
    for i in 0..100usize {
        r.write((i * 3000) as u64, body(2000, i as u8)).await.expect("write");
        want[i * 3000..i * 3000 + 2000].copy_from_slice(&body(2000, i as u8));
        r.path.fsync(F).await.expect("fsync");
    }
    want.truncate(99 * 3000 + 2000);
    assert!(r.cold().read(F, 0, 1 << 20).await.expect("read") == want);
    assert_eq!(r.path.read(Ino(999), 0, 10).await, Err(FsError::NotFound));
}
