//! Kills at random moments, alone and in pairs, never the last holder of a mount.
//!
//! Before every kill that concerns a mount its processes are looked at: each must have the connection open and all holders
//! must have all that a successor needs. Only then, and only if one of them stays, the kill happens.

use super::{
    driver::{Driver, Part, Staged},
    holders::Holders,
};
use crate::replay::{Rng, nemesis::pause, now_ns};
use Part::{Client, Controller, Hosts, Keeper, Mountd, NodeKeeper, Plugin, Supervisor};
use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How long a killed part may take to be whole again.
const BACK: Duration = Duration::from_secs(40);
/// Random moments between two kills.
const APART_MS: (u64, u64) = (50, 600);

/// What was killed.
#[derive(Clone, Debug, Default)]
pub struct Kills {
    /// SIGKILLs by kind of process.
    pub by_kind: BTreeMap<&'static str, u64>,
    /// Events by what they killed together.
    pub by_event: BTreeMap<String, u64>,
    /// Hosts and clients that were killed together with their mountd: not counted above.
    pub along: u64,
    /// Kills of holders before which all had the connection open, by mount.
    pub checked: u64,
    /// Fewest holders that an event left alive on a mount; 3 when no event concerned a mount.
    pub survivors_min: usize,
    /// Longest time until a mount was whole again, in ms.
    pub whole_ms: u64,
    /// Longest time until a killed plugin answered, in ms.
    pub ready_ms: u64,
}

impl Kills {
    /// All SIGKILLs.
    pub fn total(&self) -> u64 {
        self.by_kind.values().sum()
    }
    /// In words.
    pub fn text(&self) -> String {
        format!(
            "{} SIGKILLs {:?} and {} to hosts and clients of a mountd in events {:?}; {} looks at holders before kills, at \
             least {} of 3 stayed alive; longest until whole again {} ms, until a plugin answered {} ms",
            self.total(),
            self.by_kind,
            self.along,
            self.by_event,
            self.checked,
            self.survivors_min,
            self.whole_ms,
            self.ready_ms
        )
    }
}

/// Kills parts of a driver.
pub struct Nemesis<'a> {
    driver: &'a dyn Driver,
    mounts: &'a [Staged],
    rng: Rng,
    /// Holders of each mount when it was last killed at.
    last: BTreeMap<usize, Holders>,
    /// Everybody who was killed: a death takes a moment, so they may still look alive.
    dead: BTreeSet<u32>,
    kills: Kills,
}

