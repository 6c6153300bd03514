//! What the master knows and is asked: nodes, stores, volumes, partition maps, sessions. `proto` converts these,
//! `cluster-state` keeps them, `meta-client` and `metanode` ask for them, the HTTP API shows them as JSON.

use crate::{
    ClusterId, FsError, Ino, NodeId, PartitionId, ReplicaId, SessionId, StoreId, Token, VolumeId, ids::MountId,
    key::KeyRange, ops::PartitionUsage,
};
use bytes::Bytes;

pub use crate::space::{LeaseGrant, VolumeSpace};

/// One replica of a partition and where it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Replica id = raft node id.
    pub replica: ReplicaId,
    /// Node.
    pub node: NodeId,
    /// `host:port` of the node's one port.
    pub addr: String,
}

/// One partition in a volume's map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionInfo {
    /// Raft group.
    pub id: PartitionId,
    /// Volume.
    pub volume: VolumeId,
    /// Ranges it owns; the last one is where it allocates inode numbers.
    pub ranges: Vec<KeyRange>,
    /// Replicas.
    pub members: Vec<Member>,
    /// Last known leader (a hint).
    pub leader: Option<ReplicaId>,
}

/// Partition map of one volume. A larger generation replaces a smaller one; the groups' own ranges win over it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct VolumeMap {
    /// Volume.
    pub volume: VolumeId,
    /// Generation.
    pub generation: u64,
    /// Partitions in order of their first range.
    pub partitions: Vec<PartitionInfo>,
}

/// Kind of an object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// S3 API.
    S3,
    /// A directory (development).
    Dir,
    /// This process' memory (tests).
    Memory,
}

/// Object store record. The secret itself is never here (PROTOCOL 50): each master reads it from its own file,
/// environment or Kubernetes Secret under the credential's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreRecord {
    /// Number.
    pub id: StoreId,
    /// Unique name for people, same alphabet as volume names.
    pub name: String,
    /// Kind.
    pub kind: StoreKind,
    /// S3: endpoint URL, empty for AWS. Dir: absolute path.
    pub endpoint: String,
    /// S3: region.
    pub region: String,
    /// S3: bucket.
    pub bucket: String,
    /// Key prefix without slashes at the ends; the 128-bit id below it is ours alone.
    pub prefix: String,
    /// S3: path-style addressing.
    pub path_style: bool,
    /// Name of the credential, empty = the master's standard chain.
    pub credential: String,
    /// Result of the last probe, one line per check; empty = not probed yet.
    pub probe: Vec<ProbeCheck>,
}

/// One check of a store probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeCheck {
    /// write | read | range | delete | conditional-create | marker
    pub name: String,
    /// Passed.
    pub ok: bool,
    /// Required: a failed one refuses the store.
    pub required: bool,
    /// Detail or reason.
    pub detail: String,
}

/// Secret part of a store, sent in session grants only.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct StoreCredentials {
    /// Access key id.
    pub access_key: String,
    /// Secret key.
    pub secret_key: String,
    /// Session token or empty.
    pub session_token: String,
    /// Unix ns of expiry, 0 = never.
    pub expires_ns: u64,
}

impl std::fmt::Debug for StoreCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StoreCredentials({}, secret hidden)", self.access_key)
    }
}

/// State of a volume (a persisted state machine: no half-created volume is visible or leaked).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// Replicas are being created.
    Creating,
    /// Usable.
    Ready,
    /// Replicas, then objects are being removed.
    Deleting,
}

/// Volume record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Number, never reused.
    pub id: VolumeId,
    /// Name `[a-z0-9][a-z0-9-]{1,62}`.
    pub name: String,
    /// State.
    pub state: VolumeState,
    /// Store.
    pub store: StoreId,
    /// Capacity in bytes, 0 = unlimited.
    pub capacity: u64,
    /// Inodes, 0 = unlimited.
    pub inodes: u64,
    /// Replicas asked per partition.
    pub replicas: u32,
    /// Key of the readdir name hash.
    pub hash_key: [u8; 16],
    /// What redundancy the placement gives, in words.
    pub redundancy: String,
    /// Free labels (CSI stores its parameters here).
    pub labels: Vec<(String, String)>,
    /// Sum over partitions, from heartbeats (0 until the first).
    pub usage: PartitionUsage,
}

