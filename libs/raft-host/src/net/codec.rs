//! Payload of a peer message. Version byte first, then a kind byte.

use super::{PeerAnswer, PeerBody, PeerReply, PeerRequest, PreVote, SnapshotChunk};
use crate::{
    checkpoint::{get_snapshot_meta, put_snapshot_meta},
    codec::{self, Bad, Reader, VERSION},
    raft::{AppendReply, AppendRequest, VoteReply, VoteRequest},
};
use bytes::{BufMut, Bytes};
use fusefs_types::{PartitionId, ReplicaId};

/// Payload bytes of a request.
pub(crate) fn encode_request(request: &PeerRequest) -> Bytes {
    let mut out = vec![VERSION];
    match &request.body {
        PeerBody::Ping => out.push(0),
        PeerBody::Append(a) => {
            out.push(1);
            codec::put_vote(&mut out, &a.vote);
            codec::put_opt_log_id(&mut out, a.prev_log_id.as_ref());
            codec::put_opt_log_id(&mut out, a.leader_commit.as_ref());
            out.put_u32_le(a.entries.len() as u32);
            for entry in &a.entries {
                codec::put_entry(&mut out, entry);
            }
        }
        PeerBody::Vote(v) => {
            out.push(2);
            codec::put_vote(&mut out, &v.vote);
            codec::put_opt_log_id(&mut out, v.last_log_id.as_ref());
        }
        PeerBody::PreVote(p) => {
            out.push(3);
            out.put_u64_le(p.term);
            codec::put_opt_log_id(&mut out, p.last_log.as_ref());
        }
        PeerBody::Snapshot(s) => {
            out.push(4);
            codec::put_vote(&mut out, &s.vote);
            put_snapshot_meta(&mut out, &s.meta);
            out.put_u64_le(s.total);
            out.put_u64_le(s.offset);
            out.put_u32_le(s.crc);
            codec::put_bytes(&mut out, &s.data);
        }
    }
    Bytes::from(out)
}

/// A request from its payload.
pub(crate) fn decode_request(group: u64, to: u64, payload: Bytes) -> Result<PeerRequest, Bad> {
    let mut r = Reader(payload);
    r.version()?;
    let body = match r.u8()? {
        0 => PeerBody::Ping,
        1 => {
            let vote = codec::get_vote(&mut r)?;
            let prev_log_id = codec::get_opt_log_id(&mut r)?;
            let leader_commit = codec::get_opt_log_id(&mut r)?;
            let mut entries = Vec::new();
            for _ in 0..r.count()? {
                entries.push(codec::get_entry(&mut r)?);
            }
            PeerBody::Append(AppendRequest { vote, prev_log_id, entries, leader_commit })
        }
        2 => {
            let vote = codec::get_vote(&mut r)?;
            PeerBody::Vote(VoteRequest { vote, last_log_id: codec::get_opt_log_id(&mut r)? })
        }
        3 => PeerBody::PreVote(PreVote { term: r.u64()?, last_log: codec::get_opt_log_id(&mut r)? }),
        4 => PeerBody::Snapshot(SnapshotChunk {
            vote: codec::get_vote(&mut r)?,
            meta: get_snapshot_meta(&mut r)?,
            total: r.u64()?,
            offset: r.u64()?,
            crc: r.u32()?,
            data: r.bytes()?,
        }),
        _ => return Err(Bad),
    };
    r.end()?;
    Ok(PeerRequest { group: PartitionId(group), to: ReplicaId(to), body })
}

/// Payload bytes of a reply.
pub(crate) fn encode_reply(reply: &PeerReply) -> Bytes {
    let mut out = vec![VERSION];
    match &reply.0 {
        PeerAnswer::Pong => out.push(0),
        PeerAnswer::Append(a) => {
            out.push(1);
            match a {
                AppendReply::Success => out.push(0),
                AppendReply::PartialSuccess(id) => {
                    out.push(1);
                    codec::put_opt_log_id(&mut out, id.as_ref());
                }
                AppendReply::Conflict => out.push(2),
                AppendReply::HigherVote(vote) => {
                    out.push(3);
                    codec::put_vote(&mut out, vote);
                }
            }
        }
        PeerAnswer::Vote(v) => {
            out.push(2);
            codec::put_vote(&mut out, &v.vote);
            out.push(u8::from(v.vote_granted));
            codec::put_opt_log_id(&mut out, v.last_log_id.as_ref());
        }
        PeerAnswer::PreVote(granted, term) => {
            out.push(3);
            out.push(u8::from(*granted));
            out.put_u64_le(*term);
        }
        PeerAnswer::SnapshotNext(offset) => {
            out.push(4);
            out.put_u64_le(*offset);
        }
        PeerAnswer::SnapshotDone(vote) => {
            out.push(5);
            codec::put_vote(&mut out, vote);
        }
        PeerAnswer::Refused(why) => {
            out.push(6);
            codec::put_bytes(&mut out, why.as_bytes());
        }
    }
    Bytes::from(out)
}

/// A reply from its payload.
pub(crate) fn decode_reply(payload: Bytes) -> Result<PeerReply, Bad> {
    let mut r = Reader(payload);
    r.version()?;
    let answer = match r.u8()? {
        0 => PeerAnswer::Pong,
        1 => PeerAnswer::Append(match r.u8()? {
            0 => AppendReply::Success,
            1 => AppendReply::PartialSuccess(codec::get_opt_log_id(&mut r)?),
            2 => AppendReply::Conflict,
            3 => AppendReply::HigherVote(codec::get_vote(&mut r)?),
            _ => return Err(Bad),
        }),
        2 => {
            let vote = codec::get_vote(&mut r)?;
            let vote_granted = r.u8()? != 0;
            PeerAnswer::Vote(VoteReply { vote, vote_granted, last_log_id: codec::get_opt_log_id(&mut r)? })
        }
        3 => PeerAnswer::PreVote(r.u8()? != 0, r.u64()?),
        4 => PeerAnswer::SnapshotNext(r.u64()?),
        5 => PeerAnswer::SnapshotDone(codec::get_vote(&mut r)?),
        6 => PeerAnswer::Refused(r.string()?),
        _ => return Err(Bad),
    };
    r.end()?;
    Ok(PeerReply(answer))
}
