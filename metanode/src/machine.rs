//! One replica's state machine: the pure partition, its inline bytes, and what the rest of the node learns from `apply`.

use crate::{
    blob::{BlobStore, FrozenBlobs, Medium},
    waiters::LockWaiters,
};
use bytes::Bytes;
use fusefs_meta_state::{InternalReply, Outcome, Partition, PartitionConfig, txn::Faults};
use fusefs_raft_host::{Frozen, GroupSpec, LogPos, Machine, Stop};
use fusefs_types::{
    Extent, FsError, FsResult, Hlc, KeyRange, PartitionId, RangeKey, SessionId, Source, VolumeId,
    key::RangeSet,
    ops::{Body, Command, Read, ReadReply, WriteReply},
    txn::{Internal, TxnId},
};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{Notify, oneshot};

const SNAPSHOT_VERSION: u8 = 1;
/// Entries of clients that went away are dropped when there are this many.
const WAITERS_SWEEP: usize = 1024;

/// What a replica is born with, as kept in the label of its group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Label {
    format: u32,
    volume: u64,
    hash_key: [u8; 16],
    /// (start ino, start sub, end ino, end sub)
    ranges: Vec<(u64, u64, u64, u64)>,
}

impl Label {
    pub(crate) fn new(volume: VolumeId, ranges: &[KeyRange], hash_key: [u8; 16]) -> Label {
        let ranges = ranges.iter().map(|r| (r.start.ino.0, r.start.sub, r.end.ino.0, r.end.sub)).collect();
        Label { format: 1, volume: volume.0, hash_key, ranges }
    }
    pub(crate) fn encode(&self) -> Bytes {
        serde_json::to_vec(self).map(Bytes::from).unwrap_or_default()
    }
    pub(crate) fn decode(bytes: &[u8]) -> Option<Label> {
        serde_json::from_slice(bytes).ok().filter(|l: &Label| l.format == 1)
    }
    pub(crate) fn volume(&self) -> VolumeId {
        VolumeId(self.volume)
    }
    fn config(&self, partition: PartitionId) -> PartitionConfig {
        let key = |ino, sub| RangeKey { ino: fusefs_types::Ino(ino), sub };
        let ranges = self.ranges.iter().map(|&(a, b, c, d)| KeyRange { start: key(a, b), end: key(c, d) }).collect();
        PartitionConfig { volume: self.volume(), partition, ranges, hash_key: self.hash_key }
    }
}

/// Side of a replica that is read without its lock: kept up to date by `apply` and `restore`.
#[derive(Default)]
pub(crate) struct Shared {
    /// Highest stamp applied.
    last: AtomicU64,
    /// Ranges owned.
    ranges: RwLock<RangeSet>,
    /// Transactions may have something to send.
    pub(crate) txn_wake: Notify,
    /// Clients of transactions that run, by transaction.
    waiters: Mutex<BTreeMap<TxnId, Vec<oneshot::Sender<FsResult<WriteReply>>>>>,
    /// Bumped by every command that may have removed a lock.
    unlocked: Notify,
    /// Sessions that wait for application locks.
    pub(crate) lock_waiters: LockWaiters,
}

