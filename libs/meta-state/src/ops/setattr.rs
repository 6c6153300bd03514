//! chmod, chown, truncate, utimens in one command.
//!
//! - Always: ctime and version (chown(-1, -1) included, as Linux does). Works on orphans (fchmod of an unlinked file).
//! - Size: regular files only (IsDirectory, Invalid), at most `FILE_SIZE_MAX` (FileTooBig); sets mtime unless one is
//!   given. Smaller: extents are cut and `trunc_seq` grows, so that commits of older bytes are clipped (PROTOCOL 36).
//!   Larger: a hole.
//! - `kill_priv`: set-uid goes, set-gid goes where group execute is set; directories keep both.

use crate::{Cx, Partition, record::Inode};
use fusefs_types::{
    FileKind, FsError, FsResult, Ino, Time, limits,
    ops::{SetAttr, SetTime, WriteReply},
};

/// Truncations remembered one by one; older ones share the smallest size.
const TRUNC_LOW_MAX: usize = 8;

pub(super) fn apply(p: &mut Partition, cx: &mut Cx, x: &SetAttr) -> FsResult<WriteReply> {
    let mut inode = p.inode(x.ino)?;
    if let Some(size) = x.size {
        check_size(&inode, size)?;
    }
    inode.touch(cx.stamp);
    if let Some(mode) = x.mode {
        inode.mode = mode & 0o7777;
    }
    inode.uid = x.uid.unwrap_or(inode.uid);
    inode.gid = x.gid.unwrap_or(inode.gid);
    if x.kill_priv {
        kill_priv(&mut inode);
    }
    if let Some(size) = x.size {
        inode.mtime = cx.stamp.into();
        truncate(p, cx, x.ino, &mut inode, size);
    }
    let at = |t: SetTime| match t {
        SetTime::Now => Time::from(cx.stamp),
        SetTime::At(t) => t,
    };
    inode.atime = x.atime.map_or(inode.atime, at);
    inode.mtime = x.mtime.map_or(inode.mtime, at);
    inode.ctime = x.ctime.unwrap_or(inode.ctime);
    p.put_inode(x.ino, &inode);
    Ok(WriteReply::Attr(inode.attr(x.ino)))
}

fn check_size(inode: &Inode, size: u64) -> FsResult<()> {
    match inode.kind {
        FileKind::Regular if size > limits::FILE_SIZE_MAX => Err(FsError::FileTooBig),
        FileKind::Regular => Ok(()),
        FileKind::Directory => Err(FsError::IsDirectory),
        _ => Err(FsError::Invalid),
    }
}

/// Clears set-uid, and set-gid of executables, as Linux does when an unprivileged process writes or chowns.
pub(super) fn kill_priv(inode: &mut Inode) {
    if inode.is_dir() {
        return;
    }
    inode.mode &= !0o4000;
    if inode.mode & 0o010 != 0 {
        inode.mode &= !0o2000;
    }
}

fn truncate(p: &mut Partition, cx: &mut Cx, ino: Ino, inode: &mut Inode, size: u64) {
    if size < inode.size {
        inode.allocated -= p.cut_extents(cx, ino, size, u64::MAX).min(inode.allocated);
        inode.trunc_seq += 1;
        note_truncation(&mut inode.trunc_low, inode.trunc_seq, size);
    }
    inode.size = size;
}

/// Keeps, for every older `trunc_seq`, the smallest size since: sizes ascend, so the first entry above a sequence is its
/// answer. A full list merges its two oldest entries towards the smaller size (more is clipped, never less).
fn note_truncation(low: &mut Vec<(u64, u64)>, seq: u64, size: u64) {
    while low.last().is_some_and(|(_, s)| *s >= size) {
        low.pop();
    }
    low.push((seq, size));
    if low.len() > TRUNC_LOW_MAX {
        low[1].1 = low[0].1;
        low.remove(0);
    }
}

/// Size to which bytes written under `trunc_seq` are clipped.
pub(super) fn clip_to(inode: &Inode, trunc_seq: u64) -> u64 {
    if trunc_seq >= inode.trunc_seq {
        return u64::MAX;
    }
    inode.trunc_low.iter().find(|(seq, _)| *seq > trunc_seq).map_or(0, |(_, size)| *size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fusefs_types::Hlc;

    #[test]
    fn clipping_is_the_smallest_size_since() {
        let mut sizes = vec![];
        let mut seed = 7u64;
        let mut inode = Inode::new(FileKind::Regular, 0, 0, 0, Hlc(1));
        let mut exact = true; // until the list was full once
        for seq in 1..=200u64 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let size = seed >> 33 & 0xff;
            sizes.push(size);
            inode.trunc_seq = seq;
            note_truncation(&mut inode.trunc_low, seq, size);
            exact &= inode.trunc_low.len() < TRUNC_LOW_MAX;
            for seen in 0..seq {
                let want = *sizes[seen as usize..].iter().min().unwrap();
                let got = clip_to(&inode, seen);
                assert!(got <= want, "never less clipping");
                if exact {
                    assert_eq!(got, want, "seen {seen} of {seq}");
                }
            }
            assert_eq!(clip_to(&inode, seq), u64::MAX);
        }
    }
}