/// Parameters of create volume. The same name with the same parameters is the same request (idempotent); different
/// parameters are Exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Name.
    pub name: String,
    /// Store name; empty = the only one.
    pub store: String,
    /// Bytes, 0 = unlimited.
    pub capacity: u64,
    /// Inodes, 0 = unlimited.
    pub inodes: u64,
    /// Partitions, 0 = default 3.
    pub partitions: u32,
    /// Replicas, 0 = as many as there are metanodes, at most 3.
    pub replicas: u32,
    /// Labels.
    pub labels: Vec<(String, String)>,
}

/// Metanode as it registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// Node.
    pub id: NodeId,
    /// `host:port`.
    pub addr: String,
    /// Failure domain for anti-affinity (default: the host part of `addr`).
    pub host: String,
    /// Disk bytes.
    pub capacity: u64,
    /// Memory bytes it may use.
    pub memory: u64,
    /// Highest feature level its binary supports.
    pub feature_level: u32,
}

/// One replica's report in a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaReport {
    /// Group.
    pub partition: PartitionId,
    /// Replica.
    pub replica: ReplicaId,
    /// This replica leads.
    pub leader: bool,
    /// Raft term.
    pub term: u64,
    /// Applied index.
    pub applied: u64,
    /// Counters.
    pub usage: PartitionUsage,
    /// Inode numbers left in the allocation range.
    pub inos_left: u64,
    /// The replica stopped (disk error, damage, upgrade needed): why.
    pub failed: String,
}

/// Metanode heartbeat, every second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Node.
    pub node: NodeId,
    /// Resident memory.
    pub memory_used: u64,
    /// Disk bytes used.
    pub disk_used: u64,
    /// All replicas.
    pub replicas: Vec<ReplicaReport>,
}

/// Metanode as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Record.
    pub record: NodeRecord,
    /// Heard of within 3 heartbeats.
    pub alive: bool,
    /// Milliseconds since the last heartbeat.
    pub silent_ms: u64,
    /// Replicas on it.
    pub replicas: u32,
    /// Leaders on it.
    pub leaders: u32,
    /// Memory used.
    pub memory_used: u64,
    /// Disk used.
    pub disk_used: u64,
}

/// Answer of cluster info.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterInfo {
    /// Cluster.
    pub cluster: ClusterId,
    /// Masters: (address, is leader, reachable).
    pub masters: Vec<(String, bool, bool)>,
    /// Metanodes.
    pub nodes: Vec<NodeStatus>,
    /// Volumes.
    pub volumes: Vec<VolumeRecord>,
    /// Partitions without a leader or with failed replicas, in words; empty = all data safe.
    pub problems: Vec<String>,
}

/// A client asks for a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRequest {
    /// Volume name.
    pub volume: String,
    /// Kernel connection.
    pub mount: MountId,
    /// Resume this session (0 = a new one).
    pub session: SessionId,
    /// Token: attach generation as granted (0 = not CSI), incarnation of this process.
    pub token: Token,
    /// Host name and pid, for people.
    pub client: String,
    /// Read-only mount.
    pub read_only: bool,
}

/// Everything a client needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionGrant {
    /// Cluster.
    pub cluster: ClusterId,
    /// Session.
    pub session: SessionId,
    /// Token to use.
    pub token: Token,
    /// Secret that authenticates the session's RPCs at metanodes and masters.
    pub secret: Bytes,
    /// Lease from now.
    pub lease_ms: u64,
    /// Volume.
    pub volume: VolumeRecord,
    /// Map.
    pub map: VolumeMap,
    /// Store.
    pub store: StoreRecord,
    /// Its secrets.
    pub credentials: StoreCredentials,
    /// Root inode of the mount.
    pub root: Ino,
    /// Bytes and inodes lent (u64::MAX = unlimited).
    pub credit: (u64, u64),
}

/// Session as people see it and as partitions ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    /// Session.
    pub session: SessionId,
    /// Volume.
    pub volume: VolumeId,
    /// Token.
    pub token: Token,
    /// Client text.
    pub client: String,
    /// Lease still valid.
    pub leased: bool,
    /// Partitions it is attached to.
    pub attached: Vec<PartitionId>,
    /// Being ended (revoked or expired, partitions not all told yet).
    pub ending: bool,
}

