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
    /// What is known from records of the same mount, of which any may be old: the numbers only grow.
    pub fn newest(all: impl IntoIterator<Item = SessionRecord>) -> SessionRecord {
        all.into_iter().fold(SessionRecord::default(), |a, b| {
            let named = if (b.session.0 != 0, b.attach) > (a.session.0 != 0, a.attach) { b } else { a };
            SessionRecord { incarnation: a.incarnation.max(b.incarnation), ..named }
        })
    }

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
    fn an_old_record_takes_nothing_back() {
        let record = |session, attach, incarnation| SessionRecord {
            session: SessionId(session),
            attach,
            incarnation: Incarnation(incarnation),
        };
        let newest = |all: &[SessionRecord]| SessionRecord::newest(all.iter().copied());
        assert_eq!(newest(&[]), record(0, 0, 0));
        // A holder that has the client before, and one that has this one before its session was granted.
        for all in [[record(7, 2, 4), record(7, 1, 5)], [record(7, 1, 5), record(7, 2, 4)]] {
            assert_eq!(newest(&all), record(7, 2, 5));
        }
        for all in [[record(0, 0, 3), record(7, 0, 2)], [record(7, 0, 2), record(0, 0, 3)]] {
            assert_eq!(newest(&all), record(7, 0, 3));
        }
    }

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
