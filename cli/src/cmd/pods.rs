//! What runs in pods besides the CSI driver, and how the driver's node half makes mounts for them.

use super::mount;
use crate::{
    args::{Cli, Command, FusePodArgs, KeeperArgs, MountArgs, MountdArgs, RecoveryArg},
    cluster::{components, credential},
};
use anyhow::{Context, Result};
use async_trait::async_trait;
use clap::Parser;
use fusefs_csi_driver::{
    Fault, Outcome,
    runtime::{
        MountSpec, MountTokens, hosts,
        pod::{MountMaker, MountOrder},
    },
};
use fusefs_fuse_client::{
    keeper::{server, sys},
    supervise,
};
use std::{ffi::OsString, io, path::PathBuf};

/// Between two tries to listen while the directory does not belong to this user yet: the node plugin gives it away.
const LISTEN_AGAIN_MS: u8 = 200;

/// Serves until killed.
pub fn node_keeper(a: &KeeperArgs) -> Result<()> {
    sys::close_inherited();
    loop {
        match server::run_shared(&a.socket) {
            Err(e) if matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound) => {
                tracing::warn!(socket = %a.socket.display(), "the node plugin has not prepared the directory yet: {e}");
                let _ = nix::poll::poll(&mut [], LISTEN_AGAIN_MS);
            }
            other => return other.with_context(|| format!("keeper at {}", a.socket.display())),
        }
    }
}

/// Serves until SIGTERM.
pub fn fuse_pod(a: &FusePodArgs, common: Vec<OsString>) -> Result<()> {
    sys::close_inherited();
    supervise::host(&a.runtime, common)
        .with_context(|| format!("serving what is handed over at {}", a.runtime.display()))
}

/// Mounts as `fusefs mount` would make them.
pub struct Maker {
    /// Addresses of the masters, as fuse pods reach them.
    pub masters: Vec<String>,
    /// Size of a new journal; None = the default of `fusefs mount`.
    pub journal_mib: Option<u64>,
    /// What a mount may show to the masters.
    pub credentials: Box<dyn Credentials>,
}

/// Gives a mount its proof for the masters.
#[async_trait]
pub trait Credentials: Send + Sync + 'static {
    /// A secret.
    async fn of(&self, spec: &MountSpec) -> Outcome<Vec<u8>>;
}

/// A token for the volume and attach generation only; the cluster's for a mount that no controller has attached.
pub struct Tokens {
    /// Asks for the former.
    pub mount: MountTokens,
    /// File with the latter; None = the cluster has none.
    pub cluster: Option<PathBuf>,
}

#[async_trait]
impl Credentials for Tokens {
    async fn of(&self, spec: &MountSpec) -> Outcome<Vec<u8>> {
        if let Some(token) = self.mount.get(&spec.name, spec.generation).await? {
            return Ok(token.to_vec());
        }
        let read = credential(self.cluster.as_deref());
        read.map(|c| c.to_vec()).map_err(|e| Fault::unavailable(format!("{e:#}")))
    }
}

impl Maker {
    fn arguments(&self, spec: &MountSpec) -> Result<MountArgs, Fault> {
        let mut words: Vec<OsString> = vec!["fusefs".into(), "mount".into(), "--allow-other".into()];
        words.extend(["--master".into(), self.masters.join(",").into()]);
        let chosen = spec.options.arguments.iter().any(|a| a.starts_with("--journal-mib="));
        words.extend(self.journal_mib.filter(|_| !chosen).map(|mib| format!("--journal-mib={mib}").into()));
        words.push(format!("--attach-generation={}", spec.generation).into());
        words.extend(spec.read_only.then(|| "--read-only".into()));
        words.extend(spec.options.arguments.iter().map(OsString::from));
        words.extend(["--".into(), spec.name.clone().into(), spec.staging.clone().into_os_string()]);
        match Cli::try_parse_from(words).map(|cli| cli.command) {
            Ok(Command::Mount(a)) => Ok(*a),
            Ok(_) => Err(Fault::invalid("the options of the volume are no options of a mount")),
            Err(e) => Err(Fault::invalid(format!("the options of the volume: {e}"))),
        }
    }
}

#[async_trait]
impl MountMaker for Maker {
    fn order(&self, spec: &MountSpec) -> Outcome<MountOrder> {
        let a = self.arguments(spec)?;
        let settings = mount::settings(&a.volume, &a.mountpoint, Vec::new(), bytes::Bytes::new(), &a.options).mount;
        let spec = serde_json::to_vec(&a).map_err(|e| Fault::invalid(e.to_string()))?;
        let slots = a.supervision.recovery == RecoveryArg::Slots;
        Ok(MountOrder { settings, spec, journal_bytes: a.supervision.journal_mib << 20, slots })
    }

    async fn credential(&self, spec: &MountSpec) -> Outcome<Vec<u8>> {
        self.credentials.of(spec).await
    }

    fn mount_id(&self) -> u128 {
        components().rng.next_u128()
    }
}

/// Serves until SIGTERM or SIGINT.
pub fn mountd(a: &MountdArgs, common: &[OsString]) -> Result<()> {
    use nix::sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    };
    sys::close_inherited();
    let mut mask = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT].into_iter().for_each(|s| mask.add(s));
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let stop = || matches!(signals.read_signal(), Ok(Some(_)));
    hosts::serve(&a.hosts, &std::env::current_exe()?, common, stop).with_context(|| a.hosts.display().to_string())
}
