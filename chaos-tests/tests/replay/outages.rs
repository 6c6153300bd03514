//! Kills together with other trouble: the store, the metadata servers, time, the end of the session.

use super::{
    seed,
    world::{Expect, Wish, World, spawn, wait, wait_blocked},
};
use anyhow::{Context, Result, ensure};
use fusefs_chaos_tests::{
    replay::{
        Rng,
        mounted::{http, metric},
        nemesis::{self, Kill, Mount, Role},
        now_ns,
        proxy::Mode,
        worker::{Worker, program},
    },
    stack::eventually,
};
use fusefs_local_cluster::Shape;
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    process::Child,
    time::Duration,
};

/// As on kernels without RESEND.
const SLOTS: &[&str] = &["--recovery", "slots"];

/// The leader of a partition and the client die at the same moment.
pub fn a_leader_and_the_client_may_die_together() -> Result<()> {
    leaders_die(201, 4, &[])
}

/// The same without RESEND.
pub fn a_leader_and_the_client_may_die_together_with_request_slots() -> Result<()> {
    leaders_die(205, 2, SLOTS)
}

fn leaders_die(default_seed: u64, deaths: u32, options: &[&str]) -> Result<()> {
    let seed = seed(default_seed);
    println!("seed {seed}");
    let shape = Some(Shape { masters: 1, metanodes: 3 });
    let mut world = World::start(&Wish { shape, options, ..Wish::default() })?;
    let plan = world.plan("work", seed)?;
    let worker = Worker::start(&plan)?;
    let (mut rng, mut all, mut leaders) = (Rng::new(seed, 90), Vec::<Kill>::new(), 0);
    for _ in 0..deaths {
        nemesis::pause(Duration::from_millis(rng.between(300, 800)));
        let addrs = world.stack.dir.metanode_addrs();
        let led = |a: &String| metric(a, "fusefs_replica_leader").unwrap_or(0);
        let most = (0..addrs.len()).max_by_key(|i| led(&addrs[*i])).context("no metanode")?;
        ensure!(led(&addrs[most]) > 0, "nobody leads");
        all.extend(nemesis::at_random(&world.mount, &mut rng, 1, &[Role::Client], |_| {
            leaders += u32::from(world.stack.servers.metanodes[most].kill());
            Ok(())
        })?);
        let node = &mut world.stack.servers.metanodes[most];
        node.start()?;
        node.wait_http("/readyz")?;
        eventually(Duration::from_secs(20), || Ok(addrs.iter().map(led).sum::<u64>() >= 3))?;
    }
    println!("{leaders} leaders killed");
    ensure!(leaders == deaths, "a leader was not running");
    world.judge(worker, &plan, &all, Expect::NOTHING, None)?;
    Ok(())
}

/// The store answers 503 for ten seconds, and clients are killed meanwhile.
pub fn ten_seconds_without_the_store_are_a_pause() -> Result<()> {
    without_the_store(202, Duration::from_secs(10), &[])
}

/// The same without RESEND, and shorter.
pub fn five_seconds_without_the_store_are_a_pause_with_request_slots() -> Result<()> {
    without_the_store(206, Duration::from_secs(5), SLOTS)
}

fn without_the_store(default_seed: u64, outage: Duration, options: &[&str]) -> Result<()> {
    let seed = seed(default_seed);
    println!("seed {seed}");
    let mut world = World::start(&Wish { gate: true, options, ..Wish::default() })?;
    let plan = world.plan("work", seed)?;
    let worker = Worker::start(&plan)?;
    nemesis::pause(Duration::from_secs(1));
    let (mut rng, mut all) = (Rng::new(seed, 91), Vec::new());
    let gate = world.gate.as_ref().context("a gate")?;
    gate.set(Mode::Unavailable);
    let start = now_ns();
    while u128::from(now_ns() - start) < outage.as_nanos() {
        nemesis::pause(Duration::from_millis(rng.between(300, 900)));
        all.extend(nemesis::at_random(&world.mount, &mut rng, 1, &[Role::Client], |_| Ok(()))?);
    }
    gate.set(Mode::Open);
    let refused = gate.refused();
    println!("{refused} requests got 503");
    ensure!(refused > 0, "the store was never asked");
    nemesis::pause(Duration::from_secs(2));
    world.judge(worker, &plan, &all, Expect { replayed: true, ..Expect::NOTHING }, None)?;
    Ok(())
}

