//! One partition with an attached session, its blob file as a map, and short calls.

use bytes::Bytes;
use fusefs_meta_state::{Applied, InternalReply, LogPos, Outcome, Partition, PartitionConfig, record::BlobKey};
use fusefs_types::{
    Attr, Extent, FsError, FsResult, Hlc, Ino, KeyRange, Name, ObjectId, PartitionId, SessionId, Source, Token,
    VolumeId,
    ids::{Incarnation, MountId, OpId, Origin},
    ops::*,
    txn::Internal,
};
use std::collections::BTreeMap;

pub const SESSION: SessionId = SessionId(7);
pub const ROOT: Ino = Ino::ROOT;

pub fn config() -> PartitionConfig {
    PartitionConfig {
        volume: VolumeId(1),
        partition: PartitionId(1),
        ranges: vec![KeyRange::inos(1, 1 << 20)],
        hash_key: *b"0123456789abcdef",
    }
}

pub fn token() -> Token {
    Token { attach: 0, incarnation: Incarnation(1) }
}

pub fn name(s: &str) -> Name {
    Name::new(s.as_bytes().to_vec()).unwrap()
}

/// A partition and what surrounds it.
pub struct Rig {
    pub p: Partition,
    pub index: u64,
    /// Next stamp that the leader gives.
    pub clock: u64,
    pub number: u64,
    /// The blob file.
    pub blobs: BTreeMap<BlobKey, Bytes>,
    pub last: Option<Applied>,
}

