//! Several real partitions, clients, a message pool with a seeded scheduler. Messages are lost, repeated, reordered;
//! leaders crash (what they had not logged is forgotten), clients die or restart. Everything is a function of the seed.

use super::check::{Event, What};
use bytes::Bytes;
use fusefs_meta_state::{
    InternalReply, LogPos, Outcome, Partition, PartitionConfig, Plan, Work, fsck_volume, txn::Faults,
};
use fusefs_types::{
    Extent, FileKind, FsError, FsResult, Hlc, Ino, KeyRange, Name, ObjectId, PartitionId, RangeKey, SessionId, Source,
    Token, VolumeId,
    ids::{AckRange, Incarnation, MountId, OpId, Origin},
    ops::{
        Body, Caller, Command, Commit, CommitFile, Create, Link, NewNode, Piece, Read, ReadReply, Rename, RenameMode,
        Unlink, Write, WriteReply,
    },
    txn::{Internal, TxnId, TxnStep},
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Inode numbers per partition.
const SPAN: u64 = 1000;
/// Partitions.
pub const PARTS: usize = 3;

/// What a client wants. Numbers pick among the directories, files and names known so far.
#[derive(Clone, Debug)]
pub enum Step {
    Make { dir: u8, name: u8, directory: bool },
    Link { file: u8, dir: u8, name: u8 },
    Unlink { dir: u8, name: u8, directory: bool },
    Rename { dir: u8, name: u8, to: u8, new: u8, no_replace: bool },
    Lookup { dir: u8, name: u8 },
    Nlink { file: u8 },
    Open { file: u8 },
    Close { file: u8 },
    Commit { file: u8, block: u8 },
    Die,
    Restart,
}

/// How often things go wrong, in 1/256.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub lose: u8,
    pub repeat: u8,
    pub crash: u8,
}

#[derive(Clone, Debug)]
enum Msg {
    Request { to: usize, caller: Caller, write: Write },
    Reply { from: usize, session: SessionId, op: OpId, result: FsResult<WriteReply> },
    Attach { to: usize, session: SessionId, token: Token },
    End { to: usize, session: SessionId },
    Txn { from: usize, msg: fusefs_types::txn::TxnMessage },
    Propose { to: usize, command: Internal },
    Walk { from: usize, txn: TxnId, moved: Ino, at: Ino },
    Ask { from: usize, session: SessionId, inos: Vec<Ino> },
}

impl Msg {
    fn touches(&self, i: usize) -> bool {
        match self {
            Msg::Request { to, .. } | Msg::Propose { to, .. } | Msg::Attach { to, .. } => *to == i,
            Msg::Reply { from, .. } | Msg::Txn { from, .. } | Msg::Walk { from, .. } | Msg::Ask { from, .. } => {
                *from == i
            }
            Msg::End { .. } => false, // the master keeps asking
        }
    }
}

struct Node {
    p: Partition,
    log: Vec<(LogPos, Command)>,
    waiters: BTreeMap<TxnId, (SessionId, OpId)>,
}

#[derive(Clone, Debug)]
enum Doing {
    Write { op: OpId, from: u64, write: Write },
    Read { from: u64, read: Step },
}

struct Client {
    session: SessionId,
    token: Token,
    next: u64,
    objects: u64,
    script: VecDeque<Step>,
    doing: Option<Doing>,
    open: BTreeSet<Ino>,
    refused: BTreeSet<Ino>,
}

/// The whole system.
pub struct Cluster {
    nodes: Vec<Node>,
    pool: Vec<Msg>,
    late: Vec<Msg>,
    rng: u64,
    now: u64,
    weather: Weather,
    faults: Faults,
    clients: Vec<Client>,
    sessions: u128,
    ended: BTreeSet<SessionId>,
    /// Partitions that have confirmed the end of a session: nothing of it may happen through them any more.
    fenced: BTreeSet<(SessionId, usize)>,
    begun: BTreeMap<TxnId, (SessionId, OpId)>,
    truth: BTreeMap<(SessionId, OpId), (u64, FsResult<WriteReply>)>,
    abandoned: Vec<(SessionId, OpId, u64, Write)>,
    pub history: Vec<Event>,
    pub dirs: Vec<Ino>,
    pub files: Vec<Ino>,
    store: BTreeSet<ObjectId>,
    /// How often what happened.
    pub counts: BTreeMap<String, u64>,
}

