//! Mutations, questions and their replies.

use super::{
    common::{self, list, need},
    data::{self, attr, from_attr, from_name, need_attr},
    lock,
};
use crate::metanode::v1 as pb;
use fusefs_types::{
    Attr, FsError, FsResult, Hlc, Ino, PartitionId, Time, limits,
    ops::{
        Append, Commit, CommitFile, Create, DirEntry, Envelope, Link, NewNode, Read, ReadReply, RemoveXattr, Rename,
        RenameMode, Reply, ReplyHead, SetAttr, SetTime, SetXattr, Tmpfile, Unlink, Write, WriteReply, XattrMode,
    },
};

/// Fields of a response: head, answer, refusal.
type Parts<T> = (Option<crate::common::v1::ReplyHead>, Result<T, crate::common::v1::Refusal>);

/// Reply head to the wire.
pub fn head(h: ReplyHead) -> crate::common::v1::ReplyHead {
    crate::common::v1::ReplyHead { hlc: h.hlc.0, map_generation: h.map_generation }
}

/// Reply head from the wire.
pub fn from_head(h: Option<crate::common::v1::ReplyHead>) -> ReplyHead {
    h.map_or_else(ReplyHead::default, |h| ReplyHead { hlc: Hlc(h.hlc), map_generation: h.map_generation })
}

/// Assembles a [`Reply`] from the fields of a response.
pub fn from_parts<A, B>((h, result): Parts<A>, f: impl FnOnce(A) -> FsResult<B>) -> FsResult<Reply<B>> {
    let result = match result {
        Ok(reply) => Ok(f(reply)?),
        Err(refusal) => Err(common::from_refusal(refusal)),
    };
    Ok(Reply { head: from_head(h), result })
}

fn create(c: &Create) -> pb::Create {
    use pb::create::Node as N;
    let node = match &c.node {
        NewNode::File => N::File(pb::Empty {}),
        NewNode::Directory => N::Directory(pb::Empty {}),
        NewNode::Symlink(target) => N::Symlink(target.clone()),
        NewNode::Special(kind, rdev) => N::Special(pb::Special { kind: data::kind(*kind), rdev: *rdev }),
    };
    pb::Create {
        parent: c.parent.0,
        name: c.name.bytes().clone(),
        node: Some(node),
        mode: u32::from(c.mode),
        uid: c.uid,
        gid: c.gid,
        exclusive: c.exclusive,
    }
}

fn from_create(c: pb::Create) -> FsResult<Create> {
    use fusefs_types::FileKind as K;
    use pb::create::Node as N;
    let node = match c.node.ok_or(FsError::UpgradeNeeded)? {
        N::File(_) => NewNode::File,
        N::Directory(_) => NewNode::Directory,
        N::Symlink(target) => NewNode::Symlink(data::from_target(target)?),
        N::Special(s) => match data::from_kind(s.kind)? {
            K::Regular | K::Directory | K::Symlink => return Err(FsError::Invalid),
            kind => NewNode::Special(kind, s.rdev),
        },
    };
    Ok(Create {
        parent: Ino(c.parent),
        name: from_name(c.name)?,
        node,
        mode: data::from_mode(c.mode)?,
        uid: c.uid,
        gid: c.gid,
        exclusive: c.exclusive,
    })
}

fn rename(r: &Rename) -> pb::Rename {
    let mode = match r.mode {
        RenameMode::Replace => pb::RenameMode::Replace,
        RenameMode::NoReplace => pb::RenameMode::NoReplace,
        RenameMode::Exchange => pb::RenameMode::Exchange,
    };
    pb::Rename {
        parent: r.parent.0,
        name: r.name.bytes().clone(),
        new_parent: r.new_parent.0,
        new_name: r.new_name.bytes().clone(),
        mode: mode.into(),
    }
}

fn from_rename(r: pb::Rename) -> FsResult<Rename> {
    let mode = match pb::RenameMode::try_from(r.mode) {
        Ok(pb::RenameMode::Replace) => RenameMode::Replace,
        Ok(pb::RenameMode::NoReplace) => RenameMode::NoReplace,
        Ok(pb::RenameMode::Exchange) => RenameMode::Exchange,
        Err(_) => return Err(FsError::Invalid),
    };
    Ok(Rename {
        parent: Ino(r.parent),
        name: from_name(r.name)?,
        new_parent: Ino(r.new_parent),
        new_name: from_name(r.new_name)?,
        mode,
    })
}

