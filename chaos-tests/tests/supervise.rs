//! The crash-proof mount as processes: any one of keeper, supervisor and client is killed, upgraded, stopped; applications
//! see a pause.

use anyhow::{Context, Result, ensure};
use fusefs_chaos_tests::{
    replay::mounted::metric,
    stack::{Client, Stack, eventually, is_mounted},
};
use fusefs_fuse_client::{
    keeper::{Channel, Item, protocol::ITEM_BYTES_MAX},
    supervise::{ClientRecord, Processes, dirs},
    worker::STEPS,
};
use fusefs_local_cluster::{Shape, SystemRng};
use fusefs_meta_client::{GrpcTransport, MasterClient, Settings};
use fusefs_types::{
    auth::ClusterToken,
    cluster::{MasterCall, MasterReply},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::fs::{AtFlags, CWD};
use std::{
    fs,
    io::{Read, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

const ONE: Shape = Shape { masters: 1, metanodes: 1 };
const SOON: Duration = Duration::from_secs(20);

fn stack(volume: &str, options: &[&str], env: &[(&str, &str)]) -> Result<Stack> {
    let mut stack = Stack::start(ONE)?;
    stack.fusefs(&["volume", "create", volume])?;
    stack.mount_supervised(volume, &[&["--no-protect"], options].concat(), env)?;
    wait_complete(&stack.clients[0])?;
    Ok(stack)
}

/// All three run.
fn wait_complete(client: &Client) -> Result<Processes> {
    let mut found = Processes::default();
    eventually(SOON, || {
        found = client.processes();
        Ok(found.keeper.is_some() && found.supervisor.is_some() && found.client.is_some())
    })
    .with_context(|| format!("{found:?}: {}", client.child.log_tail()))?;
    Ok(found)
}

fn sigkill(pid: Option<u32>) -> Result<()> {
    Ok(kill(Pid::from_raw(pid.context("not running")? as i32), Signal::SIGKILL)?)
}

/// Something that an application does all the time and that notices every error.
struct Application {
    held: fs::File,
    path: std::path::PathBuf,
    round: u64,
}

impl Application {
    fn start(dir: &Path) -> Result<Application> {
        let path = dir.join("held");
        let held = fs::File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
        held.write_all_at(&0u64.to_le_bytes(), 0)?;
        held.sync_all()?;
        Ok(Application { held, path, round: 0 })
    }
    /// Reads back by both ways, writes, makes and removes names.
    fn work(&mut self) -> Result<()> {
        let mut bytes = [0; 8];
        self.held.read_exact_at(&mut bytes, 0).context("reading the held file")?;
        ensure!(u64::from_le_bytes(bytes) == self.round, "{} instead of {}", u64::from_le_bytes(bytes), self.round);
        let other = fs::read(&self.path).context("reading by name")?;
        ensure!(other.get(..8) == Some(&bytes[..]), "by name: {other:?}");
        self.round += 1;
        self.held.write_all_at(&self.round.to_le_bytes(), 0).context("writing the held file")?;
        self.held.sync_all().context("fsync of the held file")?;
        let name = self.path.with_file_name(format!("n{}", self.round));
        let mut fresh = fs::File::options().write(true).create_new(true).open(&name).context("O_EXCL create")?;
        fresh.write_all(b"fresh")?;
        drop(fresh);
        ensure!(fs::read(&name)? == b"fresh");
        fs::remove_file(&name).context("unlink")?;
        Ok(())
    }
}

#[test]
fn any_one_process_may_be_killed_and_applications_see_a_pause() -> Result<()> {
    let stack = stack("crash", &[], &[])?;
    let client = &stack.clients[0];
    let mut app = Application::start(stack.at(0))?;
    for round in 0..4 {
        for (name, pick) in [
            ("keeper", (|p: &Processes| p.keeper) as fn(&Processes) -> Option<u32>),
            ("supervisor", |p| p.supervisor),
            ("client", |p| p.client),
        ] {
            let before = wait_complete(client)?;
            sigkill(pick(&before))?;
            app.work().with_context(|| format!("round {round}: {name} killed: {}", client.child.log_tail()))?;
            eventually(SOON, || {
                let now = client.processes();
                Ok(pick(&now).is_some() && pick(&now) != pick(&before))
            })
            .with_context(|| format!("round {round}: {name} does not come back: {}", client.child.log_tail()))?;
            let after = wait_complete(client)?;
            ensure!((0..3).filter(|i| pid(&before, *i) != pid(&after, *i)).count() == 1, "{before:?} {after:?}");
            app.work()?;
        }
    }
    drop(app);
    ends_cleanly(&stack, 0)
}

fn pid(p: &Processes, i: usize) -> Option<u32> {
    [p.keeper, p.supervisor, p.client][i]
}

/// The keeper is killed, and the supervisor while it hands everything to the next keeper, or just before or after.
#[test]
fn the_supervisor_may_die_in_the_middle_of_a_hand_over() -> Result<()> {
    const GAPS_MS: [u64; 8] = [0, 2, 5, 10, 15, 20, 30, 60];
    let stack = stack("handover", &[], &[])?;
    let client = &stack.clients[0];
    let mut app = Application::start(stack.at(0))?;
    for gap in GAPS_MS {
        let before = wait_complete(client)?;
        sigkill(before.keeper)?;
        let _ = nix::poll::poll(&mut [], u16::try_from(gap)?); // the moment is what is tried here
        sigkill(before.supervisor)?;
        // Nothing is whole again before somebody watches over the next one, too.
        app.work().with_context(|| format!("{gap} ms: {}", client.child.log_tail()))?;
        let after = wait_complete(client).with_context(|| format!("{gap} ms"))?;
        sigkill(after.client)?;
        app.work().with_context(|| format!("{gap} ms, client killed: {}", client.child.log_tail()))?;
    }
    drop(app);
    ends_cleanly(&stack, 0)
}

#[test]
fn a_stopped_keeper_does_not_stop_a_new_client() -> Result<()> {
    let stack = stack("stoppedkeeper", &[], &[])?;
    let client = &stack.clients[0];
    let mut app = Application::start(stack.at(0))?;
    let keeper = Pid::from_raw(wait_complete(client)?.keeper.context("keeper")? as i32);
    kill(keeper, Signal::SIGSTOP)?;
    let runtime = dirs::find(&client.mountpoint).pop().context("no runtime directory")?;
    for round in 0..3 {
        let record = Channel::connect(&dirs::supervisor_socket(&runtime))?.get("client")?.context("no client")?;
        let record = ClientRecord::decode(&record.bytes).context("client")?;
        sigkill(Some(record.pid))?;
        let start = tokio::time::Instant::now();
        app.work().with_context(|| format!("round {round}: {}", client.child.log_tail()))?;
        ensure!(start.elapsed() < SOON, "round {round}: {:?}", start.elapsed());
    }
    kill(keeper, Signal::SIGCONT)?;
    app.work()?;
    drop(app);
    ends_cleanly(&stack, 0)
}

/// A disk that refuses even the journal's header costs the journal, not the mount, and the client is not started again and
/// again. What was in the journal only is neither lost nor passed over: the mount is poisoned until the next one writes it.
#[test]
fn a_journal_whose_header_is_refused_stops_only_a_mount_that_needs_it() -> Result<()> {
    const PENDING: usize = 100_000;
    let mut stack = stack("header", &[], &[("FUSEFS_PLANT", "journal-header")])?;
    let mut app = Application::start(stack.at(0))?;
    for round in 0..2 {
        sigkill(wait_complete(&stack.clients[0])?.client)?;
        app.work().with_context(|| format!("round {round}: {}", stack.clients[0].child.log_tail()))?;
        let serving = wait_complete(&stack.clients[0])?.client;
        for _ in 0..5 {
            app.work()?;
        }
        ensure!(wait_complete(&stack.clients[0])?.client == serving, "the client was started again");
    }
    drop(app);
    ends_cleanly(&stack, 0)?;

    stack.clients[0].start()?;
    let before = wait_complete(&stack.clients[0])?.client;
    let path = stack.at(0).join("pending");
    let file = fs::File::create(&path)?;
    file.write_all_at(&[7; PENDING], 0)?;
    sigkill(before)?;
    let poisoned = || Ok(fs::metadata(&path).is_err_and(|e| e.raw_os_error() == Some(libc::ESTALE)));
    eventually(SOON, poisoned).with_context(|| stack.clients[0].child.log_tail())?;
    let said = wait_complete(&stack.clients[0])?.client;
    for _ in 0..20 {
        ensure!(poisoned()?, "it came back to life");
    }
    ensure!(wait_complete(&stack.clients[0])?.client == said, "the client was started again");
    drop(file);
    let point = stack.at(0).to_str().context("path")?.to_owned();
    // It says that data is left.
    stack.fusefs_raw(&["umount", &point])?;
    ensure!(!is_mounted(stack.at(0)), "still mounted");
    eventually(SOON, || Ok(stack.clients[0].processes() == Processes::default()))?;
    stack.clients[0].start()?;
    wait_complete(&stack.clients[0])?;
    ensure!(fs::read(&path)? == vec![7; PENDING], "{}", stack.clients[0].child.log_tail());
    ends_cleanly(&stack, 0)
}

/// `fusefs umount` returns when everything is in the store and everybody is gone.
fn ends_cleanly(stack: &Stack, i: usize) -> Result<()> {
    let client = &stack.clients[i];
    let last = wait_complete(client)?;
    // Other tests fork at any moment, and until their exec the child holds our files, too: busy for a millisecond.
    let point = stack.at(i).to_str().context("path")?;
    eventually(SOON, || stack.fusefs(&["umount", point]).map(|_| true))?;
    ensure!(!is_mounted(stack.at(i)), "still mounted");
    eventually(SOON, || Ok((0..3).all(|i| pid(&last, i).is_none_or(|p| !runs(p)))))
        .with_context(|| format!("left: {last:?}: {}", client.child.log_tail()))?;
    ensure!(client.processes() == Processes::default(), "the runtime directory is still there");
    ensure!(!stack.state_dir(i).join("journal.0").exists(), "the journal of a clean end is removed");
    Ok(())
}

fn runs(pid: u32) -> bool {
    fusefs_fuse_client::keeper::sys::start_time(pid).is_some()
}

#[test]
fn the_keeper_stays_below_5_mib() -> Result<()> {
    let stack = stack("small", &[], &[])?;
    let mut app = Application::start(stack.at(0))?;
    for _ in 0..5 {
        let before = wait_complete(&stack.clients[0])?.client;
        sigkill(before)?;
        app.work()?;
    }
    let keeper = wait_complete(&stack.clients[0])?.keeper.context("no keeper")?;
    let mut last = String::new();
    // Right after work it may hold a few pages of the program more.
    eventually(SOON, || {
        let status = fs::read_to_string(format!("/proc/{keeper}/status"))?;
        last = status.lines().filter(|l| l.starts_with("VmRSS") || l.starts_with("Rss")).collect::<Vec<_>>().join("; ");
        let rss = status.lines().find(|l| l.starts_with("VmRSS")).and_then(|l| l.split_whitespace().nth(1));
        Ok(rss.and_then(|n| n.parse::<u64>().ok()).context("VmRSS")? < 5 * 1024)
    })
    .with_context(|| last.clone())?;
    println!("{last}");
    drop(app);
    ends_cleanly(&stack, 0)
}

#[test]
fn a_client_may_die_at_every_step_of_its_start() -> Result<()> {
    let tmp = fusefs_chaos_tests::stack::scratch()?;
    let file = tmp.path().join("die");
    let env = [("FUSEFS_DIE_FILE", file.to_str().context("path")?)];
    // The very first start, too, dies at each step once.
    fs::write(&file, "session 1")?;
    let stack = stack("steps", &[], &env)?;
    let client = &stack.clients[0];
    let mut app = Application::start(stack.at(0))?;
    ensure!(fs::read_to_string(&file)? == "session 0", "the first start did not die");
    for step in STEPS {
        fs::write(&file, format!("{} 2", step.name()))?;
        sigkill(wait_complete(client)?.client)?;
        app.work().with_context(|| format!("died after {}: {}", step.name(), client.child.log_tail()))?;
        eventually(SOON, || Ok(fs::read_to_string(&file)?.ends_with(" 0")))
            .with_context(|| format!("nobody died after {}", step.name()))?;
        app.work()?;
    }
    drop(app);
    ends_cleanly(&stack, 0)
}

#[test]
fn an_upgrade_under_load_swaps_the_client_and_a_bad_one_is_rolled_back() -> Result<()> {
    let tmp = fusefs_chaos_tests::stack::scratch()?;
    let die = tmp.path().join("die");
    let stack = stack("upgrade", &[], &[("FUSEFS_DIE_FILE", die.to_str().context("path")?)])?;
    let point = stack.at(0).to_str().context("path")?.to_owned();
    let mut app = Application::start(stack.at(0))?;
    let stop = Arc::new(AtomicBool::new(false));
    let rounds = Arc::new(AtomicU64::new(0));
    let load = {
        let (stop, rounds) = (stop.clone(), rounds.clone());
        std::thread::spawn(move || -> Result<()> {
            while !stop.load(Ordering::Acquire) {
                app.work()?;
                rounds.fetch_add(1, Ordering::AcqRel);
            }
            Ok(())
        })
    };
    let progress = || {
        let from = rounds.load(Ordering::Acquire);
        eventually(SOON, || Ok(rounds.load(Ordering::Acquire) > from + 1))
    };
    let new = tmp.path().join("fusefs-new");
    fs::copy(stack.program(), &new)?;
    let before = wait_complete(&stack.clients[0])?;
    let said = stack.fusefs(&["upgrade", &point, "--binary", new.to_str().context("path")?])?;
    print!("{said}");
    let after = wait_complete(&stack.clients[0])?;
    ensure!(before.client != after.client && before.supervisor == after.supervisor, "{before:?} {after:?}");
    let exe = fs::read_link(format!("/proc/{}/exe", after.client.context("client")?))?;
    ensure!(exe == new, "{} runs", exe.display());
    progress()?;

    // A program that is no client never touches the one that works.
    let out = stack.fusefs_raw(&["upgrade", &point, "--binary", "/bin/false"])?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(!out.status.success() && text.contains("was not touched"), "{text}");
    ensure!(wait_complete(&stack.clients[0])?.client == after.client);
    progress()?;

    // One that fails after the old one had to go: the old executable comes back.
    fs::write(&die, "session 1")?;
    let out = stack.fusefs_raw(&["upgrade", &point])?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(!out.status.success() && text.contains("the old version serves again"), "{text}");
    progress()?;
    let back = wait_complete(&stack.clients[0])?.client.context("client")?;
    ensure!(fs::read_link(format!("/proc/{back}/exe"))? == new, "the executable before this upgrade");
    stop.store(true, Ordering::Release);
    load.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
    ends_cleanly(&stack, 0)
}

#[test]
fn a_stopped_client_is_replaced_unless_the_watchdog_is_off() -> Result<()> {
    let stack = stack("stopped", &[], &[])?;
    let client = &stack.clients[0];
    let mut app = Application::start(stack.at(0))?;
    let before = wait_complete(client)?.client.context("client")?;
    kill(Pid::from_raw(before as i32), Signal::SIGSTOP)?;
    app.work()?;
    ensure!(wait_complete(client)?.client != Some(before), "the stopped client answered?");
    drop(app);
    ends_cleanly(&stack, 0)
}

#[test]
fn after_the_death_of_everybody_the_next_mount_detaches_the_dead_one() -> Result<()> {
    let mut stack = stack("dead", &[], &[])?;
    let mut app = Application::start(stack.at(0))?;
    app.work()?;
    fs::write(stack.at(0).join("closed"), b"still there")?;
    // As `kill`, but the dead mount stays.
    let p = wait_complete(&stack.clients[0])?;
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for pid in [p.supervisor, p.keeper, p.client].into_iter().flatten() {
            kill(Pid::from_raw(pid as i32), signal)?;
        }
    }
    stack.clients[0].child.kill();
    eventually(SOON, || Ok(fs::metadata(stack.at(0)).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))))?;
    drop(app);
    stack.clients[0].start()?;
    wait_complete(&stack.clients[0])?;
    ensure!(fs::read(stack.at(0).join("closed"))? == b"still there");
    let mut app = Application::start(stack.at(0))?;
    app.work()?;
    drop(app);
    ends_cleanly(&stack, 0)
}

