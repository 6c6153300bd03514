//! Hand-packed little-endian encodings of raft's values, shared by the log and the wire. Every top-level value starts
//! with [`VERSION`]. Decoding checks every length and never panics.

use crate::raft::{Batch, Entry, LogId, Membership, PeerNode, StoredMembership, Vote};
use bytes::{Buf, BufMut, Bytes};
use fusefs_types::NodeId;
use openraft::{CommittedLeaderId, EntryPayload};
use std::collections::{BTreeMap, BTreeSet};

/// Version of all encodings of this crate.
pub(crate) const VERSION: u8 = 1;
/// Members, configs and commands in one value; more is damage.
const COUNT_MAX: u32 = 1 << 16;

/// Bytes that no version of this crate wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("undecodable bytes")]
pub(crate) struct Bad;

/// A checked cursor.
pub(crate) struct Reader(pub(crate) Bytes);

impl Reader {
    fn need(&self, n: usize) -> Result<(), Bad> {
        if self.0.remaining() < n { Err(Bad) } else { Ok(()) }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Bad> {
        self.need(1)?;
        Ok(self.0.get_u8())
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Bad> {
        self.need(4)?;
        Ok(self.0.get_u32_le())
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Bad> {
        self.need(8)?;
        Ok(self.0.get_u64_le())
    }

    pub(crate) fn u128(&mut self) -> Result<u128, Bad> {
        self.need(16)?;
        Ok(self.0.get_u128_le())
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, Bad> {
        let len = self.u32()? as usize;
        self.need(len)?;
        Ok(self.0.split_to(len))
    }

    pub(crate) fn string(&mut self) -> Result<String, Bad> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| Bad)
    }

    pub(crate) fn count(&mut self) -> Result<u32, Bad> {
        let n = self.u32()?;
        if n > COUNT_MAX { Err(Bad) } else { Ok(n) }
    }

    pub(crate) fn version(&mut self) -> Result<(), Bad> {
        if self.u8()? == VERSION { Ok(()) } else { Err(Bad) }
    }

    pub(crate) fn end(&self) -> Result<(), Bad> {
        if self.0.has_remaining() { Err(Bad) } else { Ok(()) }
    }
}

/// Length prefix is u32: callers bound their values far below it.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

pub(crate) fn put_log_id(out: &mut Vec<u8>, id: &LogId) {
    out.put_u64_le(id.leader_id.term);
    out.put_u64_le(id.index);
}

pub(crate) fn get_log_id(r: &mut Reader) -> Result<LogId, Bad> {
    let term = r.u64()?;
    let index = r.u64()?;
    Ok(log_id(term, index))
}

/// With single-term leaders the term alone names the leader.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 0), index)
}

pub(crate) fn put_opt_log_id(out: &mut Vec<u8>, id: Option<&LogId>) {
    out.put_u8(u8::from(id.is_some()));
    if let Some(id) = id {
        put_log_id(out, id);
    }
}

pub(crate) fn get_opt_log_id(r: &mut Reader) -> Result<Option<LogId>, Bad> {
    match r.u8()? {
        0 => Ok(None),
        1 => get_log_id(r).map(Some),
        _ => Err(Bad),
    }
}

pub(crate) fn put_vote(out: &mut Vec<u8>, vote: &Vote) {
    out.put_u64_le(vote.leader_id.term);
    out.put_u8(u8::from(vote.committed) | (u8::from(vote.leader_id.voted_for.is_some()) << 1));
    out.put_u64_le(vote.leader_id.voted_for.unwrap_or(0));
}

pub(crate) fn get_vote(r: &mut Reader) -> Result<Vote, Bad> {
    let term = r.u64()?;
    let flags = r.u8()?;
    let node = r.u64()?;
    if flags > 3 {
        return Err(Bad);
    }
    let mut vote = Vote::new(term, node);
    vote.committed = flags & 1 != 0;
    if flags & 2 == 0 {
        vote.leader_id.voted_for = None;
    }
    Ok(vote)
}

pub(crate) fn put_membership(out: &mut Vec<u8>, m: &Membership) {
    let configs = m.get_joint_config();
    out.put_u32_le(configs.len() as u32);
    for config in configs {
        out.put_u32_le(config.len() as u32);
        for id in config {
            out.put_u64_le(*id);
        }
    }
    out.put_u32_le(m.nodes().count() as u32);
    for (id, node) in m.nodes() {
        out.put_u64_le(*id);
        out.put_u128_le(node.node.0);
        put_bytes(out, node.addr.as_bytes());
    }
}

pub(crate) fn get_membership(r: &mut Reader) -> Result<Membership, Bad> {
    let mut configs = Vec::new();
    for _ in 0..r.count()? {
        let mut config = BTreeSet::new();
        for _ in 0..r.count()? {
            config.insert(r.u64()?);
        }
        configs.push(config);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..r.count()? {
        let id = r.u64()?;
        let node = NodeId(r.u128()?);
        nodes.insert(id, PeerNode { node, addr: r.string()? });
    }
    if configs.iter().flatten().any(|id| !nodes.contains_key(id)) {
        return Err(Bad);
    }
    Ok(Membership::new(configs, nodes))
}

pub(crate) fn put_stored_membership(out: &mut Vec<u8>, m: &StoredMembership) {
    put_opt_log_id(out, m.log_id().as_ref());
    put_membership(out, m.membership());
}

pub(crate) fn get_stored_membership(r: &mut Reader) -> Result<StoredMembership, Bad> {
    let id = get_opt_log_id(r)?;
    Ok(StoredMembership::new(id, get_membership(r)?))
}

pub(crate) fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    put_log_id(out, &entry.log_id);
    match &entry.payload {
        EntryPayload::Blank => out.put_u8(0),
        EntryPayload::Normal(batch) => {
            out.put_u8(1);
            out.put_u32_le(batch.payloads.len() as u32);
            for payload in &batch.payloads {
                put_bytes(out, payload);
            }
        }
        EntryPayload::Membership(m) => {
            out.put_u8(2);
            put_membership(out, m);
        }
    }
}

pub(crate) fn get_entry(r: &mut Reader) -> Result<Entry, Bad> {
    let log_id = get_log_id(r)?;
    let payload = match r.u8()? {
        0 => EntryPayload::Blank,
        1 => {
            let n = r.count()?;
            let mut payloads = Vec::with_capacity(n.min(1024) as usize);
            for _ in 0..n {
                payloads.push(r.bytes()?);
            }
            EntryPayload::Normal(Batch { payloads, waiters: None })
        }
        2 => EntryPayload::Membership(get_membership(r)?),
        _ => return Err(Bad),
    };
    Ok(Entry { log_id, payload })
}

/// About how many bytes an entry takes in the log and on the wire.
pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    64 + match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Normal(batch) => batch.payloads.iter().map(|p| p.len() + 4).sum(),
        EntryPayload::Membership(m) => 128 * (1 + m.nodes().count()),
    }
}
