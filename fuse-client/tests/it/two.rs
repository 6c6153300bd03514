//! Two mounts of one volume.

use crate::cluster::{Client, Cluster, Hold};
use crate::rng::{Random, seeds};
use bytes::Bytes;
use fusefs_fuse_client::vfs::{Change, Request};
use fusefs_types::{
    FsError, Ino, Time,
    ops::{RenameMode, SetTime},
};
use std::sync::Arc;

#[tokio::test]
async fn open_after_close_sees_the_new_bytes() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.client(), cluster.client());
    a.put("f", b"one").await.unwrap();
    for round in 0..20u8 {
        let (w, r) = if round % 2 == 0 { (&b, &a) } else { (&a, &b) };
        let data = vec![round; 10 + usize::from(round) * 1000];
        w.put("f", &data).await.unwrap();
        // No time passes: only open's question makes this right.
        let got = r.get("f").await.unwrap();
        assert!(got == data, "round {round}: {} bytes of {:?}", got.len(), got.first());
    }
}

/// The kernel asks for a name once more when a file that it knew by number is gone; that answer must be the new file, also
/// while somebody still has the old one open.
#[tokio::test]
async fn a_file_that_was_replaced_is_not_found_under_its_name_again() {
    let cluster = Cluster::new();
    let (a, b, c) = (cluster.client(), cluster.client(), cluster.client());
    let old = a.put("f", b"old").await.unwrap();
    assert_eq!(b.get("f").await.unwrap(), b"old");
    let (ino, fh) = c.open("f", libc::O_RDONLY).await.unwrap();
    let new = a.put("g", b"new").await.unwrap();
    a.rename("g", "f", RenameMode::Replace).await.unwrap();
    // No time passes: the name is still known here, and the kernel still has the number.
    assert_eq!(b.vfs.open(&b.rq(), old, libc::O_RDONLY).await.err(), Some(FsError::Stale));
    let found = b.look(Ino::ROOT, "f").await.unwrap().unwrap();
    assert_eq!(found.attr.ino, new, "{old} is still open elsewhere, and has no name");
    c.close(ino, fh).await.unwrap();
}

#[tokio::test]
async fn the_kernel_keeps_its_pages_only_of_an_unchanged_file() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.client(), cluster.client());
    let ino = a.put("f", b"one").await.unwrap();
    let open = async |c: &Client| {
        let o = c.vfs.open(&c.rq(), ino, libc::O_RDONLY).await.unwrap();
        c.vfs.release(&c.rq(), ino, o.fh).await;
        o.keep_cache
    };
    assert!(!open(&b).await, "nothing read yet");
    assert!(open(&b).await);
    a.put("f", b"two").await.unwrap();
    assert!(!open(&b).await, "changed");
    assert!(open(&b).await);
    b.vfs.forget(ino);
    assert!(!open(&b).await, "the kernel dropped them");
}

#[tokio::test]
async fn names_and_attributes_are_never_older_than_their_validity() {
    for seed in seeds(10) {
        let cluster = Cluster::new();
        let (a, b) = (cluster.client(), cluster.client());
        let mut rng = Random::new(seed);
        let dir = a.mkdir("d").await.unwrap();
        b.walk("d").await.unwrap();
        let mut stale = 0;
        for step in 0..300 {
            let name = format!("f{}", rng.below(4));
            let (writer, reader) = if rng.below(2) == 0 { (&a, &b) } else { (&b, &a) };
            // The kernel of the writer asks before it changes; so it is right whatever it remembers.
            let present =
                match writer.vfs.create(&writer.rq(), dir, Bytes::from(name.clone()), 0o600, libc::O_EXCL).await {
                    Ok((e, o)) => {
                        writer.vfs.release(&writer.rq(), e.attr.ino, o.fh).await;
                        true
                    }
                    Err(FsError::Exists) => {
                        writer.vfs.unlink(&writer.rq(), dir, Bytes::from(name.clone())).await.unwrap();
                        false
                    }
                    Err(e) => panic!("seed {seed} step {step}: {e}"),
                };
            let own = writer.look(dir, &name).await.unwrap().is_some();
            assert_eq!(own, present, "seed {seed} step {step}: own change of {name} not seen");
            stale += u32::from(reader.look(dir, &name).await.unwrap().is_some() != present);
            // The reader's own changes of the directory must not make it believe that it knows the other's.
            cluster.clock.advance_ms(500);
            let own = Bytes::from(format!("own{step}"));
            let (e, o) = reader.vfs.create(&reader.rq(), dir, own, 0o600, libc::O_EXCL).await.unwrap();
            reader.vfs.release(&reader.rq(), e.attr.ino, o.fh).await;
            cluster.clock.advance_ms(500);
            let seen = reader.look(dir, &name).await.unwrap().is_some();
            assert_eq!(seen, present, "seed {seed} step {step}: {name} is stale after its validity");
        }
        println!("seed {seed}: {stale} stale answers inside the validity, 0 outside");
        assert!(stale > 0, "seed {seed}: nothing was ever cached, so nothing was tested");
    }
}

