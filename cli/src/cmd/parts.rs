//! The processes of a supervised mount that people do not start themselves: keeper, adopted supervisor, client.

use super::mount;
use crate::{
    args::{KeeperArgs, MountArgs, PartArgs},
    cluster::{components, credential},
};
use anyhow::{Context, Result};
use fusefs_fuse_client::{
    keeper::{server, sys},
    supervise,
    worker::Worker,
};
use std::{ffi::OsString, os::fd::OwnedFd, path::PathBuf, process::ExitCode};

/// `fusefs keeper --socket PATH`, before anything else of the program runs: the keeper stays small because it never
/// looks at the rest. None = another command.
pub fn keeper_process() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != "keeper" || args.next()? != "--socket" {
        return None;
    }
    let socket = PathBuf::from(args.next()?);
    Some(match keeper(&KeeperArgs { socket }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("fusefs keeper: {e:#}");
            ExitCode::FAILURE
        }
    })
}

/// Serves until the supervisor ends the mount.
pub fn keeper(a: &KeeperArgs) -> Result<()> {
    sys::close_inherited();
    let first = sys::take_stdin().ok().filter(is_socket);
    server::run(&a.socket, first).with_context(|| format!("keeper at {}", a.socket.display()))
}

/// Started by hand it may have a terminal there.
fn is_socket(fd: &OwnedFd) -> bool {
    nix::sys::stat::fstat(fd).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFSOCK)
}

/// A supervisor that the keeper starts in place of one that died.
pub fn adopt(a: &PartArgs, common: Vec<OsString>) -> Result<()> {
    let adopted = supervise::adopt(&a.runtime).with_context(|| format!("taking over {}", a.runtime.display()))?;
    let mount: MountArgs = serde_json::from_slice(adopted.spec()).context("options of the mount")?;
    let ended = adopted.run(mount::plan(&mount, common)?)?;
    mount::told(&ended)
}

/// The client.
pub fn client(a: &PartArgs) -> Result<ExitCode> {
    let worker = match Worker::start(&a.runtime, a.candidate) {
        Ok(worker) => worker,
        Err(e) => return Ok(failed(&e, "starting")),
    };
    let mount: MountArgs = serde_json::from_slice(worker.spec()).context("options of the mount")?;
    let credential = match worker.credential() {
        Some(given) => given,
        None => credential(mount.credential_file())?,
    };
    let settings =
        mount::settings(&mount.volume, &mount.mountpoint, mount.cluster.master.clone(), credential, &mount.options);
    match super::runtime()?.block_on(worker.serve(&settings, components())) {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(e) => Ok(failed(&e, &format!("mounting {} at {}", mount.volume, mount.mountpoint.display()))),
    }
}

fn failed(e: &fusefs_fuse_client::worker::WorkerError, what: &str) -> ExitCode {
    eprintln!("fusefs: {what}: {e}");
    ExitCode::from(e.code())
}