fn set_time(t: SetTime) -> pb::SetTime {
    use pb::set_time::Time as T;
    let time = match t {
        SetTime::Now => T::Now(pb::Empty {}),
        SetTime::At(t) => T::At(t.0),
    };
    pb::SetTime { time: Some(time) }
}

fn from_set_time(t: pb::SetTime) -> FsResult<SetTime> {
    use pb::set_time::Time as T;
    Ok(match t.time.ok_or(FsError::UpgradeNeeded)? {
        T::Now(_) => SetTime::Now,
        T::At(ns) => SetTime::At(Time(ns)),
    })
}

fn set_attr(s: &SetAttr) -> pb::SetAttr {
    pb::SetAttr {
        ino: s.ino.0,
        mode: s.mode.map(u32::from),
        uid: s.uid,
        gid: s.gid,
        size: s.size,
        atime: s.atime.map(set_time),
        mtime: s.mtime.map(set_time),
        ctime: s.ctime.map(|t| t.0),
        kill_priv: s.kill_priv,
    }
}

fn from_set_attr(s: pb::SetAttr) -> FsResult<SetAttr> {
    Ok(SetAttr {
        ino: Ino(s.ino),
        mode: s.mode.map(data::from_mode).transpose()?,
        uid: s.uid,
        gid: s.gid,
        size: s.size.map(data::from_size).transpose()?,
        atime: s.atime.map(from_set_time).transpose()?,
        mtime: s.mtime.map(from_set_time).transpose()?,
        ctime: s.ctime.map(Time),
        kill_priv: s.kill_priv,
    })
}

fn commit_file(f: &CommitFile) -> pb::CommitFile {
    pb::CommitFile {
        ino: f.ino.0,
        trunc_seq: f.trunc_seq,
        pieces: f.pieces.iter().map(data::piece).collect(),
        mtime: f.mtime.map(|t| t.0),
        grow_to: f.grow_to,
        kill_priv: f.kill_priv,
    }
}

fn from_commit_file(f: pb::CommitFile) -> FsResult<CommitFile> {
    Ok(CommitFile {
        ino: Ino(f.ino),
        trunc_seq: f.trunc_seq,
        pieces: list(f.pieces, limits::COMMIT_ITEMS_MAX, data::from_piece)?,
        mtime: f.mtime.map(Time),
        grow_to: data::from_size(f.grow_to)?,
        kill_priv: f.kill_priv,
    })
}

fn from_commit(c: pb::Commit) -> FsResult<Commit> {
    let files = list(c.files, limits::COMMIT_ITEMS_MAX, from_commit_file)?;
    let pieces: usize = files.iter().map(|f| f.pieces.len()).sum();
    let inline: usize = files.iter().map(|f| data::inline_bytes(&f.pieces)).sum();
    if files.is_empty() || pieces > limits::COMMIT_ITEMS_MAX || inline > limits::INLINE_COMMIT_BYTES_MAX {
        return Err(FsError::Invalid);
    }
    Ok(Commit { files })
}

fn from_append(a: pb::Append) -> FsResult<Append> {
    let pieces = list(a.pieces, limits::COMMIT_ITEMS_MAX, data::from_piece)?;
    if data::inline_bytes(&pieces) > limits::INLINE_COMMIT_BYTES_MAX {
        return Err(FsError::Invalid);
    }
    Ok(Append { ino: Ino(a.ino), pieces, len: data::from_size(a.len)? })
}

fn set_xattr(x: &SetXattr) -> pb::SetXattr {
    let mode = match x.mode {
        XattrMode::Any => pb::XattrMode::Any,
        XattrMode::Create => pb::XattrMode::Create,
        XattrMode::Replace => pb::XattrMode::Replace,
    };
    pb::SetXattr { ino: x.ino.0, name: x.name.clone(), value: x.value.clone(), mode: mode.into() }
}