#[test]
fn the_directory_underneath_refuses_writes_while_the_mount_is_gone() -> Result<()> {
    let mut stack = Stack::start(ONE)?;
    stack.fusefs(&["volume", "create", "guard"])?;
    stack.mount_supervised("guard", &[], &[])?;
    wait_complete(&stack.clients[0])?;
    fs::write(stack.at(0).join("f"), b"in the volume")?;
    let known = {
        let probe = stack.tmp().join("probe");
        fs::create_dir(&probe)?;
        let known = fusefs_fuse_client::fuse::device::set_immutable(&probe, true).unwrap_or(false);
        let _ = fusefs_fuse_client::fuse::device::set_immutable(&probe, false);
        known
    };
    if !known {
        ensure!(std::env::var_os("CI").is_none(), "this file system has no immutable flag, so nothing was tested");
        println!("this file system has no immutable flag; nothing to see");
        return Ok(());
    }
    stack.clients[0].kill();
    ensure!(!is_mounted(stack.at(0)));
    let refused = fs::write(stack.at(0).join("f"), b"on the local disk");
    ensure!(refused.is_err_and(|e| e.raw_os_error() == Some(libc::EPERM)), "the directory underneath took a file");
    stack.clients[0].start()?;
    wait_complete(&stack.clients[0])?;
    ends_cleanly(&stack, 0)?;
    fs::write(stack.at(0).join("f"), b"after a clean end it is an ordinary directory")?;
    Ok(())
}

