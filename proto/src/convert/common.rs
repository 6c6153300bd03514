//! Conversions of `fusefs.common.v1`.

use crate::common::v1 as pb;
use fusefs_types::{
    ClusterId, FsError, FsResult, Hlc, Incarnation, Ino, KeyRange, MountId, NodeId, ObjectId, RangeKey, ReplicaId,
    SessionId, StoreId, Token, VolumeId,
    cluster::{Member, ProbeCheck, StoreCredentials, StoreKind, StoreRecord},
    ids::{AckRange, OpId, Origin},
    limits,
    ops::{Envelope, PartitionUsage, Refusal},
};

/// Longest text field (address, endpoint, detail) in bytes that a decoder accepts.
const TEXT_MAX: usize = 64 << 10;
/// Longest credential in bytes.
const CREDENTIAL_MAX: usize = 4096;
/// Most members of a group, checks of a probe, labels: far above real use, small enough to be harmless.
const LIST_MAX: usize = 4096;

/// The value of a field that every correct sender fills in.
pub fn need<T>(field: Option<T>) -> FsResult<T> {
    field.ok_or(FsError::Invalid)
}

/// Converts a list, refusing more than `max` items.
pub fn list<A, B>(items: Vec<A>, max: usize, f: impl Fn(A) -> FsResult<B>) -> FsResult<Vec<B>> {
    if items.len() > max {
        return Err(FsError::Invalid);
    }
    items.into_iter().map(f).collect()
}

/// Refuses absurdly long texts.
pub fn text(s: String) -> FsResult<String> {
    if s.len() > TEXT_MAX { Err(FsError::Invalid) } else { Ok(s) }
}

/// 128-bit id to the wire; 0 is absent.
pub fn id128(v: u128) -> Option<pb::Id128> {
    (v != 0).then_some(pb::Id128 { hi: (v >> 64) as u64, lo: v as u64 })
}

/// 128-bit id from the wire; absent is 0.
pub fn from_id128(v: Option<pb::Id128>) -> u128 {
    v.map_or(0, |v| (u128::from(v.hi) << 64) | u128::from(v.lo))
}

/// A session id.
pub fn session(v: Option<pb::Id128>) -> SessionId {
    SessionId(from_id128(v))
}

/// A node id.
pub fn node(v: Option<pb::Id128>) -> NodeId {
    NodeId(from_id128(v))
}

/// A cluster id.
pub fn cluster(v: Option<pb::Id128>) -> ClusterId {
    ClusterId(from_id128(v))
}

/// A mount id.
pub fn mount(v: Option<pb::Id128>) -> MountId {
    MountId(from_id128(v))
}

/// Token to the wire; the default token is absent.
pub fn token(t: Token) -> Option<pb::Token> {
    (t != Token::default()).then_some(pb::Token { attach: t.attach, incarnation: t.incarnation.0 })
}

/// Token from the wire.
pub fn from_token(t: Option<pb::Token>) -> Token {
    t.map_or_else(Token::default, |t| Token { attach: t.attach, incarnation: Incarnation(t.incarnation) })
}

fn from_origin(v: i32) -> FsResult<Origin> {
    match pb::Origin::try_from(v) {
        Ok(pb::Origin::Fuse) => Ok(Origin::Fuse),
        Ok(pb::Origin::Journal) => Ok(Origin::Journal),
        Ok(pb::Origin::Internal) => Ok(Origin::Internal),
        Err(_) => Err(FsError::Invalid),
    }
}

fn origin(o: Origin) -> i32 {
    match o {
        Origin::Fuse => pb::Origin::Fuse,
        Origin::Journal => pb::Origin::Journal,
        Origin::Internal => pb::Origin::Internal,
    }
    .into()
}

/// Op id to the wire.
pub fn op_id(op: OpId) -> pb::OpId {
    pb::OpId { mount: id128(op.mount.0), origin: origin(op.origin), number: op.number, step: op.step }
}

/// Op id from the wire.
pub fn from_op_id(op: pb::OpId) -> FsResult<OpId> {
    Ok(OpId { mount: mount(op.mount), origin: from_origin(op.origin)?, number: op.number, step: op.step })
}

/// Acknowledged range to the wire.
pub fn ack(a: &AckRange) -> pb::AckRange {
    pb::AckRange { mount: id128(a.mount.0), origin: origin(a.origin), first: a.first, last: a.last }
}

