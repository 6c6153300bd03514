//! Durable effects on other partitions (PROTOCOL 7): key = number from the partition's counter.

use super::{Record, wire::Wire};
use crate::codec::{Get, Put};
use fusefs_types::{FsResult, txn::TxnId};

const VERSION: u8 = 1;

/// One effect; what it says is in the transaction it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxItem {
    /// Transaction.
    pub txn: TxnId,
    /// Part of it.
    pub part: u32,
}

impl Record for OutboxItem {
    const TREE: u8 = 13;
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
        self.txn.put(out);
        out.u32(self.part);
    }
    fn decode(bytes: &[u8]) -> FsResult<OutboxItem> {
        let mut g = Get(bytes);
        g.version(VERSION)?;
        let item = OutboxItem { txn: Wire::get(&mut g)?, part: g.u32()? };
        g.end().map(|()| item)
    }
}
