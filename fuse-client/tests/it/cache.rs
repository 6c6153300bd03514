//! What is answered from memory, what it costs otherwise, and when memory stops being an answer.

use crate::cluster::Cluster;
use bytes::Bytes;
use fusefs_data_path::ObjectStore;
use fusefs_fuse_client::vfs::Change;
use fusefs_types::{FsError, cluster::VolumeSpace, ops::RenameMode};
use std::time::Duration;

#[tokio::test]
async fn a_create_in_a_directory_made_or_listed_here_is_one_rpc() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.client(), cluster.client());
    a.mkdir("made").await.unwrap();
    b.mkdir("listed").await.unwrap();
    a.list("listed").await.unwrap();
    a.meta.take_counts();
    for dir in ["made", "listed"] {
        for i in 0..20 {
            a.create(&format!("{dir}/f{i}")).await.unwrap();
            let counts = a.meta.take_counts();
            assert_eq!(counts.into_iter().collect::<Vec<_>>(), [("create", 1)], "{dir}/f{i}");
            cluster.clock.advance_ms(20);
        }
    }
}

#[tokio::test]
async fn own_creates_keep_a_directory_complete_for_as_long_as_they_go_on() {
    let cluster = Cluster::new();
    let a = cluster.client();
    a.mkdir("d").await.unwrap();
    let dir = a.walk("d").await.unwrap().ino;
    for i in 0..50 {
        a.meta.take_counts();
        a.vfs.create(&a.rq(), dir, Bytes::from(format!("f{i}")), 0o644, libc::O_RDWR | libc::O_EXCL).await.unwrap();
        cluster.clock.advance_ms(500);
        assert!(a.look(dir, &format!("f{}", i + 1)).await.unwrap().is_none());
        assert_eq!(a.rpcs(), 1, "25 s of creates, absent names never asked for");
    }
}

#[tokio::test]
async fn renames_unlinks_and_links_keep_it_complete_too() {
    let cluster = Cluster::new();
    let a = cluster.client();
    a.mkdir("d").await.unwrap();
    a.create("d/f").await.unwrap();
    a.walk("d").await.unwrap();
    a.meta.take_counts();
    let one = |what: &str| assert_eq!(a.rpcs(), 1, "{what}");
    a.rename("d/f", "d/g", RenameMode::Replace).await.unwrap();
    assert_eq!(a.meta.take_counts().get("rename"), Some(&1));
    a.walk("d").await.unwrap();
    a.meta.take_counts();
    assert!(!a.exists("d/f").await && a.exists("d/g").await);
    one("only the renamed inode's attributes");
    a.link("d/g", "d/h").await.unwrap();
    one("link");
    a.unlink("d/g").await.unwrap();
    one("unlink");
    assert!(!a.exists("d/g").await && !a.exists("d/nothing").await);
    assert_eq!(a.rpcs(), 0);
}

#[tokio::test]
async fn cached_stat_and_absent_names_cost_nothing_until_they_expire() {
    let cluster = Cluster::new();
    let a = cluster.client();
    a.put("f", b"hello").await.unwrap();
    a.walk("f").await.unwrap();
    assert!(!a.exists("none").await);
    a.meta.take_counts();
    for _ in 0..10 {
        assert_eq!(a.walk("f").await.unwrap().size, 5);
        assert!(!a.exists("none").await);
    }
    assert_eq!(a.rpcs(), 0);
    cluster.clock.advance_ms(1001);
    a.walk("f").await.unwrap();
    assert!(a.rpcs() >= 1, "expired");
    cluster.clock.advance_ms(1001);
    assert!(!a.exists("none").await);
    assert!(a.rpcs() >= 1, "expired");
}

#[tokio::test]
async fn expired_completeness_is_revalidated_by_the_lookup_itself() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.client(), cluster.client());
    a.mkdir("d").await.unwrap();
    let dir = a.walk("d").await.unwrap().ino;
    cluster.clock.advance_ms(1500);
    a.meta.take_counts();
    assert!(a.look(dir, "x").await.unwrap().is_none());
    assert_eq!(a.rpcs(), 1);
    assert!(a.look(dir, "y").await.unwrap().is_none());
    assert_eq!(a.rpcs(), 0, "the version was right, all other names are still absent");
    b.create("d/z").await.unwrap();
    cluster.clock.advance_ms(1500);
    assert!(a.look(dir, "x").await.unwrap().is_none());
    assert_eq!(a.rpcs(), 1);
    assert!(a.look(dir, "z").await.unwrap().is_some(), "somebody else was here: not complete any more");
    assert_eq!(a.rpcs(), 1);
}

