//! Is this store usable and ours? Asked before it is added and shown to people.

use super::{ObjectStore, Prefixed, PutMode, StoreError, Timeouts, open_root};
use bytes::Bytes;
use fusefs_types::{
    ClusterId,
    cluster::{ProbeCheck, StoreCredentials, StoreRecord},
};
use std::{future::Future, sync::Arc, time::Duration};

/// Object at a store's prefix that names its owner (PROTOCOL 1).
pub const MARKER: &str = "fusefs-marker";
/// Creators that race for one key in the conditional-create check.
const RACERS: u32 = 8;
/// Longest a whole probe takes.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// Timeouts of probes: an answer for people within seconds.
pub const PROBE_TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(2), attempt: Duration::from_secs(4) };

/// Everything below a record's prefix, single attempts with short timeouts: for the probe and the marker.
pub fn open_prefix(r: &StoreRecord, c: &StoreCredentials) -> Result<Arc<dyn ObjectStore>, StoreError> {
    Ok(Arc::new(Prefixed::new(open_root(r, c, PROBE_TIMEOUTS)?, &r.prefix)))
}

/// Opens and probes a record; a record that cannot even be opened gives one failed check.
pub async fn probe_record(r: &StoreRecord, c: &StoreCredentials, nonce: u64) -> Vec<ProbeCheck> {
    match open_prefix(r, c) {
        Ok(store) => probe(store, nonce).await,
        Err(e) => vec![check("open", true, Err(e))],
    }
}

/// Whether every required check passed; otherwise the reasons.
pub fn verdict(checks: &[ProbeCheck]) -> Result<(), String> {
    let bad: Vec<String> =
        checks.iter().filter(|c| c.required && !c.ok).map(|c| format!("{}: {}", c.name, c.detail)).collect();
    if bad.is_empty() { Ok(()) } else { Err(bad.join("; ")) }
}

/// Whether conditional creates were found to work, for [`crate::Settings::conditional_put`].
pub fn conditional_works(checks: &[ProbeCheck]) -> bool {
    checks.iter().any(|c| c.name == "conditional-create" && c.ok)
}

/// Writes, reads back, reads a range, creates conditionally (raced by 8) and deletes below `fusefs-probe/<nonce>/`.
/// `nonce` keeps parallel probes apart. Takes at most ~10 s; after a failed write nothing else is tried.
pub async fn probe(store: Arc<dyn ObjectStore>, nonce: u64) -> Vec<ProbeCheck> {
    let mut checks = Vec::new();
    if tokio::time::timeout(PROBE_DEADLINE, run(&store, nonce, &mut checks)).await.is_err() {
        checks.push(check("deadline", true, Err(StoreError::TimedOut("the probe took longer than 10 s".into()))));
    }
    checks
}

async fn run(store: &Arc<dyn ObjectStore>, nonce: u64, checks: &mut Vec<ProbeCheck>) {
    let key = format!("fusefs-probe/{nonce:016x}/a");
    let body: Bytes = (0..100_000u32).flat_map(|i| (i ^ nonce as u32).to_le_bytes()).collect::<Vec<u8>>().into();
    let wrote = retry_once(|| store.put(&key, body.clone(), PutMode::Any)).await;
    let stop = wrote.is_err();
    checks.push(check("write", true, wrote.map(|()| "ok".into())));
    if stop {
        return;
    }
    let back = retry_once(|| store.get(&key, None)).await;
    checks.push(check("read", true, back.and_then(|b| same(&b, &body))));
    let part = retry_once(|| store.get(&key, Some(70_001..80_007))).await;
    checks.push(check("range", true, part.and_then(|b| same(&b, &body.slice(70_001..80_007)))));
    checks.push(conditional(store, nonce).await);
    checks.push(check("delete", true, deleted(store, &key).await));
}

async fn deleted(store: &Arc<dyn ObjectStore>, key: &str) -> Result<String, StoreError> {
    let keys = [key.to_string()];
    retry_once(|| store.delete(&keys)).await?;
    match retry_once(|| store.get(key, None)).await {
        Err(StoreError::NotFound) => Ok("ok".into()),
        Ok(_) => Err(StoreError::Refused("the object is still there after its deletion".into())),
        Err(e) => Err(e),
    }
}

