//! The object format (PROTOCOL 30; table in `FORMAT.md`). Pure: bytes in, bytes out.
//!
//! An object is a 64-byte header and frames of 64 KiB plain data (the last one may be shorter). Each frame has its
//! length and a CRC32C seeded by its frame id (object id, frame index) in front of its data, so a range read needs no
//! header and a swapped, shifted or cut body is detected.

use bytes::{BufMut, Bytes, BytesMut};
use fusefs_types::{Ino, ObjectId, SessionId, ids::Incarnation, limits};
use std::ops::Range;

/// First bytes of every object.
pub const MAGIC: [u8; 8] = *b"FUSEFSO1";
/// Format version of header and frames.
pub const VERSION: u16 = 1;
/// Bytes of the header.
pub const HEADER: u64 = limits::OBJECT_HEADER_BYTES as u64;
/// Plain bytes of a full frame.
pub const FRAME: u64 = limits::FRAME_BYTES as u64;
/// Bytes in front of a frame's data: CRC32C and length.
pub const FRAME_HEAD: u64 = 8;
/// Distance between frame starts.
pub const STRIDE: u64 = FRAME + FRAME_HEAD;

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Too short.
    #[error("the object is cut")]
    Cut,
    /// Not an object of ours.
    #[error("not a fusefs object")]
    Magic,
    /// A newer format or codec.
    #[error("the object has an unknown version or codec; upgrade")]
    Unknown,
    /// A checksum or identity does not match.
    #[error("the object's bytes fail their checksum")]
    Checksum,
}

/// Decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Name.
    pub id: ObjectId,
    /// Inode whose partition is the object's home.
    pub home: Ino,
    /// Plain bytes.
    pub plain_len: u64,
}

/// CRC seed of a frame.
fn seed(id: &ObjectId, frame: u32) -> u32 {
    let mut b = [0u8; 32];
    b[..16].copy_from_slice(&id.session.0.to_le_bytes());
    b[16..20].copy_from_slice(&id.incarnation.0.to_le_bytes());
    b[20..28].copy_from_slice(&id.counter.to_le_bytes());
    b[28..].copy_from_slice(&frame.to_le_bytes());
    crc32c::crc32c(&b)
}

fn frame_crc(id: &ObjectId, frame: u32, data: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed(id, frame), &(data.len() as u32).to_le_bytes()), data)
}

/// Encoded bytes of an object with `plain` bytes.
pub fn encoded_len(plain: u64) -> u64 {
    HEADER + plain + plain.div_ceil(FRAME) * FRAME_HEAD
}

/// Encodes an object from its plain bytes, given in pieces. At most `limits::OBJECT_BYTES_MAX` plain bytes.
pub fn encode<'a>(id: &ObjectId, home: Ino, plain_len: u64, pieces: impl Iterator<Item = &'a [u8]>) -> Bytes {
    let mut out = BytesMut::with_capacity(encoded_len(plain_len) as usize);
    put_header(&mut out, &Header { id: *id, home, plain_len });
    let mut start = out.len(); // of the current frame
    let mut frame = 0;
    let mut room = 0; // in the current frame
    for mut piece in pieces {
        while !piece.is_empty() {
            if room == 0 {
                start = out.len();
                out.put_bytes(0, FRAME_HEAD as usize);
                room = FRAME as usize;
            }
            let n = room.min(piece.len());
            out.extend_from_slice(&piece[..n]);
            piece = &piece[n..];
            room -= n;
            if room == 0 {
                seal(&mut out[start..], id, frame);
                frame += 1;
            }
        }
    }
    if room > 0 {
        seal(&mut out[start..], id, frame);
    }
    out.freeze()
}

fn seal(frame_bytes: &mut [u8], id: &ObjectId, frame: u32) {
    let (head, data) = frame_bytes.split_at_mut(FRAME_HEAD as usize);
    head[..4].copy_from_slice(&frame_crc(id, frame, data).to_le_bytes());
    head[4..].copy_from_slice(&(data.len() as u32).to_le_bytes());
}

