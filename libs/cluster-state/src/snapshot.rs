//! Snapshot stream: magic `FFMS`, version byte, body length (u64), body, CRC32C of everything before it.

use crate::{ClusterState, codec, record::PublicationKey};
use fusefs_types::cluster::Publication;
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
};

const MAGIC: &[u8; 4] = b"FFMS";
/// Version 2 has the nodes that can mount and their rights to at the end.
const VERSION: u8 = 2;
/// Still read: without them.
const VERSION_1: u8 = 1;
/// A larger body is a damaged length field: a million sessions are about 150 MB.
const BODY_MAX: u64 = 4 << 30;

/// Why a snapshot cannot be used.
#[derive(Debug)]
pub enum SnapshotError {
    /// Written by a newer version.
    UpgradeNeeded(u8),
    /// Checksum, length or contents are wrong.
    Damaged,
    /// Reading failed.
    Io(io::Error),
}

impl From<SnapshotError> for io::Error {
    fn from(e: SnapshotError) -> io::Error {
        match e {
            SnapshotError::UpgradeNeeded(v) => io::Error::new(
                io::ErrorKind::Unsupported,
                format!("the cluster state has format version {v}, newer than this binary: upgrade it"),
            ),
            SnapshotError::Damaged => io::Error::new(io::ErrorKind::InvalidData, "the cluster state is damaged"),
            SnapshotError::Io(e) => e,
        }
    }
}

impl ClusterState {
    /// Writes the snapshot.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let body = codec::pack(self);
        let mut head = MAGIC.to_vec();
        head.push(VERSION);
        head.extend_from_slice(&(body.len() as u64).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head), &body);
        out.write_all(&head)?;
        out.write_all(&body)?;
        out.write_all(&crc.to_le_bytes())
    }

    /// Reads a snapshot.
    pub fn read_from(from: &mut dyn Read) -> Result<ClusterState, SnapshotError> {
        let mut head = [0u8; 13];
        from.read_exact(&mut head).map_err(cut)?;
        if &head[..4] != MAGIC {
            return Err(SnapshotError::Damaged);
        }
        if !matches!(head[4], VERSION_1 | VERSION) {
            return Err(SnapshotError::UpgradeNeeded(head[4]));
        }
        let length = u64::from_le_bytes([head[5], head[6], head[7], head[8], head[9], head[10], head[11], head[12]]);
        if length > BODY_MAX {
            return Err(SnapshotError::Damaged);
        }
        // Grows with what really arrives, not with what the length claims.
        let mut body = Vec::new();
        from.take(length).read_to_end(&mut body).map_err(SnapshotError::Io)?;
        let mut crc = [0u8; 4];
        from.read_exact(&mut crc).map_err(cut)?;
        let want = crc32c::crc32c_append(crc32c::crc32c(&head), &body);
        if u32::from_le_bytes(crc) != want {
            return Err(SnapshotError::Damaged);
        }
        if head[4] == VERSION_1 {
            codec::Pack::put(&BTreeMap::<String, u64>::new(), &mut body);
            codec::Pack::put(&BTreeMap::<PublicationKey, Publication>::new(), &mut body);
        }
        codec::unpack(&body).map_err(|_| SnapshotError::Damaged)
    }

    /// FNV-1a over the packed state, to compare masters.
    pub fn digest(&self) -> u64 {
        codec::pack(self).iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
    }
}

fn cut(e: io::Error) -> SnapshotError {
    if e.kind() == io::ErrorKind::UnexpectedEof { SnapshotError::Damaged } else { SnapshotError::Io(e) }
}
