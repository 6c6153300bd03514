//! The meta-partition: a value. Everything in it is derived from the commands applied so far.

use crate::{
    codec::{Get, Put},
    record::{
        Blob, Dead, Dentry, FileLock, Inode, Lock, Object, Orphan, OutboxItem, Participant, Pin, Record, Reply,
        Session, StoredExtent, TxnRecord, Xattr, wire::Wire,
    },
    store::Table,
};
use fusefs_types::{
    FileKind, FsError, FsResult, Hlc, Ino, KeyRange, PartitionId, RangeKey, RangeSet, VolumeId, ops::PartitionUsage,
};
use std::sync::Arc;

/// What a partition is born with. Identical on all replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionConfig {
    /// Volume.
    pub volume: VolumeId,
    /// Raft group.
    pub partition: PartitionId,
    /// Ranges it owns; the last one is where it allocates inode numbers. The owner of [`Ino::ROOT`] makes the root.
    pub ranges: Vec<KeyRange>,
    /// Key of the readdir name hash, the volume's.
    pub hash_key: [u8; 16],
}

/// Scalars of a partition: replicated cursors and counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Feature level of the group.
    pub level: u32,
    /// Highest stamp issued.
    pub last: Hlc,
    /// Free inode numbers, `[next, end)` in order of use.
    pub free: Vec<(u64, u64)>,
    /// Generation of the newest map whose range grant was applied.
    pub generation: u64,
    /// Next transaction number.
    pub next_txn: u64,
    /// Next outbox number.
    pub next_outbox: u64,
    /// Space credit lent by the master in total: bytes, inodes; `u64::MAX` = unlimited.
    pub credit: (u64, u64),
    /// Bytes under extents.
    pub bytes: u64,
    /// Bytes of blob puts that are not freed.
    pub inline_bytes: u64,
    /// Transactions coordinated.
    pub transactions: u64,
    /// Client operations applied.
    pub operations: u64,
}

impl Meta {
    const VERSION: u8 = 1;
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.u8(Self::VERSION).u32(self.level).u64(self.last.0);
        self.free.put(out);
        out.u64(self.generation).u64(self.next_txn).u64(self.next_outbox).u64(self.credit.0).u64(self.credit.1);
        out.u64(self.bytes).u64(self.inline_bytes).u64(self.transactions).u64(self.operations);
    }
    pub(crate) fn decode(g: &mut Get<'_>) -> FsResult<Meta> {
        g.version(Self::VERSION)?;
        Ok(Meta {
            level: g.u32()?,
            last: Hlc(g.u64()?),
            free: Wire::get(g)?,
            generation: g.u64()?,
            next_txn: g.u64()?,
            next_outbox: g.u64()?,
            credit: (g.u64()?, g.u64()?),
            bytes: g.u64()?,
            inline_bytes: g.u64()?,
            transactions: g.u64()?,
            operations: g.u64()?,
        })
    }
}

