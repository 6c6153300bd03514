//! commit, append, truncate, extents, objects, inline puts.

use crate::util::*;
use bytes::Bytes;
use fusefs_meta_state::Outcome;
use fusefs_types::{Extent, FsError, Ino, SessionId, Source, Time, limits, ops::*};

#[test]
fn pieces_lie_on_top() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    let a = r.commit(f, 0, vec![piece(0, 100, 1, 0), inline(40, b"hello")]).unwrap();
    assert_eq!((a.size, a.allocated, a.trunc_seq), (100, 100, 0));
    let mut want: Vec<u8> = (0..100).map(|i| object_byte(&object(1), i)).collect();
    want[40..45].copy_from_slice(b"hello");
    assert_eq!(r.content(f), want);
    r.clean();
    let hole = Piece::Hole { offset: 42, len: 10 };
    let a = r.commit(f, 0, vec![hole]).unwrap();
    want[42..52].fill(0);
    assert_eq!((r.content(f), a.size, a.allocated), (want.clone(), 100, 90));
    r.commit(f, 0, vec![inline(200, b"x")]).unwrap();
    want.resize(200, 0);
    want.push(b'x');
    assert_eq!(r.content(f), want);
    assert_eq!((r.p.usage().bytes, r.p.usage().objects), (91, 1));
    r.clean();
}

#[test]
fn neighbours_join() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    for i in 0..10 {
        r.commit(f, 0, vec![piece(i * 10, 10, 1, i * 10)]).unwrap();
    }
    match r.read(Read::Extents { ino: f, offset: 0, len: 1000 }) {
        Ok(ReadReply::Extents { extents, .. }) => assert_eq!(extents.len(), 1),
        other => panic!("{other:?}"),
    }
    r.clean();
}

#[test]
fn objects_die_with_their_last_byte() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    r.commit(f, 0, vec![piece(0, 100, 1, 0)]).unwrap();
    r.commit(f, 0, vec![piece(0, 60, 2, 0)]).unwrap();
    let dead = |r: &Rig| r.p.fsck().problems.is_empty() && err_of(r, 1);
    assert!(!dead(&r));
    r.truncate(f, 50).unwrap();
    r.clean();
    assert!(dead(&r), "a dead object is refused: its body may be gone");
    // Covered within its own commit: the later piece keeps it alive.
    r.commit(f, 1, vec![piece(0, 10, 3, 0), inline(0, b"0123456789"), piece(20, 5, 3, 20)]).unwrap();
    r.clean();
    r.commit(f, 1, vec![piece(20, 5, 3, 20)]).unwrap();
}

fn err_of(r: &Rig, counter: u64) -> bool {
    let mut probe = Rig { p: r.p.clone(), blobs: r.blobs.clone(), last: None, ..*r };
    let f = probe.file(ROOT, "probe");
    probe.commit(f, 0, vec![piece(0, 1, counter, 0)]) == Err(FsError::Invalid)
}

#[test]
fn only_own_objects() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    let at = |session, home, codec| {
        let id = fusefs_types::ObjectId { session: SessionId(session), ..object(1) };
        Piece::Extent(Extent { offset: 0, len: 1, codec, source: Source::Object { id, home, skip: 0 } })
    };
    assert_eq!(err(r.commit(f, 0, vec![at(8, ROOT, 0)])), FsError::Invalid);
    assert_eq!(err(r.commit(f, 0, vec![at(7, Ino(1 << 30), 0)])), FsError::Invalid);
    assert_eq!(err(r.commit(f, 0, vec![at(7, ROOT, 1)])), FsError::Invalid);
    let by_name = Extent { offset: 0, len: 1, codec: 0, source: Source::Inline { index: 1, n: 0, skip: 0 } };
    assert_eq!(err(r.commit(f, 0, vec![Piece::Extent(by_name)])), FsError::Invalid);
    r.commit(f, 0, vec![at(7, ROOT, 0)]).unwrap();
}

