//! Orphans, holders and dead objects.

use crate::{
    local::{commit, content},
    world::{Client, World, eventually, name, store},
};
use bytes::Bytes;
use fusefs_data_path::object::{self, PutMode};
use fusefs_types::{
    Extent, FsError, Ino, ObjectId, PartitionId, Source, Time,
    cluster::{NodeCall, NodeReply, StoreCredentials},
    ops::{Commit, CommitFile, NewNode, PartitionUsage, Piece, Read, ReadReply, Unlink, Write},
    stream::{ClientBody, ServerBody},
    txn::Internal,
};

fn unlink(text: &str) -> Write {
    Write::Unlink(Unlink { parent: Ino::ROOT, name: name(text), directory: false })
}

async fn usage(world: &World, partition: u64) -> PartitionUsage {
    let leader = world.leader(PartitionId(partition)).await;
    let client = Client::new(world, 900);
    match world.node(leader).read(client.envelope(None), PartitionId(partition), Read::StatFs).await.unwrap() {
        ReadReply::StatFs(usage) => usage,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_unlinked_file_lives_until_its_last_close() {
    let world = World::new(1, 1).await;
    let client = Client::new(&world, 1);
    let ino = client.create(Ino::ROOT, "f", NewNode::File).await.unwrap().ino;
    client.write(commit(ino, 0, b"still here")).await.unwrap();
    let (mut stream, _) = open_stream(&world, &client);
    client.read(Read::Open { ino, write: false }).await.unwrap();
    client.write(unlink("f")).await.unwrap();
    // The leader knows that the session holds it and asks.
    let asked = next_question(&mut stream).await;
    assert_eq!(asked.2, vec![ino]);
    stream.answers().take(ClientBody::Holders { group: asked.0, term: asked.1, asked: asked.2, held: vec![ino] }).await;
    assert_eq!(content(&client, ino).await, b"still here");
    assert_eq!(usage(&world, 1).await.orphans, 1);
    client.read(Read::Close { ino }).await.unwrap();
    eventually("the orphan is freed", || async { usage(&world, 1).await.orphans == 0 }).await;
    assert_eq!(client.getattr(ino).await, Err(FsError::NotFound));
    assert_eq!(usage(&world, 1).await.inline_bytes, 0);
}

fn open_stream(world: &World, client: &Client<'_>) -> (fusefs_metanode::EventStream, ()) {
    (world.node(0).open_stream(&client.envelope(None)).ok().unwrap(), ())
}

async fn next_question(stream: &mut fusefs_metanode::EventStream) -> (PartitionId, u64, Vec<Ino>) {
    loop {
        let event = tokio::time::timeout(std::time::Duration::from_secs(30), stream.events.recv());
        match event.await.expect("the leader asks").expect("the stream lives").body {
            ServerBody::HoldersAsked { group, term, inos } => return (group, term, inos),
            ServerBody::Hello | ServerBody::MapChanged { .. } | ServerBody::LocksFreed { .. } => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn files_that_nobody_opened_are_freed_without_asking() {
    let world = World::new(1, 1).await;
    let client = Client::new(&world, 1);
    for i in 0..50 {
        client.create(Ino::ROOT, &format!("f{i}"), NewNode::File).await.unwrap();
    }
    for i in 0..50 {
        client.write(unlink(&format!("f{i}"))).await.unwrap();
    }
    eventually("all are freed", || async { usage(&world, 1).await.orphans == 0 }).await;
    assert_eq!(usage(&world, 1).await.inodes, 1);
    assert_eq!(world.fsck().await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_asks_and_a_silent_session_keeps_its_orphans_until_its_end() {
    let world = World::new(1, 1).await;
    let client = Client::new(&world, 1);
    let kept = client.create(Ino::ROOT, "kept", NewNode::File).await.unwrap().ino;
    let gone = client.create(Ino::ROOT, "gone", NewNode::File).await.unwrap().ino;
    client.read(Read::Open { ino: kept, write: false }).await.unwrap();
    world.stop(0).await;
    world.start(0).await;
    client.write(unlink("kept")).await.unwrap();
    client.write(unlink("gone")).await.unwrap();
    // Nobody answers: both stay.
    tokio::time::sleep_until(tokio::time::Instant::now() + std::time::Duration::from_secs(3)).await;
    assert_eq!(usage(&world, 1).await.orphans, 2);
    let (mut stream, _) = open_stream(&world, &client);
    let (group, term, inos) = next_question(&mut stream).await;
    assert_eq!(inos, vec![kept, gone]);
    stream.answers().take(ClientBody::Holders { group, term, asked: inos, held: vec![kept] }).await;
    eventually("the closed one is freed", || async { usage(&world, 1).await.orphans == 1 }).await;
    assert!(client.getattr(kept).await.is_ok());
    let end = Internal::EndSession { session: client.session, revoked: true };
    world.order(0, NodeCall::Command(PartitionId(1), end)).await.unwrap();
    eventually("the held one goes with its session", || async { usage(&world, 1).await.orphans == 0 }).await;
    assert_eq!(client.create(Ino::ROOT, "late", NewNode::File).await.unwrap_err(), FsError::Stale);
}

#[tokio::test(start_paused = true)]
async fn a_new_process_of_a_session_is_asked_again_what_it_holds() {
    let world = World::new(1, 1).await;
    let client = Client::new(&world, 1);
    let mut inos = Vec::new();
    for text in ["kept", "gone"] {
        inos.push(client.create(Ino::ROOT, text, NewNode::File).await.unwrap().ino);
        client.read(Read::Open { ino: inos[inos.len() - 1], write: false }).await.unwrap();
    }
    let (mut first, ()) = open_stream(&world, &client);
    for text in ["kept", "gone"] {
        client.write(unlink(text)).await.unwrap();
    }
    let mut told = Vec::new();
    while told.len() < 2 {
        let (group, term, asked) = next_question(&mut first).await;
        told.extend(asked.clone());
        first.answers().take(ClientBody::Holders { group, term, asked: asked.clone(), held: asked }).await;
    }
    drop(first);
    // The next process has only one of them open.
    let (mut second, ()) = open_stream(&world, &client);
    let (group, term, asked) = next_question(&mut second).await;
    assert_eq!(asked, inos);
    second.answers().take(ClientBody::Holders { group, term, asked, held: vec![inos[0]] }).await;
    eventually("the other is freed", || async { usage(&world, 1).await.orphans == 1 }).await;
    assert!(client.getattr(inos[0]).await.is_ok());
    client.read(Read::Close { ino: inos[0] }).await.unwrap();
    eventually("and the last", || async { usage(&world, 1).await.orphans == 0 }).await;
}

#[tokio::test(start_paused = true)]
async fn bodies_of_dead_objects_are_deleted_after_the_grace() {
    let world = World::new(1, 1).await;
    let client = Client::new(&world, 1);
    let bucket = object::open(&store(), &StoreCredentials::default()).unwrap();
    let ino = client.create(Ino::ROOT, "f", NewNode::File).await.unwrap().ino;
    let id = ObjectId { session: client.session, incarnation: client.token.incarnation, counter: 1 };
    bucket.put(&id.key(), Bytes::from_static(b"body"), PutMode::Any).await.unwrap();
    let extent = Extent { offset: 0, len: 4, codec: 0, source: Source::Object { id, home: ino, skip: 0 } };
    let file = CommitFile {
        ino,
        trunc_seq: 0,
        pieces: vec![Piece::Extent(extent)],
        mtime: Some(Time(1)),
        grow_to: 4,
        kill_priv: false,
    };
    client.write(Write::Commit(Commit { files: vec![file] })).await.unwrap();
    let listed = world.order(0, NodeCall::ListObjects(PartitionId(1), None, 10)).await.unwrap();
    assert_eq!(listed, NodeReply::Objects(vec![id]));
    client.write(unlink("f")).await.unwrap();
    eventually("the orphan is freed", || async { usage(&world, 1).await.orphans == 0 }).await;
    assert_eq!(bucket.get(&id.key(), None).await.unwrap(), "body", "within the grace");
    // After a restart the secrets come from the master.
    world.stop(0).await;
    world.start(0).await;
    eventually("the body goes", || async { bucket.get(&id.key(), None).await.is_err() }).await;
    eventually("the record goes", || async { usage(&world, 1).await.objects == 0 }).await;
}