fn put_header(out: &mut BytesMut, h: &Header) {
    let at = out.len();
    out.put_slice(&MAGIC);
    out.put_u16_le(VERSION);
    out.put_u8(0); // codec: plain
    out.put_u8(0); // key: none
    out.put_u128_le(h.id.session.0);
    out.put_u32_le(h.id.incarnation.0);
    out.put_u64_le(h.id.counter);
    out.put_u64_le(h.home.0);
    out.put_u64_le(h.plain_len);
    out.put_u32_le(FRAME as u32);
    let crc = crc32c::crc32c(&out[at..]);
    out.put_u32_le(crc);
}

/// Decodes a header from the first 64 bytes of an object.
pub fn decode_header(b: &[u8]) -> Result<Header, FormatError> {
    let b = b.get(..HEADER as usize).ok_or(FormatError::Cut)?;
    if b[..8] != MAGIC {
        return Err(FormatError::Magic);
    }
    if u32_at(b, 60) != crc32c::crc32c(&b[..60]) {
        return Err(FormatError::Checksum);
    }
    if u16::from_le_bytes([b[8], b[9]]) != VERSION || b[10] != 0 || b[11] != 0 || u64::from(u32_at(b, 56)) != FRAME {
        return Err(FormatError::Unknown);
    }
    let mut session = [0; 16];
    session.copy_from_slice(&b[12..28]);
    Ok(Header {
        id: ObjectId {
            session: SessionId(u128::from_le_bytes(session)),
            incarnation: Incarnation(u32_at(b, 28)),
            counter: u64_at(b, 32),
        },
        home: Ino(u64_at(b, 40)),
        plain_len: u64_at(b, 48),
    })
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    let mut x = [0; 4];
    x.copy_from_slice(&b[at..at + 4]);
    u32::from_le_bytes(x)
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    let mut x = [0; 8];
    x.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(x)
}

/// Frames that hold the plain bytes `[skip, skip + len)`; `len` at least 1.
pub fn frames_of(skip: u64, len: u64) -> Range<u32> {
    let last = skip.saturating_add(len.max(1) - 1) / FRAME;
    (skip / FRAME).min(u64::from(u32::MAX) - 1) as u32..(last.min(u64::from(u32::MAX) - 1) + 1) as u32
}

/// Encoded bytes to read for a run of frames. The store cuts it at the end of the object.
pub fn byte_range(frames: &Range<u32>) -> Range<u64> {
    HEADER + u64::from(frames.start) * STRIDE..HEADER + u64::from(frames.end) * STRIDE
}

/// Splits and verifies the bytes of a range read of `frames`. The result may hold fewer frames when the object ends
/// before; each is full except possibly the object's last. Slices share the body, nothing is copied.
pub fn decode_frames(id: &ObjectId, frames: &Range<u32>, body: &Bytes) -> Result<Vec<Bytes>, FormatError> {
    let mut out = Vec::with_capacity(frames.len().min(body.len() / FRAME_HEAD as usize));
    let mut at = 0usize;
    for frame in frames.clone() {
        if at == body.len() {
            break;
        }
        let head = body.get(at..at + FRAME_HEAD as usize).ok_or(FormatError::Cut)?;
        let len = u32_at(head, 4) as usize;
        if len == 0 || len > FRAME as usize {
            return Err(FormatError::Checksum);
        }
        let from = at + FRAME_HEAD as usize;
        let data = body.get(from..from + len).ok_or(FormatError::Cut)?;
        if u32_at(head, 0) != frame_crc(id, frame, data) {
            return Err(FormatError::Checksum);
        }
        out.push(body.slice(from..from + len));
        at = from + len;
        if len < FRAME as usize && at != body.len() {
            return Err(FormatError::Checksum); // only the last frame is short
        }
    }
    if at == body.len() { Ok(out) } else { Err(FormatError::Checksum) }
}
