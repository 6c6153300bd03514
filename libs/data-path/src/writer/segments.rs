//! Dirty bytes of one batch: an ordered map of non-overlapping segments, newest bytes win.

use bytes::Bytes;
use std::collections::BTreeMap;

/// Writes up to this size are copied together; larger ones are kept as they came.
const COPY_MAX: usize = 64 << 10;
/// A copied segment grows to this.
const OWN_MAX: usize = 1 << 20;
/// Bookkeeping charged per segment.
pub(super) const SEGMENT_COST: u64 = 128;

enum Segment {
    Own(Vec<u8>),
    Shared(Bytes),
}

impl Segment {
    fn bytes(&self) -> &[u8] {
        match self {
            Segment::Own(v) => v,
            Segment::Shared(b) => b,
        }
    }
    fn len(&self) -> u64 {
        self.bytes().len() as u64
    }
    /// Keeps the first `n` bytes and returns the rest.
    fn split_off(&mut self, n: u64) -> Segment {
        match self {
            Segment::Own(v) => Segment::Own(v.split_off(n as usize)),
            Segment::Shared(b) => Segment::Shared(b.split_off(n as usize)),
        }
    }
    fn freeze(self) -> Bytes {
        match self {
            Segment::Own(v) => Bytes::from(v),
            Segment::Shared(b) => b,
        }
    }
}

/// Open batch.
#[derive(Default)]
pub(super) struct Segments {
    map: BTreeMap<u64, Segment>,
    bytes: u64,
    /// Upper bound of the number of contiguous runs.
    runs: usize,
}

impl Segments {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
    /// Memory charged for it.
    pub fn cost(&self) -> u64 {
        self.bytes + self.map.len() as u64 * SEGMENT_COST
    }
    /// First byte behind the last segment.
    pub fn end(&self) -> u64 {
        self.map.last_key_value().map_or(0, |(o, s)| o + s.len())
    }
    /// First dirty byte.
    pub fn start(&self) -> u64 {
        self.map.first_key_value().map_or(u64::MAX, |(o, _)| *o)
    }
    /// True when the batch has `limit` contiguous runs.
    pub fn is_ragged(&mut self, limit: usize) -> bool {
        if self.runs >= limit {
            let (mut runs, mut end) = (0, None);
            for (o, s) in &self.map {
                runs += usize::from(end != Some(*o));
                end = Some(o + s.len());
            }
            self.runs = runs;
        }
        self.runs >= limit
    }

    /// Adds bytes on top.
    pub fn write(&mut self, offset: u64, data: &Bytes) {
        let end = offset + data.len() as u64;
        if self.in_place(offset, end, data) {
            return;
        }
        self.carve(offset, end);
        let segment = match data.len() {
            n if n <= COPY_MAX => Segment::Own(data.to_vec()),
            _ => Segment::Shared(data.clone()),
        };
        self.map.insert(offset, segment);
        self.bytes += end - offset;
        self.runs += 1;
    }

    /// Overwrites or extends the segment in front, if that needs no new one.
    fn in_place(&mut self, offset: u64, end: u64, data: &[u8]) -> bool {
        let free_to = self.map.range(offset + 1..).next().map_or(u64::MAX, |(o, _)| *o);
        let Some((start, Segment::Own(v))) = self.map.range_mut(..=offset).next_back() else { return false };
        let at = (offset - start) as usize;
        if end <= start + v.len() as u64 {
            v[at..at + data.len()].copy_from_slice(data);
            return true;
        }
        if at == v.len() && end <= free_to && data.len() <= COPY_MAX && at + data.len() <= OWN_MAX {
            v.extend_from_slice(data);
            self.bytes += data.len() as u64;
            return true;
        }
        false
    }

    /// Removes `[from, to)`.
    fn carve(&mut self, from: u64, to: u64) {
        if let Some((start, s)) = self.map.range_mut(..from).next_back() {
            let seg_end = start + s.len();
            if seg_end > from {
                let mut cut = s.split_off(from - start);
                self.bytes -= seg_end.min(to) - from;
                if seg_end > to {
                    let rest = cut.split_off(to - from);
                    self.map.insert(to, rest);
                }
            }
        }
        while let Some((&start, s)) = self.map.range_mut(from..to).next() {
            let len = s.len();
            let rest = (start + len > to).then(|| s.split_off(to - start));
            self.bytes -= len.min(to - start);
            self.map.remove(&start);
            if let Some(rest) = rest {
                self.map.insert(to, rest);
            }
        }
    }

