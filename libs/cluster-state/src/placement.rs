//! Placement as a pure function: which metanodes get the replicas of N partitions, and what the result survives.

use fusefs_types::{NodeId, limits};
use std::collections::{BTreeMap, BTreeSet};

/// A metanode that may take replicas, with its present load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Node.
    pub node: NodeId,
    /// Its address, for messages.
    pub addr: String,
    /// Failure domain: replicas of one partition spread over these first.
    pub host: String,
    /// Memory it may use; 0 = not known, which counts as plenty.
    pub memory: u64,
    /// Memory it uses.
    pub memory_used: u64,
    /// Replicas on it, including ones being created.
    pub replicas: u32,
    /// Leaders on it.
    pub leaders: u32,
}

/// A plan: nodes per partition, the preferred leader first, and its redundancy in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Nodes of each partition's replicas.
    pub partitions: Vec<Vec<NodeId>>,
    /// What it survives.
    pub redundancy: String,
}

/// Why nothing can be placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlacementError {
    /// No metanode is alive.
    NoNodes,
    /// More replicas were asked for than metanodes are alive: (asked, alive).
    TooFew(u32, u32),
}

impl std::fmt::Display for PlacementError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PlacementError::NoNodes => f.write_str(
                "no metanode is alive; start one with `fusefs metanode` (`fusefs status` shows who has registered)",
            ),
            PlacementError::TooFew(asked, alive) => write!(
                f,
                "{asked} replicas were asked for, but only {alive} metanode(s) are alive; start more, or ask for {alive}"
            ),
        }
    }
}

/// Load of a node while the plan is being made.
struct Load<'a> {
    candidate: &'a Candidate,
    replicas: u32,
    leaders: u32,
}

impl Load<'_> {
    /// Sorts the better node first: memory in tenths (so that small differences do not overrule the counts), then
    /// counts, then the id, which makes the result a function of the input.
    fn key(&self) -> (u64, u32, u32, NodeId) {
        let c = self.candidate;
        let tenths = c.memory_used.saturating_mul(10).checked_div(c.memory).unwrap_or(0);
        (tenths, self.replicas, self.leaders, c.node)
    }
}

/// Places `partitions` x `replicas` (0 = defaults: 3, and as many replicas as there are nodes but at most 3) on the
/// candidates. Replicas of one partition never share a node; they share a host only when there are fewer hosts than
/// replicas.
pub fn place(candidates: &[Candidate], partitions: u32, replicas: u32) -> Result<Placement, PlacementError> {
    let alive = u32::try_from(candidates.len()).unwrap_or(u32::MAX);
    let partitions = if partitions == 0 { limits::PARTITIONS_DEFAULT } else { partitions };
    let wanted = if replicas == 0 { limits::REPLICAS_DEFAULT.min(alive) } else { replicas };
    if alive == 0 {
        return Err(PlacementError::NoNodes);
    }
    if wanted > alive {
        return Err(PlacementError::TooFew(wanted, alive));
    }
    let mut loads: Vec<Load<'_>> =
        candidates.iter().map(|c| Load { candidate: c, replicas: c.replicas, leaders: c.leaders }).collect();
    let plan: Vec<Vec<NodeId>> = (0..partitions).map(|_| place_one(&mut loads, wanted)).collect();
    let redundancy = redundancy(candidates, &plan);
    Ok(Placement { partitions: plan, redundancy })
}

