//! Bytes of the journal: headers and records, pure. The tables are in `docs/FORMATS.md`.
//!
//! Every record's header CRC is seeded with the mount id, the number of its segment and its position, so that neither
//! remains of an earlier use of the file nor bytes that an application wrote can pass for a record.

use bytes::Bytes;
use fusefs_types::{
    Extent, FsError, Ino, ObjectId, SessionId, Source, Time,
    ids::{Incarnation, MountId},
    ops::{CommitFile, Piece},
};

/// First bytes of the first file.
pub const MAGIC: [u8; 8] = *b"FUSEFSJ1";
/// Version of everything in here; another one is refused.
pub const VERSION: u16 = 1;
/// Records start here in every file.
pub const DATA_START: u64 = 4096;
/// Records start at multiples of this.
pub const ALIGN: u64 = 16;
/// Bytes of a record's header.
pub const RECORD_HEADER: usize = 80;
/// The header of the journal is written to these places of the first file in turn.
pub const SLOTS: [u64; 2] = [0, 1024];
/// Place of a segment's header in its file.
pub const SEGMENT_AT: u64 = 2048;
/// Bytes of the journal's header.
pub const HEADER: usize = 128;
/// Bytes of a segment's header.
pub const SEGMENT_HEADER: usize = 64;

const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"FJR1");
const SEGMENT_MAGIC: u32 = u32::from_le_bytes(*b"FJS1");
/// A record carries an mtime.
const FLAG_MTIME: u8 = 1;
/// Clear set-uid/set-gid at commit.
const FLAG_KILL_PRIV: u8 = 2;
/// Done: nothing was applied; what the intent covers is still to be committed.
const FLAG_REFUSED: u8 = 4;

/// Who a journal belongs to and how far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Written so many times; the newest valid copy counts.
    pub generation: u64,
    /// Boot of the machine that wrote last (`/proc/sys/kernel/random/boot_id`).
    pub boot: u128,
    /// Kernel connection; seeds all checksums.
    pub mount: MountId,
    /// Session at the cluster, 0 before there was one.
    pub session: SessionId,
    /// Attach generation of the session's token.
    pub attach: u64,
    /// Client processes that used it so far; 0 = none yet.
    pub incarnation: Incarnation,
    /// Number of files.
    pub files: u32,
    /// Bytes of each file.
    pub file_bytes: u64,
    /// Oldest segment that may hold anything that is not settled.
    pub tail: u64,
    /// Records up to this number are void (the journal could not be written any more).
    pub void: u64,
}

impl Header {
    /// Packed form with its checksum.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        let mut w = Writer(&mut out, 0);
        w.put(&MAGIC).put(&VERSION.to_le_bytes()).put(&[0; 6]).u64(self.generation);
        w.put(&self.boot.to_le_bytes()).put(&self.mount.0.to_le_bytes()).put(&self.session.0.to_le_bytes());
        w.u64(self.attach).u32(self.incarnation.0).u32(self.files).u64(self.file_bytes).u64(self.tail).u64(self.void);
        let crc = crc32c::crc32c(&out[..HEADER - 4]);
        out[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }
    /// None = not a header, or damaged. `Err(version)` = another version.
    pub fn decode(bytes: &[u8]) -> Option<Result<Header, u16>> {
        let mut r = Reader(bytes.get(..HEADER)?);
        if r.take(8)? != MAGIC {
            return None;
        }
        let version = r.u16()?;
        if version != VERSION {
            return Some(Err(version));
        }
        if crc32c::crc32c(&bytes[..HEADER - 4]).to_le_bytes() != bytes[HEADER - 4..HEADER] {
            return None;
        }
        r.take(6)?;
        Some(Ok(Header {
            generation: r.u64()?,
            boot: r.u128()?,
            mount: MountId(r.u128()?),
            session: SessionId(r.u128()?),
            attach: r.u64()?,
            incarnation: Incarnation(r.u32()?),
            files: r.u32()?,
            file_bytes: r.u64()?,
            tail: r.u64()?,
            void: r.u64()?,
        }))
    }
}

/// Head of one use of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Number of the segment: 1, 2, 3, ... over all files.
    pub seq: u64,
    /// Records of it have numbers from here on.
    pub first: u64,
    /// Where the records of the segment before it end.
    pub before: u64,
}

