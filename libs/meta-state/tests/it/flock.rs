//! Application locks against a model that knows nothing of ranges: one cell per byte and owner.

use crate::{snapshot::round_trip, util::*};
use fusefs_meta_state::Outcome;
use fusefs_types::{
    FsError, FsResult, Ino, SessionId, Token,
    ids::{Incarnation, MountId, OpId, Origin},
    limits,
    lock::LOCK_END,
    ops::*,
    txn::Internal,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const OTHER: SessionId = SessionId(8);

fn posix(id: u64) -> LockOwner {
    LockOwner { space: LockSpace::Posix, id }
}

fn flock(id: u64) -> LockOwner {
    LockOwner { space: LockSpace::Flock, id }
}

fn ask(ino: Ino, owner: LockOwner, start: u64, end: u64, op: LockOp) -> SetLock {
    SetLock { ino, owner, start, end, op, pid: owner.id as u32, wait: false }
}

fn whole(ino: Ino, owner: LockOwner, op: LockOp) -> SetLock {
    ask(ino, owner, 0, LOCK_END, op)
}

impl Rig {
    /// A mutation of any session.
    fn by(&mut self, session: SessionId, write: Write) -> FsResult<WriteReply> {
        let mut caller = self.caller();
        caller.session = session;
        match self.apply(Body::Client(caller, write)) {
            Outcome::Client(r) => r,
            other => panic!("{other:?}"),
        }
    }
    /// Ok: granted. Err: the holder in the way.
    fn lock_by(&mut self, session: SessionId, x: SetLock) -> Result<(), HeldLock> {
        match self.by(session, Write::SetLock(x)) {
            Ok(WriteReply::Locked(_)) => Ok(()),
            Ok(WriteReply::LockBlocked(by)) => Err(by),
            other => panic!("{other:?}"),
        }
    }
    fn lock(&mut self, x: SetLock) -> Result<(), HeldLock> {
        self.lock_by(SESSION, x)
    }
    fn locks(&self, ino: Ino) -> Vec<HeldLock> {
        match self.read(Read::ListLocks { ino }) {
            Ok(ReadReply::Locks(all)) => all,
            other => panic!("{other:?}"),
        }
    }
    /// (start, end, exclusive) of one owner.
    fn ranges(&self, ino: Ino, owner: LockOwner) -> Vec<(u64, u64, bool)> {
        self.locks(ino).iter().filter(|l| l.owner == owner).map(|l| (l.start, l.end, l.write)).collect()
    }
    fn woken(&self) -> Vec<Ino> {
        self.last.as_ref().unwrap().unlocked.clone()
    }
    fn other(&mut self) {
        self.internal(Internal::Attach { session: OTHER, token: token() }).unwrap();
    }
}

#[test]
fn ranges_split_merge_and_change_type() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    let (a, b) = (posix(1), posix(2));
    r.lock(ask(f, a, 10, 19, LockOp::Write)).unwrap();
    r.lock(ask(f, a, 20, 29, LockOp::Write)).unwrap();
    assert_eq!(r.ranges(f, a), [(10, 29, true)], "neighbours of one type are one lock");
    r.lock(ask(f, a, 15, 17, LockOp::Unlock)).unwrap();
    assert_eq!((r.ranges(f, a), r.woken()), (vec![(10, 14, true), (18, 29, true)], vec![f]));
    r.lock(ask(f, a, 12, 20, LockOp::Read)).unwrap();
    assert_eq!(r.ranges(f, a), [(10, 11, true), (12, 20, false), (21, 29, true)]);
    assert_eq!(r.woken(), [f], "a downgrade lets readers in");
    r.lock(ask(f, b, 12, 20, LockOp::Read)).unwrap();
    assert!(r.woken().is_empty());
    let by = r.lock(ask(f, b, 20, 21, LockOp::Read)).unwrap_err();
    assert_eq!((by.owner, by.start, by.end, by.write, by.pid, by.session), (a, 21, 29, true, 1, SESSION));
    assert!(r.lock(ask(f, a, 0, LOCK_END, LockOp::Write)).is_err(), "an upgrade waits for the other reader");
    assert_eq!(r.ranges(f, a).len(), 3, "and changes nothing");
    r.lock(whole(f, b, LockOp::Unlock)).unwrap();
    r.lock(ask(f, a, 0, LOCK_END, LockOp::Write)).unwrap();
    assert_eq!((r.ranges(f, a), r.woken()), (vec![(0, LOCK_END, true)], vec![]));
    r.lock(whole(f, a, LockOp::Unlock)).unwrap();
    assert_eq!((r.locks(f), r.woken()), (vec![], vec![f]));
    r.lock(whole(f, a, LockOp::Unlock)).unwrap();
    assert!(r.woken().is_empty(), "nothing was held");
    r.clean();
}