/// Acknowledged range from the wire; `first <= last` is checked.
pub fn from_ack(a: pb::AckRange) -> FsResult<AckRange> {
    if a.first > a.last {
        return Err(FsError::Invalid);
    }
    Ok(AckRange { mount: mount(a.mount), origin: from_origin(a.origin)?, first: a.first, last: a.last })
}

/// At most [`limits::ACK_RANGES_MAX`] acknowledged ranges from the wire.
pub fn from_acks(acks: Vec<pb::AckRange>) -> FsResult<Vec<AckRange>> {
    list(acks, limits::ACK_RANGES_MAX, from_ack)
}

/// Envelope to the wire.
pub fn envelope(e: &Envelope) -> pb::Envelope {
    pb::Envelope {
        cluster: id128(e.cluster.0),
        volume: e.volume.0,
        session: id128(e.session.0),
        token: token(e.token),
        op: e.op.map(op_id),
        hlc: e.hlc.0,
        map_generation: e.map_generation,
        feature_level: e.feature_level,
        credential: e.credential.clone(),
        deadline_ms: e.deadline_ms,
        trace: e.trace,
        acks: e.acks.iter().map(ack).collect(),
    }
}

/// Envelope from the wire; an absent one is Invalid.
pub fn from_envelope(e: Option<pb::Envelope>) -> FsResult<Envelope> {
    let e = need(e)?;
    if e.credential.len() > CREDENTIAL_MAX {
        return Err(FsError::Invalid);
    }
    Ok(Envelope {
        cluster: cluster(e.cluster),
        volume: VolumeId(e.volume),
        session: session(e.session),
        token: from_token(e.token),
        op: e.op.map(from_op_id).transpose()?,
        hlc: Hlc(e.hlc),
        map_generation: e.map_generation,
        feature_level: e.feature_level,
        credential: e.credential,
        deadline_ms: e.deadline_ms,
        trace: e.trace,
        acks: from_acks(e.acks)?,
    })
}

/// Error code to the wire.
pub fn code(e: FsError) -> u32 {
    u32::from(e.code())
}

/// Error from the wire; an unknown code is [`FsError::Io`].
pub fn from_code(code: u32) -> FsError {
    u16::try_from(code).map_or(FsError::Io, FsError::from_code)
}

/// Refusal to the wire.
pub fn refusal(r: &Refusal) -> pb::Refusal {
    pb::Refusal {
        code: code(r.error),
        leader: r.leader.clone(),
        map_generation: r.map_generation,
        backoff_ms: r.backoff_ms,
    }
}

/// Refusal from the wire; an absurdly long hint is dropped, because an error must not be lost to it.
pub fn from_refusal(r: pb::Refusal) -> Refusal {
    Refusal {
        error: from_code(r.code),
        leader: r.leader.filter(|s| s.len() <= TEXT_MAX),
        map_generation: r.map_generation,
        backoff_ms: r.backoff_ms,
    }
}

/// Key to the wire.
pub fn range_key(k: RangeKey) -> pb::RangeKey {
    pb::RangeKey { ino: k.ino.0, sub: k.sub }
}

/// Key from the wire.
pub fn from_range_key(k: Option<pb::RangeKey>) -> FsResult<RangeKey> {
    let k = need(k)?;
    Ok(RangeKey { ino: Ino(k.ino), sub: k.sub })
}

/// Range to the wire.
pub fn key_range(r: &KeyRange) -> pb::KeyRange {
    pb::KeyRange { start: Some(range_key(r.start)), end: Some(range_key(r.end)) }
}

/// Range from the wire.
pub fn from_key_range(r: pb::KeyRange) -> FsResult<KeyRange> {
    Ok(KeyRange { start: from_range_key(r.start)?, end: from_range_key(r.end)? })
}

/// Member to the wire.
pub fn member(m: &Member) -> pb::Member {
    pb::Member { replica: m.replica.0, node: id128(m.node.0), addr: m.addr.clone() }
}

/// Member from the wire.
pub fn from_member(m: pb::Member) -> FsResult<Member> {
    Ok(Member { replica: ReplicaId(m.replica), node: node(m.node), addr: text(m.addr)? })
}

/// Object id to the wire.
pub fn object_id(o: &ObjectId) -> pb::ObjectId {
    pb::ObjectId { session: id128(o.session.0), incarnation: o.incarnation.0, counter: o.counter }
}

