//! Streams: what is read is what was written, damage is an error, a frozen copy does not change.

use crate::util::*;
use fusefs_meta_state::Partition;
use fusefs_types::ops::*;

pub fn round_trip(p: &Partition) -> Partition {
    let mut bytes = vec![];
    p.write_to(&mut bytes).unwrap();
    let back = Partition::read_from(&mut &bytes[..]).unwrap();
    assert_eq!(back.digest(), p.digest());
    assert_eq!(
        (back.usage(), back.last(), back.inos_left(), back.ranges()),
        (p.usage(), p.last(), p.inos_left(), p.ranges())
    );
    let mut again = vec![];
    back.write_to(&mut again).unwrap();
    let third = Partition::read_from(&mut &again[..]).unwrap();
    assert_eq!(third.digest(), p.digest());
    back
}

pub fn sample() -> Rig {
    let mut r = Rig::new();
    let d = r.mkdir(ROOT, "d");
    for i in 0..300 {
        let f = r.file(if i % 2 == 0 { ROOT } else { d }, &format!("f{i}"));
        r.commit(f, 0, vec![piece(0, 100, i + 1, 0), inline(50, b"inline")]).unwrap();
        r.write(Write::SetXattr(SetXattr {
            ino: f,
            name: "user.x".into(),
            value: vec![i as u8; i as usize % 50 * 10].into(),
            mode: XattrMode::Any,
        }))
        .unwrap();
    }
    r.unlink(ROOT, "f0").unwrap();
    r.truncate(r.lookup(ROOT, "f2").unwrap(), 10).unwrap();
    r.create(ROOT, "s", NewNode::Symlink("target".into())).unwrap();
    r
}

#[test]
fn round_trips_and_goes_on_equally() {
    let mut r = sample();
    let mut twin = Rig { p: round_trip(&r.p), blobs: r.blobs.clone(), last: None, ..r };
    for i in 0..50 {
        assert_eq!(r.create(ROOT, &format!("g{i}"), NewNode::File), twin.create(ROOT, &format!("g{i}"), NewNode::File));
    }
    assert_eq!(r.p.digest(), twin.p.digest());
    twin.clean();
}

#[test]
fn a_frozen_copy_stays() {
    let mut r = sample();
    let (frozen, digest) = (r.p.freeze(), r.p.digest());
    for i in 1..200 {
        r.unlink(if i % 2 == 0 { ROOT } else { r.lookup(ROOT, "d").unwrap() }, &format!("f{i}")).unwrap();
    }
    assert_ne!(r.p.digest(), digest);
    assert_eq!((frozen.digest(), frozen.fsck().problems.len()), (digest, 0));
    round_trip(&frozen);
}

#[test]
fn digests_do_not_depend_on_history() {
    let (mut a, mut b) = (Rig::new(), Rig::new());
    let detour = a.file(ROOT, "x");
    a.unlink(ROOT, "x").unwrap();
    assert_ne!(a.p.digest(), b.p.digest());
    let _ = detour;
    for r in [&mut a, &mut b] {
        r.file(ROOT, "y");
    }
    assert_ne!(a.p.digest(), b.p.digest(), "numbers and times differ");
    let (c, d) = (sample(), sample());
    assert_eq!(c.p.digest(), d.p.digest());
}

#[test]
fn every_damage_is_an_error() {
    let mut bytes = vec![];
    sample().p.write_to(&mut bytes).unwrap();
    let step = bytes.len() / 300;
    for cut in (0..bytes.len()).step_by(step) {
        assert!(Partition::read_from(&mut &bytes[..cut]).is_err(), "cut at {cut}");
    }
    for at in (0..bytes.len()).step_by(step + 1) {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        assert!(Partition::read_from(&mut &bad[..]).is_err(), "flipped at {at}");
    }
}
