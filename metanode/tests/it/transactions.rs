//! Operations over two partitions, on one node and across nodes.

use crate::world::{Client, SPAN, World, eventually, name};
use fusefs_types::{
    FsError, Ino, PartitionId,
    ops::{Link, NewNode, Rename, RenameMode, Tmpfile, Unlink, Write, WriteReply},
};

fn rename(parent: Ino, a: &str, new_parent: Ino, b: &str) -> Write {
    Write::Rename(Rename { parent, name: name(a), new_parent, new_name: name(b), mode: RenameMode::Replace })
}

fn unlink(parent: Ino, text: &str, directory: bool) -> Write {
    Write::Unlink(Unlink { parent, name: name(text), directory })
}

/// Nothing is left running or locked.
async fn at_rest(world: &World) {
    eventually("all transactions end", || async {
        let metrics = world.fsck().await;
        metrics.is_empty()
    })
    .await;
}

async fn all_kinds(world: &World) {
    let client = Client::new(world, 1);
    let one = client.directory_in(1, "one").await;
    let two = client.directory_in(2, "two").await;
    let file = client.create(one, "f", NewNode::File).await.unwrap();
    assert_eq!(file.ino.0 / SPAN, 0);

    // rename to another partition, and back over an existing file there
    let moved = client.write(rename(one, "f", two, "g")).await.unwrap();
    assert_eq!(moved, WriteReply::Renamed { ino: file.ino, replaced: None });
    assert_eq!(client.lookup(one, "f").await, Ok(None));
    assert_eq!(client.lookup(two, "g").await, Ok(Some(file.ino)));
    let victim = client.create(one, "f", NewNode::File).await.unwrap();
    let back = client.write(rename(two, "g", one, "f")).await.unwrap();
    assert_eq!(back, WriteReply::Renamed { ino: file.ino, replaced: Some(victim.ino) });

    // link and unlink of an inode that lives elsewhere
    let linked = client.write(Write::Link(Link { ino: file.ino, parent: two, name: name("l") })).await.unwrap();
    assert!(matches!(linked, WriteReply::Linked { attr, .. } if attr.nlink == 2), "{linked:?}");
    assert_eq!(client.getattr(file.ino).await.unwrap().nlink, 2);
    client.write(unlink(two, "l", false)).await.unwrap();
    assert_eq!(client.getattr(file.ino).await.unwrap().nlink, 1);

    // the first name of a file that was made without one
    let unnamed = Write::Tmpfile(Tmpfile { parent: one, mode: 0o600, uid: 1, gid: 2 });
    let WriteReply::Created { attr, .. } = client.write(unnamed).await.unwrap() else { panic!("not created") };
    assert_eq!((attr.nlink, attr.ino.0 / SPAN), (0, 0));
    let named = client.write(Write::Link(Link { ino: attr.ino, parent: two, name: name("named") })).await.unwrap();
    assert!(matches!(named, WriteReply::Linked { attr, .. } if attr.nlink == 1), "{named:?}");
    assert_eq!(client.lookup(two, "named").await, Ok(Some(attr.ino)));
    client.write(unlink(two, "named", false)).await.unwrap();

    // directories: moved across partitions, never below themselves
    let inner = client.create(one, "inner", NewNode::Directory).await.unwrap();
    client.write(rename(one, "inner", two, "inner")).await.unwrap();
    assert_eq!(client.getattr(inner.ino).await.unwrap().parent, two);
    let root_name = {
        let fusefs_types::ops::ReadReply::Entries { entries, .. } = client
            .read(fusefs_types::ops::Read::ReadDir { ino: Ino::ROOT, after: 0, limit: 1000, plus: false })
            .await
            .unwrap()
        else {
            panic!("not entries")
        };
        entries.into_iter().find(|e| e.ino == two).unwrap().name
    };
    let cycle = Write::Rename(Rename {
        parent: Ino::ROOT,
        name: root_name.clone(),
        new_parent: inner.ino,
        new_name: name("loop"),
        mode: RenameMode::Replace,
    });
    assert_eq!(client.write(cycle).await, Err(FsError::Invalid));

    // rmdir of a directory elsewhere
    let text = String::from_utf8(root_name.as_bytes().to_vec()).unwrap();
    assert_eq!(client.write(unlink(Ino::ROOT, &text, true)).await, Err(FsError::NotEmpty));
    client.write(unlink(two, "inner", true)).await.unwrap();
    client.write(unlink(Ino::ROOT, &text, true)).await.unwrap();
    assert_eq!(client.lookup(Ino::ROOT, &text).await, Ok(None));
    at_rest(world).await;
}

#[tokio::test(start_paused = true)]
async fn every_kind_on_one_node() {
    let world = World::new(1, 2).await;
    all_kinds(&world).await;
    let metrics = world.node(0).metrics();
    let line = metrics.lines().find(|l| l.contains("partition_transactions") && l.contains("partition=\"1\"")).unwrap();
    assert!(!line.ends_with(" 0"), "{line}");
}

#[tokio::test(start_paused = true)]
async fn every_kind_across_three_nodes() {
    let world = World::new(3, 3).await;
    all_kinds(&world).await;
}

/// A coordinator that dies in the middle: the next leader finishes the transaction, and the client's retry gets its
/// reply.
#[tokio::test(start_paused = true)]
async fn a_transaction_survives_its_coordinator() {
    let world = World::new(3, 2).await;
    let client = Client::new(&world, 1);
    let two = client.directory_in(2, "two").await;
    for round in 0..6u64 {
        let file = client.create(Ino::ROOT, "f", NewNode::File).await.unwrap().ino;
        let op = client.op();
        let write = rename(Ino::ROOT, "f", two, &format!("g{round}"));
        let leader = world.leader(PartitionId(1)).await;
        let patience = std::time::Duration::from_micros(500 + 2_500 * round);
        let _ = tokio::time::timeout(patience, client.try_write(op, write.clone())).await;
        world.stop(leader).await;
        let reply = client.write_as(op, write).await;
        assert_eq!(reply, Ok(WriteReply::Renamed { ino: file, replaced: None }), "round {round}");
        assert_eq!(client.lookup(Ino::ROOT, "f").await, Ok(None));
        assert_eq!(client.lookup(two, &format!("g{round}")).await, Ok(Some(file)));
        world.start(leader).await;
    }
    at_rest(&world).await;
}

#[tokio::test(start_paused = true)]
async fn colliding_renames_end_without_locks() {
    let world = World::new(1, 2).await;
    let client = Client::new(&world, 1);
    let one = client.directory_in(1, "one").await;
    let two = client.directory_in(2, "two").await;
    client.create(one, "x", NewNode::File).await.unwrap();
    client.create(two, "y", NewNode::File).await.unwrap();
    let results = futures::future::join_all((0..12).map(|i| {
        let client = &client;
        async move {
            let write = if i % 2 == 0 { rename(one, "x", two, "y") } else { rename(two, "y", one, "x") };
            client.write(write).await
        }
    }))
    .await;
    assert!(results.iter().any(Result::is_ok), "{results:?}");
    assert!(results.iter().all(|r| r.is_ok() || *r == Err(FsError::NotFound)), "{results:?}");
    let left = [client.lookup(one, "x").await.unwrap(), client.lookup(two, "y").await.unwrap()];
    assert_eq!(left.iter().flatten().count(), 1, "{left:?}");
    at_rest(&world).await;
}
