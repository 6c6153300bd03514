//! What goes wrong, and how often.

use crate::sim::{
    env::{SimRng, pause_ms},
    net::{Weather, Who},
    world::{NODES, PARTITIONS, World, node_id},
};
use fusefs_raft_host::MemNetSettings;
use fusefs_types::PartitionId;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Every kind of fault; a set of seeds that misses one is no test.
pub const FAULTS: [&str; 12] = [
    "power losses",
    "process kills",
    "leader kills",
    "whole cluster power losses",
    "nodes isolated",
    "leaders isolated",
    "one-way cuts",
    "clients cut off",
    "storms of loss",
    "requests lost",
    "replies lost",
    "requests repeated",
];

/// Message chances in ordinary times.
pub fn ordinary() -> (Weather, MemNetSettings) {
    let raft = MemNetSettings {
        delay_min: Duration::from_micros(50),
        delay_max: Duration::from_millis(2),
        loss_ppm: 2_000,
        duplicate_ppm: 5_000,
    };
    (Weather { loss_ppm: 10_000, repeat_ppm: 60_000 }, raft)
}

fn storm() -> (Weather, MemNetSettings) {
    let (_, raft) = ordinary();
    let raft = MemNetSettings { loss_ppm: 150_000, delay_max: Duration::from_millis(30), ..raft };
    (Weather { loss_ppm: 200_000, repeat_ppm: 200_000 }, raft)
}

/// The one who breaks things.
pub struct Nemesis {
    world: Arc<World>,
    rng: Arc<SimRng>,
    clients: usize,
}

impl Nemesis {
    /// One for a world with so many clients.
    pub fn new(world: &Arc<World>, seed: u64, clients: usize) -> Nemesis {
        Nemesis { world: world.clone(), rng: SimRng::new(seed ^ 0xbad_0bad), clients }
    }

    fn weather(&self, (calls, raft): (Weather, MemNetSettings)) {
        self.world.net.set(calls);
        self.world.raft.set(raft);
    }

    /// Breaks things until `over`, at most `faults` times; then heals everything.
    pub async fn run(self, faults: u64, over: Arc<AtomicBool>) -> Result<(), String> {
        self.weather(ordinary());
        for _ in 0..faults {
            pause_ms(20 + self.rng.below(500)).await;
            if over.load(Ordering::Relaxed) {
                break;
            }
            self.strike().await?;
            if self.rng.below(3) > 0 {
                self.heal();
                self.weather(ordinary());
            }
        }
        self.heal();
        self.weather((Weather::default(), MemNetSettings::default()));
        for node in 0..NODES {
            self.revive(node).await?;
        }
        Ok(())
    }

    fn heal(&self) {
        self.world.net.heal();
        self.world.raft.heal();
    }

    async fn revive(&self, node: usize) -> Result<(), String> {
        if self.world.net.live(node).is_none() {
            self.world.net.counts.add("restarts");
            self.world.boot(node).await?;
        }
        Ok(())
    }

    fn kill(&self, node: usize, power: bool) {
        self.world.kill(node, power.then(|| self.rng.below(u64::MAX)));
    }

    fn victim(&self) -> usize {
        self.rng.below(NODES as u64) as usize
    }

    /// The leader of a partition, or anybody.
    fn leader(&self) -> (usize, bool) {
        let partition = PartitionId(1 + self.rng.below(PARTITIONS));
        self.world.leads(partition).map_or_else(|| (self.victim(), false), |n| (n, true))
    }

    fn cut(&self, from: usize, to: usize) {
        self.world.raft.cut(node_id(from), node_id(to));
        self.world.net.cut(Who::Node(from), Who::Node(to));
    }

    fn isolate(&self, node: usize) {
        for other in (0..NODES).filter(|o| *o != node) {
            self.cut(node, other);
            self.cut(other, node);
        }
        if self.rng.below(2) == 0 {
            for client in 0..self.clients {
                self.world.net.cut(Who::Client(client), Who::Node(node));
                self.world.net.cut(Who::Node(node), Who::Client(client));
            }
        }
    }

    async fn strike(&self) -> Result<(), String> {
        let counts = &self.world.net.counts;
        match self.rng.below(14) {
            0..=1 => {
                counts.add("power losses");
                self.down(self.victim(), true).await
            }
            2 => {
                counts.add("process kills");
                self.down(self.victim(), false).await
            }
            3..=5 => {
                let (node, leads) = self.leader();
                if leads {
                    counts.add("leader kills");
                }
                self.down(node, self.rng.below(2) == 0).await
            }
            6 => {
                counts.add("whole cluster power losses");
                (0..NODES).for_each(|n| self.kill(n, true));
                pause_ms(self.rng.below(300)).await;
                for node in 0..NODES {
                    self.revive(node).await?;
                }
                Ok(())
            }
            7..=8 => {
                counts.add("nodes isolated");
                self.isolate(self.victim());
                self.linger().await
            }
            9..=10 => {
                let (node, leads) = self.leader();
                if leads {
                    counts.add("leaders isolated");
                }
                self.isolate(node);
                self.linger().await
            }
            11 => {
                counts.add("one-way cuts");
                let from = self.victim();
                self.cut(from, (from + 1) % NODES);
                if self.rng.below(2) == 0 {
                    self.cut(from, (from + 2) % NODES);
                }
                self.linger().await
            }
            12 => {
                counts.add("clients cut off");
                let client = Who::Client(self.rng.below(self.clients as u64) as usize);
                let node = Who::Node(self.victim());
                self.world.net.cut(node, client);
                if self.rng.below(2) == 0 {
                    self.world.net.cut(client, node);
                }
                self.linger().await
            }
            _ => {
                counts.add("storms of loss");
                self.weather(storm());
                self.linger().await
            }
        }
    }

    async fn linger(&self) -> Result<(), String> {
        pause_ms(100 + self.rng.below(2_000)).await;
        Ok(())
    }

    /// A node dies, and comes back after a while: at once, or when its leases have ended.
    async fn down(&self, node: usize, power: bool) -> Result<(), String> {
        self.kill(node, power);
        let long = self.rng.below(2) == 0;
        pause_ms(self.rng.below(if long { 2_500 } else { 60 })).await;
        self.revive(node).await
    }
}
