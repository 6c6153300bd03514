//! Locks of applications: whoever waits is told.

use crate::world::{Client, World};
use fusefs_metanode::EventStream;
use fusefs_types::{
    Ino, PartitionId,
    cluster::NodeCall,
    lock::LOCK_END,
    ops::{LockOp, LockOwner, LockSpace, NewNode, Read, ReadReply, SetLock, Write, WriteReply},
    stream::ServerBody,
    txn::Internal,
};
use std::time::Duration;

const OWNER: LockOwner = LockOwner { space: LockSpace::Flock, id: 7 };

async fn lock(client: &Client<'_>, ino: Ino, op: LockOp, wait: bool) -> bool {
    let x = SetLock { ino, owner: OWNER, start: 0, end: LOCK_END, op, pid: 1, wait };
    match client.write(Write::SetLock(x)).await {
        Ok(WriteReply::Locked(_)) => true,
        Ok(WriteReply::LockBlocked(_)) => false,
        other => panic!("{other:?}"),
    }
}

/// The next freed lock on the stream; None when none comes for a while.
async fn freed(stream: &mut EventStream) -> Option<Vec<Ino>> {
    loop {
        match tokio::time::timeout(Duration::from_millis(300), stream.events.recv()).await {
            Ok(event) => {
                if let ServerBody::LocksFreed { group: PartitionId(1), inos } = event.expect("the stream lives").body {
                    return Some(inos);
                }
            }
            Err(_) => return None,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_is_told_when_a_lock_goes() {
    let world = World::new(1, 1).await;
    let (a, b, c) = (Client::new(&world, 1), Client::new(&world, 2), Client::new(&world, 3));
    let ino = a.create(Ino::ROOT, "f", NewNode::File).await.unwrap().ino;
    let open = |client: &Client<'_>| world.node(0).open_stream(&client.envelope(None)).ok().unwrap();
    let (mut to_b, mut to_c) = (open(&b), open(&c));
    assert!(lock(&a, ino, LockOp::Write, false).await);
    assert!(!lock(&b, ino, LockOp::Write, true).await);
    assert!(!lock(&c, ino, LockOp::Write, false).await);
    assert_eq!(freed(&mut to_b).await, None);
    assert!(lock(&a, ino, LockOp::Unlock, false).await);
    assert_eq!(freed(&mut to_b).await, Some(vec![ino]));
    assert_eq!(freed(&mut to_c).await, None, "it does not wait");

    // The end of a session frees its locks; a waiter that only looks is told as well.
    assert!(lock(&a, ino, LockOp::Write, false).await);
    let look = Read::GetLock { ino, owner: OWNER, start: 0, end: LOCK_END, write: false, wait: true };
    let held = c.read(look).await.unwrap();
    assert!(matches!(held, ReadReply::Lock(Some(l)) if l.session == a.session), "{held:?}");
    let end = Internal::EndSession { session: a.session, revoked: true };
    world.order(0, NodeCall::Command(PartitionId(1), end)).await.unwrap();
    assert_eq!(freed(&mut to_c).await, Some(vec![ino]));
    assert!(lock(&c, ino, LockOp::Write, true).await);
    assert_eq!(world.fsck().await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_knows_the_locks_and_hears_of_the_waiters_from_themselves() {
    let world = World::new(1, 1).await;
    let (a, b) = (Client::new(&world, 1), Client::new(&world, 2));
    let ino = a.create(Ino::ROOT, "f", NewNode::File).await.unwrap().ino;
    assert!(lock(&a, ino, LockOp::Write, false).await);
    assert!(!lock(&b, ino, LockOp::Write, true).await);
    world.stop(0).await;
    world.start(0).await;
    let look = Read::GetLock { ino, owner: OWNER, start: 0, end: LOCK_END, write: true, wait: true };
    assert!(matches!(b.read(look).await, Ok(ReadReply::Lock(Some(_)))));
    let mut to_b = world.node(0).open_stream(&b.envelope(None)).ok().unwrap();
    assert!(lock(&a, ino, LockOp::Unlock, false).await);
    assert_eq!(freed(&mut to_b).await, Some(vec![ino]));
    assert!(lock(&b, ino, LockOp::Write, true).await);
}