impl SegmentHeader {
    /// Packed form with its checksum.
    pub fn encode(&self, mount: MountId) -> [u8; SEGMENT_HEADER] {
        let mut out = [0; SEGMENT_HEADER];
        let mut w = Writer(&mut out, 0);
        w.u32(SEGMENT_MAGIC).u32(u32::from(VERSION)).u64(self.seq).u64(self.first).u64(self.before);
        let crc = crc32c::crc32c_append(mount_seed(mount), &out[..SEGMENT_HEADER - 4]);
        out[SEGMENT_HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }
    /// None = the file was never used, or damage.
    pub fn decode(bytes: &[u8], mount: MountId) -> Option<SegmentHeader> {
        let body = bytes.get(..SEGMENT_HEADER - 4)?;
        let mut r = Reader(body);
        if r.u32()? != SEGMENT_MAGIC || r.u32()? != u32::from(VERSION) {
            return None;
        }
        let crc = crc32c::crc32c_append(mount_seed(mount), body);
        if crc.to_le_bytes() != bytes.get(SEGMENT_HEADER - 4..SEGMENT_HEADER)? {
            return None;
        }
        Some(SegmentHeader { seq: r.u64()?, first: r.u64()?, before: r.u64()? })
    }
}

/// Kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Bytes of a write(2); payload = the bytes, `at` = file offset.
    Write = 1,
    /// A truncation succeeded; `at` = size. Every older record of the inode is settled.
    Barrier = 2,
    /// An explicit utimens follows: older records of the inode lose their mtime.
    ExplicitMtime = 3,
    /// Commit `number` is about to be sent; payload = the commit, `at` = last record of the inode that it covers.
    Intent = 4,
    /// Commit `number` has an answer; `at` as in its intent. Unless refused, what it covers is settled.
    Done = 5,
    /// The inode is gone: every older record of it is settled.
    Lost = 6,
}

impl Kind {
    fn of(b: u8) -> Option<Kind> {
        [Kind::Write, Kind::Barrier, Kind::ExplicitMtime, Kind::Intent, Kind::Done, Kind::Lost]
            .into_iter()
            .find(|k| *k as u8 == b)
    }
}

/// Head of a record. Which fields mean something depends on the kind; the others are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Kind.
    pub kind: Kind,
    /// Bytes of payload.
    pub len: u32,
    /// CRC32C of the payload.
    pub crc: u32,
    /// Number of the record; a copy of a record keeps it.
    pub lsn: u64,
    /// Inode.
    pub ino: Ino,
    /// Offset, size or record number: see [`Kind`].
    pub at: u64,
    /// Number of the kernel request, 0 without one.
    pub unique: u64,
    /// `trunc_seq` seen by a write, or the one a truncation gave; Done: version of the inode afterwards.
    pub trunc_seq: u64,
    /// Commit number of Intent and Done; Write: version of the inode seen by the writer, 0 = not known.
    pub number: u64,
    /// Write: when, None after an explicit utimens.
    pub mtime: Option<Time>,
    /// Write: clear set-uid/set-gid.
    pub kill_priv: bool,
    /// Done: refused with this error.
    pub refused: Option<FsError>,
}

impl Record {
    /// A record of `kind` for an inode, everything else empty.
    pub fn new(kind: Kind, ino: Ino) -> Record {
        Record {
            kind,
            len: 0,
            crc: 0,
            lsn: 0,
            ino,
            at: 0,
            unique: 0,
            trunc_seq: 0,
            number: 0,
            mtime: None,
            kill_priv: false,
            refused: None,
        }
    }
    /// Bytes it takes in a segment.
    pub fn total(&self) -> u64 {
        total(self.len as usize)
    }
    /// Packed header for position `at` of segment `seq`.
    pub fn encode(&self, mount: MountId, seq: u64, at: u64) -> [u8; RECORD_HEADER] {
        let mut out = [0; RECORD_HEADER];
        let flag = |on: bool, f: u8| if on { f } else { 0 };
        let flags = flag(self.mtime.is_some(), FLAG_MTIME)
            | flag(self.kill_priv, FLAG_KILL_PRIV)
            | flag(self.refused.is_some(), FLAG_REFUSED);
        let mut w = Writer(&mut out, 0);
        w.u32(RECORD_MAGIC).put(&[self.kind as u8, flags, 0, 0]).u32(self.len).u32(self.crc);
        w.u64(self.lsn).u64(self.ino.0).u64(self.at).u64(self.unique).u64(self.trunc_seq);
        w.u64(self.mtime.map_or(0, |t| t.0 as u64)).u64(self.number);
        w.u32(self.refused.map_or(0, |e| u32::from(e.code())));
        let crc = seeded(mount, seq, at, &out[..RECORD_HEADER - 4]);
        out[RECORD_HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }
    /// Whether a look with [`Record::decode`] is worth it: this runs over megabytes at every start.
    pub fn may_start(bytes: &[u8]) -> bool {
        bytes.starts_with(&RECORD_MAGIC.to_le_bytes())
    }
    /// The record at position `at` of segment `seq`; None = nothing valid starts here.
    pub fn decode(bytes: &[u8], mount: MountId, seq: u64, at: u64) -> Option<Record> {
        let body = bytes.get(..RECORD_HEADER - 4)?;
        let mut r = Reader(body);
        if r.u32()? != RECORD_MAGIC {
            return None;
        }
        let crc = bytes.get(RECORD_HEADER - 4..RECORD_HEADER)?;
        if seeded(mount, seq, at, body).to_le_bytes() != crc {
            return None;
        }
        let (kind, flags) = (Kind::of(r.u8()?)?, r.u8()?);
        r.u16()?;
        let mut record = Record { len: r.u32()?, crc: r.u32()?, ..Record::new(kind, Ino(0)) };
        (record.lsn, record.ino, record.at) = (r.u64()?, Ino(r.u64()?), r.u64()?);
        (record.unique, record.trunc_seq) = (r.u64()?, r.u64()?);
        let mtime = Time(r.u64()? as i64);
        record.number = r.u64()?;
        let code = r.u32()?;
        record.mtime = (flags & FLAG_MTIME != 0).then_some(mtime);
        record.kill_priv = flags & FLAG_KILL_PRIV != 0;
        record.refused = (flags & FLAG_REFUSED != 0).then(|| FsError::from_code(code as u16));
        Some(record)
    }
}

/// Bytes that a record with this much payload takes.
pub fn total(payload: usize) -> u64 {
    ((RECORD_HEADER + payload) as u64).next_multiple_of(ALIGN)
}

fn mount_seed(mount: MountId) -> u32 {
    crc32c::crc32c(&mount.0.to_le_bytes())
}

fn seeded(mount: MountId, seq: u64, at: u64, body: &[u8]) -> u32 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&seq.to_le_bytes());
    place[8..].copy_from_slice(&at.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(mount_seed(mount), &place), body)
}

