//! Conversions of the records inside master calls and answers.

use super::super::common::{
    cluster, from_key_range, from_labels, from_member, from_store_credentials, from_store_record, from_token,
    from_usage, id128, key_range, labels, list, member, mount, need, session, store_credentials, store_record, text,
    token, usage,
};
use super::some_node;
use crate::master::v1 as pb;
use fusefs_types::{
    FsError, FsResult, Ino, PartitionId, ReplicaId, StoreId, VolumeId,
    cluster::{
        ClusterInfo, Heartbeat, NodeRecord, NodeStatus, PartitionInfo, ReplicaReport, SessionGrant, SessionRequest,
        SessionStatus, VolumeMap, VolumeRecord, VolumeSpec, VolumeState,
    },
};

/// Most items of one list.
const LIST_MAX: usize = 1 << 20;
/// Bytes of a session secret that a decoder accepts.
const SECRET_MAX: usize = 1024;

/// Metanode record to the wire.
pub fn node_record(n: &NodeRecord) -> pb::NodeRecord {
    pb::NodeRecord {
        id: id128(n.id.0),
        addr: n.addr.clone(),
        host: n.host.clone(),
        capacity: n.capacity,
        memory: n.memory,
        feature_level: n.feature_level,
    }
}

/// Metanode record from the wire.
pub fn from_node_record(n: pb::NodeRecord) -> FsResult<NodeRecord> {
    Ok(NodeRecord {
        id: some_node(n.id)?,
        addr: text(n.addr)?,
        host: text(n.host)?,
        capacity: n.capacity,
        memory: n.memory,
        feature_level: n.feature_level,
    })
}

fn replica_report(r: &ReplicaReport) -> pb::ReplicaReport {
    pb::ReplicaReport {
        partition: r.partition.0,
        replica: r.replica.0,
        leader: r.leader,
        term: r.term,
        applied: r.applied,
        usage: Some(usage(&r.usage)),
        inos_left: r.inos_left,
        failed: r.failed.clone(),
    }
}

fn from_replica_report(r: pb::ReplicaReport) -> FsResult<ReplicaReport> {
    Ok(ReplicaReport {
        partition: PartitionId(r.partition),
        replica: ReplicaId(r.replica),
        leader: r.leader,
        term: r.term,
        applied: r.applied,
        usage: r.usage.map(from_usage).unwrap_or_default(),
        inos_left: r.inos_left,
        failed: text(r.failed)?,
    })
}

/// Heartbeat to the wire.
pub fn heartbeat(h: &Heartbeat) -> pb::Heartbeat {
    pb::Heartbeat {
        node: id128(h.node.0),
        memory_used: h.memory_used,
        disk_used: h.disk_used,
        replicas: h.replicas.iter().map(replica_report).collect(),
    }
}

/// Heartbeat from the wire.
pub fn from_heartbeat(h: pb::Heartbeat) -> FsResult<Heartbeat> {
    Ok(Heartbeat {
        node: some_node(h.node)?,
        memory_used: h.memory_used,
        disk_used: h.disk_used,
        replicas: list(h.replicas, LIST_MAX, from_replica_report)?,
    })
}

fn node_status(n: &NodeStatus) -> pb::NodeStatus {
    pb::NodeStatus {
        record: Some(node_record(&n.record)),
        alive: n.alive,
        silent_ms: n.silent_ms,
        replicas: n.replicas,
        leaders: n.leaders,
        memory_used: n.memory_used,
        disk_used: n.disk_used,
    }
}

fn from_node_status(n: pb::NodeStatus) -> FsResult<NodeStatus> {
    Ok(NodeStatus {
        record: from_node_record(need(n.record)?)?,
        alive: n.alive,
        silent_ms: n.silent_ms,
        replicas: n.replicas,
        leaders: n.leaders,
        memory_used: n.memory_used,
        disk_used: n.disk_used,
    })
}

