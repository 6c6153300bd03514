//! Transactions between partitions, internal commands, and the raft-log payload of a partition.

use super::{
    common::{self, need},
    data::{self, from_name},
    ops,
};
use crate::metanode::v1 as pb;
use bytes::Bytes;
use fusefs_types::{
    FsError, FsResult, Hlc, Ino, PartitionId,
    ops::{Body, Caller, Command, Envelope, Reply},
    txn::{Internal, Part, PartReply, TxnId, TxnMessage, TxnStep},
};
use prost::Message;

/// Transaction id to the wire.
pub fn txn_id(t: TxnId) -> pb::TxnId {
    pb::TxnId { coordinator: t.coordinator.0, seq: t.seq }
}

/// Transaction id from the wire.
pub fn from_txn_id(t: Option<pb::TxnId>) -> FsResult<TxnId> {
    let t = need(t)?;
    Ok(TxnId { coordinator: PartitionId(t.coordinator), seq: t.seq })
}

/// Inode numbers to the wire.
pub fn inos(inos: &[Ino]) -> Vec<u64> {
    inos.iter().map(|i| i.0).collect()
}

/// Inode numbers from the wire; the message size bounds them.
pub fn from_inos(inos: Vec<u64>) -> Vec<Ino> {
    inos.into_iter().map(Ino).collect()
}

/// Part to the wire.
pub fn part(p: &Part) -> pb::Part {
    use pb::part::Part as P;
    let one = |ino: &Ino| pb::InoPart { ino: ino.0 };
    let part = match p {
        Part::Topology => P::Topology(pb::Empty {}),
        Part::Remove { parent, name, child, kind } => P::Remove(pb::RemovePart {
            parent: parent.0,
            name: name.bytes().clone(),
            child: child.0,
            kind: data::kind(*kind),
        }),
        Part::Insert { parent, name, child, kind, replace } => P::Insert(pb::InsertPart {
            parent: parent.0,
            name: name.bytes().clone(),
            child: child.0,
            kind: data::kind(*kind),
            replace: *replace,
        }),
        Part::MakeDirectory { near, parent, mode, uid, gid, depth, project } => {
            P::MakeDirectory(pb::MakeDirectoryPart {
                near: Some(common::range_key(*near)),
                parent: parent.0,
                mode: u32::from(*mode),
                uid: *uid,
                gid: *gid,
                depth: u32::from(*depth),
                project: *project,
            })
        }
        Part::AddLink { ino } => P::AddLink(one(ino)),
        Part::DropLink { ino } => P::DropLink(one(ino)),
        Part::RemoveDirectory { ino } => P::RemoveDirectory(one(ino)),
        Part::Moved { ino, parent } => P::Moved(pb::MovedPart { ino: ino.0, parent: parent.0 }),
    };
    pb::Part { part: Some(part) }
}

/// Part from the wire.
pub fn from_part(p: pb::Part) -> FsResult<Part> {
    use pb::part::Part as P;
    Ok(match p.part.ok_or(FsError::UpgradeNeeded)? {
        P::Topology(_) => Part::Topology,
        P::Remove(r) => Part::Remove {
            parent: Ino(r.parent),
            name: from_name(r.name)?,
            child: Ino(r.child),
            kind: data::from_kind(r.kind)?,
        },
        P::Insert(i) => Part::Insert {
            parent: Ino(i.parent),
            name: from_name(i.name)?,
            child: Ino(i.child),
            kind: data::from_kind(i.kind)?,
            replace: i.replace,
        },
        P::MakeDirectory(m) => Part::MakeDirectory {
            near: common::from_range_key(m.near)?,
            parent: Ino(m.parent),
            mode: data::from_mode(m.mode)?,
            uid: m.uid,
            gid: m.gid,
            depth: u8::try_from(m.depth).map_err(|_| FsError::Invalid)?,
            project: m.project,
        },
        P::AddLink(i) => Part::AddLink { ino: Ino(i.ino) },
        P::DropLink(i) => Part::DropLink { ino: Ino(i.ino) },
        P::RemoveDirectory(i) => Part::RemoveDirectory { ino: Ino(i.ino) },
        P::Moved(m) => Part::Moved { ino: Ino(m.ino), parent: Ino(m.parent) },
    })
}

/// Participant's answer to the wire.
pub fn part_reply(r: &PartReply) -> pb::PartReply {
    pb::PartReply {
        existing: r.existing.map(|(ino, kind)| pb::Child { ino: ino.0, kind: data::kind(kind) }),
        attr: r.attr.as_ref().map(data::attr),
        done: r.done,
    }
}

/// Participant's answer from the wire.
pub fn from_part_reply(r: pb::PartReply) -> FsResult<PartReply> {
    Ok(PartReply {
        done: r.done,
        existing: r.existing.map(ops::from_child).transpose()?,
        attr: r.attr.map(data::from_attr).transpose()?,
    })
}