/// With an outage that is longer than `--close-timeout`, each close fails exactly once, with EIO, and every byte is there
/// afterwards, although the client was killed meanwhile.
pub fn past_the_close_timeout_each_close_fails_once_and_nothing_is_lost() -> Result<()> {
    const FILES: u64 = 6;
    const SIZE: usize = 200_000;
    let seed = seed(203);
    println!("seed {seed}");
    let mut world = World::start(&Wish { gate: true, options: &["--close-timeout", "2"], ..Wish::default() })?;
    let content = |i: u64| Rng::new(seed, i).bytes(SIZE);
    let path = |point: &std::path::Path, i: u64| point.join(format!("late{i}"));
    let gate = world.gate.as_ref().context("a gate")?;
    gate.set(Mode::Unavailable);
    let results: Vec<_> = std::thread::scope(|scope| {
        let close = |i: u64| -> Result<Option<i32>> {
            let file = File::create(path(&world.mount.point, i))?;
            file.write_all_at(&content(i), 0)?;
            let start = now_ns();
            let result = nix::unistd::close(std::os::fd::OwnedFd::from(file));
            println!("close {i}: {result:?} after {} ms", (now_ns() - start) / 1_000_000);
            Ok(result.err().map(|e| e as i32))
        };
        let threads: Vec<_> = (0..FILES).map(|i| scope.spawn(move || close(i))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a panic")))).collect()
    });
    for result in results {
        ensure!(result? == Some(libc::EIO), "a close during the outage must fail with EIO");
    }
    nemesis::kill(&world.mount, Role::Client)?;
    nemesis::wait_serving(&world.mount, None)?;
    gate.set(Mode::Open);
    for round in ["through the same mount", "after mounting again"] {
        for i in 0..FILES {
            let have = fs::read(path(&world.mount.point, i)).with_context(|| format!("reading file {i} {round}"))?;
            ensure!(have == content(i), "file {i} has other bytes {round}");
            File::options().write(true).open(path(&world.mount.point, i))?.sync_all().context("fsync afterwards")?;
        }
        if round.starts_with("through") {
            world.mount.again()?;
        }
    }
    Ok(())
}

/// Longer stopped than its lease lasts.
pub fn a_client_that_was_stopped_past_its_lease_goes_on() -> Result<()> {
    const LEASE_MS: &str = "3000";
    let seed = seed(204);
    println!("seed {seed}");
    let wish = Wish { servers: &[("FUSEFS_LEASE_MS", LEASE_MS)], options: &["--no-watchdog"], ..Wish::default() };
    let mut world = World::start(&wish)?;
    let plan = world.plan("work", seed)?;
    let worker = Worker::start(&plan)?;
    nemesis::pause(Duration::from_secs(1));
    for _ in 0..2 {
        let pid = nemesis::wait_serving(&world.mount, None)?;
        kill(Pid::from_raw(pid as i32), Signal::SIGSTOP)?;
        nemesis::pause(Duration::from_millis(5000));
        ensure!(world.mount.pid(Role::Client) == Some(pid), "the stopped client was replaced");
        kill(Pid::from_raw(pid as i32), Signal::SIGCONT)?;
        nemesis::pause(Duration::from_secs(1));
    }
    world.judge(worker, &plan, &[], Expect::NOTHING, None)?;
    Ok(())
}

/// SIGKILL ends `child` within `limit`.
fn ends(mut child: Child, limit: Duration, what: &str) -> Result<()> {
    wait_blocked(&child)?;
    ensure!(child.try_wait()?.is_none(), "{what} did not block");
    child.kill()?;
    let start = now_ns();
    ensure!(wait(&mut child, limit)?.is_some(), "{what}: not dead {limit:?} after SIGKILL");
    println!("{what}: dead {} ms after SIGKILL", (now_ns() - start) / 1_000_000);
    Ok(())
}

/// An application that waits for a dead store, or for a lock, can be killed.
pub fn blocked_applications_can_be_killed() -> Result<()> {
    const CLOSE: Duration = Duration::from_secs(3);
    let world = World::start(&Wish { gate: true, options: &["--close-timeout", "3"], ..Wish::default() })?;
    let at = |name: &str| world.mount.point.join(name).display().to_string();
    let slack = CLOSE + Duration::from_secs(2);

    let held = File::create(at("flock"))?;
    let _held = Flock::lock(held, FlockArg::LockExclusive).map_err(|(_, e)| e)?;
    ends(spawn("flock", &[&at("flock"), "true"])?, slack, "a wait for a flock")?;

    fs::create_dir(at("fcntl"))?;
    let counter = File::create(at("fcntl/counter"))?;
    counter.write_all_at(&[0; 16], 0)?;
    let all = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&counter, nix::fcntl::FcntlArg::F_SETLK(&all))?;
    let out = world.stack.tmp().join("locker.out");
    fs::create_dir(&out)?;
    let (dir, out, own) = (at("fcntl"), out.display().to_string(), program()?.display().to_string());
    let words = ["locker", "--dir", &dir, "--out", &out, "--seed", "3", "--me", "1", "--steps", "1000000"];
    ends(spawn(&own, &words)?, slack, "a wait for an fcntl lock")?;

    world.gate.as_ref().context("a gate")?.set(Mode::Unavailable);
    let target = format!("of={}", at("dead"));
    ends(
        spawn("dd", &["if=/dev/zero", &target, "bs=1M", "count=4", "conv=fsync"])?,
        slack,
        "an fsync on a dead store",
    )?;
    ends(spawn("dd", &["if=/dev/zero", &target, "bs=1M", "count=4"])?, slack, "a close on a dead store")?;
    world.gate.as_ref().context("a gate")?.set(Mode::Open);
    Ok(())
}

