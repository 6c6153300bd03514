//! What the answers of the parts add up to.

use crate::record::TxnRecord;
use fusefs_types::{
    Attr, FsError, FsResult,
    ops::{Write, WriteReply},
    txn::{Part, PartReply},
};

fn answer(r: &TxnRecord, wanted: impl Fn(&Part) -> bool) -> Option<&PartReply> {
    r.parts.iter().find(|(part, _)| wanted(part)).and_then(|(_, (_, reply))| reply.as_ref())
}

fn attr(r: &TxnRecord, wanted: impl Fn(&Part) -> bool) -> FsResult<Attr> {
    answer(r, wanted).and_then(|reply| reply.attr).ok_or(FsError::Io)
}

/// At the decision: the insert learns the number of a new directory and the type of a linked inode.
pub(crate) fn complete(r: &mut TxnRecord) {
    let known = attr(r, |part| matches!(part, Part::MakeDirectory { .. } | Part::AddLink { .. }));
    for (part, _) in &mut r.parts {
        if let (Part::Insert { child, kind, .. }, Ok(attr)) = (part, known) {
            (*child, *kind) = (attr.ino, attr.kind);
        }
    }
}

/// Reply of a committed transaction. Io only if an answer is missing (a damaged record).
pub(crate) fn build(r: &TxnRecord) -> FsResult<WriteReply> {
    let insert = |part: &Part| matches!(part, Part::Insert { .. });
    let remove = |part: &Part| matches!(part, Part::Remove { .. });
    match &r.write {
        Write::Create(_) => Ok(WriteReply::Created {
            attr: attr(r, |part| matches!(part, Part::MakeDirectory { .. }))?,
            existed: false,
            parent: attr(r, insert)?,
        }),
        Write::Link(_) => Ok(WriteReply::Linked {
            attr: attr(r, |part| matches!(part, Part::AddLink { .. }))?,
            parent: attr(r, insert)?,
        }),
        Write::Unlink(_) => {
            let gone = attr(r, |part| matches!(part, Part::DropLink { .. } | Part::RemoveDirectory { .. }))?;
            Ok(WriteReply::Unlinked { ino: gone.ino, nlink: gone.nlink, parent: attr(r, remove)? })
        }
        Write::Rename(_) => {
            let replaced = answer(r, insert).and_then(|reply| reply.existing).map(|(ino, _)| ino);
            match no_op(r)? {
                WriteReply::Renamed { ino, .. } => Ok(WriteReply::Renamed { ino, replaced }),
                _ => Err(FsError::Io),
            }
        }
        _ => Err(FsError::Io),
    }
}

/// Reply of a rename between two names of one inode.
pub(crate) fn no_op(r: &TxnRecord) -> FsResult<WriteReply> {
    r.parts
        .iter()
        .find_map(|(part, _)| match part {
            Part::Remove { child, .. } => Some(WriteReply::Renamed { ino: *child, replaced: None }),
            _ => None,
        })
        .ok_or(FsError::Io)
}