/// Message between partitions to the wire.
pub fn txn_message(m: &TxnMessage) -> pb::TxnMessage {
    use pb::txn_message::Step as S;
    let step = match &m.step {
        TxnStep::Prepare(p) => S::Prepare(part(p)),
        TxnStep::Execute(p) => S::Execute(part(p)),
        TxnStep::Commit(p) => S::Commit(part(p)),
        TxnStep::Abort(key) => S::Abort(common::range_key(*key)),
    };
    pb::TxnMessage {
        txn: Some(txn_id(m.txn)),
        part: m.part,
        floor: m.floor,
        session: common::id128(m.session.0),
        step: Some(step),
    }
}

/// Message between partitions from the wire.
pub fn from_txn_message(m: pb::TxnMessage) -> FsResult<TxnMessage> {
    use pb::txn_message::Step as S;
    let step = match m.step.ok_or(FsError::UpgradeNeeded)? {
        S::Prepare(p) => TxnStep::Prepare(from_part(p)?),
        S::Execute(p) => TxnStep::Execute(from_part(p)?),
        S::Commit(p) => TxnStep::Commit(from_part(p)?),
        S::Abort(key) => TxnStep::Abort(common::from_range_key(Some(key))?),
    };
    Ok(TxnMessage { txn: from_txn_id(m.txn)?, part: m.part, floor: m.floor, session: common::session(m.session), step })
}

/// Peer RPC to the wire.
pub fn peer_request(e: &Envelope, m: &TxnMessage) -> pb::PeerRequest {
    pb::PeerRequest { envelope: Some(common::envelope(e)), message: Some(txn_message(m)) }
}

/// Peer RPC from the wire.
pub fn from_peer_request(r: pb::PeerRequest) -> FsResult<(Envelope, TxnMessage)> {
    Ok((common::from_envelope(r.envelope)?, from_txn_message(need(r.message)?)?))
}

/// Answer of a peer RPC to the wire.
pub fn peer_response(r: &Reply<PartReply>) -> pb::PeerResponse {
    use pb::peer_response::Result as R;
    let result = match &r.result {
        Ok(reply) => R::Reply(part_reply(reply)),
        Err(refusal) => R::Refusal(common::refusal(refusal)),
    };
    pb::PeerResponse { head: Some(ops::head(r.head)), result: Some(result) }
}

/// Answer of a peer RPC from the wire.
pub fn from_peer_response(r: pb::PeerResponse) -> FsResult<Reply<PartReply>> {
    use pb::peer_response::Result as R;
    let result = match need(r.result)? {
        R::Reply(reply) => Ok(reply),
        R::Refusal(refusal) => Err(refusal),
    };
    ops::from_parts((r.head, result), from_part_reply)
}

fn caller(c: &Caller) -> pb::Caller {
    pb::Caller {
        session: common::id128(c.session.0),
        token: common::token(c.token),
        op: Some(common::op_id(c.op)),
        acks: c.acks.iter().map(common::ack).collect(),
    }
}

fn from_caller(c: Option<pb::Caller>) -> FsResult<Caller> {
    let c = need(c)?;
    Ok(Caller {
        session: common::session(c.session),
        token: common::from_token(c.token),
        op: common::from_op_id(need(c.op)?)?,
        acks: common::from_acks(c.acks)?,
    })
}

fn txn_prepared(txn: TxnId, part: u32, result: &Result<PartReply, FsError>) -> pb::TxnPrepared {
    use pb::txn_prepared::Result as R;
    let result = match result {
        Ok(reply) => R::Reply(part_reply(reply)),
        Err(e) => R::Code(common::code(*e)),
    };
    pb::TxnPrepared { txn: Some(txn_id(txn)), part, result: Some(result) }
}

fn from_txn_prepared(t: pb::TxnPrepared) -> FsResult<Internal> {
    use pb::txn_prepared::Result as R;
    let result = match t.result.ok_or(FsError::UpgradeNeeded)? {
        R::Reply(reply) => Ok(from_part_reply(reply)?),
        R::Code(code) => Err(common::from_code(code)),
    };
    Ok(Internal::TxnPrepared { txn: from_txn_id(t.txn)?, part: t.part, result })
}