/// Not required: object names are unique by construction (PROTOCOL 31).
async fn conditional(store: &Arc<dyn ObjectStore>, nonce: u64) -> ProbeCheck {
    let key = format!("fusefs-probe/{nonce:016x}/c");
    let racers = (0..RACERS).map(|i| {
        let (store, key) = (store.clone(), key.clone());
        async move { store.put(&key, Bytes::from(vec![i as u8; 64]), PutMode::IfAbsent).await }
    });
    let results = futures::future::join_all(racers).await;
    let winners = results.iter().filter(|r| r.is_ok()).count();
    let losers = results.iter().filter(|r| matches!(r, Err(StoreError::Exists | StoreError::Busy(_)))).count();
    let _ = retry_once(|| store.delete(std::slice::from_ref(&key))).await; // its failure shows in the delete check
    let result = match results.into_iter().find_map(|r| r.err().filter(|e| !matches!(e, StoreError::Exists))) {
        _ if winners == 1 && losers == RACERS as usize - 1 => Ok(format!("ok: 1 winner of {RACERS}")),
        Some(e) if winners <= 1 => Err(e),
        _ => Err(StoreError::Refused(format!(
            "{winners} of {RACERS} racing creators won; conditional creates are not used"
        ))),
    };
    check("conditional-create", false, result)
}

/// A probe is no retry loop, but one lost packet must not refuse a store.
async fn retry_once<T, F: Future<Output = Result<T, StoreError>>>(mut f: impl FnMut() -> F) -> Result<T, StoreError> {
    match f().await {
        Err(StoreError::Busy(_) | StoreError::Broken(_)) => f().await,
        other => other,
    }
}

fn same(got: &[u8], want: &[u8]) -> Result<String, StoreError> {
    if got == want {
        return Ok("ok".into());
    }
    Err(StoreError::Broken(format!("{} bytes came back, not the {} that were written", got.len(), want.len())))
}

fn check(name: &str, required: bool, r: Result<String, StoreError>) -> ProbeCheck {
    let (ok, detail) = match r {
        Ok(d) => (true, d),
        Err(e) => (false, e.to_string()),
    };
    ProbeCheck { name: name.into(), ok, required, detail }
}

/// Owner named by the marker, None without one. `store` is rooted at the record's prefix ([`open_prefix`]).
pub async fn read_marker(store: &dyn ObjectStore) -> Result<Option<ClusterId>, StoreError> {
    let body = match store.get(MARKER, None).await {
        Ok(b) => b,
        Err(StoreError::NotFound) => return Ok(None),
        Err(e) => return Err(e),
    };
    let text = std::str::from_utf8(&body).unwrap_or("");
    let id = text.lines().find_map(|l| l.strip_prefix("cluster ")).and_then(|h| h.parse().ok());
    id.map(Some).ok_or_else(|| StoreError::Refused(format!("the object {MARKER} is not a fusefs marker")))
}

/// Makes the prefix ours, or refuses when another cluster owns it. Idempotent.
pub async fn claim_marker(store: &dyn ObjectStore, cluster: ClusterId) -> Result<(), StoreError> {
    if read_marker(store).await?.is_none() {
        let body = Bytes::from(format!("fusefs marker 1\ncluster {cluster}\n"));
        match store.put(MARKER, body, PutMode::IfAbsent).await {
            Ok(()) | Err(StoreError::Exists) => {}
            Err(e) => return Err(e),
        }
    }
    match read_marker(store).await? {
        Some(owner) if owner == cluster => Ok(()),
        Some(owner) => Err(StoreError::Denied(format!("the bucket prefix belongs to another cluster ({owner})"))),
        None => Err(StoreError::Refused("the marker vanished after it was written".into())),
    }
}

/// Gives the prefix up.
pub async fn remove_marker(store: &dyn ObjectStore) -> Result<(), StoreError> {
    store.delete(&[MARKER.to_string()]).await
}

/// Credentials by the standard chain of the S3 SDK (environment, profile, web identity, instance): masters and
/// `fusefs dev` only (PROTOCOL 50). None when the chain finds nothing.
#[cfg(feature = "s3")]
pub async fn standard_credentials() -> Result<Option<StoreCredentials>, StoreError> {
    use aws_credential_types::provider::ProvideCredentials;
    // With a region given nobody asks the network for one (an instance's metadata server that is not there takes seconds).
    let config = aws_config::defaults(aws_config::BehaviorVersion::latest())
        .region(aws_config::Region::new("us-east-1"))
        .http_client(super::s3::http_client(false))
        .load();
    let found = tokio::time::timeout(Duration::from_secs(5), async {
        match config.await.credentials_provider() {
            Some(p) => p.provide_credentials().await.ok(),
            None => None,
        }
    });
    let Ok(Some(c)) = found.await else { return Ok(None) };
    let expires = c.expiry().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(Some(StoreCredentials {
        access_key: c.access_key_id().into(),
        secret_key: c.secret_access_key().into(),
        session_token: c.session_token().unwrap_or("").into(),
        expires_ns: expires.map_or(0, |d| d.as_nanos() as u64),
    }))
}

/// Without the `s3` feature there is no standard chain.
#[cfg(not(feature = "s3"))]
pub async fn standard_credentials() -> Result<Option<StoreCredentials>, StoreError> {
    Err(StoreError::Config("this build has no S3 support; build with --features s3".into()))
}
