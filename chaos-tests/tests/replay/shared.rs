//! Two mounts of one volume, both being killed: locks and what they protect.

use super::{
    seed,
    world::{Wish, World},
};
use anyhow::{Result, ensure};
use fusefs_chaos_tests::replay::{
    Rng,
    jobs::FCNTL,
    mounted::Mounted,
    nemesis::{self, Role},
    work::Plan,
    worker::Locker,
};
use std::fs;

/// Kills of each of the two clients.
const KILLS: u64 = 15;

/// Processes on both mounts add to one counter under an fcntl lock, while the clients of both are killed.
pub fn locks_between_two_mounts_survive_kills_of_both() -> Result<()> {
    let seed = seed(401);
    println!("seed {seed}");
    let world = World::start(&Wish::default())?;
    let mut other = Mounted::new(&world.stack, "work", "other", &["--no-protect", "--journal-mib", "64"], &[])?;
    other.start()?;
    let dir = world.mount.point.join(FCNTL);
    fs::create_dir(&dir)?;
    fs::write(dir.join("counter"), [0; 16])?;
    let mut lockers = Vec::new();
    for (i, point) in [&world.mount.point, &other.point, &world.mount.point, &other.point].into_iter().enumerate() {
        let plan = Plan::new(point, &world.stack.tmp().join("lockers"), seed);
        lockers.push(Locker::start(&plan, &point.join(FCNTL), i as u64)?);
    }
    let mut rng = Rng::new(seed, 94);
    for _ in 0..KILLS {
        for mount in [&world.mount, &other] {
            world.explain(nemesis::at_random(mount, &mut rng, 1, &[Role::Client], |_| Ok(())))?;
        }
    }
    let (mut sum, mut each) = (0, Vec::new());
    for locker in lockers {
        let (report, mine) = locker.end(std::time::Duration::from_secs(60))?;
        ensure!(report.bad() == 0, "seed {seed}:\n{}", report.problems_text());
        (sum, _) = (sum + mine, each.push(mine));
    }
    println!("{} kills; increments {each:?}", 2 * KILLS);
    ensure!(each.iter().all(|n| *n > 0), "somebody never got the lock");
    for mount in [&world.mount, &other] {
        let cell = fs::read(mount.point.join(FCNTL).join("counter"))?;
        let count = u64::from_le_bytes(std::array::from_fn(|i| cell.get(i).copied().unwrap_or(0)));
        ensure!(count == sum, "the counter is {count} at {}, {sum} increments were made", mount.point.display());
    }
    Ok(())
}
