//! From a client's request to the parts of its transaction.

use crate::{Partition, record::Dentry, txn::locks};
use fusefs_types::{
    FileKind, FsError, FsResult, Ino, Name, RangeKey,
    ops::{Create, Link, NewNode, Rename, RenameMode, Unlink, Write, WriteReply},
    txn::Part,
};

/// What a request needs.
pub(crate) enum Derived {
    /// Nothing to do: the reply.
    Nothing(WriteReply),
    /// These parts; Topology, if any, is the first.
    Parts(Vec<Part>),
}

/// Errors are those of the operation as far as the coordinator can see; Conflict when a name is locked; Invalid for a
/// request that never spans partitions.
pub(crate) fn parts(p: &Partition, write: &Write, spill_to: Option<RangeKey>) -> FsResult<Derived> {
    match write {
        Write::Create(x) => create(p, x, spill_to),
        Write::Link(x) => Ok(Derived::Parts(link(x))),
        Write::Unlink(x) => unlink(p, x),
        Write::Rename(x) => rename(p, x),
        _ => Err(FsError::Invalid),
    }
}

fn create(p: &Partition, x: &Create, spill_to: Option<RangeKey>) -> FsResult<Derived> {
    let (NewNode::Directory, Some(near)) = (&x.node, spill_to) else { return Err(FsError::Invalid) };
    let parent = p.dir(x.parent)?;
    let set_gid = parent.mode & 0o2000;
    Ok(Derived::Parts(vec![
        Part::Insert {
            parent: x.parent,
            name: x.name.clone(),
            child: Ino(0),
            kind: FileKind::Directory,
            replace: false,
        },
        Part::MakeDirectory {
            near,
            parent: x.parent,
            mode: (x.mode & 0o7777) | set_gid,
            uid: x.uid,
            gid: if set_gid != 0 { parent.gid } else { x.gid },
            depth: parent.depth.saturating_add(1),
            project: parent.project,
        },
    ]))
}

fn link(x: &Link) -> Vec<Part> {
    vec![
        // The type comes with AddLink's answer, before the commit; it is never a directory.
        Part::Insert { parent: x.parent, name: x.name.clone(), child: x.ino, kind: FileKind::Regular, replace: false },
        Part::AddLink { ino: x.ino },
    ]
}

/// Entry of a name in a directory of ours.
fn entry(p: &Partition, parent: Ino, name: &Name) -> FsResult<Dentry> {
    p.dir(parent)?;
    locks::name_free(p, parent, name)?;
    p.find(parent, name).map(|(_, d)| d).ok_or(FsError::NotFound)
}

fn remove(parent: Ino, name: &Name, d: &Dentry) -> Part {
    Part::Remove { parent, name: name.clone(), child: d.ino, kind: d.kind }
}

fn unlink(p: &Partition, x: &Unlink) -> FsResult<Derived> {
    let d = entry(p, x.parent, &x.name)?;
    let last = match (d.kind == FileKind::Directory, x.directory) {
        (true, false) => return Err(FsError::IsDirectory),
        (false, true) => return Err(FsError::NotDirectory),
        (true, true) => Part::RemoveDirectory { ino: d.ino },
        (false, false) => Part::DropLink { ino: d.ino },
    };
    Ok(Derived::Parts(vec![remove(x.parent, &x.name, &d), last]))
}

fn rename(p: &Partition, x: &Rename) -> FsResult<Derived> {
    if x.mode == RenameMode::Exchange {
        return Err(FsError::Invalid);
    }
    let d = entry(p, x.parent, &x.name)?;
    if x.parent == x.new_parent && x.name == x.new_name {
        if x.mode == RenameMode::NoReplace {
            return Err(FsError::Exists);
        }
        return Ok(Derived::Nothing(WriteReply::Renamed { ino: d.ino, replaced: None }));
    }
    if d.ino == x.new_parent {
        return Err(FsError::Invalid);
    }
    let mut parts = Vec::with_capacity(5);
    if d.kind == FileKind::Directory && x.parent != x.new_parent {
        parts.push(Part::Topology);
    }
    parts.push(remove(x.parent, &x.name, &d));
    parts.push(Part::Insert {
        parent: x.new_parent,
        name: x.new_name.clone(),
        child: d.ino,
        kind: d.kind,
        replace: x.mode == RenameMode::Replace,
    });
    parts.push(Part::Moved { ino: d.ino, parent: x.new_parent });
    Ok(Derived::Parts(parts))
}