/// The cluster ends the session of a mount: it answers ESTALE, also after its client was killed, and unmounts.
pub fn a_fenced_mount_answers_estale_and_unmounts() -> Result<()> {
    let mut world = World::start(&Wish { servers: &[("FUSEFS_LEASE_MS", "3000")], ..Wish::default() })?;
    fs::write(world.mount.point.join("file"), b"before")?;
    let show: serde_json::Value = serde_json::from_str(&world.stack.fusefs(&["volume", "show", "work", "--json"])?)?;
    let session = show["sessions"][0]["session"].as_str().with_context(|| format!("a session in {show}"))?.to_owned();
    let token = fs::read_to_string(world.stack.dir.token_file())?;
    let header = format!("Authorization: Bearer {}\r\n", token.trim());
    http(&world.stack.dir.master_addrs()[0], "DELETE", &format!("/v1/sessions/{session}"), &header)?;
    let path = world.mount.point.join("file");
    // In a child: should it hang, the test does not.
    let look = || -> Result<bool> {
        let mut child = std::process::Command::new("stat")
            .arg(&path)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()?;
        ensure!(wait(&mut child, Duration::from_secs(10))?.is_some(), "stat hangs");
        let mut text = String::new();
        if let Some(mut err) = child.stderr.take() {
            std::io::Read::read_to_string(&mut err, &mut text)?;
        }
        Ok(text.contains("Stale"))
    };
    eventually(Duration::from_secs(20), look).context("waiting for ESTALE")?;
    println!("ESTALE from the fenced client");
    nemesis::kill(&world.mount, Role::Client)?;
    nemesis::wait_serving(&world.mount, None)?;
    eventually(Duration::from_secs(20), look).context("waiting for ESTALE from the next client")?;
    println!("ESTALE from its successor");
    world.mount.stop().context("unmounting the fenced mount")?;
    world.mount.start().context("mounting again")?;
    ensure!(fs::read(world.mount.point.join("file"))? == b"before");
    Ok(())
}
