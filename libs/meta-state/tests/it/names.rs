//! create, link, unlink, rmdir, setattr, xattrs.

use crate::util::*;
use bytes::Bytes;
use fusefs_meta_state::{Plan, Work};
use fusefs_types::{FileKind, FsError, Ino, KeyRange, SessionId, Time, limits, ops::*, txn::Internal};

#[test]
fn create_touches_parent_and_counts() {
    let mut r = Rig::new();
    let before = r.attr(ROOT);
    let a = r.create(ROOT, "a", NewNode::File).unwrap();
    let now = Time::from(r.stamp());
    assert_eq!((a.kind, a.mode, a.uid, a.gid, a.nlink, a.size), (FileKind::Regular, 0o644, 10, 20, 1, 0));
    assert_eq!((a.atime, a.mtime, a.ctime, a.btime, a.change), (now, now, now, now, r.stamp()));
    let root = r.attr(ROOT);
    assert_eq!((root.mtime, root.ctime, root.nlink, root.atime), (now, now, 2, before.atime));
    assert_eq!(r.lookup(ROOT, "a"), Some(a.ino));
    assert_eq!(err(r.create(ROOT, "a", NewNode::File)), FsError::Exists);
    assert_eq!(err(r.create(ROOT, "a", NewNode::Directory)), FsError::Exists);
    assert_eq!(err(r.create(a.ino, "x", NewNode::File)), FsError::NotDirectory);
    assert_eq!(err(r.create(Ino(999), "x", NewNode::File)), FsError::NotFound);
    let d = r.create(ROOT, "d", NewNode::Directory).unwrap();
    assert_eq!((d.nlink, d.parent), (2, ROOT));
    assert_eq!(r.attr(ROOT).nlink, 3);
    r.clean();
}

#[test]
fn non_exclusive_create_finds() {
    let mut r = Rig::new();
    let ino = r.file(ROOT, "a");
    r.mkdir(ROOT, "d");
    r.create(ROOT, "s", NewNode::Symlink(Bytes::from_static(b"a"))).unwrap();
    let open = |r: &mut Rig, s: &str| {
        let c = Create { parent: ROOT, name: name(s), node: NewNode::File, mode: 0, uid: 0, gid: 0, exclusive: false };
        r.write(Write::Create(c))
    };
    let before = r.attr(ROOT);
    match open(&mut r, "a").unwrap() {
        WriteReply::Created { attr, existed: true, parent } => assert_eq!((attr.ino, parent), (ino, before)),
        other => panic!("{other:?}"),
    }
    assert_eq!(err(open(&mut r, "d")), FsError::IsDirectory);
    assert_eq!(err(open(&mut r, "s")), FsError::Exists);
}

#[test]
fn set_gid_directories_inherit() {
    let mut r = Rig::new();
    let d = r.mkdir(ROOT, "d");
    r.setattr(SetAttr { ino: d, gid: Some(77), mode: Some(0o2755), ..SetAttr::default() }).unwrap();
    let f = r.create(d, "f", NewNode::File).unwrap();
    assert_eq!((f.gid, f.mode), (77, 0o644));
    let sub = r.create(d, "sub", NewNode::Directory).unwrap();
    assert_eq!((sub.gid, sub.mode), (77, 0o2644));
}

#[test]
fn symlinks_and_devices() {
    let mut r = Rig::new();
    let s = r.create(ROOT, "s", NewNode::Symlink(Bytes::from_static(b"../x"))).unwrap();
    assert_eq!((s.kind, s.mode, s.size), (FileKind::Symlink, 0o777, 4));
    assert_eq!(r.read(Read::ReadLink { ino: s.ino }), Ok(ReadReply::Target(Bytes::from_static(b"../x"))));
    assert_eq!(err(r.read(Read::ReadLink { ino: ROOT })), FsError::Invalid);
    let long = Bytes::from(vec![b'x'; limits::SYMLINK_MAX + 1]);
    assert_eq!(err(r.create(ROOT, "t", NewNode::Symlink(long.clone()))), FsError::NameTooLong);
    assert_eq!(err(r.create(ROOT, "t", NewNode::Symlink(Bytes::new()))), FsError::NotFound);
    r.create(ROOT, "t", NewNode::Symlink(long.slice(1..))).unwrap();
    for (i, kind) in
        [FileKind::Fifo, FileKind::Socket, FileKind::CharDevice, FileKind::BlockDevice].into_iter().enumerate()
    {
        let a = r.create(ROOT, &format!("n{i}"), NewNode::Special(kind, 0x501)).unwrap();
        assert_eq!((a.kind, a.rdev), (kind, if i < 2 { 0 } else { 0x501 }));
    }
    assert_eq!(err(r.create(ROOT, "z", NewNode::Special(FileKind::Directory, 0))), FsError::Invalid);
    r.clean();
}

