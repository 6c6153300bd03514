//! Conversions of `fusefs.master.v1`: calls and answers. Their parts are in [`parts`].

mod parts;
mod publish;
pub use parts::*;
pub use publish::*;

use super::common::{
    cluster, code, from_code, from_store_credentials, from_store_record, from_token, id128, list, need, node, session,
    store_credentials, store_record, text, token,
};
use crate::master::v1::{
    self as pb, WatchMapResponse, master_request::Call, master_response::Reply, watch_map_response::Reply as WatchReply,
};
use fusefs_types::{
    FsError, FsResult, PartitionId, VolumeId,
    auth::TOKEN_BYTES_MAX,
    cluster::{LeaseGrant, MasterCall, MasterRefusal, MasterReply, VolumeMap, VolumeSpace},
    ops::Envelope,
};

/// Most items of one list in an answer.
const LIST_MAX: usize = 1 << 20;

/// A request to the wire; `forwarded` = hops between masters so far.
pub fn request(envelope: &Envelope, call: &MasterCall, forwarded: u32) -> pb::MasterRequest {
    pb::MasterRequest { envelope: Some(super::common::envelope(envelope)), forwarded, call: Some(call_to_wire(call)) }
}

/// A request from the wire: envelope, call, hops.
pub fn from_request(r: pb::MasterRequest) -> FsResult<(Envelope, MasterCall, u32)> {
    Ok((super::common::from_envelope(r.envelope)?, from_call(r.call.ok_or(FsError::UpgradeNeeded)?)?, r.forwarded))
}

fn call_to_wire(call: &MasterCall) -> Call {
    let session_token = |s: &fusefs_types::SessionId, t: &fusefs_types::Token| pb::SessionToken {
        session: id128(s.0),
        token: token(*t),
    };
    match call {
        MasterCall::Register(n) => Call::Register(node_record(n)),
        MasterCall::Heartbeat(h) => Call::Heartbeat(heartbeat(h)),
        MasterCall::Info => Call::Info(pb::Empty {}),
        MasterCall::AddStore(s) => Call::AddStore(store_record(s)),
        MasterCall::ListStores => Call::ListStores(pb::Empty {}),
        MasterCall::ProbeStore(name) => Call::ProbeStore(name.clone()),
        MasterCall::CreateVolume(s) => Call::CreateVolume(volume_spec(s)),
        MasterCall::GetVolume(name) => Call::GetVolume(name.clone()),
        MasterCall::ListVolumes => Call::ListVolumes(pb::Empty {}),
        MasterCall::ExpandVolume(name, capacity, inodes) => {
            Call::ExpandVolume(pb::ExpandVolume { name: name.clone(), capacity: *capacity, inodes: *inodes })
        }
        MasterCall::DeleteVolume(name, force) => {
            Call::DeleteVolume(pb::DeleteVolume { name: name.clone(), force: *force })
        }
        MasterCall::GetMap(v) => Call::GetMap(v.0),
        MasterCall::OpenSession(r) => Call::OpenSession(session_request(r)),
        MasterCall::RenewSession(s, t) => Call::RenewSession(session_token(s, t)),
        MasterCall::AttachSession(s, p, t) => {
            Call::AttachSession(pb::AttachSession { session: id128(s.0), partition: p.0, token: token(*t) })
        }
        MasterCall::CloseSession(s, t, leftovers) => {
            Call::CloseSession(pb::CloseSession { session: id128(s.0), token: token(*t), leftovers: *leftovers })
        }
        MasterCall::RevokeSession(s) => {
            Call::RevokeSession(id128(s.0).unwrap_or(crate::common::v1::Id128 { hi: 0, lo: 0 }))
        }
        MasterCall::SessionsOf(p) => Call::SessionsOf(p.0),
        MasterCall::ListSessions(v) => Call::ListSessions(v.0),
        MasterCall::StoreAccess(v) => Call::StoreAccess(v.0),
        MasterCall::AddMounter(node) => Call::AddMounter(node.clone()),
        MasterCall::PublishVolume(s) => Call::PublishVolume(publish_spec(s)),
        MasterCall::UnpublishVolume(volume, part, node) => Call::UnpublishVolume(pb::UnpublishVolume {
            volume: volume.clone(),
            part: part.clone(),
            node: node.clone(),
        }),
        MasterCall::ListPublications(v) => Call::ListPublications(v.0),
        MasterCall::MountToken(volume, node, generation) => {
            Call::MountToken(pb::MountToken { volume: volume.clone(), node: node.clone(), generation: *generation })
        }
    }
}

