//! /metrics in the Prometheus text format.

use crate::node::Metanode;
use std::fmt::Write;

impl Metanode {
    /// Counters and gauges of this node and its replicas.
    pub fn metrics(&self) -> String {
        let mut out = String::new();
        let log = self.host.log_stats();
        let _ = writeln!(out, "fusefs_log_appends_total {}", log.appends);
        let _ = writeln!(out, "fusefs_log_bytes_total {}", log.bytes);
        let _ = writeln!(out, "fusefs_log_fsyncs_total {}", log.fsyncs);
        let _ = writeln!(out, "fusefs_log_segments {}", log.segments);
        let _ = writeln!(out, "fusefs_event_streams {}", self.events.len());
        for hosted in self.all() {
            let labels = format!("{{volume=\"{}\",partition=\"{}\"}}", hosted.volume, hosted.id);
            let status = hosted.group.status();
            let mut line = |name: &str, value: u64| {
                let _ = writeln!(out, "fusefs_{name}{labels} {value}");
            };
            line("replica_leader", u64::from(status.is_leader));
            line("replica_stopped", u64::from(status.stopped.is_some()));
            line("replica_term", status.term);
            line("replica_applied", status.applied);
            line("open_files", hosted.holders.lock().len() as u64);
            line("lock_waiters", hosted.shared.lock_waiters.len() as u64);
            for (name, value) in hosted.counters.list() {
                line(&format!("{name}_total"), value);
            }
            let raft = hosted.group.stats();
            line("raft_entries_total", raft.entries);
            line("raft_read_barriers_total", raft.reads);
            line("raft_read_rounds_total", raft.read_rounds);
            line("raft_lease_reads_total", raft.lease_reads);
            line("raft_checkpoints_total", raft.checkpoints);
            let (usage, locks, repeated, blob) = hosted.group.read(|m| {
                let p = m.partition().ok();
                let (usage, locks) = p.map(|p| (p.usage(), p.file_locks())).unwrap_or_default();
                (usage, locks, p.map_or(0, |p| p.repeated()), m.blob_usage())
            });
            line("replies_repeated_total", repeated);
            line("partition_operations", usage.operations);
            line("partition_transactions", usage.transactions);
            line("partition_inodes", usage.inodes);
            line("partition_bytes", usage.bytes);
            line("partition_inline_bytes", usage.inline_bytes);
            line("partition_orphans", usage.orphans);
            line("partition_objects", usage.objects);
            line("partition_file_locks", locks);
            line("blob_bytes", blob.0);
            line("blob_segments", blob.1 as u64);
        }
        out
    }

    /// Why the node is not ready; empty = ready. A stopped replica does not make it so: the others serve.
    pub fn not_ready(&self) -> String {
        if *self.stopping().borrow() { "stopping".into() } else { String::new() }
    }
}