#[test]
fn truncation_clips_older_bytes() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    r.commit(f, 0, vec![inline(0, &[1; 100])]).unwrap();
    assert_eq!(r.truncate(f, 30).unwrap().trunc_seq, 1);
    assert_eq!(r.truncate(f, 80).unwrap().trunc_seq, 1, "growing is no truncation");
    assert_eq!(r.truncate(f, 60).unwrap().trunc_seq, 2);
    let mut want = vec![1; 30];
    want.resize(60, 0);
    assert_eq!(r.content(f), want);
    r.commit(f, 1, vec![inline(50, &[2; 40])]).unwrap();
    want[50..60].fill(2);
    assert_eq!((r.content(f), r.attr(f).size), (want.clone(), 60));
    r.commit(f, 0, vec![inline(20, &[3; 40]), piece(40, 10, 9, 0)]).unwrap();
    want[20..30].fill(3);
    assert_eq!(r.content(f), want);
    r.commit(f, 2, vec![inline(60, &[4; 10])]).unwrap();
    assert_eq!(r.attr(f).size, 70);
    r.clean();
    assert_eq!(r.p.usage().objects, 1, "the clipped object has a record, so it will be deleted");
}

#[test]
fn times_and_sizes_of_commits() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    let commit = |r: &mut Rig, mtime, grow_to| {
        let file = CommitFile { ino: f, trunc_seq: 0, pieces: vec![], mtime, grow_to, kill_priv: true };
        match r.write(Write::Commit(Commit { files: vec![file] })).unwrap() {
            WriteReply::Committed(a) => a[0],
            other => panic!("{other:?}"),
        }
    };
    r.setattr(SetAttr { ino: f, mode: Some(0o4755), mtime: Some(SetTime::At(Time(5))), ..SetAttr::default() }).unwrap();
    let a = commit(&mut r, None, 10);
    assert_eq!((a.mtime, a.size, a.mode, a.ctime), (Time(5), 10, 0o755, r.stamp().into()));
    let a = commit(&mut r, Some(Time(7)), 5);
    assert_eq!((a.mtime, a.size), (Time(7), 10));
    let a = commit(&mut r, Some(Time(i64::MAX)), 0);
    assert_eq!(a.mtime, r.stamp().into(), "clamped to now");
}

#[test]
fn limits_change_nothing() {
    let mut r = Rig::new();
    let (f, d) = (r.file(ROOT, "f"), r.mkdir(ROOT, "d"));
    let digest = |r: &Rig| r.p.usage();
    let before = digest(&r);
    assert_eq!(err(r.commit(d, 0, vec![])), FsError::IsDirectory);
    assert_eq!(err(r.commit(Ino(1 << 30), 0, vec![])), FsError::WrongRange);
    assert_eq!(err(r.commit(Ino(99), 0, vec![])), FsError::NotFound);
    let big = vec![0; limits::INLINE_COMMIT_BYTES_MAX / 2 + 1];
    assert_eq!(err(r.commit(f, 0, vec![inline(0, &big), inline(0, &big)])), FsError::TooBig);
    assert_eq!(err(r.commit(f, 0, vec![piece(limits::FILE_SIZE_MAX, 1, 1, 0)])), FsError::FileTooBig);
    assert_eq!(err(r.commit(f, 0, vec![piece(u64::MAX, u64::MAX, 1, 0)])), FsError::FileTooBig);
    assert_eq!(err(r.commit(f, 0, vec![piece(0, u64::MAX, 1, 1)])), FsError::Invalid);
    assert_eq!(err(r.commit(f, 0, vec![inline(0, b"x"); 257])), FsError::Invalid);
    assert_eq!(err(r.write(Write::Commit(Commit { files: vec![] }))), FsError::WrongRange);
    let after = digest(&r);
    assert_eq!((before.bytes, before.inline_bytes, before.objects), (after.bytes, after.inline_bytes, after.objects));
    r.commit(f, 0, vec![Piece::Hole { offset: 5, len: u64::MAX }]).unwrap();
    r.clean();
}