/// Object id from the wire.
pub fn from_object_id(o: pb::ObjectId) -> ObjectId {
    ObjectId { session: session(o.session), incarnation: Incarnation(o.incarnation), counter: o.counter }
}

fn store_kind(k: StoreKind) -> i32 {
    match k {
        StoreKind::S3 => pb::StoreKind::S3,
        StoreKind::Dir => pb::StoreKind::Dir,
        StoreKind::Memory => pb::StoreKind::Memory,
    }
    .into()
}

fn from_store_kind(k: i32) -> FsResult<StoreKind> {
    match pb::StoreKind::try_from(k) {
        Ok(pb::StoreKind::S3) => Ok(StoreKind::S3),
        Ok(pb::StoreKind::Dir) => Ok(StoreKind::Dir),
        Ok(pb::StoreKind::Memory) => Ok(StoreKind::Memory),
        Ok(pb::StoreKind::Unspecified) | Err(_) => Err(FsError::Invalid),
    }
}

/// Probe check to the wire.
pub fn probe_check(c: &ProbeCheck) -> pb::ProbeCheck {
    pb::ProbeCheck { name: c.name.clone(), ok: c.ok, required: c.required, detail: c.detail.clone() }
}

/// Probe check from the wire.
pub fn from_probe_check(c: pb::ProbeCheck) -> FsResult<ProbeCheck> {
    Ok(ProbeCheck { name: text(c.name)?, ok: c.ok, required: c.required, detail: text(c.detail)? })
}

/// Store record to the wire.
pub fn store_record(s: &StoreRecord) -> pb::StoreRecord {
    pb::StoreRecord {
        id: s.id.0,
        name: s.name.clone(),
        kind: store_kind(s.kind),
        endpoint: s.endpoint.clone(),
        region: s.region.clone(),
        bucket: s.bucket.clone(),
        prefix: s.prefix.clone(),
        path_style: s.path_style,
        credential: s.credential.clone(),
        probe: s.probe.iter().map(probe_check).collect(),
    }
}

/// Store record from the wire.
pub fn from_store_record(s: pb::StoreRecord) -> FsResult<StoreRecord> {
    Ok(StoreRecord {
        id: StoreId(s.id),
        name: text(s.name)?,
        kind: from_store_kind(s.kind)?,
        endpoint: text(s.endpoint)?,
        region: text(s.region)?,
        bucket: text(s.bucket)?,
        prefix: text(s.prefix)?,
        path_style: s.path_style,
        credential: text(s.credential)?,
        probe: list(s.probe, LIST_MAX, from_probe_check)?,
    })
}

/// Store secrets to the wire.
pub fn store_credentials(c: &StoreCredentials) -> pb::StoreCredentials {
    pb::StoreCredentials {
        access_key: c.access_key.clone(),
        secret_key: c.secret_key.clone(),
        session_token: c.session_token.clone(),
        expires_ns: c.expires_ns,
    }
}

/// Store secrets from the wire.
pub fn from_store_credentials(c: pb::StoreCredentials) -> FsResult<StoreCredentials> {
    Ok(StoreCredentials {
        access_key: text(c.access_key)?,
        secret_key: text(c.secret_key)?,
        session_token: text(c.session_token)?,
        expires_ns: c.expires_ns,
    })
}

/// Usage to the wire.
pub fn usage(u: &PartitionUsage) -> pb::PartitionUsage {
    pb::PartitionUsage {
        inodes: u.inodes,
        bytes: u.bytes,
        inline_bytes: u.inline_bytes,
        transactions: u.transactions,
        operations: u.operations,
        orphans: u.orphans,
        objects: u.objects,
    }
}

/// Usage from the wire.
pub fn from_usage(u: pb::PartitionUsage) -> PartitionUsage {
    PartitionUsage {
        inodes: u.inodes,
        bytes: u.bytes,
        inline_bytes: u.inline_bytes,
        transactions: u.transactions,
        operations: u.operations,
        orphans: u.orphans,
        objects: u.objects,
    }
}

/// Labels to the wire.
pub fn labels(l: &[(String, String)]) -> Vec<pb::Label> {
    l.iter().map(|(k, v)| pb::Label { key: k.clone(), value: v.clone() }).collect()
}

/// Labels from the wire.
pub fn from_labels(l: Vec<pb::Label>) -> FsResult<Vec<(String, String)>> {
    list(l, LIST_MAX, |l| Ok((text(l.key)?, text(l.value)?)))
}
