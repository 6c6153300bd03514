//! Attributes, extents, pieces and names of `fusefs.metanode.v1`.

use super::common::{self, need};
use crate::metanode::v1 as pb;
use bytes::Bytes;
use fusefs_types::{Attr, Extent, FileKind, FsError, FsResult, Hlc, Ino, Mode, Name, Source, Time, limits, ops::Piece};

/// File type from the wire.
pub fn from_kind(kind: u32) -> FsResult<FileKind> {
    u8::try_from(kind).ok().and_then(FileKind::from_dtype).ok_or(FsError::Invalid)
}

/// File type to the wire.
pub fn kind(kind: FileKind) -> u32 {
    kind as u32
}

/// Permission bits from the wire; others are Invalid.
pub fn from_mode(mode: u32) -> FsResult<Mode> {
    Mode::try_from(mode).ok().filter(|m| *m <= 0o7777).ok_or(FsError::Invalid)
}

/// A name from the wire: its own errnos.
pub fn from_name(name: Bytes) -> FsResult<Name> {
    Name::new(name)
}

/// Name of an extended attribute: 1..=255 bytes without NUL, else ERANGE as in Linux.
pub fn from_xattr_name(name: Bytes) -> FsResult<Bytes> {
    if name.is_empty() || name.len() > limits::XATTR_NAME_MAX {
        return Err(FsError::Range);
    }
    if name.contains(&0) {
        return Err(FsError::Invalid);
    }
    Ok(name)
}

/// Value of an extended attribute, at most 64 KiB, else E2BIG.
pub fn from_xattr_value(value: Bytes) -> FsResult<Bytes> {
    if value.len() > limits::XATTR_VALUE_MAX { Err(FsError::TooBig) } else { Ok(value) }
}

/// Target of a symbolic link: 1..=4095 bytes without NUL.
pub fn from_target(target: Bytes) -> FsResult<Bytes> {
    if target.len() > limits::SYMLINK_MAX {
        return Err(FsError::NameTooLong);
    }
    if target.is_empty() || target.contains(&0) {
        return Err(FsError::Invalid);
    }
    Ok(target)
}

/// A file size or offset.
pub fn from_size(size: u64) -> FsResult<u64> {
    if size > limits::FILE_SIZE_MAX { Err(FsError::FileTooBig) } else { Ok(size) }
}

/// Checks `[offset, offset + len)` against the largest file.
pub fn check_run(offset: u64, len: u64) -> FsResult<()> {
    from_size(offset.checked_add(len).ok_or(FsError::FileTooBig)?).map(drop)
}

/// Attributes to the wire.
pub fn attr(a: &Attr) -> pb::Attr {
    pb::Attr {
        ino: a.ino.0,
        kind: kind(a.kind),
        mode: u32::from(a.mode),
        uid: a.uid,
        gid: a.gid,
        nlink: a.nlink,
        rdev: a.rdev,
        size: a.size,
        allocated: a.allocated,
        atime: a.atime.0,
        mtime: a.mtime.0,
        ctime: a.ctime.0,
        btime: a.btime.0,
        change: a.change.0,
        trunc_seq: a.trunc_seq,
        flags: a.flags,
        project: a.project,
        parent: a.parent.0,
        has_xattr: a.has_xattr,
    }
}

/// Attributes from the wire.
pub fn from_attr(a: pb::Attr) -> FsResult<Attr> {
    Ok(Attr {
        ino: Ino(a.ino),
        kind: from_kind(a.kind)?,
        mode: from_mode(a.mode)?,
        uid: a.uid,
        gid: a.gid,
        nlink: a.nlink,
        rdev: a.rdev,
        size: a.size,
        allocated: a.allocated,
        atime: Time(a.atime),
        mtime: Time(a.mtime),
        ctime: Time(a.ctime),
        btime: Time(a.btime),
        change: Hlc(a.change),
        trunc_seq: a.trunc_seq,
        flags: a.flags,
        project: a.project,
        parent: Ino(a.parent),
        has_xattr: a.has_xattr,
    })
}

/// Attributes that must be there.
pub fn need_attr(a: Option<pb::Attr>) -> FsResult<Attr> {
    from_attr(need(a)?)
}

/// Extent to the wire.
pub fn extent(e: &Extent) -> pb::Extent {
    use pb::extent::Source as S;
    let source = match e.source {
        Source::Object { id, home, skip } => {
            S::Object(pb::ObjectSource { id: Some(common::object_id(&id)), home: home.0, skip })
        }
        Source::Inline { index, n, skip } => S::Inline(pb::InlineSource { index, n: u64::from(n), skip }),
        Source::Zero => S::Zero(pb::Empty {}),
    };
    pb::Extent { offset: e.offset, len: e.len, codec: u32::from(e.codec), source: Some(source) }
}

/// Extent from the wire: not empty, inside the largest file, and no arithmetic on it can overflow.
pub fn from_extent(e: pb::Extent) -> FsResult<Extent> {
    use pb::extent::Source as S;
    check_run(e.offset, e.len)?;
    if e.len == 0 {
        return Err(FsError::Invalid);
    }
    let source = match e.source.ok_or(FsError::UpgradeNeeded)? {
        S::Object(o) => {
            o.skip.checked_add(e.len).ok_or(FsError::Invalid)?;
            Source::Object { id: common::from_object_id(need(o.id)?), home: Ino(o.home), skip: o.skip }
        }
        S::Inline(i) => {
            let end = u64::from(i.skip).checked_add(e.len).ok_or(FsError::Invalid)?;
            u32::try_from(end).map_err(|_| FsError::Invalid)?;
            Source::Inline { index: i.index, n: u32::try_from(i.n).map_err(|_| FsError::Invalid)?, skip: i.skip }
        }
        S::Zero(_) => Source::Zero,
    };
    Ok(Extent { offset: e.offset, len: e.len, codec: u16::try_from(e.codec).map_err(|_| FsError::Invalid)?, source })
}

/// Piece to the wire.
pub fn piece(p: &Piece) -> pb::Piece {
    use pb::piece::Piece as P;
    let piece = match p {
        Piece::Extent(e) => P::Extent(extent(e)),
        Piece::Inline { offset, bytes } => P::Inline(pb::InlinePiece { offset: *offset, bytes: bytes.clone() }),
        Piece::Hole { offset, len } => P::Hole(pb::HolePiece { offset: *offset, len: *len }),
    };
    pb::Piece { piece: Some(piece) }
}

/// Piece from the wire.
pub fn from_piece(p: pb::Piece) -> FsResult<Piece> {
    use pb::piece::Piece as P;
    Ok(match p.piece.ok_or(FsError::UpgradeNeeded)? {
        P::Extent(e) => Piece::Extent(from_extent(e)?),
        P::Inline(i) => {
            check_run(i.offset, i.bytes.len() as u64)?;
            Piece::Inline { offset: i.offset, bytes: i.bytes }
        }
        P::Hole(h) => {
            check_run(h.offset, h.len)?;
            Piece::Hole { offset: h.offset, len: h.len }
        }
    })
}

/// Inline bytes of a list of pieces.
pub fn inline_bytes(pieces: &[Piece]) -> usize {
    pieces.iter().map(|p| if let Piece::Inline { bytes, .. } = p { bytes.len() } else { 0 }).sum()
}
