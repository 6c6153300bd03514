//! Seeded values of every type on the wire.

use bytes::Bytes;
use fusefs_types::{
    Attr, Extent, FileKind, FsError, Hlc, Incarnation, Ino, KeyRange, MountId, Name, NodeId, ObjectId, PartitionId,
    RangeKey, ReplicaId, SessionId, Source, StoreId, Time, Token, VolumeId,
    cluster::{Member, NodeCall, NodeReply, ProbeCheck, ReplicaSpec, StoreCredentials, StoreKind, StoreRecord},
    ids::{AckRange, OpId, Origin},
    ops::*,
    stream::{ClientBody, ClientEvent, ServerBody, ServerEvent},
    txn::{Internal, Part, PartReply, TxnId, TxnMessage, TxnStep},
};

/// SplitMix64 with a taste for extremes.
pub struct Make(u64);

impl Make {
    pub const WRITES: usize = 11;
    pub const WRITE_REPLIES: usize = 9;
    pub const READS: usize = 12;
    pub const READ_REPLIES: usize = 11;
    pub const INTERNALS: usize = 17;
    pub const PARTS: usize = 8;
    pub const NODE_CALLS: usize = 6;
    pub const NODE_REPLIES: usize = 4;

    pub fn new(seed: u64) -> Make {
        Make(seed)
    }
    fn raw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.raw() % n as u64) as usize
    }
    fn u64(&mut self) -> u64 {
        match self.below(4) {
            0 => 0,
            1 => u64::MAX,
            2 => self.raw() % 1000,
            _ => self.raw(),
        }
    }
    pub fn u32(&mut self) -> u32 {
        self.u64() as u32
    }
    fn u128(&mut self) -> u128 {
        (u128::from(self.u64()) << 64) | u128::from(self.u64())
    }
    fn bool(&mut self) -> bool {
        self.below(2) == 0
    }
    fn maybe<T>(&mut self, f: impl FnOnce(&mut Make) -> T) -> Option<T> {
        if self.bool() { Some(f(self)) } else { None }
    }
    fn some<T>(&mut self, max: usize, f: impl Fn(&mut Make) -> T) -> Vec<T> {
        (0..self.below(max + 1)).map(|_| f(self)).collect()
    }
    fn text(&mut self) -> String {
        ["", "x", "host.example:7000", "ünï"][self.below(4)].to_owned()
    }
    fn bytes(&mut self, min: usize, max: usize) -> Bytes {
        let n = min + self.below(max - min + 1);
        (0..n).map(|_| (self.raw() % 255) as u8 + 1).collect::<Vec<_>>().into()
    }
    fn name(&mut self) -> Name {
        loop {
            if let Ok(name) = Name::new(self.bytes(1, 20)) {
                return name;
            }
        }
    }
    pub fn hlc(&mut self) -> Hlc {
        Hlc(self.u64())
    }
    fn time(&mut self) -> Time {
        Time(self.u64() as i64)
    }
    fn ino(&mut self) -> Ino {
        Ino(self.u64())
    }
    fn inos(&mut self) -> Vec<Ino> {
        self.some(4, Make::ino)
    }
    pub fn partition(&mut self) -> PartitionId {
        PartitionId(self.u64())
    }
    fn session(&mut self) -> SessionId {
        SessionId(self.u128())
    }
    fn token(&mut self) -> Token {
        Token { attach: self.u64(), incarnation: Incarnation(self.u32()) }
    }
    fn origin(&mut self) -> Origin {
        [Origin::Fuse, Origin::Journal, Origin::Internal][self.below(3)]
    }
    fn op(&mut self) -> OpId {
        OpId { mount: MountId(self.u128()), origin: self.origin(), number: self.u64(), step: self.u32() }
    }
    fn ack(&mut self) -> AckRange {
        let (a, b) = (self.u64(), self.u64());
        AckRange { mount: MountId(self.u128()), origin: self.origin(), first: a.min(b), last: a.max(b) }
    }
    pub fn envelope(&mut self) -> Envelope {
        Envelope {
            cluster: fusefs_types::ClusterId(self.u128()),
            volume: VolumeId(self.u64()),
            session: self.session(),
            token: self.token(),
            op: self.maybe(Make::op),
            hlc: self.hlc(),
            map_generation: self.u64(),
            feature_level: self.u32(),
            credential: self.bytes(0, 40),
            deadline_ms: self.u32(),
            trace: self.u64(),
            acks: self.some(3, Make::ack),
        }
    }
    pub fn caller(&mut self) -> Caller {
        Caller { session: self.session(), token: self.token(), op: self.op(), acks: self.some(3, Make::ack) }
    }
    pub fn caller_plain(&mut self) -> Caller {
        let op = OpId { mount: MountId(u128::MAX), origin: Origin::Fuse, number: 1 << 30, step: 0 };
        let token = Token { attach: 0, incarnation: Incarnation(1) };
        Caller { session: SessionId(u128::MAX), token, op, acks: Vec::new() }
    }
    fn kind(&mut self) -> FileKind {
        FileKind::from_dtype([1, 2, 4, 6, 8, 10, 12][self.below(7)]).unwrap()
    }
    fn mode(&mut self) -> u16 {
        (self.raw() & 0o7777) as u16
    }
    fn attr(&mut self) -> Attr {
        Attr {
            ino: self.ino(),
            kind: self.kind(),
            mode: self.mode(),
            uid: self.u32(),
            gid: self.u32(),
            nlink: self.u32(),
            rdev: self.u32(),
            size: self.u64(),
            allocated: self.u64(),
            atime: self.time(),
            mtime: self.time(),
            ctime: self.time(),
            btime: self.time(),
            change: self.hlc(),
            trunc_seq: self.u64(),
            flags: self.u32(),
            project: self.u32(),
            parent: self.ino(),
            has_xattr: self.bool(),
        }
    }
    fn object(&mut self) -> ObjectId {
        ObjectId { session: self.session(), incarnation: Incarnation(self.u32()), counter: self.u64() }
    }
    fn extent(&mut self) -> Extent {
        let source = match self.below(3) {
            0 => Source::Object { id: self.object(), home: self.ino(), skip: self.raw() >> 8 },
            1 => Source::Inline { index: self.u64(), n: self.u32(), skip: self.u32() >> 8 },
            _ => Source::Zero,
        };
        Extent { offset: self.raw() >> 2, len: 1 + self.raw() % 100_000, codec: self.u64() as u16, source }
    }
    fn piece(&mut self) -> Piece {
        match self.below(3) {
            0 => Piece::Extent(self.extent()),
            1 => Piece::Inline { offset: self.raw() >> 2, bytes: self.bytes(0, 100) },
            _ => Piece::Hole { offset: self.raw() >> 2, len: self.raw() >> 2 },
        }
    }
    fn set_time(&mut self) -> SetTime {
        if self.bool() { SetTime::Now } else { SetTime::At(self.time()) }
    }
    fn create(&mut self) -> Create {
        let node = match self.below(4) {
            0 => NewNode::File,
            1 => NewNode::Directory,
            2 => NewNode::Symlink(self.bytes(1, 50)),
            _ => NewNode::Special([FileKind::Fifo, FileKind::Socket, FileKind::BlockDevice][self.below(3)], self.u32()),
        };
        Create {
            parent: self.ino(),
            name: self.name(),
            node,
            mode: self.mode(),
            uid: self.u32(),
            gid: self.u32(),
            exclusive: self.bool(),
        }
    }
    fn set_attr(&mut self) -> SetAttr {
        SetAttr {
            ino: self.ino(),
            mode: self.maybe(Make::mode),
            uid: self.maybe(Make::u32),
            gid: self.maybe(Make::u32),
            size: self.maybe(|m| m.raw() >> 1),
            atime: self.maybe(Make::set_time),
            mtime: self.maybe(Make::set_time),
            ctime: self.maybe(Make::time),
            kill_priv: self.bool(),
        }
    }
    fn commit_file(&mut self) -> CommitFile {
        CommitFile {
            ino: self.ino(),
            trunc_seq: self.u64(),
            pieces: self.some(3, Make::piece),
            mtime: self.maybe(Make::time),
            grow_to: self.raw() >> 1,
            kill_priv: self.bool(),
        }
    }
    fn lock_owner(&mut self) -> LockOwner {
        LockOwner { space: [LockSpace::Posix, LockSpace::Flock][self.below(2)], id: self.u64() }
    }
    fn span(&mut self) -> (u64, u64) {
        let (a, b) = (self.raw() >> 1, self.raw() >> 1);
        (a.min(b), a.max(b))
    }
    fn set_lock(&mut self) -> SetLock {
        let (start, end) = self.span();
        SetLock {
            ino: self.ino(),
            owner: self.lock_owner(),
            start,
            end,
            op: [LockOp::Read, LockOp::Write, LockOp::Unlock][self.below(3)],
            pid: self.u32(),
            wait: self.bool(),
        }
    }
    fn held_lock(&mut self) -> HeldLock {
        let (start, end) = self.span();
        let (session, owner) = (self.session(), self.lock_owner());
        HeldLock { session, owner, start, end, write: self.bool(), pid: self.u32() }
    }
    pub fn write(&mut self, variant: usize) -> Write {
        match variant {
            0 => Write::Create(self.create()),
            1 => Write::Link(Link { ino: self.ino(), parent: self.ino(), name: self.name() }),
            2 => Write::Unlink(Unlink { parent: self.ino(), name: self.name(), directory: self.bool() }),
            3 => Write::Rename(Rename {
                parent: self.ino(),
                name: self.name(),
                new_parent: self.ino(),
                new_name: self.name(),
                mode: [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange][self.below(3)],
            }),
            4 => Write::SetAttr(self.set_attr()),
            5 => {
                let mut files = vec![self.commit_file()];
                files.extend(self.some(2, Make::commit_file));
                Write::Commit(Commit { files })
            }
            6 => Write::Append(Append { ino: self.ino(), pieces: self.some(3, Make::piece), len: self.raw() >> 1 }),
            7 => Write::SetXattr(SetXattr {
                ino: self.ino(),
                name: self.bytes(1, 30),
                value: self.bytes(0, 100),
                mode: [XattrMode::Any, XattrMode::Create, XattrMode::Replace][self.below(3)],
            }),
            8 => Write::RemoveXattr(RemoveXattr { ino: self.ino(), name: self.bytes(1, 255) }),
            9 => Write::SetLock(self.set_lock()),
            _ => Write::Tmpfile(Tmpfile {
                parent: self.ino(),
                mode: self.u32() as u16,
                uid: self.u32(),
                gid: self.u32(),
            }),
        }
    }
    pub fn write_reply(&mut self, variant: usize) -> WriteReply {
        match variant {
            0 => WriteReply::Created { attr: self.attr(), existed: self.bool(), parent: self.attr() },
            1 => WriteReply::Linked { attr: self.attr(), parent: self.attr() },
            2 => WriteReply::Unlinked { ino: self.ino(), nlink: self.u32(), parent: self.attr() },
            3 => WriteReply::Renamed { ino: self.ino(), replaced: self.maybe(Make::ino) },
            4 => WriteReply::Attr(self.attr()),
            5 => WriteReply::Committed(self.some(3, Make::attr)),
            6 => WriteReply::Appended { offset: self.u64(), attr: self.attr() },
            7 => WriteReply::Locked(self.attr()),
            _ => WriteReply::LockBlocked(self.held_lock()),
        }
    }
    pub fn read(&mut self, variant: usize) -> Read {
        let ino = self.ino();
        match variant {
            0 => Read::Lookup { parent: ino, name: self.name() },
            1 => Read::GetAttr { ino },
            2 => Read::Open { ino, write: self.bool() },
            3 => Read::Close { ino },
            4 => Read::ReadLink { ino },
            5 => Read::ReadDir { ino, after: self.u64(), limit: self.u32() % 1025, plus: self.bool() },
            6 => Read::GetXattr { ino, name: self.bytes(1, 255) },
            7 => Read::ListXattr { ino },
            8 => Read::Extents { ino, offset: self.u64(), len: self.u64() },
            9 => {
                let (owner, (start, end)) = (self.lock_owner(), self.span());
                Read::GetLock { ino, owner, start, end, write: self.bool(), wait: self.bool() }
            }
            10 => Read::ListLocks { ino },
            _ => Read::StatFs,
        }
    }
    fn dir_entry(&mut self) -> DirEntry {
        DirEntry {
            name: self.name(),
            ino: self.ino(),
            kind: self.kind(),
            cookie: self.u64(),
            attr: self.maybe(Make::attr),
        }
    }
    fn usage(&mut self) -> PartitionUsage {
        PartitionUsage {
            inodes: self.u64(),
            bytes: self.u64(),
            inline_bytes: self.u64(),
            transactions: self.u64(),
            operations: self.u64(),
            orphans: self.u64(),
            objects: self.u64(),
        }
    }
    pub fn read_reply(&mut self, variant: usize) -> ReadReply {
        match variant {
            0 => ReadReply::Entry {
                entry: self.maybe(|m| (m.ino(), m.kind())),
                attr: self.maybe(Make::attr),
                parent: self.attr(),
            },
            1 => ReadReply::Attr(self.attr()),
            2 => ReadReply::Closed,
            3 => ReadReply::Target(self.bytes(1, 100)),
            4 => ReadReply::Entries { entries: self.some(4, Make::dir_entry), end: self.bool(), dir: self.attr() },
            5 => ReadReply::Xattr(self.bytes(0, 100)),
            6 => ReadReply::XattrNames(self.some(4, |m| m.bytes(1, 30))),
            7 => {
                let extents = self.some(4, Make::extent);
                let inline = (0..extents.len() as u32).map(|i| (i, self.bytes(0, 20))).collect();
                ReadReply::Extents { attr: self.attr(), extents, inline, end: self.u64() }
            }
            8 => ReadReply::Lock(self.maybe(Make::held_lock)),
            9 => ReadReply::Locks(self.some(4, Make::held_lock)),
            _ => ReadReply::StatFs(self.usage()),
        }
    }
    fn error(&mut self) -> FsError {
        FsError::ALL[self.below(FsError::ALL.len())]
    }
    pub fn reply<T>(&mut self, f: impl FnOnce(&mut Make) -> T) -> Reply<T> {
        let head = ReplyHead { hlc: self.hlc(), map_generation: self.u64() };
        let refusal = self.below(4) == 0;
        let result = if refusal {
            Err(Refusal {
                error: self.error(),
                leader: self.maybe(Make::text),
                map_generation: self.u64(),
                backoff_ms: self.u32(),
            })
        } else {
            Ok(f(self))
        };
        Reply { head, result }
    }
    fn key(&mut self) -> RangeKey {
        RangeKey { ino: self.ino(), sub: self.u64() }
    }
    fn range(&mut self) -> KeyRange {
        KeyRange { start: self.key(), end: self.key() }
    }
    fn txn(&mut self) -> TxnId {
        TxnId { coordinator: self.partition(), seq: self.u64() }
    }
    fn part(&mut self, variant: usize) -> Part {
        let (ino, parent) = (self.ino(), self.ino());
        match variant {
            0 => Part::Topology,
            1 => Part::Remove { parent, name: self.name(), child: ino, kind: self.kind() },
            2 => Part::Insert { parent, name: self.name(), child: ino, kind: self.kind(), replace: self.bool() },
            3 => Part::MakeDirectory {
                near: self.key(),
                parent,
                mode: self.mode(),
                uid: self.u32(),
                gid: self.u32(),
                depth: self.u64() as u8,
                project: self.u32(),
            },
            4 => Part::AddLink { ino },
            5 => Part::DropLink { ino },
            6 => Part::RemoveDirectory { ino },
            _ => Part::Moved { ino, parent },
        }
    }
    pub fn txn_message(&mut self, part: usize) -> TxnMessage {
        let p = self.part(part);
        let step = match self.below(4) {
            0 => TxnStep::Prepare(p),
            1 => TxnStep::Execute(p),
            2 => TxnStep::Commit(p),
            _ => TxnStep::Abort(self.key()),
        };
        TxnMessage { txn: self.txn(), part: self.u32(), floor: self.u64(), session: self.session(), step }
    }
    pub fn part_reply(&mut self) -> PartReply {
        PartReply { done: self.bool(), existing: self.maybe(|m| (m.ino(), m.kind())), attr: self.maybe(Make::attr) }
    }
    pub fn internal(&mut self, variant: usize) -> Internal {
        let (session, token, part) = (self.session(), self.token(), self.u32());
        match variant {
            0 => Internal::TermStart,
            1 => Internal::Attach { session, token },
            2 => Internal::Fence { session, token },
            3 => Internal::EndSession { session, revoked: self.bool() },
            4 => {
                let v = self.below(Make::WRITES);
                Internal::TxnBegin { caller: self.caller(), write: self.write(v), spill_to: self.maybe(Make::key) }
            }
            5 => {
                let result = if self.bool() { Ok(self.part_reply()) } else { Err(self.error()) };
                Internal::TxnPrepared { txn: self.txn(), part, result }
            }
            6 => Internal::TxnAncestry { txn: self.txn(), cycle: self.bool() },
            7 => Internal::TxnFinished { txn: self.txn(), part, reply: self.part_reply() },
            8 => {
                let v = self.below(Make::PARTS);
                Internal::Txn(self.txn_message(v))
            }
            9 => Internal::Pin { session, held: self.inos(), released: self.inos() },
            10 => Internal::FreeOrphans { inos: self.inos() },
            11 => Internal::ObjectsDeleted { objects: self.some(4, Make::object) },
            12 => Internal::OutboxDone { seqs: self.some(4, Make::u64) },
            13 => Internal::GrantRange { range: self.range(), generation: self.u64() },
            14 => Internal::Credit { bytes: self.u64(), inodes: self.u64() },
            15 => Internal::SetLevel { level: self.u32() },
            _ => Internal::Digest { at: self.hlc() },
        }
    }
    fn store(&mut self) -> StoreRecord {
        StoreRecord {
            id: StoreId(self.u32()),
            name: self.text(),
            kind: [StoreKind::S3, StoreKind::Dir, StoreKind::Memory][self.below(3)],
            endpoint: self.text(),
            region: self.text(),
            bucket: self.text(),
            prefix: self.text(),
            path_style: self.bool(),
            credential: self.text(),
            probe: self.some(2, |m| ProbeCheck { name: m.text(), ok: m.bool(), required: m.bool(), detail: m.text() }),
        }
    }
    fn member(&mut self) -> Member {
        Member { replica: ReplicaId(self.u64()), node: NodeId(self.u128()), addr: self.text() }
    }
    fn replica_spec(&mut self) -> ReplicaSpec {
        let mut hash_key = [0; 16];
        hash_key.copy_from_slice(&self.u128().to_le_bytes());
        ReplicaSpec {
            partition: self.partition(),
            replica: ReplicaId(self.u64()),
            volume: VolumeId(self.u64()),
            members: self.some(3, Make::member),
            ranges: self.some(3, Make::range),
            hash_key,
            store: self.store(),
            credentials: StoreCredentials {
                access_key: self.text(),
                secret_key: self.text(),
                session_token: self.text(),
                expires_ns: self.u64(),
            },
        }
    }
    pub fn node_call(&mut self, variant: usize) -> NodeCall {
        let partition = self.partition();
        match variant {
            0 => NodeCall::CreateReplica(self.replica_spec()),
            1 => NodeCall::DestroyReplica(partition, ReplicaId(self.u64())),
            2 => {
                let v = self.below(Make::INTERNALS);
                NodeCall::Command(partition, self.internal(v))
            }
            3 => NodeCall::ListObjects(partition, self.maybe(Make::object), self.u32()),
            4 => NodeCall::Fsck(partition),
            _ => NodeCall::Digest(partition),
        }
    }
    pub fn node_reply(&mut self, variant: usize) -> NodeReply {
        match variant {
            0 => NodeReply::Ok,
            1 => NodeReply::Objects(self.some(4, Make::object)),
            2 => NodeReply::Problems(self.some(4, Make::text)),
            _ => NodeReply::Digest(self.u64(), self.u64()),
        }
    }
    pub fn server_event(&mut self, variant: usize) -> ServerEvent {
        let body = match variant {
            0 => ServerBody::Hello,
            1 => ServerBody::HoldersAsked { group: self.partition(), term: self.u64(), inos: self.inos() },
            2 => ServerBody::MapChanged { generation: self.u64() },
            _ => ServerBody::LocksFreed { group: self.partition(), inos: self.inos() },
        };
        ServerEvent { id: self.u64(), body }
    }
    pub fn client_event(&mut self, variant: usize) -> ClientEvent {
        let body = match variant {
            0 => ClientBody::Nothing,
            _ => {
                ClientBody::Holders { group: self.partition(), term: self.u64(), asked: self.inos(), held: self.inos() }
            }
        };
        ClientEvent { envelope: self.maybe(Make::envelope), ack: self.u64(), body }
    }
}
