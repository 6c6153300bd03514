//! rename within a partition.

use crate::util::*;
use fusefs_meta_state::Plan;
use fusefs_types::{FsError, Ino, Time, ops::RenameMode::*, ops::*};

#[test]
fn moves_and_replaces() {
    let mut r = Rig::new();
    let (a, b, d) = (r.file(ROOT, "a"), r.file(ROOT, "b"), r.mkdir(ROOT, "d"));
    assert_eq!(r.rename((ROOT, "a"), (d, "x"), Replace), Ok(WriteReply::Renamed { ino: a, replaced: None }));
    let now = Time::from(r.stamp());
    assert_eq!((r.attr(a).ctime, r.attr(a).mtime != now), (now, true));
    assert_eq!((r.attr(ROOT).mtime, r.attr(d).mtime), (now, now));
    assert_eq!((r.lookup(ROOT, "a"), r.lookup(d, "x")), (None, Some(a)));
    assert_eq!(r.rename((ROOT, "b"), (d, "x"), Replace), Ok(WriteReply::Renamed { ino: b, replaced: Some(a) }));
    assert_eq!((r.attr(a).nlink, r.attr(a).ctime), (0, Time::from(r.stamp())));
    assert_eq!(err(r.rename((ROOT, "b"), (ROOT, "c"), Replace)), FsError::NotFound);
    r.clean();
}

#[test]
fn types_and_flags() {
    let mut r = Rig::new();
    let (f, g) = (r.file(ROOT, "f"), r.file(ROOT, "g"));
    let (d, full) = (r.mkdir(ROOT, "d"), r.mkdir(ROOT, "full"));
    r.file(full, "x");
    assert_eq!(err(r.rename((ROOT, "d"), (ROOT, "f"), Replace)), FsError::NotDirectory);
    assert_eq!(err(r.rename((ROOT, "f"), (ROOT, "d"), Replace)), FsError::IsDirectory);
    assert_eq!(err(r.rename((ROOT, "d"), (ROOT, "full"), Replace)), FsError::NotEmpty);
    assert_eq!(err(r.rename((ROOT, "f"), (ROOT, "g"), NoReplace)), FsError::Exists);
    assert_eq!(err(r.rename((ROOT, "f"), (ROOT, "none"), Exchange)), FsError::NotFound);
    assert_eq!(
        r.rename((ROOT, "full"), (ROOT, "d"), Replace),
        Ok(WriteReply::Renamed { ino: full, replaced: Some(d) })
    );
    assert_eq!((r.attr(d).nlink, r.attr(ROOT).nlink), (0, 3));
    let sub = r.mkdir(full, "sub");
    assert_eq!(r.rename((ROOT, "f"), (full, "sub"), Exchange), Ok(WriteReply::Renamed { ino: f, replaced: Some(sub) }));
    assert_eq!((r.lookup(ROOT, "f"), r.lookup(full, "sub"), r.attr(sub).parent), (Some(sub), Some(f), ROOT));
    assert_eq!((r.attr(ROOT).nlink, r.attr(full).nlink), (4, 2));
    assert_eq!(r.lookup(ROOT, "g"), Some(g));
    r.clean();
}

#[test]
fn same_inode_is_nothing() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    r.link(f, ROOT, "g").unwrap();
    let before = (r.attr(f), r.attr(ROOT));
    assert_eq!(r.rename((ROOT, "f"), (ROOT, "g"), Replace), Ok(WriteReply::Renamed { ino: f, replaced: None }));
    assert_eq!(r.rename((ROOT, "f"), (ROOT, "f"), Replace), Ok(WriteReply::Renamed { ino: f, replaced: None }));
    assert_eq!(err(r.rename((ROOT, "f"), (ROOT, "f"), NoReplace)), FsError::Exists);
    assert_eq!((r.attr(f), r.attr(ROOT)), before, "POSIX: both names stay, nothing is touched");
    r.clean();
}

#[test]
fn directories_do_not_swallow_themselves() {
    let mut r = Rig::new();
    let a = r.mkdir(ROOT, "a");
    let b = r.mkdir(a, "b");
    let c = r.mkdir(b, "c");
    assert_eq!(err(r.rename((ROOT, "a"), (c, "x"), Replace)), FsError::Invalid);
    assert_eq!(err(r.rename((ROOT, "a"), (a, "x"), Replace)), FsError::Invalid);
    assert_eq!(err(r.rename((ROOT, "a"), (b, "c"), Exchange)), FsError::Invalid);
    assert_eq!(err(r.rename((b, "c"), (ROOT, "a"), Exchange)), FsError::Invalid);
    assert_eq!(err(r.rename((b, "c"), (ROOT, "a"), Replace)), FsError::NotEmpty);
    r.rename((b, "c"), (ROOT, "c"), Replace).unwrap();
    assert_eq!((r.attr(c).parent, r.attr(b).nlink, r.attr(ROOT).nlink), (ROOT, 2, 4));
    r.rename((ROOT, "a"), (c, "x"), Replace).unwrap();
    r.clean();
}

#[test]
fn plans() {
    let mut r = Rig::new();
    let (d, f) = (r.mkdir(ROOT, "d"), r.file(ROOT, "f"));
    let plan = |r: &Rig, s: &str, new_parent, mode| {
        r.p.plan(&Write::Rename(Rename { parent: ROOT, name: name(s), new_parent, new_name: name("n"), mode }))
    };
    assert_eq!(plan(&r, "f", d, Replace), Plan::Local);
    assert_eq!(plan(&r, "f", Ino(1 << 30), Replace), Plan::Transaction);
    assert_eq!(plan(&r, "d", Ino(1 << 30), Replace), Plan::Transaction);
    assert_eq!(err(r.rename((ROOT, "f"), (Ino(1 << 30), "n"), Exchange)), FsError::Invalid);
    assert_eq!(err(r.rename((ROOT, "f"), (Ino(1 << 30), "n"), Replace)), FsError::Conflict);
    assert_eq!(r.lookup(ROOT, "f"), Some(f));
}
