//! Object stores: secrets by name, probes, markers. A secret is read when it is needed and never kept, logged or
//! replicated (PROTOCOL 50).

use fusefs_data_path::{
    ObjectStore,
    object::{self, probe},
};
use fusefs_types::{
    ClusterId, FsError,
    cluster::{MasterRefusal, ProbeCheck, StoreCredentials, StoreKind, StoreRecord},
};
use serde::Deserialize;
use std::{path::PathBuf, sync::Arc};

/// Access to object stores with the secrets of this master.
pub struct Stores {
    credentials_dir: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Secret {
    access_key: String,
    secret_key: String,
    #[serde(default)]
    session_token: String,
}

fn refuse(message: String) -> MasterRefusal {
    MasterRefusal { error: FsError::Invalid, message, leader: None }
}

impl Stores {
    /// Reads named credentials from this directory.
    pub fn new(credentials_dir: Option<PathBuf>) -> Stores {
        Stores { credentials_dir }
    }

    /// Secrets of a store: by name from the credentials directory, or the standard chain for an empty name.
    pub async fn credentials(&self, store: &StoreRecord) -> Result<StoreCredentials, MasterRefusal> {
        if store.kind != StoreKind::S3 {
            return Ok(StoreCredentials::default());
        }
        if store.credential.is_empty() {
            return match object::standard_credentials().await {
                Ok(Some(c)) => Ok(c),
                Ok(None) => Err(refuse(format!(
                    "store {} names no credential and this master has none in its environment; name one with \
                     --credential and put it into the masters' credentials directory",
                    store.name
                ))),
                Err(e) => Err(refuse(format!("credentials of store {}: {e}", store.name))),
            };
        }
        self.named(&store.credential)
    }

    fn named(&self, name: &str) -> Result<StoreCredentials, MasterRefusal> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !name.chars().all(plain) || name.starts_with('.') {
            return Err(refuse(format!("credential name {name:?} is not allowed: letters, digits, '-', '_' and '.'")));
        }
        let Some(dir) = &self.credentials_dir else {
            return Err(refuse(format!(
                "credential {name} is asked for, but this master has no credentials directory (credentials_dir)"
            )));
        };
        let one = |file: &str| std::fs::read_to_string(dir.join(name).join(file)).map(|s| s.trim().to_owned());
        if dir.join(name).is_dir() {
            let (access, secret) = (one("access_key"), one("secret_key"));
            let (Ok(access_key), Ok(secret_key)) = (access, secret) else {
                return Err(refuse(format!(
                    "credential {name}: {} needs the files access_key and secret_key",
                    dir.join(name).display()
                )));
            };
            let session_token = one("session_token").unwrap_or_default();
            return Ok(StoreCredentials { access_key, secret_key, session_token, expires_ns: 0 });
        }
        let file = dir.join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&file)
            .map_err(|e| refuse(format!("credential {name}: cannot read {}: {e}", file.display())))?;
        // The parser's message may quote the secret: it is not passed on.
        let s: Secret = toml::from_str(&text).map_err(|_| {
            refuse(format!("credential {name}: {} needs access_key and secret_key as TOML strings", file.display()))
        })?;
        Ok(StoreCredentials {
            access_key: s.access_key,
            secret_key: s.secret_key,
            session_token: s.session_token,
            expires_ns: 0,
        })
    }

    /// Probes a store: is it reachable, does it do what we need, is its prefix ours? The last check claims the prefix for
    /// this cluster when all required ones passed.
    pub async fn probe(&self, store: &StoreRecord, cluster: ClusterId, nonce: u64) -> Vec<ProbeCheck> {
        let failed = |name: &str, detail: String| ProbeCheck { name: name.into(), ok: false, required: true, detail };
        let credentials = match self.credentials(store).await {
            Ok(c) => c,
            Err(r) => return vec![failed("credentials", r.message)],
        };
        let mut checks = probe::probe_record(store, &credentials, nonce).await;
        if probe::verdict(&checks).is_ok() {
            let claimed = match probe::open_prefix(store, &credentials) {
                Ok(s) => probe::claim_marker(s.as_ref(), cluster).await,
                Err(e) => Err(e),
            };
            checks.push(match claimed {
                Ok(()) => {
                    ProbeCheck { name: "marker".into(), ok: true, required: true, detail: format!("ours: {cluster}") }
                }
                Err(e) => failed("marker", e.to_string()),
            });
        }
        checks
    }

    /// Opens a store's space for this cluster.
    pub async fn open(&self, store: &StoreRecord) -> Result<Arc<dyn ObjectStore>, MasterRefusal> {
        let credentials = self.credentials(store).await?;
        object::open(store, &credentials).map_err(|e| refuse(format!("store {}: {e}", store.name)))
    }
}

/// A refusal of a store whose probe failed.
pub fn unusable(store: &StoreRecord, checks: &[ProbeCheck]) -> Option<MasterRefusal> {
    let reasons = probe::verdict(checks).err()?;
    let place = fusefs_cluster_state::store_place(store);
    Some(MasterRefusal {
        error: FsError::Invalid,
        message: format!("store {} ({place}) cannot be used: {reasons}", store.name),
        leader: None,
    })
}