fn from_set_xattr(x: pb::SetXattr) -> FsResult<SetXattr> {
    let mode = match pb::XattrMode::try_from(x.mode) {
        Ok(pb::XattrMode::Any) => XattrMode::Any,
        Ok(pb::XattrMode::Create) => XattrMode::Create,
        Ok(pb::XattrMode::Replace) => XattrMode::Replace,
        Err(_) => return Err(FsError::Invalid),
    };
    Ok(SetXattr {
        ino: Ino(x.ino),
        name: data::from_xattr_name(x.name)?,
        value: data::from_xattr_value(x.value)?,
        mode,
    })
}

/// Mutation to the wire.
pub fn write(w: &Write) -> pb::WriteOp {
    use pb::write_op::Op;
    let op = match w {
        Write::Create(c) => Op::Create(create(c)),
        Write::Link(l) => Op::Link(pb::Link { ino: l.ino.0, parent: l.parent.0, name: l.name.bytes().clone() }),
        Write::Unlink(u) => {
            Op::Unlink(pb::Unlink { parent: u.parent.0, name: u.name.bytes().clone(), directory: u.directory })
        }
        Write::Rename(r) => Op::Rename(rename(r)),
        Write::SetAttr(s) => Op::SetAttr(set_attr(s)),
        Write::Commit(c) => Op::Commit(pb::Commit { files: c.files.iter().map(commit_file).collect() }),
        Write::Append(a) => {
            let pieces = a.pieces.iter().map(data::piece).collect();
            Op::Append(pb::Append { ino: a.ino.0, pieces, len: a.len })
        }
        Write::SetXattr(x) => Op::SetXattr(set_xattr(x)),
        Write::RemoveXattr(x) => Op::RemoveXattr(pb::RemoveXattr { ino: x.ino.0, name: x.name.clone() }),
        Write::SetLock(x) => Op::SetLock(lock::set_lock(x)),
        Write::Tmpfile(x) => {
            Op::Tmpfile(pb::Tmpfile { parent: x.parent.0, mode: x.mode.into(), uid: x.uid, gid: x.gid })
        }
    };
    pb::WriteOp { op: Some(op) }
}

/// Mutation from the wire.
pub fn from_write(w: Option<pb::WriteOp>) -> FsResult<Write> {
    use pb::write_op::Op;
    Ok(match w.and_then(|w| w.op).ok_or(FsError::UpgradeNeeded)? {
        Op::Create(c) => Write::Create(from_create(c)?),
        Op::Link(l) => Write::Link(Link { ino: Ino(l.ino), parent: Ino(l.parent), name: from_name(l.name)? }),
        Op::Unlink(u) => {
            Write::Unlink(Unlink { parent: Ino(u.parent), name: from_name(u.name)?, directory: u.directory })
        }
        Op::Rename(r) => Write::Rename(from_rename(r)?),
        Op::SetAttr(s) => Write::SetAttr(from_set_attr(s)?),
        Op::Commit(c) => Write::Commit(from_commit(c)?),
        Op::Append(a) => Write::Append(from_append(a)?),
        Op::SetXattr(x) => Write::SetXattr(from_set_xattr(x)?),
        Op::RemoveXattr(x) => Write::RemoveXattr(RemoveXattr { ino: Ino(x.ino), name: data::from_xattr_name(x.name)? }),
        Op::SetLock(x) => Write::SetLock(lock::from_set_lock(x)?),
        Op::Tmpfile(x) => {
            let mode = u16::try_from(x.mode).map_err(|_| FsError::Invalid)?;
            Write::Tmpfile(Tmpfile { parent: Ino(x.parent), mode, uid: x.uid, gid: x.gid })
        }
    })
}

/// Answer of a mutation to the wire.
pub fn write_reply(r: &WriteReply) -> pb::WriteReply {
    use pb::write_reply::Reply as R;
    let some = |a: &Attr| Some(attr(a));
    let reply = match r {
        WriteReply::Created { attr, existed, parent } => {
            R::Created(pb::Created { attr: some(attr), existed: *existed, parent: some(parent) })
        }
        WriteReply::Linked { attr, parent } => R::Linked(pb::Linked { attr: some(attr), parent: some(parent) }),
        WriteReply::Unlinked { ino, nlink, parent } => {
            R::Unlinked(pb::Unlinked { ino: ino.0, nlink: *nlink, parent: some(parent) })
        }
        WriteReply::Renamed { ino, replaced } => {
            R::Renamed(pb::Renamed { ino: ino.0, replaced: replaced.map(|i| i.0) })
        }
        WriteReply::Attr(a) => R::Attr(attr(a)),
        WriteReply::Committed(attrs) => R::Committed(pb::Committed { attrs: attrs.iter().map(attr).collect() }),
        WriteReply::Appended { offset, attr } => R::Appended(pb::Appended { offset: *offset, attr: some(attr) }),
        WriteReply::Locked(a) => R::Locked(attr(a)),
        WriteReply::LockBlocked(by) => R::LockBlocked(lock::held(by)),
    };
    pb::WriteReply { reply: Some(reply) }
}

