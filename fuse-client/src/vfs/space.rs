//! fallocate, lseek(SEEK_DATA / SEEK_HOLE), copy_file_range.

use super::{Request, Vfs, check_size, handle::Handle, unexpected};
use bytes::Bytes;
use fusefs_data_path::WriteContext;
use fusefs_types::{
    Extent, FsError, FsResult, Ino, Source,
    ops::{Piece, Read, ReadReply},
};

/// FALLOC_FL_KEEP_SIZE
pub const KEEP_SIZE: i32 = 0x01;
/// FALLOC_FL_PUNCH_HOLE
pub const PUNCH_HOLE: i32 = 0x02;
/// FALLOC_FL_ZERO_RANGE
pub const ZERO_RANGE: i32 = 0x10;

/// SEEK_DATA of lseek(2)
pub const SEEK_DATA: i32 = 3;
/// SEEK_HOLE of lseek(2)
pub const SEEK_HOLE: i32 = 4;

/// Bytes moved by one copy_file_range request; the kernel asks again for the rest.
const COPY_MAX: u64 = 16 << 20;
/// Bytes of one step of a copy.
const COPY_STEP: u64 = 1 << 20;

impl Vfs {
    /// fallocate(2): modes 0, KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE; others are NotSupported. 1 RPC after the dirty bytes.
    ///
    /// Space is accounted per volume, so allocation reserves nothing: mode 0 only sets the size, and existing bytes,
    /// also those that another client writes at the same time, are never touched.
    pub async fn fallocate(&self, rq: &Request, ino: Ino, fh: u64, offset: u64, len: u64, mode: i32) -> FsResult<()> {
        self.gate_change().await?;
        Handle::unpack(fh).filter(|h| h.writes()).ok_or(FsError::BadHandle)?;
        if len == 0 {
            return Err(FsError::Invalid);
        }
        let end = check_size(offset, len)?;
        let keep_size = mode & KEEP_SIZE != 0;
        let action = mode & !KEEP_SIZE;
        if !matches!((action, keep_size), (0, _) | (PUNCH_HOLE, true) | (ZERO_RANGE, _)) {
            return Err(FsError::NotSupported);
        }
        let (attr, _) = self.attr(ino).await?;
        let pieces = range_pieces(action, offset, end, attr.size, keep_size);
        let grow_to = if keep_size { 0 } else { end };
        if pieces.is_empty() && grow_to <= attr.size {
            return Ok(());
        }
        let cx = WriteContext {
            trunc_seq: attr.trunc_seq,
            kill_priv: false,
            unique: rq.unique,
            resent: rq.resent,
            change: attr.change,
        };
        let sent = self.now();
        let attr = self.data.commit_pieces(ino, pieces, grow_to, cx).await?;
        self.learn_attr(&attr, sent);
        Ok(())
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE. Commits dirty bytes first, then 1 RPC per `EXTENTS_REPLY_MAX` extents.
    pub async fn lseek(&self, _rq: &Request, ino: Ino, offset: u64, whence: i32) -> FsResult<u64> {
        self.gate().await?;
        if whence != SEEK_DATA && whence != SEEK_HOLE {
            return Err(FsError::Invalid);
        }
        if self.data.dirty_attr(ino).is_some() {
            self.data.fsync(ino).await?;
        }
        let mut at = offset;
        loop {
            let read = Read::Extents { ino, offset: at, len: u64::MAX / 2 - at.min(u64::MAX / 2) };
            let ReadReply::Extents { attr, extents, end, .. } = self.meta.read(read).await? else {
                return Err(unexpected("extents"));
            };
            if at >= attr.size {
                return if whence == SEEK_HOLE && at > offset { Ok(attr.size) } else { Err(FsError::NoSuchAddress) };
            }
            match seek_in(&extents, at, whence, end.min(attr.size)) {
                Some(found) => return Ok(found),
                None if end >= attr.size => {
                    return if whence == SEEK_HOLE { Ok(attr.size) } else { Err(FsError::NoSuchAddress) };
                }
                None if end <= at => return Err(unexpected("extents without progress")),
                None => at = end,
            }
        }
    }

    /// copy_file_range(2) by reading and writing here, which saves the way through the kernel. May copy less than asked.
    pub async fn copy_file_range(
        &self,
        _rq: &Request,
        from: (Ino, u64),
        to: (Ino, u64, u64),
        len: u64,
    ) -> FsResult<u32> {
        self.gate_change().await?;
        let (to_ino, to_fh, to_offset) = to;
        let handle = Handle::unpack(to_fh).ok_or(FsError::BadHandle)?;
        if handle.flags & libc::O_APPEND != 0 {
            return Err(FsError::BadHandle);
        }
        let len = len.min(COPY_MAX);
        check_size(from.1, len)?;
        check_size(to_offset, len)?;
        let mut done = 0u64;
        while done < len {
            let want = (len - done).min(COPY_STEP);
            let bytes: Bytes = self.data.read(from.0, from.1 + done, want as usize).await?;
            if bytes.is_empty() {
                break;
            }
            let n = bytes.len() as u64;
            let (attr, _) = self.attr(to_ino).await?;
            // One request, many writes: when it is sent again it starts over.
            let cx = WriteContext { trunc_seq: attr.trunc_seq, change: attr.change, ..WriteContext::default() };
            match self.data.write(to_ino, to_offset + done, bytes, cx).await {
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
                Ok(()) => done += n,
            }
        }
        Ok(done as u32) // at most COPY_MAX
    }
}

/// Pieces that punch or zero `[offset, end)`.
fn range_pieces(action: i32, offset: u64, end: u64, size: u64, keep_size: bool) -> Vec<Piece> {
    let end = if keep_size { end.min(size) } else { end };
    if offset >= end {
        return Vec::new();
    }
    let len = end - offset;
    match action {
        PUNCH_HOLE => vec![Piece::Hole { offset, len }],
        ZERO_RANGE => vec![Piece::Extent(Extent { offset, len, codec: 0, source: Source::Zero })],
        _ => Vec::new(),
    }
}

/// First data or hole at or behind `at` within the known part up to `end`; allocated zeroes count as a hole, as in ext4.
fn seek_in(extents: &[Extent], at: u64, whence: i32, end: u64) -> Option<u64> {
    let mut data = extents.iter().filter(|e| e.source != Source::Zero && e.end() > at && e.offset < end);
    if whence == SEEK_DATA {
        return data.next().map(|e| e.offset.max(at));
    }
    let mut hole = at;
    for e in data {
        if e.offset > hole {
            return Some(hole);
        }
        hole = e.end();
    }
    (hole < end).then_some(hole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fusefs_types::ObjectId;

    fn data(offset: u64, len: u64) -> Extent {
        let source = Source::Object {
            id: ObjectId { session: Default::default(), incarnation: Default::default(), counter: 1 },
            home: Ino(2),
            skip: 0,
        };
        Extent { offset, len, codec: 0, source }
    }

    #[test]
    fn seeks_find_data_and_holes() {
        let zero = Extent { source: Source::Zero, ..data(20, 10) };
        let map = [data(0, 10), data(10, 5), zero, data(40, 10)];
        for (at, want_data, want_hole) in [
            (0, Some(0), Some(15)),
            (3, Some(3), Some(15)),
            (15, Some(40), Some(15)),
            (22, Some(40), Some(22)),
            (45, Some(45), None),
        ] {
            assert_eq!(seek_in(&map, at, SEEK_DATA, 50), want_data, "data from {at}");
            assert_eq!(seek_in(&map, at, SEEK_HOLE, 50), want_hole, "hole from {at}");
        }
    }

    #[test]
    fn punching_beyond_the_end_is_clipped() {
        assert_eq!(range_pieces(PUNCH_HOLE, 5, 20, 10, true), vec![Piece::Hole { offset: 5, len: 5 }]);
        assert!(range_pieces(PUNCH_HOLE, 10, 20, 10, true).is_empty());
        assert!(range_pieces(0, 0, 20, 10, false).is_empty());
    }
}
