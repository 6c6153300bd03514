//! Which stored replies the partitions may drop (PROTOCOL 16).
//!
//! An operation is outstanding from its first [`Acks::begin`] until [`Acks::done`] (its reply reached the caller's
//! caller, normally the kernel). A partition is told the numbers below the lowest outstanding one of a counter, and only
//! now and then, because each acknowledgement is logged with the command that carries it. Numbers that a reader holds
//! but has not registered yet may be covered by mistake; the partition then answers TooOld, and the operation runs under
//! another id (see [`Acks::substitute`]). That is safe because a number is never covered once it has begun.
//!
//! A client that took over a kernel connection does not know what it will be sent again, so it acknowledges nothing until
//! [`Acks::resumed`]: then everything sent again is registered (PROTOCOL 16), and all other older numbers were answered.

use fusefs_types::{
    PartitionId,
    ids::{AckRange, MountId, OpId, Origin},
};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// Replies left at a partition before it is told about them.
const BATCH: u32 = 32;
/// Replies left at a partition when a stuck operation makes it worth to name the numbers around it.
const STUCK: u32 = 4096;
/// Most ranges around stuck operations.
const HOLES_MAX: usize = 64;

#[derive(Clone, Copy, Default)]
struct Begun {
    /// An attempt may have been executed.
    unknown: bool,
    /// The kernel sent the request to an earlier process, too, which may have executed it.
    resent: bool,
    substitute: Option<OpId>,
}

#[derive(Default)]
struct Counter {
    outstanding: BTreeMap<(u64, u32), Begun>,
    /// Highest number done; it is acknowledged only two batches later, when readers have begun what they held.
    highest: u64,
    candidate: u64,
    /// When the candidate was taken.
    since: Option<Instant>,
    settled: u64,
    done: u32,
}

impl Counter {
    /// Two batches and at least `hold` after a number was the highest, readers have registered what they held then: a
    /// thread that was not scheduled for so long is not to be expected.
    fn settle(&mut self, hold: Duration) {
        self.done = 0;
        if !hold.is_zero() {
            let now = Instant::now();
            if self.since.is_some_and(|t| now.duration_since(t) < hold) {
                return;
            }
            self.since = Some(now);
        }
        self.settled = self.candidate;
        self.candidate = self.highest;
    }
}

#[derive(Default)]
struct Stored {
    replies: u32,
    /// Everything up to here is acknowledged, by counter.
    floor: BTreeMap<Origin, u64>,
}

/// Bookkeeping of one mount.
#[derive(Default)]
pub(crate) struct Acks {
    mount: MountId,
    counters: BTreeMap<Origin, Counter>,
    stored: BTreeMap<PartitionId, Stored>,
    /// Nothing may be acknowledged yet.
    resuming: bool,
    /// Age of a kernel request's number before it may be acknowledged.
    hold: Duration,
}

impl Acks {
    /// `resuming`: another process served this mount before. `hold`: age of a kernel request's number before it may be
    /// acknowledged.
    pub fn new(mount: MountId, resuming: bool, hold: Duration) -> Acks {
        Acks { mount, resuming, hold, ..Acks::default() }
    }

    /// A request was read from the kernel: its number is outstanding from now on, whatever it turns out to do.
    pub fn register(&mut self, op: OpId, resent: bool) {
        let counter = self.counters.entry(op.origin).or_default();
        counter.outstanding.entry((op.number, 0)).or_default().resent |= resent;
    }

    /// Everything that an earlier process left unanswered is registered.
    pub fn resumed(&mut self) {
        self.resuming = false;
    }

    fn resent(&self, op: OpId) -> bool {
        let counter = self.counters.get(&op.origin);
        counter.and_then(|c| c.outstanding.get(&(op.number, 0))).is_some_and(|b| b.resent)
    }

    /// Notes an operation; returns the id to send it under.
    pub fn begin(&mut self, op: OpId) -> OpId {
        let counter = self.counters.entry(op.origin).or_default();
        counter.outstanding.entry((op.number, op.step)).or_default().substitute.unwrap_or(op)
    }

