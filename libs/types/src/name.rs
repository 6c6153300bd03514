//! Directory entry names.

use crate::{FsError, limits};
use bytes::Bytes;

/// A valid name: 1..=255 bytes, any byte but `/` and NUL, neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Bytes);

impl Name {
    /// Checks and wraps. `.` and `..` are [`FsError::Invalid`]; so are `/`, NUL and the empty name.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Name, FsError> {
        let bytes: Bytes = bytes.into();
        if bytes.len() > limits::NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        if bytes.is_empty() || bytes.iter().any(|&b| b == b'/' || b == 0) || matches!(&bytes[..], b"." | b"..") {
            return Err(FsError::Invalid);
        }
        Ok(Name(bytes))
    }
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
    /// The shared buffer.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// 59-bit keyed hash of a name (SipHash-2-4 under the volume's 128-bit key), the upper part of a readdir cookie
/// (PROTOCOL 5).
pub fn name_hash(key: &[u8; 16], name: &[u8]) -> u64 {
    use siphasher::sip::SipHasher24;
    use std::hash::Hasher;
    let mut h = SipHasher24::new_with_key(key);
    h.write(name);
    h.finish() >> 5
}

/// Cookie of a dentry: hash << 4 | collision rank (0..=15). Cookies 0..=2 are reserved (start, `.`, `..`), so hashes
/// are lifted above them.
pub fn cookie(hash: u64, rank: u8) -> u64 {
    (hash.max(1) << 4) | u64::from(rank & 0xf)
}