#[test]
fn unlink_and_rmdir() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    let d = r.mkdir(ROOT, "d");
    let sub = r.mkdir(d, "sub");
    assert_eq!(err(r.unlink(ROOT, "none")), FsError::NotFound);
    assert_eq!(err(r.unlink(ROOT, "d")), FsError::IsDirectory);
    assert_eq!(err(r.rmdir(ROOT, "f")), FsError::NotDirectory);
    assert_eq!(err(r.rmdir(ROOT, "d")), FsError::NotEmpty);
    let reply = r.rmdir(d, "sub").unwrap();
    assert!(matches!(reply, WriteReply::Unlinked { ino, nlink: 0, parent } if ino == sub && parent.nlink == 2));
    assert_eq!(r.attr(sub).nlink, 0);
    assert_eq!(err(r.create(sub, "late", NewNode::File)), FsError::NotFound);
    assert_eq!(err(r.read(Read::Lookup { parent: sub, name: name("x") })), FsError::NotFound);
    r.rmdir(ROOT, "d").unwrap();
    r.unlink(ROOT, "f").unwrap();
    assert_eq!((r.attr(f).nlink, r.attr(f).ctime), (0, Time::from(r.stamp())), "an orphan can be asked about");
    assert_eq!((r.attr(ROOT).nlink, r.p.usage().orphans), (2, 3));
    r.clean();
}

#[test]
fn links() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    let d = r.mkdir(ROOT, "d");
    match r.link(f, d, "g").unwrap() {
        WriteReply::Linked { attr, parent } => {
            assert_eq!((attr.nlink, attr.ctime, parent.mtime), (2, attr.change.into(), attr.ctime))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(err(r.link(f, d, "g")), FsError::Exists);
    assert_eq!(err(r.link(d, ROOT, "h")), FsError::NotPermitted);
    r.unlink(ROOT, "f").unwrap();
    assert_eq!(r.attr(f).nlink, 1);
    r.unlink(d, "g").unwrap();
    assert_eq!(err(r.link(f, d, "g")), FsError::NotFound, "no name comes back to life");
    r.clean();
}

#[test]
fn setattr_fields() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    let set = |r: &mut Rig, s: SetAttr| r.setattr(SetAttr { ino: f, ..s });
    let a = set(&mut r, SetAttr { mode: Some(0o6755), ..SetAttr::default() }).unwrap();
    assert_eq!((a.mode, a.ctime, a.mtime), (0o6755, r.stamp().into(), a.btime));
    let a = set(&mut r, SetAttr { uid: Some(5), kill_priv: true, ..SetAttr::default() }).unwrap();
    assert_eq!((a.uid, a.mode), (5, 0o755));
    set(&mut r, SetAttr { mode: Some(0o2644), ..SetAttr::default() }).unwrap();
    let a = set(&mut r, SetAttr { kill_priv: true, ..SetAttr::default() }).unwrap();
    assert_eq!(a.mode, 0o2644, "set-gid without group execute is mandatory locking, not a privilege");
    let far = Time(i64::MAX);
    let a = set(
        &mut r,
        SetAttr { atime: Some(SetTime::At(Time(-5))), mtime: Some(SetTime::At(far)), ..SetAttr::default() },
    )
    .unwrap();
    assert_eq!((a.atime, a.mtime, a.ctime), (Time(-5), far, r.stamp().into()));
    let a = set(&mut r, SetAttr { atime: Some(SetTime::Now), ..SetAttr::default() }).unwrap();
    assert_eq!((a.atime, a.mtime), (r.stamp().into(), far));
    let c = r.attr(f).change;
    set(&mut r, SetAttr::default()).unwrap();
    assert!(r.attr(f).change > c);
    assert_eq!(err(r.truncate(ROOT, 0)), FsError::IsDirectory);
    assert_eq!(err(r.truncate(f, limits::FILE_SIZE_MAX + 1)), FsError::FileTooBig);
}