/// Cluster info to the wire.
pub fn cluster_info(i: &ClusterInfo) -> pb::ClusterInfo {
    pb::ClusterInfo {
        cluster: id128(i.cluster.0),
        masters: i
            .masters
            .iter()
            .map(|(addr, leader, reachable)| pb::MasterStatus {
                addr: addr.clone(),
                leader: *leader,
                reachable: *reachable,
            })
            .collect(),
        nodes: i.nodes.iter().map(node_status).collect(),
        volumes: i.volumes.iter().map(volume_record).collect(),
        problems: i.problems.clone(),
    }
}

/// Cluster info from the wire.
pub fn from_cluster_info(i: pb::ClusterInfo) -> FsResult<ClusterInfo> {
    Ok(ClusterInfo {
        cluster: cluster(i.cluster),
        masters: list(i.masters, LIST_MAX, |m| Ok((text(m.addr)?, m.leader, m.reachable)))?,
        nodes: list(i.nodes, LIST_MAX, from_node_status)?,
        volumes: list(i.volumes, LIST_MAX, from_volume_record)?,
        problems: list(i.problems, LIST_MAX, text)?,
    })
}

/// Volume parameters to the wire.
pub fn volume_spec(s: &VolumeSpec) -> pb::VolumeSpec {
    pb::VolumeSpec {
        name: s.name.clone(),
        store: s.store.clone(),
        capacity: s.capacity,
        inodes: s.inodes,
        partitions: s.partitions,
        replicas: s.replicas,
        labels: labels(&s.labels),
    }
}

/// Volume parameters from the wire.
pub fn from_volume_spec(s: pb::VolumeSpec) -> FsResult<VolumeSpec> {
    Ok(VolumeSpec {
        name: text(s.name)?,
        store: text(s.store)?,
        capacity: s.capacity,
        inodes: s.inodes,
        partitions: s.partitions,
        replicas: s.replicas,
        labels: from_labels(s.labels)?,
    })
}

fn volume_state(s: VolumeState) -> i32 {
    match s {
        VolumeState::Creating => pb::VolumeState::Creating,
        VolumeState::Ready => pb::VolumeState::Ready,
        VolumeState::Deleting => pb::VolumeState::Deleting,
    }
    .into()
}

fn from_volume_state(s: i32) -> FsResult<VolumeState> {
    match pb::VolumeState::try_from(s) {
        Ok(pb::VolumeState::Creating) => Ok(VolumeState::Creating),
        Ok(pb::VolumeState::Ready) => Ok(VolumeState::Ready),
        Ok(pb::VolumeState::Deleting) => Ok(VolumeState::Deleting),
        Ok(pb::VolumeState::Unspecified) | Err(_) => Err(FsError::Invalid),
    }
}

/// Volume record to the wire.
pub fn volume_record(v: &VolumeRecord) -> pb::VolumeRecord {
    pb::VolumeRecord {
        id: v.id.0,
        name: v.name.clone(),
        state: volume_state(v.state),
        store: v.store.0,
        capacity: v.capacity,
        inodes: v.inodes,
        replicas: v.replicas,
        hash_key: bytes::Bytes::copy_from_slice(&v.hash_key),
        redundancy: v.redundancy.clone(),
        labels: labels(&v.labels),
        usage: Some(usage(&v.usage)),
    }
}

/// Volume record from the wire.
pub fn from_volume_record(v: pb::VolumeRecord) -> FsResult<VolumeRecord> {
    Ok(VolumeRecord {
        id: VolumeId(v.id),
        name: text(v.name)?,
        state: from_volume_state(v.state)?,
        store: StoreId(v.store),
        capacity: v.capacity,
        inodes: v.inodes,
        replicas: v.replicas,
        hash_key: v.hash_key.as_ref().try_into().map_err(|_| FsError::Invalid)?,
        redundancy: text(v.redundancy)?,
        labels: from_labels(v.labels)?,
        usage: v.usage.map(from_usage).unwrap_or_default(),
    })
}

fn partition_info(p: &PartitionInfo) -> pb::PartitionInfo {
    pb::PartitionInfo {
        id: p.id.0,
        volume: p.volume.0,
        ranges: p.ranges.iter().map(key_range).collect(),
        members: p.members.iter().map(member).collect(),
        leader: p.leader.map(|r| r.0),
    }
}

