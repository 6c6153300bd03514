//! Little-endian packing of records. Readers never panic: a short or odd record is [`FsError::Corrupt`], a newer version
//! byte is [`FsError::UpgradeNeeded`] (PROTOCOL 4: it stops the replica, it is never skipped).

use bytes::Bytes;
use fusefs_types::{FsError, FsResult};

/// Writes fields to the end of a buffer.
pub trait Put {
    /// One byte.
    fn u8(&mut self, v: u8) -> &mut Self;
    /// Two bytes, little-endian.
    fn u16(&mut self, v: u16) -> &mut Self;
    /// Four bytes, little-endian.
    fn u32(&mut self, v: u32) -> &mut Self;
    /// Eight bytes, little-endian.
    fn u64(&mut self, v: u64) -> &mut Self;
    /// Sixteen bytes, little-endian.
    fn u128(&mut self, v: u128) -> &mut Self;
    /// One byte, 0 or 1.
    fn bool(&mut self, v: bool) -> &mut Self;
    /// Length as u32, then the bytes.
    fn blob(&mut self, v: &[u8]) -> &mut Self;
    /// Bytes without a length: the last field of a record or key.
    fn rest(&mut self, v: &[u8]) -> &mut Self;
    /// Eight bytes, big-endian: parts of keys, so that byte order is numeric order.
    fn key64(&mut self, v: u64) -> &mut Self;
    /// Sixteen bytes, big-endian.
    fn key128(&mut self, v: u128) -> &mut Self;
    /// Four bytes, big-endian.
    fn key32(&mut self, v: u32) -> &mut Self;
}

impl Put for Vec<u8> {
    fn u8(&mut self, v: u8) -> &mut Self {
        self.push(v);
        self
    }
    fn u16(&mut self, v: u16) -> &mut Self {
        self.rest(&v.to_le_bytes())
    }
    fn u32(&mut self, v: u32) -> &mut Self {
        self.rest(&v.to_le_bytes())
    }
    fn u64(&mut self, v: u64) -> &mut Self {
        self.rest(&v.to_le_bytes())
    }
    fn u128(&mut self, v: u128) -> &mut Self {
        self.rest(&v.to_le_bytes())
    }
    fn bool(&mut self, v: bool) -> &mut Self {
        self.u8(u8::from(v))
    }
    fn blob(&mut self, v: &[u8]) -> &mut Self {
        self.u32(v.len() as u32).rest(v)
    }
    fn rest(&mut self, v: &[u8]) -> &mut Self {
        self.extend_from_slice(v);
        self
    }
    fn key64(&mut self, v: u64) -> &mut Self {
        self.rest(&v.to_be_bytes())
    }
    fn key128(&mut self, v: u128) -> &mut Self {
        self.rest(&v.to_be_bytes())
    }
    fn key32(&mut self, v: u32) -> &mut Self {
        self.rest(&v.to_be_bytes())
    }
}

/// Reads fields from the front of a buffer.
#[derive(Clone, Copy)]
pub struct Get<'a>(pub &'a [u8]);

macro_rules! get_int {
    ($($(#[$doc:meta])* $name:ident, $int:ty, $from:ident;)*) => {
        $($(#[$doc])* pub fn $name(&mut self) -> FsResult<$int> { Ok(<$int>::$from(self.array()?)) })*
    };
}

impl<'a> Get<'a> {
    fn array<const N: usize>(&mut self) -> FsResult<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(FsError::Corrupt)?;
        self.0 = tail;
        Ok(*head)
    }
    get_int! {
        /// One byte.
        u8, u8, from_le_bytes;
        /// Little-endian.
        u16, u16, from_le_bytes;
        /// Little-endian.
        u32, u32, from_le_bytes;
        /// Little-endian.
        u64, u64, from_le_bytes;
        /// Little-endian.
        u128, u128, from_le_bytes;
        /// Big-endian (keys).
        key32, u32, from_be_bytes;
        /// Big-endian (keys).
        key64, u64, from_be_bytes;
        /// Big-endian (keys).
        key128, u128, from_be_bytes;
    }
    /// 0 or 1; anything else is corrupt, so that one logical record has one encoding.
    pub fn bool(&mut self) -> FsResult<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FsError::Corrupt),
        }
    }
    /// Bytes with a u32 length in front.
    pub fn blob(&mut self) -> FsResult<Bytes> {
        let len = self.u32()? as usize;
        Ok(Bytes::copy_from_slice(self.take(len)?))
    }
    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> FsResult<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(FsError::Corrupt)?;
        self.0 = tail;
        Ok(head)
    }
    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
    /// Version byte: anything above `known` needs an upgrade, 0 is damage.
    pub fn version(&mut self, known: u8) -> FsResult<u8> {
        match self.u8()? {
            0 => Err(FsError::Corrupt),
            v if v > known => Err(FsError::UpgradeNeeded),
            v => Ok(v),
        }
    }
    /// A count of items of at least `size` bytes each: bounded by what is left, so that damage cannot ask for memory.
    pub fn count(&mut self, size: usize) -> FsResult<usize> {
        let n = self.u32()? as usize;
        if n.saturating_mul(size.max(1)) > self.0.len() {
            return Err(FsError::Corrupt);
        }
        Ok(n)
    }
    /// Nothing may be left.
    pub fn end(self) -> FsResult<()> {
        if self.0.is_empty() { Ok(()) } else { Err(FsError::Corrupt) }
    }
}
