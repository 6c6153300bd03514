//! Who may ask (PROTOCOL 50): the cluster token, and the secrets that a session's own RPCs carry.
//!
//! A session's secret is `HMAC-SHA256(cluster token, "fusefs session v1" || session id || volume id)`. Every master and
//! metanode holds the cluster token (a file), so each of them verifies a session's secret without asking anybody; a
//! client holds only its own secret, which says nothing about the token or about other sessions. Changing the token
//! invalidates all secrets: clients get new ones when they resume their session.

mod mount;

pub use mount::MountClaim;

use crate::{FsError, SessionId, VolumeId, ops::Envelope};
use bytes::Bytes;
use sha2::{Digest, Sha256};

/// Shortest cluster token that is accepted, in bytes.
pub const TOKEN_BYTES_MIN: usize = 16;
/// Longest cluster token in bytes.
pub const TOKEN_BYTES_MAX: usize = 1024;
/// Bytes of a session secret.
pub const SECRET_BYTES: usize = 32;

/// The secret that all masters and metanodes (and people who administer the cluster) share.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterToken(Bytes);

impl std::fmt::Debug for ClusterToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterToken(hidden)")
    }
}

/// Who sent a request, as proved by its credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A holder of the cluster token, or anybody where no token is configured (loopback only).
    Cluster,
    /// The client of this session; it may act for nothing else.
    Session(SessionId, VolumeId),
}

impl ClusterToken {
    /// From the bytes of a token file: white space at the ends is dropped; what remains must be 16..=1024 printable
    /// ASCII bytes (it also travels in an HTTP header).
    pub fn new(bytes: &[u8]) -> Result<ClusterToken, FsError> {
        let bytes = bytes.trim_ascii();
        let length = (TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&bytes.len());
        if !length || !bytes.iter().all(u8::is_ascii_graphic) {
            return Err(FsError::Invalid);
        }
        Ok(ClusterToken(Bytes::copy_from_slice(bytes)))
    }
    /// What an RPC of a master, metanode or administrator carries as its credential.
    pub fn credential(&self) -> Bytes {
        self.0.clone()
    }
    /// Secret of one session of one volume.
    pub fn session_secret(&self, session: SessionId, volume: VolumeId) -> [u8; SECRET_BYTES] {
        let mut message = b"fusefs session v1".to_vec();
        message.extend_from_slice(&session.0.to_le_bytes());
        message.extend_from_slice(&volume.0.to_le_bytes());
        hmac_sha256(&self.0, &message)
    }
    /// True when `credential` is this token.
    pub fn matches(&self, credential: &[u8]) -> bool {
        same_bytes(&self.0, credential)
    }
}

/// Decides who sent `envelope`. Without a configured token everybody is [`Principal::Cluster`]: servers without one must
/// refuse to listen beyond loopback.
///
/// A session's client sends its secret as the credential, with `session` and `volume` of the envelope naming it.
pub fn authenticate(token: Option<&ClusterToken>, envelope: &Envelope) -> Result<Principal, FsError> {
    let Some(token) = token else { return Ok(Principal::Cluster) };
    if token.matches(&envelope.credential) {
        return Ok(Principal::Cluster);
    }
    let secret = token.session_secret(envelope.session, envelope.volume);
    if envelope.session.0 != 0 && envelope.volume.0 != 0 && same_bytes(&secret, &envelope.credential) {
        return Ok(Principal::Session(envelope.session, envelope.volume));
    }
    Err(FsError::Unauthenticated)
}

/// Compares without telling by its duration where the difference is (the length is no secret).
pub fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let difference = a.iter().zip(b).fold(0u8, |acc, (x, y)| acc | std::hint::black_box(x ^ y));
    std::hint::black_box(difference) == 0
}

/// HMAC-SHA256 (RFC 2104).
pub fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    const BLOCK: usize = 64;
    let mut block = [0u8; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new().chain_update(block.map(|b| b ^ 0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(block.map(|b| b ^ 0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    // RFC 4231, test cases 1, 2 and 6.
    #[test]
    fn hmac_matches_the_rfc() {
        let cases: [(&[u8], &[u8], &str); 3] = [
            (&[0x0b; 20], b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                &[0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ];
        for (key, message, want) in cases {
            assert_eq!(hex(&hmac_sha256(key, message)), want);
        }
    }

    #[test]
    fn only_the_token_and_the_own_secret_open_the_door() {
        let token = ClusterToken::new(b"0123456789abcdef\n").unwrap();
        let (session, volume) = (SessionId(7), VolumeId(3));
        let with = |credential: Bytes, session, volume| {
            authenticate(Some(&token), &Envelope { credential, session, volume, ..Envelope::default() })
        };
        let secret = Bytes::copy_from_slice(&token.session_secret(session, volume));
        assert_eq!(with(token.credential(), SessionId(0), VolumeId(0)), Ok(Principal::Cluster));
        assert_eq!(with(secret.clone(), session, volume), Ok(Principal::Session(session, volume)));
        for (c, s, v) in [
            (secret.clone(), SessionId(8), volume),
            (secret.clone(), session, VolumeId(4)),
            (Bytes::new(), session, volume),
            (Bytes::from_static(b"0123456789abcdeX"), session, volume),
        ] {
            assert_eq!(with(c, s, v), Err(FsError::Unauthenticated));
        }
        assert_eq!(authenticate(None, &Envelope::default()), Ok(Principal::Cluster));
    }

    #[test]
    fn unusable_tokens_are_refused() {
        for bad in [&b"short"[..], b"", b"0123456789 abcdef", b"0123456789abcdef\0"] {
            assert!(ClusterToken::new(bad).is_err(), "{bad:?}");
        }
        assert!(!format!("{:?}", ClusterToken::new(b"0123456789abcdef").unwrap()).contains("0123"));
    }
}