fn place_one(loads: &mut [Load<'_>], replicas: u32) -> Vec<NodeId> {
    let mut chosen: Vec<usize> = Vec::new();
    for _ in 0..replicas {
        let hosts: BTreeSet<&str> = chosen.iter().map(|i| loads[*i].candidate.host.as_str()).collect();
        let free = (0..loads.len()).filter(|i| !chosen.contains(i));
        let best = free.min_by_key(|i| (hosts.contains(loads[*i].candidate.host.as_str()), loads[*i].key()));
        let Some(best) = best else { break };
        loads[best].replicas += 1;
        chosen.push(best);
    }
    // The first member is the preferred leader: the one that leads least.
    chosen.sort_by_key(|i| (loads[*i].leaders, loads[*i].key()));
    if let Some(first) = chosen.first() {
        loads[*first].leaders += 1;
    }
    chosen.iter().map(|i| loads[*i].candidate.node).collect()
}

/// What a plan survives, in words that a person can act on.
fn redundancy(candidates: &[Candidate], plan: &[Vec<NodeId>]) -> String {
    let by_id: BTreeMap<NodeId, &Candidate> = candidates.iter().map(|c| (c.node, c)).collect();
    let hosts_of = |nodes: &Vec<NodeId>| nodes.iter().filter_map(|n| by_id.get(n)).map(|c| c.host.as_str()).collect();
    let replicas = plan.first().map_or(0, Vec::len);
    let hosts = plan.iter().map(hosts_of).map(|h: BTreeSet<&str>| h.len()).min().unwrap_or(0);
    if replicas <= 1 {
        let nodes: BTreeSet<&NodeId> = plan.iter().flatten().collect();
        let names: Vec<&str> = nodes.iter().filter_map(|n| by_id.get(*n)).map(|c| c.addr.as_str()).take(3).collect();
        let any = if nodes.len() > 1 { "any of " } else { "" };
        let more = if nodes.len() > 3 { ", ..." } else { "" };
        return format!("1 replica: NO redundancy, losing {any}node {}{more} loses data", names.join(", "));
    }
    let survives = (replicas - 1) / 2;
    let on = format!("{replicas} replicas on {hosts} host{}", if hosts == 1 { "" } else { "s" });
    let nodes = match survives {
        0 => "keeps the data of 1 lost node, but stops until it is back".to_owned(),
        n => format!("survives {n} node{}", if n == 1 { "" } else { "s" }),
    };
    let quorum = replicas / 2 + 1;
    // Some host carries more replicas than may be lost.
    let crowded = plan.iter().any(|nodes| {
        let mut per_host: BTreeMap<&str, usize> = BTreeMap::new();
        nodes.iter().filter_map(|n| by_id.get(n)).for_each(|c| *per_host.entry(c.host.as_str()).or_default() += 1);
        per_host.values().any(|n| replicas - n < quorum)
    });
    match (survives > 0 && crowded, hosts) {
        (true, 1) => format!("{on}: {nodes}, but NOT the loss of the host"),
        (true, _) => format!("{on}: {nodes}, but NOT the loss of every host"),
        (false, _) => format!("{on}: {nodes}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u128, host: &str) -> Candidate {
        Candidate {
            node: NodeId(id),
            addr: format!("{host}:{}", 7000 + id),
            host: host.into(),
            memory: 1000,
            memory_used: 0,
            replicas: 0,
            leaders: 0,
        }
    }

    fn words(hosts: &[&str], replicas: u32) -> String {
        let nodes: Vec<_> = hosts.iter().zip(1..).map(|(h, i)| node(i, h)).collect();
        place(&nodes, 0, replicas).map_or_else(|e| e.to_string(), |p| p.redundancy)
    }

    #[test]
    fn says_what_is_survived() {
        let table: &[(&[&str], u32, &str)] = &[
            (&["a", "b", "c"], 0, "3 replicas on 3 hosts: survives 1 node"),
            (&["a", "b", "c", "d", "e"], 5, "5 replicas on 5 hosts: survives 2 nodes"),
            (&["a"], 0, "1 replica: NO redundancy, losing node a:7001 loses data"),
            (&["a", "b"], 1, "1 replica: NO redundancy, losing any of node a:7001, b:7002 loses data"),
            (&["a", "b"], 0, "2 replicas on 2 hosts: keeps the data of 1 lost node, but stops until it is back"),
            (&["a", "a", "a"], 0, "3 replicas on 1 host: survives 1 node, but NOT the loss of the host"),
            (&["a", "a", "b"], 3, "3 replicas on 2 hosts: survives 1 node, but NOT the loss of every host"),
        ];
        for (hosts, replicas, want) in table {
            assert_eq!(words(hosts, *replicas), *want);
        }
        assert!(words(&[], 0).contains("no metanode is alive"));
        assert!(words(&["a", "b"], 3).contains("only 2 metanode(s) are alive"));
    }

    #[test]
    fn spreads_over_hosts_and_then_by_load() {
        let mut nodes = vec![node(1, "a"), node(2, "a"), node(3, "b"), node(4, "c"), node(5, "c")];
        nodes[3].memory_used = 900;
        for p in place(&nodes, 6, 3).unwrap().partitions {
            let hosts: BTreeSet<_> = p.iter().map(|n| &nodes[n.0 as usize - 1].host).collect();
            assert_eq!(hosts.len(), 3, "{p:?}");
            assert!(!p.contains(&NodeId(4)), "the full node 4 was taken although 5 has room: {p:?}");
        }
    }

    #[test]
    fn leaders_and_replicas_are_even() {
        let nodes: Vec<_> = (1..=5).map(|i| node(i, &format!("h{i}"))).collect();
        let plan = place(&nodes, 10, 3).unwrap().partitions;
        for n in &nodes {
            assert_eq!(plan.iter().filter(|p| p.contains(&n.node)).count(), 6);
            // The first choice is greedy, so preferred leaders are only nearly even.
            assert!((1..=3).contains(&plan.iter().filter(|p| p[0] == n.node).count()));
        }
    }
}
