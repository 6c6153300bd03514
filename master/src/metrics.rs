//! Prometheus text.

use crate::core::Core;
use fusefs_types::FsError;
use std::fmt::Write;

/// Everything this master counts. Gauges about metanodes and partitions are the leader's knowledge: 0 elsewhere.
pub(crate) fn text(core: &Core) -> String {
    let mut out = String::new();
    let status = core.log.leadership().borrow().clone();
    let mut gauge = |name: &str, help: &str, value: u64| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
    };
    gauge("fusefs_master_leader", "1 while this master leads", u64::from(status.ready));
    gauge("fusefs_master_term", "Raft term", status.term);
    let reachable = core.log.masters().iter().filter(|m| m.2).count() as u64;
    gauge("fusefs_masters_reachable", "Masters reachable from here, this one included", reachable);
    let (nodes, volumes, partitions, sessions, sweeps) = core.view(|s| {
        (
            s.nodes().count() as u64,
            s.volumes().count() as u64,
            s.partitions().count() as u64,
            s.sessions().count() as u64,
            s.sweeps().count() as u64,
        )
    });
    gauge("fusefs_metanodes", "Registered metanodes", nodes);
    gauge("fusefs_volumes", "Volumes in any state", volumes);
    gauge("fusefs_partitions", "Meta-partitions", partitions);
    gauge("fusefs_sessions", "Sessions, open and ending", sessions);
    gauge("fusefs_sweeps_pending", "Ended sessions whose unreferenced objects are to be deleted", sweeps);
    let alive = core.candidates().len() as u64;
    gauge("fusefs_metanodes_alive", "Metanodes heard of lately", if status.ready { alive } else { 0 });
    let led = core.memory.lock().leaders.len() as u64;
    gauge("fusefs_partitions_led", "Partitions with a known leader", if status.ready { led } else { 0 });
    let _ = writeln!(out, "# HELP fusefs_master_calls_total Calls answered\n# TYPE fusefs_master_calls_total counter");
    for ((call, code), count) in &core.counters.lock().calls {
        let error = if *code == 0 { "none".to_owned() } else { format!("{:?}", FsError::from_code(*code)) };
        let _ = writeln!(out, "fusefs_master_calls_total{{call=\"{call}\",error=\"{error}\"}} {count}");
    }
    out
}