#[tokio::test]
async fn appends_of_two_clients_do_not_overwrite_each_other() {
    let cluster = Cluster::new();
    let (a, b) = (Arc::new(cluster.client()), Arc::new(cluster.client()));
    a.put("log", b"").await.unwrap();
    let mut tasks = Vec::new();
    for (c, who) in [(a.clone(), b'a'), (b.clone(), b'b')] {
        tasks.push(tokio::spawn(async move {
            let flags = libc::O_WRONLY | libc::O_APPEND;
            let (ino, fh) = c.open("log", flags).await.unwrap();
            for i in 0..50u8 {
                // The kernel's idea of the offset is wrong half of the time.
                assert_eq!(c.pwrite(ino, fh, 0, &[who, i, b'\n'], flags).await, Ok(3));
                tokio::task::yield_now().await;
            }
            c.close(ino, fh).await.unwrap();
        }));
    }
    for t in tasks {
        t.await.unwrap();
    }
    let log = a.get("log").await.unwrap();
    assert_eq!(log.len(), 300);
    for who in [b'a', b'b'] {
        let mine: Vec<u8> = log.chunks(3).filter(|r| r[0] == who).map(|r| r[1]).collect();
        assert_eq!(mine, (0..50).collect::<Vec<u8>>());
    }
    let o = a.vfs.open(&a.rq(), a.walk("log").await.unwrap().ino, libc::O_WRONLY | libc::O_APPEND).await.unwrap();
    assert!(o.direct_io, "the kernel must not place appends in its page cache");
}

/// A client that knows a file's number from before another one replaced it is told to look at the name again.
#[tokio::test]
async fn a_file_that_was_replaced_elsewhere_is_stale_not_absent() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.client(), cluster.client());
    a.put("f", b"old").await.unwrap();
    let old = b.walk("f").await.unwrap().ino;
    a.put("new", b"new").await.unwrap();
    a.rename("new", "f", RenameMode::Replace).await.unwrap();
    assert_eq!(b.vfs.open(&b.rq(), old, libc::O_RDONLY).await.map(|_| ()), Err(FsError::Stale));
    assert_eq!(b.get("f").await.unwrap(), b"new");
}

#[tokio::test]
async fn an_unlinked_file_lives_as_long_as_it_is_open_anywhere() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.client(), cluster.client());
    a.put("f", b"still here").await.unwrap();
    let (ino, fh) = b.open("f", libc::O_RDWR).await.unwrap();
    a.unlink("f").await.unwrap();
    assert_eq!(cluster.usage().orphans, 1);
    assert_eq!(&b.pread(ino, fh, 0, 100).await.unwrap()[..], b"still here");
    b.pwrite(ino, fh, 6, b"there", 0).await.unwrap();
    assert_eq!(&b.pread(ino, fh, 0, 100).await.unwrap()[..], b"still there");
    b.close(ino, fh).await.unwrap();
    assert_eq!(cluster.usage().orphans, 0, "freed with the last close");
    assert_eq!(b.vfs.getattr(&b.rq(), ino).await.map(|_| ()), Err(FsError::Stale));
    assert!(!b.vfs.stats().open > 0);

    let (attr, fh) = a.create("own").await.unwrap();
    a.unlink("own").await.unwrap();
    a.pwrite(attr.ino, fh, 0, b"x", 0).await.unwrap();
    assert_eq!(a.vfs.getattr(&a.rq(), attr.ino).await.unwrap().0.size, 1);
    a.close(attr.ino, fh).await.unwrap();
    assert_eq!(cluster.usage().orphans, 0);
}

/// Lets background work run until something has come true.
async fn soon(what: &str, reached: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if reached() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("waited too long: {what}");
}

/// While a create is under way its client holds whatever it is asked about, since any inode may be the new one.
#[tokio::test]
async fn what_a_killed_client_claimed_to_hold_is_freed_by_its_successor() {
    for sent_again in [false, true] {
        let cluster = Cluster::new();
        let (a, b) = (Arc::new(cluster.client()), cluster.client());
        a.put("gone", b"one").await.unwrap();
        let before = cluster.usage().inodes;
        a.meta.hold(Hold { replies: true, ..Hold::default() });
        let rq = a.rq();
        let unique = rq.unique;
        let client = a.clone();
        let create = async move { client.vfs.create(&rq, Ino::ROOT, "new".into(), 0o600, libc::O_EXCL).await };
        let making = tokio::spawn(create);
        soon("the create", || cluster.usage().inodes == before + 1).await;
        b.vfs.unlink(&b.rq(), Ino::ROOT, "gone".into()).await.unwrap();
        assert_eq!(cluster.usage().orphans, 1);
        // It is killed: nothing that it has to say arrives any more.
        a.meta.cut(true);
        making.abort();
        assert!(making.await.is_err());
        let next = cluster.successor_with(&a, |s| s.resumed = true);
        assert_eq!(cluster.usage().orphans, 1, "nobody knows yet what is sent again");
        let mut again = Request::new(unique, 0, 0);
        again.resent = true;
        if sent_again {
            next.vfs.register(&again);
        }
        next.vfs.resumed();
        if sent_again {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert_eq!(cluster.usage().orphans, 1, "the create is not answered yet");
            let (entry, opened) = next.vfs.create(&again, Ino::ROOT, "new".into(), 0o600, libc::O_EXCL).await.unwrap();
            b.vfs.unlink(&b.rq(), Ino::ROOT, "new".into()).await.unwrap();
            drop(again);
            soon("the file that nobody has open goes", || cluster.usage().orphans == 1).await;
            assert!(next.vfs.getattr(&next.rq(), entry.attr.ino).await.is_ok());
            next.vfs.release(&next.rq(), entry.attr.ino, opened.fh).await;
        }
        soon("nothing is held any more", || cluster.usage().orphans == 0).await;
    }
}