    /// An attempt ended without an answer.
    pub fn unknown(&mut self, op: OpId) {
        if let Some(begun) = self.begun(op) {
            begun.unknown = true;
        }
    }

    /// TooOld came for `op`: whether it may run as `fresh`, because no attempt of it can have been executed.
    pub fn substitute(&mut self, op: OpId, fresh: OpId) -> bool {
        if self.resent(op) {
            return false;
        }
        match self.begun(op) {
            Some(begun) if !begun.unknown && begun.substitute.is_none() => begun.substitute = Some(fresh),
            _ => return false,
        }
        self.begin(fresh);
        true
    }

    fn begun(&mut self, op: OpId) -> Option<&mut Begun> {
        self.counters.get_mut(&op.origin)?.outstanding.get_mut(&(op.number, op.step))
    }

    /// A partition answered an operation and keeps the reply.
    pub fn stored(&mut self, partition: PartitionId) {
        self.stored.entry(partition).or_default().replies += 1;
    }

    /// The reply reached its receiver; it answers all steps of the number.
    pub fn done(&mut self, op: OpId) {
        let Some(counter) = self.counters.get_mut(&op.origin) else { return };
        let steps = counter.outstanding.range((op.number, 0)..=(op.number, u32::MAX));
        let steps: Vec<_> = steps.map(|(key, begun)| (*key, begun.substitute)).collect();
        if steps.is_empty() {
            return;
        }
        for (key, _) in &steps {
            counter.outstanding.remove(key);
        }
        counter.highest = counter.highest.max(op.number);
        counter.done += 1;
        if counter.done >= BATCH {
            counter.settle(if op.origin == Origin::Fuse { self.hold } else { Duration::ZERO });
        }
        for fresh in steps.into_iter().filter_map(|(_, substitute)| substitute) {
            self.done(fresh);
        }
    }

    /// What to send along with the next mutation to a partition.
    pub fn take(&self, partition: PartitionId) -> Vec<AckRange> {
        let due = self.stored.get(&partition).filter(|s| s.replies >= BATCH && !self.resuming);
        let Some(stored) = due else { return Vec::new() };
        let mut ranges = Vec::new();
        for (origin, counter) in &self.counters {
            let floor = stored.floor.get(origin).copied().unwrap_or(0);
            let lowest = counter.outstanding.first_key_value().map_or(u64::MAX, |((n, _), _)| *n);
            let last = counter.settled.min(lowest.saturating_sub(1));
            if last > floor {
                ranges.push(AckRange { mount: self.mount, origin: *origin, first: floor + 1, last });
            }
            if stored.replies >= STUCK && lowest < counter.settled {
                self.holes(*origin, counter, &mut ranges);
            }
        }
        ranges
    }

    /// The numbers between outstanding ones.
    fn holes(&self, origin: Origin, counter: &Counter, ranges: &mut Vec<AckRange>) {
        let mut numbers = counter.outstanding.keys().map(|(n, _)| *n).filter(|n| *n < counter.settled).peekable();
        while let Some(n) = numbers.next() {
            let (first, last) = (n + 1, numbers.peek().map_or(counter.settled, |next| next.saturating_sub(1)));
            if first <= last && ranges.len() < HOLES_MAX {
                ranges.push(AckRange { mount: self.mount, origin, first, last });
            }
        }
    }

