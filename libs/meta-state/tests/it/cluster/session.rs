//! Sessions, stored replies, fences, orphans: one partition at a time.

use crate::util::{Rig, SESSION, err, name, object, piece, token};
use fusefs_meta_state::{InternalReply, Outcome, Work, session::Admission};
use fusefs_types::{
    FsError, FsResult, Ino, SessionId, Token,
    ids::{AckRange, Incarnation, MountId, OpId, Origin},
    limits,
    ops::{Body, Caller, Create, NewNode, Piece, Read, ReadReply, Write, WriteReply},
    txn::Internal,
};

const ROOT: Ino = Ino::ROOT;
const OTHER: SessionId = SessionId(8);

fn op(number: u64) -> OpId {
    OpId { mount: MountId(1), origin: Origin::Fuse, number, step: 0 }
}

fn caller(number: u64) -> Caller {
    Caller { session: SESSION, token: token(), op: op(number), acks: vec![] }
}

fn create(s: &str) -> Write {
    let node = NewNode::File;
    Write::Create(Create { parent: ROOT, name: name(s), node, mode: 0o600, uid: 0, gid: 0, exclusive: true })
}

fn send(r: &mut Rig, caller: Caller, write: Write) -> FsResult<WriteReply> {
    match r.apply(Body::Client(caller, write)) {
        Outcome::Client(result) => result,
        other => panic!("{other:?}"),
    }
}

fn acks(first: u64, last: u64) -> Vec<AckRange> {
    vec![AckRange { mount: MountId(1), origin: Origin::Fuse, first, last }]
}

#[test]
fn a_retry_gets_the_stored_answer() {
    let mut r = Rig::new();
    let first = send(&mut r, caller(1), create("a"));
    assert!(first.is_ok());
    assert_eq!(send(&mut r, caller(1), create("a")), first);
    assert_eq!(send(&mut r, caller(2), create("a")), Err(FsError::Exists));
    r.unlink(ROOT, "a").unwrap_err(); // op 1 of the rig is the same op id: another request
    assert_eq!(send(&mut r, caller(2), create("a")), Err(FsError::Exists), "an error is an outcome, too");
    assert_eq!(err(send(&mut r, caller(1), create("b"))), FsError::FingerprintMismatch);
    assert_eq!(r.p.reply_of(SESSION, op(1)), Some(Admission::Done(first)));
}

#[test]
fn acknowledged_operations_never_run_again() {
    let mut r = Rig::new();
    send(&mut r, caller(1), create("a")).unwrap();
    send(&mut r, caller(3), create("b")).unwrap();
    send(&mut r, Caller { acks: acks(1, 2), ..caller(4) }, create("c")).unwrap();
    assert_eq!(r.p.reply_of(SESSION, op(1)), None);
    assert!(r.p.reply_of(SESSION, op(3)).is_some());
    assert_eq!(err(send(&mut r, caller(1), create("a"))), FsError::TooOld);
    assert_eq!(err(send(&mut r, caller(2), create("d"))), FsError::TooOld);
    assert_eq!(r.lookup(ROOT, "d"), None);
}

#[test]
fn the_reply_table_is_bounded() {
    let mut r = Rig::new();
    let max = limits::REPLIES_PER_SESSION_MAX as u64;
    for n in 1..=max {
        assert_eq!(err(send(&mut r, caller(n), Write::Unlink(gone()))), FsError::NotFound);
    }
    assert_eq!(err(send(&mut r, caller(max + 1), create("a"))), FsError::Overloaded);
    assert_eq!(err(send(&mut r, caller(5), Write::Unlink(gone()))), FsError::NotFound, "retries are still answered");
    send(&mut r, Caller { acks: acks(1, 10), ..caller(max + 1) }, create("a")).unwrap();
}

fn gone() -> fusefs_types::ops::Unlink {
    fusefs_types::ops::Unlink { parent: ROOT, name: name("x"), directory: false }
}

#[test]
fn only_attached_sessions_mutate() {
    let mut r = Rig::new();
    let stranger = Caller { session: OTHER, ..caller(1) };
    assert_eq!(err(send(&mut r, stranger.clone(), create("a"))), FsError::NotAttached);
    assert_eq!(err(r.p.read(OTHER, &Read::Open { ino: ROOT, write: false })), FsError::NotAttached);
    r.internal(Internal::Attach { session: OTHER, token: token() }).unwrap();
    send(&mut r, stranger, create("a")).unwrap();
}

#[test]
fn older_tokens_are_fenced() {
    let mut r = Rig::new();
    let newer = Token { attach: 0, incarnation: Incarnation(2) };
    send(&mut r, Caller { token: newer, ..caller(1) }, create("a")).unwrap();
    assert_eq!(err(send(&mut r, caller(2), create("b"))), FsError::Fenced, "takeover is lazy");
    let fence = Token { attach: 1, incarnation: Incarnation(0) };
    r.internal(Internal::Fence { session: SESSION, token: fence }).unwrap();
    assert_eq!(err(send(&mut r, Caller { token: newer, ..caller(2) }, create("b"))), FsError::Fenced);
    assert_eq!(err(r.internal(Internal::Attach { session: SESSION, token: newer })), FsError::Fenced);
}

