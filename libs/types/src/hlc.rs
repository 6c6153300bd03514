//! Hybrid logical clock (PROTOCOL 3): u64 nanoseconds since the epoch, monotone and causally consistent.
//! Source: Kulkarni et al., "Logical Physical Clocks", 2014, folded into one word.

use crate::{FsError, limits};

/// One stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Hlc(pub u64);

/// Issues stamps: `max(clock, last + 1, seen)`.
#[derive(Clone, Debug, Default)]
pub struct HlcClock {
    last: u64,
}

impl HlcClock {
    /// A clock that starts above `last`.
    pub fn new(last: Hlc) -> Self {
        HlcClock { last: last.0 }
    }
    /// Next stamp at wall time `now_ns`.
    pub fn stamp(&mut self, now_ns: u64) -> Hlc {
        self.last = now_ns.max(self.last + 1);
        Hlc(self.last)
    }
    /// Takes note of a peer's stamp. A peer more than [`limits::CLOCK_SKEW_MAX_NS`] ahead of us is refused.
    pub fn observe(&mut self, seen: Hlc, now_ns: u64) -> Result<(), FsError> {
        if seen.0 > now_ns.saturating_add(limits::CLOCK_SKEW_MAX_NS) {
            return Err(FsError::ClockSkew);
        }
        self.last = self.last.max(seen.0);
        Ok(())
    }
    /// Highest stamp issued or seen.
    pub fn last(&self) -> Hlc {
        Hlc(self.last)
    }
}
