//! What the clients do: some names are one client's own, so that it knows every outcome; the others are fought over.

use crate::sim::{
    check::{Event, What},
    env::{SimRng, pause_ms},
    lock,
    world::{PARTITIONS, World, home},
};
use bytes::Bytes;
use fusefs_meta_client::MetaClient;
use fusefs_types::{
    FileKind, FsError, FsResult, Ino, Name,
    ops::{Create, Link, NewNode, Read, ReadReply, Rename, RenameMode, Unlink, Write, WriteReply},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// What all clients share.
#[derive(Default)]
pub struct Book {
    now: AtomicU64,
    /// Everything done and answered.
    pub events: Mutex<Vec<Event>>,
    /// One directory per partition that nobody removes.
    pub bases: Mutex<Vec<Ino>>,
    /// Directories that were made, newest last.
    dirs: Mutex<Vec<Ino>>,
    /// Files that were made, newest last.
    files: Mutex<Vec<Ino>>,
}

impl Book {
    fn tick(&self) -> u64 {
        self.now.fetch_add(1, Ordering::Relaxed)
    }
}

/// One client.
pub struct Worker {
    /// Number.
    pub n: usize,
    /// Its mount.
    pub client: Arc<MetaClient>,
    world: Arc<World>,
    book: Arc<Book>,
    rng: Arc<SimRng>,
    unique: u64,
    /// Own names and what they must be.
    own: BTreeMap<(Ino, String), Ino>,
    /// Link counts of the own files.
    links: BTreeMap<Ino, u32>,
}

/// A name.
pub fn name(text: &str) -> Name {
    // The names here are short and plain.
    Name::new(Bytes::copy_from_slice(text.as_bytes())).unwrap_or_else(|_| unreachable!())
}

fn create(parent: Ino, text: &str, node: NewNode) -> Write {
    Write::Create(Create { parent, name: name(text), node, mode: 0o755, uid: 1, gid: 1, exclusive: true })
}

fn unlink(parent: Ino, text: &str, directory: bool) -> Write {
    Write::Unlink(Unlink { parent, name: name(text), directory })
}

fn rename(from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> Write {
    Write::Rename(Rename { parent: from.0, name: name(from.1), new_parent: to.0, new_name: name(to.1), mode })
}

type Check = Result<(), String>;

impl Worker {
    /// A client with a mount.
    pub fn new(n: usize, client: Arc<MetaClient>, world: &Arc<World>, book: &Arc<Book>, seed: u64) -> Worker {
        let rng = SimRng::new(seed ^ (0x3042 + n as u64) << 20);
        let (world, book) = (world.clone(), book.clone());
        Worker { n, client, world, book, rng, unique: 0, own: BTreeMap::new(), links: BTreeMap::new() }
    }

    /// One mutation, recorded.
    pub async fn write(&mut self, write: Write) -> FsResult<WriteReply> {
        self.unique += 2;
        let op = self.client.fuse_op(self.unique);
        let from = self.book.tick();
        let result = self.client.write(op, write.clone()).await;
        self.client.ack(op);
        self.world.net.counts.add("mutations");
        if let Ok(WriteReply::Created { attr, .. }) = &result {
            let list = if attr.kind == FileKind::Directory { &self.book.dirs } else { &self.book.files };
            lock(list).push(attr.ino);
        }
        self.record(from, What::Write(write, result.clone()));
        result
    }

    fn record(&self, from: u64, what: What) {
        let to = self.book.tick();
        lock(&self.book.events).push(Event { client: self.n, from, to, what });
    }

    /// One question, recorded.
    async fn lookup(&mut self, parent: Ino, text: &str) -> Result<Option<Ino>, String> {
        let from = self.book.tick();
        let found = match self.client.read(Read::Lookup { parent, name: name(text) }).await {
            Ok(ReadReply::Entry { entry, .. }) => entry.map(|(ino, _)| ino),
            Err(FsError::NotFound) => None,
            odd => return Err(format!("client {}: lookup answered {odd:?}", self.n)),
        };
        self.world.net.counts.add("questions");
        self.record(from, What::Lookup(parent, name(text), found.map(|i| i.0)));
        Ok(found)
    }

    async fn nlink(&mut self, ino: Ino) -> Check {
        let from = self.book.tick();
        let seen = match self.client.read(Read::GetAttr { ino }).await {
            Ok(ReadReply::Attr(attr)) => attr.nlink,
            Err(FsError::NotFound) => 0,
            odd => return Err(format!("client {}: getattr answered {odd:?}", self.n)),
        };
        self.world.net.counts.add("questions");
        self.record(from, What::Nlink(ino, seen));
        Ok(())
    }

    /// All names of a directory.
    pub async fn list(&mut self, ino: Ino) -> Result<BTreeMap<Vec<u8>, (u64, FileKind)>, String> {
        let from = self.book.tick();
        let all = match self.client.read(Read::ReadDir { ino, after: 0, limit: 1000, plus: false }).await {
            Ok(ReadReply::Entries { entries, end: true, .. }) => {
                Some(entries.into_iter().map(|e| (e.name.as_bytes().to_vec(), (e.ino.0, e.kind))).collect())
            }
            Err(FsError::NotFound) => None,
            odd => return Err(format!("client {}: readdir answered {odd:?}", self.n)),
        };
        self.world.net.counts.add("questions");
        let plain = |m: &BTreeMap<Vec<u8>, (u64, FileKind)>| m.iter().map(|(k, v)| (k.clone(), v.0)).collect();
        self.record(from, What::List(ino, all.as_ref().map(plain)));
        Ok(all.unwrap_or_default())
    }

    /// Makes the directories that stay: one per partition.
    pub async fn found(&mut self) -> Check {
        let mut bases: BTreeMap<u64, Ino> = BTreeMap::new();
        for i in 0..60 {
            let text = format!("base{i}");
            match self.write(create(Ino::ROOT, &text, NewNode::Directory)).await {
                Ok(WriteReply::Created { attr, .. }) => match bases.entry(home(attr.ino)) {
                    std::collections::btree_map::Entry::Vacant(v) => {
                        v.insert(attr.ino);
                    }
                    std::collections::btree_map::Entry::Occupied(_) => {
                        let gone = self.write(unlink(Ino::ROOT, &text, true)).await;
                        gone.map_err(|e| format!("rmdir of an empty directory: {e:?}"))?;
                    }
                },
                odd => return Err(format!("mkdir answered {odd:?}")),
            }
            if bases.len() as u64 == PARTITIONS {
                *lock(&self.book.bases) = bases.into_values().collect();
                *lock(&self.book.dirs) = lock(&self.book.bases).clone();
                return Ok(());
            }
        }
        Err("directories do not spill to all partitions".into())
    }

    /// A number of operations.
    pub async fn run(mut self, operations: u64) -> Result<Worker, String> {
        for _ in 0..operations {
            if self.rng.below(2) == 0 {
                pause_ms(self.rng.below(150)).await;
            }
            if self.rng.below(100) < 40 { self.own_step().await? } else { self.shared_step().await? }
        }
        Ok(self)
    }

    /// Each client makes and removes a file in every partition; nothing may be in the way any more.
    pub async fn last_words(&mut self) -> Check {
        let bases = lock(&self.book.bases).clone();
        for base in bases {
            let text = format!("last{}", self.n);
            self.write(create(base, &text, NewNode::File)).await.map_err(|e| format!("create at the end: {e:?}"))?;
            self.write(unlink(base, &text, false)).await.map_err(|e| format!("unlink at the end: {e:?}"))?;
        }
        Ok(())
    }

    fn slot(&self) -> (Ino, String) {
        let bases = lock(&self.book.bases).clone();
        (self.rng.pick(&bases).unwrap_or(Ino::ROOT), format!("own{}-{}", self.n, self.rng.below(3)))
    }

    /// An operation on names that nobody else touches: the outcome is known.
    async fn own_step(&mut self) -> Check {
        let at = self.slot();
        let have = self.own.get(&at).copied();
        match (self.rng.below(10), have) {
            (0..=1, _) => {
                let found = self.lookup(at.0, &at.1).await?;
                if found != have {
                    return Err(format!("client {}: own name {at:?} is {found:?}, not {have:?}", self.n));
                }
                Ok(())
            }
            (2..=5, _) => self.own_create(at, have).await,
            (6..=7, _) => self.own_unlink(at, have).await,
            (_, Some(ino)) => self.own_move(at, ino).await,
            (_, None) => self.own_unlink(at, None).await,
        }
    }

    fn ghost(&self, what: &str, at: &(Ino, String), result: &FsResult<WriteReply>) -> Check {
        Err(format!("client {}: {what} of its own name {at:?} answered {result:?}", self.n))
    }

    async fn own_create(&mut self, at: (Ino, String), have: Option<Ino>) -> Check {
        let result = self.write(create(at.0, &at.1, NewNode::File)).await;
        match (&result, have) {
            (Ok(WriteReply::Created { attr, existed: false, .. }), None) => {
                let ino = attr.ino;
                self.links.insert(ino, 1);
                self.own.insert(at, ino);
                // A file is born open.
                self.world.net.counts.add("questions");
                let client = self.client.clone();
                tokio::spawn(async move { client.read(Read::Close { ino }).await });
                Ok(())
            }
            (Err(FsError::Exists), Some(_)) => Ok(()),
            _ => self.ghost("create", &at, &result),
        }
    }

    fn drop_link(&mut self, ino: Ino) -> u32 {
        let left = self.links.get(&ino).map_or(0, |n| n - 1);
        self.links.insert(ino, left);
        left
    }

    async fn own_unlink(&mut self, at: (Ino, String), have: Option<Ino>) -> Check {
        let result = self.write(unlink(at.0, &at.1, false)).await;
        match (&result, have) {
            (Ok(WriteReply::Unlinked { ino, nlink, .. }), Some(had)) if *ino == had => {
                self.own.remove(&at);
                if self.drop_link(had) == *nlink { Ok(()) } else { self.ghost("unlink (link count)", &at, &result) }
            }
            (Err(FsError::NotFound), None) => Ok(()),
            _ => self.ghost("unlink", &at, &result),
        }
    }

    async fn own_move(&mut self, at: (Ino, String), ino: Ino) -> Check {
        let to = self.slot();
        let target = self.own.get(&to).copied();
        if self.rng.below(3) == 0 {
            let result = self.write(Write::Link(Link { ino, parent: to.0, name: name(&to.1) })).await;
            let wanted = self.links.get(&ino).map_or(0, |n| n + 1);
            return match (&result, target) {
                (Ok(WriteReply::Linked { attr, .. }), None) if attr.ino == ino && attr.nlink == wanted => {
                    self.links.insert(ino, wanted);
                    self.own.insert(to, ino);
                    Ok(())
                }
                (Err(FsError::Exists), Some(_)) => Ok(()),
                _ => self.ghost("link", &to, &result),
            };
        }
        let result = self.write(rename((at.0, &at.1), (to.0, &to.1), RenameMode::Replace)).await;
        let replaced = target.filter(|t| *t != ino);
        if result != Ok(WriteReply::Renamed { ino, replaced }) {
            return self.ghost("rename", &at, &result);
        }
        if target != Some(ino) {
            if let Some(old) = replaced {
                self.drop_link(old);
            }
            self.own.remove(&at);
            self.own.insert(to, ino);
        }
        Ok(())
    }

    fn dir(&self) -> Ino {
        let dirs = lock(&self.book.dirs).clone();
        match self.rng.below(8) {
            0 => Ino::ROOT,
            1..=3 => dirs.last().copied().unwrap_or(Ino::ROOT),
            _ => dirs.get(self.rng.below(6) as usize % dirs.len().max(1)).copied().unwrap_or(Ino::ROOT),
        }
    }

    fn file(&self) -> Option<Ino> {
        let files = lock(&self.book.files);
        let newest: Vec<Ino> = files.iter().rev().take(6).copied().collect();
        self.rng.pick(&newest)
    }

    /// An operation on names that everybody uses; the search judges it.
    async fn shared_step(&mut self) -> Check {
        let (a, b) = (self.dir(), self.dir());
        let (x, y) = (["x", "y"][self.rng.below(2) as usize], ["x", "y"][self.rng.below(2) as usize]);
        let write = match self.rng.below(20) {
            0..=3 => create(a, x, NewNode::File),
            4..=6 => create(a, x, NewNode::Directory),
            7..=8 => unlink(a, x, false),
            9..=10 => unlink(a, x, true),
            11..=14 => {
                let mode = if self.rng.below(5) == 0 { RenameMode::NoReplace } else { RenameMode::Replace };
                rename((a, x), (b, y), mode)
            }
            15 => match self.file() {
                Some(ino) if !self.is_own(ino) => Write::Link(Link { ino, parent: a, name: name(x) }),
                _ => create(a, x, NewNode::File),
            },
            16..=17 => return self.lookup(a, x).await.map(drop),
            18 => return self.list(a).await.map(drop),
            _ => match self.file() {
                Some(ino) => return self.nlink(ino).await,
                None => return self.list(a).await.map(drop),
            },
        };
        let _ = self.write(write).await;
        Ok(())
    }

    /// Whether a file is somebody's own: the names of those are nobody else's, and so are their link counts.
    fn is_own(&self, ino: Ino) -> bool {
        lock(&self.book.events).iter().any(|e| match &e.what {
            What::Write(Write::Create(c), Ok(WriteReply::Created { attr, .. })) => {
                attr.ino == ino && c.name.as_bytes().starts_with(b"own")
            }
            _ => false,
        })
    }
}
