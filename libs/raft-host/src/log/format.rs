//! Bytes of the log: segment header, batch header, records. All integers little-endian, all CRCs seeded with the disk's
//! id, so that bytes of another disk or another place never pass.

use crate::{
    api::GroupSpec,
    codec::{self, Bad, Reader, VERSION},
    raft::{Entry, LogId, Vote},
};
use bytes::{BufMut, Bytes};
use fusefs_types::{NodeId, PartitionId, ReplicaId, cluster::Member};

/// Bytes of a segment header.
pub(crate) const SEGMENT_HEADER: u64 = 64;
/// Bytes of a batch header.
pub(crate) const BATCH_HEADER: usize = 56;
/// Bytes before a record's body: length, crc, kind, version, group, replica.
pub(crate) const RECORD_HEADER: usize = 4 + 4 + 1 + 1 + 8 + 8;
const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"FUSEFSL1");
const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"FBAT");

/// One placement of one group: the log's key (PROTOCOL 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub group: PartitionId,
    pub replica: ReplicaId,
}

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Mark {
    pub segment: u64,
    pub offset: u64,
}

/// Everything about a replica that is not an entry. One record holds all of it; the last one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HardState {
    pub tombstone: bool,
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    pub spec: Option<GroupSpec>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Entry = 1,
    State = 2,
    /// Removes entries from an index on.
    Truncate = 3,
}

fn crc(seed: u32, parts: &[&[u8]]) -> u32 {
    parts.iter().fold(seed, |crc, part| crc32c::crc32c_append(crc, part))
}

/// CRC seed of a disk.
pub(crate) fn seed_of(disk: u128) -> u32 {
    crc32c::crc32c(&disk.to_le_bytes())
}

pub(crate) fn segment_header(seed: u32, segment: u64, prev_end: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(SEGMENT_HEADER as usize);
    out.put_u64_le(SEGMENT_MAGIC);
    out.put_u64_le(segment);
    out.put_u64_le(prev_end);
    out.put_u32_le(crc(seed, &[&out]));
    out.resize(SEGMENT_HEADER as usize, 0);
    out
}

/// Where the previous segment ended.
pub(crate) fn check_segment_header(seed: u32, segment: u64, bytes: &[u8]) -> Result<u64, Bad> {
    if bytes.len() < SEGMENT_HEADER as usize {
        return Err(Bad);
    }
    let mut r = Reader(Bytes::copy_from_slice(&bytes[..28]));
    let (magic, number, prev_end, sum) = (r.u64()?, r.u64()?, r.u64()?, r.u32()?);
    if magic != SEGMENT_MAGIC || number != segment || sum != crc(seed, &[&bytes[..24]]) {
        return Err(Bad);
    }
    Ok(prev_end)
}

