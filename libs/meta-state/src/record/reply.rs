//! Stored reply (owned by `crate::session`): key = (session, op id) in the order of acknowledgements.

use super::{Record, wire::Wire};
use crate::codec::{Get, Put};
use fusefs_types::{
    FsError, FsResult, SessionId,
    ids::{MountId, OpId, Origin},
    ops::WriteReply,
};

const VERSION: u8 = 1;

/// Whose reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplyKey {
    /// Session.
    pub session: SessionId,
    /// Operation.
    pub op: OpId,
}

/// What became of the operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Finished.
    Done(Result<WriteReply, FsError>),
    /// Transaction `seq` of this partition is working on it.
    Running(u64),
}

/// The stored reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Fingerprint of the request.
    pub fingerprint: u64,
    /// Answer.
    pub outcome: Outcome,
}

impl Record for Reply {
    const TREE: u8 = 9;
    type Key = ReplyKey;
    fn encode_key(key: &ReplyKey, out: &mut Vec<u8>) {
        let op = &key.op;
        out.key128(key.session.0).key128(op.mount.0).u8(op.origin as u8).key64(op.number).key32(op.step);
    }
    fn decode_key(bytes: &[u8]) -> FsResult<ReplyKey> {
        let mut g = Get(bytes);
        let (session, mount) = (SessionId(g.key128()?), MountId(g.key128()?));
        let op = OpId { mount, origin: Origin::get(&mut g)?, number: g.key64()?, step: g.key32()? };
        g.end().map(|()| ReplyKey { session, op })
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.u8(VERSION).u64(self.fingerprint);
        match &self.outcome {
            Outcome::Done(result) => {
                out.u8(0);
                result.put(out);
            }
            Outcome::Running(seq) => _ = out.u8(1).u64(*seq),
        }
    }
    fn decode(bytes: &[u8]) -> FsResult<Reply> {
        let mut g = Get(bytes);
        g.version(VERSION)?;
        let fingerprint = g.u64()?;
        let outcome = match g.u8()? {
            0 => Outcome::Done(Wire::get(&mut g)?),
            1 => Outcome::Running(g.u64()?),
            _ => return Err(FsError::Corrupt),
        };
        g.end().map(|()| Reply { fingerprint, outcome })
    }
}