#[test]
fn a_mount_that_cannot_start_says_why_and_leaves_nothing() -> Result<()> {
    let stack = Stack::start(ONE)?;
    let point = stack.tmp().join("nowhere");
    fs::create_dir(&point)?;
    let state = stack.tmp().join("state");
    let args = ["mount", "nosuch", point.to_str().context("path")?, "--state-dir", state.to_str().context("path")?];
    let out = stack.fusefs_raw(&args)?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(!out.status.success() && text.contains("nosuch"), "{text}");
    ensure!(!is_mounted(&point));
    ensure!(fusefs_fuse_client::supervise::dirs::find(&point).is_empty());
    ensure!(!state.join("journal.0").exists());
    fs::write(point.join("f"), b"an ordinary directory")?;
    // In the background the same message reaches the shell.
    let out = stack.fusefs_raw(&[&args[..], &["--background"]].concat())?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(!out.status.success() && text.contains("nosuch"), "{text}");
    Ok(())
}

#[test]
fn an_ordinary_user_mounts_through_fusermount3() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if fs::metadata("/dev/fuse")?.permissions().mode() & 0o006 != 0o006 {
        ensure!(std::env::var_os("CI").is_none(), "/dev/fuse is closed to ordinary users, so nothing was tested");
        println!(
            "/dev/fuse is closed to ordinary users on this machine (chmod 666 /dev/fuse is usual); nothing to see"
        );
        return Ok(());
    }
    let mut stack = Stack::start(ONE)?;
    stack.fusefs(&["volume", "create", "user"])?;
    // A new volume belongs to root.
    stack.mount("user", &[])?;
    eventually(SOON, || Ok(fs::set_permissions(stack.at(0), fs::Permissions::from_mode(0o777)).is_ok()))?;
    stack.clients[0].stop()?;
    let home = fusefs_chaos_tests::stack::scratch()?;
    let (point, state, run) = (home.path().join("mnt"), home.path().join("state"), home.path().join("run"));
    let token = home.path().join("token");
    fs::copy(stack.dir.token_file(), &token)?;
    for dir in [&point, &state, &run] {
        fs::create_dir(dir)?;
    }
    let program = home.path().join("fusefs");
    fs::copy(stack.program(), &program)?;
    let user = nix::unistd::User::from_name("nobody")?.context("no user nobody")?;
    for path in [home.path(), &point, &state, &run, &token] {
        nix::unistd::chown(path, Some(user.uid), Some(user.gid))?;
    }
    let master = stack.dir.master_addrs().join(",");
    let as_user = |args: &[&str]| -> Result<std::process::Output> {
        let mut c = Command::new("runuser");
        c.args(["-u", "nobody", "--"]).arg(&program).args(args).env("XDG_RUNTIME_DIR", &run);
        Ok(c.env("FUSEFS_MASTER", &master).env("FUSEFS_TOKEN_FILE", &token).output()?)
    };
    let mount = point.to_str().context("path")?;
    let state = state.to_str().context("path")?;
    let out = as_user(&["mount", "user", mount, "--background", "--state-dir", state, "--journal-mib", "32"])?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let sh = |script: &str| Command::new("runuser").args(["-u", "nobody", "--", "sh", "-c", script]).output();
    // Root may not look into other users' FUSE mounts.
    let out = sh(&format!("cd {mount} && echo hello > f && cat f && ls -l f"))?;
    ensure!(out.status.success() && out.stdout.starts_with(b"hello\n"), "{out:?}");
    let out = sh(&format!("pkill -KILL -u nobody -f '^fusefs client --runtime {}' ; cat {mount}/f", run.display()))?;
    ensure!(out.status.success() && out.stdout.starts_with(b"hello\n"), "after the death of the client: {out:?}");
    let out = as_user(&["umount", mount])?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    ensure!(!is_mounted(&point));
    Ok(())
}

