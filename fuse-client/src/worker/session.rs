//! The item with the mount's session.

use fusefs_types::{SessionId, ids::Incarnation};

const VERSION: u8 = 1;

/// What the next client needs to take the session over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionRecord {
    /// Session, 0 before the first grant.
    pub session: SessionId,
    /// Attach generation of the token.
    pub attach: u64,
    /// The last client's number.
    pub incarnation: Incarnation,
}

impl SessionRecord {
    /// Version, session, attach generation, incarnation; little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(self.session.0.to_le_bytes());
        out.extend(self.attach.to_le_bytes());
        out.extend(self.incarnation.0.to_le_bytes());
        out
    }

    /// None for another version or length.
    pub fn decode(bytes: &[u8]) -> Option<SessionRecord> {
        let (version, rest) = bytes.split_first()?;
        let (session, rest) = rest.split_at_checked(16)?;
        let (attach, incarnation) = rest.split_at_checked(8)?;
        (*version == VERSION).then_some(SessionRecord {
            session: SessionId(u128::from_le_bytes(session.try_into().ok()?)),
            attach: u64::from_le_bytes(attach.try_into().ok()?),
            incarnation: Incarnation(u32::from_le_bytes(incarnation.try_into().ok()?)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_and_cuts_are_refused() {
        let r = SessionRecord { session: SessionId(7 << 90), attach: 3, incarnation: Incarnation(9) };
        let bytes = r.encode();
        assert_eq!(SessionRecord::decode(&bytes), Some(r));
        for cut in 0..bytes.len() {
            assert_eq!(SessionRecord::decode(&bytes[..cut]), None);
        }
        assert_eq!(SessionRecord::decode(&[&bytes[..], &[0]].concat()), None);
    }
}