    /// A mutation that carried these ranges was answered.
    pub fn confirm(&mut self, partition: PartitionId, ranges: &[AckRange]) {
        let Some(stored) = self.stored.get_mut(&partition).filter(|_| !ranges.is_empty()) else { return };
        stored.replies = 0;
        for range in ranges {
            let floor = stored.floor.entry(range.origin).or_default();
            if range.first == *floor + 1 {
                *floor = range.last;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PartitionId = PartitionId(1);

    fn op(number: u64) -> OpId {
        OpId { mount: MountId(7), origin: Origin::Fuse, number, step: 0 }
    }

    fn run(acks: &mut Acks, numbers: impl Iterator<Item = u64>) {
        for n in numbers {
            acks.begin(op(n));
            acks.stored(P);
            acks.done(op(n));
        }
    }

    #[test]
    fn everything_below_the_lowest_outstanding_goes() {
        let mut acks = Acks::new(MountId(7), false, Duration::ZERO);
        run(&mut acks, (1..=8).map(|n| n * 2));
        assert_eq!(acks.take(P), [], "few replies are not worth a range");
        acks.begin(op(101));
        run(&mut acks, (10..=100).map(|n| n * 2));
        let ranges = acks.take(P);
        assert_eq!(ranges.len(), 1);
        assert_eq!((ranges[0].first, ranges[0].last), (1, 100), "101 is outstanding");
        acks.confirm(P, &ranges);
        assert_eq!(acks.take(P), []);
        acks.done(op(101));
        run(&mut acks, (101..=300).map(|n| n * 2));
        let next = acks.take(P);
        assert_eq!(next[0].first, 101);
        assert!(next[0].last < 600, "the newest batch is held back");
        assert_eq!(acks.take(PartitionId(2)), [], "nothing is stored there");
    }

    #[tokio::test(start_paused = true)]
    async fn young_numbers_are_held_back() {
        let hold = Duration::from_secs(1);
        let mut acks = Acks::new(MountId(7), false, hold);
        run(&mut acks, (1..=500).map(|n| n * 2));
        assert_eq!(acks.take(P), [], "a reader may hold an older one that it has not registered yet");
        tokio::time::advance(hold).await;
        run(&mut acks, (501..=540).map(|n| n * 2));
        let last = acks.take(P)[0].last;
        assert!((64..=1000).contains(&last), "{last}");
    }

    #[test]
    fn stuck_operations_are_gone_around() {
        let mut acks = Acks::new(MountId(7), false, Duration::ZERO);
        acks.begin(op(3));
        run(&mut acks, 10..=5000);
        let ranges = acks.take(P);
        assert!(ranges.iter().all(|r| !(r.first..=r.last).contains(&3)), "{ranges:?}");
        assert!(ranges.iter().any(|r| r.first == 4 && r.last > 4000), "{ranges:?}");
    }

    #[test]
    fn a_substitute_is_kept_and_used_only_when_nothing_ran() {
        let fresh = OpId { origin: Origin::Internal, ..op(1) };
        let mut acks = Acks::new(MountId(7), false, Duration::ZERO);
        assert_eq!(acks.begin(op(5)), op(5));
        assert!(acks.substitute(op(5), fresh));
        assert_eq!(acks.begin(op(5)), fresh);
        assert!(!acks.substitute(op(5), op(9)));
        acks.begin(op(6));
        acks.unknown(op(6));
        assert!(!acks.substitute(op(6), fresh));
        acks.begin(OpId { step: 1, ..op(5) });
        acks.done(op(5));
        assert!(acks.counters.values().map(|c| c.outstanding.len()).sum::<usize>() == 1);
    }

    #[test]
    fn a_successor_acknowledges_nothing_before_it_knows_what_is_sent_again() {
        let mut acks = Acks::new(MountId(7), true, Duration::ZERO);
        acks.register(op(10), true);
        run(&mut acks, (100..=300).map(|n| n * 2));
        assert_eq!(acks.take(P), [], "a request that was not read yet could be covered");
        acks.register(op(12), true);
        acks.resumed();
        assert_eq!(acks.take(P), [AckRange { mount: MountId(7), origin: Origin::Fuse, first: 1, last: 9 }]);
        acks.done(op(10));
        acks.done(op(12));
        run(&mut acks, (301..=400).map(|n| n * 2));
        assert!(acks.take(P)[0].last > 500);
    }

    #[test]
    fn a_request_sent_again_never_runs_under_another_id() {
        let mut acks = Acks::new(MountId(7), true, Duration::ZERO);
        let fresh = OpId { origin: Origin::Internal, ..op(1) };
        acks.register(op(5), true);
        acks.begin(OpId { step: 1, ..op(5) });
        acks.begin(op(5));
        assert!(!acks.substitute(op(5), fresh) && !acks.substitute(OpId { step: 1, ..op(5) }, fresh));
        acks.register(op(6), false);
        acks.begin(op(6));
        assert!(acks.substitute(op(6), fresh));
    }
}
