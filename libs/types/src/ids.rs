//! Identifier newtypes. None of them is ever reused (PROTOCOL 1, 2).

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $int:ty, hex) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub $int);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:0width$x}", self.0, width = std::mem::size_of::<$int>() * 2)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:x})", stringify!($name), self.0)
            }
        }
        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                <$int>::from_str_radix(s, 16).map($name)
            }
        }
    };
    ($(#[$doc:meta])* $name:ident, $int:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub $int);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                s.parse::<$int>().map($name)
            }
        }
    };
}

id!(/// 128-bit random name of one cluster; every disk and bucket prefix carries it.
    ClusterId, u128, hex);
id!(/// 128-bit random name of one master or metanode process' data directory.
    NodeId, u128, hex);
id!(/// 128-bit random name of one data disk, kept in its superblock.
    DiskId, u128, hex);
id!(/// State of one mount in the cluster; 128-bit random. It outlives client restarts and pauses.
    SessionId, u128, hex);
id!(/// One kernel connection (one FUSE mount); 128-bit random.
    MountId, u128, hex);
id!(/// Volume number, granted by the master.
    VolumeId, u64);
id!(/// Meta-partition number = raft group number. The master's own group is [`PartitionId::MASTER`].
    PartitionId, u64);
id!(/// One placement of one partition on one node = openraft's node id. A replica that moved away and back is a new one.
    ReplicaId, u64);
id!(/// Object store record of the master.
    StoreId, u32);
id!(/// Inode number = FUSE nodeid.
    Ino, u64);
id!(/// One client process within a session; the first is 1.
    Incarnation, u32);

impl PartitionId {
    /// The master's raft group.
    pub const MASTER: PartitionId = PartitionId(0);
}

impl Ino {
    /// Root directory of every volume.
    pub const ROOT: Ino = Ino(1);
}

/// Fencing token, compared lexicographically: the CSI controller bumps `attach`, a restarting client `incarnation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Token {
    /// Attach generation of (volume, node).
    pub attach: u64,
    /// Client process within the session.
    pub incarnation: Incarnation,
}

/// Who issued an operation (PROTOCOL 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Origin {
    /// A kernel request; number = FUSE `unique` without the resend bit.
    #[default]
    Fuse = 0,
    /// The write journal; number = log sequence number.
    Journal = 1,
    /// The client itself (background work); number = a counter of the incarnation, high 32 bits = incarnation.
    Internal = 2,
}

/// Name of one mutation. A retry carries the same id; the stored reply answers it (exactly once).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct OpId {
    /// Kernel connection that asked.
    pub mount: MountId,
    /// Which counter `number` belongs to.
    pub origin: Origin,
    /// Number within the origin.
    pub number: u64,
    /// Step of a multi-step plan, 0 for the first.
    pub step: u32,
}

/// Replies that reached the kernel, so that their stored copies may go: numbers `first..=last` of one origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AckRange {
    /// Kernel connection.
    pub mount: MountId,
    /// Counter.
    pub origin: Origin,
    /// First acknowledged number.
    pub first: u64,
    /// Last acknowledged number, inclusive.
    pub last: u64,
}