#[test]
fn open_files_survive_a_lazy_unmount_and_a_kill() -> Result<()> {
    let stack = stack("lazy", &[], &[])?;
    let client = &stack.clients[0];
    let path = stack.at(0).join("f");
    let mut file = fs::File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
    file.write_all(b"before")?;
    let last = wait_complete(client)?;
    stack.fusefs(&["umount", "--lazy", stack.at(0).to_str().context("path")?])?;
    ensure!(!is_mounted(stack.at(0)));
    sigkill(last.client)?;
    let mut text = Vec::new();
    file.write_all(b" and after")?;
    std::io::Seek::rewind(&mut file)?;
    file.read_to_end(&mut text)?;
    ensure!(text == b"before and after", "{}", String::from_utf8_lossy(&text));
    drop(file);
    eventually(SOON, || Ok((0..3).all(|i| pid(&client.processes(), i).is_none())))
        .with_context(|| client.child.log_tail())
}

/// What a killed client held goes with the last close, not with the unmount.
#[test]
fn an_open_unlinked_file_of_a_killed_client_is_freed_by_its_last_close() -> Result<()> {
    let stack = stack("orphans", &[], &[])?;
    let client = &stack.clients[0];
    let orphans = || -> Result<u64> {
        stack.dir.metanode_addrs().iter().map(|addr| metric(addr, "fusefs_partition_orphans")).sum()
    };
    for killed in ["after the unlink", "before the unlink", "at the close"] {
        let path = stack.at(0).join("f");
        let mut file = fs::File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
        file.write_all(b"held")?;
        let victim = wait_complete(client)?.client;
        if killed == "before the unlink" {
            sigkill(victim)?;
        }
        fs::remove_file(&path)?;
        if killed == "after the unlink" {
            sigkill(victim)?;
        }
        let mut text = [0; 4];
        file.read_exact_at(&mut text, 0).with_context(|| format!("killed {killed}"))?;
        ensure!(&text == b"held" && orphans()? == 1, "killed {killed}: {} orphans", orphans()?);
        if killed == "at the close" {
            sigkill(victim)?;
        }
        drop(file);
        eventually(SOON, || Ok(orphans()? == 0)).with_context(|| format!("killed {killed}: still there"))?;
    }
    ends_cleanly(&stack, 0)
}