/// Declares the tables once; snapshot, digest and change stamps walk the same list.
macro_rules! tables {
    ($($(#[$doc:meta])* $name:ident: $record:ty,)*) => {
        /// One copy-on-write tree per kind of record.
        #[derive(Clone, Default)]
        pub struct Tables { $($(#[$doc])* pub $name: Table<$record>,)* }

        impl Tables {
            /// Log index noted with the following changes.
            pub(crate) fn at(&mut self, index: u64) { $(self.$name.at(index);)* }
            /// Sum of all record hashes.
            pub(crate) fn digest(&self) -> u128 {
                0u128 $(.wrapping_add(self.$name.digest()))*
            }
            /// Calls `f(tree, log index, records)` for every block, trees in ascending number.
            pub(crate) fn blocks<E>(
                &self,
                f: &mut dyn FnMut(u8, u64, Vec<(&[u8], &[u8])>) -> Result<(), E>,
            ) -> Result<(), E> {
                $(for (at, records) in self.$name.blocks() { f(<$record as Record>::TREE, at, records)?; })*
                Ok(())
            }
            /// Takes a record of a snapshot; an unknown tree needs an upgrade.
            pub(crate) fn load(&mut self, tree: u8, key: &[u8], value: &[u8], at: u64) -> FsResult<()> {
                $(if tree == <$record as Record>::TREE { return self.$name.load(key, value, at); })*
                Err(FsError::UpgradeNeeded)
            }
            /// (tree, number of records), for the end of a snapshot.
            pub(crate) fn counts(&self) -> Vec<(u8, u64)> {
                vec![$((<$record as Record>::TREE, self.$name.len()),)*]
            }
        }
    };
}

tables! {
    /// Inodes.
    inodes: Inode,
    /// Directory entries.
    dentries: Dentry,
    /// Extents.
    extents: StoredExtent,
    /// Extended attributes.
    xattrs: Xattr,
    /// Objects at home here.
    objects: Object,
    /// Objects without references, by time of death.
    dead: Dead,
    /// Inline puts.
    blobs: Blob,
    /// Sessions.
    sessions: Session,
    /// Stored replies.
    replies: Reply,
    /// Locks of transactions.
    locks: Lock,
    /// Inodes without a name.
    orphans: Orphan,
    /// Who holds orphans.
    pins: Pin,
    /// Effects to deliver.
    outbox: OutboxItem,
    /// Transactions coordinated here.
    txns: TxnRecord,
    /// Parts of transactions.
    participants: Participant,
    /// Locks of applications.
    flocks: FileLock,
}

/// A meta-partition. `Clone` is O(1) and shares everything until one side changes.
#[derive(Clone)]
pub struct Partition {
    pub(crate) volume: VolumeId,
    pub(crate) id: PartitionId,
    pub(crate) hash_key: [u8; 16],
    pub(crate) ranges: Arc<RangeSet>,
    pub(crate) meta: Meta,
    pub(crate) t: Tables,
    /// Bugs planted by tests.
    pub(crate) faults: crate::txn::Faults,
    /// Commands answered with a stored reply since this replica was opened; not replicated.
    pub(crate) repeated: u64,
}

impl Partition {
    /// An empty partition; the owner of the root gets its root directory (0755, root:root).
    /// Errors: Invalid when ranges overlap, are empty or there is none.
    pub fn new(config: PartitionConfig) -> FsResult<Partition> {
        let Some(last) = config.ranges.last().copied() else { return Err(FsError::Invalid) };
        let ranges = RangeSet::new(config.ranges).ok_or(FsError::Invalid)?;
        let mut p = Partition {
            volume: config.volume,
            id: config.partition,
            hash_key: config.hash_key,
            ranges: Arc::new(ranges),
            meta: Meta {
                level: 1,
                last: Hlc(0),
                free: vec![Self::usable(last)],
                generation: 0,
                next_txn: 1,
                next_outbox: 1,
                credit: (u64::MAX, u64::MAX),
                bytes: 0,
                inline_bytes: 0,
                transactions: 0,
                operations: 0,
            },
            t: Tables::default(),
            faults: crate::txn::Faults::default(),
            repeated: 0,
        };
        if p.owns(Ino::ROOT) {
            let mut root = Inode::new(FileKind::Directory, 0o755, 0, 0, Hlc(0));
            root.parent = Ino::ROOT;
            p.t.inodes.put(&Ino::ROOT, &root);
        }
        Ok(p)
    }
    /// Numbers of a range that may be given to new inodes: 0 and the root are not.
    fn usable(range: KeyRange) -> (u64, u64) {
        (range.start.ino.0.max(Ino::ROOT.0 + 1), range.end.ino.0)
    }
    /// Volume.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }
    /// Raft group.
    pub fn id(&self) -> PartitionId {
        self.id
    }
    /// Feature level of the group.
    pub fn level(&self) -> u32 {
        self.meta.level
    }
    /// Highest stamp issued; `prepare` stamps above it.
    pub fn last(&self) -> Hlc {
        self.meta.last
    }
    /// Whether the key is ours.
    pub fn owns(&self, key: impl Into<RangeKey>) -> bool {
        self.ranges.contains(key)
    }
    /// Ranges owned.
    pub fn ranges(&self) -> &RangeSet {
        &self.ranges
    }
    /// Inode numbers left.
    pub fn inos_left(&self) -> u64 {
        self.meta.free.iter().map(|(a, b)| b.saturating_sub(*a)).sum()
    }
    /// Counters.
    pub fn usage(&self) -> PartitionUsage {
        PartitionUsage {
            inodes: self.t.inodes.len(),
            bytes: self.meta.bytes,
            inline_bytes: self.meta.inline_bytes,
            transactions: self.meta.transactions,
            operations: self.meta.operations,
            orphans: self.t.orphans.len(),
            objects: self.t.objects.len(),
        }
    }
    /// Order-free digest of all logical records and cursors (PROTOCOL 8). Equal states have equal digests.
    pub fn digest(&self) -> u128 {
        let mut meta = Vec::new();
        self.meta.encode(&mut meta);
        for r in self.ranges.iter() {
            meta.key64(r.start.ino.0).key64(r.start.sub).key64(r.end.ino.0).key64(r.end.sub);
        }
        self.t.digest().wrapping_add(crate::store::record_hash(0, &[], &meta))
    }
    /// Takes over another range that the master granted; numbers in it are used after the present ones. Idempotent.
    pub(crate) fn grant_range(&mut self, range: KeyRange, generation: u64) -> FsResult<()> {
        self.meta.generation = self.meta.generation.max(generation);
        if self.ranges.iter().any(|r| *r == range) {
            return Ok(());
        }
        if range.start >= range.end || !Arc::make_mut(&mut self.ranges).insert(range) {
            return Err(FsError::Invalid);
        }
        self.meta.free.push(Self::usable(range));
        Ok(())
    }
    /// Next inode number (PROTOCOL 6: from the replicated cursor). NoSpace when the range is used up or the credit is.
    pub(crate) fn alloc_ino(&mut self) -> FsResult<Ino> {
        self.can_alloc()?;
        self.meta.free.retain(|(a, b)| a < b);
        let first = self.meta.free.first_mut().ok_or(FsError::NoSpace)?;
        first.0 += 1;
        Ok(Ino(first.0 - 1))
    }
    /// Whether [`Partition::alloc_ino`] would succeed: NoSpace (no numbers left: WouldBlock on the master's grant) or Quota.
    pub(crate) fn can_alloc(&self) -> FsResult<()> {
        if self.t.inodes.len() >= self.meta.credit.1 {
            return Err(FsError::NoSpace);
        }
        if self.inos_left() == 0 { Err(FsError::NoSpace) } else { Ok(()) }
    }
}
