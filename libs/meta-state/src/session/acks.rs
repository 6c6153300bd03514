//! Acknowledged operation numbers of a session: sorted, merged ranges per (mount, origin).

use crate::{
    Partition,
    record::{ReplyKey, Session, reply::Outcome},
};
use fusefs_types::{
    SessionId,
    ids::{AckRange, OpId},
    limits,
};

fn covers(range: &AckRange, op: &OpId) -> bool {
    (range.mount, range.origin) == (op.mount, op.origin) && range.first <= op.number && op.number <= range.last
}

/// Whether the operation's reply was acknowledged.
pub fn contains(acked: &[AckRange], op: &OpId) -> bool {
    acked.iter().any(|r| covers(r, op))
}

/// Drops the replies in `acks` and remembers the ranges. A range that would exceed ACK_INTERVALS_MAX intervals is not
/// taken: its replies stay until a wider one comes.
pub(crate) fn take(p: &mut Partition, id: SessionId, session: &mut Session, acks: &[AckRange]) {
    for ack in acks.iter().take(limits::ACK_RANGES_MAX) {
        if ack.first > ack.last || session.acked.iter().any(|r| within(ack, r)) {
            continue;
        }
        let merged = merge(&session.acked, *ack);
        if merged.len() > limits::ACK_INTERVALS_MAX {
            continue;
        }
        session.replies -= drop_replies(p, id, ack);
        session.acked = merged;
    }
}

fn within(inner: &AckRange, outer: &AckRange) -> bool {
    (inner.mount, inner.origin) == (outer.mount, outer.origin) && outer.first <= inner.first && inner.last <= outer.last
}

/// Removes finished replies in the range; running transactions keep theirs until they end.
fn drop_replies(p: &mut Partition, id: SessionId, ack: &AckRange) -> u32 {
    let from = OpId { mount: ack.mount, origin: ack.origin, number: ack.first, step: 0 };
    let keys: Vec<ReplyKey> =
        p.t.replies
            .range(&ReplyKey { session: id, op: from })
            .take_while(|(k, _)| k.session == id && covers(ack, &k.op))
            .filter(|(_, r)| matches!(r.outcome, Outcome::Done(_)))
            .map(|(k, _)| k)
            .collect();
    keys.iter().map(|k| u32::from(p.t.replies.remove(k))).sum()
}

/// The ranges with one more; neighbours and overlaps become one.
fn merge(acked: &[AckRange], new: AckRange) -> Vec<AckRange> {
    let mut all: Vec<AckRange> = acked.to_vec();
    all.push(new);
    all.sort_by_key(|r| (r.mount, r.origin, r.first, r.last));
    let mut out: Vec<AckRange> = Vec::with_capacity(all.len());
    for r in all {
        match out.last_mut() {
            Some(l) if (l.mount, l.origin) == (r.mount, r.origin) && r.first <= l.last.saturating_add(1) => {
                l.last = l.last.max(r.last);
            }
            _ => out.push(r),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> AckRange {
        AckRange { mount: Default::default(), origin: Default::default(), first, last }
    }

    #[test]
    fn ranges_merge_with_neighbours_only() {
        let mut acked = vec![];
        for (a, b) in [(1, 3), (7, 9), (4, 5)] {
            acked = merge(&acked, range(a, b));
        }
        assert_eq!(acked, [range(1, 5), range(7, 9)]);
        let op = |number| OpId { number, ..OpId::default() };
        assert!(contains(&acked, &op(5)) && !contains(&acked, &op(6)) && contains(&acked, &op(9)));
    }
}
