//! The superblock names the owner of a disk (PROTOCOL 1).

use crate::{
    codec::{Bad, Reader, VERSION},
    disk::Disk,
};
use bytes::{BufMut, Bytes};
use fusefs_types::{ClusterId, DiskId, NodeId};
use std::io;

const NAME: &str = "superblock";
const NAME_NEW: &str = "superblock.new";
const MAGIC: u64 = u64::from_le_bytes(*b"FUSEFSB1");
const BYTES: usize = 8 + 1 + 3 * 16 + 4;

/// Owner of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Cluster.
    pub cluster: ClusterId,
    /// Node.
    pub node: NodeId,
    /// This disk.
    pub disk: DiskId,
}

impl Superblock {
    /// Reads it; `None` on a fresh disk.
    ///
    /// # Errors
    /// InvalidData when damaged; otherwise what the disk says.
    pub fn read(disk: &dyn Disk) -> io::Result<Option<Superblock>> {
        let file = match disk.open(NAME) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the superblock is damaged");
        let mut buf = vec![0; BYTES];
        file.read_at(0, &mut buf).map_err(|_| damaged())?;
        let sum = crc32c::crc32c(&buf[..BYTES - 4]);
        let parse = |r: &mut Reader| -> Result<Superblock, Bad> {
            if r.u64()? != MAGIC {
                return Err(Bad);
            }
            r.version()?;
            let (cluster, node, disk) = (ClusterId(r.u128()?), NodeId(r.u128()?), DiskId(r.u128()?));
            if r.u32()? == sum { Ok(Superblock { cluster, node, disk }) } else { Err(Bad) }
        };
        parse(&mut Reader(Bytes::from(buf))).map(Some).map_err(|_| damaged())
    }

    /// Writes it durably.
    pub(crate) fn write(&self, disk: &dyn Disk) -> io::Result<()> {
        let mut buf = Vec::with_capacity(BYTES);
        buf.put_u64_le(MAGIC);
        buf.put_u8(VERSION);
        buf.put_u128_le(self.cluster.0);
        buf.put_u128_le(self.node.0);
        buf.put_u128_le(self.disk.0);
        buf.put_u32_le(crc32c::crc32c(&buf));
        let file = disk.create(NAME_NEW)?;
        file.write_at(0, &buf)?;
        file.sync()?;
        disk.rename(NAME_NEW, NAME)?;
        disk.sync_dir("")
    }
}
