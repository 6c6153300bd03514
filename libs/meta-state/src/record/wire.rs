//! Encoding of `types` that are stored inside records: requests of transactions, replies, attributes.

use crate::codec::{Get, Put};
use bytes::Bytes;
use fusefs_types::{
    Attr, Extent, FileKind, FsError, FsResult, Hlc, Ino, Name, ObjectId, RangeKey, SessionId, Source, Time, Token,
    ids::{Incarnation, MountId, OpId, Origin},
    lock::{HeldLock, LockOp, LockOwner, LockSpace, SetLock},
    ops::{
        Append, Commit, Create, Link, NewNode, Piece, RemoveXattr, Rename, RenameMode, SetAttr, SetTime, SetXattr,
        Tmpfile, Unlink, Write, WriteReply, XattrMode,
    },
    txn::{Part, PartReply, TxnId},
};
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// A value with exactly one encoding.
pub trait Wire: Sized {
    /// Appends.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads; Corrupt on damage.
    fn get(g: &mut Get<'_>) -> FsResult<Self>;
}

/// Fingerprint of a request (PROTOCOL 15).
///
/// Of an append only inode and length count: a repetition may bring its bytes in another shape (an object where inline
/// bytes were refused) or, after the client was killed, in another object.
pub fn fingerprint(write: &Write) -> u64 {
    let mut bytes = Vec::with_capacity(128);
    match write {
        Write::Append(x) => Write::Append(Append { ino: x.ino, pieces: Vec::new(), len: x.len }).put(&mut bytes),
        other => other.put(&mut bytes),
    }
    let mut h = SipHasher13::new();
    h.write(&bytes);
    h.finish()
}

macro_rules! newtype {
    ($($t:ident, $put:ident;)*) => { $(impl Wire for $t {
        fn put(&self, out: &mut Vec<u8>) { out.$put(self.0); }
        fn get(g: &mut Get<'_>) -> FsResult<Self> { Ok($t(g.$put()?)) }
    })* };
}
newtype! { Ino, u64; Hlc, u64; SessionId, u128; MountId, u128; Incarnation, u32; }

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.bool(*self);
    }
    fn get(g: &mut Get<'_>) -> FsResult<Self> {
        g.bool()
    }
}
impl Wire for u32 {
    fn put(&self, out: &mut Vec<u8>) {
        out.u32(*self);
    }
    fn get(g: &mut Get<'_>) -> FsResult<Self> {
        g.u32()
    }
}
impl Wire for u64 {
    fn put(&self, out: &mut Vec<u8>) {
        out.u64(*self);
    }
    fn get(g: &mut Get<'_>) -> FsResult<Self> {
        g.u64()
    }
}
impl Wire for u16 {
    fn put(&self, out: &mut Vec<u8>) {
        out.u16(*self);
    }
    fn get(g: &mut Get<'_>) -> FsResult<Self> {
        g.u16()
    }
}
impl Wire for Time {
    fn put(&self, out: &mut Vec<u8>) {
        out.u64(self.0 as u64);
    }
    fn get(g: &mut Get<'_>) -> FsResult<Self> {
        Ok(Time(g.u64()? as i64))
    }
}
impl Wire for FileKind {
    fn put(&self, out: &mut Vec<u8>) {
        out.u8(*self as u8);
    }
    fn get(g: &mut Get<'_>) -> FsResult<Self> {
        FileKind::from_dtype(g.u8()?).ok_or(FsError::Corrupt)
    }
}
impl Wire for Bytes {
    fn put(&self, out: &mut Vec<u8>) {
        out.blob(self);
    }
    fn get(g: &mut Get<'_>) -> FsResult<Self> {
        g.blob()
    }
}
impl Wire for Name {
    fn put(&self, out: &mut Vec<u8>) {
        out.blob(self.as_bytes());
    }
    fn get(g: &mut Get<'_>) -> FsResult<Self> {
        Name::new(g.blob()?).map_err(|_| FsError::Corrupt)
    }
}
impl Wire for FsError {
    fn put(&self, out: &mut Vec<u8>) {
        out.u16(self.code());
    }
    fn get(g: &mut Get<'_>) -> FsResult<Self> {
        let code = g.u16()?;
        let e = FsError::from_code(code);
        if e.code() == code { Ok(e) } else { Err(FsError::Corrupt) }
    }
}
impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn get(g: &mut Get<'_>) -> FsResult<Self> {
        Ok((A::get(g)?, B::get(g)?))
    }
}
impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        out.bool(self.is_some());
        if let Some(v) = self {
            v.put(out);
        }
    }
    fn get(g: &mut Get<'_>) -> FsResult<Self> {
        if g.bool()? { Ok(Some(T::get(g)?)) } else { Ok(None) }
    }
}
impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        out.u32(self.len() as u32);
        for v in self {
            v.put(out);
        }
    }
    fn get(g: &mut Get<'_>) -> FsResult<Self> {
        (0..g.count(1)?).map(|_| T::get(g)).collect()
    }
}
impl<T: Wire> Wire for Result<T, FsError> {
    fn put(&self, out: &mut Vec<u8>) {
        out.bool(self.is_ok());
        match self {
            Ok(v) => v.put(out),
            Err(e) => e.put(out),
        }
    }
    fn get(g: &mut Get<'_>) -> FsResult<Self> {
        if g.bool()? { Ok(Ok(T::get(g)?)) } else { Ok(Err(FsError::get(g)?)) }
    }
}

