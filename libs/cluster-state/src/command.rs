//! Commands of the master's raft group and what they answer. Whatever is random, read from a clock or measured is in the
//! command: the leader puts it there, `apply` decides with it.

use crate::codec::{self, Malformed, pack_enum, pack_struct};
use crate::record::{Grant, SweepRound};
use fusefs_types::{
    ClusterId, FsError, KeyRange, MountId, NodeId, PartitionId, ReplicaId, SessionId, StoreId, Token, VolumeId,
    cluster::{NodeRecord, ProbeCheck, Publication, PublishSpec, StoreRecord, VolumeSpec},
};

/// Version byte in front of every packed command.
pub const COMMAND_VERSION: u8 = 1;

/// Creates a volume in state Creating, with its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateVolume {
    /// Parameters as asked, `store` resolved.
    pub spec: VolumeSpec,
    /// Nodes of each partition's replicas, by the placement function.
    pub placement: Vec<Vec<NodeId>>,
    /// What it survives, in words.
    pub redundancy: String,
    /// Random key of the name hash.
    pub hash_key: [u8; 16],
    /// Now (Unix ns).
    pub at_ns: u64,
}

/// Places a volume that is still being created anew (a node of the first choice did not come back).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplaceVolume {
    /// Volume.
    pub volume: VolumeId,
    /// Generation of the map that the new choice replaces; another one means somebody was faster.
    pub generation: u64,
    /// Nodes of each partition's replicas.
    pub placement: Vec<Vec<NodeId>>,
    /// What it survives, in words.
    pub redundancy: String,
}

/// Raises a volume's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpandVolume {
    /// Name.
    pub name: String,
    /// Bytes; 0 = unlimited.
    pub capacity: u64,
    /// Inodes; 0 = unlimited.
    pub inodes: u64,
}

/// Starts a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteVolume {
    /// Name.
    pub name: String,
    /// Also with open sessions, which are revoked.
    pub force: bool,
    /// Now (Unix ns).
    pub at_ns: u64,
}

/// Opens a session, or resumes it with the same or a newer token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSession {
    /// Volume by name.
    pub volume: String,
    /// Session; a new one is random, chosen by the leader.
    pub session: SessionId,
    /// It must exist already.
    pub resume: bool,
    /// Kernel connection; a repeated open of the same connection gets the same session.
    pub mount: MountId,
    /// Token.
    pub token: Token,
    /// For people.
    pub client: String,
    /// Read-only mount.
    pub read_only: bool,
    /// Now (Unix ns).
    pub at_ns: u64,
}

/// A session, a partition and the token the caller knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach {
    /// Session.
    pub session: SessionId,
    /// Partition.
    pub partition: PartitionId,
    /// Token.
    pub token: Token,
}

/// Raises a session's token: older ones are fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Session.
    pub session: SessionId,
    /// Lowest token still accepted.
    pub token: Token,
}

/// Starts the end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndSession {
    /// Session.
    pub session: SessionId,
    /// The client's own end carries its token (an older one is fenced); force and expiry carry none.
    pub token: Option<Token>,
    /// Objects that may be unreferenced.
    pub leftovers: u64,
    /// Now (Unix ns).
    pub at_ns: u64,
}

/// Partitions have applied the end of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionEnded {
    /// Session.
    pub session: SessionId,
    /// Partitions.
    pub partitions: Vec<PartitionId>,
    /// Now (Unix ns).
    pub at_ns: u64,
}