fn from_call(call: Call) -> FsResult<MasterCall> {
    Ok(match call {
        Call::Register(n) => MasterCall::Register(from_node_record(n)?),
        Call::Heartbeat(h) => MasterCall::Heartbeat(from_heartbeat(h)?),
        Call::Info(_) => MasterCall::Info,
        Call::AddStore(s) => MasterCall::AddStore(from_store_record(s)?),
        Call::ListStores(_) => MasterCall::ListStores,
        Call::ProbeStore(name) => MasterCall::ProbeStore(text(name)?),
        Call::CreateVolume(s) => MasterCall::CreateVolume(from_volume_spec(s)?),
        Call::GetVolume(name) => MasterCall::GetVolume(text(name)?),
        Call::ListVolumes(_) => MasterCall::ListVolumes,
        Call::ExpandVolume(e) => MasterCall::ExpandVolume(text(e.name)?, e.capacity, e.inodes),
        Call::DeleteVolume(d) => MasterCall::DeleteVolume(text(d.name)?, d.force),
        Call::GetMap(v) => MasterCall::GetMap(VolumeId(v)),
        Call::OpenSession(r) => MasterCall::OpenSession(from_session_request(r)?),
        Call::RenewSession(r) => MasterCall::RenewSession(session(r.session), from_token(r.token)),
        Call::AttachSession(a) => {
            MasterCall::AttachSession(session(a.session), PartitionId(a.partition), from_token(a.token))
        }
        Call::CloseSession(c) => MasterCall::CloseSession(session(c.session), from_token(c.token), c.leftovers),
        Call::RevokeSession(s) => MasterCall::RevokeSession(session(Some(s))),
        Call::SessionsOf(p) => MasterCall::SessionsOf(PartitionId(p)),
        Call::ListSessions(v) => MasterCall::ListSessions(VolumeId(v)),
        Call::StoreAccess(v) => MasterCall::StoreAccess(VolumeId(v)),
        Call::AddMounter(node) => MasterCall::AddMounter(text(node)?),
        Call::PublishVolume(s) => MasterCall::PublishVolume(from_publish_spec(s)?),
        Call::UnpublishVolume(u) => MasterCall::UnpublishVolume(text(u.volume)?, text(u.part)?, text(u.node)?),
        Call::ListPublications(v) => MasterCall::ListPublications(VolumeId(v)),
        Call::MountToken(m) => MasterCall::MountToken(text(m.volume)?, text(m.node)?, m.generation),
    })
}

/// An answer to the wire.
pub fn response(result: &Result<MasterReply, MasterRefusal>) -> pb::MasterResponse {
    let reply = match result {
        Ok(reply) => reply_to_wire(reply),
        Err(r) => Reply::Refusal(refusal(r)),
    };
    pb::MasterResponse { reply: Some(reply) }
}

/// An answer from the wire; the outer error is a malformed message.
pub fn from_response(r: pb::MasterResponse) -> FsResult<Result<MasterReply, MasterRefusal>> {
    Ok(match r.reply.ok_or(FsError::UpgradeNeeded)? {
        Reply::Refusal(r) => Err(from_refusal(r)),
        reply => Ok(from_reply(reply)?),
    })
}

fn reply_to_wire(reply: &MasterReply) -> Reply {
    match reply {
        MasterReply::Ok => Reply::Ok(pb::Empty {}),
        MasterReply::Registered(c) => {
            Reply::Registered(id128(c.0).unwrap_or(crate::common::v1::Id128 { hi: 0, lo: 0 }))
        }
        MasterReply::Info(i) => Reply::Info(cluster_info(i)),
        MasterReply::Store(s) => Reply::Store(store_record(s)),
        MasterReply::Stores(s) => Reply::Stores(pb::Stores { stores: s.iter().map(store_record).collect() }),
        MasterReply::Volume(v) => Reply::Volume(volume_record(v)),
        MasterReply::Volumes(v) => Reply::Volumes(pb::Volumes { volumes: v.iter().map(volume_record).collect() }),
        MasterReply::Map(m) => Reply::Map(volume_map(m)),
        MasterReply::Session(g) => Reply::Session(session_grant(g)),
        MasterReply::Lease(l) => Reply::Lease(pb::Lease {
            lease_ms: l.ms,
            map_generation: l.map_generation,
            space: l.space.map(|s| pb::VolumeSpace { capacity: s.capacity, inodes: s.inodes, used: s.used }),
        }),
        MasterReply::Attached(t) => {
            Reply::Attached(crate::common::v1::Token { attach: t.attach, incarnation: t.incarnation.0 })
        }
        MasterReply::Sessions(s) => Reply::Sessions(pb::Sessions { sessions: s.iter().map(session_status).collect() }),
        MasterReply::StoreAccess(s, c) => Reply::StoreAccess(pb::StoreAccess {
            store: Some(store_record(s)),
            credentials: Some(store_credentials(c)),
        }),
        MasterReply::Published(p) => Reply::Published(publication(p)),
        MasterReply::Publications(p) => {
            Reply::Publications(pb::Publications { publications: p.iter().map(publication).collect() })
        }
        MasterReply::MountToken(t) => Reply::MountToken(t.clone()),
    }
}