/// Answer of a mutation from the wire.
pub fn from_write_reply(r: pb::WriteReply) -> FsResult<WriteReply> {
    use pb::write_reply::Reply as R;
    Ok(match r.reply.ok_or(FsError::UpgradeNeeded)? {
        R::Created(c) => {
            WriteReply::Created { attr: need_attr(c.attr)?, existed: c.existed, parent: need_attr(c.parent)? }
        }
        R::Linked(l) => WriteReply::Linked { attr: need_attr(l.attr)?, parent: need_attr(l.parent)? },
        R::Unlinked(u) => WriteReply::Unlinked { ino: Ino(u.ino), nlink: u.nlink, parent: need_attr(u.parent)? },
        R::Renamed(r) => WriteReply::Renamed { ino: Ino(r.ino), replaced: r.replaced.map(Ino) },
        R::Attr(a) => WriteReply::Attr(from_attr(a)?),
        R::Committed(c) => WriteReply::Committed(list(c.attrs, limits::COMMIT_ITEMS_MAX, from_attr)?),
        R::Appended(a) => WriteReply::Appended { offset: a.offset, attr: need_attr(a.attr)? },
        R::Locked(a) => WriteReply::Locked(from_attr(a)?),
        R::LockBlocked(by) => WriteReply::LockBlocked(lock::from_held(by)?),
    })
}

/// Question to the wire.
pub fn read(r: &Read) -> pb::ReadOp {
    use pb::read_op::Op;
    let op = match r {
        Read::Lookup { parent, name } => Op::Lookup(pb::Lookup { parent: parent.0, name: name.bytes().clone() }),
        Read::GetAttr { ino } => Op::GetAttr(pb::GetAttr { ino: ino.0 }),
        Read::Open { ino, write } => Op::Open(pb::Open { ino: ino.0, write: *write }),
        Read::Close { ino } => Op::Close(pb::Close { ino: ino.0 }),
        Read::ReadLink { ino } => Op::ReadLink(pb::ReadLink { ino: ino.0 }),
        Read::ReadDir { ino, after, limit, plus } => {
            Op::ReadDir(pb::ReadDir { ino: ino.0, after: *after, limit: *limit, plus: *plus })
        }
        Read::GetXattr { ino, name } => Op::GetXattr(pb::GetXattr { ino: ino.0, name: name.clone() }),
        Read::ListXattr { ino } => Op::ListXattr(pb::ListXattr { ino: ino.0 }),
        Read::Extents { ino, offset, len } => Op::Extents(pb::GetExtents { ino: ino.0, offset: *offset, len: *len }),
        Read::GetLock { ino, owner, start, end, write, wait } => Op::GetLock(pb::GetLock {
            ino: ino.0,
            owner: Some(lock::owner(*owner)),
            start: *start,
            end: *end,
            write: *write,
            wait: *wait,
        }),
        Read::ListLocks { ino } => Op::ListLocks(pb::ListLocks { ino: ino.0 }),
        Read::StatFs => Op::StatFs(pb::Empty {}),
    };
    pb::ReadOp { op: Some(op) }
}

