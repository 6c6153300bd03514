//! Session in this partition (owned by `crate::session`): key = session id.

use super::{Record, wire::Wire};
use crate::codec::{Get, Put};
use fusefs_types::{
    FsResult, Hlc, SessionId, Token,
    ids::{AckRange, MountId, Origin},
};

const VERSION: u8 = 1;

/// A session that was attached here.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Session {
    /// Highest token seen.
    pub token: Token,
    /// Stamp of the attachment.
    pub since: Hlc,
    /// None while it lives; then when it ended and whether it was revoked.
    pub ended: Option<(Hlc, bool)>,
    /// Stored replies.
    pub replies: u32,
    /// Acknowledged number ranges, sorted and merged per (mount, origin).
    pub acked: Vec<AckRange>,
}

impl Record for Session {
    const TREE: u8 = 8;
    type Key = SessionId;
    fn encode_key(key: &SessionId, out: &mut Vec<u8>) {
        out.key128(key.0);
    }
    fn decode_key(bytes: &[u8]) -> FsResult<SessionId> {
        let mut g = Get(bytes);
        let id = SessionId(g.key128()?);
        g.end().map(|()| id)
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.u8(VERSION);
        self.token.put(out);
        self.since.put(out);
        self.ended.put(out);
        out.u32(self.replies).u32(self.acked.len() as u32);
        for a in &self.acked {
            a.mount.put(out);
            a.origin.put(out);
            out.u64(a.first).u64(a.last);
        }
    }
    fn decode(bytes: &[u8]) -> FsResult<Session> {
        let mut g = Get(bytes);
        g.version(VERSION)?;
        let (token, since, ended, replies) = (Wire::get(&mut g)?, Wire::get(&mut g)?, Wire::get(&mut g)?, g.u32()?);
        let mut acked = Vec::new();
        for _ in 0..g.count(33)? {
            let (mount, origin) = (MountId::get(&mut g)?, Origin::get(&mut g)?);
            acked.push(AckRange { mount, origin, first: g.u64()?, last: g.u64()? });
        }
        g.end().map(|()| Session { token, since, ended, replies, acked })
    }
}
