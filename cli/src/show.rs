//! How records look as text and as JSON.

use anyhow::Result;
use fusefs_types::{
    cluster::{
        ClusterInfo, PartitionInfo, ProbeCheck, SessionStatus, StoreKind, StoreRecord, VolumeRecord, VolumeState,
    },
    ops::PartitionUsage,
};
use serde_json::{Value, json as j};

/// Prints a value for scripts.
pub fn json(value: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Capacity, 0 = unlimited.
pub fn capacity(n: u64) -> String {
    if n == 0 { "unlimited".into() } else { bytes(n) }
}

/// Volume state.
pub fn state(s: VolumeState) -> &'static str {
    match s {
        VolumeState::Creating => "creating",
        VolumeState::Ready => "ready",
        VolumeState::Deleting => "deleting",
    }
}

/// Store kind.
pub fn kind(k: StoreKind) -> &'static str {
    match k {
        StoreKind::S3 => "s3",
        StoreKind::Dir => "dir",
        StoreKind::Memory => "memory",
    }
}

/// Where a store is.
pub fn place(s: &StoreRecord) -> String {
    match s.kind {
        StoreKind::S3 => {
            let endpoint = if s.endpoint.is_empty() { "s3:/" } else { &s.endpoint };
            format!("{endpoint}/{}{}{}", s.bucket, if s.prefix.is_empty() { "" } else { "/" }, s.prefix)
        }
        StoreKind::Dir => s.endpoint.clone(),
        StoreKind::Memory => "(memory)".into(),
    }
}

/// Probe results, one line each.
pub fn print_probe(checks: &[ProbeCheck]) {
    for c in checks {
        let verdict = match (c.ok, c.required) {
            (true, _) => "ok",
            (false, true) => "FAILED",
            (false, false) => "not supported (not required)",
        };
        println!("  {:<20}{verdict}{}{}", c.name, if c.detail.is_empty() { "" } else { ": " }, c.detail);
    }
}

/// Store as JSON; never a secret.
pub fn store(s: &StoreRecord) -> Value {
    j!({
        "id": s.id.0, "name": s.name, "kind": kind(s.kind), "endpoint": s.endpoint, "region": s.region, "bucket": s.bucket,
        "prefix": s.prefix, "path_style": s.path_style, "credential": s.credential,
        "probe": s.probe.iter().map(|c| j!({"name": c.name, "ok": c.ok, "required": c.required, "detail": c.detail})).collect::<Vec<_>>(),
    })
}

/// Volume as JSON.
pub fn volume(v: &VolumeRecord) -> Value {
    j!({
        "id": v.id.0, "name": v.name, "state": state(v.state), "store_id": v.store.0, "capacity": v.capacity, "inodes": v.inodes,
        "replicas": v.replicas, "redundancy": v.redundancy, "usage": usage(&v.usage),
        "labels": v.labels.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
    })
}

fn usage(u: &PartitionUsage) -> Value {
    j!({
        "inodes": u.inodes, "bytes": u.bytes, "inline_bytes": u.inline_bytes, "transactions": u.transactions,
        "operations": u.operations, "orphans": u.orphans, "objects": u.objects,
    })
}

/// Partition as JSON, its counters beside its record.
pub fn partition(p: &PartitionInfo, u: Option<&PartitionUsage>) -> Value {
    let mut value = u.map_or_else(|| j!({}), usage);
    value["id"] = p.id.0.into();
    value["leader"] = p.leader.map(|l| l.0).into();
    value["members"] =
        p.members.iter().map(|m| j!({"replica": m.replica.0, "node": m.node.to_string(), "addr": m.addr})).collect();
    value["ranges"] = p.ranges.iter().map(|r| j!([r.start.ino.0, r.end.ino.0])).collect();
    value
}

/// Session as JSON.
pub fn session(s: &SessionStatus) -> Value {
    j!({"session": s.session.to_string(), "client": s.client, "leased": s.leased, "ending": s.ending,
        "attached": s.attached.iter().map(|p| p.0).collect::<Vec<_>>()})
}

/// Cluster as JSON.
pub fn info(i: &ClusterInfo) -> Value {
    j!({
        "cluster": i.cluster.to_string(),
        "masters": i.masters.iter().map(|(a, l, r)| j!({"addr": a, "leader": l, "reachable": r})).collect::<Vec<_>>(),
        "metanodes": i.nodes.iter().map(|n| j!({"id": n.record.id.to_string(), "addr": n.record.addr, "host": n.record.host, "alive": n.alive,
            "silent_ms": n.silent_ms, "replicas": n.replicas, "leaders": n.leaders, "memory_used": n.memory_used, "disk_used": n.disk_used})).collect::<Vec<_>>(),
        "volumes": i.volumes.iter().map(volume).collect::<Vec<_>>(),
        "problems": i.problems,
        "safe": i.problems.is_empty(),
    })
}