#[tokio::test]
async fn a_foreign_change_hidden_between_own_ones_is_noticed() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.client(), cluster.client());
    a.mkdir("d").await.unwrap();
    let dir = a.walk("d").await.unwrap().ino;
    for i in 0..3 {
        a.create(&format!("d/a{i}")).await.unwrap();
    }
    b.create("d/foreign").await.unwrap();
    for i in 3..6 {
        cluster.clock.advance_ms(350);
        a.vfs.create(&a.rq(), dir, Bytes::from(format!("a{i}")), 0o644, libc::O_EXCL).await.unwrap();
    }
    // More than the validity after the foreign create, less than that after the last own one.
    assert!(a.look(dir, "foreign").await.unwrap().is_some());
}

#[tokio::test]
async fn small_caches_forget_but_stay_right() {
    let cluster = Cluster::new();
    let a = cluster.client_with(|s| (s.inodes, s.dentries) = (32, 32));
    a.mkdir("d").await.unwrap();
    for i in 0..200 {
        a.create(&format!("d/f{i}")).await.unwrap();
    }
    for i in 0..200 {
        assert!(a.exists(&format!("d/f{i}")).await, "f{i}: a dropped name must not look absent");
    }
    let mut names = a.list("d").await.unwrap();
    names.sort();
    assert_eq!(names.len(), 200);
    assert!(a.exists("d/f0").await && a.exists("d/f199").await && !a.exists("d/f200").await);
    let stats = a.vfs.stats();
    assert!(stats.inodes <= 32 + 16 && stats.dentries <= 32 + 16, "{stats:?}");
    assert!(stats.inodes_evicted > 100 && stats.dentries_evicted > 100, "{stats:?}");
}

#[tokio::test]
async fn attributes_without_xattrs_answer_xattr_questions() {
    let cluster = Cluster::new();
    let a = cluster.client();
    let ino = a.put("f", b"x").await.unwrap();
    a.meta.take_counts();
    let name = || Bytes::from_static(b"user.a");
    assert_eq!(a.vfs.getxattr(&a.rq(), ino, name()).await, Err(FsError::NoData));
    assert_eq!(a.vfs.listxattr(&a.rq(), ino).await.unwrap(), Bytes::new());
    assert_eq!(a.rpcs(), 0);
    let value = Bytes::from_static(b"value");
    a.vfs.setxattr(&a.rq(), ino, name(), value.clone(), Default::default()).await.unwrap();
    assert_eq!(a.vfs.getxattr(&a.rq(), ino, name()).await, Ok(value));
    assert_eq!(a.vfs.listxattr(&a.rq(), ino).await.unwrap(), Bytes::from_static(b"user.a\0"));
    a.vfs.removexattr(&a.rq(), ino, name()).await.unwrap();
    a.meta.take_counts();
    assert_eq!(a.vfs.getxattr(&a.rq(), ino, name()).await, Err(FsError::NoData));
    assert_eq!(a.rpcs(), 0);
    let acl = Bytes::from_static(b"system.posix_acl_access");
    assert_eq!(a.vfs.setxattr(&a.rq(), ino, acl, name(), Default::default()).await, Err(FsError::NotSupported));
}

#[tokio::test]
async fn flush_of_a_clean_handle_and_opendir_are_local() {
    let cluster = Cluster::new();
    let a = cluster.client();
    a.put("f", b"x").await.unwrap();
    let (ino, fh) = a.open("f", libc::O_RDWR).await.unwrap();
    a.meta.take_counts();
    a.close(ino, fh).await.unwrap();
    a.vfs.opendir(&a.rq(), fusefs_types::Ino::ROOT, 0).await.unwrap();
    a.vfs.fsyncdir(&a.rq(), fusefs_types::Ino::ROOT).await.unwrap();
    assert_eq!(a.rpcs(), 0);
}

