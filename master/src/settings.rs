//! Settings of one master. The CLI resolves defaults < file < environment < flags into this struct.

use fusefs_types::{auth::ClusterToken, limits};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Settings of one master; every field has a default except `data_dir`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Address of the one port (gRPC, HTTP/JSON, raft).
    #[serde(default = "default_listen")]
    pub listen: String,
    /// `host:port` that others dial; it must be one of `peers`. Empty = `listen`.
    #[serde(default)]
    pub advertise: String,
    /// All masters, this one included, in the same order everywhere. Empty = this one alone.
    #[serde(default)]
    pub peers: Vec<String>,
    /// Directory of the log and checkpoints.
    pub data_dir: PathBuf,
    /// File with the cluster token; required off loopback.
    #[serde(default)]
    pub cluster_token_file: Option<PathBuf>,
    /// Directory of credentials for object stores: `NAME.toml` with access_key, secret_key and optionally session_token,
    /// or a directory `NAME` with one file for each (a mounted Kubernetes Secret).
    #[serde(default)]
    pub credentials_dir: Option<PathBuf>,
    /// Milliseconds of a session's lease.
    #[serde(default = "default_lease_ms")]
    pub lease_ms: u64,
    /// Milliseconds after which a session that nobody renews is ended.
    #[serde(default = "default_session_ttl_ms")]
    pub session_ttl_ms: u64,
    /// Milliseconds between the end of a session and the first look for unreferenced objects.
    #[serde(default = "default_sweep_grace_ms")]
    pub sweep_grace_ms: u64,
    /// Milliseconds between the end of a session and the second look.
    #[serde(default = "default_second_sweep_ms")]
    pub second_sweep_ms: u64,
    /// Milliseconds between two rounds of background work without a wake-up.
    #[serde(default = "default_background_ms")]
    pub background_ms: u64,
    /// A metanode that was silent for longer counts as dead (3 heartbeats).
    #[serde(default = "default_node_silent_ms")]
    pub node_silent_ms: u64,
    /// A volume being created is placed anew when a node has not answered for this long.
    #[serde(default = "default_replace_after_ms")]
    pub replace_after_ms: u64,
    /// A partition with fewer free inode numbers than this gets another range.
    #[serde(default = "default_range_low_water")]
    pub range_low_water: u64,
}

fn default_listen() -> String {
    "127.0.0.1:7300".into()
}
fn default_lease_ms() -> u64 {
    limits::LEASE_MS
}
fn default_session_ttl_ms() -> u64 {
    limits::SESSION_TTL_MS
}
fn default_sweep_grace_ms() -> u64 {
    3600 * 1000
}
fn default_second_sweep_ms() -> u64 {
    24 * 3600 * 1000
}
fn default_background_ms() -> u64 {
    500
}
fn default_node_silent_ms() -> u64 {
    3000
}
fn default_replace_after_ms() -> u64 {
    8000
}
fn default_range_low_water() -> u64 {
    limits::RANGE_INOS / 8
}

/// Why a master does not start with its settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Text for people.
    #[error("{0}")]
    Invalid(String),
    /// The token file.
    #[error("cannot read the cluster token {0}: {1}")]
    Token(PathBuf, std::io::Error),
}

impl Settings {
    /// Defaults for a data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Settings {
        Settings {
            listen: default_listen(),
            advertise: String::new(),
            peers: Vec::new(),
            data_dir: data_dir.into(),
            cluster_token_file: None,
            credentials_dir: None,
            lease_ms: default_lease_ms(),
            session_ttl_ms: default_session_ttl_ms(),
            sweep_grace_ms: default_sweep_grace_ms(),
            second_sweep_ms: default_second_sweep_ms(),
            background_ms: default_background_ms(),
            node_silent_ms: default_node_silent_ms(),
            replace_after_ms: default_replace_after_ms(),
            range_low_water: default_range_low_water(),
        }
    }

    /// The address that others dial.
    pub fn address(&self) -> &str {
        if self.advertise.is_empty() { &self.listen } else { &self.advertise }
    }

    /// All masters in order, and which of them this one is.
    pub fn masters(&self) -> Result<(Vec<String>, usize), SettingsError> {
        let own = self.address().to_owned();
        if self.peers.is_empty() {
            return Ok((vec![own], 0));
        }
        let repeated = (1..self.peers.len()).any(|i| self.peers[..i].contains(&self.peers[i]));
        match self.peers.iter().position(|p| *p == own) {
            Some(index) if !repeated => Ok((self.peers.clone(), index)),
            Some(_) => Err(SettingsError::Invalid(format!("a master is listed twice in peers: {:?}", self.peers))),
            None => Err(SettingsError::Invalid(format!(
                "this master's address {own} is not among the peers {:?}; set `advertise` to the one that is this master",
                self.peers
            ))),
        }
    }

    /// The cluster token, if a file is configured. Without one the master must listen on loopback only.
    pub fn token(&self) -> Result<Option<ClusterToken>, SettingsError> {
        let Some(file) = &self.cluster_token_file else {
            return if loopback(&self.listen) {
                Ok(None)
            } else {
                Err(SettingsError::Invalid(format!(
                    "{} is not a loopback address: a cluster token is required there (cluster_token_file)",
                    self.listen
                )))
            };
        };
        let bytes = std::fs::read(file).map_err(|e| SettingsError::Token(file.clone(), e))?;
        ClusterToken::new(&bytes).map(Some).map_err(|_| {
            SettingsError::Invalid(format!(
                "the cluster token in {} must be 16 to 1024 printable characters without spaces",
                file.display()
            ))
        })
    }
}

/// Whether `host:port` is a loopback address (a name other than `localhost` is not).
pub fn loopback(listen: &str) -> bool {
    let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_goes_without_a_token() {
        for (listen, ok) in [
            ("127.0.0.1:1", true),
            ("[::1]:1", true),
            ("localhost:1", true),
            ("0.0.0.0:1", false),
            ("10.0.0.1:1", false),
            ("master-0:1", false),
        ] {
            let s = Settings { listen: listen.into(), ..Settings::new("/nowhere") };
            assert_eq!(s.token().is_ok(), ok, "{listen}");
        }
    }

    #[test]
    fn finds_itself_among_the_peers() {
        let mut s = Settings { listen: "0.0.0.0:1".into(), ..Settings::new("/nowhere") };
        s.peers = vec!["a:1".into(), "b:1".into()];
        assert!(s.masters().is_err());
        s.advertise = "b:1".into();
        assert_eq!(s.masters().unwrap().1, 1);
        s.peers.push("b:1".into());
        assert!(s.masters().is_err());
    }
}