type Check<T = ()> = Result<T, String>;

impl Cluster {
    pub fn new(seed: u64, weather: Weather, faults: Faults, scripts: Vec<VecDeque<Step>>) -> Cluster {
        let nodes = (0..PARTS).map(|i| {
            let mut p = Partition::new(config(i)).unwrap();
            p.plant(faults);
            Node { p, log: Vec::new(), waiters: BTreeMap::new() }
        });
        let mut c = Cluster {
            nodes: nodes.collect(),
            pool: Vec::new(),
            late: Vec::new(),
            rng: seed | 1,
            now: 1_000_000,
            weather,
            faults,
            clients: Vec::new(),
            sessions: 0,
            ended: BTreeSet::new(),
            fenced: BTreeSet::new(),
            begun: BTreeMap::new(),
            truth: BTreeMap::new(),
            abandoned: Vec::new(),
            history: Vec::new(),
            dirs: vec![Ino::ROOT],
            files: Vec::new(),
            store: BTreeSet::new(),
            counts: BTreeMap::new(),
        };
        for script in scripts {
            let client = c.client(script);
            c.clients.push(client);
        }
        c
    }
    fn client(&mut self, script: VecDeque<Step>) -> Client {
        self.sessions += 1;
        Client {
            session: SessionId(self.sessions),
            token: Token { attach: 0, incarnation: Incarnation(1) },
            next: 1,
            objects: 0,
            script,
            doing: None,
            open: BTreeSet::new(),
            refused: BTreeSet::new(),
        }
    }
    fn random(&mut self, below: usize) -> usize {
        self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below.max(1) as u64) as usize
    }
    fn count(&mut self, what: impl Into<String>) {
        *self.counts.entry(what.into()).or_default() += 1;
    }
    fn chance(&mut self, of_256: u8) -> bool {
        self.random(256) < of_256 as usize
    }
    fn owner(&self, key: RangeKey) -> usize {
        (0..PARTS).find(|i| self.nodes[*i].p.owns(key)).unwrap_or(0)
    }

    // --- partitions -----------------------------------------------------------------------------------------------

    fn apply(&mut self, i: usize, body: Body) -> Outcome {
        self.now += 1;
        let node = &mut self.nodes[i];
        let at = LogPos { term: 1, index: node.log.len() as u64 + 1, n: 0 };
        let command = Command { stamp: Hlc(self.now), level: 1, body };
        let outcome = node.p.apply(at, &command).outcome;
        node.log.push((at, command));
        outcome
    }
    fn internal(&mut self, i: usize, command: Internal) -> Check<FsResult<InternalReply>> {
        let reply = match self.apply(i, Body::Internal(command)) {
            Outcome::Internal(reply) => reply,
            other => return Err(format!("odd outcome {other:?}")),
        };
        if let Ok(InternalReply::Answer { op: Some(_), result }) = &reply {
            self.count(format!("transaction: {}", result.as_ref().map_or_else(|e| format!("{e:?}"), short)));
        }
        if let Ok(InternalReply::Answer { op: Some(txn), result }) = &reply
            && let Some((session, op)) = self.begun.get(txn).copied()
        {
            self.learn(i, session, op, result)?;
            if self.nodes[i].waiters.remove(txn).is_some() {
                self.pool.push(Msg::Reply { from: i, session, op, result: result.clone() });
            }
        }
        Ok(reply)
    }
    /// What a partition said about an operation must never change.
    fn learn(&mut self, i: usize, session: SessionId, op: OpId, result: &FsResult<WriteReply>) -> Check {
        if result.is_ok() && self.fenced.contains(&(session, i)) {
            return Err(format!("{op:?} had an effect after the end of its session"));
        }
        if matches!(result, Err(e) if e.code() >= 1000 || *e == FsError::Stale) {
            return Ok(());
        }
        if let Some(Ok(WriteReply::Created { attr, .. })) = Some(result) {
            let known = if attr.kind == FileKind::Directory { &mut self.dirs } else { &mut self.files };
            if !known.contains(&attr.ino) {
                known.push(attr.ino);
            }
        }
        let now = self.now;
        let known = self.truth.entry((session, op)).or_insert_with(|| (now, result.clone()));
        if known.1 == *result { Ok(()) } else { Err(format!("{op:?} answered {:?}, then {result:?}", known.1)) }
    }
    fn request(&mut self, i: usize, caller: Caller, write: Write) -> Check {
        let (session, op) = (caller.session, caller.op);
        let spill_to = match self.nodes[i].p.plan(&write) {
            Plan::MaySpill { .. } => {
                let to = self.random(PARTS + 1);
                (to < PARTS).then(|| config(to).ranges[0].start)
            }
            Plan::Local => None,
            Plan::Transaction => None,
        };
        let transaction = spill_to.is_some() || self.nodes[i].p.plan(&write) == Plan::Transaction;
        let result = if transaction {
            match self.internal(i, Internal::TxnBegin { caller, write, spill_to })? {
                Ok(InternalReply::Begun(txn)) => {
                    self.begun.insert(txn, (session, op));
                    self.nodes[i].waiters.insert(txn, (session, op));
                    return Ok(());
                }
                Ok(InternalReply::Answer { result, .. }) => result,
                Ok(other) => return Err(format!("odd reply {other:?}")),
                Err(FsError::TooOld) => return Ok(()),
                Err(e) => Err(e),
            }
        } else {
            match self.apply(i, Body::Client(caller, write)) {
                Outcome::Client(Err(FsError::TooOld)) => {
                    self.count("request: TooOld");
                    return Ok(());
                }
                Outcome::Client(result) => result,
                other => return Err(format!("odd outcome {other:?}")),
            }
        };
        self.learn(i, session, op, &result)?;
        self.pool.push(Msg::Reply { from: i, session, op, result });
        Ok(())
    }
    /// One turn of a leader's background work.
    fn work(&mut self, i: usize) -> Check {
        for w in self.nodes[i].p.work() {
            match w {
                Work::SendTxn(msg) => self.pool.push(Msg::Txn { from: i, msg }),
                Work::CheckAncestry { txn, moved, new_parent } => {
                    self.pool.push(Msg::Walk { from: i, txn, moved, at: new_parent });
                }
                Work::AskHolders { session, inos } => self.pool.push(Msg::Ask { from: i, session, inos }),
                Work::FreeOrphans(inos) => {
                    self.pool.push(Msg::Propose { to: i, command: Internal::FreeOrphans { inos } })
                }
                Work::DeleteObjects(list) => {
                    let objects: Vec<ObjectId> = list.iter().map(|(id, _)| *id).collect();
                    let live = self.referenced();
                    self.count("objects deleted");
                    for id in &objects {
                        if live.contains(id) {
                            return Err(format!("{id:?} is referenced and would be deleted"));
                        }
                        self.store.remove(id);
                    }
                    self.pool.push(Msg::Propose { to: i, command: Internal::ObjectsDeleted { objects } });
                }
            }
        }
        Ok(())
    }
    /// Objects named by extents anywhere.
    fn referenced(&self) -> BTreeSet<ObjectId> {
        let mut out = BTreeSet::new();
        for ino in &self.files {
            let read = Read::Extents { ino: *ino, offset: 0, len: u64::MAX };
            if let Ok(ReadReply::Extents { extents, .. }) =
                self.nodes[self.owner((*ino).into())].p.read(SessionId(0), &read)
            {
                out.extend(extents.iter().filter_map(|e| match e.source {
                    Source::Object { id, .. } => Some(id),
                    _ => None,
                }));
            }
        }
        out
    }

    // --- messages -------------------------------------------------------------------------------------------------

    fn deliver(&mut self, msg: Msg) -> Check {
        match msg {
            Msg::Request { to, caller, write } => self.request(to, caller, write)?,
            Msg::Reply { session, op, result, from } => self.reply(from, session, op, result)?,
            Msg::Attach { to, session, token } => _ = self.internal(to, Internal::Attach { session, token })?,
            Msg::End { to, session } => {
                if self.nodes[to].p.txn_work().iter().any(|w| matches!(w, Work::SendTxn(m) if m.session == session)) {
                    self.count("session ended during its transaction");
                }
                if self.internal(to, Internal::EndSession { session, revoked: true })? == Err(FsError::Conflict) {
                    self.count("end of session waits for a transaction");
                    self.pool.push(Msg::End { to, session });
                } else {
                    self.fenced.insert((session, to));
                }
            }
            Msg::Propose { to, command } => {
                let freeing = matches!(command, Internal::FreeOrphans { .. });
                if let Err(e) = self.internal(to, command)? {
                    return Err(format!("internal command refused: {e}"));
                }
                if freeing {
                    self.count("orphans freed");
                    self.open_files_exist()?;
                }
            }
            Msg::Txn { from, msg } => self.txn(from, msg)?,
            Msg::Walk { from, txn, moved, at } => self.walk(from, txn, moved, at),
            Msg::Ask { from, session, inos } => {
                if let Some(c) = self.clients.iter_mut().find(|c| c.session == session) {
                    let (held, released): (Vec<Ino>, Vec<Ino>) = inos.into_iter().partition(|i| c.open.contains(i));
                    c.refused.extend(&released);
                    self.pool.push(Msg::Propose { to: from, command: Internal::Pin { session, held, released } });
                }
            }
        }
        Ok(())
    }
    fn open_files_exist(&self) -> Check {
        for c in &self.clients {
            for ino in &c.open {
                if self.nodes[self.owner((*ino).into())].p.inode(*ino).is_err() {
                    return Err(format!("{ino:?} was freed although {:?} holds it open", c.session));
                }
            }
        }
        Ok(())
    }
    fn txn(&mut self, from: usize, msg: fusefs_types::txn::TxnMessage) -> Check {
        let to = self.owner(msg.route());
        let (txn, part) = (msg.txn, msg.part);
        let asks = matches!(msg.step, TxnStep::Prepare(_) | TxnStep::Execute(_));
        let step = short(&msg.step);
        let answer = self.internal(to, Internal::Txn(msg))?;
        self.count(format!("{step}: {}", answer.as_ref().map_or_else(|e| format!("{e:?}"), |_| "ok".into())));
        let command = match (answer, asks) {
            (Err(FsError::TooOld), _) => return Ok(()),
            (Ok(InternalReply::Part(reply)), true) => Internal::TxnPrepared { txn, part, result: Ok(reply) },
            (Err(e), true) => Internal::TxnPrepared { txn, part, result: Err(e) },
            (Ok(InternalReply::Part(reply)), false) => Internal::TxnFinished { txn, part, reply },
            (odd, _) => return Err(format!("participant of {txn:?} answered {odd:?}")),
        };
        self.pool.push(Msg::Propose { to: from, command });
        Ok(())
    }
    fn walk(&mut self, from: usize, txn: TxnId, moved: Ino, at: Ino) {
        if at == moved || at == Ino::ROOT {
            self.count(if at == moved { "ancestry: cycle" } else { "ancestry: free" });
            let command = Internal::TxnAncestry { txn, cycle: at == moved };
            self.pool.push(Msg::Propose { to: from, command });
            return;
        }
        let read = Read::GetAttr { ino: at };
        if let Ok(ReadReply::Attr(attr)) = self.nodes[self.owner(at.into())].p.read(SessionId(0), &read) {
            self.pool.push(Msg::Walk { from, txn, moved, at: attr.parent });
        }
    }
    /// The leader dies; every other time the next one starts from a snapshot.
    fn crash(&mut self, i: usize) {
        self.count("leader crash");
        self.nodes[i].waiters.clear();
        if self.random(2) == 0 {
            let mut bytes = Vec::new();
            self.nodes[i].p.write_to(&mut bytes).unwrap();
            let mut p = Partition::read_from(&mut &bytes[..]).unwrap();
            assert_eq!(p.digest(), self.nodes[i].p.digest());
            p.plant(self.faults);
            self.nodes[i].p = p;
        }
        self.pool.retain(|m| !m.touches(i));
    }

    // --- clients --------------------------------------------------------------------------------------------------

    fn reply(&mut self, from: usize, session: SessionId, op: OpId, result: FsResult<WriteReply>) -> Check {
        let Some(n) = self.clients.iter().position(|c| c.session == session) else { return Ok(()) };
        let now = self.now;
        let c = &mut self.clients[n];
        let Some(Doing::Write { op: mine, .. }) = &c.doing else { return Ok(()) };
        if *mine != op {
            return Ok(());
        }
        match result {
            Err(FsError::NotAttached) => {
                let attach = Msg::Attach { to: from, session, token: c.token };
                self.pool.push(attach);
            }
            Err(FsError::Conflict) => self.count("client: conflict"),
            Err(e) if e.is_retryable() || e == FsError::Fenced => {} // an older incarnation's request was fenced
            Err(e) if e.code() >= 1000 || e == FsError::Stale => return Err(format!("{op:?} met {e:?}")),
            result => {
                self.count(format!("client: {}", result.as_ref().map_or_else(|e| format!("{e:?}"), short)));
                let c = &mut self.clients[n];
                let Some(Doing::Write { from: begun, write, .. }) = &c.doing else { return Ok(()) };
                if !matches!(write, Write::Commit(_)) {
                    let what = What::Write(write.clone(), result);
                    self.history.push(Event { from: *begun, to: now, what });
                }
                c.doing = None;
            }
        }
        Ok(())
    }
    /// Starts the client's next step, or tries the present one again.
    fn turn(&mut self, n: usize) -> Check {
        let strikes = matches!(self.clients[n].script.front(), Some(Step::Die | Step::Restart));
        if strikes && self.clients[n].doing.is_some() && self.random(2) == 0 {
            // In the middle of an operation.
            return match self.clients[n].script.pop_front() {
                Some(step) => self.start(n, step),
                None => Ok(()),
            };
        }
        match self.clients[n].doing.clone() {
            Some(Doing::Write { op, write, .. }) => self.send(n, op, write),
            Some(Doing::Read { from, read }) => self.read(n, from, read)?,
            None => {
                if let Some(step) = self.clients[n].script.pop_front() {
                    self.start(n, step)?;
                }
            }
        }
        Ok(())
    }
    fn send(&mut self, n: usize, op: OpId, write: Write) {
        let to = self.owner(write.route());
        let c = &self.clients[n];
        // Everything before the present operation has been answered.
        let acks = if op.number > 1 && op.number.is_multiple_of(3) {
            vec![AckRange { mount: op.mount, origin: op.origin, first: 1, last: op.number - 1 }]
        } else {
            Vec::new()
        };
        let caller = Caller { session: c.session, token: c.token, op, acks };
        self.pool.push(Msg::Request { to, caller, write });
    }
    fn start(&mut self, n: usize, step: Step) -> Check {
        let dir = |c: &Cluster, k: u8| c.dirs[k as usize % c.dirs.len()];
        let file = |c: &Cluster, k: u8| c.files.get(k as usize % c.files.len().max(1)).copied().unwrap_or(Ino(2));
        let write = match &step {
            Step::Make { dir: d, name: m, directory } => Write::Create(Create {
                parent: dir(self, *d),
                name: name(*m),
                node: if *directory { NewNode::Directory } else { NewNode::File },
                mode: 0o755,
                uid: 0,
                gid: 0,
                exclusive: true,
            }),
            Step::Link { file: f, dir: d, name: m } => {
                Write::Link(Link { ino: file(self, *f), parent: dir(self, *d), name: name(*m) })
            }
            Step::Unlink { dir: d, name: m, directory } => {
                Write::Unlink(Unlink { parent: dir(self, *d), name: name(*m), directory: *directory })
            }
            Step::Rename { dir: d, name: m, to, new, no_replace } => Write::Rename(Rename {
                parent: dir(self, *d),
                name: name(*m),
                new_parent: dir(self, *to),
                new_name: name(*new),
                mode: if *no_replace { RenameMode::NoReplace } else { RenameMode::Replace },
            }),
            Step::Commit { file: f, block } => self.commit(n, file(self, *f), *block),
            // Link counts of directories are not promised while a subdirectory comes or goes (0002).
            Step::Nlink { .. } if self.files.is_empty() => return Ok(()),
            Step::Lookup { .. } | Step::Nlink { .. } | Step::Open { .. } => {
                self.clients[n].doing = Some(Doing::Read { from: self.now, read: step });
                return self.turn(n);
            }
            Step::Close { file: f } => {
                self.close(n, file(self, *f));
                return Ok(());
            }
            Step::Die => {
                return self.die(n);
            }
            Step::Restart => {
                let c = &mut self.clients[n];
                c.token.incarnation.0 += 1;
                c.objects = 0;
                return Ok(());
            }
        };
        let c = &mut self.clients[n];
        let op = OpId { mount: MountId(c.session.0), origin: Origin::Fuse, number: c.next, step: 0 };
        c.next += 1;
        self.now += 1;
        c.doing = Some(Doing::Write { op, from: self.now, write });
        self.turn(n)
    }
    /// Uploads an object and names it in a commit of one 4 KiB block.
    fn commit(&mut self, n: usize, ino: Ino, block: u8) -> Write {
        let c = &mut self.clients[n];
        c.objects += 1;
        let id = ObjectId { session: c.session, incarnation: c.token.incarnation, counter: c.objects };
        self.store.insert(id);
        let source = Source::Object { id, home: ino, skip: 0 };
        let extent = Extent { offset: u64::from(block % 3) * 2048, len: 4096, codec: 0, source };
        let file = CommitFile {
            ino,
            trunc_seq: 0,
            pieces: vec![Piece::Extent(extent)],
            mtime: None,
            grow_to: 0,
            kill_priv: false,
        };
        Write::Commit(Commit { files: vec![file] })
    }
    fn read(&mut self, n: usize, from: u64, read: Step) -> Check {
        let file = |c: &Cluster, k: u8| c.files.get(k as usize % c.files.len().max(1)).copied().unwrap_or(Ino(2));
        let (session, token) = (self.clients[n].session, self.clients[n].token);
        let (ino, question) = match &read {
            Step::Lookup { dir, name: m } => {
                let parent = self.dirs[*dir as usize % self.dirs.len()];
                (parent, Read::Lookup { parent, name: name(*m) })
            }
            Step::Open { file: f } => (file(self, *f), Read::Open { ino: file(self, *f), write: false }),
            Step::Nlink { file: f } => (file(self, *f), Read::GetAttr { ino: file(self, *f) }),
            other => return Err(format!("not a read: {other:?}")),
        };
        let at = self.owner(ino.into());
        let answer = self.nodes[at].p.read(session, &question);
        self.now += 1;
        let mut seen = |what| self.history.push(Event { from, to: self.now, what });
        match (read, answer) {
            (_, Err(FsError::Conflict)) => return Ok(()),
            (_, Err(FsError::NotAttached)) => {
                _ = self.internal(at, Internal::Attach { session, token })?;
                return Ok(());
            }
            (Step::Lookup { name: m, .. }, Ok(ReadReply::Entry { entry, .. })) => {
                seen(What::Lookup(ino, name(m), entry.map(|(i, _)| i.0)));
            }
            (Step::Lookup { name: m, .. }, Err(FsError::NotFound)) => seen(What::Lookup(ino, name(m), None)),
            (Step::Nlink { .. }, Ok(ReadReply::Attr(attr))) => seen(What::Nlink(ino, attr.nlink)),
            (Step::Nlink { .. }, Err(FsError::NotFound)) => seen(What::Nlink(ino, 0)),
            (Step::Open { .. }, Ok(_)) => {
                if !self.clients[n].refused.contains(&ino) {
                    self.clients[n].open.insert(ino);
                }
            }
            (Step::Open { .. }, Err(FsError::NotFound)) => {}
            (read, odd) => return Err(format!("{read:?} answered {odd:?}")),
        }
        self.clients[n].doing = None;
        Ok(())
    }
    fn close(&mut self, n: usize, ino: Ino) {
        let c = &mut self.clients[n];
        if c.open.remove(&ino) {
            let session = c.session;
            let to = self.owner(ino.into());
            if self.nodes[to].p.must_log_close(session, ino) {
                self.clients[n].refused.insert(ino); // it has no name left to open it by
                let pin = Internal::Pin { session, held: vec![], released: vec![ino] };
                self.pool.push(Msg::Propose { to, command: pin });
            }
        }
    }
    /// A client is killed; the master ends its session; another one takes over its script.
    fn die(&mut self, n: usize) -> Check {
        self.count("client killed");
        let script = std::mem::take(&mut self.clients[n].script);
        let next = self.client(script);
        let old = std::mem::replace(&mut self.clients[n], next);
        if let Some(Doing::Write { op, from, write }) = old.doing {
            self.abandoned.push((old.session, op, from, write));
        }
        self.ended.insert(old.session);
        for to in 0..PARTS {
            let end = Msg::End { to, session: old.session };
            if self.random(2) == 0 {
                self.deliver(end)?; // while its transactions run
            } else {
                self.pool.push(end);
            }
        }
        Ok(())
    }

    // --- running --------------------------------------------------------------------------------------------------

    fn tick(&mut self, calm: bool) -> Check {
        self.now += 1;
        match self.random(10) {
            0 | 1 => {
                let n = self.random(self.clients.len());
                if self.pool.len() < 100 {
                    self.turn(n)?;
                }
            }
            2 | 3 => {
                let i = self.random(PARTS);
                if self.pool.len() < 100 {
                    self.work(i)?;
                }
            }
            4 if !calm && self.chance(self.weather.crash) => {
                let i = self.random(PARTS);
                self.crash(i);
            }
            _ if !self.pool.is_empty() => {
                let k = self.random(self.pool.len());
                let msg = self.pool.swap_remove(k);
                let sure = matches!(msg, Msg::End { .. });
                if !calm && !sure && self.chance(self.weather.repeat) {
                    self.pool.push(msg.clone());
                }
                if !sure && self.late.len() < 400 && self.chance(40) && !matches!(msg, Msg::Reply { .. }) {
                    self.late.push(msg.clone());
                }
                if calm || sure || !self.chance(self.weather.lose) {
                    self.deliver(msg)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
    fn busy(&self) -> bool {
        self.clients.iter().any(|c| c.doing.is_some() || !c.script.is_empty())
    }
    /// Runs the scripts in bad weather, then in calm until nothing is left to do.
    pub fn run(&mut self) -> Check {
        for n in 0..6000 {
            if n > 200 && !self.busy() {
                break;
            }
            self.tick(false)?;
        }
        self.settle()
    }
    fn settle(&mut self) -> Check {
        for round in 0.. {
            for _ in 0..100 {
                self.tick(true)?;
            }
            let running = self.nodes.iter().any(|n| n.p.txn_counts() != (0, 0));
            if !self.busy() && self.pool.is_empty() && !running && self.nodes.iter().all(|n| n.p.work().is_empty()) {
                return Ok(());
            }
            if round > 200 {
                return Err(format!("no rest: pool {:?}, work {:?}", self.pool.len(), self.stuck()));
            }
        }
        Ok(())
    }
    fn stuck(&self) -> Vec<String> {
        let work = self.nodes.iter().map(|n| format!("{:?} {:?}", n.p.txn_counts(), n.p.work()));
        work.chain(self.clients.iter().map(|c| format!("{:?}", c.doing))).collect()
    }
    /// Repeats old messages after everything has come to rest: none may have any effect on files.
    pub fn replay_late(&mut self) -> Check {
        let before = self.tree()?;
        for msg in std::mem::take(&mut self.late) {
            let harmless = match &msg {
                Msg::Walk { .. } | Msg::Ask { .. } | Msg::Reply { .. } => false,
                // A request whose session lives and whose reply was not acknowledged is answered from the table.
                _ => true,
            };
            if harmless && !matches!(msg, Msg::End { .. }) {
                self.repeat(msg)?;
            }
        }
        self.settle()?;
        if self.tree()? == before { Ok(()) } else { Err("a late duplicate changed the tree".into()) }
    }
    fn repeat(&mut self, msg: Msg) -> Check {
        match msg {
            // The answer of an old message goes nowhere: its transaction is finished.
            Msg::Txn { msg, .. } => {
                let to = self.owner(msg.route());
                _ = self.internal(to, Internal::Txn(msg))?;
                Ok(())
            }
            Msg::Propose { to, command } => {
                _ = self.internal(to, command)?;
                self.open_files_exist()
            }
            other => self.deliver(other),
        }
    }
    /// Ends all sessions: afterwards nothing of them may be left.
    pub fn end_all(&mut self) -> Check {
        for n in 0..self.clients.len() {
            self.clients[n].script.clear();
            self.die(n)?;
        }
        self.settle()?;
        self.sweep();
        for (i, n) in self.nodes.iter().enumerate() {
            let u = n.p.usage();
            if u.orphans != 0 {
                return Err(format!("partition {i} leaks {} orphans", u.orphans));
            }
        }
        let live = self.referenced();
        if live != self.store {
            return Err(format!("store {:?}, referenced {live:?}", self.store));
        }
        Ok(())
    }
    /// The sweeper of PROTOCOL 33: objects of ended sessions that no partition has a record of.
    fn sweep(&mut self) {
        let ended = self.ended.clone();
        let nodes = &self.nodes;
        self.store.retain(|id| {
            !ended.contains(&id.session)
                || nodes.iter().any(|n| n.p.list_objects(id.session, id.incarnation, None, usize::MAX).contains(id))
        });
    }
    /// Operations of killed clients count if a partition has answered them.
    pub fn complete_history(&mut self) {
        for (session, op, from, write) in std::mem::take(&mut self.abandoned) {
            if let Some((to, result)) = self.truth.get(&(session, op))
                && !matches!(write, Write::Commit(_))
            {
                self.history.push(Event { from, to: *to, what: What::Write(write, result.clone()) });
            }
        }
        self.history.sort_by_key(|e| (e.from, e.to));
    }
    /// A second replica that applies the same logs has the same state.
    pub fn replicas_agree(&self) -> Check {
        for (i, n) in self.nodes.iter().enumerate() {
            let mut copy = Partition::new(config(i)).map_err(|e| e.to_string())?;
            for (at, command) in &n.log {
                copy.apply(*at, command);
            }
            if copy.digest() != n.p.digest() {
                return Err(format!("partition {i}: replicas differ"));
            }
        }
        Ok(())
    }
    /// The tree as it is: inode -> (directory, nlink, parent, entries), and the number of inodes anywhere.
    pub fn tree(&self) -> Check<super::model::Model> {
        use super::model::{Model, Node};
        let mut out: BTreeMap<u64, Node> = BTreeMap::new();
        let mut queue = vec![(Ino::ROOT, Ino::ROOT)];
        while let Some((ino, above)) = queue.pop() {
            let p = &self.nodes[self.owner(ino.into())].p;
            let inode = p.inode(ino).map_err(|e| format!("{ino:?} below {above:?}: {e}"))?;
            if inode.is_dir() && inode.parent != above {
                return Err(format!("{ino:?} has parent {:?}, is in {above:?}", inode.parent));
            }
            let dir = inode.is_dir();
            let parent = if dir { above.0 } else { 0 };
            let first = out.insert(ino.0, Node { dir, nlink: inode.nlink, parent, entries: BTreeMap::new() });
            if !dir {
                continue;
            }
            if first.is_some() {
                return Err(format!("{ino:?} has two names"));
            }
            for (name, child) in self.list(ino)? {
                if let Some(n) = out.get_mut(&ino.0) {
                    n.entries.insert(name, child.0);
                }
                queue.push((child, ino));
            }
        }
        Ok(Model(out))
    }
    fn list(&self, ino: Ino) -> Check<Vec<(Vec<u8>, Ino)>> {
        let read = Read::ReadDir { ino, after: 0, limit: 1000, plus: false };
        match self.nodes[self.owner(ino.into())].p.read(SessionId(0), &read) {
            Ok(ReadReply::Entries { entries, .. }) => {
                Ok(entries.into_iter().map(|e| (e.name.as_bytes().to_vec(), e.ino)).collect())
            }
            odd => Err(format!("readdir of {ino:?}: {odd:?}")),
        }
    }
    /// The online check of all partitions, at rest.
    pub fn fsck(&self) -> Check {
        let reports: Vec<_> = self.nodes.iter().map(|n| n.p.fsck()).collect();
        let problems = fsck_volume(&reports);
        if problems.is_empty() { Ok(()) } else { Err(format!("fsck: {problems:?}")) }
    }
    /// Inodes in all partitions.
    pub fn inodes(&self) -> u64 {
        self.nodes.iter().map(|n| n.p.usage().inodes).sum()
    }
}

fn config(i: usize) -> PartitionConfig {
    let start = (i as u64 * SPAN).max(1);
    PartitionConfig {
        volume: VolumeId(1),
        partition: PartitionId(i as u64 + 1),
        ranges: vec![KeyRange::inos(start, (i as u64 + 1) * SPAN)],
        hash_key: [7; 16],
    }
}

fn name(n: u8) -> Name {
    Name::new(Bytes::copy_from_slice(&[b'a' + n % 3])).unwrap()
}

/// First word of a debug form.
fn short(x: &impl std::fmt::Debug) -> String {
    let all = format!("{x:?}");
    all.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}