#[test]
fn a_file_without_a_name_gets_one_or_goes_although_the_client_is_killed() -> Result<()> {
    let stack = stack("nameless", &[], &[])?;
    let client = &stack.clients[0];
    let open = |flags| {
        let mut how = fs::File::options();
        how.read(true).write(true).mode(0o640).custom_flags(libc::O_TMPFILE | flags).open(stack.at(0))
    };
    let link = |file: &fs::File, path: &Path| {
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW)
    };
    let orphans = || metric(&stack.dir.metanode_addrs()[0], "fusefs_partition_orphans");
    for (round, killed) in [false, true].into_iter().enumerate() {
        let path = stack.at(0).join(format!("named{round}"));
        let (file, gone) = (open(0)?, open(0)?);
        file.write_all_at(&[7; 100_000], 0)?;
        gone.write_all_at(&[8; 100_000], 0)?;
        let meta = file.metadata()?;
        ensure!((meta.nlink(), meta.mode() & 0o7777) == (0, 0o640), "{meta:?}");
        ensure!(orphans()? == 2 && fs::read_dir(stack.at(0))?.count() == round, "they have no names");
        if killed {
            sigkill(wait_complete(client)?.client)?;
        }
        link(&file, &path).with_context(|| format!("killed {killed}: {}", client.child.log_tail()))?;
        ensure!(file.metadata()?.nlink() == 1 && orphans()? == 1);
        if killed {
            sigkill(wait_complete(client)?.client)?;
        }
        drop((file, gone));
        eventually(SOON, || Ok(orphans()? == 0)).context("the other is still there")?;
        ensure!(fs::read(&path)? == vec![7; 100_000], "killed {killed}: other bytes");
    }
    let closed = link(&open(libc::O_EXCL)?, &stack.at(0).join("never"));
    ensure!(closed == Err(rustix::io::Errno::NOENT), "O_EXCL: no name ever");
    ends_cleanly(&stack, 0)
}