fn from_reply(reply: Reply) -> FsResult<MasterReply> {
    Ok(match reply {
        Reply::Refusal(_) => return Err(FsError::Invalid),
        Reply::Ok(_) => MasterReply::Ok,
        Reply::Registered(c) => MasterReply::Registered(cluster(Some(c))),
        Reply::Info(i) => MasterReply::Info(from_cluster_info(i)?),
        Reply::Store(s) => MasterReply::Store(from_store_record(s)?),
        Reply::Stores(s) => MasterReply::Stores(list(s.stores, LIST_MAX, from_store_record)?),
        Reply::Volume(v) => MasterReply::Volume(from_volume_record(v)?),
        Reply::Volumes(v) => MasterReply::Volumes(list(v.volumes, LIST_MAX, from_volume_record)?),
        Reply::Map(m) => MasterReply::Map(from_volume_map(m)?),
        Reply::Session(g) => MasterReply::Session(Box::new(from_session_grant(g)?)),
        Reply::Lease(l) => MasterReply::Lease(LeaseGrant {
            ms: l.lease_ms,
            map_generation: l.map_generation,
            space: l.space.map(|s| VolumeSpace { capacity: s.capacity, inodes: s.inodes, used: s.used }),
        }),
        Reply::Attached(t) => MasterReply::Attached(from_token(Some(t))),
        Reply::Sessions(s) => MasterReply::Sessions(list(s.sessions, LIST_MAX, from_session_status)?),
        Reply::StoreAccess(a) => {
            MasterReply::StoreAccess(from_store_record(need(a.store)?)?, from_store_credentials(need(a.credentials)?)?)
        }
        Reply::Published(p) => MasterReply::Published(from_publication(p)?),
        Reply::Publications(p) => MasterReply::Publications(list(p.publications, LIST_MAX, from_publication)?),
        Reply::MountToken(t) if t.len() > TOKEN_BYTES_MAX => return Err(FsError::TooBig),
        Reply::MountToken(t) => MasterReply::MountToken(t),
    })
}

/// Refusal to the wire.
pub fn refusal(r: &MasterRefusal) -> pb::MasterRefusal {
    pb::MasterRefusal { code: code(r.error), message: r.message.clone(), leader: r.leader.clone() }
}

/// Refusal from the wire. An absurdly long hint is dropped: an error must not be lost to it.
pub fn from_refusal(r: pb::MasterRefusal) -> MasterRefusal {
    MasterRefusal {
        error: from_code(r.code),
        message: text(r.message).unwrap_or_default(),
        leader: r.leader.filter(|s| s.len() <= 1024),
    }
}

/// One item of a map watch to the wire.
pub fn watch_response(item: &Result<VolumeMap, MasterRefusal>) -> WatchMapResponse {
    let reply = match item {
        Ok(map) => WatchReply::Map(volume_map(map)),
        Err(r) => WatchReply::Refusal(refusal(r)),
    };
    WatchMapResponse { reply: Some(reply) }
}

/// One item of a map watch from the wire.
pub fn from_watch_response(r: WatchMapResponse) -> FsResult<Result<VolumeMap, MasterRefusal>> {
    Ok(match r.reply.ok_or(FsError::UpgradeNeeded)? {
        WatchReply::Map(map) => Ok(from_volume_map(map)?),
        WatchReply::Refusal(r) => Err(from_refusal(r)),
    })
}

/// A map watch request to the wire.
pub fn watch_request(envelope: &Envelope, volume: VolumeId) -> pb::WatchMapRequest {
    pb::WatchMapRequest { envelope: Some(super::common::envelope(envelope)), volume: volume.0 }
}

/// A map watch request from the wire.
pub fn from_watch_request(r: pb::WatchMapRequest) -> FsResult<(Envelope, VolumeId)> {
    Ok((super::common::from_envelope(r.envelope)?, VolumeId(r.volume)))
}

/// A node id that must be present.
fn some_node(id: Option<crate::common::v1::Id128>) -> FsResult<fusefs_types::NodeId> {
    let id = node(id);
    if id.0 == 0 { Err(FsError::Invalid) } else { Ok(id) }
}
