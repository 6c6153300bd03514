//! One `fusefs csi` process.

use super::daemon::{Daemon, Wish};
use anyhow::Result;
use fusefs_proto::csi::{ProbeRequest, identity_client::IdentityClient};
use std::{ops::Deref, path::PathBuf};
use tonic::{Code, Status, transport::Channel};

/// A plugin.
pub struct Plugin {
    daemon: Daemon,
    socket: PathBuf,
    kill_file: PathBuf,
}

impl Deref for Plugin {
    type Target = Daemon;
    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl Plugin {
    /// Describes and starts it; `wish` has the arguments of `fusefs csi`.
    pub fn start(mut wish: Wish<'_>) -> Result<Plugin> {
        let socket = wish.dir.join(format!("{}.sock", wish.name));
        let kill_file = wish.dir.join(format!("{}.kill", wish.name));
        let head = ["csi".into(), "--endpoint".into(), format!("unix://{}", socket.display())];
        wish.arguments.splice(0..0, head);
        let daemon = Daemon::new(wish, &[("FUSEFS_CSI_KILL_FILE", &kill_file)])?;
        daemon.revive()?;
        Ok(Plugin { daemon, socket, kill_file })
    }

    /// The next process that reaches this step dies.
    pub fn die_at(&self, step: &str) -> Result<()> {
        let fresh = self.kill_file.with_extension("new");
        std::fs::write(&fresh, step)?;
        Ok(std::fs::rename(fresh, &self.kill_file)?)
    }

    /// Whether the death that was asked for is still to come.
    pub fn armed(&self) -> bool {
        self.kill_file.exists()
    }

    /// No death is asked for any more.
    pub fn disarm(&self) {
        let _ = std::fs::remove_file(&self.kill_file); // it may have died already
    }

    /// A connection.
    pub async fn connect(&self) -> Result<Channel, Status> {
        let uri = format!("unix://{}", self.socket.display());
        let endpoint =
            tonic::transport::Endpoint::from_shared(uri).map_err(|e| Status::new(Code::Internal, e.to_string()))?;
        endpoint.connect().await.map_err(|e| Status::unavailable(format!("no connection: {e}")))
    }

    /// Whether it answers Probe.
    pub async fn answers(&self) -> bool {
        let Ok(channel) = self.connect().await else { return false };
        IdentityClient::new(channel).probe(ProbeRequest {}).await.is_ok()
    }
}