#[test]
fn xattrs() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    let set = |r: &mut Rig, n: &str, v: &[u8], mode| {
        r.write(Write::SetXattr(SetXattr {
            ino: f,
            name: Bytes::copy_from_slice(n.as_bytes()),
            value: Bytes::copy_from_slice(v),
            mode,
        }))
    };
    let get = |r: &Rig, n: &'static str| r.read(Read::GetXattr { ino: f, name: Bytes::from_static(n.as_bytes()) });
    assert!(!r.attr(f).has_xattr);
    assert_eq!(err(set(&mut r, "user.a", b"", XattrMode::Replace)), FsError::NoData);
    set(&mut r, "user.a", b"1", XattrMode::Create).unwrap();
    set(&mut r, "user.b", b"", XattrMode::Any).unwrap();
    assert_eq!(err(set(&mut r, "user.a", b"2", XattrMode::Create)), FsError::Exists);
    set(&mut r, "user.a", b"22", XattrMode::Replace).unwrap();
    assert_eq!(get(&r, "user.a"), Ok(ReadReply::Xattr(Bytes::from_static(b"22"))));
    assert_eq!(err(get(&r, "user.c")), FsError::NoData);
    let names = vec![Bytes::from_static(b"user.a"), Bytes::from_static(b"user.b")];
    assert_eq!(r.read(Read::ListXattr { ino: f }), Ok(ReadReply::XattrNames(names)));
    let a = r.attr(f);
    assert_eq!((a.has_xattr, a.ctime, a.mtime), (true, r.stamp().into(), a.btime));
    r.clean();
    assert_eq!(err(set(&mut r, "", b"", XattrMode::Any)), FsError::Range);
    assert_eq!(err(set(&mut r, &"x".repeat(256), b"", XattrMode::Any)), FsError::Range);
    assert_eq!(err(set(&mut r, "user.big", &vec![0; limits::XATTR_VALUE_MAX + 1], XattrMode::Any)), FsError::TooBig);
    set(&mut r, "user.big", &vec![0; limits::XATTR_VALUE_MAX], XattrMode::Any).unwrap();
    assert_eq!(err(set(&mut r, "system.posix_acl_access", b"", XattrMode::Any)), FsError::NotSupported);
    for n in ["user.a", "user.b", "user.big"] {
        r.write(Write::RemoveXattr(RemoveXattr { ino: f, name: Bytes::copy_from_slice(n.as_bytes()) })).unwrap();
    }
    assert!(!r.attr(f).has_xattr);
    assert_eq!(
        err(r.write(Write::RemoveXattr(RemoveXattr { ino: f, name: Bytes::from_static(b"user.a") }))),
        FsError::NoData
    );
    r.clean();
}

#[test]
fn numbers_run_out_and_are_granted() {
    let mut r = Rig::with(fusefs_meta_state::PartitionConfig { ranges: vec![KeyRange::inos(0, 4)], ..config() });
    assert_eq!(r.p.inos_left(), 2);
    assert_eq!((r.file(ROOT, "a"), r.file(ROOT, "b")), (Ino(2), Ino(3)));
    assert_eq!(err(r.create(ROOT, "c", NewNode::File)), FsError::NoSpace);
    let grant = |generation| fusefs_types::txn::Internal::GrantRange { range: KeyRange::inos(100, 200), generation };
    r.internal(grant(1)).unwrap();
    r.internal(grant(1)).unwrap();
    assert_eq!((r.file(ROOT, "c"), r.p.inos_left()), (Ino(100), 99));
    r.clean();
}