#[test]
fn families_and_sessions_are_apart() {
    let mut r = Rig::new();
    r.other();
    let f = r.file(ROOT, "f");
    let before = r.attr(f);
    r.lock(whole(f, posix(1), LockOp::Write)).unwrap();
    r.lock(whole(f, flock(1), LockOp::Write)).unwrap();
    assert_eq!(r.lock_by(OTHER, whole(f, posix(1), LockOp::Read)).unwrap_err().session, SESSION);
    assert!(r.lock_by(OTHER, whole(f, flock(1), LockOp::Read)).is_err(), "the same number elsewhere is another owner");
    r.lock_by(OTHER, whole(f, flock(1), LockOp::Unlock)).unwrap();
    assert_eq!(r.locks(f).len(), 2);
    assert_eq!(r.attr(f), before, "locks do not change the file");
    r.clean();
}

#[test]
fn getlock_says_what_is_in_the_way() {
    let mut r = Rig::new();
    r.other();
    let f = r.file(ROOT, "f");
    r.lock(ask(f, posix(1), 5, 9, LockOp::Read)).unwrap();
    let get = |r: &Rig, session, id, start, write| {
        let read = Read::GetLock { ino: f, owner: posix(id), start, end: start, write, wait: false };
        match r.p.read(session, &read) {
            Ok(ReadReply::Lock(l)) => l.map(|l| l.pid),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(get(&r, OTHER, 1, 9, true), Some(1));
    assert_eq!(get(&r, OTHER, 1, 9, false), None, "readers share");
    assert_eq!((get(&r, OTHER, 1, 10, true), get(&r, OTHER, 1, 4, true)), (None, None));
    assert_eq!(get(&r, SESSION, 1, 9, true), None, "its own");
    let bad = Read::GetLock { ino: f, owner: posix(1), start: 2, end: 1, write: true, wait: false };
    assert_eq!(err(r.read(bad)), FsError::Invalid);
    assert_eq!(err(r.read(Read::ListLocks { ino: Ino(999) })), FsError::NotFound);
}

#[test]
fn impossible_locks_are_refused() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    let mut refused = |x| err(r.write(Write::SetLock(x)));
    assert_eq!(refused(ask(f, posix(1), 2, 1, LockOp::Read)), FsError::Invalid);
    assert_eq!(refused(ask(f, posix(1), 0, LOCK_END + 1, LockOp::Read)), FsError::Invalid);
    assert_eq!(refused(ask(f, flock(1), 0, 10, LockOp::Read)), FsError::Invalid);
    assert_eq!(refused(ask(Ino(999), posix(1), 0, 10, LockOp::Read)), FsError::NotFound);
    for n in 0..limits::LOCKS_PER_INODE_MAX as u64 {
        r.lock(ask(f, posix(1), n * 2, n * 2, LockOp::Write)).unwrap();
    }
    let full = ask(f, posix(1), 1 << 40, 1 << 40, LockOp::Write);
    assert_eq!(err(r.write(Write::SetLock(full))), FsError::NoLocks);
    r.lock(ask(f, posix(1), 0, 100, LockOp::Write)).unwrap();
    r.lock(ask(f, posix(1), 1 << 40, 1 << 40, LockOp::Write)).unwrap();
    r.clean();
}

#[test]
fn a_refused_attempt_is_an_outcome() {
    let mut r = Rig::new();
    r.other();
    let f = r.file(ROOT, "f");
    r.lock_by(OTHER, whole(f, flock(9), LockOp::Write)).unwrap();
    let caller = r.caller();
    let x = Write::SetLock(whole(f, flock(1), LockOp::Write));
    let refused = r.apply(Body::Client(caller.clone(), x.clone()));
    assert!(matches!(refused, Outcome::Client(Ok(WriteReply::LockBlocked(_)))));
    r.lock_by(OTHER, whole(f, flock(9), LockOp::Unlock)).unwrap();
    assert_eq!(r.apply(Body::Client(caller, x)), refused, "a late copy of it is not granted");
    assert!(r.locks(f).is_empty());
    r.lock(whole(f, flock(1), LockOp::Write)).unwrap();
}

#[test]
fn two_waiting_conversions_of_a_flock_do_not_wait_for_each_other() {
    let mut r = Rig::new();
    r.other();
    let f = r.file(ROOT, "f");
    let upgrade = |wait| SetLock { wait, ..whole(f, flock(1), LockOp::Write) };
    r.lock(whole(f, flock(1), LockOp::Read)).unwrap();
    r.lock_by(OTHER, whole(f, flock(1), LockOp::Read)).unwrap();
    assert!(r.lock(upgrade(false)).is_err());
    assert_eq!(r.locks(f).len(), 2, "who does not wait keeps what he has");
    assert!(r.lock(upgrade(true)).is_err());
    assert_eq!((r.locks(f).len(), r.woken()), (1, vec![f]), "who waits gives it up, as in Linux");
    r.lock_by(OTHER, upgrade(true)).unwrap();
    assert!(r.lock(upgrade(true)).is_err());
    r.lock_by(OTHER, whole(f, flock(1), LockOp::Unlock)).unwrap();
    r.lock(upgrade(true)).unwrap();
    r.clean();
}

#[test]
fn locks_go_with_their_session() {
    let mut r = Rig::new();
    r.other();
    let (f, g) = (r.file(ROOT, "f"), r.file(ROOT, "g"));
    r.lock(whole(f, flock(1), LockOp::Write)).unwrap();
    r.lock(ask(g, posix(1), 3, 4, LockOp::Write)).unwrap();
    r.lock_by(OTHER, ask(g, posix(1), 5, 6, LockOp::Write)).unwrap();
    r.internal(Internal::EndSession { session: SESSION, revoked: true }).unwrap();
    assert_eq!(r.woken(), [f, g]);
    assert_eq!(r.locks(g).iter().map(|l| l.session).collect::<Vec<_>>(), [OTHER]);
    r.lock_by(OTHER, whole(f, flock(1), LockOp::Write)).unwrap();
    r.clean();
}

#[test]
fn locks_survive_a_takeover_and_older_processes_are_fenced() {
    let mut r = Rig::new();
    r.other();
    let f = r.file(ROOT, "f");
    r.lock(whole(f, flock(1), LockOp::Write)).unwrap();
    let newer = Caller { token: Token { attach: 0, incarnation: Incarnation(2) }, ..r.caller() };
    let again = Write::SetLock(whole(f, flock(1), LockOp::Write));
    assert!(matches!(r.apply(Body::Client(newer, again.clone())), Outcome::Client(Ok(WriteReply::Locked(_)))));
    assert_eq!(err(r.write(again)), FsError::Fenced, "an unlock on its way from the old process would be, too");
    assert!(r.lock_by(OTHER, whole(f, flock(1), LockOp::Read)).is_err());
}

#[test]
fn locks_live_as_long_as_the_inode() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    r.lock(whole(f, flock(1), LockOp::Write)).unwrap();
    r.unlink(ROOT, "f").unwrap();
    r.lock(ask(f, posix(1), 0, 0, LockOp::Write)).unwrap();
    r.clean();
    r.internal(Internal::Pin { session: SESSION, held: vec![], released: vec![f] }).unwrap();
    r.internal(Internal::FreeOrphans { inos: vec![f] }).unwrap();
    assert_eq!((r.p.file_locks(), r.woken()), (0, vec![f]));
    r.clean();
}

