//! Kills processes of a mount, waits for their successors, and counts.

use super::{Rng, now_ns};
use anyhow::{Result, bail};
use std::{collections::BTreeMap, time::Duration};

/// One of the three processes of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Serves requests.
    Client,
    /// Holds fds.
    Keeper,
    /// Starts the others.
    Supervisor,
}

/// What the nemesis needs of a mount.
pub trait Mount {
    /// Process in this role now; None while there is none.
    fn pid(&self, role: Role) -> Option<u32>;
    /// The client, once it serves.
    fn serving(&self) -> Option<u32>;
    /// What its clients have counted so far, dead ones included.
    fn counters(&self) -> Result<Counters>;
}

/// What happened inside, summed over all client processes of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Client processes that served.
    pub clients: u64,
    /// Requests read.
    pub requests: u64,
    /// Of these: sent again by the kernel.
    pub resent: u64,
    /// Found in the slots and served again.
    pub reserved: u64,
    /// Operations that the cluster answered from its stored replies.
    pub repeated: u64,
    /// Journal records replayed.
    pub replayed: u64,
}

/// One kill.
#[derive(Clone, Copy, Debug)]
pub struct Kill {
    /// Who.
    pub role: Role,
    /// Process.
    pub pid: u32,
    /// When (CLOCK_MONOTONIC, ns).
    pub at_ns: u64,
}

/// How long a successor may take.
const BACK: Duration = Duration::from_secs(30);
/// Between two looks at who is there.
const LOOK: Duration = Duration::from_millis(3);
/// Clients of a hundred that die while they start.
const EARLY_PERCENT: u64 = 20;
/// Random moments between two kills.
const APART_MS: (u64, u64) = (45, 256);

/// Waits without an event to wait for: the moment itself is the point.
#[allow(clippy::disallowed_methods)] // random moments and looks at foreign processes
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Waits until somebody other than `not` has the role.
pub fn wait_for(mount: &dyn Mount, role: Role, not: Option<u32>) -> Result<u32> {
    let start = now_ns();
    loop {
        match mount.pid(role) {
            Some(pid) if Some(pid) != not => return Ok(pid),
            _ if now_ns() - start > BACK.as_nanos() as u64 => bail!("no new {role:?} after {BACK:?} (was {not:?})"),
            _ => pause(LOOK),
        }
    }
}

/// Waits until a client other than `not` serves.
pub fn wait_serving(mount: &dyn Mount, not: Option<u32>) -> Result<u32> {
    let start = now_ns();
    loop {
        match mount.serving() {
            Some(pid) if Some(pid) != not => return Ok(pid),
            _ if now_ns() - start > BACK.as_nanos() as u64 => bail!("no client serves after {BACK:?} (was {not:?})"),
            _ => pause(LOOK),
        }
    }
}

/// SIGKILL to whoever has the role now.
pub fn kill(mount: &dyn Mount, role: Role) -> Result<Kill> {
    loop {
        let pid = wait_for(mount, role, None)?;
        let at_ns = now_ns();
        match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL) {
            Ok(()) => return Ok(Kill { role, pid, at_ns }),
            Err(nix::errno::Errno::ESRCH) => pause(LOOK), // somebody's successor is just coming
            Err(e) => bail!("killing {role:?} {pid}: {e}"),
        }
    }
}

/// `n` kills at random moments, the roles in turn; then waits until everybody is back. `between` runs after each kill with
/// its number. Most clients die while they serve; some while they start, but never two of those in a row: the supervisor
/// waits longer and longer before it starts a client whose predecessors did not get far.
pub fn at_random(
    mount: &dyn Mount,
    rng: &mut Rng,
    n: u64,
    roles: &[Role],
    mut between: impl FnMut(u64) -> Result<()>,
) -> Result<Vec<Kill>> {
    let (mut kills, mut last, mut early) = (Vec::new(), BTreeMap::new(), true);
    for i in 0..n {
        let role = roles[i as usize % roles.len()];
        // The same process is not killed twice: a death takes a moment to be seen.
        let dead = last.get(&role).copied();
        wait_for(mount, role, dead)?;
        early = role == Role::Client && !early && rng.chance(EARLY_PERCENT);
        if early {
            pause(Duration::from_millis(rng.below(APART_MS.0)));
        } else {
            wait_serving(mount, last.get(&Role::Client).copied())?;
            pause(Duration::from_millis(rng.between(APART_MS.0, APART_MS.1)));
        }
        let kill = kill(mount, role)?;
        last.insert(role, kill.pid);
        kills.push(kill);
        between(i)?;
    }
    for (role, pid) in &last {
        wait_for(mount, *role, Some(*pid))?;
    }
    wait_serving(mount, last.get(&Role::Client).copied())?;
    Ok(kills)
}

/// Times of the kills of clients.
pub fn marks(kills: &[Kill]) -> Vec<u64> {
    kills.iter().filter(|k| k.role == Role::Client).map(|k| k.at_ns).collect()
}

/// The `q` quantile of some numbers.
pub fn quantile(mut values: Vec<f64>, q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(((values.len() as f64 * q) as usize).min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}