/// What the master is asked over gRPC. HTTP/JSON is a façade over the same calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MasterCall {
    /// A metanode joins (idempotent).
    Register(NodeRecord),
    /// A metanode lives.
    Heartbeat(Heartbeat),
    /// Cluster info.
    Info,
    /// Adds an object store (probed by the leader first; `id` is ignored).
    AddStore(StoreRecord),
    /// Lists stores.
    ListStores,
    /// Probes a store again.
    ProbeStore(String),
    /// Creates a volume and waits until it is ready.
    CreateVolume(VolumeSpec),
    /// By name.
    GetVolume(String),
    /// All, in name order.
    ListVolumes,
    /// New capacity in bytes and inodes; never below the old one.
    ExpandVolume(String, u64, u64),
    /// Refused with InUse while sessions are open unless `force`. Returns when the volume is gone for users; objects and
    /// replicas are removed in the background.
    DeleteVolume(String, bool),
    /// Partition map.
    GetMap(VolumeId),
    /// Opens or resumes a session.
    OpenSession(SessionRequest),
    /// Renews the lease. Answer: Lease. Stale when the session was ended.
    RenewSession(SessionId, Token),
    /// A partition leader: may this session mutate here? The attachment is recorded before the answer.
    AttachSession(SessionId, PartitionId, Token),
    /// Clean unmount: everything flushed, `leftovers` = objects that may be unreferenced (0 skips the sweep).
    CloseSession(SessionId, Token, u64),
    /// Ends a session by force.
    RevokeSession(SessionId),
    /// Sessions attached to a partition (orphan questions, fsck).
    SessionsOf(PartitionId),
    /// All sessions of a volume.
    ListSessions(VolumeId),
    /// Store of a volume with its secrets, for metanodes (holders of the cluster token). Answer: StoreAccess.
    StoreAccess(VolumeId),
    /// A node that can mount volumes announces itself (idempotent). Volumes are published to announced nodes only.
    AddMounter(String),
    /// Gives a node the right to mount a volume, or answers the one it has. NotFound: no such volume or node. Exists: it
    /// has it in another mode. InUse: a volume for one node is with another one. Conflict: that one is being fenced.
    PublishVolume(PublishSpec),
    /// Withdraws it: volume, part, node (empty = all). Returns when all sessions of it have ended at every partition.
    UnpublishVolume(String, String, String),
    /// Rights to mount, of one volume or (0) of all.
    ListPublications(VolumeId),
    /// A mount token ([`crate::auth::MountClaim`]): volume, node, attach generation. Fenced when that right does not exist
    /// (any more).
    MountToken(String, String, u64),
}

/// Answer to a [`MasterCall`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MasterReply {
    /// Done.
    Ok,
    /// Register: the cluster.
    Registered(ClusterId),
    /// Info.
    Info(ClusterInfo),
    /// AddStore, ProbeStore.
    Store(StoreRecord),
    /// ListStores.
    Stores(Vec<StoreRecord>),
    /// CreateVolume, GetVolume, ExpandVolume.
    Volume(VolumeRecord),
    /// ListVolumes.
    Volumes(Vec<VolumeRecord>),
    /// GetMap.
    Map(VolumeMap),
    /// OpenSession.
    Session(Box<SessionGrant>),
    /// RenewSession.
    Lease(LeaseGrant),
    /// AttachSession: highest token of the session.
    Attached(Token),
    /// SessionsOf, ListSessions.
    Sessions(Vec<SessionStatus>),
    /// StoreAccess.
    StoreAccess(StoreRecord, StoreCredentials),
    /// PublishVolume.
    Published(Publication),
    /// ListPublications.
    Publications(Vec<Publication>),
    /// MountToken: a credential for OpenSession; empty when the cluster has no token.
    MountToken(bytes::Bytes),
}

/// A refused master call: errno-shaped code and a sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasterRefusal {
    /// Code.
    pub error: FsError,
    /// Sentence for people; never parsed.
    pub message: String,
    /// NotLeader: address of the leader.
    pub leader: Option<String>,
}

/// What the master asks of a metanode (credential: the cluster token).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeCall {
    /// Creates a replica of a new group (idempotent by replica id).
    CreateReplica(ReplicaSpec),
    /// Destroys a replica and leaves a tombstone (idempotent).
    DestroyReplica(PartitionId, ReplicaId),
    /// Proposes an internal command in a group this node leads.
    Command(PartitionId, crate::txn::Internal),
    /// All object ids with a record in a group (fsck, sweeps): after this id, at most `limit`.
    ListObjects(PartitionId, Option<crate::ObjectId>, u32),
    /// Invariant check of a group; answer: problems in words.
    Fsck(PartitionId),
    /// Digest of a replica: (applied index, digest).
    Digest(PartitionId),
}

