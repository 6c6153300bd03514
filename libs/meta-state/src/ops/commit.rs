//! Data of one or several files becomes visible.
//!
//! - Every file must be ours (WrongRange), exist (NotFound) and be regular (IsDirectory, Invalid). Limits: Invalid for too
//!   many items, FileTooBig past `FILE_SIZE_MAX`, TooBig for too many inline bytes, UseObject when the inline budget is
//!   used up. All files are checked before any is changed.
//! - Pieces lie on top of what was there, later ones on earlier ones; bytes written under an older `trunc_seq` are clipped
//!   to the smallest size since (PROTOCOL 36). What is clipped away entirely still lets its object die properly.
//! - The size grows to the end of the pieces and to `grow_to`, never shrinks; holes do not grow it.
//! - mtime: the client's, not above the command's stamp; None leaves it (explicit utimens, PROTOCOL 37). ctime and version
//!   always. No quota check: credit was consumed when the write was acknowledged (PROTOCOL 35).

use super::setattr::{clip_to, kill_priv};
use crate::{
    Cx, Partition,
    apply::BlobPut,
    record::{BlobKey, Inode},
};
use fusefs_types::{
    Attr, Extent, FileKind, FsError, FsResult, Ino, Source, Time, limits,
    ops::{Commit, CommitFile, Piece, WriteReply},
};

pub(super) fn apply(p: &mut Partition, cx: &mut Cx, x: &Commit) -> FsResult<WriteReply> {
    if x.files.is_empty() || x.files.len() > limits::COMMIT_ITEMS_MAX {
        return Err(FsError::Invalid);
    }
    for f in &x.files {
        check_file(p, f.ino)?;
        if f.grow_to > limits::FILE_SIZE_MAX {
            return Err(FsError::FileTooBig);
        }
    }
    check_pieces(p, cx, 0, x.files.iter().flat_map(|f| &f.pieces))?;
    let attrs = x.files.iter().map(|f| file(p, cx, f)).collect::<FsResult<_>>()?;
    Ok(WriteReply::Committed(attrs))
}

/// The inode, which must be a regular file of ours.
pub(super) fn check_file(p: &Partition, ino: Ino) -> FsResult<Inode> {
    let inode = p.inode(ino)?;
    match inode.kind {
        FileKind::Regular => Ok(inode),
        FileKind::Directory => Err(FsError::IsDirectory),
        _ => Err(FsError::Invalid),
    }
}

/// Limits and references of all pieces of a command; `base` is added to their offsets.
pub(super) fn check_pieces<'a>(
    p: &Partition,
    cx: &Cx,
    base: u64,
    pieces: impl Iterator<Item = &'a Piece>,
) -> FsResult<()> {
    let (mut count, mut inline) = (0, 0);
    for piece in pieces {
        count += 1;
        let (offset, len) = match piece {
            Piece::Extent(e) => {
                p.may_refer(cx, e)?;
                (e.offset, e.len)
            }
            Piece::Inline { offset, bytes } => {
                inline += bytes.len();
                (*offset, bytes.len() as u64)
            }
            // A hole may reach to the end of time; what lies beyond the largest file is empty anyway.
            Piece::Hole { .. } => continue,
        };
        let end = base.checked_add(offset).and_then(|o| o.checked_add(len)).ok_or(FsError::FileTooBig)?;
        if end > limits::FILE_SIZE_MAX {
            return Err(FsError::FileTooBig);
        }
    }
    if count > limits::COMMIT_ITEMS_MAX {
        return Err(FsError::Invalid);
    }
    if inline > limits::INLINE_COMMIT_BYTES_MAX {
        return Err(FsError::TooBig);
    }
    if inline > 0 && p.meta.inline_bytes + inline as u64 > limits::INLINE_BUDGET_BYTES {
        return Err(FsError::UseObject);
    }
    Ok(())
}

fn file(p: &mut Partition, cx: &mut Cx, f: &CommitFile) -> FsResult<Attr> {
    let mut inode = p.inode(f.ino)?;
    let limit = if p.faults.no_clip { u64::MAX } else { clip_to(&inode, f.trunc_seq) };
    for piece in &f.pieces {
        lay(p, cx, f.ino, &mut inode, piece, 0, limit);
    }
    inode.size = inode.size.max(f.grow_to.min(limit));
    inode.touch(cx.stamp);
    if let Some(mtime) = f.mtime {
        inode.mtime = mtime.min(Time::from(cx.stamp));
    }
    if f.kill_priv {
        kill_priv(&mut inode);
    }
    p.put_inode(f.ino, &inode);
    Ok(inode.attr(f.ino))
}

/// Lays one checked piece, shifted by `base` and clipped to `limit`; size and allocation of `inode` follow.
pub(super) fn lay(p: &mut Partition, cx: &mut Cx, ino: Ino, inode: &mut Inode, piece: &Piece, base: u64, limit: u64) {
    let extent = match piece {
        Piece::Hole { offset, len } => {
            let from = base.saturating_add(*offset);
            let removed = p.cut_extents(cx, ino, from, from.saturating_add(*len).min(limit));
            inode.allocated = inode.allocated.saturating_sub(removed);
            return;
        }
        Piece::Extent(e) => Extent { offset: e.offset + base, ..*e }.slice(0, limit),
        Piece::Inline { offset, bytes } => {
            let whole = Extent {
                offset: offset + base,
                len: bytes.len() as u64,
                codec: 0,
                source: Source::Inline { index: 0, n: 0, skip: 0 },
            };
            whole.slice(0, limit).map(|e| Extent { source: put_inline(p, cx, bytes, e.len), ..e })
        }
    };
    match (extent, piece) {
        (Some(e), _) => {
            let (removed, added) = p.lay_extent(cx, ino, e);
            inode.allocated = inode.allocated.saturating_sub(removed) + added;
            inode.size = inode.size.max(e.end());
        }
        (None, Piece::Extent(Extent { source: Source::Object { id, home, .. }, .. })) => p.note_object(cx, *id, *home),
        _ => {}
    }
}

/// Puts the first `len` bytes into the blob file.
fn put_inline(p: &mut Partition, cx: &mut Cx, bytes: &bytes::Bytes, len: u64) -> Source {
    let key = BlobKey { index: cx.at.index, n: cx.at.n << 16 | cx.blobs.len() as u32 };
    let bytes = bytes.slice(..(len as usize).min(bytes.len()));
    p.new_blob(cx, key, bytes.len() as u32);
    cx.blobs.push(BlobPut { key, bytes });
    Source::Inline { index: key.index, n: key.n, skip: 0 }
}