#[test]
fn foreign_keys_are_wrong_range_and_plans_say_where() {
    let mut r = Rig::new();
    r.file(ROOT, "a");
    let foreign = Ino(1 << 30);
    assert_eq!(err(r.create(foreign, "x", NewNode::File)), FsError::WrongRange);
    assert_eq!(err(r.read(Read::GetAttr { ino: foreign })), FsError::WrongRange);
    let link = Write::Link(Link { ino: foreign, parent: ROOT, name: name("l") });
    assert_eq!(r.p.plan(&link), Plan::Transaction);
    assert_eq!(err(r.write(link)), FsError::Conflict, "a wrong plan changes nothing and is not remembered");
    let mk = |parent, s: &str| {
        Write::Create(Create {
            parent,
            name: name(s),
            node: NewNode::Directory,
            mode: 0,
            uid: 0,
            gid: 0,
            exclusive: true,
        })
    };
    assert_eq!(r.p.plan(&mk(ROOT, "d")), Plan::MaySpill { depth: 1 });
    let (d1, mut deep) = (r.mkdir(ROOT, "d"), ROOT);
    assert_eq!(r.p.plan(&mk(ROOT, "d")), Plan::Local, "it exists: the answer is here");
    assert_eq!(r.p.plan(&mk(d1, "e")), Plan::MaySpill { depth: 2 });
    for i in 0..3 {
        deep = r.mkdir(deep, &format!("x{i}"));
    }
    assert_eq!(r.p.plan(&mk(deep, "e")), Plan::Local);
    r.clean();
}

#[test]
fn a_retry_gets_the_stored_reply() {
    let mut r = Rig::new();
    let caller = r.caller();
    let c = Create { parent: ROOT, name: name("a"), node: NewNode::File, mode: 0, uid: 0, gid: 0, exclusive: true };
    let first = r.apply(Body::Client(caller.clone(), Write::Create(c.clone())));
    let again = r.apply(Body::Client(caller, Write::Create(c)));
    assert_eq!(first, again);
    assert_eq!(r.p.usage().inodes, 2);
}

#[test]
fn a_file_without_a_name_lives_until_its_last_close_or_gets_one() {
    let mut r = Rig::new();
    let other = SessionId(8);
    r.internal(Internal::Attach { session: other, token: token() }).unwrap();
    let make = |r: &mut Rig| match r.write(Write::Tmpfile(Tmpfile { parent: ROOT, mode: 0o600, uid: 1, gid: 2 })) {
        Ok(WriteReply::Created { attr, existed: false, .. }) => {
            assert_eq!((attr.nlink, attr.kind, attr.mode), (0, FileKind::Regular, 0o600));
            attr.ino
        }
        reply => panic!("{reply:?}"),
    };
    let released = |ino| Internal::Pin { session: SESSION, held: vec![], released: vec![ino] };
    let link = |ino, s: &str| Write::Link(Link { ino, parent: ROOT, name: name(s) });
    let (gone, named, late) = (make(&mut r), make(&mut r), make(&mut r));
    assert!(r.p.gc_work().is_empty(), "nobody has to be asked");
    r.clean();
    assert_eq!(r.p.may_open(SESSION, gone), Ok(()));

    // The last close: it goes, and no name can be given to it between close and end.
    r.internal(released(gone)).unwrap();
    assert_eq!(r.write(link(gone, "gone")), Err(FsError::NotFound));
    assert_eq!(r.p.gc_work(), [Work::FreeOrphans(vec![gone])]);
    r.internal(Internal::FreeOrphans { inos: vec![gone, named, late] }).unwrap();
    assert_eq!(r.p.usage().inodes, 3, "the root and what is still held");

    // With a name it is like any other file; what was said about it before is forgotten.
    assert!(matches!(r.write(link(named, "named")), Ok(WriteReply::Linked { attr, .. }) if attr.nlink == 1));
    r.internal(released(named)).unwrap();
    assert_eq!(r.p.usage().orphans, 1);
    r.write(Write::Unlink(Unlink { parent: ROOT, name: name("named"), directory: false })).unwrap();
    assert_eq!(r.write(link(named, "again")), Err(FsError::NotFound), "only the first name comes from nothing");
    let asks = r.p.gc_work().into_iter().filter(|w| matches!(w, Work::AskHolders { inos, .. } if inos == &[named]));
    assert_eq!(asks.count(), 2, "everybody may hold it now");
    crate::snapshot::round_trip(&r.p);

    // It goes with its session.
    r.internal(Internal::EndSession { session: SESSION, revoked: true }).unwrap();
    r.internal(Internal::FreeOrphans { inos: vec![late] }).unwrap();
    assert!(r.p.inode(late).is_err());
    r.clean();
}