/// Withdraws the right to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpublish {
    /// Volume name.
    pub volume: String,
    /// Part of the volume, empty = all of it as one.
    pub part: String,
    /// Node, empty = every node.
    pub node: String,
    /// Now (Unix ns).
    pub at_ns: u64,
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Names the cluster; the first one wins.
    Init(ClusterId),
    /// A metanode joins or comes back, perhaps at another address.
    RegisterNode(NodeRecord),
    /// Takes the next store number (never reused), before the store is probed under it.
    ReserveStore,
    /// Adds a probed store under its reserved number.
    AddStore(StoreRecord),
    /// Result of a later probe.
    SetProbe((StoreId, Vec<ProbeCheck>)),
    /// Volume, first step.
    CreateVolume(CreateVolume),
    /// Volume, another choice of nodes while it is being created.
    ReplaceVolume(ReplaceVolume),
    /// Volume, last step: every partition has a leader.
    VolumeReady(VolumeId),
    /// Volume, larger limits.
    ExpandVolume(ExpandVolume),
    /// Volume, first step of the deletion.
    DeleteVolume(DeleteVolume),
    /// Volume, last step: sessions have ended and objects are deleted. Its replicas are doomed.
    VolumeGone(VolumeId),
    /// Replicas that were destroyed on their nodes.
    ReplicasDestroyed(Vec<ReplicaId>),
    /// Gives a partition another range of inode numbers.
    GrantRange(PartitionId),
    /// A partition's leader has taken a range.
    RangeDelivered((PartitionId, Grant)),
    /// Session, open or resume.
    OpenSession(OpenSession),
    /// Session, attach to a partition.
    AttachSession(Attach),
    /// Session, fence.
    Fence(Fence),
    /// Session, begin of the end.
    EndSession(EndSession),
    /// Session, partitions told.
    SessionEnded(SessionEnded),
    /// A look for unreferenced objects is done.
    SweepDone((SessionId, SweepRound)),
    /// Next attach generation of (volume, node name), for orchestrators that force-detach.
    BumpAttach((VolumeId, String)),
    /// A node that can mount volumes is there, at this time (Unix ns).
    AddMounter((String, u64)),
    /// A node may mount a volume.
    Publish(PublishSpec),
    /// A node may not any more: its sessions are ended.
    Unpublish(Unpublish),
}

pack_struct!(CreateVolume { spec, placement, redundancy, hash_key, at_ns });
pack_struct!(ReplaceVolume { volume, generation, placement, redundancy });
pack_struct!(ExpandVolume { name, capacity, inodes });
pack_struct!(DeleteVolume { name, force, at_ns });
pack_struct!(OpenSession { volume, session, resume, mount, token, client, read_only, at_ns });
pack_struct!(Attach { session, partition, token });
pack_struct!(Fence { session, token });
pack_struct!(EndSession { session, token, leftovers, at_ns });
pack_struct!(Unpublish { volume, part, node, at_ns });
pack_struct!(SessionEnded { session, partitions, at_ns });
pack_enum!(Command {
    3 => ReserveStore ;
    1 => Init(ClusterId),
    2 => RegisterNode(NodeRecord),
    4 => AddStore(StoreRecord),
    5 => SetProbe((StoreId, Vec<ProbeCheck>)),
    6 => CreateVolume(CreateVolume),
    7 => ReplaceVolume(ReplaceVolume),
    8 => VolumeReady(VolumeId),
    9 => ExpandVolume(ExpandVolume),
    10 => DeleteVolume(DeleteVolume),
    11 => VolumeGone(VolumeId),
    12 => ReplicasDestroyed(Vec<ReplicaId>),
    13 => GrantRange(PartitionId),
    14 => RangeDelivered((PartitionId, Grant)),
    15 => OpenSession(OpenSession),
    16 => AttachSession(Attach),
    17 => Fence(Fence),
    18 => EndSession(EndSession),
    19 => SessionEnded(SessionEnded),
    20 => SweepDone((SessionId, SweepRound)),
    21 => BumpAttach((VolumeId, String)),
    22 => AddMounter((String, u64)),
    23 => Publish(PublishSpec),
    24 => Unpublish(Unpublish),
});

impl Command {
    /// Packed form: version byte, then the command.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![COMMAND_VERSION];
        codec::Pack::put(self, &mut out);
        out
    }
    /// Reads the packed form. An unknown version or command must stop the replica ("upgrade needed"): skipping it would
    /// make replicas differ.
    pub fn decode(bytes: &[u8]) -> Result<Command, Malformed> {
        match bytes.split_first() {
            Some((&COMMAND_VERSION, rest)) => codec::unpack(rest),
            _ => Err(Malformed),
        }
    }
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, or it was done already.
    Ok,
    /// Init: the cluster's name, which may be an older one.
    Cluster(ClusterId),
    /// ReserveStore, AddStore.
    Store(StoreId),
    /// CreateVolume, DeleteVolume.
    Volume(VolumeId),
    /// OpenSession.
    Session(SessionId, Token),
    /// AttachSession, Fence: the highest token.
    Token(Token),
    /// GrantRange.
    Range(KeyRange, u64),
    /// BumpAttach.
    Generation(u64),
    /// Publish.
    Publication(Publication),
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Code.
    pub error: FsError,
    /// Sentence for people that says what to do next.
    pub message: String,
}

/// Answer of `apply`.
pub type Applied = Result<Outcome, Reject>;

/// A rejection.
pub(crate) fn reject<T>(error: FsError, message: impl Into<String>) -> Result<T, Reject> {
    Err(Reject { error, message: message.into() })
}
