//! What a store must do. Run over every store of ours and over S3 servers that nobody here wrote.

use crate::{
    layout,
    object::{ObjectStore, PutMode, StoreError, claim_marker, probe, read_marker, remove_marker},
};
use bytes::Bytes;
use fusefs_types::{ClusterId, Ino, ObjectId, SessionId, ids::Incarnation};
use std::sync::Arc;

/// Panics at the first thing the store gets wrong. Works below the prefix `suite-<nonce>/` (and, for the marker, on the
/// store's root); leaves nothing behind. `atomic_create`: exactly one of several racing conditional creators must win.
pub async fn store_suite(store: Arc<dyn ObjectStore>, nonce: u64, atomic_create: bool) {
    let dir = format!("suite-{nonce:016x}");
    put_and_get(&store, &dir).await;
    ranges(&store, &dir).await;
    deletes(&store, &dir).await;
    lists(&store, &dir).await;
    big_and_empty(&store, &dir).await;
    if atomic_create {
        races(&store, &dir).await;
    }
    objects(&store).await;
    bad_keys(&store).await;
    marker(&store).await;
    let checks = probe(store.clone(), nonce).await;
    assert!(checks.len() >= 5 && checks.iter().all(|c| c.ok || !c.required), "probe: {checks:?}");
    assert!(!atomic_create || checks.iter().all(|c| c.ok), "probe: {checks:?}");
    assert_eq!(store.list(&dir, None, 10).await, Ok(vec![]), "the suite cleans up");
    assert_eq!(store.list("fusefs-probe/", None, 10).await, Ok(vec![]), "the probe cleans up");
}

fn body(n: usize, seed: u8) -> Bytes {
    (0..n).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect::<Vec<u8>>().into()
}

async fn put_and_get(s: &Arc<dyn ObjectStore>, dir: &str) {
    let key = format!("{dir}/a/b.c-d_1");
    assert_eq!(s.get(&key, None).await, Err(StoreError::NotFound), "get of a missing key");
    assert_eq!(s.get(&key, Some(0..5)).await, Err(StoreError::NotFound), "range get of a missing key");
    s.put(&key, body(100, 1), PutMode::Any).await.expect("put");
    assert_eq!(s.get(&key, None).await.expect("get"), body(100, 1));
    s.put(&key, body(33, 2), PutMode::Any).await.expect("replace");
    assert_eq!(s.get(&key, None).await.expect("get"), body(33, 2), "replaced whole, and shorter");
    s.delete(&[key]).await.expect("delete");
}

async fn ranges(s: &Arc<dyn ObjectStore>, dir: &str) {
    let (key, all) = (format!("{dir}/range"), body(200_000, 7));
    s.put(&key, all.clone(), PutMode::Any).await.expect("put");
    for (from, to) in [(0, 1), (0, 200_000), (199_999, 200_000), (65_536, 131_072), (12_345, 12_345), (3, 170_001)] {
        let got = s.get(&key, Some(from..to)).await.unwrap_or_else(|e| panic!("range {from}..{to}: {e}"));
        assert!(got == all.slice(from as usize..to as usize), "range {from}..{to}: {} bytes", got.len());
    }
    let cut = s.get(&key, Some(199_990..300_000)).await.expect("range over the end");
    assert!(cut == all.slice(199_990..), "a range over the end is cut there: {} bytes", cut.len());
    for from in [200_000, 200_001, 1 << 40] {
        let none = s.get(&key, Some(from..from + 10)).await;
        assert_eq!(none, Ok(Bytes::new()), "a range behind the end is empty");
    }
    s.delete(&[key]).await.expect("delete");
}

async fn deletes(s: &Arc<dyn ObjectStore>, dir: &str) {
    let keys: Vec<String> = (0..25).map(|i| format!("{dir}/del/{i}")).collect();
    for k in &keys[..20] {
        s.put(k, body(10, 0), PutMode::Any).await.expect("put");
    }
    s.delete(&keys[..1]).await.expect("delete one");
    s.delete(&keys[..1]).await.expect("delete one again");
    s.delete(&keys).await.expect("delete many, some missing");
    for k in &keys {
        assert_eq!(s.get(k, None).await, Err(StoreError::NotFound), "{k} is gone");
    }
    s.delete(&[]).await.expect("delete nothing");
}

async fn lists(s: &Arc<dyn ObjectStore>, dir: &str) {
    let mut keys: Vec<String> = (0..30).map(|i| format!("{dir}/l/{:02x}/{i}", i * 37 % 16)).collect();
    keys.push(format!("{dir}/l2"));
    for (i, k) in keys.iter().enumerate() {
        s.put(k, body(i, 0), PutMode::Any).await.expect("put");
    }
    let mut want: Vec<(String, u64)> = keys.iter().enumerate().map(|(i, k)| (k.clone(), i as u64)).collect();
    want.sort();
    assert_eq!(s.list(&format!("{dir}/l"), None, 1000).await.expect("list"), want, "all, in byte order");
    let below: Vec<_> = want.iter().filter(|(k, _)| k.starts_with(&format!("{dir}/l/0"))).cloned().collect();
    assert_eq!(s.list(&format!("{dir}/l/0"), None, 1000).await.expect("list"), below, "prefix inside a component");
    let (mut paged, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = s.list(&format!("{dir}/l"), after.as_deref(), 7).await.expect("page");
        let Some((last, _)) = page.last() else { break };
        assert!(page.len() <= 7);
        after = Some(last.clone());
        paged.extend(page);
    }
    assert_eq!(paged, want, "paging loses and repeats nothing");
    assert_eq!(s.list(&format!("{dir}/nothing"), None, 5).await, Ok(vec![]));
    s.delete(&keys).await.expect("delete");
}