/// A keeper alone.
struct Keeper {
    child: std::process::Child,
    socket: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keeper() -> Result<Keeper> {
    let dir = fusefs_chaos_tests::stack::scratch()?;
    let socket = dir.path().join("keeper.sock");
    let child = Command::new(fusefs_chaos_tests::stack::program()?)
        .args(["keeper", "--socket"])
        .arg(&socket)
        .stdin(std::process::Stdio::null())
        .spawn()?;
    let keeper = Keeper { child, socket, _dir: dir };
    eventually(SOON, || Ok(Channel::connect(&keeper.socket).is_ok()))?;
    Ok(keeper)
}

#[test]
fn the_keeper_keeps_what_it_confirmed_and_survives_rubbish() -> Result<()> {
    use std::os::fd::AsFd;
    let keeper = keeper()?;
    let channel = Channel::connect(&keeper.socket)?;
    let file = tempfile::tempfile()?;
    file.write_all_at(b"through the keeper", 0)?;
    channel.put("fuse", &Item { bytes: b"x".to_vec(), fd: Some(file.into()) })?;
    channel.put("init", &Item { bytes: vec![7; ITEM_BYTES_MAX], fd: None })?;
    // Whatever strangers say costs them their connection and nothing else.
    let mut seed = 20_261_121_u64;
    for round in 0..500 {
        let bad = fusefs_fuse_client::keeper::sys::connect_to(&keeper.socket)?;
        let mut bytes = Vec::new();
        for _ in 0..round % 70 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.push((seed >> 33) as u8);
        }
        if round % 2 == 0 && !bytes.is_empty() {
            bytes[0] = fusefs_fuse_client::keeper::protocol::VERSION;
        }
        let other = tempfile::tempfile()?;
        let fds = vec![other.as_fd(); round % 7];
        let _ = fusefs_fuse_client::keeper::sys::send(bad.as_fd(), &bytes, &fds);
    }
    let long = fusefs_fuse_client::keeper::sys::connect_to(&keeper.socket)?;
    let _ = fusefs_fuse_client::keeper::sys::send(long.as_fd(), &vec![1; 100_000], &[]);
    let open = || Ok::<_, std::io::Error>(fs::read_dir(format!("/proc/{}/fd", keeper.child.id()))?.count());
    eventually(SOON, || Ok(open()? < 16)).with_context(|| format!("{:?} fds are open", open()))?;
    let item = channel.get("fuse")?.context("gone")?;
    let mut text = [0; 18];
    fs::File::from(item.fd.context("no fd")?).read_exact_at(&mut text, 0)?;
    ensure!(item.bytes == b"x" && &text == b"through the keeper");
    ensure!(channel.get("init")?.is_some_and(|i| i.bytes == vec![7; ITEM_BYTES_MAX]));
    ensure!(channel.get("nothing")?.is_none());
    channel.remove("init")?;
    ensure!(channel.list()? == ["fuse"]);
    channel.end()?;
    Ok(())
}

