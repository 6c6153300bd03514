//! O_APPEND write: the partition assigns the offset, which is the size at that moment (PROTOCOL 38), so that appends of
//! several clients never overlap.
//!
//! - Errors as commit; pieces beyond `len` are Invalid, an end above `FILE_SIZE_MAX` is FileTooBig.
//! - Size grows by `len`; mtime, ctime, version = the command's stamp.

use super::commit::{check_file, check_pieces, lay};
use crate::{Cx, Partition};
use fusefs_types::{
    FsError, FsResult, limits,
    ops::{Append, Piece, WriteReply},
};

pub(super) fn apply(p: &mut Partition, cx: &mut Cx, x: &Append) -> FsResult<WriteReply> {
    let mut inode = check_file(p, x.ino)?;
    let base = inode.size;
    let end = base.checked_add(x.len).filter(|e| *e <= limits::FILE_SIZE_MAX).ok_or(FsError::FileTooBig)?;
    check_pieces(p, cx, base, x.pieces.iter())?;
    for piece in &x.pieces {
        let piece_end = match piece {
            Piece::Extent(e) => e.offset.checked_add(e.len),
            Piece::Inline { offset, bytes } => offset.checked_add(bytes.len() as u64),
            Piece::Hole { offset, len } => offset.checked_add(*len),
        };
        if piece_end.is_none_or(|e| e > x.len) {
            return Err(FsError::Invalid);
        }
    }
    for piece in &x.pieces {
        lay(p, cx, x.ino, &mut inode, piece, base, u64::MAX);
    }
    inode.size = end;
    inode.touch_data(cx.stamp);
    p.put_inode(x.ino, &inode);
    Ok(WriteReply::Appended { offset: base, attr: inode.attr(x.ino) })
}