impl Shared {
    pub(crate) fn owns(&self, key: RangeKey) -> bool {
        self.ranges.read().contains(key)
    }
    pub(crate) fn last(&self) -> Hlc {
        Hlc(self.last.load(Ordering::Acquire))
    }
    /// The reply of a running transaction, when it comes.
    pub(crate) fn wait(&self, txn: TxnId) -> oneshot::Receiver<FsResult<WriteReply>> {
        let (tx, rx) = oneshot::channel();
        let mut waiters = self.waiters.lock();
        if waiters.len() >= WAITERS_SWEEP {
            waiters.retain(|_, list| list.iter().any(|w| !w.is_closed()));
        }
        let list = waiters.entry(txn).or_default();
        list.retain(|w| !w.is_closed());
        list.push(tx);
        rx
    }
    /// Resolves when a lock may have gone; create it before looking.
    pub(crate) fn unlocked(&self) -> tokio::sync::futures::Notified<'_> {
        self.unlocked.notified()
    }
    fn sync(&self, partition: &Partition) {
        self.last.store(partition.last().0, Ordering::Release);
        *self.ranges.write() = partition.ranges().clone();
    }
    fn after(&self, partition: &Partition, command: &Command, outcome: &Outcome) {
        self.last.store(partition.last().0, Ordering::Release);
        let Body::Internal(internal) = &command.body else { return };
        if matches!(internal, Internal::GrantRange { .. }) {
            *self.ranges.write() = partition.ranges().clone();
        }
        if let Outcome::Internal(Ok(InternalReply::Answer { op: Some(txn), result })) = outcome {
            for waiter in self.waiters.lock().remove(txn).unwrap_or_default() {
                let _ = waiter.send(result.clone());
            }
        }
        self.txn_wake.notify_one();
        self.unlocked.notify_waiters();
    }
}

/// State machine of one replica.
pub struct PartitionMachine {
    state: Result<State, Stop>,
    shared: Arc<Shared>,
}

struct State {
    partition: Partition,
    blobs: BlobStore,
    /// Log index of the last command.
    index: u64,
    /// Bugs planted by tests.
    faults: Faults,
}

impl PartitionMachine {
    /// The empty machine of a group; a bad label or blob directory makes it refuse its first command.
    pub(crate) fn new(spec: &GroupSpec, blobs: Medium, segment_bytes: u64, shared: Arc<Shared>) -> PartitionMachine {
        let state = State::new(spec, blobs, segment_bytes);
        if let Ok(state) = &state {
            shared.sync(&state.partition);
        }
        PartitionMachine { state, shared }
    }

    /// Plants bugs, for tests of the tests.
    pub(crate) fn plant(mut self, faults: Faults) -> PartitionMachine {
        if let Ok(state) = &mut self.state {
            state.faults = faults;
            state.partition.plant(faults);
        }
        self
    }

    /// The partition. Err: the replica could not be set up.
    pub fn partition(&self) -> FsResult<&Partition> {
        self.state.as_ref().map(|s| &s.partition).map_err(|_| FsError::Io)
    }

    /// Bytes of live blobs and number of segments.
    pub(crate) fn blob_usage(&self) -> (u64, usize) {
        self.state.as_ref().map_or((0, 0), |s| (s.blobs.live_bytes(), s.blobs.segments()))
    }

    /// Log index of the last command and the digest after it: replicas that name the same index must agree.
    pub(crate) fn digest(&self) -> FsResult<(u64, u64)> {
        let state = self.state.as_ref().map_err(|_| FsError::Io)?;
        let digest = state.partition.digest();
        Ok((state.index, digest as u64 ^ (digest >> 64) as u64))
    }

    /// Answers a question, inline extents with their bytes.
    pub(crate) fn read(&self, session: SessionId, read: &Read) -> FsResult<ReadReply> {
        let state = self.state.as_ref().map_err(|_| FsError::Io)?;
        let mut reply = state.partition.read(session, read)?;
        if let ReadReply::Extents { extents, inline, .. } = &mut reply {
            *inline = state.inline(extents)?;
        }
        Ok(reply)
    }
}

impl State {
    fn new(spec: &GroupSpec, blobs: Medium, segment_bytes: u64) -> Result<State, Stop> {
        let label = Label::decode(&spec.label)
            .ok_or_else(|| Stop("upgrade needed: this binary does not know the replica's label".into()))?;
        let partition = Partition::new(label.config(spec.group)).map_err(|e| Stop(format!("replica label: {e}")))?;
        let blobs = BlobStore::open(blobs, segment_bytes).map_err(|e| Stop(format!("blob directory: {e}")))?;
        Ok(State { partition, blobs, index: 0, faults: Faults::default() })
    }

