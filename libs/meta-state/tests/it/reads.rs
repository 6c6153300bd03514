//! readdir cookies, extents pages, statfs.

use crate::util::*;
use fusefs_types::{FsError, Ino, limits, ops::*};
use std::collections::BTreeSet;

fn list(r: &Rig, ino: Ino, mut after: u64, limit: u32) -> Vec<DirEntry> {
    let mut all = vec![];
    loop {
        match r.read(Read::ReadDir { ino, after, limit, plus: false }) {
            Ok(ReadReply::Entries { entries, end, .. }) => {
                after = entries.last().map_or(after, |e| e.cookie);
                all.extend(entries);
                if end {
                    return all;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_entry_once_through_any_page_size() {
    let mut r = Rig::new();
    let d = r.mkdir(ROOT, "d");
    let names: BTreeSet<String> = (0..300).map(|i| format!("n{i}")).collect();
    for n in &names {
        r.file(d, n);
    }
    for limit in [1, 7, 100, 0, u32::MAX] {
        let got: BTreeSet<String> = list(&r, d, 0, limit).iter().map(|e| e.name.to_string()).collect();
        assert_eq!(got, names);
    }
    let entries = list(&r, d, 2, 1000);
    assert!(entries.iter().all(|e| e.cookie > 2) && entries.windows(2).all(|w| w[0].cookie < w[1].cookie));
}

#[test]
fn cookies_survive_changes_and_restarts() {
    let mut r = Rig::new();
    for i in 0..200 {
        r.file(ROOT, &format!("n{i}"));
    }
    let all = list(&r, ROOT, 0, 1000);
    let (seen, rest) = all.split_at(80);
    let at = seen.last().unwrap().cookie;
    for e in seen {
        r.unlink(ROOT, &e.name.to_string()).unwrap();
    }
    for i in 0..50 {
        r.file(ROOT, &format!("late{i}"));
    }
    let mut bytes = vec![];
    r.p.write_to(&mut bytes).unwrap();
    r.p = fusefs_meta_state::Partition::read_from(&mut &bytes[..]).unwrap();
    let after: BTreeSet<_> = list(&r, ROOT, at, 9).iter().map(|e| e.name.clone()).collect();
    assert!(rest.iter().all(|e| after.contains(&e.name)), "what was there all the time is seen");
    assert!(seen.iter().all(|e| !after.contains(&e.name)));
}

#[test]
fn plus_carries_attributes() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    match r.read(Read::ReadDir { ino: ROOT, after: 0, limit: 10, plus: true }) {
        Ok(ReadReply::Entries { entries, end: true, dir }) => {
            assert_eq!((entries[0].attr, dir), (Some(r.attr(f)), r.attr(ROOT)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(err(r.read(Read::ReadDir { ino: f, after: 0, limit: 1, plus: false })), FsError::NotDirectory);
    let d = r.mkdir(ROOT, "d");
    r.rmdir(ROOT, "d").unwrap();
    assert!(list(&r, d, 0, 10).is_empty(), "a removed directory is empty");
}

#[test]
fn extents_come_in_pages_and_slices() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    let count = limits::EXTENTS_REPLY_MAX as u64 + 10;
    for first in (0..count).step_by(200) {
        let pieces = (first..count.min(first + 200)).map(|i| piece(i * 10, 5, 1 + i, 0)).collect();
        r.commit(f, 0, pieces).unwrap();
    }
    let page = |offset, len| match r.read(Read::Extents { ino: f, offset, len }) {
        Ok(ReadReply::Extents { extents, end, .. }) => (extents, end),
        other => panic!("{other:?}"),
    };
    let (first, end) = page(0, u64::MAX);
    assert_eq!((first.len(), end), (limits::EXTENTS_REPLY_MAX, limits::EXTENTS_REPLY_MAX as u64 * 10));
    let (rest, end) = page(end, u64::MAX);
    assert_eq!((rest.len(), end), (10, u64::MAX));
    let (cut, end) = page(12, 10);
    assert_eq!((cut.len(), cut[0].offset, cut[0].len, cut[1].len, end), (2, 12, 3, 2, 22));
    assert_eq!(page(5, 5).0, vec![]);
    assert_eq!(err(r.read(Read::Extents { ino: ROOT, offset: 0, len: 1 })), FsError::IsDirectory);
}

#[test]
fn statfs_counts() {
    let mut r = Rig::new();
    let f = r.file(ROOT, "f");
    r.commit(f, 0, vec![piece(0, 100, 1, 0), inline(100, b"xyz")]).unwrap();
    match r.read(Read::StatFs) {
        Ok(ReadReply::StatFs(u)) => {
            assert_eq!((u.inodes, u.bytes, u.inline_bytes, u.operations, u.objects, u.orphans), (2, 103, 3, 2, 1, 0));
        }
        other => panic!("{other:?}"),
    }
}
