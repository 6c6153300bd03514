//! The master's orders to a metanode.

use super::{
    common::{self, list, need},
    ops, txn,
};
use crate::metanode::v1 as pb;
use bytes::Bytes;
use fusefs_types::{
    FsError, FsResult, PartitionId, ReplicaId, VolumeId,
    cluster::{NodeCall, NodeReply, ReplicaSpec},
    limits,
    ops::{Envelope, Reply},
};

/// Most replicas of one group, far above real use.
const MEMBERS_MAX: usize = 64;

/// Replica to create, to the wire.
pub fn replica_spec(s: &ReplicaSpec) -> pb::ReplicaSpec {
    pb::ReplicaSpec {
        partition: s.partition.0,
        replica: s.replica.0,
        volume: s.volume.0,
        members: s.members.iter().map(common::member).collect(),
        ranges: s.ranges.iter().map(common::key_range).collect(),
        hash_key: Bytes::copy_from_slice(&s.hash_key),
        store: Some(common::store_record(&s.store)),
        credentials: Some(common::store_credentials(&s.credentials)),
    }
}

/// Replica to create, from the wire.
pub fn from_replica_spec(s: pb::ReplicaSpec) -> FsResult<ReplicaSpec> {
    Ok(ReplicaSpec {
        partition: PartitionId(s.partition),
        replica: ReplicaId(s.replica),
        volume: VolumeId(s.volume),
        members: list(s.members, MEMBERS_MAX, common::from_member)?,
        ranges: list(s.ranges, limits::PARTITIONS_MAX as usize, common::from_key_range)?,
        hash_key: s.hash_key[..].try_into().map_err(|_| FsError::Invalid)?,
        store: common::from_store_record(need(s.store)?)?,
        credentials: common::from_store_credentials(need(s.credentials)?)?,
    })
}

/// Order to the wire.
pub fn node_call(c: &NodeCall) -> pb::NodeCall {
    use pb::node_call::Call as C;
    let call = match c {
        NodeCall::CreateReplica(s) => C::CreateReplica(replica_spec(s)),
        NodeCall::DestroyReplica(p, r) => C::DestroyReplica(pb::ReplicaName { partition: p.0, replica: r.0 }),
        NodeCall::Command(p, i) => C::Command(pb::GroupCommand { partition: p.0, command: Some(txn::internal(i)) }),
        NodeCall::ListObjects(p, after, limit) => C::ListObjects(pb::ListObjects {
            partition: p.0,
            after: after.as_ref().map(common::object_id),
            limit: *limit,
        }),
        NodeCall::Fsck(p) => C::Fsck(pb::GroupName { partition: p.0 }),
        NodeCall::Digest(p) => C::Digest(pb::GroupName { partition: p.0 }),
    };
    pb::NodeCall { call: Some(call) }
}

/// Order from the wire.
pub fn from_node_call(c: Option<pb::NodeCall>) -> FsResult<NodeCall> {
    use pb::node_call::Call as C;
    Ok(match c.and_then(|c| c.call).ok_or(FsError::UpgradeNeeded)? {
        C::CreateReplica(s) => NodeCall::CreateReplica(from_replica_spec(s)?),
        C::DestroyReplica(r) => NodeCall::DestroyReplica(PartitionId(r.partition), ReplicaId(r.replica)),
        C::Command(g) => NodeCall::Command(PartitionId(g.partition), txn::from_internal(g.command)?),
        C::ListObjects(l) => {
            NodeCall::ListObjects(PartitionId(l.partition), l.after.map(common::from_object_id), l.limit)
        }
        C::Fsck(g) => NodeCall::Fsck(PartitionId(g.partition)),
        C::Digest(g) => NodeCall::Digest(PartitionId(g.partition)),
    })
}

/// Answer to the wire.
pub fn node_reply(r: &NodeReply) -> pb::NodeReply {
    use pb::node_reply::Reply as R;
    let reply = match r {
        NodeReply::Ok => R::Ok(pb::Empty {}),
        NodeReply::Objects(o) => R::Objects(pb::Objects { objects: o.iter().map(common::object_id).collect() }),
        NodeReply::Problems(p) => R::Problems(pb::Problems { problems: p.clone() }),
        NodeReply::Digest(applied, digest) => R::Digest(pb::DigestReply { applied: *applied, digest: *digest }),
    };
    pb::NodeReply { reply: Some(reply) }
}

/// Answer from the wire.
pub fn from_node_reply(r: pb::NodeReply) -> FsResult<NodeReply> {
    use pb::node_reply::Reply as R;
    Ok(match r.reply.ok_or(FsError::UpgradeNeeded)? {
        R::Ok(_) => NodeReply::Ok,
        R::Objects(o) => NodeReply::Objects(o.objects.into_iter().map(common::from_object_id).collect()),
        R::Problems(p) => NodeReply::Problems(p.problems.into_iter().map(common::text).collect::<FsResult<_>>()?),
        R::Digest(d) => NodeReply::Digest(d.applied, d.digest),
    })
}

/// Order RPC to the wire.
pub fn node_request(e: &Envelope, c: &NodeCall) -> pb::NodeRequest {
    pb::NodeRequest { envelope: Some(common::envelope(e)), call: Some(node_call(c)) }
}

/// Order RPC from the wire.
pub fn from_node_request(r: pb::NodeRequest) -> FsResult<(Envelope, NodeCall)> {
    Ok((common::from_envelope(r.envelope)?, from_node_call(r.call)?))
}

/// Answer of an order RPC to the wire.
pub fn node_response(r: &Reply<NodeReply>) -> pb::NodeResponse {
    use pb::node_response::Result as R;
    let result = match &r.result {
        Ok(reply) => R::Reply(node_reply(reply)),
        Err(refusal) => R::Refusal(common::refusal(refusal)),
    };
    pb::NodeResponse { head: Some(ops::head(r.head)), result: Some(result) }
}

/// Answer of an order RPC from the wire.
pub fn from_node_response(r: pb::NodeResponse) -> FsResult<Reply<NodeReply>> {
    use pb::node_response::Result as R;
    let result = match need(r.result)? {
        R::Reply(reply) => Ok(reply),
        R::Refusal(refusal) => Err(refusal),
    };
    ops::from_parts((r.head, result), from_node_reply)
}
