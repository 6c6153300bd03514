//! The same suite over every store.

use bytes::Bytes;
use fusefs_data_path::{
    object::{
        DirStore, FaultPlan, Faulty, MemoryStore, ObjectStore, PutMode, RetryPolicy, Retrying, StoreError, join_prefix,
        open, probe,
    },
    testing::store_suite,
};
use fusefs_types::{
    StoreId,
    cluster::{StoreCredentials, StoreKind, StoreRecord},
};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

#[tokio::test]
async fn memory() {
    store_suite(MemoryStore::new(), 1, true).await;
}

#[tokio::test]
async fn directory() {
    let dir = tempfile::tempdir().expect("tempdir");
    store_suite(Arc::new(DirStore::open(dir.path()).expect("open")), 2, true).await;
    let left = std::fs::read_dir(dir.path().join(".fusefs-tmp")).expect("tmp").count();
    assert_eq!(left, 0, "no half-written bodies left");
}

/// A server that nobody here wrote: FUSEFS_TEST_S3_ENDPOINT, _BUCKET, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
/// `chaos-tests` runs the same suite against the S3 double and versitygw.
#[cfg(feature = "s3")]
#[tokio::test]
async fn s3_from_environment() {
    let var = |name: &str| std::env::var(name).unwrap_or_default();
    if var("FUSEFS_TEST_S3_ENDPOINT").is_empty() {
        eprintln!("skipped: set FUSEFS_TEST_S3_ENDPOINT, FUSEFS_TEST_S3_BUCKET and the AWS_* credentials to enable");
        return;
    }
    let mut r = record(StoreKind::S3, &var("FUSEFS_TEST_S3_ENDPOINT"));
    r.bucket = var("FUSEFS_TEST_S3_BUCKET");
    r.path_style = true;
    let c = StoreCredentials {
        access_key: var("AWS_ACCESS_KEY_ID"),
        secret_key: var("AWS_SECRET_ACCESS_KEY"),
        ..StoreCredentials::default()
    };
    store_suite(open(&r, &c).expect("open"), u64::from(std::process::id()), true).await;
}

fn record(kind: StoreKind, endpoint: &str) -> StoreRecord {
    StoreRecord {
        id: StoreId(7),
        name: "s".into(),
        kind,
        endpoint: endpoint.into(),
        region: String::new(),
        bucket: String::new(),
        prefix: "some/where".into(),
        path_style: false,
        credential: String::new(),
        probe: vec![],
    }
}

#[tokio::test]
async fn an_opened_store_keeps_below_its_prefix_and_is_shared_by_name() {
    let r = record(StoreKind::Memory, "prefix-test");
    let (a, b) = (open(&r, &StoreCredentials::default()), open(&r, &StoreCredentials::default()));
    let (a, b) = (a.expect("open"), b.expect("open"));
    store_suite(a.clone(), 3, true).await;
    a.put("x/y", Bytes::from_static(b"1"), PutMode::Any).await.expect("put");
    assert_eq!(b.get("x/y", None).await, Ok(Bytes::from_static(b"1")));
    assert_eq!(MemoryStore::named("prefix-test").keys(), ["some/where/7/x/y"]);
    assert_eq!(join_prefix("", "a"), "a");
    assert_eq!(join_prefix("/a/", "/b"), "a/b");
}

/// With quick failures, lost replies and delays the retry loop still makes a correct store, and the faults did fire.
#[tokio::test(start_paused = true)]
async fn retries_hide_transient_faults() {
    let plan = FaultPlan {
        seed: 11,
        latency_max: Duration::from_millis(20),
        busy: 200,
        lost_replies: 200,
        ..FaultPlan::default()
    };
    let faulty = Faulty::new(MemoryStore::new(), plan);
    let policy = RetryPolicy { patience: Duration::from_secs(600), ..RetryPolicy::default() };
    let store: Arc<dyn ObjectStore> = Arc::new(Retrying::new(faulty.clone(), policy));
    store_suite(store, 4, true).await;
    for n in [&faulty.counters.busy, &faulty.counters.lost_replies, &faulty.counters.delayed] {
        assert!(n.load(Relaxed) > 20, "the faults fired");
    }
}