impl Rig {
    pub fn new() -> Rig {
        Rig::with(config())
    }
    pub fn with(config: PartitionConfig) -> Rig {
        let p = Partition::new(config).unwrap();
        let mut rig = Rig { p, index: 0, clock: 1_000, number: 0, blobs: BTreeMap::new(), last: None };
        rig.internal(Internal::Attach { session: SESSION, token: token() }).unwrap();
        rig
    }
    /// Applies a command and keeps the blob file as a machine would.
    pub fn apply(&mut self, body: Body) -> Outcome {
        self.index += 1;
        self.clock += 10;
        let command = Command { stamp: Hlc(self.clock), level: 1, body };
        let applied = self.p.apply(LogPos { term: 1, index: self.index, n: 3 }, &command);
        for put in &applied.blobs {
            assert!(self.blobs.insert(put.key, put.bytes.clone()).is_none(), "a name is used once");
        }
        for gone in &applied.freed {
            let bytes = self.blobs.remove(&gone.key).expect("freed what was put");
            assert_eq!(bytes.len(), gone.len as usize);
        }
        self.last = Some(applied.clone());
        applied.outcome
    }
    pub fn stamp(&self) -> Hlc {
        self.p.last()
    }
    pub fn internal(&mut self, internal: Internal) -> FsResult<InternalReply> {
        match self.apply(Body::Internal(internal)) {
            Outcome::Internal(r) => r,
            other => panic!("{other:?}"),
        }
    }
    pub fn caller(&mut self) -> Caller {
        self.number += 1;
        let op = OpId { mount: MountId(1), origin: Origin::Fuse, number: self.number, step: 0 };
        Caller { session: SESSION, token: token(), op, acks: vec![] }
    }
    pub fn write(&mut self, write: Write) -> FsResult<WriteReply> {
        let caller = self.caller();
        match self.apply(Body::Client(caller, write)) {
            Outcome::Client(r) => r,
            other => panic!("{other:?}"),
        }
    }
    pub fn create(&mut self, parent: Ino, s: &str, node: NewNode) -> FsResult<Attr> {
        let c = Create { parent, name: name(s), node, mode: 0o644, uid: 10, gid: 20, exclusive: true };
        self.write(Write::Create(c)).map(|r| match r {
            WriteReply::Created { attr, .. } => attr,
            other => panic!("{other:?}"),
        })
    }
    pub fn file(&mut self, parent: Ino, s: &str) -> Ino {
        self.create(parent, s, NewNode::File).unwrap().ino
    }
    pub fn mkdir(&mut self, parent: Ino, s: &str) -> Ino {
        self.create(parent, s, NewNode::Directory).unwrap().ino
    }
    pub fn unlink(&mut self, parent: Ino, s: &str) -> FsResult<WriteReply> {
        self.write(Write::Unlink(Unlink { parent, name: name(s), directory: false }))
    }
    pub fn rmdir(&mut self, parent: Ino, s: &str) -> FsResult<WriteReply> {
        self.write(Write::Unlink(Unlink { parent, name: name(s), directory: true }))
    }
    pub fn rename(&mut self, from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> FsResult<WriteReply> {
        let r = Rename { parent: from.0, name: name(from.1), new_parent: to.0, new_name: name(to.1), mode };
        self.write(Write::Rename(r))
    }
    pub fn link(&mut self, ino: Ino, parent: Ino, s: &str) -> FsResult<WriteReply> {
        self.write(Write::Link(Link { ino, parent, name: name(s) }))
    }
    pub fn setattr(&mut self, set: SetAttr) -> FsResult<Attr> {
        self.write(Write::SetAttr(set)).map(|r| match r {
            WriteReply::Attr(a) => a,
            other => panic!("{other:?}"),
        })
    }
    pub fn truncate(&mut self, ino: Ino, size: u64) -> FsResult<Attr> {
        self.setattr(SetAttr { ino, size: Some(size), ..SetAttr::default() })
    }
    pub fn commit(&mut self, ino: Ino, trunc_seq: u64, pieces: Vec<Piece>) -> FsResult<Attr> {
        let file = CommitFile { ino, trunc_seq, pieces, mtime: None, grow_to: 0, kill_priv: false };
        self.write(Write::Commit(Commit { files: vec![file] })).map(|r| match r {
            WriteReply::Committed(a) => a[0],
            other => panic!("{other:?}"),
        })
    }
    pub fn read(&self, read: Read) -> FsResult<ReadReply> {
        self.p.read(SESSION, &read)
    }
    pub fn attr(&self, ino: Ino) -> Attr {
        match self.read(Read::GetAttr { ino }) {
            Ok(ReadReply::Attr(a)) => a,
            other => panic!("{other:?}"),
        }
    }
    pub fn lookup(&self, parent: Ino, s: &str) -> Option<Ino> {
        match self.read(Read::Lookup { parent, name: name(s) }) {
            Ok(ReadReply::Entry { entry, .. }) => entry.map(|e| e.0),
            other => panic!("{other:?}"),
        }
    }
    /// The bytes of a file as a client would assemble them.
    pub fn content(&self, ino: Ino) -> Vec<u8> {
        let Ok(ReadReply::Extents { attr, extents, end, .. }) =
            self.read(Read::Extents { ino, offset: 0, len: u64::MAX })
        else {
            panic!("extents")
        };
        assert_eq!(end, u64::MAX);
        let mut data = vec![0; attr.size as usize];
        for e in extents {
            for i in 0..e.len {
                let at = (e.offset + i) as usize;
                if at < data.len() {
                    data[at] = self.byte(&e, i);
                }
            }
        }
        data
    }
    fn byte(&self, e: &Extent, i: u64) -> u8 {
        match e.source {
            Source::Object { id, skip, .. } => object_byte(&id, skip + i),
            Source::Inline { index, n, skip } => self.blobs[&BlobKey { index, n }][skip as usize + i as usize],
            Source::Zero => 0,
        }
    }
    pub fn clean(&self) {
        assert_eq!(self.p.fsck().problems, Vec::<String>::new());
    }
}

/// What byte `at` of an object is, by convention of the tests.
pub fn object_byte(id: &ObjectId, at: u64) -> u8 {
    (id.counter.wrapping_mul(31).wrapping_add(at) % 251 + 1) as u8
}

pub fn object(counter: u64) -> ObjectId {
    ObjectId { session: SESSION, incarnation: Incarnation(1), counter }
}

pub fn piece(offset: u64, len: u64, counter: u64, skip: u64) -> Piece {
    Piece::Extent(Extent { offset, len, codec: 0, source: Source::Object { id: object(counter), home: ROOT, skip } })
}

pub fn inline(offset: u64, bytes: &[u8]) -> Piece {
    Piece::Inline { offset, bytes: Bytes::copy_from_slice(bytes) }
}

pub fn err<T: std::fmt::Debug>(r: FsResult<T>) -> FsError {
    r.unwrap_err()
}
