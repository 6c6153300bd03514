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
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

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
        attach: o.attach_generation,
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
pub fn run(mut a: MountArgs, common: Vec<OsString>) -> Result<()> {
    if a.background {
        return background(&a);
    }
    let credential = credential(a.credential_file())?;
    if a.supervision.no_keeper || !cfg!(target_os = "linux") {
        return super::runtime()?.block_on(in_process(a, credential));
    }
    #[cfg(target_os = "linux")]
    {
        use fusefs_fuse_client::{fuse, keeper, supervise};
        keeper::sys::close_inherited();
        let what = format!("mounting {} at {}", a.volume, a.mountpoint.display());
        // From here on our working directory must not matter: others start us again.
        a.mountpoint = fuse::prepare_point(&a.mountpoint).with_context(|| what.clone())?;
        let absolute = |p: &mut Option<PathBuf>| -> std::io::Result<()> {
            *p = p.as_deref().map(std::path::absolute).transpose()?;
            Ok(())
        };
        absolute(&mut a.cluster.token_file)?;
        absolute(&mut a.mount_token_file)?;
        absolute(&mut a.supervision.state_dir)?;
        let ended = supervise::mount(plan(&a, common)?).with_context(|| what)?;
        return told(&ended);
    }
    #[allow(unreachable_code)] // only where the block above does not exist
    {
        let _ = (&mut a, common);
        bail!("mounts are not supported on this system")
    }
}

/// What the supervisor needs.
#[cfg(target_os = "linux")]
pub fn plan(a: &MountArgs, common: Vec<OsString>) -> Result<fusefs_fuse_client::supervise::Plan> {
    use fusefs_fuse_client::supervise::Plan;
    let settings = settings(&a.volume, &a.mountpoint, a.cluster.master.clone(), Bytes::new(), &a.options);
    let (volume, point, announce) = (a.volume.clone(), a.mountpoint.clone(), a.announce);
    Ok(Plan {
        mount: settings.mount,
        state_dir: a.supervision.state_dir.clone(),
        journal_bytes: a.supervision.journal_mib << 20,
        protect: !a.supervision.no_protect,
        slots: a.supervision.recovery == crate::args::RecoveryArg::Slots,
        watchdog: !a.supervision.no_watchdog,
        exit_with_parent: a.exit_with_parent,
        mount_id: components().rng.next_u128(),
        spec: serde_json::to_vec(a).context("options of the mount")?,
        common_args: common,
        labels: vec![a.volume.clone().into(), a.mountpoint.clone().into_os_string()],
        announce: Box::new(move || {
            eprintln!("{volume} is mounted at {}", point.display());
            if announce {
                println!("{volume} is mounted at {}", point.display());
            }
        }),
    })
}

/// The end of a supervised mount, for the exit code.
#[cfg(target_os = "linux")]
pub fn told(ended: &fusefs_fuse_client::supervise::Ended) -> Result<()> {
    let Some(journal) = &ended.journal else { return Ok(()) };
    bail!(
        "not everything could be written to the object store; it is kept in {}: mount again to write it, or see: \
         fusefs journal list {}",
        journal.display(),
        journal.display()
    )
}

