//! Checkpoint files: one per replica, written in the background, verified by CRC, replaced atomically.
//!
//! A file is a sequence of frames {length u32, crc u32, bytes}; the CRC of each frame is seeded with the one before, so
//! that frames cannot be swapped or dropped. The first frame says what it is, an empty frame ends it.

use crate::{
    codec::{self, Bad, Reader, VERSION},
    disk::{Disk, DiskFile},
    log::format::Key,
    raft::SnapshotMeta,
};
use bytes::{BufMut, Bytes};
use std::{
    io::{self, Read, Write},
    sync::Arc,
};

const MAGIC: u64 = u64::from_le_bytes(*b"FUSEFSC1");
const FRAME_BYTES: usize = 256 << 10;
const DIR: &str = "ckpt";

/// A complete, verified checkpoint. Holds the file open: it stays readable after a newer one replaced it.
#[derive(Clone)]
pub struct SnapshotFile {
    pub(crate) file: Arc<dyn DiskFile>,
    /// Bytes of the file.
    pub(crate) len: u64,
}

impl std::fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SnapshotFile({} bytes)", self.len)
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl From<Bad> for io::Error {
    fn from(_: Bad) -> Self {
        bad("undecodable bytes")
    }
}

fn prefix(key: Key) -> String {
    format!("{:016x}.{:016x}.", key.group.0, key.replica.0)
}

fn final_name(key: Key, meta: &SnapshotMeta) -> String {
    let index = meta.last_log_id.map_or(0, |id| id.index);
    format!("{DIR}/{}{index:016x}.ck", prefix(key))
}

/// Name of a file being received.
pub(crate) fn receive_name(key: Key) -> String {
    format!("{DIR}/{}recv", prefix(key))
}

struct FrameWriter {
    file: Arc<dyn DiskFile>,
    offset: u64,
    crc: u32,
    buf: Vec<u8>,
}

impl FrameWriter {
    fn frame(&mut self, data: &[u8]) -> io::Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, data);
        let mut out = Vec::with_capacity(8 + data.len());
        out.put_u32_le(u32::try_from(data.len()).map_err(|_| bad("frame too large"))?);
        out.put_u32_le(self.crc);
        out.extend_from_slice(data);
        self.file.write_at(self.offset, &out)?;
        self.offset += out.len() as u64;
        Ok(())
    }

    fn drain(&mut self) -> io::Result<()> {
        let data = std::mem::take(&mut self.buf);
        if data.is_empty() { Ok(()) } else { self.frame(&data) }
    }
}

impl Write for FrameWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = data.len().min(FRAME_BYTES - self.buf.len());
        self.buf.extend_from_slice(&data[..n]);
        if self.buf.len() == FRAME_BYTES {
            self.drain()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the stream of a checkpoint, verifying every frame.
pub(crate) struct FrameReader {
    file: Arc<dyn DiskFile>,
    offset: u64,
    crc: u32,
    frame: Bytes,
    ended: bool,
}

impl FrameReader {
    fn new(file: Arc<dyn DiskFile>) -> Self {
        FrameReader { file, offset: 0, crc: MAGIC as u32, frame: Bytes::new(), ended: false }
    }

    fn next(&mut self) -> io::Result<()> {
        let mut head = [0; 8];
        self.file.read_at(self.offset, &mut head)?;
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let sum = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if len > 4 * FRAME_BYTES {
            return Err(bad("checkpoint frame too large"));
        }
        let mut data = vec![0; len];
        self.file.read_at(self.offset + 8, &mut data)?;
        self.crc = crc32c::crc32c_append(self.crc, &data);
        let ending = u32::from(len == 0);
        if self.crc.wrapping_add(ending) != sum {
            return Err(bad("checkpoint frame damaged"));
        }
        self.offset += 8 + len as u64;
        self.ended = len == 0;
        self.frame = Bytes::from(data);
        Ok(())
    }
}

impl Read for FrameReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.frame.is_empty() && !self.ended {
            self.next()?;
        }
        let n = out.len().min(self.frame.len());
        out[..n].copy_from_slice(&self.frame.split_to(n));
        Ok(n)
    }
}

fn put_meta(key: Key, meta: &SnapshotMeta) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u64_le(MAGIC);
    out.put_u8(VERSION);
    out.put_u64_le(key.group.0);
    out.put_u64_le(key.replica.0);
    put_snapshot_meta(&mut out, meta);
    out
}

/// Encoding of a snapshot's meta data.
pub(crate) fn put_snapshot_meta(out: &mut Vec<u8>, meta: &SnapshotMeta) {
    codec::put_opt_log_id(out, meta.last_log_id.as_ref());
    codec::put_stored_membership(out, &meta.last_membership);
    codec::put_bytes(out, meta.snapshot_id.as_bytes());
}

