//! Processes of the mount are killed; nothing else goes wrong.

use super::{
    seed,
    world::{Expect, Wish, World},
};
use anyhow::{Context, Result, ensure};
use fusefs_chaos_tests::replay::{
    Rng,
    nemesis::{self, Kill, Mount, Role},
    now_ns,
    worker::Worker,
};
use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

/// Kills of the two long tests: `FUSEFS_REPLAY_KILLS`.
fn kills() -> u64 {
    std::env::var("FUSEFS_REPLAY_KILLS").ok().and_then(|v| v.parse().ok()).unwrap_or(100)
}

/// `n` kills of `roles` in turn under the whole workload.
fn under_load(wish: &Wish<'_>, seed: u64, n: u64, roles: &[Role], expect: Expect, control: bool) -> Result<()> {
    println!("seed {seed}");
    let mut world = World::start(wish)?;
    let control = if control { Some(world.control(seed)?) } else { None };
    let plan = world.plan("work", seed)?;
    let worker = Worker::start(&plan)?;
    let mut rng = Rng::new(seed, 99);
    let kills = nemesis::at_random(&world.mount, &mut rng, n, roles, |_| Ok(()));
    let kills = world.explain(kills)?;
    let report = world.judge(worker, &plan, &kills, expect, control)?;
    println!("{}", report.latency_text());
    Ok(())
}

pub fn a_hundred_kills_are_pauses_when_the_kernel_resends() -> Result<()> {
    under_load(&Wish::default(), seed(101), kills(), &[Role::Client], Expect::RESEND, true)
}

pub fn a_hundred_kills_are_pauses_with_request_slots() -> Result<()> {
    let wish = Wish { options: &["--recovery", "slots"], ..Wish::default() };
    under_load(&wish, seed(102), kills(), &[Role::Client], Expect::SLOTS, true)
}

pub fn the_keeper_may_be_killed() -> Result<()> {
    under_load(&Wish::default(), seed(103), 15, &[Role::Keeper], Expect::NOTHING, false)
}

pub fn the_supervisor_may_be_killed() -> Result<()> {
    under_load(&Wish::default(), seed(104), 8, &[Role::Supervisor], Expect::NOTHING, false)
}

pub fn keeper_and_client_may_be_killed_in_turn() -> Result<()> {
    let roles = [Role::Keeper, Role::Client, Role::Client, Role::Supervisor];
    let expect = Expect { replayed: false, repeated: false, ..Expect::RESEND };
    under_load(&Wish::default(), seed(105), 40, &roles, expect, false)
}

/// Named steps of a client's start (`fusefs_fuse_client::worker::STEPS`), several deaths in a row at each.
fn at_every_step(options: &[&str], seed: u64, expect: Expect) -> Result<()> {
    /// Deaths in a row; more would let the supervisor wait between starts.
    const IN_A_ROW: u64 = 2;
    const ROUNDS: u64 = 2;
    println!("seed {seed}");
    let mut world = World::start(&Wish { options, ..Wish::default() })?;
    let plan = world.plan("work", seed)?;
    let worker = Worker::start(&plan)?;
    let mut rng = Rng::new(seed, 98);
    let mut all: Vec<Kill> = Vec::new();
    for step in fusefs_fuse_client::worker::STEPS {
        for _ in 0..ROUNDS {
            world.mount.die_at(step.name(), IN_A_ROW)?;
            let killed = nemesis::at_random(&world.mount, &mut rng, 1, &[Role::Client], |_| Ok(()))?;
            let start = now_ns();
            while world.mount.deaths_left() > 0 {
                ensure!(now_ns() - start < 30_000_000_000, "step {} was not reached {IN_A_ROW} times", step.name());
                nemesis::pause(Duration::from_millis(2));
            }
            all.extend(killed);
        }
        nemesis::wait_serving(&world.mount, None)?;
        println!("died {} times after {}", ROUNDS * IN_A_ROW, step.name());
    }
    world.judge(worker, &plan, &all, expect, None)?;
    Ok(())
}

pub fn every_step_of_a_resume_may_be_the_last() -> Result<()> {
    at_every_step(&[], seed(106), Expect { replayed: false, repeated: false, ..Expect::RESEND })
}