/// One process, no journal.
async fn in_process(a: MountArgs, credential: Bytes) -> Result<()> {
    let settings = settings(&a.volume, &a.mountpoint, a.cluster.master.clone(), credential, &a.options);
    let client = Client::mount(&settings, components())
        .await
        .with_context(|| format!("mounting {} at {}", a.volume, a.mountpoint.display()))?;
    eprintln!("{} is mounted at {}", a.volume, a.mountpoint.display());
    if a.announce {
        println!("{} is mounted at {}", a.volume, a.mountpoint.display());
    }
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

/// Starts the same command without --background and returns when it is mounted. What it says later goes to a file.
fn background(a: &MountArgs) -> Result<()> {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    let log = log_file(a)?;
    let from = std::fs::metadata(&log).map_or(0, |m| m.len());
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&log);
    let file = file.with_context(|| format!("opening the log {}", log.display()))?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(foreground(own_arguments()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(file)
        .process_group(0)
        .spawn()?;
    let Some(stdout) = child.stdout.take() else { bail!("no pipe to the mount process") };
    if let Some(line) = BufReader::new(stdout).lines().find_map(|l| l.ok().filter(|l| l.contains(" is mounted at "))) {
        println!("{line} (pid {}, log {})", child.id(), log.display());
        return Ok(());
    }
    let status = child.wait()?;
    let said = std::fs::read(&log).unwrap_or_default();
    let said = String::from_utf8_lossy(said.get(usize::try_from(from).unwrap_or(0)..).unwrap_or_default()).into_owned();
    bail!("the mount process ended ({status}):\n{}", said.trim())
}

/// Our arguments; under the name `mount.fusefs` they come from mount(8).
fn own_arguments() -> Vec<OsString> {
    let args: Vec<OsString> = std::env::args_os().collect();
    let text: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let helper = text.first().is_some_and(|a| a.rsplit('/').next() == Some("mount.fusefs"));
    let own = helper.then(|| super::from_mount_helper(text.get(1..).unwrap_or_default()).unwrap_or_default());
    own.map_or(args, |own| own.into_iter().map(OsString::from).collect())
}

/// The arguments behind the program's name of the same mount in the foreground that says when it is mounted. What follows
/// `--` is no option.
fn foreground(args: Vec<OsString>) -> Vec<OsString> {
    let mut args = args.into_iter().skip(1);
    let mut out: Vec<OsString> =
        args.by_ref().take_while(|a| a != "--").filter(|a| a != "--background" && a != "-b").collect();
    out.extend(["--announce".into(), "--".into()]);
    out.extend(args);
    out
}

/// Where a mount in the background writes its messages.
#[cfg(target_os = "linux")]
fn log_file(a: &MountArgs) -> Result<PathBuf> {
    let dir = match &a.supervision.state_dir {
        Some(dir) => dir.clone(),
        None => {
            let point = a.mountpoint.canonicalize().unwrap_or_else(|_| a.mountpoint.clone());
            fusefs_fuse_client::supervise::dirs::default_state(&point)?
        }
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("creating the state directory {}", dir.display()))?;
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    Ok(dir.join("mount.log"))
}

/// Where a mount in the background writes its messages.
#[cfg(not(target_os = "linux"))]
fn log_file(_: &MountArgs) -> Result<PathBuf> {
    Ok("/dev/null".into())
}

/// Unmounts a path, dead or alive. A regular unmount returns when everything is flushed and the mount's processes are
/// gone.
pub fn umount(a: &UmountArgs) -> Result<()> {
    #[cfg(target_os = "linux")]
    let supervisor = supervisor_of(&a.mountpoint);
    let unmounter = Unmounter::new(&a.mountpoint);
    let result = if a.lazy { unmounter.detach() } else { unmounter.unmount() };
    result.with_context(|| {
        format!(
            "unmounting {}; files open there? see: fuser -vm {}, or use --lazy",
            a.mountpoint.display(),
            a.mountpoint.display()
        )
    })?;
    #[cfg(target_os = "linux")]
    if let Some(supervisor) = supervisor.filter(|_| !a.lazy) {
        let ended = fusefs_fuse_client::supervise::wait_for_end(&supervisor, FLUSH_TIMEOUT + Duration::from_secs(30));
        ensure!(ended, "unmounted, but the last data is still being written; see: fusefs journal list");
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn supervisor_of(mountpoint: &Path) -> Option<fusefs_fuse_client::keeper::Channel> {
    use fusefs_fuse_client::{fuse::untouched_point, keeper::Channel, supervise::dirs};
    let runtime = dirs::find(&untouched_point(mountpoint)).pop()?;
    Channel::connect(&dirs::supervisor_socket(&runtime)).ok()
}

/// Swaps the client of a mount.
#[cfg(target_os = "linux")]
pub fn upgrade(a: &crate::args::UpgradeArgs) -> Result<()> {
    use fusefs_fuse_client::{fuse::untouched_point, supervise};
    let point = untouched_point(&a.mountpoint);
    let runtime = supervise::dirs::find(&point).pop().with_context(|| {
        format!(
            "{} is no mount of this user with a keeper; `fusefs mount` without --no-keeper makes one",
            point.display()
        )
    })?;
    let binary = a.binary.clone().map_or_else(std::env::current_exe, Ok)?;
    let before = supervise::processes(&runtime).client;
    supervise::request_upgrade(&runtime, &binary, Duration::from_secs(u64::from(a.timeout)))
        .with_context(|| format!("upgrading {} to {}", point.display(), binary.display()))?;
    let after = supervise::processes(&runtime).client;
    let pid = |p: Option<u32>| p.map_or_else(|| "?".to_owned(), |p| p.to_string());
    println!("{}: client {} replaced by {} ({})", point.display(), pid(before), pid(after), binary.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::foreground;

    #[test]
    fn a_background_mount_starts_the_same_in_the_foreground() {
        let run = |line: &str| {
            let out = foreground(line.split(' ').map(Into::into).collect());
            out.iter().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(run("fusefs mount -b vol /d --read-only"), "mount vol /d --read-only --announce --");
        assert_eq!(run("fusefs mount --background -- vol -b"), "mount --announce -- vol -b");
        assert_eq!(run("fusefs mount --background vol -- --background"), "mount vol --announce -- --background");
    }
}