    /// Copies of the pieces inside `[from, to)`.
    pub fn overlay(&self, from: u64, to: u64, out: &mut Vec<(u64, Bytes)>) {
        let before = self.map.range(..from).next_back();
        for (start, s) in before.into_iter().chain(self.map.range(from..to)) {
            let (a, b) = (from.max(*start), to.min(start + s.len()));
            if a < b {
                let range = (a - start) as usize..(b - start) as usize;
                out.push((
                    a,
                    match s {
                        Segment::Own(v) => Bytes::copy_from_slice(&v[range]),
                        Segment::Shared(d) => d.slice(range),
                    },
                ));
            }
        }
    }

    /// No more writes.
    pub fn freeze(self) -> Frozen {
        let segments = self.map.into_iter().map(|(o, s)| (o, s.freeze())).collect();
        Frozen { segments, bytes: self.bytes }
    }
}

/// Closed batch: (offset, bytes) in file order.
pub(super) struct Frozen {
    pub segments: Vec<(u64, Bytes)>,
    pub bytes: u64,
}

impl Frozen {
    pub fn end(&self) -> u64 {
        self.segments.last().map_or(0, |(o, b)| o + b.len() as u64)
    }
    pub fn start(&self) -> u64 {
        self.segments.first().map_or(u64::MAX, |(o, _)| *o)
    }
    pub fn cost(&self) -> u64 {
        self.bytes + self.segments.len() as u64 * SEGMENT_COST
    }
    /// Contiguous runs: (offset, length, index of the first segment, segments).
    pub fn runs(&self) -> Vec<(u64, u64, std::ops::Range<usize>)> {
        let mut runs: Vec<(u64, u64, std::ops::Range<usize>)> = Vec::new();
        for (i, (o, b)) in self.segments.iter().enumerate() {
            match runs.last_mut() {
                Some(r) if r.0 + r.1 == *o => {
                    r.1 += b.len() as u64;
                    r.2.end = i + 1;
                }
                _ => runs.push((*o, b.len() as u64, i..i + 1)),
            }
        }
        runs
    }
    /// Bytes of a run.
    pub fn join(&self, segments: std::ops::Range<usize>) -> Bytes {
        match &self.segments[segments] {
            [(_, one)] => one.clone(),
            many => many.iter().flat_map(|(_, b)| b.iter().copied()).collect::<Vec<u8>>().into(),
        }
    }
    /// Pieces inside `[from, to)`.
    pub fn overlay(&self, from: u64, to: u64, out: &mut Vec<(u64, Bytes)>) {
        let first = self.segments.partition_point(|(o, b)| o + b.len() as u64 <= from);
        for (start, s) in &self.segments[first..] {
            let (a, b) = (from.max(*start), to.min(start + s.len() as u64));
            if a >= b {
                break;
            }
            out.push((a, s.slice((a - start) as usize..(b - start) as usize)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn segments_equal_a_byte_map(writes in prop::collection::vec((0u64..400, 1usize..90, any::<u8>()), 1..60)) {
            let mut s = Segments::default();
            let mut model: BTreeMap<u64, u8> = BTreeMap::new();
            for (offset, len, fill) in writes {
                s.write(offset, &Bytes::from(vec![fill; len]));
                model.extend((offset..offset + len as u64).map(|o| (o, fill)));
                prop_assert_eq!(s.bytes(), model.len() as u64);
                let mut seen = BTreeMap::new();
                let mut pieces = Vec::new();
                s.overlay(100, 300, &mut pieces);
                for (o, b) in pieces {
                    seen.extend(b.iter().enumerate().map(|(i, x)| (o + i as u64, *x)));
                }
                let want: BTreeMap<u64, u8> = model.range(100..300).map(|(o, b)| (*o, *b)).collect();
                prop_assert_eq!(seen, want);
            }
            prop_assert_eq!(s.end(), model.last_key_value().map_or(0, |(o, _)| o + 1));
            let frozen = s.freeze();
            let mut flat = BTreeMap::new();
            for (o, len, range) in frozen.runs() {
                let b = frozen.join(range);
                prop_assert_eq!(b.len() as u64, len);
                prop_assert!(!model.contains_key(&(o + len)), "runs are maximal");
                flat.extend(b.iter().enumerate().map(|(i, x)| (o + i as u64, *x)));
            }
            prop_assert_eq!(flat, model);
        }
    }
}
