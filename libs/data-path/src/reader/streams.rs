//! Who reads sequentially, and how far ahead to fetch. Pure.

use std::ops::Range;

/// Streams followed per file.
const STREAMS_MAX: usize = 8;
/// The kernel's parallel reads arrive out of order by about this much.
const SLACK: u64 = 1 << 20;
/// First read-ahead.
const FIRST: u64 = 512 << 10;

#[derive(Clone, Debug)]
struct Stream {
    /// Where the next read is expected.
    next: u64,
    /// Fetched (or being fetched) up to here.
    ahead: u64,
    window: u64,
}

/// Streams of one file, most recently used last.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams {
    list: Vec<Stream>,
}

impl Streams {
    /// Takes note of a read; returns what to fetch ahead.
    pub fn on_read(&mut self, offset: u64, len: u64, max: u64) -> Option<Range<u64>> {
        let end = offset.saturating_add(len);
        let hit = self.list.iter().position(|s| offset <= s.next + SLACK && end + SLACK >= s.next);
        let Some(i) = hit else {
            if self.list.len() == STREAMS_MAX {
                self.list.remove(0);
            }
            // A first read at the start of a file is taken for the start of a sequential one.
            let window = if offset == 0 { FIRST.min(max) } else { 0 };
            self.list.push(Stream { next: end, ahead: end + window, window });
            return (window > 0).then_some(end..end + window);
        };
        let mut s = self.list.remove(i);
        let mut ahead = None;
        if end > s.next {
            s.next = end;
            if s.ahead < end + s.window / 2 || s.window == 0 {
                s.window = (s.window * 2).clamp(FIRST, max.max(FIRST)).min(max);
                let from = s.ahead.max(end);
                let to = end + s.window;
                if to > from {
                    ahead = Some(from..to);
                    s.ahead = to;
                }
            }
        }
        self.list.push(s);
        ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequential_reads_are_fetched_ahead_once_and_boundedly() {
        let (mut s, max) = (Streams::default(), 8 << 20);
        let mut fetched = 0;
        for i in 0..512u64 {
            if let Some(r) = s.on_read(i * 131072, 131072, max) {
                assert!(fetched == 0 || r.start == fetched, "no gap, no overlap: {r:?} after {fetched}");
                fetched = r.end;
                assert!(r.end <= (i + 1) * 131072 + max);
            }
            assert!(i < 4 || fetched >= (i + 1) * 131072, "stays ahead");
        }
    }

    #[test]
    fn random_reads_fetch_nothing_ahead() {
        let mut s = Streams::default();
        for i in 1..200u64 {
            assert_eq!(s.on_read((i * 7919 % 199 + 1) << 24, 4096, 8 << 20), None);
        }
    }
}
