//! A partition as a stream: checkpoints and snapshots for new replicas (PROTOCOL 29, 34).
//!
//! ```text
//! "FUSEFSMP"  then frames: [payload length u32][CRC32C of the payload u32][payload]
//! header 1: format u16, volume, partition, hash key, ranges, cursors and counters
//! block  2: tree u8, log index of its last change u64, count u32, records ([key length u16][value length u32][key][value])
//! end    3: records per tree, digest u128 (of the records as written)
//! ```
//! Blocks come in tree and key order. Inline bytes are not here: the shell sends the blob file beside it.

use crate::{
    codec::{Get, Put},
    partition::{Meta, Partition, Tables},
    record::wire::Wire,
};
use fusefs_types::{FsError, FsResult, KeyRange, PartitionId, RangeSet, VolumeId};
use std::{
    io::{self, Read, Write},
    sync::Arc,
};

const MAGIC: &[u8; 8] = b"FUSEFSMP";
const FORMAT: u16 = 1;
const HEADER: u8 = 1;
const BLOCK: u8 = 2;
const END: u8 = 3;
/// Largest payload of a frame; a block holds 4 KiB or one larger record.
const FRAME_MAX: usize = 4 << 20;

fn bad(error: FsError) -> io::Error {
    let kind = if error == FsError::UpgradeNeeded { io::ErrorKind::Unsupported } else { io::ErrorKind::InvalidData };
    io::Error::new(kind, error)
}

fn write_frame(out: &mut dyn Write, payload: &[u8]) -> io::Result<()> {
    let mut head = Vec::with_capacity(8);
    head.u32(payload.len() as u32).u32(crc32c::crc32c(payload));
    out.write_all(&head)?;
    out.write_all(payload)
}

fn read_frame(from: &mut dyn Read, payload: &mut Vec<u8>) -> io::Result<()> {
    let mut head = [0; 8];
    from.read_exact(&mut head)?;
    let mut g = Get(&head);
    let (len, crc) = (g.u32().map_err(bad)? as usize, g.u32().map_err(bad)?);
    if len == 0 || len > FRAME_MAX {
        return Err(bad(FsError::Corrupt));
    }
    payload.resize(len, 0);
    from.read_exact(payload)?;
    if crc32c::crc32c(payload) == crc { Ok(()) } else { Err(bad(FsError::Corrupt)) }
}

impl Partition {
    /// A copy that later commands do not change; O(1).
    pub fn freeze(&self) -> Partition {
        self.clone()
    }
    /// Writes the whole state.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(MAGIC)?;
        write_frame(out, &self.header())?;
        let mut payload = Vec::with_capacity(8192);
        self.t.blocks(&mut |tree, at, records| {
            payload.clear();
            payload.u8(BLOCK).u8(tree).u64(at).u32(records.len() as u32);
            for (k, v) in records {
                payload.u16(k.len() as u16).u32(v.len() as u32).rest(k).rest(v);
            }
            write_frame(out, &payload)
        })?;
        payload.clear();
        payload.u8(END);
        let counts = self.t.counts();
        payload.u32(counts.len() as u32);
        for (tree, records) in counts {
            payload.u8(tree).u64(records);
        }
        payload.u128(self.digest());
        write_frame(out, &payload)
    }
    fn header(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.u8(HEADER).u16(FORMAT).u64(self.volume.0).u64(self.id.0).rest(&self.hash_key);
        let ranges: Vec<_> = self.ranges.iter().map(|r| (r.start, r.end)).collect();
        ranges.put(&mut out);
        self.meta.encode(&mut out);
        out
    }
    /// Reads what [`Partition::write_to`] wrote. Every record is decoded once here, so that nothing later can meet a
    /// damaged one. Errors: InvalidData (damage), Unsupported (a newer format), UnexpectedEof.
    pub fn read_from(from: &mut dyn Read) -> io::Result<Partition> {
        let mut magic = [0; 8];
        from.read_exact(&mut magic)?;
        if magic != *MAGIC {
            return Err(bad(FsError::Corrupt));
        }
        let mut payload = Vec::new();
        read_frame(from, &mut payload)?;
        let mut p = Self::decode_header(&payload).map_err(bad)?;
        loop {
            read_frame(from, &mut payload)?;
            match payload[0] {
                BLOCK => load_block(&mut p.t, &payload[1..]).map_err(bad)?,
                END => break,
                _ => return Err(bad(FsError::UpgradeNeeded)),
            }
        }
        p.check_end(&payload[1..]).map_err(bad)?;
        Ok(p)
    }
    fn decode_header(payload: &[u8]) -> FsResult<Partition> {
        let mut g = Get(payload);
        if g.u8()? != HEADER {
            return Err(FsError::Corrupt);
        }
        if g.u16()? > FORMAT {
            return Err(FsError::UpgradeNeeded);
        }
        let (volume, id) = (VolumeId(g.u64()?), PartitionId(g.u64()?));
        let hash_key: [u8; 16] = g.take(16)?.try_into().map_err(|_| FsError::Corrupt)?;
        let ranges: Vec<_> = Wire::get(&mut g)?;
        let ranges = ranges.into_iter().map(|(start, end)| KeyRange { start, end }).collect();
        let ranges = Arc::new(RangeSet::new(ranges).ok_or(FsError::Corrupt)?);
        let meta = Meta::decode(&mut g)?;
        g.end()?;
        let faults = crate::txn::Faults::default();
        Ok(Partition { volume, id, hash_key, ranges, meta, t: Tables::default(), faults, repeated: 0 })
    }
    /// Record counts and digest as the writer saw them.
    fn check_end(&self, payload: &[u8]) -> FsResult<()> {
        let mut g = Get(payload);
        let ours = self.t.counts();
        for _ in 0..g.count(9)? {
            let theirs = (g.u8()?, g.u64()?);
            if theirs.1 != 0 && !ours.contains(&theirs) {
                return Err(FsError::Corrupt);
            }
        }
        let digest = g.u128()?;
        g.end()?;
        if digest == self.digest() { Ok(()) } else { Err(FsError::Corrupt) }
    }
}

fn load_block(t: &mut Tables, payload: &[u8]) -> FsResult<()> {
    let mut g = Get(payload);
    let (tree, at) = (g.u8()?, g.u64()?);
    for _ in 0..g.count(6)? {
        let (key_len, value_len) = (g.u16()? as usize, g.u32()? as usize);
        let key = g.take(key_len)?;
        t.load(tree, key, g.take(value_len)?, at)?;
    }
    g.end()
}
