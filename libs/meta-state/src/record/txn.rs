//! Transactions (owned by `crate::txn`): the coordinator's record under its number, a participant's row under
//! (coordinator, number, part).

use super::{Record, wire::Wire};
use crate::codec::{Get, Put};
use fusefs_types::{
    FsError, FsResult, PartitionId, RangeKey, SessionId, Token,
    ids::OpId,
    ops::Write,
    txn::{Part, PartReply, TxnId},
};

const VERSION: u8 = 1;

/// Coordinator's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnRecord {
    /// Session that asked.
    pub session: SessionId,
    /// Its token then.
    pub token: Token,
    /// Operation id.
    pub op: OpId,
    /// Request.
    pub write: Write,
    /// Recorded choice of a spilled mkdir.
    pub spill_to: Option<RangeKey>,
    /// State, numbered by `crate::txn`.
    pub state: u8,
    /// Why it aborts.
    pub error: Option<FsError>,
    /// Parts with their state (numbered by `crate::txn`) and latest answer.
    pub parts: Vec<(Part, (u8, Option<PartReply>))>,
}

impl Record for TxnRecord {
    const TREE: u8 = 14;
    type Key = u64;
    fn encode_key(key: &u64, out: &mut Vec<u8>) {
        out.key64(*key);
    }
    fn decode_key(bytes: &[u8]) -> FsResult<u64> {
        let mut g = Get(bytes);
        let key = g.key64()?;
        g.end().map(|()| key)
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.u8(VERSION);
        self.session.put(out);
        self.token.put(out);
        self.op.put(out);
        self.write.put(out);
        self.spill_to.put(out);
        out.u8(self.state);
        self.error.put(out);
        self.parts.put(out);
    }
    fn decode(bytes: &[u8]) -> FsResult<TxnRecord> {
        let mut g = Get(bytes);
        g.version(VERSION)?;
        let record = TxnRecord {
            session: Wire::get(&mut g)?,
            token: Wire::get(&mut g)?,
            op: Wire::get(&mut g)?,
            write: Wire::get(&mut g)?,
            spill_to: Wire::get(&mut g)?,
            state: g.u8()?,
            error: Wire::get(&mut g)?,
            parts: Wire::get(&mut g)?,
        };
        g.end().map(|()| record)
    }
}

/// Whose part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParticipantKey {
    /// Transaction.
    pub txn: TxnId,
    /// Part.
    pub part: u32,
}

/// Participant's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Participant {
    /// Checked and locked.
    Prepared(Part, PartReply),
    /// Done with this answer.
    Done(PartReply),
    /// Refused or aborted, for ever.
    Refused(FsError),
    /// Under number 0 of a coordinator: its acknowledgement floor.
    Floor(u64),
}

impl Record for Participant {
    const TREE: u8 = 15;
    type Key = ParticipantKey;
    fn encode_key(key: &ParticipantKey, out: &mut Vec<u8>) {
        out.key64(key.txn.coordinator.0).key64(key.txn.seq).key32(key.part);
    }
    fn decode_key(bytes: &[u8]) -> FsResult<ParticipantKey> {
        let mut g = Get(bytes);
        let txn = TxnId { coordinator: PartitionId(g.key64()?), seq: g.key64()? };
        let key = ParticipantKey { txn, part: g.key32()? };
        g.end().map(|()| key)
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.u8(VERSION);
        match self {
            Participant::Prepared(part, reply) => {
                out.u8(0);
                part.put(out);
                reply.put(out);
            }
            Participant::Done(reply) => {
                out.u8(1);
                reply.put(out);
            }
            Participant::Refused(e) => {
                out.u8(2);
                e.put(out);
            }
            Participant::Floor(floor) => _ = out.u8(3).u64(*floor),
        }
    }
    fn decode(bytes: &[u8]) -> FsResult<Participant> {
        let mut g = Get(bytes);
        g.version(VERSION)?;
        let row = match g.u8()? {
            0 => Participant::Prepared(Wire::get(&mut g)?, Wire::get(&mut g)?),
            1 => Participant::Done(Wire::get(&mut g)?),
            2 => Participant::Refused(Wire::get(&mut g)?),
            3 => Participant::Floor(g.u64()?),
            _ => return Err(FsError::Corrupt),
        };
        g.end().map(|()| row)
    }
}