#[test]
fn the_keeper_starts_again_what_it_watches() -> Result<()> {
    use std::os::fd::AsFd;
    let keeper = keeper()?;
    let channel = Channel::connect(&keeper.socket)?;
    let marker = keeper.socket.with_file_name("started");
    let mut watched = Command::new("sleep").arg("1000").spawn()?;
    let pidfd = fusefs_fuse_client::keeper::sys::pidfd(watched.id())?;
    let exe = fusefs_fuse_client::keeper::sys::executable(Path::new("/bin/sh"))?;
    let args = ["-c".into(), format!("echo $$ >> {}", marker.display()).into()];
    channel.watch(pidfd.as_fd(), exe.as_fd(), None, &args)?;
    ensure!(!marker.exists());
    watched.kill()?;
    watched.wait()?;
    // It ends at once, so it is started again and again, more and more slowly.
    eventually(SOON, || Ok(fs::read_to_string(&marker).is_ok_and(|t| t.lines().count() >= 3)))?;
    channel.end()?;
    Ok(())
}

/// Ends the sessions of a volume, as an administrator or the volume's time-out does.
fn revoke_all(stack: &Stack, volume: &str) -> Result<()> {
    let token = ClusterToken::new(&fs::read(stack.dir.token_file())?).map_err(|_| anyhow::anyhow!("token"))?;
    let (transport, rng) = (Arc::new(GrpcTransport::new()), Arc::new(SystemRng));
    let masters = MasterClient::new(Settings::new(stack.dir.master_addrs(), token.credential()), transport, rng);
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let call = |c| async { masters.call(c).await.map_err(|r| anyhow::anyhow!("{}", r.message)) };
        let MasterReply::Volume(volume) = call(MasterCall::GetVolume(volume.into())).await? else {
            anyhow::bail!("no volume")
        };
        let MasterReply::Sessions(sessions) = call(MasterCall::ListSessions(volume.id)).await? else {
            anyhow::bail!("no list")
        };
        ensure!(!sessions.is_empty());
        for s in sessions {
            call(MasterCall::RevokeSession(s.session)).await?;
        }
        Ok(())
    })
}