/// Header of a batch at `at`; everything before `synced` was durable when this was written.
pub(crate) fn batch_header(seed: u32, at: Mark, synced: Mark, payload: &[u8]) -> [u8; BATCH_HEADER] {
    let mut out = Vec::with_capacity(BATCH_HEADER);
    out.put_u32_le(BATCH_MAGIC);
    out.put_u32_le(u32::from(VERSION));
    out.put_u64_le(at.segment);
    out.put_u64_le(at.offset);
    out.put_u64_le(synced.segment);
    out.put_u64_le(synced.offset);
    out.put_u32_le(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    out.put_u32_le(crc(seed, &[payload]));
    out.put_u32_le(0);
    let sum = crc(seed, &[&out]);
    out.put_u32_le(sum);
    let mut fixed = [0; BATCH_HEADER];
    fixed.copy_from_slice(&out);
    fixed
}

/// A header that passed its own CRC.
pub(crate) struct BatchHead {
    pub synced: Mark,
    pub len: u32,
    pub crc: u32,
}

pub(crate) fn check_batch_header(seed: u32, at: Mark, bytes: &[u8]) -> Option<BatchHead> {
    let head = bytes.get(..BATCH_HEADER)?;
    if head[..4] != BATCH_MAGIC.to_le_bytes() {
        return None;
    }
    let mut r = Reader(Bytes::copy_from_slice(head));
    let parse = |r: &mut Reader| -> Result<BatchHead, Bad> {
        let _magic = r.u32()?;
        if r.u32()? != u32::from(VERSION) || (Mark { segment: r.u64()?, offset: r.u64()? }) != at {
            return Err(Bad);
        }
        let synced = Mark { segment: r.u64()?, offset: r.u64()? };
        let (len, sum) = (r.u32()?, r.u32()?);
        let _reserved = r.u32()?;
        if r.u32()? != crc(seed, &[&head[..BATCH_HEADER - 4]]) {
            return Err(Bad);
        }
        Ok(BatchHead { synced, len, crc: sum })
    };
    parse(&mut r).ok()
}

/// Does the payload match its header?
pub(crate) fn check_payload(seed: u32, head: &BatchHead, payload: &[u8]) -> bool {
    crc(seed, &[payload]) == head.crc
}

/// Appends one record; answers its length. `body` writes the body.
pub(crate) fn put_record(seed: u32, out: &mut Vec<u8>, kind: Kind, key: Key, body: impl FnOnce(&mut Vec<u8>)) -> u32 {
    let start = out.len();
    out.put_u64_le(0);
    out.put_u8(kind as u8);
    out.put_u8(VERSION);
    out.put_u64_le(key.group.0);
    out.put_u64_le(key.replica.0);
    body(out);
    let len = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    let sum = crc(seed, &[&out[start + 8..]]);
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
    len
}

/// One record out of a payload: kind, key, body; advances the reader.
pub(crate) fn get_record(seed: u32, payload: &mut Bytes) -> Result<(Kind, Key, Bytes), Bad> {
    if payload.len() < RECORD_HEADER {
        return Err(Bad);
    }
    let mut r = Reader(payload.clone());
    let (len, sum) = (r.u32()? as usize, r.u32()?);
    if len < RECORD_HEADER || len > payload.len() {
        return Err(Bad);
    }
    let record = payload.split_to(len);
    if crc(seed, &[&record[8..]]) != sum {
        return Err(Bad);
    }
    let mut r = Reader(record.slice(8..));
    let kind = match r.u8()? {
        1 => Kind::Entry,
        2 => Kind::State,
        3 => Kind::Truncate,
        _ => return Err(Bad),
    };
    r.version()?;
    let key = Key { group: PartitionId(r.u64()?), replica: ReplicaId(r.u64()?) };
    Ok((kind, key, r.0))
}

pub(crate) fn put_state(out: &mut Vec<u8>, state: &HardState) {
    out.put_u8(u8::from(state.tombstone));
    out.put_u8(u8::from(state.vote.is_some()));
    if let Some(vote) = &state.vote {
        codec::put_vote(out, vote);
    }
    codec::put_opt_log_id(out, state.purged.as_ref());
    out.put_u8(u8::from(state.spec.is_some()));
    if let Some(spec) = &state.spec {
        out.put_u64_le(spec.group.0);
        out.put_u64_le(spec.replica.0);
        out.put_u32_le(spec.members.len() as u32);
        for m in &spec.members {
            out.put_u64_le(m.replica.0);
            out.put_u128_le(m.node.0);
            codec::put_bytes(out, m.addr.as_bytes());
        }
        codec::put_bytes(out, &spec.label);
    }
}

pub(crate) fn get_state(body: Bytes) -> Result<HardState, Bad> {
    let mut r = Reader(body);
    let tombstone = r.u8()? != 0;
    let vote = if r.u8()? != 0 { Some(codec::get_vote(&mut r)?) } else { None };
    let purged = codec::get_opt_log_id(&mut r)?;
    let spec = if r.u8()? != 0 {
        let (group, replica) = (PartitionId(r.u64()?), ReplicaId(r.u64()?));
        let mut members = Vec::new();
        for _ in 0..r.count()? {
            members.push(Member { replica: ReplicaId(r.u64()?), node: NodeId(r.u128()?), addr: r.string()? });
        }
        Some(GroupSpec { group, replica, members, label: Bytes::copy_from_slice(&r.bytes()?) })
    } else {
        None
    };
    r.end()?;
    Ok(HardState { tombstone, vote, purged, spec })
}

/// Decodes the record of an entry as read back from a segment.
pub(crate) fn get_entry_record(seed: u32, key: Key, mut bytes: Bytes) -> Result<Entry, Bad> {
    let (kind, found, body) = get_record(seed, &mut bytes)?;
    if kind != Kind::Entry || found != key {
        return Err(Bad);
    }
    let mut r = Reader(body);
    let entry = codec::get_entry(&mut r)?;
    r.end()?;
    Ok(entry)
}