#[tokio::test]
async fn a_handle_of_which_the_kernel_did_not_hear_is_nobodys() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.client(), cluster.client());
    let rq = a.rq();
    a.vfs.create(&rq, Ino::ROOT, "f".into(), 0o600, libc::O_EXCL).await.unwrap();
    b.vfs.unlink(&b.rq(), Ino::ROOT, "f".into()).await.unwrap();
    assert_eq!(cluster.usage().orphans, 1);
    a.vfs.unheard(&rq);
    soon("it is freed", || cluster.usage().orphans == 0).await;
}

#[tokio::test]
async fn a_create_that_meets_a_foreign_file_asks_for_a_new_lookup() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.client(), cluster.client());
    let dir = a.mkdir("d").await.unwrap();
    b.put("d/f", b"theirs").await.unwrap();
    assert!(a.look(dir, "f").await.unwrap().is_none(), "a believes it absent");
    let f = || Bytes::from_static(b"f");
    let flags = libc::O_RDWR | libc::O_CREAT;
    assert_eq!(a.vfs.create(&a.rq(), dir, f(), 0o644, flags).await.map(|_| ()), Err(FsError::Stale));
    assert!(a.look(dir, "f").await.unwrap().is_some(), "the second look is right");
    assert_eq!(a.vfs.create(&a.rq(), dir, f(), 0o644, flags | libc::O_EXCL).await.map(|_| ()), Err(FsError::Exists));
    assert_eq!(a.vfs.stats().open, 0);
    assert_eq!(a.get("d/f").await.unwrap(), b"theirs");
}

#[tokio::test]
async fn explicit_times_survive_later_commits_and_dirty_sizes_are_shown() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.client(), cluster.client());
    let (attr, fh) = a.create("f").await.unwrap();
    a.pwrite(attr.ino, fh, 0, &[1; 5000], 0).await.unwrap();
    assert_eq!(a.walk("f").await.unwrap().size, 5000, "own size before any commit");
    assert_eq!(b.walk("f").await.unwrap().size, 0);
    let then = Time(1_000_000_007);
    a.set("f", Change { mtime: Some(SetTime::At(then)), atime: Some(SetTime::At(then)), ..Change::default() })
        .await
        .unwrap();
    assert_eq!(a.walk("f").await.unwrap().mtime, then);
    a.close(attr.ino, fh).await.unwrap();
    cluster.clock.advance_ms(1000);
    for c in [&a, &b] {
        let now = c.walk("f").await.unwrap();
        assert_eq!((now.size, now.mtime, now.atime), (5000, then, then));
    }
}

#[tokio::test]
async fn a_truncation_by_one_is_not_undone_by_the_other() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.client(), cluster.client());
    let (attr, fh) = a.create("f").await.unwrap();
    let ino: Ino = attr.ino;
    a.pwrite(ino, fh, 0, &[1; 8000], 0).await.unwrap();
    a.vfs.fsync(&a.rq(), ino).await.unwrap();
    a.pwrite(ino, fh, 8000, &[2; 100], 0).await.unwrap();
    b.truncate("f", 10).await.unwrap();
    a.close(ino, fh).await.unwrap();
    assert_eq!(b.get("f").await.unwrap(), vec![1; 10], "bytes written before the truncation stay cut");
    a.truncate("f", 20).await.unwrap();
    let mut want = vec![1; 10];
    want.resize(20, 0);
    assert_eq!(b.get("f").await.unwrap(), want);
}

#[tokio::test]
async fn a_repeated_request_is_answered_with_attributes_as_of_now() {
    let cluster = Cluster::new();
    let first = cluster.client();
    let ino = first.put("f", b"").await.unwrap();
    let again = || {
        let mut rq = Request::new(5_000, 0, 0);
        rq.resent = true;
        rq
    };
    let change = |mode| Change { mode: Some(mode), ..Change::default() };
    first.vfs.setattr(&Request::new(5_000, 0, 0), ino, change(0o600)).await.unwrap();
    // Executed, not answered; the mount goes on with the file.
    first.vfs.setattr(&first.rq(), ino, change(0o644)).await.unwrap();
    let next = cluster.successor_with(&first, |_| {});
    let (attr, _) = next.vfs.setattr(&again(), ino, change(0o600)).await.unwrap();
    assert_eq!(attr.mode, 0o644, "the stored reply is older than that");
    assert_eq!(next.vfs.getattr(&next.rq(), ino).await.unwrap().0.mode, 0o644);
}
