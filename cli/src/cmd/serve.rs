//! `fusefs master` and `fusefs metanode`.

use crate::{
    args::{MasterArgs, MetanodeArgs},
    resolve::{Flags, settings},
};
use anyhow::Result;
use fusefs_local_cluster::{SystemClock, SystemRng};
use std::{io::Read, sync::Arc};
use tokio::sync::oneshot;

/// Settings of a master that the environment may set beside those with a flag.
const MASTER_ENV: &[&str] = &[
    "advertise",
    "lease_ms",
    "session_ttl_ms",
    "sweep_grace_ms",
    "second_sweep_ms",
    "background_ms",
    "node_silent_ms",
];
/// The same for a metanode.
const METANODE_ENV: &[&str] = &["advertise", "capacity", "memory", "heartbeat_ms", "background_ms", "object_grace_ms"];

/// Runs a master until SIGTERM or Ctrl-C.
pub async fn master(a: MasterArgs) -> Result<()> {
    let flags = Flags::default()
        .set("listen", a.listen)
        .path("data_dir", a.data_dir.as_deref())
        .list("peers", &a.peers)
        .path("cluster_token_file", a.token_file.as_deref())
        .path("credentials_dir", a.credentials_dir.as_deref());
    let settings: fusefs_master::Settings = settings(a.config.as_deref(), MASTER_ENV, flags.table())?;
    let components = fusefs_master::ServerComponents { clock: Arc::new(SystemClock), rng: Arc::new(SystemRng) };
    let server = fusefs_master::Server::bind(settings, components).await?;
    server.run(shutdown(a.exit_with_parent)).await?;
    Ok(())
}

/// Runs a metanode until SIGTERM or Ctrl-C.
pub async fn metanode(a: MetanodeArgs) -> Result<()> {
    let flags = Flags::default()
        .set("listen", a.listen)
        .path("data_dir", a.data_dir.as_deref())
        .list("masters", &a.master)
        .path("cluster_token_file", a.token_file.as_deref())
        .set("host", a.host);
    let mut settings: fusefs_metanode::Settings = settings(a.config.as_deref(), METANODE_ENV, flags.table())?;
    plant(&mut settings);
    let components = fusefs_metanode::ServerComponents { clock: Arc::new(SystemClock), rng: Arc::new(SystemRng) };
    let server = fusefs_metanode::Server::bind(settings, components).await?;
    server.run(shutdown(a.exit_with_parent)).await?;
    Ok(())
}

/// Bugs for tests of the tests (`FUSEFS_PLANT=no-dedupe,no-fence,no-clip`): never in a release build.
fn plant(settings: &mut fusefs_metanode::Settings) {
    let Some(list) = std::env::var_os("FUSEFS_PLANT").filter(|_| cfg!(debug_assertions)) else { return };
    let state = &mut settings.planted.state;
    for bug in list.to_string_lossy().split(',') {
        match bug {
            "no-dedupe" => state.no_dedupe = true,
            "no-fence" => state.no_fence = true,
            "no-clip" => state.no_clip = true,
            _ => {}
        }
    }
}

/// Resolves at SIGTERM, SIGINT or, when asked for, the end of standard input (the parent died).
pub async fn shutdown(with_parent: bool) {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut s) => drop(s.recv().await),
            Err(error) => {
                tracing::error!(%error, "signals cannot be handled; end this process with SIGKILL");
                futures::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        biased;
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::interrupt()) => {}
        () = parent_gone(), if with_parent => {}
    }
}

async fn parent_gone() {
    let (gone, wait) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let mut byte = [0; 64];
        while matches!(std::io::stdin().read(&mut byte), Ok(n) if n > 0) {}
        let _ = gone.send(());
    });
    let _ = wait.await;
}