impl<'a> Nemesis<'a> {
    /// For these mounts.
    pub fn new(driver: &'a dyn Driver, mounts: &'a [Staged], rng: Rng) -> Nemesis<'a> {
        let kills = Kills { survivors_min: 3, ..Kills::default() };
        Nemesis { driver, mounts, rng, last: BTreeMap::new(), dead: BTreeSet::new(), kills }
    }

    /// Kills until at least `n` SIGKILLs were sent, every event once in a random order before any comes again; then waits
    /// until everything is whole.
    pub fn run(mut self, n: u64) -> Result<Kills> {
        while self.kills.total() < n {
            let mut round = self.events();
            while !round.is_empty() && self.kills.total() < n {
                let i = self.rng.below(round.len() as u64) as usize;
                let event = round.swap_remove(i);
                self.strike(&event).with_context(|| format!("killing {event:?} after {}", self.kills.text()))?;
            }
        }
        for m in 0..self.mounts.len() {
            self.wait_whole(m)?;
        }
        for node in (0..self.driver.nodes()).map(Some).chain([None]) {
            self.driver.plugin_ready(node)?;
        }
        Ok(self.kills)
    }

    /// One of each kind, on random nodes and mounts.
    fn events(&mut self) -> Vec<Vec<Part>> {
        if self.driver.hands_over() { self.events_handed_over() } else { self.events_of_processes() }
    }

    fn events_of_processes(&mut self) -> Vec<Vec<Part>> {
        let (nodes, mounts) = (self.driver.nodes() as u64, self.mounts.len() as u64);
        let mut node = || self.rng.below(nodes) as usize;
        let n: Vec<usize> = (0..8).map(|_| node()).collect();
        let m: Vec<usize> = (0..16).map(|_| self.rng.below(mounts) as usize).collect();
        let other = (m[0] + 1) % self.mounts.len();
        vec![
            vec![Plugin(n[0])],
            vec![Plugin(1 - n[0].min(1))],
            vec![Controller],
            vec![Client(m[1])],
            vec![Client(m[2])],
            vec![Keeper(m[3])],
            vec![Supervisor(m[4])],
            vec![Plugin(n[1]), Controller],
            vec![Plugin(n[2]), Client(m[5])],
            vec![Plugin(n[3]), Keeper(m[6])],
            vec![Plugin(n[4]), Supervisor(m[7])],
            vec![Controller, Client(m[8])],
            vec![Keeper(m[9]), Client(m[9])],
            vec![Supervisor(m[10]), Client(m[10])],
            vec![Keeper(m[11]), Supervisor(m[11])],
            vec![Keeper(m[0]), Client(other)],
        ]
    }

    /// Plugin, keeper and host hold a mount: each alone, each pair, and their clients.
    fn events_handed_over(&mut self) -> Vec<Vec<Part>> {
        let mounts = self.mounts.len() as u64;
        let m: Vec<usize> = (0..16).map(|_| self.rng.below(mounts) as usize).collect();
        let n: Vec<usize> = m.iter().map(|m| self.mounts[*m].node).collect();
        vec![
            vec![Client(m[0])],
            vec![Supervisor(m[1])],
            vec![NodeKeeper(n[2])],
            vec![Mountd(n[3])],
            vec![Hosts(n[4])],
            vec![Plugin(n[5]), Controller],
            vec![Supervisor(m[6]), Client(m[6])],
            vec![Plugin(n[7]), Client(m[7])],
            vec![Plugin(n[8]), Supervisor(m[8])],
            vec![NodeKeeper(n[9]), Client(m[9])],
            vec![NodeKeeper(n[10]), Supervisor(m[10]), Client(m[10])],
            vec![NodeKeeper(n[11]), Plugin(n[11])],
            vec![NodeKeeper(n[12]), Plugin(n[12]), Client(m[12])],
            vec![Supervisor(m[13]), Client(m[13]), Plugin(n[13])],
            vec![Hosts(n[14]), NodeKeeper(n[14])],
            vec![Hosts(n[15]), Plugin(n[15])],
        ]
    }

    /// Mounts that the part holds or serves.
    fn concerned(&self, part: Part) -> Vec<usize> {
        let of_node = part.node().filter(|_| self.driver.hands_over());
        let on = |node| (0..self.mounts.len()).filter(move |m| self.mounts[*m].node == node);
        part.mount().into_iter().chain(of_node.into_iter().flat_map(on)).collect()
    }

    /// Kills these at once, when that is allowed.
    fn strike(&mut self, parts: &[Part]) -> Result<()> {
        let concerned: BTreeSet<usize> = parts.iter().flat_map(|p| self.concerned(*p)).collect();
        for part in parts {
            match part {
                Plugin(n) => self.timed_ready(Some(*n))?,
                Controller => self.timed_ready(None)?,
                _ => {}
            }
        }
        for m in &concerned {
            self.wait_whole(*m)?;
        }
        pause(Duration::from_millis(self.rng.between(APART_MS.0, APART_MS.1)));
        let mut holders = BTreeMap::new();
        for m in &concerned {
            holders.insert(*m, self.wait_whole(*m)?);
        }
        let mut killed = BTreeSet::new();
        for part in parts {
            let hit = self.kill(*part, &holders)?;
            ensure!(!hit.is_empty(), "{part:?} was not there although it had just been seen");
            *self.kills.by_kind.entry(part.kind()).or_default() += 1;
            self.kills.along += hit.len() as u64 - 1;
            killed.extend(hit);
        }
        for (m, h) in holders {
            let survivors = h.lasting().iter().filter(|p| !killed.contains(p)).count();
            self.kills.checked += h.pids().iter().filter(|p| killed.contains(p)).count() as u64;
            self.kills.survivors_min = self.kills.survivors_min.min(survivors);
            ensure!(survivors > 0, "that would have been total loss");
            self.last.insert(m, h);
        }
        self.dead.extend(killed);
        let name = parts.iter().map(|p| p.kind()).collect::<Vec<_>>().join("+");
        *self.kills.by_event.entry(name).or_default() += 1;
        Ok(())
    }

    /// SIGKILL; who was hit.
    fn kill(&self, part: Part, holders: &BTreeMap<usize, Holders>) -> Result<BTreeSet<u32>> {
        let one = |m: usize, pid: fn(&Holders) -> u32| {
            let pid = holders.get(&m).map(pid).filter(|p| kill(Pid::from_raw(*p as i32), Signal::SIGKILL).is_ok());
            Ok(pid.into_iter().collect())
        };
        match part {
            Plugin(n) => self.driver.kill_plugin(Some(n)),
            Controller => self.driver.kill_plugin(None),
            NodeKeeper(n) => self.driver.kill_node_keeper(n),
            Mountd(n) => self.driver.kill_mountd(n, false),
            Hosts(n) => self.driver.kill_mountd(n, true),
            Keeper(m) => one(m, |h| h.keeper),
            Supervisor(m) => one(m, |h| h.supervisor),
            Client(m) => one(m, |h| h.client),
        }
    }

    fn timed_ready(&mut self, node: Option<usize>) -> Result<()> {
        let start = now_ns();
        self.driver.plugin_ready(node)?;
        self.kills.ready_ms = self.kills.ready_ms.max((now_ns() - start) / 1_000_000);
        Ok(())
    }

    /// Waits until the mount is whole and nobody of those who were killed is taken for alive.
    fn wait_whole(&mut self, m: usize) -> Result<Holders> {
        let start = now_ns();
        loop {
            let found = self.driver.whole(&self.mounts[m]);
            if let Some(h) = found.filter(|h| h.pids().iter().all(|p| !self.dead.contains(p))) {
                self.kills.whole_ms = self.kills.whole_ms.max((now_ns() - start) / 1_000_000);
                return Ok(h);
            }
            if now_ns() - start > BACK.as_nanos() as u64 {
                bail!("{:?} is not whole after {BACK:?}; it was {:?}", self.mounts[m], self.last.get(&m));
            }
            pause(Duration::from_millis(10));
        }
    }
}
