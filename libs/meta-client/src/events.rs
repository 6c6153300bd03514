//! Event streams: one per metanode, kept open, with the answers to holder questions (PROTOCOL 22, 45).

use crate::{
    calls::{ATTEMPT, Backoff},
    client::{Inner, Task},
    transport::EventStream,
};
use fusefs_types::{
    Ino,
    stream::{ClientBody, ClientEvent, ServerBody, ServerEvent},
};
use futures::StreamExt;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Answers the cluster's questions about this mount.
pub trait Holders: Send + Sync + 'static {
    /// True while a handle of this mount is open, is being opened, or could have been created just now.
    fn holds(&self, ino: Ino) -> bool;
    /// The stream with this metanode broke: drop what was cached on its word.
    fn broken(&self, _addr: &str) {}
    /// Locks on these inodes went or shrank: waiters should try again.
    fn locks_freed(&self, _inos: &[Ino]) {}
}

/// Keeps one listener per metanode of the map.
pub(crate) async fn manage(inner: Arc<Inner>, holders: Arc<dyn Holders>) {
    let mut generations = inner.generations.subscribe();
    let mut listeners: BTreeMap<String, Task> = BTreeMap::new();
    loop {
        let addresses = inner.cache.routes().addresses();
        listeners.retain(|addr, _| addresses.contains(addr));
        for addr in addresses {
            let listen = || Task::spawn(listen(inner.clone(), addr.clone(), holders.clone()));
            listeners.entry(addr.clone()).or_insert_with(listen);
        }
        if generations.changed().await.is_err() {
            return;
        }
    }
}

async fn listen(inner: Arc<Inner>, addr: String, holders: Arc<dyn Holders>) {
    let mut backoff = Backoff::new(50, 2_000);
    loop {
        let envelope = inner.identity.envelope(inner.cache.generation(), Duration::ZERO);
        let opened = tokio::time::timeout(ATTEMPT, inner.transport.events(&addr, envelope)).await;
        if let Ok(Ok(stream)) = opened {
            if follow(&inner, stream, &*holders).await {
                backoff = Backoff::new(50, 2_000);
            }
            holders.broken(&addr);
        }
        if inner.lease.ended() {
            return;
        }
        backoff.pause(&*inner.rng, 0, None).await;
    }
}

/// Handles events until the stream breaks; true when there was at least one.
async fn follow(inner: &Inner, mut stream: EventStream, holders: &dyn Holders) -> bool {
    let mut any = false;
    while let Some(Ok(event)) = stream.receive.next().await {
        any = true;
        let answer = ClientEvent { envelope: None, ack: event.id, body: answer(inner, event, holders) };
        if stream.send.send(answer).await.is_err() {
            break;
        }
    }
    any
}

fn answer(inner: &Inner, event: ServerEvent, holders: &dyn Holders) -> ClientBody {
    match event.body {
        ServerBody::Hello => ClientBody::Nothing,
        ServerBody::MapChanged { generation } => {
            inner.newer_map(generation);
            ClientBody::Nothing
        }
        ServerBody::LocksFreed { inos, .. } => {
            holders.locks_freed(&inos);
            ClientBody::Nothing
        }
        ServerBody::HoldersAsked { group, term, inos } => {
            let held = inos.iter().copied().filter(|ino| holders.holds(*ino)).collect();
            ClientBody::Holders { group, term, asked: inos, held }
        }
    }
}