#[test]
fn an_ended_session_stays_ended() {
    let mut r = Rig::new();
    send(&mut r, caller(1), create("a")).unwrap();
    r.internal(Internal::EndSession { session: SESSION, revoked: true }).unwrap();
    assert_eq!(r.p.reply_of(SESSION, op(1)), None);
    for _ in 0..2 {
        assert_eq!(err(send(&mut r, caller(1), create("a"))), FsError::Stale);
        let late = r.internal(Internal::Attach { session: SESSION, token: token() });
        assert_eq!(err(late), FsError::Stale, "an attachment proposed before the end");
    }
    assert!(r.p.attached().is_empty());
    r.internal(Internal::EndSession { session: SESSION, revoked: true }).unwrap();
}

fn free(r: &mut Rig) -> FsResult<InternalReply> {
    let inos =
        r.p.work()
            .into_iter()
            .find_map(|w| match w {
                Work::FreeOrphans(inos) => Some(inos),
                _ => None,
            })
            .unwrap_or_default();
    r.internal(Internal::FreeOrphans { inos })
}

#[test]
fn orphans_wait_for_every_session_and_pin() {
    let mut r = Rig::new();
    r.internal(Internal::Attach { session: OTHER, token: token() }).unwrap();
    let ino = r.file(ROOT, "a");
    r.unlink(ROOT, "a").unwrap();
    let late = SessionId(9);
    r.internal(Internal::Attach { session: late, token: token() }).unwrap();
    assert_eq!(err(r.p.read(late, &Read::Open { ino, write: false })), FsError::NotFound, "too late to hold it");
    let asked: Vec<_> = r.p.work();
    assert_eq!(
        asked,
        [SESSION, OTHER].map(|session| Work::AskHolders { session, inos: vec![ino] }),
        "those who were attached before"
    );
    r.internal(Internal::Pin { session: SESSION, held: vec![ino], released: vec![] }).unwrap();
    r.internal(Internal::FreeOrphans { inos: vec![ino] }).unwrap();
    assert!(r.p.inode(ino).is_ok(), "a leader's word is not enough");
    r.internal(Internal::Pin { session: OTHER, held: vec![], released: vec![ino] }).unwrap();
    assert_eq!(err(r.p.read(OTHER, &Read::Open { ino, write: false })), FsError::NotFound, "it said it was not open");
    assert!(matches!(r.p.read(SESSION, &Read::Open { ino, write: true }), Ok(ReadReply::Attr(_))));
    assert!(r.p.must_log_close(SESSION, ino) && !r.p.must_log_close(OTHER, ino) && r.p.work().is_empty());
    r.commit(ino, 0, vec![piece(0, 10, 1, 0)]).unwrap();
    r.internal(Internal::Pin { session: SESSION, held: vec![], released: vec![ino] }).unwrap();
    r.internal(Internal::Pin { session: SESSION, held: vec![ino], released: vec![] }).unwrap(); // a late duplicate
    free(&mut r).unwrap();
    assert_eq!(err(r.p.inode(ino)), FsError::NotFound);
    assert!(matches!(&r.p.work()[..], [Work::DeleteObjects(list)] if list[0].0 == object(1)));
    r.clean();
}

#[test]
fn the_end_of_a_session_releases_its_orphans() {
    let mut r = Rig::new();
    let ino = r.file(ROOT, "a");
    r.unlink(ROOT, "a").unwrap();
    r.internal(Internal::Pin { session: SESSION, held: vec![ino], released: vec![] }).unwrap();
    r.internal(Internal::EndSession { session: SESSION, revoked: true }).unwrap();
    free(&mut r).unwrap();
    assert_eq!(r.p.usage().inodes, 1);
}

#[test]
fn a_large_file_is_freed_in_pieces() {
    let mut r = Rig::new();
    let ino = r.file(ROOT, "a");
    for n in 0..40u64 {
        let pieces: Vec<Piece> =
            (0..limits::COMMIT_ITEMS_MAX as u64).map(|k| piece((n * 1000 + k) * 20, 10, n * 1000 + k + 1, 0)).collect();
        r.commit(ino, 0, pieces).unwrap();
    }
    r.unlink(ROOT, "a").unwrap();
    r.internal(Internal::Pin { session: SESSION, held: vec![], released: vec![ino] }).unwrap();
    let mut steps = 0;
    while r.p.usage().orphans > 0 {
        free(&mut r).unwrap();
        r.clean();
        steps += 1;
        assert!(steps < 10);
    }
    assert!(steps > 1, "one command frees a bounded number of extents");
    assert_eq!(r.p.usage().bytes, 0);
}

#[test]
fn dead_objects_are_remembered_until_deleted() {
    let mut r = Rig::new();
    let ino = r.file(ROOT, "a");
    r.commit(ino, 0, vec![piece(0, 10, 1, 0)]).unwrap();
    r.commit(ino, 0, vec![piece(0, 10, 2, 0)]).unwrap();
    let own = |r: &Rig| r.p.list_objects(SESSION, Incarnation(1), None, 10);
    assert_eq!(own(&r), [object(1), object(2)]);
    assert_eq!(err(r.commit(ino, 0, vec![piece(0, 10, 1, 0)])), FsError::Invalid, "its body may be gone");
    let dead = vec![object(1), object(2)];
    r.internal(Internal::ObjectsDeleted { objects: dead }).unwrap();
    assert_eq!(own(&r), [object(2)], "what lives is not forgotten");
    assert!(r.p.work().is_empty());
    r.clean();
}