async fn big_and_empty(s: &Arc<dyn ObjectStore>, dir: &str) {
    let (big, empty) = (format!("{dir}/big"), format!("{dir}/empty"));
    let all = body(4 << 20, 3);
    s.put(&big, all.clone(), PutMode::Any).await.expect("4 MiB");
    s.put(&empty, Bytes::new(), PutMode::Any).await.expect("empty");
    assert!(s.get(&big, None).await.expect("get") == all, "4 MiB come back");
    assert_eq!(s.get(&empty, None).await, Ok(Bytes::new()));
    let parts = (0..8u64).map(|i| s.get(&big, Some(i << 19..(i + 1) << 19)));
    let parts: Vec<u8> =
        futures::future::join_all(parts).await.into_iter().flat_map(|p| p.expect("parallel range").to_vec()).collect();
    assert!(parts == all, "parallel range reads");
    s.delete(&[big, empty]).await.expect("delete");
}

async fn races(s: &Arc<dyn ObjectStore>, dir: &str) {
    let key = format!("{dir}/first");
    s.put(&key, body(5, 1), PutMode::IfAbsent).await.expect("conditional create");
    assert_eq!(s.put(&key, body(6, 2), PutMode::IfAbsent).await, Err(StoreError::Exists));
    assert_eq!(s.get(&key, None).await.expect("get"), body(5, 1), "the loser changed nothing");
    s.delete(&[key]).await.expect("delete");
    for round in 0..10 {
        let key = format!("{dir}/race/{round}");
        let racers = (0..8u8).map(|i| s.put(&key, body(100, i), PutMode::IfAbsent));
        let results = futures::future::join_all(racers).await;
        let winners: Vec<usize> = (0..8).filter(|i| results[*i].is_ok()).collect();
        assert_eq!(winners.len(), 1, "one winner in round {round}: {results:?}");
        assert_eq!(s.get(&key, None).await.expect("get"), body(100, winners[0] as u8), "and its bytes are there");
        s.delete(&[key]).await.expect("delete");
    }
}

/// Objects of ours: round trip, frame reads, a swapped body.
async fn objects(s: &Arc<dyn ObjectStore>) {
    let id = |counter| ObjectId { session: SessionId(77), incarnation: Incarnation(1), counter };
    let plain = body(300_000, 9);
    for counter in [1, 2] {
        let encoded = layout::encode(&id(counter), Ino(5), plain.len() as u64, [&plain[..]].into_iter());
        s.put(&id(counter).key(), encoded, PutMode::IfAbsent).await.expect("put object");
    }
    let frames = layout::frames_of(70_000, 200_000);
    let read = s.get(&id(1).key(), Some(layout::byte_range(&frames))).await.expect("frames");
    let got: Vec<u8> = layout::decode_frames(&id(1), &frames, &read).expect("verified").concat();
    assert!(got == plain[65_536..], "frames 1.. to the end");
    assert!(layout::decode_frames(&id(2), &frames, &read).is_err(), "another object's bytes are refused");
    let header = s.get(&id(2).key(), Some(0..layout::HEADER)).await.expect("header");
    assert_eq!(layout::decode_header(&header).map(|h| (h.id, h.home)), Ok((id(2), Ino(5))));
    let mut keys = vec![id(1).key(), id(2).key()];
    keys.sort();
    s.delete(&keys).await.expect("delete");
}

async fn bad_keys(s: &Arc<dyn ObjectStore>) {
    for key in ["", "/a", "a//b", "a/../b", "..", "a/", "a\0b"] {
        assert!(s.put(key, Bytes::new(), PutMode::Any).await.is_err(), "put {key:?}");
        assert!(s.get(key, None).await.is_err(), "get {key:?}");
        assert!(s.delete(&[key.to_string()]).await.is_err(), "delete {key:?}");
    }
}

async fn marker(s: &Arc<dyn ObjectStore>) {
    assert_eq!(read_marker(&**s).await, Ok(None));
    claim_marker(&**s, ClusterId(0xabc)).await.expect("claim");
    claim_marker(&**s, ClusterId(0xabc)).await.expect("claim again");
    assert_eq!(read_marker(&**s).await, Ok(Some(ClusterId(0xabc))));
    assert!(matches!(claim_marker(&**s, ClusterId(0xdef)).await, Err(StoreError::Denied(_))), "somebody else's");
    remove_marker(&**s).await.expect("remove");
}