/// Structs: fields in order. Enums: a tag byte, then the fields.
macro_rules! wire {
    (struct $t:ident { $($f:ident),* $(,)? }) => { impl Wire for $t {
        fn put(&self, out: &mut Vec<u8>) { $(self.$f.put(out);)* }
        fn get(g: &mut Get<'_>) -> FsResult<Self> { $(let $f = Wire::get(g)?;)* Ok($t { $($f),* }) }
    } };
    (enum $t:ident { $($tag:literal $v:ident $(($($p:ident),*))? $({$($f:ident),*})?,)* }) => { impl Wire for $t {
        fn put(&self, out: &mut Vec<u8>) { match self {
            $($t::$v $(($($p),*))? $({$($f),*})? => { out.u8($tag); $($($p.put(out);)*)? $($($f.put(out);)*)? })*
        } }
        fn get(g: &mut Get<'_>) -> FsResult<Self> { match g.u8()? {
            $($tag => {
                $($(let $p = Wire::get(g)?;)*)? $($(let $f = Wire::get(g)?;)*)?
                Ok($t::$v $(($($p),*))? $({$($f),*})?)
            })*
            _ => Err(FsError::Corrupt),
        } }
    } };
}

wire! { struct Token { attach, incarnation } }
wire! { struct OpId { mount, origin, number, step } }
wire! { struct RangeKey { ino, sub } }
wire! { struct ObjectId { session, incarnation, counter } }
wire! { struct Extent { offset, len, codec, source } }
wire! { struct Create { parent, name, node, mode, uid, gid, exclusive } }
wire! { struct Tmpfile { parent, mode, uid, gid } }
wire! { struct Link { ino, parent, name } }
wire! { struct Unlink { parent, name, directory } }
wire! { struct Rename { parent, name, new_parent, new_name, mode } }
wire! { struct SetAttr { ino, mode, uid, gid, size, atime, mtime, ctime, kill_priv } }
wire! { struct Commit { files } }
wire! { struct CommitFile { ino, trunc_seq, pieces, mtime, grow_to, kill_priv } }
wire! { struct Append { ino, pieces, len } }
wire! { struct SetXattr { ino, name, value, mode } }
wire! { struct RemoveXattr { ino, name } }
wire! { struct Attr {
    ino, kind, mode, uid, gid, nlink, rdev, size, allocated, atime, mtime, ctime, btime, change, trunc_seq, flags,
    project, parent, has_xattr,
} }
wire! { struct PartReply { done, existing, attr } }
wire! { struct LockOwner { space, id } }
wire! { struct SetLock { ino, owner, start, end, op, pid, wait } }
wire! { struct HeldLock { session, owner, start, end, write, pid } }
wire! { struct TxnId { coordinator, seq } }
wire! { enum Origin { 0 Fuse, 1 Journal, 2 Internal, } }
wire! { enum NewNode { 0 File, 1 Directory, 2 Symlink(target), 3 Special(kind, rdev), } }
wire! { enum RenameMode { 0 Replace, 1 NoReplace, 2 Exchange, } }
wire! { enum SetTime { 0 Now, 1 At(t), } }
wire! { enum LockSpace { 0 Posix, 1 Flock, } }
wire! { enum LockOp { 0 Read, 1 Write, 2 Unlock, } }
wire! { enum XattrMode { 0 Any, 1 Create, 2 Replace, } }
wire! { enum Piece { 0 Extent(e), 1 Inline { offset, bytes }, 2 Hole { offset, len }, } }
wire! { enum Source { 1 Object { id, home, skip }, 2 Inline { index, n, skip }, 3 Zero, } }
wire! { enum Write {
    0 Create(x), 1 Link(x), 2 Unlink(x), 3 Rename(x), 4 SetAttr(x), 5 Commit(x), 6 Append(x), 7 SetXattr(x),
    8 RemoveXattr(x), 9 SetLock(x), 10 Tmpfile(x),
} }
wire! { enum WriteReply {
    0 Created { attr, existed, parent }, 1 Linked { attr, parent }, 2 Unlinked { ino, nlink, parent },
    3 Renamed { ino, replaced }, 4 Attr(a), 5 Committed(a), 6 Appended { offset, attr },
    7 Locked(a), 8 LockBlocked(by),
} }
wire! { enum Part {
    0 Topology, 1 Remove { parent, name, child, kind }, 2 Insert { parent, name, child, kind, replace },
    3 MakeDirectory { near, parent, mode, uid, gid, depth, project }, 4 AddLink { ino }, 5 DropLink { ino },
    6 RemoveDirectory { ino }, 7 Moved { ino, parent },
} }

use fusefs_types::PartitionId;
use fusefs_types::ops::CommitFile;
newtype! { PartitionId, u64; }
impl Wire for u8 {
    fn put(&self, out: &mut Vec<u8>) {
        Put::u8(out, *self);
    }
    fn get(g: &mut Get<'_>) -> FsResult<Self> {
        g.u8()
    }
}
