//! Kills at random moments, alone and in pairs, never the last holder of a mount.
//!
//! Before every kill that concerns a mount its three processes are looked at: each must have the connection open and both
//! holders must have all that a successor needs. Only then, and only if one of them stays, the kill happens.

use super::{
    driver::{Driver, Part, Staged},
    holders::Holders,
};
use crate::replay::{Rng, nemesis::pause, now_ns};
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
    /// Kills of holders before which all three had the connection open.
    pub checked: u64,
    /// Fewest holders that an event left alive on its mount; 3 when no event concerned a mount.
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
            "{} SIGKILLs {:?} in events {:?}; {} looks at holders before kills, at least {} of 3 stayed alive; longest until \
             whole again {} ms, until a plugin answered {} ms",
            self.total(),
            self.by_kind,
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
        use Part::{Client, Controller, Keeper, Plugin, Supervisor};
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

    /// Kills these at once, when that is allowed.
    fn strike(&mut self, parts: &[Part]) -> Result<()> {
        let mut concerned: Vec<usize> = parts.iter().filter_map(|p| p.mount()).collect();
        concerned.sort_unstable();
        concerned.dedup();
        for part in parts {
            match part {
                Part::Plugin(n) => self.timed_ready(Some(*n))?,
                Part::Controller => self.timed_ready(None)?,
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
        let mut sent = 0;
        for part in parts {
            let pid = part.mount().and_then(|m| holders.get(&m)).map(|h| match part {
                Part::Keeper(_) => h.keeper,
                Part::Supervisor(_) => h.supervisor,
                _ => h.client,
            });
            let hit = match (part, pid) {
                (Part::Plugin(n), _) => self.driver.kill_plugin(Some(*n))?,
                (Part::Controller, _) => self.driver.kill_plugin(None)?,
                (_, Some(pid)) => {
                    self.dead.insert(pid);
                    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).is_ok()
                }
                _ => false,
            };
            ensure!(hit, "{part:?} was not there although it had just been seen");
            *self.kills.by_kind.entry(part.kind()).or_default() += 1;
            sent += 1;
        }
        for (m, h) in holders {
            let killed = parts.iter().filter(|p| p.mount() == Some(m)).count();
            self.kills.checked += killed as u64;
            self.kills.survivors_min = self.kills.survivors_min.min(h.pids().len() - killed);
            ensure!(killed < h.pids().len(), "that would have been total loss");
            self.last.insert(m, h);
        }
        let name = parts.iter().map(|p| p.kind()).collect::<Vec<_>>().join("+");
        *self.kills.by_event.entry(name).or_default() += u64::from(sent > 0);
        Ok(())
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