#[test]
fn a_mount_whose_session_has_ended_answers_estale_and_unmounts() -> Result<()> {
    let stack = stack("fenced", &[], &[])?;
    let client = &stack.clients[0];
    fs::write(stack.at(0).join("f"), b"closed")?;
    revoke_all(&stack, "fenced")?;
    sigkill(wait_complete(client)?.client)?;
    eventually(SOON, || {
        let open = fs::File::open(stack.at(0).join("f"));
        Ok(open.is_err_and(|e| e.raw_os_error() == Some(libc::ESTALE)))
    })
    .with_context(|| client.child.log_tail())?;
    // Nothing hangs, and a client that is killed now only says the same again.
    sigkill(wait_complete(client)?.client)?;
    let again = fs::metadata(stack.at(0).join("f"));
    ensure!(again.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ESTALE)), "{again:?}");
    ends_cleanly(&stack, 0)
}

#[test]
fn data_that_was_not_synced_survives_the_death_of_everybody() -> Result<()> {
    let mut stack = stack("left", &[], &[])?;
    let mut file = fs::File::create(stack.at(0).join("f"))?;
    file.write_all(&[1; 100_000])?;
    let p = wait_complete(&stack.clients[0])?;
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for pid in [p.client, p.supervisor, p.keeper].into_iter().flatten() {
            kill(Pid::from_raw(pid as i32), signal)?;
        }
    }
    stack.clients[0].child.kill();
    drop(file);
    stack.clients[0].start()?;
    wait_complete(&stack.clients[0])?;
    ensure!(fs::read(stack.at(0).join("f"))? == vec![1; 100_000], "{}", stack.clients[0].child.log_tail());
    ends_cleanly(&stack, 0)
}

#[test]
fn a_journal_of_an_ended_session_is_put_aside_and_can_be_replayed() -> Result<()> {
    let mut stack = stack("parked", &[], &[])?;
    fs::write(stack.at(0).join("f"), vec![1; 200_000])?;
    let file = fs::File::options().write(true).open(stack.at(0).join("f"))?;
    file.write_all_at(&[2; 100_000], 50_000)?;
    let p = wait_complete(&stack.clients[0])?;
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for pid in [p.client, p.supervisor, p.keeper].into_iter().flatten() {
            kill(Pid::from_raw(pid as i32), signal)?;
        }
    }
    stack.clients[0].child.kill();
    drop(file);
    revoke_all(&stack, "parked")?;
    stack.clients[0].start()?;
    wait_complete(&stack.clients[0])?;
    ensure!(fs::read(stack.at(0).join("f"))? == vec![1; 200_000], "{}", stack.clients[0].child.log_tail());
    let parked = fs::read_dir(stack.state_dir(0))?
        .flatten()
        .map(|e| e.path())
        .find(|p| p.display().to_string().contains("parked-"))
        .context("nothing was put aside")?;
    let parked = parked.to_str().context("path")?.to_owned();
    print!("{}", stack.fusefs(&["journal", "list", &parked])?);
    let target = stack.tmp().join("rescued");
    stack.fusefs(&["journal", "export", &parked, target.to_str().context("path")?])?;
    ensure!(fs::read_dir(&target)?.count() == 2, "one file and the list");
    print!("{}", stack.fusefs(&["journal", "replay", &parked, "parked", "--yes"])?);
    let mut want = vec![1; 200_000];
    want[50_000..150_000].fill(2);
    eventually(SOON, || Ok(fs::read(stack.at(0).join("f"))? == want))?;
    ensure!(stack.fusefs(&["journal", "list", &parked])?.contains("nothing is pending"));
    stack.fusefs(&["umount", stack.at(0).to_str().context("path")?])?;
    Ok(())
}