/// Internal command to the wire.
pub fn internal(i: &Internal) -> pb::Internal {
    use pb::internal::Command as C;
    let session_token =
        |session: u128, token| pb::SessionToken { session: common::id128(session), token: common::token(token) };
    let command = match i {
        Internal::TermStart => C::TermStart(pb::Empty {}),
        Internal::Attach { session, token } => C::Attach(session_token(session.0, *token)),
        Internal::Fence { session, token } => C::Fence(session_token(session.0, *token)),
        Internal::EndSession { session, revoked } => {
            C::EndSession(pb::EndSession { session: common::id128(session.0), revoked: *revoked })
        }
        Internal::TxnBegin { caller: c, write, spill_to } => C::TxnBegin(pb::TxnBegin {
            caller: Some(caller(c)),
            write: Some(ops::write(write)),
            spill_to: spill_to.map(common::range_key),
        }),
        Internal::TxnPrepared { txn, part, result } => C::TxnPrepared(txn_prepared(*txn, *part, result)),
        Internal::TxnAncestry { txn, cycle } => {
            C::TxnAncestry(pb::TxnAncestry { txn: Some(txn_id(*txn)), cycle: *cycle })
        }
        Internal::TxnFinished { txn, part, reply } => {
            C::TxnFinished(pb::TxnFinished { txn: Some(txn_id(*txn)), part: *part, reply: Some(part_reply(reply)) })
        }
        Internal::Txn(m) => C::Txn(txn_message(m)),
        Internal::Pin { session, held, released } => {
            C::Pin(pb::Pin { session: common::id128(session.0), held: inos(held), released: inos(released) })
        }
        Internal::FreeOrphans { inos: list } => C::FreeOrphans(pb::Inos { inos: inos(list) }),
        Internal::ObjectsDeleted { objects } => {
            C::ObjectsDeleted(pb::Objects { objects: objects.iter().map(common::object_id).collect() })
        }
        Internal::OutboxDone { seqs } => C::OutboxDone(pb::OutboxDone { seqs: seqs.clone() }),
        Internal::GrantRange { range, generation } => {
            C::GrantRange(pb::GrantRange { range: Some(common::key_range(range)), generation: *generation })
        }
        Internal::Credit { bytes, inodes } => C::Credit(pb::Credit { bytes: *bytes, inodes: *inodes }),
        Internal::SetLevel { level } => C::SetLevel(pb::SetLevel { level: *level }),
        Internal::Digest { at } => C::Digest(pb::DigestCut { at: at.0 }),
    };
    pb::Internal { command: Some(command) }
}

/// Internal command from the wire.
pub fn from_internal(i: Option<pb::Internal>) -> FsResult<Internal> {
    use pb::internal::Command as C;
    Ok(match i.and_then(|i| i.command).ok_or(FsError::UpgradeNeeded)? {
        C::TermStart(_) => Internal::TermStart,
        C::Attach(a) => Internal::Attach { session: common::session(a.session), token: common::from_token(a.token) },
        C::Fence(f) => Internal::Fence { session: common::session(f.session), token: common::from_token(f.token) },
        C::EndSession(e) => Internal::EndSession { session: common::session(e.session), revoked: e.revoked },
        C::TxnBegin(b) => Internal::TxnBegin {
            caller: from_caller(b.caller)?,
            write: ops::from_write(b.write)?,
            spill_to: b.spill_to.map(|k| common::from_range_key(Some(k))).transpose()?,
        },
        C::TxnPrepared(p) => from_txn_prepared(p)?,
        C::TxnAncestry(a) => Internal::TxnAncestry { txn: from_txn_id(a.txn)?, cycle: a.cycle },
        C::TxnFinished(f) => {
            Internal::TxnFinished { txn: from_txn_id(f.txn)?, part: f.part, reply: from_part_reply(need(f.reply)?)? }
        }
        C::Txn(m) => Internal::Txn(from_txn_message(m)?),
        C::Pin(p) => Internal::Pin {
            session: common::session(p.session),
            held: from_inos(p.held),
            released: from_inos(p.released),
        },
        C::FreeOrphans(f) => Internal::FreeOrphans { inos: from_inos(f.inos) },
        C::ObjectsDeleted(o) => {
            Internal::ObjectsDeleted { objects: o.objects.into_iter().map(common::from_object_id).collect() }
        }
        C::OutboxDone(o) => Internal::OutboxDone { seqs: o.seqs },
        C::GrantRange(g) => {
            Internal::GrantRange { range: common::from_key_range(need(g.range)?)?, generation: g.generation }
        }
        C::Credit(c) => Internal::Credit { bytes: c.bytes, inodes: c.inodes },
        C::SetLevel(s) => Internal::SetLevel { level: s.level },
        C::Digest(d) => Internal::Digest { at: Hlc(d.at) },
    })
}

/// Command to the wire.
pub fn command(c: &Command) -> pb::Command {
    use pb::command::Body as B;
    let body = match &c.body {
        Body::Client(who, write) => {
            B::Client(pb::ClientCommand { caller: Some(caller(who)), op: Some(ops::write(write)) })
        }
        Body::Internal(i) => B::Internal(internal(i)),
    };
    pb::Command { stamp: c.stamp.0, level: c.level, body: Some(body) }
}

/// Command from the wire.
pub fn from_command(c: pb::Command) -> FsResult<Command> {
    use pb::command::Body as B;
    let body = match c.body.ok_or(FsError::UpgradeNeeded)? {
        B::Client(c) => Body::Client(from_caller(c.caller)?, ops::from_write(c.op)?),
        B::Internal(i) => Body::Internal(from_internal(Some(i))?),
    };
    Ok(Command { stamp: Hlc(c.stamp), level: c.level, body })
}

/// Raft-log payload of a command.
pub fn encode_command(c: &Command) -> Bytes {
    command(c).encode_to_vec().into()
}

/// Inverse of [`encode_command`].
///
/// Errors: [`FsError::Corrupt`] when the bytes are no message at all, [`FsError::UpgradeNeeded`] for a command that this
/// binary does not know, otherwise the limit that it breaks. A replica that meets one of them in its log stops.
pub fn decode_command(bytes: &[u8]) -> FsResult<Command> {
    from_command(pb::Command::decode(bytes).map_err(|_| FsError::Corrupt)?)
}