/// Question from the wire; a readdir limit above the largest is lowered to it.
pub fn from_read(r: Option<pb::ReadOp>) -> FsResult<Read> {
    use pb::read_op::Op;
    Ok(match r.and_then(|r| r.op).ok_or(FsError::UpgradeNeeded)? {
        Op::Lookup(l) => Read::Lookup { parent: Ino(l.parent), name: from_name(l.name)? },
        Op::GetAttr(g) => Read::GetAttr { ino: Ino(g.ino) },
        Op::Open(o) => Read::Open { ino: Ino(o.ino), write: o.write },
        Op::Close(c) => Read::Close { ino: Ino(c.ino) },
        Op::ReadLink(l) => Read::ReadLink { ino: Ino(l.ino) },
        Op::ReadDir(d) => Read::ReadDir {
            ino: Ino(d.ino),
            after: d.after,
            limit: d.limit.min(limits::READDIR_ENTRIES_MAX as u32),
            plus: d.plus,
        },
        Op::GetXattr(x) => Read::GetXattr { ino: Ino(x.ino), name: data::from_xattr_name(x.name)? },
        Op::ListXattr(x) => Read::ListXattr { ino: Ino(x.ino) },
        Op::Extents(e) => Read::Extents { ino: Ino(e.ino), offset: e.offset, len: e.len },
        Op::GetLock(g) => lock::from_get_lock(g)?,
        Op::ListLocks(l) => Read::ListLocks { ino: Ino(l.ino) },
        Op::StatFs(_) => Read::StatFs,
    })
}

fn dir_entry(e: &DirEntry) -> pb::DirEntry {
    pb::DirEntry {
        name: e.name.bytes().clone(),
        ino: e.ino.0,
        kind: data::kind(e.kind),
        cookie: e.cookie,
        attr: e.attr.as_ref().map(attr),
    }
}

fn from_dir_entry(e: pb::DirEntry) -> FsResult<DirEntry> {
    Ok(DirEntry {
        name: from_name(e.name)?,
        ino: Ino(e.ino),
        kind: data::from_kind(e.kind)?,
        cookie: e.cookie,
        attr: e.attr.map(from_attr).transpose()?,
    })
}

/// Answer of a question to the wire.
pub fn read_reply(r: &ReadReply) -> pb::ReadReply {
    use pb::read_reply::Reply as R;
    let reply = match r {
        ReadReply::Entry { entry, attr: a, parent } => R::Entry(pb::Entry {
            entry: entry.map(|(ino, kind)| pb::Child { ino: ino.0, kind: data::kind(kind) }),
            attr: a.as_ref().map(attr),
            parent: Some(attr(parent)),
        }),
        ReadReply::Attr(a) => R::Attr(attr(a)),
        ReadReply::Closed => R::Closed(pb::Empty {}),
        ReadReply::Target(t) => R::Target(t.clone()),
        ReadReply::Entries { entries, end, dir } => R::Entries(pb::Entries {
            entries: entries.iter().map(dir_entry).collect(),
            end: *end,
            dir: Some(attr(dir)),
        }),
        ReadReply::Xattr(v) => R::Xattr(v.clone()),
        ReadReply::XattrNames(names) => R::XattrNames(pb::XattrNames { names: names.clone() }),
        ReadReply::Extents { attr: a, extents, inline, end } => R::Extents(pb::Extents {
            attr: Some(attr(a)),
            extents: extents.iter().map(data::extent).collect(),
            inline: inline.iter().map(|(extent, b)| pb::InlineBytes { extent: *extent, bytes: b.clone() }).collect(),
            end: *end,
        }),
        ReadReply::Lock(l) => R::Lock(pb::FoundLock { lock: l.as_ref().map(lock::held) }),
        ReadReply::Locks(all) => R::Locks(pb::HeldLocks { locks: all.iter().map(lock::held).collect() }),
        ReadReply::StatFs(u) => R::StatFs(common::usage(u)),
    };
    pb::ReadReply { reply: Some(reply) }
}