/// Decoding of a snapshot's meta data.
pub(crate) fn get_snapshot_meta(r: &mut Reader) -> Result<SnapshotMeta, Bad> {
    let last_log_id = codec::get_opt_log_id(r)?;
    let last_membership = codec::get_stored_membership(r)?;
    Ok(SnapshotMeta { last_log_id, last_membership, snapshot_id: r.string()? })
}

/// Opens a checkpoint and verifies all of it; answers its meta data and the group it was written for.
pub(crate) fn verify(file: Arc<dyn DiskFile>) -> io::Result<(SnapshotMeta, Key, SnapshotFile)> {
    let mut reader = FrameReader::new(Arc::clone(&file));
    let (meta, key) = read_meta(&mut reader)?;
    reader.frame = Bytes::new();
    while !reader.ended {
        reader.next()?;
    }
    if file.len()? != reader.offset {
        return Err(bad("checkpoint has a wrong length"));
    }
    let len = reader.offset;
    Ok((meta, key, SnapshotFile { file, len }))
}

fn read_meta(reader: &mut FrameReader) -> io::Result<(SnapshotMeta, Key)> {
    reader.next()?;
    let mut r = Reader(std::mem::take(&mut reader.frame));
    if r.u64()? != MAGIC {
        return Err(bad("not a checkpoint"));
    }
    r.version()?;
    let key = Key { group: fusefs_types::PartitionId(r.u64()?), replica: fusefs_types::ReplicaId(r.u64()?) };
    let meta = get_snapshot_meta(&mut r)?;
    Ok((meta, key))
}

/// The state in a checkpoint.
pub(crate) fn state_of(snapshot: &SnapshotFile) -> io::Result<FrameReader> {
    let mut reader = FrameReader::new(Arc::clone(&snapshot.file));
    read_meta(&mut reader)?;
    Ok(reader)
}

/// Writes a checkpoint durably and makes it the replica's current one. Older ones are removed afterwards.
pub(crate) fn write(
    disk: &dyn Disk,
    key: Key,
    meta: &SnapshotMeta,
    state: &dyn crate::api::Frozen,
) -> io::Result<SnapshotFile> {
    let tmp = format!("{DIR}/{}tmp", prefix(key));
    let file = disk.create(&tmp)?;
    let mut w = FrameWriter { file: Arc::clone(&file), offset: 0, crc: MAGIC as u32, buf: Vec::new() };
    w.frame(&put_meta(key, meta))?;
    state.write_to(&mut w)?;
    w.drain()?;
    let mut end = Vec::new();
    end.put_u32_le(0);
    end.put_u32_le(w.crc.wrapping_add(1));
    file.write_at(w.offset, &end)?;
    let len = w.offset + 8;
    file.sync()?;
    publish(disk, key, meta, &tmp)?;
    Ok(SnapshotFile { file, len })
}

/// Renames a durable file to its final name, durably, and removes older checkpoints.
pub(crate) fn publish(disk: &dyn Disk, key: Key, meta: &SnapshotMeta, from: &str) -> io::Result<()> {
    let name = final_name(key, meta);
    disk.rename(from, &name)?;
    disk.sync_dir(DIR)?;
    for other in disk.list(DIR)? {
        let path = format!("{DIR}/{other}");
        if other.starts_with(&prefix(key)) && other.ends_with(".ck") && path < name {
            disk.remove(&path)?;
        }
    }
    Ok(())
}

/// The newest valid checkpoint of a replica; damaged ones are skipped and reported in the second value.
pub(crate) fn load(disk: &dyn Disk, key: Key) -> io::Result<(Option<(SnapshotMeta, SnapshotFile)>, Vec<String>)> {
    let mut problems = Vec::new();
    for name in disk.list(DIR)?.into_iter().rev() {
        if !name.starts_with(&prefix(key)) {
            continue;
        }
        let path = format!("{DIR}/{name}");
        if !name.ends_with(".ck") {
            disk.remove(&path)?;
            continue;
        }
        match disk.open(&path).and_then(verify) {
            // A checkpoint received from another replica carries that one's key.
            Ok((meta, found, file)) if found.group == key.group => {
                // A killed process may have left it in the page cache only; the log is purged on its strength.
                file.file.sync()?;
                disk.sync_dir(DIR)?;
                return Ok((Some((meta, file)), problems));
            }
            Ok(_) => problems.push(format!("{path}: belongs to another group")),
            Err(e) => problems.push(format!("{path}: {e}")),
        }
    }
    Ok((None, problems))
}

/// Removes all files of a destroyed replica.
pub(crate) fn remove_all(disk: &dyn Disk, key: Key) -> io::Result<()> {
    for name in disk.list(DIR)? {
        if name.starts_with(&prefix(key)) {
            disk.remove(&format!("{DIR}/{name}"))?;
        }
    }
    Ok(())
}