struct Writer<'a>(&'a mut [u8], usize);

impl Writer<'_> {
    fn put(&mut self, b: &[u8]) -> &mut Self {
        self.0[self.1..self.1 + b.len()].copy_from_slice(b);
        self.1 += b.len();
        self
    }
    fn u32(&mut self, v: u32) -> &mut Self {
        self.put(&v.to_le_bytes())
    }
    fn u64(&mut self, v: u64) -> &mut Self {
        self.put(&v.to_le_bytes())
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }
    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }
}

/// Payload of an intent: a commit with its inline bytes, so that it can be sent again byte for byte.
pub fn encode_commit(f: &CommitFile) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + f.pieces.len() * 72);
    out.extend(f.ino.0.to_le_bytes());
    out.extend(f.trunc_seq.to_le_bytes());
    out.push(u8::from(f.mtime.is_some()));
    out.extend(f.mtime.map_or(0, |t| t.0).to_le_bytes());
    out.extend(f.grow_to.to_le_bytes());
    out.push(u8::from(f.kill_priv));
    out.extend((f.pieces.len() as u32).to_le_bytes());
    for piece in &f.pieces {
        let (tag, offset, len) = match piece {
            Piece::Extent(e) => (0u8, e.offset, e.len),
            Piece::Inline { offset, bytes } => (1, *offset, bytes.len() as u64),
            Piece::Hole { offset, len } => (2, *offset, *len),
        };
        out.push(tag);
        out.extend(offset.to_le_bytes());
        out.extend(len.to_le_bytes());
        match piece {
            Piece::Extent(e) => {
                out.extend(e.codec.to_le_bytes());
                encode_source(&e.source, &mut out);
            }
            Piece::Inline { bytes, .. } => out.extend_from_slice(bytes),
            Piece::Hole { .. } => {}
        }
    }
    out
}

fn encode_source(source: &Source, out: &mut Vec<u8>) {
    match source {
        Source::Object { id, home, skip } => {
            out.push(1);
            out.extend(id.session.0.to_le_bytes());
            out.extend(id.incarnation.0.to_le_bytes());
            out.extend(id.counter.to_le_bytes());
            out.extend(home.0.to_le_bytes());
            out.extend(skip.to_le_bytes());
        }
        Source::Inline { index, n, skip } => {
            out.push(2);
            out.extend(index.to_le_bytes());
            out.extend(n.to_le_bytes());
            out.extend(skip.to_le_bytes());
        }
        Source::Zero => out.push(3),
    }
}

/// Inverse of [`encode_commit`]; inline bytes share the payload's memory. None = damage.
pub fn decode_commit(payload: &Bytes) -> Option<CommitFile> {
    let mut r = Reader(payload);
    let (ino, trunc_seq) = (Ino(r.u64()?), r.u64()?);
    let (has_mtime, mtime) = (r.u8()? != 0, Time(r.u64()? as i64));
    let (grow_to, kill_priv, count) = (r.u64()?, r.u8()? != 0, r.u32()?);
    let mut pieces = Vec::new();
    for _ in 0..count {
        let (tag, offset, len) = (r.u8()?, r.u64()?, r.u64()?);
        pieces.push(match tag {
            0 => Piece::Extent(Extent { offset, len, codec: r.u16()?, source: decode_source(&mut r)? }),
            1 => Piece::Inline { offset, bytes: payload.slice_ref(r.take(usize::try_from(len).ok()?)?) },
            2 => Piece::Hole { offset, len },
            _ => return None,
        });
    }
    let mtime = has_mtime.then_some(mtime);
    r.0.is_empty().then_some(CommitFile { ino, trunc_seq, pieces, mtime, grow_to, kill_priv })
}

fn decode_source(r: &mut Reader<'_>) -> Option<Source> {
    Some(match r.u8()? {
        1 => {
            let (session, incarnation, counter) = (SessionId(r.u128()?), Incarnation(r.u32()?), r.u64()?);
            Source::Object { id: ObjectId { session, incarnation, counter }, home: Ino(r.u64()?), skip: r.u64()? }
        }
        2 => Source::Inline { index: r.u64()?, n: r.u32()?, skip: r.u32()? },
        3 => Source::Zero,
        _ => return None,
    })
}
