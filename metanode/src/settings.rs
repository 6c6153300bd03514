//! Settings of one metanode. The CLI resolves defaults < file < environment < flags into this struct.

use crate::StartError;
use fusefs_types::{auth::ClusterToken, limits};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Settings of one metanode; every field has a default except `data_dir`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Address of the one port (gRPC, raft, /healthz, /readyz, /metrics).
    #[serde(default = "default_listen")]
    pub listen: String,
    /// `host:port` that others dial; empty = the bound address.
    #[serde(default)]
    pub advertise: String,
    /// Failure domain for anti-affinity; empty = the host part of the advertised address.
    #[serde(default)]
    pub host: String,
    /// Masters, `host:port` each.
    #[serde(default)]
    pub masters: Vec<String>,
    /// Directory of the log, checkpoints, blobs and the node's identity.
    pub data_dir: PathBuf,
    /// File with the cluster token; required off loopback.
    #[serde(default)]
    pub cluster_token_file: Option<PathBuf>,
    /// Bytes of disk it may use, as reported to the master; 0 = not limited.
    #[serde(default)]
    pub capacity: u64,
    /// Bytes of memory it may use, as reported to the master; 0 = not limited.
    #[serde(default)]
    pub memory: u64,
    /// Milliseconds between heartbeats to the master.
    #[serde(default = "default_heartbeat_ms")]
    pub heartbeat_ms: u64,
    /// Milliseconds between two rounds of background work (recovery, orphans, dead objects) without a wake-up.
    #[serde(default = "default_background_ms")]
    pub background_ms: u64,
    /// Milliseconds that the body of a dead object stays in the store (lease grace, PROTOCOL 32).
    #[serde(default = "default_object_grace_ms")]
    pub object_grace_ms: u64,
    /// Bytes of one log segment.
    #[serde(default = "default_log_segment_bytes")]
    pub log_segment_bytes: u64,
    /// A checkpoint is cut when this many log bytes would have to be replayed.
    #[serde(default = "default_checkpoint_bytes")]
    pub checkpoint_bytes: u64,
    /// Bytes of one blob segment.
    #[serde(default = "default_blob_segment_bytes")]
    pub blob_segment_bytes: u64,
    /// For tests of the tests.
    #[doc(hidden)]
    #[serde(skip)]
    pub planted: Planted,
}

/// Bugs that the simulation plants on purpose, to see that its oracles notice them. All off in production.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Planted {
    /// In raft.
    pub raft: fusefs_raft_host::Planted,
    /// In the state machine.
    pub state: fusefs_meta_state::txn::Faults,
}

fn default_listen() -> String {
    "127.0.0.1:7400".into()
}
fn default_heartbeat_ms() -> u64 {
    1000
}
fn default_background_ms() -> u64 {
    250
}
fn default_object_grace_ms() -> u64 {
    limits::OBJECT_GRACE_MS
}
fn default_log_segment_bytes() -> u64 {
    limits::LOG_SEGMENT_BYTES
}
fn default_checkpoint_bytes() -> u64 {
    limits::CHECKPOINT_LOG_BYTES
}
fn default_blob_segment_bytes() -> u64 {
    limits::BLOB_SEGMENT_BYTES
}

impl Settings {
    /// Defaults for a data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Settings {
        Settings {
            listen: default_listen(),
            advertise: String::new(),
            host: String::new(),
            masters: Vec::new(),
            data_dir: data_dir.into(),
            cluster_token_file: None,
            capacity: 0,
            memory: 0,
            heartbeat_ms: default_heartbeat_ms(),
            background_ms: default_background_ms(),
            object_grace_ms: default_object_grace_ms(),
            log_segment_bytes: default_log_segment_bytes(),
            checkpoint_bytes: default_checkpoint_bytes(),
            blob_segment_bytes: default_blob_segment_bytes(),
            planted: Planted::default(),
        }
    }
}

impl Settings {
    /// The cluster token, if a file is configured.
    pub(crate) fn token(&self) -> Result<Option<ClusterToken>, StartError> {
        let Some(file) = &self.cluster_token_file else { return Ok(None) };
        let bytes = std::fs::read(file).map_err(|e| StartError::Token(file.clone(), e))?;
        ClusterToken::new(&bytes).map(Some).map_err(|_| {
            StartError::Settings(format!(
                "the cluster token in {} must be 16 to 1024 printable ASCII characters",
                file.display()
            ))
        })
    }
}

/// Off loopback nobody serves without a token (PROTOCOL 50).
pub(crate) fn token_needed(listen: &str) -> StartError {
    StartError::Settings(format!(
        "{listen} is not a loopback address: a cluster token is required there (cluster_token_file)"
    ))
}