    fn inline(&self, extents: &[Extent]) -> FsResult<Vec<(u32, Bytes)>> {
        let mut out = Vec::new();
        for (i, e) in extents.iter().enumerate() {
            let Source::Inline { index, n, skip } = e.source else { continue };
            let bytes = self.blobs.read((index, n), skip, e.len as u32).map_err(|error| {
                tracing::error!(index, n, %error, "inline bytes cannot be read");
                if error.kind() == io::ErrorKind::InvalidData { FsError::Corrupt } else { FsError::Io }
            })?;
            out.push((i as u32, bytes.into()));
        }
        Ok(out)
    }
}

/// What applying a command answers.
pub type MachineReply = Outcome;

impl Machine for PartitionMachine {
    type Reply = MachineReply;

    fn apply(&mut self, at: LogPos, payload: &[u8]) -> Result<Outcome, Stop> {
        let state = self.state.as_mut().map_err(|e| e.clone())?;
        let command = decode_command(payload)?;
        let at = fusefs_meta_state::LogPos { term: at.term, index: at.index, n: at.n };
        let applied = state.partition.apply(at, &command);
        state.index = at.index;
        if applied.outcome == Outcome::UpgradeNeeded {
            return Err(Stop(upgrade(at.index)));
        }
        for put in &applied.blobs {
            let key = (put.key.index, put.key.n);
            state.blobs.put(key, &put.bytes).map_err(|e| Stop(format!("inline bytes cannot be written: {e}")))?;
        }
        for freed in &applied.freed {
            state.blobs.free((freed.key.index, freed.key.n));
        }
        self.shared.after(&state.partition, &command, &applied.outcome);
        if !applied.unlocked.is_empty() {
            self.shared.lock_waiters.unlocked(&applied.unlocked);
        }
        Ok(applied.outcome)
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        match &self.state {
            Ok(s) => {
                Box::new(FrozenMachine { index: s.index, partition: s.partition.freeze(), blobs: s.blobs.freeze() })
            }
            Err(stop) => Box::new(FrozenFailure(stop.0.clone())),
        }
    }

    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        let state = self.state.as_mut().map_err(|e| io::Error::other(e.0.clone()))?;
        let mut version = [0];
        from.read_exact(&mut version)?;
        if version[0] != SNAPSHOT_VERSION {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "upgrade needed: unknown snapshot version"));
        }
        let mut index = [0; 8];
        from.read_exact(&mut index)?;
        state.index = u64::from_le_bytes(index);
        state.blobs.clear();
        state.blobs.read_from(from)?;
        state.partition = Partition::read_from(from)?;
        state.partition.plant(state.faults);
        self.shared.sync(&state.partition);
        self.shared.txn_wake.notify_one();
        Ok(())
    }
}

fn upgrade(index: u64) -> String {
    format!("upgrade needed: this binary does not know the command at log index {index}")
}

/// Log payload of a command.
pub(crate) fn encode_command(command: &Command) -> Bytes {
    fusefs_proto::convert::txn::encode_command(command)
}

fn decode_command(payload: &[u8]) -> Result<Command, Stop> {
    fusefs_proto::convert::txn::decode_command(payload)
        .map_err(|e| Stop(format!("upgrade needed: this binary cannot decode a logged command ({e})")))
}

struct FrozenMachine {
    index: u64,
    partition: Partition,
    blobs: FrozenBlobs,
}

impl Frozen for FrozenMachine {
    /// Version byte, log index of the last command u64, blobs, partition.
    fn write_to(&self, out: &mut dyn io::Write) -> io::Result<()> {
        out.write_all(&[SNAPSHOT_VERSION])?;
        out.write_all(&self.index.to_le_bytes())?;
        self.blobs.write_to(out)?;
        self.partition.write_to(out)
    }
}

struct FrozenFailure(String);

impl Frozen for FrozenFailure {
    fn write_to(&self, _: &mut dyn io::Write) -> io::Result<()> {
        Err(io::Error::other(self.0.clone()))
    }
}
