//! Object: key = object id; live bytes, home and birth (PROTOCOL 32). A dead object has a second key (stamp of death, id)
//! so that background work finds it in order of age. Borrowers come with packing and sharing.

use super::Record;
use crate::codec::{Get, Put};
use fusefs_types::{FsResult, Hlc, Ino, ObjectId, SessionId, ids::Incarnation};

const VERSION: u8 = 1;

/// Reference count of an object in its home partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// Home inode; it lies in a range of this partition.
    pub home: Ino,
    /// Bytes referenced by extents.
    pub live: u64,
    /// First commit that named it.
    pub birth: Hlc,
    /// Stamp at which `live` became 0; such an object is never referenced again.
    pub dead: Option<Hlc>,
}

pub(crate) fn put_id(out: &mut Vec<u8>, id: &ObjectId) {
    out.key128(id.session.0).key32(id.incarnation.0).key64(id.counter);
}

pub(crate) fn get_id(g: &mut Get<'_>) -> FsResult<ObjectId> {
    Ok(ObjectId { session: SessionId(g.key128()?), incarnation: Incarnation(g.key32()?), counter: g.key64()? })
}

impl Record for Object {
    const TREE: u8 = 5;
    type Key = ObjectId;
    fn encode_key(key: &ObjectId, out: &mut Vec<u8>) {
        put_id(out, key);
    }
    fn decode_key(bytes: &[u8]) -> FsResult<ObjectId> {
        let mut g = Get(bytes);
        let id = get_id(&mut g)?;
        g.end().map(|()| id)
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.u8(VERSION).u64(self.home.0).u64(self.live).u64(self.birth.0).bool(self.dead.is_some());
        if let Some(d) = self.dead {
            out.u64(d.0);
        }
    }
    fn decode(bytes: &[u8]) -> FsResult<Object> {
        let mut g = Get(bytes);
        g.version(VERSION)?;
        let (home, live, birth) = (Ino(g.u64()?), g.u64()?, Hlc(g.u64()?));
        let dead = if g.bool()? { Some(Hlc(g.u64()?)) } else { None };
        g.end().map(|()| Object { home, live, birth, dead })
    }
}

/// Order of death.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeadKey {
    /// Stamp at which the last reference went.
    pub since: Hlc,
    /// Object.
    pub id: ObjectId,
}

/// Marks a dead object; everything is in the key and in [`Object`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dead;

impl Record for Dead {
    const TREE: u8 = 6;
    type Key = DeadKey;
    fn encode_key(key: &DeadKey, out: &mut Vec<u8>) {
        out.key64(key.since.0);
        put_id(out, &key.id);
    }
    fn decode_key(bytes: &[u8]) -> FsResult<DeadKey> {
        let mut g = Get(bytes);
        let key = DeadKey { since: Hlc(g.key64()?), id: get_id(&mut g)? };
        g.end().map(|()| key)
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.u8(VERSION);
    }
    fn decode(bytes: &[u8]) -> FsResult<Dead> {
        let mut g = Get(bytes);
        g.version(VERSION)?;
        g.end().map(|()| Dead)
    }
}