#[test]
fn a_snapshot_carries_locks_and_one_from_before_there_were_any_is_read() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    let mut stream = vec![];
    r.p.write_to(&mut stream).unwrap();
    let older = without_the_last_tree(stream);
    assert_eq!(fusefs_meta_state::Partition::read_from(&mut &older[..]).unwrap().digest(), r.p.digest());
    r.lock(ask(f, posix(7), 3, 9, LockOp::Write)).unwrap();
    r.lock(whole(f, flock(7), LockOp::Read)).unwrap();
    let back = round_trip(&r.p);
    assert_eq!(back.read(SESSION, &Read::ListLocks { ino: f }), r.read(Read::ListLocks { ino: f }));
    assert_eq!(back.file_locks(), 2);
}

/// A stream without locks as a binary wrote it that did not know their tree: its end counts one tree less.
fn without_the_last_tree(mut stream: Vec<u8>) -> Vec<u8> {
    let mut at = 8;
    loop {
        let len = u32::from_le_bytes(stream[at..at + 4].try_into().unwrap()) as usize;
        if at + 8 + len == stream.len() {
            break;
        }
        at += 8 + len;
    }
    let mut end = stream.split_off(at).split_off(8);
    let trees = u32::from_le_bytes(end[1..5].try_into().unwrap());
    let last = 5 + (trees as usize - 1) * 9;
    assert_eq!(end[last..last + 9], [16, 0, 0, 0, 0, 0, 0, 0, 0], "no locks");
    end.drain(last..last + 9);
    end[1..5].copy_from_slice(&(trees - 1).to_le_bytes());
    stream.extend((end.len() as u32).to_le_bytes());
    stream.extend(crc32c::crc32c(&end).to_le_bytes());
    stream.extend(end);
    stream
}

const BYTES: u64 = 12;
const OWNERS: usize = 5;

/// (session, owner) of the model's numbers.
fn who(n: usize) -> (SessionId, LockOwner) {
    [(SESSION, posix(1)), (SESSION, posix(2)), (OTHER, posix(1)), (SESSION, flock(1)), (OTHER, flock(1))][n]
}