#[tokio::test]
async fn create_write_close_is_two_rpcs() {
    let cluster = Cluster::new();
    let a = cluster.client();
    a.mkdir("d").await.unwrap();
    a.meta.take_counts();
    a.put("d/f", &[7; 1024]).await.unwrap();
    let counts: Vec<_> = a.meta.take_counts().into_iter().collect();
    assert_eq!(counts, [("commit", 1), ("create", 1)]);
    assert!(cluster.store.list("", None, 10).await.unwrap().is_empty(), "small data rides inline");
}

#[tokio::test]
async fn past_the_lease_nothing_is_answered_from_memory() {
    let cluster = Cluster::new();
    let a = cluster.client();
    a.put("f", b"x").await.unwrap();
    let ino = a.walk("f").await.unwrap().ino;
    a.meta.set_leased(false);
    let (rq, vfs) = (a.rq(), a.vfs.clone());
    let waiting = tokio::spawn(async move { vfs.getattr(&rq, ino).await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished(), "a cached answer past the lease");
    let rq = a.rq();
    let open = a.vfs.opendir(&rq, ino, 0);
    assert!(tokio::time::timeout(Duration::from_millis(20), open).await.is_err());
    a.meta.set_leased(true);
    assert_eq!(waiting.await.unwrap().unwrap().0.size, 1);

    let soft = cluster.client_with(|s| s.soft = Some(Duration::from_millis(10)));
    soft.meta.set_leased(false);
    assert_eq!(soft.vfs.getattr(&soft.rq(), ino).await, Err(FsError::Io));
}

#[tokio::test]
async fn a_read_only_mount_refuses_every_change() {
    let cluster = Cluster::new();
    cluster.client().put("f", b"x").await.unwrap();
    let a = cluster.client_with(|s| s.read_only = true);
    assert_eq!(a.get("f").await.unwrap(), b"x");
    a.meta.take_counts();
    assert_eq!(a.create("g").await.map(|_| ()), Err(FsError::ReadOnly));
    assert_eq!(a.open("f", libc::O_RDWR).await.map(|_| ()), Err(FsError::ReadOnly));
    assert_eq!(a.unlink("f").await, Err(FsError::ReadOnly));
    let change = Change { mode: Some(0), ..Change::default() };
    assert_eq!(a.set("f", change).await.map(|_| ()), Err(FsError::ReadOnly));
}

#[tokio::test]
async fn a_complete_listing_voids_what_was_believed_before() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.client(), cluster.client());
    let dir = a.mkdir("d").await.unwrap();
    a.create("d/x").await.unwrap();
    assert!(b.look(dir, "x").await.unwrap().is_some());
    cluster.clock.advance_ms(1001);
    a.unlink("d/x").await.unwrap();
    b.list("d").await.unwrap();
    b.meta.take_counts();
    assert!(b.look(dir, "x").await.unwrap().is_none(), "the listing did not have it");
    assert_eq!(b.rpcs(), 0);
}

#[tokio::test]
async fn a_full_volume_refuses_writes_and_asks_for_the_count() {
    let a = Cluster::new().client();
    let (attr, fh) = a.create("f").await.unwrap();
    let write = |len: usize| {
        let a = &a;
        async move { a.pwrite(attr.ino, fh, 0, &vec![1; len], 0).await }
    };
    let recounts = || a.meta.take_counts().get("recount").copied().unwrap_or(0);
    let space = |capacity, used| *a.meta.space.lock() = VolumeSpace { capacity, inodes: 0, used };
    write(9).await.unwrap();
    assert_eq!(recounts(), 0, "unlimited");
    space(100, 40);
    write(50).await.unwrap();
    assert_eq!(recounts(), 0, "far from the end");
    write(50).await.unwrap();
    assert_eq!(recounts(), 1, "near the end, as far as one can know here");
    space(100, 100);
    assert_eq!(write(1).await, Err(FsError::NoSpace));
    assert_eq!(recounts(), 1);
    space(200, 100);
    write(1).await.unwrap();
}