#[test]
fn appends_get_offsets() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    let append = |r: &mut Rig, pieces, len| match r.write(Write::Append(Append { ino: f, pieces, len })) {
        Ok(WriteReply::Appended { offset, attr }) => Ok((offset, attr.size)),
        Ok(other) => panic!("{other:?}"),
        Err(e) => Err(e),
    };
    assert_eq!(append(&mut r, vec![inline(0, b"abc")], 3), Ok((0, 3)));
    assert_eq!(append(&mut r, vec![piece(0, 10, 1, 5), inline(12, b"z")], 13), Ok((3, 16)));
    assert_eq!(append(&mut r, vec![inline(0, b"abc")], 2), Err(FsError::Invalid));
    assert_eq!(append(&mut r, vec![], u64::MAX), Err(FsError::FileTooBig));
    let mut want = b"abc".to_vec();
    want.extend((5..15).map(|i| object_byte(&object(1), i)));
    want.extend(b"\0\0z");
    assert_eq!(r.content(f), want);
    r.clean();
}

/// The client was killed between the append and its answer: the next one sends the same request with its bytes in another
/// object, or inline, and must get the same answer.
#[test]
fn a_repeated_append_may_bring_its_bytes_in_another_shape() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    let caller = r.caller();
    let append = |r: &mut Rig, pieces, len| {
        let write = Write::Append(Append { ino: f, pieces, len });
        match r.apply(Body::Client(caller.clone(), write)) {
            Outcome::Client(result) => result,
            other => panic!("{other:?}"),
        }
    };
    let first = append(&mut r, vec![piece(0, 3, 1, 0)], 3).unwrap();
    assert_eq!(append(&mut r, vec![piece(0, 3, 2, 0)], 3), Ok(first.clone()), "another object");
    assert_eq!(append(&mut r, vec![inline(0, b"abc")], 3), Ok(first), "inline bytes");
    assert_eq!(append(&mut r, vec![inline(0, b"abcd")], 4), Err(FsError::FingerprintMismatch), "another length");
    assert_eq!((r.attr(f).size, r.p.usage().objects), (3, 1), "it was executed once");
    r.clean();
}

#[test]
fn inline_bytes_are_freed_as_a_whole() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    r.commit(f, 0, vec![inline(0, b"aaaa"), inline(4, b"bbbb")]).unwrap();
    r.commit(f, 0, vec![inline(1, b"cc")]).unwrap();
    assert_eq!((r.blobs.len(), r.p.usage().inline_bytes), (3, 10));
    r.commit(f, 0, vec![inline(0, b"dddd")]).unwrap();
    assert_eq!((r.blobs.len(), r.p.usage().inline_bytes, r.content(f)), (2, 8, b"ddddbbbb".to_vec()));
    r.commit(f, 0, vec![inline(0, b"0000"), inline(0, b"11111111")]).unwrap();
    assert_eq!((r.blobs.len(), r.content(f)), (1, b"11111111".to_vec()), "covered within its own commit");
    r.clean();
}

#[test]
fn one_commit_of_many_files() {
    let mut r = Rig::new();
    let files: Vec<Ino> = (0..5).map(|i| r.file(ROOT, &format!("f{i}"))).collect();
    let all = |pieces: &dyn Fn(u64) -> Vec<Piece>| Commit {
        files: files
            .iter()
            .enumerate()
            .map(|(i, ino)| CommitFile {
                ino: *ino,
                trunc_seq: 0,
                pieces: pieces(i as u64),
                mtime: None,
                grow_to: 0,
                kill_priv: false,
            })
            .collect(),
    };
    r.write(Write::Commit(all(&|i| vec![piece(0, 10, 1, i * 10)]))).unwrap();
    assert_eq!(r.p.usage().objects, 1, "small files of one directory share an object");
    r.write(Write::Commit(all(&|i| vec![Piece::Inline { offset: 0, bytes: Bytes::from(vec![i as u8; 3]) }]))).unwrap();
    for (i, ino) in files.iter().enumerate() {
        assert_eq!(r.content(*ino)[..3], [i as u8; 3]);
    }
    r.clean();
}