/// Answer to a [`NodeCall`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeReply {
    /// Done.
    Ok,
    /// ListObjects: sorted; fewer than `limit` = end.
    Objects(Vec<crate::ObjectId>),
    /// Fsck.
    Problems(Vec<String>),
    /// Digest.
    Digest(u64, u64),
}

/// A replica to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaSpec {
    /// Group.
    pub partition: PartitionId,
    /// Replica on this node.
    pub replica: ReplicaId,
    /// Volume.
    pub volume: VolumeId,
    /// All initial members, in the same order everywhere.
    pub members: Vec<Member>,
    /// Ranges; the one that contains [`Ino::ROOT`] makes the root directory.
    pub ranges: Vec<KeyRange>,
    /// Key of the name hash.
    pub hash_key: [u8; 16],
    /// Store of the volume and its secrets: the leader deletes dead objects.
    pub store: StoreRecord,
    /// Secrets (kept in memory only; the metanode asks the master again after a restart by registering).
    pub credentials: StoreCredentials,
}

/// How an orchestrator lets a volume be used. The numbers are those of CSI's access modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum AccessMode {
    /// Read and written on one node (older name of [`AccessMode::SingleNodeMultiWriter`]; one target per node).
    SingleNodeWriter = 1,
    /// Read on one node.
    SingleNodeReader = 2,
    /// Read on many nodes.
    MultiNodeReader = 3,
    /// Written on one node, read on others.
    MultiNodeSingleWriter = 4,
    /// Written on many nodes.
    MultiNodeMultiWriter = 5,
    /// Written by one user on one node.
    SingleNodeSingleWriter = 6,
    /// Written by many users on one node.
    SingleNodeMultiWriter = 7,
}

impl AccessMode {
    /// All of them, in order of their numbers.
    pub const ALL: [AccessMode; 7] = [
        AccessMode::SingleNodeWriter,
        AccessMode::SingleNodeReader,
        AccessMode::MultiNodeReader,
        AccessMode::MultiNodeSingleWriter,
        AccessMode::MultiNodeMultiWriter,
        AccessMode::SingleNodeSingleWriter,
        AccessMode::SingleNodeMultiWriter,
    ];
    /// Number of the mode.
    pub fn code(self) -> u8 {
        self as u8
    }
    /// Mode of a number.
    pub fn from_code(code: u8) -> Option<AccessMode> {
        AccessMode::ALL.into_iter().find(|m| m.code() == code)
    }
    /// At most one node uses the volume at a time.
    pub fn single_node(self) -> bool {
        !matches!(
            self,
            AccessMode::MultiNodeReader | AccessMode::MultiNodeSingleWriter | AccessMode::MultiNodeMultiWriter
        )
    }
    /// Nobody writes.
    pub fn read_only(self) -> bool {
        matches!(self, AccessMode::SingleNodeReader | AccessMode::MultiNodeReader)
    }
    /// A second target on the same node is allowed.
    pub fn many_targets(self) -> bool {
        !matches!(
            self,
            AccessMode::SingleNodeWriter | AccessMode::SingleNodeReader | AccessMode::SingleNodeSingleWriter
        )
    }
}

/// Asks for the right to mount a volume on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishSpec {
    /// Volume name.
    pub volume: String,
    /// Directory in it that is published on its own, empty = the whole volume.
    pub part: String,
    /// Node, as it announced itself.
    pub node: String,
    /// Mode.
    pub mode: AccessMode,
    /// Without writing.
    pub read_only: bool,
}

/// The right of a node to mount a volume. It ends with all its sessions fenced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Volume.
    pub volume: VolumeId,
    /// Directory, empty = the whole volume.
    pub part: String,
    /// Node.
    pub node: String,
    /// Mode.
    pub mode: AccessMode,
    /// Asked for without writing.
    pub read_only: bool,
    /// The node may write.
    pub writer: bool,
    /// Attach generation of the sessions on that node: unique in the volume, growing.
    pub generation: u64,
    /// Withdrawn; its sessions are still being fenced.
    pub ending: bool,
}
