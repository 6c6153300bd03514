//! Events between a metanode and a client session: one stream per (session, metanode), multiplexing one logical stream
//! per partition (PROTOCOL 7, 45). A break of the stream means: drop what was learned from it.

use crate::{Ino, PartitionId, ops::Envelope};

/// What a metanode tells a client. Ids grow by one within a stream, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerEvent {
    /// Number, acknowledged by [`ClientEvent::ack`].
    pub id: u64,
    /// What.
    pub body: ServerBody,
}

/// Body of a [`ServerEvent`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerBody {
    /// First event: the stream is registered.
    Hello,
    /// The leader of a group asks which of these inodes the session holds open (PROTOCOL 22).
    HoldersAsked {
        /// Group.
        group: PartitionId,
        /// Term of the asking leader; the answer repeats it.
        term: u64,
        /// Inodes.
        inos: Vec<Ino>,
    },
    /// The partition map changed; refresh at least to this generation.
    MapChanged {
        /// Generation.
        generation: u64,
    },
    /// Locks on these inodes went or shrank: whoever waits for one should try again. Sent to sessions that said they
    /// wait, once; a lost event costs only time, because waiters also ask from time to time.
    LocksFreed {
        /// Group.
        group: PartitionId,
        /// Inodes.
        inos: Vec<Ino>,
    },
}

/// What a client tells a metanode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientEvent {
    /// First event of a stream: who speaks.
    pub envelope: Option<Envelope>,
    /// Highest server event handled, 0 = none.
    pub ack: u64,
    /// What.
    pub body: ClientBody,
}

/// Body of a [`ClientEvent`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientBody {
    /// Only the acknowledgement (and, first, the envelope).
    Nothing,
    /// Answer to [`ServerBody::HoldersAsked`]: `held` is a subset of `asked`.
    Holders {
        /// Group.
        group: PartitionId,
        /// Term of the question.
        term: u64,
        /// Inodes asked about.
        asked: Vec<Ino>,
        /// Those held open.
        held: Vec<Ino>,
    },
}