/// The loop ends, and the token bucket limits how much it adds to the load of a dead store.
#[tokio::test(start_paused = true)]
async fn retries_are_bounded() {
    let faulty = Faulty::new(MemoryStore::new(), FaultPlan::default());
    faulty.set(|p| p.outage = Some(StoreError::Busy("down".into())));
    let store = Retrying::new(faulty.clone(), RetryPolicy::default());
    let begin = tokio::time::Instant::now();
    let calls = (0..500).map(|i| {
        let (store, key) = (&store, format!("k{i}"));
        async move { store.put(&key, Bytes::new(), PutMode::Any).await }
    });
    let results = futures::future::join_all(calls).await;
    assert!(results.iter().all(|r| r == &Err(StoreError::Busy("down".into()))));
    assert!(begin.elapsed() <= Duration::from_secs(8), "patience: {:?}", begin.elapsed());
    let puts = faulty.counters.puts.load(Relaxed);
    assert!(puts <= 500 + 64 + 16 * 8, "{puts} calls: the bucket holds retries back");
    // A permanent refusal is not retried at all.
    faulty.set(|p| p.outage = Some(StoreError::Denied("no".into())));
    assert_eq!(store.get("k", None).await, Err(StoreError::Denied("no".into())));
    assert_eq!(faulty.counters.gets.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_probe_names_what_is_wrong() {
    let faulty = Faulty::new(MemoryStore::new(), FaultPlan::default());
    faulty.set(|p| p.outage = Some(StoreError::Denied("the secret key is wrong".into())));
    let checks = probe(faulty.clone(), 1).await;
    assert_eq!(checks.len(), 1, "nothing is tried after a failed write: {checks:?}");
    assert!(!checks[0].ok && checks[0].required && checks[0].detail.contains("secret key"), "{checks:?}");
    faulty.set(|p| {
        p.outage = None;
        p.flipped = 1000;
    });
    let checks = probe(faulty.clone(), 2).await;
    let failed: Vec<&str> = checks.iter().filter(|c| !c.ok).map(|c| c.name.as_str()).collect();
    assert_eq!(failed, ["read", "range"], "{checks:?}");
    faulty.set(|p| {
        p.flipped = 0;
        p.latency_max = Duration::from_secs(3600);
    });
    let begin = tokio::time::Instant::now();
    let checks = probe(faulty, 3).await;
    assert!(begin.elapsed() <= Duration::from_secs(11) && checks.iter().any(|c| !c.ok), "{checks:?}");
}

#[cfg(feature = "s3")]
#[tokio::test]
async fn an_unreachable_s3_server_is_named_quickly() {
    // A port that was just free: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("port").port();
    let mut r = record(StoreKind::S3, &format!("http://127.0.0.1:{port}"));
    (r.bucket, r.path_style) = ("b".into(), true);
    let c = StoreCredentials { access_key: "k".into(), secret_key: "s".into(), ..StoreCredentials::default() };
    use fusefs_data_path::object::probe_record;
    let checks = probe_record(&r, &c, 1).await;
    assert!(checks[0].detail.contains("cannot be reached"), "{checks:?}");
    r.endpoint = "127.0.0.1:1".into();
    assert!(probe_record(&r, &c, 1).await[0].detail.contains("http://"), "an endpoint without a scheme is explained");
}

#[cfg(not(feature = "s3"))]
#[test]
fn without_the_feature_the_error_names_it() {
    let e = open(&record(StoreKind::S3, ""), &StoreCredentials::default()).err().expect("refused");
    assert!(e.to_string().contains("--features s3"), "{e}");
}
