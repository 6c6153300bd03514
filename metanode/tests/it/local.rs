//! One partition: the path of writes and reads, restarts, exactly once, fail-over.

use crate::world::{Client, VOLUME, World, addr, create, eventually, name};
use bytes::Bytes;
use fusefs_types::{
    FileKind, FsError, Ino, PartitionId, Time,
    ops::{Commit, CommitFile, NewNode, Piece, Read, ReadReply, Unlink, Write, WriteReply},
};
use std::sync::Arc;

pub fn commit(ino: Ino, offset: u64, bytes: &[u8]) -> Write {
    Write::Commit(Commit {
        files: vec![CommitFile {
            ino,
            trunc_seq: 0,
            pieces: vec![Piece::Inline { offset, bytes: Bytes::copy_from_slice(bytes) }],
            mtime: Some(Time(1_000)),
            grow_to: offset + bytes.len() as u64,
            kill_priv: false,
        }],
    })
}

/// Bytes of an inline-only file.
pub async fn content(client: &Client<'_>, ino: Ino) -> Vec<u8> {
    let ReadReply::Extents { attr, extents, inline, .. } =
        client.read(Read::Extents { ino, offset: 0, len: u64::MAX >> 1 }).await.unwrap()
    else {
        panic!("not extents")
    };
    let mut out = vec![0; attr.size as usize];
    for (i, bytes) in inline {
        let at = extents[i as usize].offset as usize;
        out[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    out
}

#[tokio::test(start_paused = true)]
async fn create_lookup_list_commit_and_read_back() {
    let world = World::new(1, 1).await;
    let client = Client::new(&world, 1);
    let dir = client.create(Ino::ROOT, "d", NewNode::Directory).await.unwrap();
    let mut files = Vec::new();
    for i in 0..20 {
        files.push(client.create(dir.ino, &format!("f{i}"), NewNode::File).await.unwrap().ino);
    }
    assert_eq!(client.lookup(dir.ino, "f7").await, Ok(Some(files[7])));
    assert_eq!(client.lookup(dir.ino, "absent").await, Ok(None));
    assert_eq!(client.create(dir.ino, "f7", NewNode::File).await.unwrap_err(), FsError::Exists);
    client.write(commit(files[3], 0, b"hello world")).await.unwrap();
    client.write(commit(files[3], 6, b"there")).await.unwrap();
    assert_eq!(content(&client, files[3]).await, b"hello there");
    let ReadReply::Entries { entries, end, .. } =
        client.read(Read::ReadDir { ino: dir.ino, after: 0, limit: 100, plus: true }).await.unwrap()
    else {
        panic!("not entries")
    };
    assert!(end && entries.len() == 20);
    assert!(entries.iter().all(|e| e.kind == FileKind::Regular && e.attr.is_some()));
    assert_eq!(world.fsck().await, Vec::<String>::new());
    let metrics = world.node(0).metrics();
    assert!(metrics.contains("fusefs_partition_operations{volume=\"5\",partition=\"1\"}"), "{metrics}");
}

#[tokio::test(start_paused = true)]
async fn state_and_inline_bytes_survive_restarts_from_log_and_from_checkpoint() {
    let world = World::new(1, 1).await;
    let client = Client::new(&world, 1);
    let a = client.create(Ino::ROOT, "a", NewNode::File).await.unwrap().ino;
    client.write(commit(a, 0, &[7; 9_000])).await.unwrap();
    world.stop(0).await;
    world.start(0).await;
    assert_eq!(content(&client, a).await, vec![7; 9_000], "replayed from the log");
    let group = world.node(0).host().group(PartitionId(1)).unwrap();
    group.checkpoint().await.unwrap();
    client.write(commit(a, 8_000, &[8; 2_000])).await.unwrap();
    drop(group);
    world.stop(0).await;
    world.start(0).await;
    let want = [vec![7; 8_000], vec![8; 2_000]].concat();
    assert_eq!(content(&client, a).await, want, "checkpoint and log");
    // The session is known again without asking the master.
    client.create(Ino::ROOT, "b", NewNode::File).await.unwrap();
    assert_eq!(world.net.attaches.lock().len(), 1);
    assert_eq!(world.fsck().await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn one_attach_serves_all_concurrent_requests_of_a_session() {
    let world = World::new(1, 1).await;
    let client = Client::new(&world, 1);
    let results = futures::future::join_all((0..16).map(|i| {
        let client = &client;
        async move { client.create(Ino::ROOT, &format!("n{i}"), NewNode::File).await }
    }))
    .await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(*world.net.attaches.lock(), vec![(client.session, PartitionId(1))]);

    *world.net.attach_error.lock() = Some(FsError::Stale);
    let ended = Client::new(&world, 2);
    assert_eq!(ended.create(Ino::ROOT, "x", NewNode::File).await.unwrap_err(), FsError::Stale);
}

#[tokio::test(start_paused = true)]
async fn a_retry_with_the_same_op_id_gets_the_stored_reply() {
    let world = World::new(1, 1).await;
    let client = Client::new(&world, 1);
    let op = client.op();
    let write = create(Ino::ROOT, "once", NewNode::File);
    let first = client.write_as(op, write.clone()).await.unwrap();
    assert_eq!(client.write_as(op, write.clone()).await.unwrap(), first);
    world.stop(0).await;
    world.start(0).await;
    assert_eq!(client.write_as(op, write).await.unwrap(), first);
    let other = create(Ino::ROOT, "other", NewNode::File);
    assert_eq!(client.write_as(op, other).await, Err(FsError::FingerprintMismatch));
}

#[tokio::test(start_paused = true)]
async fn keys_of_others_and_strange_volumes_are_wrong_range() {
    let world = World::new(1, 2).await;
    let client = Client::new(&world, 1);
    let far = Ino(1 << 50);
    let refusal =
        world.node(0).read(client.envelope(None), PartitionId(0), Read::GetAttr { ino: far }).await.unwrap_err();
    assert_eq!(refusal.error, FsError::WrongRange);
    let mut envelope = client.envelope(Some(client.op()));
    envelope.volume = fusefs_types::VolumeId(VOLUME.0 + 1);
    let refusal = world.node(0).write(envelope, create(Ino::ROOT, "x", NewNode::File)).await.unwrap_err();
    assert_eq!(refusal.error, FsError::WrongRange);
    let node = world.node(0);
    let statfs = |p| node.read(client.envelope(None), PartitionId(p), Read::StatFs);
    assert!(matches!(statfs(2).await, Ok(ReadReply::StatFs(_))));
    assert_eq!(statfs(9).await.unwrap_err().error, FsError::WrongRange);
}

#[tokio::test(start_paused = true)]
async fn another_replica_takes_over_and_knows_the_replies() {
    let world = World::new(3, 1).await;
    let client = Client::new(&world, 1);
    let op = client.op();
    let write = create(Ino::ROOT, "kept", NewNode::File);
    let first = client.write_as(op, write.clone()).await.unwrap();
    let WriteReply::Created { attr, .. } = &first else { panic!("{first:?}") };
    client.write(commit(attr.ino, 0, b"inline")).await.unwrap();

    let old = world.leader(PartitionId(1)).await;
    let follower = world.node((old + 1) % 3);
    let refusal = follower.write(client.envelope(Some(op)), write.clone()).await.unwrap_err();
    assert_eq!((refusal.error, refusal.leader), (FsError::NotLeader, Some(addr(old))));

    let begin = tokio::time::Instant::now();
    world.stop(old).await;
    assert_eq!(client.write_as(op, write).await.unwrap(), first);
    assert!(begin.elapsed().as_secs() < 5, "took {:?}", begin.elapsed());
    assert_eq!(content(&client, attr.ino).await, b"inline");
    assert_ne!(world.leader(PartitionId(1)).await, old);
    world.start(old).await;
    let old = world.node(old);
    let client = Arc::new(client);
    eventually("the old leader follows", || async {
        old.host().group(PartitionId(1)).is_some_and(|g| g.status().leader.is_some())
    })
    .await;
    client.write(Write::Unlink(Unlink { parent: Ino::ROOT, name: name("kept"), directory: false })).await.unwrap();
}