/// Answer of a question from the wire.
pub fn from_read_reply(r: pb::ReadReply) -> FsResult<ReadReply> {
    use pb::read_reply::Reply as R;
    Ok(match r.reply.ok_or(FsError::UpgradeNeeded)? {
        R::Entry(e) => ReadReply::Entry {
            entry: e.entry.map(from_child).transpose()?,
            attr: e.attr.map(from_attr).transpose()?,
            parent: need_attr(e.parent)?,
        },
        R::Attr(a) => ReadReply::Attr(from_attr(a)?),
        R::Closed(_) => ReadReply::Closed,
        R::Target(t) => ReadReply::Target(data::from_target(t)?),
        R::Entries(e) => ReadReply::Entries {
            entries: list(e.entries, limits::READDIR_ENTRIES_MAX, from_dir_entry)?,
            end: e.end,
            dir: need_attr(e.dir)?,
        },
        R::Xattr(v) => ReadReply::Xattr(data::from_xattr_value(v)?),
        R::XattrNames(x) => ReadReply::XattrNames(list(x.names, limits::XATTR_LIST_MAX, data::from_xattr_name)?),
        R::Extents(e) => from_extents(e)?,
        R::Lock(l) => ReadReply::Lock(l.lock.map(lock::from_held).transpose()?),
        R::Locks(l) => ReadReply::Locks(list(l.locks, 2 * limits::LOCKS_PER_INODE_MAX, lock::from_held)?),
        R::StatFs(u) => ReadReply::StatFs(common::from_usage(u)),
    })
}

/// Inode and type.
pub fn from_child(c: pb::Child) -> FsResult<(Ino, fusefs_types::FileKind)> {
    Ok((Ino(c.ino), data::from_kind(c.kind)?))
}

fn from_extents(e: pb::Extents) -> FsResult<ReadReply> {
    let extents = list(e.extents, limits::EXTENTS_REPLY_MAX, data::from_extent)?;
    let inline = list(e.inline, limits::EXTENTS_REPLY_MAX, |i| {
        if i.extent as usize >= extents.len() {
            return Err(FsError::Invalid);
        }
        Ok((i.extent, i.bytes))
    })?;
    Ok(ReadReply::Extents { attr: need_attr(e.attr)?, extents, inline, end: e.end })
}

/// Mutation RPC to the wire.
pub fn write_request(e: &Envelope, w: &Write) -> pb::WriteRequest {
    pb::WriteRequest { envelope: Some(common::envelope(e)), op: Some(write(w)) }
}

/// Mutation RPC from the wire.
pub fn from_write_request(r: pb::WriteRequest) -> FsResult<(Envelope, Write)> {
    Ok((common::from_envelope(r.envelope)?, from_write(r.op)?))
}

/// Answer of a mutation RPC to the wire.
pub fn write_response(r: &Reply<WriteReply>) -> pb::WriteResponse {
    use pb::write_response::Result as R;
    let result = match &r.result {
        Ok(reply) => R::Reply(write_reply(reply)),
        Err(refusal) => R::Refusal(common::refusal(refusal)),
    };
    pb::WriteResponse { head: Some(head(r.head)), result: Some(result) }
}

/// Answer of a mutation RPC from the wire.
pub fn from_write_response(r: pb::WriteResponse) -> FsResult<Reply<WriteReply>> {
    use pb::write_response::Result as R;
    let result = match need(r.result)? {
        R::Reply(reply) => Ok(reply),
        R::Refusal(refusal) => Err(refusal),
    };
    from_parts((r.head, result), from_write_reply)
}

/// Question RPC to the wire. `partition` 0 = the owner of the question's key.
pub fn read_request(e: &Envelope, partition: PartitionId, r: &Read) -> pb::ReadRequest {
    pb::ReadRequest { envelope: Some(common::envelope(e)), op: Some(read(r)), partition: partition.0 }
}

/// Question RPC from the wire.
pub fn from_read_request(r: pb::ReadRequest) -> FsResult<(Envelope, PartitionId, Read)> {
    Ok((common::from_envelope(r.envelope)?, PartitionId(r.partition), from_read(r.op)?))
}

/// Answer of a question RPC to the wire.
pub fn read_response(r: &Reply<ReadReply>) -> pb::ReadResponse {
    use pb::read_response::Result as R;
    let result = match &r.result {
        Ok(reply) => R::Reply(read_reply(reply)),
        Err(refusal) => R::Refusal(common::refusal(refusal)),
    };
    pb::ReadResponse { head: Some(head(r.head)), result: Some(result) }
}

/// Answer of a question RPC from the wire.
pub fn from_read_response(r: pb::ReadResponse) -> FsResult<Reply<ReadReply>> {
    use pb::read_response::Result as R;
    let result = match need(r.result)? {
        R::Reply(reply) => Ok(reply),
        R::Refusal(refusal) => Err(refusal),
    };
    from_parts((r.head, result), from_read_reply)
}
