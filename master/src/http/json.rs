//! The JSON that people see. No secret and no hash key is ever in it.

use super::{Failure, refused};
use fusefs_types::{
    FsError, StoreId,
    cluster::{
        ClusterInfo, NodeStatus, SessionStatus, StoreKind, StoreRecord, VolumeMap, VolumeRecord, VolumeSpec,
        VolumeState,
    },
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Body of POST /v1/stores.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewStore {
    name: String,
    kind: String,
    #[serde(default)]
    endpoint: String,
    #[serde(default)]
    region: String,
    #[serde(default)]
    bucket: String,
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    path_style: bool,
    #[serde(default)]
    credential: String,
}

impl NewStore {
    pub(super) fn record(self) -> Result<StoreRecord, Failure> {
        let kind = match self.kind.as_str() {
            "s3" => StoreKind::S3,
            "dir" => StoreKind::Dir,
            "memory" => StoreKind::Memory,
            other => return Err(refused(FsError::Invalid, format!("kind {other:?}: s3, dir or memory"))),
        };
        Ok(StoreRecord {
            id: StoreId(0),
            name: self.name,
            kind,
            endpoint: self.endpoint,
            region: self.region,
            bucket: self.bucket,
            prefix: self.prefix,
            path_style: self.path_style,
            credential: self.credential,
            probe: Vec::new(),
        })
    }
}

/// Body of POST /v1/volumes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewVolume {
    name: String,
    #[serde(default)]
    store: String,
    #[serde(default)]
    capacity: u64,
    #[serde(default)]
    inodes: u64,
    #[serde(default)]
    partitions: u32,
    #[serde(default)]
    replicas: u32,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl NewVolume {
    pub(super) fn spec(self) -> VolumeSpec {
        VolumeSpec {
            name: self.name,
            store: self.store,
            capacity: self.capacity,
            inodes: self.inodes,
            partitions: self.partitions,
            replicas: self.replicas,
            labels: self.labels.into_iter().collect(),
        }
    }
}

/// Body of POST /v1/volumes/NAME/expand. 0 = unlimited.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Size {
    pub(super) capacity: u64,
    #[serde(default)]
    pub(super) inodes: u64,
}

pub(super) fn store(s: &StoreRecord) -> Value {
    let kind = match s.kind {
        StoreKind::S3 => "s3",
        StoreKind::Dir => "dir",
        StoreKind::Memory => "memory",
    };
    let probe: Vec<Value> = s
        .probe
        .iter()
        .map(|c| json!({"name": c.name, "ok": c.ok, "required": c.required, "detail": c.detail}))
        .collect();
    json!({
        "id": s.id.0, "name": s.name, "kind": kind, "endpoint": s.endpoint, "region": s.region, "bucket": s.bucket,
        "prefix": s.prefix, "path_style": s.path_style, "credential": s.credential, "probe": probe,
    })
}

pub(super) fn volume(v: &VolumeRecord) -> Value {
    let state = match v.state {
        VolumeState::Creating => "creating",
        VolumeState::Ready => "ready",
        VolumeState::Deleting => "deleting",
    };
    let u = &v.usage;
    json!({
        "id": v.id.0, "name": v.name, "state": state, "store": v.store.0, "capacity": v.capacity, "inodes": v.inodes,
        "replicas": v.replicas, "redundancy": v.redundancy,
        "labels": v.labels.iter().cloned().collect::<BTreeMap<_, _>>(),
        "usage": {
            "inodes": u.inodes, "bytes": u.bytes, "inline_bytes": u.inline_bytes, "transactions": u.transactions,
            "operations": u.operations, "orphans": u.orphans, "objects": u.objects,
        },
    })
}

fn node(n: &NodeStatus) -> Value {
    let r = &n.record;
    json!({
        "id": r.id.to_string(), "addr": r.addr, "host": r.host, "alive": n.alive, "silent_ms": n.silent_ms,
        "replicas": n.replicas, "leaders": n.leaders, "memory": r.memory, "memory_used": n.memory_used,
        "capacity": r.capacity, "disk_used": n.disk_used, "feature_level": r.feature_level,
    })
}

pub(super) fn cluster(i: &ClusterInfo) -> Value {
    let masters: Vec<Value> = i
        .masters
        .iter()
        .map(|(addr, leader, reachable)| json!({"addr": addr, "leader": leader, "reachable": reachable}))
        .collect();
    json!({
        "cluster": i.cluster.to_string(), "masters": masters,
        "nodes": i.nodes.iter().map(node).collect::<Vec<_>>(),
        "volumes": i.volumes.iter().map(volume).collect::<Vec<_>>(),
        "problems": i.problems,
    })
}

pub(super) fn map(m: &VolumeMap) -> Value {
    let partitions: Vec<Value> = m
        .partitions
        .iter()
        .map(|p| {
            let ranges: Vec<Value> =
                p.ranges.iter().map(|r| json!({"start": r.start.ino.0, "end": r.end.ino.0})).collect();
            let members: Vec<Value> = p
                .members
                .iter()
                .map(|m| json!({"replica": m.replica.0, "node": m.node.to_string(), "addr": m.addr}))
                .collect();
            json!({"id": p.id.0, "ranges": ranges, "members": members, "leader": p.leader.map(|l| l.0)})
        })
        .collect();
    json!({"volume": m.volume.0, "generation": m.generation, "partitions": partitions})
}

pub(super) fn session(s: &SessionStatus, volume: &str) -> Value {
    json!({
        "session": s.session.to_string(), "volume": volume, "client": s.client, "leased": s.leased,
        "ending": s.ending, "attach": s.token.attach, "incarnation": s.token.incarnation.0,
        "attached": s.attached.iter().map(|p| p.0).collect::<Vec<_>>(),
    })
}
