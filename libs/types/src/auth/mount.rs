//! Mount tokens: the right of one node to open sessions of one volume for one attachment, and nothing else.
//!
//! A token is text, `fusefs-mount-1.VOLUME.GENERATION.EXPIRES.NODE.MAC`: decimal numbers (EXPIRES in seconds since 1970), the
//! node's name in hex, and in hex `HMAC-SHA256(HMAC-SHA256(cluster token, "fusefs mount token key v1"), everything before the
//! last dot)`. Masters verify it without asking anybody; whether the attachment still exists they look up when a session is
//! opened. Metanodes take no mount tokens: a session's RPCs carry the session's own secret.

use super::{ClusterToken, hmac_sha256, same_bytes};
use crate::{FsError, VolumeId};
use bytes::Bytes;

const PREFIX: &str = "fusefs-mount-1.";
const KEY_LABEL: &[u8] = b"fusefs mount token key v1";
/// Longest node name in bytes.
const NODE_BYTES_MAX: usize = 256;

/// What a mount token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountClaim {
    /// Volume.
    pub volume: VolumeId,
    /// Attach generation.
    pub generation: u64,
    /// Node that the generation was given to.
    pub node: String,
    /// End, in seconds since 1970.
    pub expires_s: u64,
}

impl ClusterToken {
    /// The token for `claim`.
    pub fn mount_token(&self, claim: &MountClaim) -> Bytes {
        let MountClaim { volume, generation, node, expires_s } = claim;
        let said = format!("{PREFIX}{}.{generation}.{expires_s}.{}", volume.0, hex(node.as_bytes()));
        let mac = hex(&self.mount_mac(&said));
        format!("{said}.{mac}").into()
    }

    /// What `credential` claims, if it is a mount token of this cluster and not over.
    pub fn mount_claim(&self, credential: &[u8], now_s: u64) -> Result<MountClaim, FsError> {
        let refused = FsError::Unauthenticated;
        let text = std::str::from_utf8(credential).ok().filter(|t| t.starts_with(PREFIX)).ok_or(refused)?;
        let (said, mac) = text.rsplit_once('.').ok_or(refused)?;
        if !same_bytes(hex(&self.mount_mac(said)).as_bytes(), mac.as_bytes()) {
            return Err(refused);
        }
        // Said by a holder of the cluster token: from here on only the version could be wrong.
        let mut words = said.strip_prefix(PREFIX).ok_or(refused)?.split('.');
        let mut number = || words.next().and_then(|w| w.parse::<u64>().ok()).ok_or(refused);
        let (volume, generation, expires_s) = (VolumeId(number()?), number()?, number()?);
        let node = words.next().and_then(unhex).ok_or(refused)?;
        if words.next().is_some() || expires_s <= now_s {
            return Err(refused);
        }
        Ok(MountClaim { volume, generation, node, expires_s })
    }

    fn mount_mac(&self, said: &str) -> [u8; 32] {
        hmac_sha256(&hmac_sha256(&self.0, KEY_LABEL), said.as_bytes())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |text, b| text + &format!("{b:02x}"))
}

fn unhex(text: &str) -> Option<String> {
    if text.len() > 2 * NODE_BYTES_MAX || !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    let byte = |n: usize| u8::from_str_radix(text.get(n..n + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(byte).collect();
    String::from_utf8(bytes?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterToken {
        ClusterToken::new(b"0123456789abcdef").unwrap()
    }

    fn claim(node: &str) -> MountClaim {
        MountClaim { volume: VolumeId(7), generation: 3, node: node.into(), expires_s: 1000 }
    }

    #[test]
    fn a_token_says_what_was_claimed_until_it_is_over() {
        for node in ["node-a", "a.b.c:1", "ü 1", &"x".repeat(NODE_BYTES_MAX)] {
            let token = cluster().mount_token(&claim(node));
            assert!(ClusterToken::new(&token).is_ok(), "it fits where cluster tokens fit");
            assert_eq!(cluster().mount_claim(&token, 999), Ok(claim(node)));
            assert_eq!(cluster().mount_claim(&token, 1000), Err(FsError::Unauthenticated));
            let other = ClusterToken::new(b"0123456789abcdeX").unwrap();
            assert_eq!(other.mount_claim(&token, 0), Err(FsError::Unauthenticated));
        }
    }

    #[test]
    fn it_is_no_credential_for_anything_else() {
        let (session, volume) = (crate::SessionId(5), VolumeId(7));
        let credential = cluster().mount_token(&claim("node-a"));
        for session in [session, crate::SessionId(0)] {
            let envelope =
                crate::ops::Envelope { credential: credential.clone(), session, volume, ..Default::default() };
            let who = crate::auth::authenticate(Some(&cluster()), &envelope);
            assert_eq!(who, Err(FsError::Unauthenticated)); // all that metanodes ask
        }
        assert!(cluster().mount_claim(&cluster().credential(), 0).is_err());
        assert!(cluster().mount_claim(&cluster().session_secret(session, volume), 0).is_err());
    }

    #[test]
    fn no_byte_of_it_can_be_changed() {
        let token = cluster().mount_token(&claim("node-a"));
        for at in 0..token.len() {
            for byte in [b'0', b'9', b'.', b'a', 0, 0xff] {
                let mut forged = token.to_vec();
                forged[at] = byte;
                assert!(forged == token || cluster().mount_claim(&forged, 0).is_err(), "{at}");
            }
            assert!(cluster().mount_claim(&token[..at], 0).is_err());
        }
        let longer = [&token[..], b"0"].concat();
        assert!(cluster().mount_claim(&longer, 0).is_err());
    }
}