/// Byte (the last one stands for all that follow) x owner -> exclusive.
#[derive(Clone, Default)]
struct Model(BTreeMap<(u64, usize), bool>);

impl Model {
    /// Whether the lock is free; sets it if so.
    fn set(&mut self, n: usize, span: (u64, u64), op: LockOp, wait: bool) -> bool {
        let family = |m: usize| who(m).1.space;
        let blocked = op != LockOp::Unlock
            && self.0.iter().any(|((at, m), held)| {
                let meets = span.0 <= *at && *at <= span.1 && *m != n && family(*m) == family(n);
                meets && (*held || op == LockOp::Write)
            });
        if blocked {
            if wait && family(n) == LockSpace::Flock {
                self.0.retain(|(_, m), _| *m != n);
            }
            return false;
        }
        for at in span.0..=span.1 {
            match op {
                LockOp::Unlock => _ = self.0.remove(&(at, n)),
                _ => _ = self.0.insert((at, n), op == LockOp::Write),
            }
        }
        true
    }
}

fn cells(locks: &[HeldLock]) -> BTreeMap<(u64, usize), bool> {
    let mut out = BTreeMap::new();
    for l in locks {
        let n = (0..OWNERS).find(|n| who(*n) == (l.session, l.owner)).unwrap();
        for at in l.start..=l.end.min(BYTES - 1) {
            assert!(out.insert((at, n), l.write).is_none(), "overlap of one owner");
        }
    }
    out
}

fn op(byte: u8) -> LockOp {
    [LockOp::Read, LockOp::Write, LockOp::Unlock][usize::from(byte % 3)]
}

proptest! {
    // A failing case prints its steps, shrunk; replay: paste them into a call of `run`.
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn locks_do_what_a_table_of_bytes_does(steps in prop::collection::vec((any::<[u8; 5]>(), any::<bool>()), 1..60)) {
        run(&steps);
    }
}

fn run(steps: &[([u8; 5], bool)]) {
    let mut r = Rig::new();
    r.other();
    let f = r.file(ROOT, "f");
    let mut model = Model::default();
    let mut ended = BTreeSet::new();
    for (i, ([n, a, b, kind, rare], wait)) in steps.iter().enumerate() {
        let n = usize::from(*n) % OWNERS;
        let (session, owner) = who(n);
        if *rare == 255 && ended.insert(session) {
            r.internal(Internal::EndSession { session, revoked: false }).unwrap();
            model.0.retain(|(_, m), _| who(*m).0 != session);
        }
        if ended.contains(&session) {
            continue;
        }
        let (a, b) = (u64::from(*a) % BYTES, u64::from(*b) % BYTES);
        let span = if owner.space == LockSpace::Flock { (0, BYTES - 1) } else { (a.min(b), a.max(b)) };
        let end = if span.1 == BYTES - 1 { LOCK_END } else { span.1 };
        let x = SetLock { wait: *wait, ..ask(f, owner, span.0, end, op(*kind)) };
        let before = model.0.clone();
        let (want, got) = (model.set(n, span, op(*kind), *wait), r.lock_by(session, x).is_ok());
        assert_eq!(got, want, "step {i} of {steps:?}");
        let now = r.locks(f);
        assert_eq!(cells(&now), model.0, "step {i} of {steps:?}");
        // Whoever lost something or shares it now may let a waiter in: it must be told.
        let shrank = before.iter().any(|(k, w)| model.0.get(k).is_none_or(|now| *w && !now));
        assert_eq!(r.woken() == [f], shrank, "step {i} of {steps:?}");
        let next = |l: &HeldLock, at| (l.session, l.owner, l.write, at);
        let joined = now.windows(2).all(|w| next(&w[0], w[0].end + 1) != next(&w[1], w[1].start));
        assert!(joined, "step {i} of {steps:?}: neighbours of one type are one lock");
    }
    r.clean();
    round_trip(&r.p);
}

#[test]
fn acknowledged_attempts_are_never_granted_late() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    let op = |number| OpId { mount: MountId(1), origin: Origin::Internal, number, step: 0 };
    let x = Write::SetLock(whole(f, flock(1), LockOp::Write));
    let acks = vec![fusefs_types::ids::AckRange { mount: MountId(1), origin: Origin::Internal, first: 1, last: 5 }];
    let caller = Caller { session: SESSION, token: token(), op: op(6), acks };
    r.apply(Body::Client(caller.clone(), Write::SetLock(whole(f, flock(1), LockOp::Unlock))));
    let late = Caller { op: op(5), acks: vec![], ..caller };
    assert_eq!(r.apply(Body::Client(late, x)), Outcome::Client(Err(FsError::TooOld)));
    assert!(r.locks(f).is_empty());
}
