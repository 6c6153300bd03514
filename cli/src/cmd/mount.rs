//! `fusefs mount` and `fusefs umount`.

use super::serve::shutdown;
use crate::{
    args::{MountArgs, MountOptions, UmountArgs},
    cluster::{components, credential},
};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use fusefs_fuse_client::{
    Client, ClientSettings,
    fuse::{MountSettings, Unmounter},
};
use std::{path::Path, time::Duration};

/// How long the end of a mount waits for data that is not in the store yet.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// Settings of a client from the command line.
pub fn settings(
    volume: &str,
    mountpoint: &Path,
    masters: Vec<String>,
    credential: Bytes,
    o: &MountOptions,
) -> ClientSettings {
    let mut mount = MountSettings::new(mountpoint, format!("fusefs#{volume}"));
    mount.read_only = o.read_only;
    mount.allow_other = o.allow_other.then_some(true);
    mount.readers = o.threads.max(1);
    mount.io_timeout = (o.io_timeout > 0).then(|| Duration::from_secs(o.io_timeout));
    let data = fusefs_data_path::Settings {
        cache_bytes: o.cache_mib << 20,
        dirty_bytes_max: o.write_buffer_mib << 20,
        close_timeout: Duration::from_secs(o.close_timeout.max(1)),
        io_timeout: mount.io_timeout,
        ..fusefs_data_path::Settings::default()
    };
    ClientSettings {
        masters,
        credential,
        volume: volume.to_owned(),
        name: format!("{} pid {} at {}", host_name(), std::process::id(), mountpoint.display()),
        mount,
        validity: Duration::from_millis(o.attr_validity),
        cache_inodes: o.cache_inodes,
        data,
        flush_timeout: FLUSH_TIMEOUT,
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "host".into(), |s| s.trim().to_owned())
}

/// Mounts and serves until unmounted or told to end.
pub async fn run(a: MountArgs) -> Result<()> {
    if a.background {
        return background();
    }
    let credential = credential(a.cluster.token_file.as_deref())?;
    let settings = settings(&a.volume, &a.mountpoint, a.cluster.master.clone(), credential, &a.options);
    let client = Client::mount(&settings, components())
        .await
        .with_context(|| format!("mounting {} at {}", a.volume, a.mountpoint.display()))?;
    eprintln!("{} is mounted at {}", a.volume, a.mountpoint.display());
    serve(client, shutdown(a.exit_with_parent)).await
}

/// Serves a mount until it is unmounted; `end` asks for that.
pub async fn serve(client: Client, end: impl Future<Output = ()>) -> Result<()> {
    let unmounter = client.unmounter();
    let mut running = std::pin::pin!(client.run());
    let ended = tokio::select! {
        biased;
        ended = &mut running => ended,
        () = end => {
            if let Some(unmounter) = unmounter {
                tokio::task::spawn_blocking(move || unmount(&unmounter)).await??;
            }
            running.await
        }
    };
    ensure!(ended.unflushed == 0, "{} bytes could not be written to the object store and are lost", ended.unflushed);
    Ok(())
}

/// Regular unmount; while it is busy the mount is detached, and open files keep working until they are closed.
fn unmount(unmounter: &Unmounter) -> Result<()> {
    if let Err(error) = unmounter.unmount() {
        tracing::warn!(%error, "the mount is busy; detaching it");
        unmounter.detach().context("detaching the mount")?;
    }
    Ok(())
}

/// Starts the same command without --background and returns when it is mounted.
fn background() -> Result<()> {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::CommandExt;
    let args = std::env::args().skip(1).filter(|a| a != "--background" && a != "-b");
    let mut child = std::process::Command::new(std::env::current_exe()?)
        .args(args)
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .process_group(0)
        .spawn()?;
    let Some(stderr) = child.stderr.take() else { bail!("no pipe to the mount process") };
    for line in BufReader::new(stderr).lines() {
        let line = line?;
        if line.contains(" is mounted at ") {
            println!("{line} (pid {})", child.id());
            return Ok(());
        }
        eprintln!("{line}");
    }
    bail!("the mount process ended: {}", child.wait()?)
}

/// Unmounts a path, dead or alive.
pub fn umount(a: &UmountArgs) -> Result<()> {
    let unmounter = Unmounter::new(&a.mountpoint);
    let result = if a.lazy { unmounter.detach() } else { unmounter.unmount() };
    result.with_context(|| {
        format!(
            "unmounting {}; files open there? see: fuser -vm {}, or use --lazy",
            a.mountpoint.display(),
            a.mountpoint.display()
        )
    })
}
