//! Events between a metanode and a client session.

use super::{common, txn};
use crate::metanode::v1 as pb;
use fusefs_types::{
    FsError, FsResult, PartitionId,
    stream::{ClientBody, ClientEvent, ServerBody, ServerEvent},
};

/// Server event to the wire.
pub fn server_event(e: &ServerEvent) -> pb::ServerEvent {
    use pb::server_event::Body as B;
    let body = match &e.body {
        ServerBody::Hello => B::Hello(pb::Empty {}),
        ServerBody::HoldersAsked { group, term, inos } => {
            B::HoldersAsked(pb::HoldersAsked { group: group.0, term: *term, inos: txn::inos(inos) })
        }
        ServerBody::MapChanged { generation } => B::MapChanged(pb::MapChanged { generation: *generation }),
        ServerBody::LocksFreed { group, inos } => {
            B::LocksFreed(pb::LocksFreed { group: group.0, inos: txn::inos(inos) })
        }
    };
    pb::ServerEvent { id: e.id, body: Some(body) }
}

/// Server event from the wire.
pub fn from_server_event(e: pb::ServerEvent) -> FsResult<ServerEvent> {
    use pb::server_event::Body as B;
    let body = match e.body.ok_or(FsError::UpgradeNeeded)? {
        B::Hello(_) => ServerBody::Hello,
        B::HoldersAsked(h) => {
            ServerBody::HoldersAsked { group: PartitionId(h.group), term: h.term, inos: txn::from_inos(h.inos) }
        }
        B::MapChanged(m) => ServerBody::MapChanged { generation: m.generation },
        B::LocksFreed(l) => ServerBody::LocksFreed { group: PartitionId(l.group), inos: txn::from_inos(l.inos) },
    };
    Ok(ServerEvent { id: e.id, body })
}

/// Client event to the wire.
pub fn client_event(e: &ClientEvent) -> pb::ClientEvent {
    use pb::client_event::Body as B;
    let body = match &e.body {
        ClientBody::Nothing => B::Nothing(pb::Empty {}),
        ClientBody::Holders { group, term, asked, held } => B::Holders(pb::HoldersAnswer {
            group: group.0,
            term: *term,
            asked: txn::inos(asked),
            held: txn::inos(held),
        }),
    };
    pb::ClientEvent { envelope: e.envelope.as_ref().map(common::envelope), ack: e.ack, body: Some(body) }
}

/// Client event from the wire.
pub fn from_client_event(e: pb::ClientEvent) -> FsResult<ClientEvent> {
    use pb::client_event::Body as B;
    let body = match e.body.ok_or(FsError::UpgradeNeeded)? {
        B::Nothing(_) => ClientBody::Nothing,
        B::Holders(h) => ClientBody::Holders {
            group: PartitionId(h.group),
            term: h.term,
            asked: txn::from_inos(h.asked),
            held: txn::from_inos(h.held),
        },
    };
    let envelope = e.envelope.map(|e| common::from_envelope(Some(e))).transpose()?;
    Ok(ClientEvent { envelope, ack: e.ack, body })
}