pub fn every_step_of_a_resume_from_slots_may_be_the_last() -> Result<()> {
    at_every_step(&["--recovery", "slots"], seed(107), Expect { replayed: false, repeated: false, ..Expect::SLOTS })
}

/// Upgrades to a copy of the binary and back, with kills in between and during.
pub fn upgrades_under_load_are_pauses() -> Result<()> {
    let seed = seed(108);
    println!("seed {seed}");
    let mut world = World::start(&Wish::default())?;
    let copy = world.stack.tmp().join("fusefs-other");
    fs::copy(world.stack.program(), &copy)?;
    let plan = world.plan("work", seed)?;
    let worker = Worker::start(&plan)?;
    let mut rng = Rng::new(seed, 97);
    let (mut all, mut done) = (Vec::new(), 0);
    for round in 0..6 {
        let binary = if round % 2 == 0 { copy.as_path() } else { world.stack.program() };
        let mut upgrade = Command::new(world.stack.program())
            .args(["upgrade", &world.mount.point.display().to_string(), "--binary", &binary.display().to_string()])
            .stdin(Stdio::null())
            .spawn()?;
        if round >= 3 {
            // Whoever serves now dies in the middle of it.
            all.extend(nemesis::at_random(&world.mount, &mut rng, 1, &[Role::Client], |_| Ok(()))?);
        }
        let status = super::world::wait(&mut upgrade, Duration::from_secs(60))?.context("the upgrade does not end")?;
        done += u32::from(status.success());
        ensure!(round >= 3 || status.success(), "upgrade {round} ended with {status}");
        nemesis::pause(Duration::from_millis(rng.between(50, 400)));
    }
    println!("{done} of 6 upgrades took place");
    world.judge(worker, &plan, &all, Expect::NOTHING, None)?;
    Ok(())
}

/// Another application sees a part of the volume through a bind mount in its own mount namespace.
pub fn an_application_in_a_private_mount_namespace_notices_nothing() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: mount namespaces need root");
        return Ok(());
    }
    let seed = seed(109);
    println!("seed {seed}");
    let mut world = World::start(&Wish::default())?;
    let plan = world.plan("work", seed)?;
    let (part, place) = (world.mount.point.join("part"), world.stack.tmp().join("bind"));
    fs::create_dir_all(part.join("second"))?;
    fs::create_dir(&place)?;
    let mut second = plan.clone();
    (second.dir, second.out, second.seed) = (place.join("second"), world.stack.tmp().join("second.out"), seed + 1);
    let script = format!("mount --bind '{}' '{}' && exec \"$@\"", part.display(), place.display());
    let wrap = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"].map(String::from);
    let (one, two) = (Worker::start(&plan)?, Worker::start_under(&wrap, &second)?);
    let mut rng = Rng::new(seed, 96);
    let kills = nemesis::at_random(&world.mount, &mut rng, 40, &[Role::Client], |_| Ok(()));
    let kills = world.explain(kills)?;
    let report = two.stop()?;
    println!("in the namespace: {} calls, longest {} ms", report.calls(), report.longest_ms());
    ensure!(report.bad() == 0, "seed {}:\n{}", second.seed, report.problems_text());
    world.judge(one, &plan, &kills, Expect { replayed: false, repeated: false, ..Expect::RESEND }, None)?;
    world.compare(&second, &part.join("second"))
}

/// A mount has exactly one client process at rest, and none of the killed ones is left.
pub fn nothing_is_left_of_killed_processes() -> Result<()> {
    let world = World::start(&Wish::default())?;
    let mut rng = Rng::new(seed(110), 95);
    let kills =
        nemesis::at_random(&world.mount, &mut rng, 12, &[Role::Client, Role::Keeper, Role::Supervisor], |_| Ok(()))?;
    for kill in kills {
        let text = fs::read_to_string(format!("/proc/{}/stat", kill.pid)).unwrap_or_default();
        // Zombies are dead: the first supervisor's parent is this test.
        let runs = text.contains("(fusefs") && !text.contains(") Z ");
        let now = [Role::Client, Role::Keeper, Role::Supervisor].map(|r| world.mount.pid(r));
        ensure!(!runs || now.contains(&Some(kill.pid)), "{:?} {} still runs", kill.role, kill.pid);
    }
    Ok(())
}
