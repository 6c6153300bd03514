//! The data path's store suite over the double and over versitygw; faults over real HTTP.

use super::*;
use crate::versitygw;
use bytes::Bytes;
use fusefs_data_path::{
    PutMode,
    object::{RetryPolicy, Retrying, Timeouts, open, open_root, probe_record},
    testing::store_suite,
};

async fn suite(record: &StoreRecord, credentials: &StoreCredentials, nonce: u64) {
    store_suite(open(record, credentials).expect("open"), nonce, true).await;
    let checks = probe_record(record, credentials, nonce).await;
    assert!(checks.len() >= 5 && checks.iter().all(|c| c.ok), "{checks:?}");
}

/// Unreachable, wrong bucket, wrong key and wrong secret are told apart, quickly.
async fn refusals(good: &StoreRecord, credentials: &StoreCredentials) {
    let cases = [
        (
            StoreRecord { bucket: "nobucket".into(), ..good.clone() },
            credentials.clone(),
            "bucket \"nobucket\" does not exist",
        ),
        (good.clone(), super::credentials("wrong", &credentials.secret_key), "access key \"wrong\""),
        (good.clone(), super::credentials(&credentials.access_key, "wrong"), "secret key"),
        (
            StoreRecord { endpoint: "http://127.0.0.1:1".into(), ..good.clone() },
            credentials.clone(),
            "cannot be reached",
        ),
    ];
    for (record, credentials, words) in cases {
        let begin = tokio::time::Instant::now();
        let checks = probe_record(&record, &credentials, 1).await;
        assert!(checks.len() == 1 && checks[0].detail.contains(words), "wanted {words:?}: {checks:?}");
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test]
async fn the_double_in_memory_passes_the_suite() {
    let s3 = S3Double::memory().await.expect("start");
    suite(&s3.record(), &s3.credentials(), 1).await;
    refusals(&s3.record(), &s3.credentials()).await;
    assert_eq!(s3.store().list("", None, 10).await, Ok(vec![]), "nothing is left");
}

#[tokio::test]
async fn the_double_in_a_directory_passes_the_suite_and_restarts() {
    let dir = tempfile::tempdir().expect("tempdir");
    let s3 = S3Double::dir(dir.path()).await.expect("start");
    suite(&s3.record(), &s3.credentials(), 2).await;
    let store = open(&s3.record(), &s3.credentials()).expect("open");
    store.put("a/b", Bytes::from_static(b"kept"), PutMode::Any).await.expect("put");
    drop(s3);
    let s3 = S3Double::dir(dir.path()).await.expect("restart");
    let store = open(&s3.record(), &s3.credentials()).expect("open");
    assert_eq!(store.get("a/b", None).await, Ok(Bytes::from_static(b"kept")));
}

#[tokio::test]
async fn versitygw_passes_the_suite() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = match versitygw::start(dir.path()) {
        Ok(s) => s,
        Err(e) if versitygw::may_skip() => return eprintln!("skipped: {e}"),
        Err(e) => panic!("{e}"),
    };
    suite(&server.record(), &server.credentials(), 3).await;
    refusals(&server.record(), &server.credentials()).await;
}

/// With SlowDown, lost answers, cut bodies and delays on the wire, our retry loop still makes a correct store.
#[tokio::test]
async fn faults_on_the_wire_are_hidden_by_retries() {
    let s3 = S3Double::memory().await.expect("start");
    s3.faults(|f| {
        (f.slow_down, f.lost_replies, f.truncated) = (100, 100, 200);
        f.latency_max = Duration::from_millis(3);
    });
    let root = open_root(&s3.record(), &s3.credentials(), Timeouts::default()).expect("open");
    let policy = RetryPolicy {
        backoff_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(10),
        patience: Duration::from_secs(60),
        burst: 10_000,
        per_second: 10_000,
    };
    let store = Retrying::new(root, policy);
    for i in 0..150u32 {
        let (key, body) = (format!("k/{i}"), Bytes::from(vec![i as u8; 20_000]));
        store.put(&key, body.clone(), PutMode::IfAbsent).await.expect("put: our own earlier try is recognised");
        assert!(store.get(&key, None).await.expect("get") == body);
        assert!(store.get(&key, Some(5_000..6_000)).await.expect("range") == body.slice(5_000..6_000));
    }
    let c = s3.counters();
    for n in [&c.slow_downs, &c.lost_replies, &c.truncated] {
        assert!(n.load(Ordering::Relaxed) >= 20, "{c:?}");
    }
    s3.faults(|f| *f = Faults { denied: true, ..Faults::default() });
    assert!(matches!(store.get("k/1", None).await, Err(StoreError::Denied(_))));
    s3.faults(|f| *f = Faults { down: true, ..Faults::default() });
    let root = open_root(&s3.record(), &s3.credentials(), Timeouts::default()).expect("open");
    assert!(root.get("k/1", None).await.is_err_and(|e| e.is_transient()));
}