fn from_partition_info(p: pb::PartitionInfo) -> FsResult<PartitionInfo> {
    Ok(PartitionInfo {
        id: PartitionId(p.id),
        volume: VolumeId(p.volume),
        ranges: list(p.ranges, LIST_MAX, from_key_range)?,
        members: list(p.members, 64, from_member)?,
        leader: p.leader.map(ReplicaId),
    })
}

/// Partition map to the wire.
pub fn volume_map(m: &VolumeMap) -> pb::VolumeMap {
    pb::VolumeMap {
        volume: m.volume.0,
        generation: m.generation,
        partitions: m.partitions.iter().map(partition_info).collect(),
    }
}

/// Partition map from the wire.
pub fn from_volume_map(m: pb::VolumeMap) -> FsResult<VolumeMap> {
    Ok(VolumeMap {
        volume: VolumeId(m.volume),
        generation: m.generation,
        partitions: list(m.partitions, LIST_MAX, from_partition_info)?,
    })
}

/// Session request to the wire.
pub fn session_request(r: &SessionRequest) -> pb::SessionRequest {
    pb::SessionRequest {
        volume: r.volume.clone(),
        mount: id128(r.mount.0),
        session: id128(r.session.0),
        token: token(r.token),
        client: r.client.clone(),
        read_only: r.read_only,
    }
}

/// Session request from the wire.
pub fn from_session_request(r: pb::SessionRequest) -> FsResult<SessionRequest> {
    Ok(SessionRequest {
        volume: text(r.volume)?,
        mount: mount(r.mount),
        session: session(r.session),
        token: from_token(r.token),
        client: text(r.client)?,
        read_only: r.read_only,
    })
}

/// Session grant to the wire.
pub fn session_grant(g: &SessionGrant) -> pb::SessionGrant {
    pb::SessionGrant {
        cluster: id128(g.cluster.0),
        session: id128(g.session.0),
        token: token(g.token),
        secret: g.secret.clone(),
        lease_ms: g.lease_ms,
        volume: Some(volume_record(&g.volume)),
        map: Some(volume_map(&g.map)),
        store: Some(store_record(&g.store)),
        credentials: Some(store_credentials(&g.credentials)),
        root: g.root.0,
        credit_bytes: g.credit.0,
        credit_inodes: g.credit.1,
    }
}

/// Session grant from the wire.
pub fn from_session_grant(g: pb::SessionGrant) -> FsResult<SessionGrant> {
    if g.secret.len() > SECRET_MAX {
        return Err(FsError::Invalid);
    }
    Ok(SessionGrant {
        cluster: cluster(g.cluster),
        session: session(g.session),
        token: from_token(g.token),
        secret: g.secret,
        lease_ms: g.lease_ms,
        volume: from_volume_record(need(g.volume)?)?,
        map: from_volume_map(need(g.map)?)?,
        store: from_store_record(need(g.store)?)?,
        credentials: from_store_credentials(need(g.credentials)?)?,
        root: Ino(g.root),
        credit: (g.credit_bytes, g.credit_inodes),
    })
}

/// Session status to the wire.
pub fn session_status(s: &SessionStatus) -> pb::SessionStatus {
    pb::SessionStatus {
        session: id128(s.session.0),
        volume: s.volume.0,
        token: token(s.token),
        client: s.client.clone(),
        leased: s.leased,
        attached: s.attached.iter().map(|p| p.0).collect(),
        ending: s.ending,
    }
}

/// Session status from the wire.
pub fn from_session_status(s: pb::SessionStatus) -> FsResult<SessionStatus> {
    Ok(SessionStatus {
        session: session(s.session),
        volume: VolumeId(s.volume),
        token: from_token(s.token),
        client: text(s.client)?,
        leased: s.leased,
        attached: s.attached.into_iter().map(PartitionId).collect(),
        ending: s.ending,
    })
}
