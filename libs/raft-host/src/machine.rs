//! openraft's state machine around a [`Machine`].

use crate::{
    api::{Frozen, GroupSpec, LogPos, Machine, MakeMachine, ProposeError},
    checkpoint::{self, SnapshotFile},
    disk::Disk,
    log::{Log, format::Key},
    raft::{Entry, LogId, SnapshotMeta, StorageError, StoredMembership, Types, Waiters},
};
use openraft::{
    AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, StorageIOError, storage::RaftStateMachine,
};
use parking_lot::{Mutex, RwLock};
use std::{any::Any, io, sync::Arc};
use tokio::sync::{oneshot, watch};

type Senders<R> = Vec<oneshot::Sender<Result<R, ProposeError>>>;

/// The proposers of one batch. They are told exactly once; then `done` runs.
pub(crate) struct Proposers<R> {
    senders: Mutex<Option<Senders<R>>>,
    done: Box<dyn Fn() + Send + Sync>,
}

impl<R: Send + 'static> Proposers<R> {
    pub(crate) fn new(senders: Senders<R>, done: Box<dyn Fn() + Send + Sync>) -> Self {
        Proposers { senders: Mutex::new(Some(senders)), done }
    }

    /// Not told yet.
    pub(crate) fn waiting(&self) -> bool {
        self.senders.lock().is_some()
    }

    fn tell(&self, mut answers: impl Iterator<Item = Result<R, ProposeError>>) {
        let Some(senders) = self.senders.lock().take() else { return };
        for tx in senders {
            let _ = tx.send(answers.next().unwrap_or(Err(ProposeError::Unavailable)));
        }
        (self.done)();
    }
}

impl<R: Send + 'static> Waiters for Proposers<R> {
    fn fail(&self, error: ProposeError) {
        self.tell(std::iter::repeat_with(|| Err(error.clone())));
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// End of what is applied: term and index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AppliedTo {
    pub index: u64,
    pub term: u64,
    /// Something was applied at all (index 0 exists).
    pub any: bool,
}

/// State shared by openraft's worker, readers and the checkpoint driver.
pub(crate) struct Cell<M: Machine> {
    pub key: Key,
    pub machine: RwLock<M>,
    make: MakeMachine<M>,
    spec: GroupSpec,
    pub applied: watch::Sender<AppliedTo>,
    last: Mutex<(Option<LogId>, StoredMembership)>,
    snapshot: Mutex<Option<(SnapshotMeta, SnapshotFile)>>,
    disk: Arc<dyn Disk>,
    log: Log,
    /// Why the machine stopped.
    pub stopped: watch::Sender<Option<String>>,
}

fn machine_error(e: impl std::error::Error + 'static + Send + Sync) -> StorageError {
    StorageIOError::write_state_machine(AnyError::new(&e)).into()
}

fn snapshot_error(e: &io::Error) -> StorageError {
    StorageIOError::write_snapshot(None, AnyError::new(e)).into()
}

impl<M: Machine> Cell<M> {
    /// Loads the newest checkpoint. Blocking.
    ///
    /// # Errors
    /// Damaged: no valid checkpoint although the log was purged.
    pub(crate) fn load(
        spec: GroupSpec,
        make: MakeMachine<M>,
        disk: Arc<dyn Disk>,
        log: Log,
    ) -> Result<Arc<Cell<M>>, crate::api::HostError> {
        let key = Key { group: spec.group, replica: spec.replica };
        let (found, problems) = checkpoint::load(disk.as_ref(), key)?;
        let covered = found.as_ref().and_then(|(meta, _)| meta.last_log_id);
        if log.state(key).purged > covered {
            return Err(crate::api::HostError::Damaged(format!(
                "group {}: no valid checkpoint for the purged log ({})",
                spec.group,
                problems.join("; ")
            )));
        }
        let mut machine = make(&spec);
        let mut last = (None, StoredMembership::default());
        if let Some((meta, file)) = &found {
            machine.restore(&mut checkpoint::state_of(file)?)?;
            last = (meta.last_log_id, meta.last_membership.clone());
        }
        let cell = Arc::new(Cell {
            key,
            machine: RwLock::new(machine),
            make,
            spec,
            applied: watch::Sender::new(AppliedTo::default()),
            last: Mutex::new(last.clone()),
            snapshot: Mutex::new(found),
            disk,
            log,
            stopped: watch::Sender::new(None),
        });
        cell.note_applied(last.0);
        Ok(cell)
    }

    fn note_applied(&self, last: Option<LogId>) {
        if let Some(id) = last {
            self.log.applied(self.key, id.index);
            self.applied.send_replace(AppliedTo { index: id.index, term: id.leader_id.term, any: true });
        }
    }

    fn stop(&self, why: &str) {
        tracing::error!("group {} stops: {why}", self.key.group);
        self.stopped.send_if_modified(|s| {
            let first = s.is_none();
            s.get_or_insert_with(|| why.to_owned());
            first
        });
    }

    /// Applies one batch of entries under one exclusive lock; the proposers are told after it is released.
    fn apply_all(&self, entries: Vec<Entry>) -> Result<usize, StorageError> {
        let count = entries.len();
        let mut tell: Vec<(Arc<dyn Waiters>, Vec<M::Reply>)> = Vec::new();
        let mut machine = self.machine.write();
        let (mut applied, mut membership) = self.last.lock().clone();
        for entry in entries {
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Membership(m) => membership = StoredMembership::new(Some(entry.log_id), m),
                EntryPayload::Normal(batch) => {
                    let mut replies = Vec::with_capacity(batch.payloads.len());
                    for (n, payload) in batch.payloads.iter().enumerate() {
                        let (term, index) = (entry.log_id.leader_id.term, entry.log_id.index);
                        let at = LogPos { term, index, n: u32::try_from(n).unwrap_or(u32::MAX) };
                        match machine.apply(at, payload) {
                            Ok(reply) => replies.push(reply),
                            Err(stop) => {
                                self.stop(&stop.0);
                                return Err(machine_error(stop));
                            }
                        }
                    }
                    tell.extend(batch.waiters.map(|w| (w, replies)));
                }
            }
            applied = Some(entry.log_id);
        }
        *self.last.lock() = (applied, membership);
        drop(machine);
        self.note_applied(applied);
        for (waiters, replies) in tell {
            answer::<M>(waiters.as_ref(), replies);
        }
        Ok(count)
    }

    /// Index of the newest checkpoint.
    pub(crate) fn checkpointed(&self) -> Option<LogId> {
        self.snapshot.lock().as_ref().and_then(|(meta, _)| meta.last_log_id)
    }

    fn install(&self, meta: &SnapshotMeta, file: SnapshotFile) -> io::Result<()> {
        let mut fresh = (self.make)(&self.spec);
        fresh.restore(&mut checkpoint::state_of(&file)?)?;
        {
            let mut machine = self.machine.write();
            *machine = fresh;
            *self.last.lock() = (meta.last_log_id, meta.last_membership.clone());
        }
        *self.snapshot.lock() = Some((meta.clone(), file));
        self.note_applied(meta.last_log_id);
        Ok(())
    }
}

fn answer<M: Machine>(waiters: &dyn Waiters, replies: Vec<M::Reply>) {
    if let Some(proposers) = waiters.as_any().downcast_ref::<Proposers<M::Reply>>() {
        proposers.tell(replies.into_iter().map(Ok));
    }
}

/// Runs blocking work on a thread, or in place in the simulation.
pub(crate) async fn blocking<T: Send + 'static>(
    disk: &Arc<dyn Disk>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    if disk.simulated().is_some() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Handle that openraft owns.
pub(crate) struct Sm<M: Machine>(pub Arc<Cell<M>>);

impl<M: Machine> RaftStateMachine<Types> for Sm<M> {
    type SnapshotBuilder = Builder<M>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok(self.0.last.lock().clone())
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let count = self.0.apply_all(entries.into_iter().collect())?;
        Ok(vec![(); count])
    }

    /// Freezes the state here, between two applies; writing happens in [`Builder::build_snapshot`] on a thread.
    async fn get_snapshot_builder(&mut self) -> Builder<M> {
        let machine = self.0.machine.read();
        let (last_log_id, last_membership) = self.0.last.lock().clone();
        let (term, index) = last_log_id.map_or((0, 0), |id| (id.leader_id.term, id.index));
        let snapshot_id = format!("{term:x}-{index:x}-{:x}", self.0.key.replica.0);
        let meta = SnapshotMeta { last_log_id, last_membership, snapshot_id };
        Builder { cell: Arc::clone(&self.0), meta, frozen: Mutex::new(Some(machine.freeze())) }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotFile>, StorageError> {
        let (disk, name) = (Arc::clone(&self.0.disk), checkpoint::receive_name(self.0.key));
        let made = blocking(&self.0.disk, move || disk.create(&name)).await.and_then(|r| r);
        made.map(|file| Box::new(SnapshotFile { file, len: 0 })).map_err(|e| snapshot_error(&e))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Box<SnapshotFile>) -> Result<(), StorageError> {
        let (cell, meta) = (Arc::clone(&self.0), meta.clone());
        let disk = Arc::clone(&self.0.disk);
        let done = blocking(&disk, move || cell.install(&meta, *snapshot)).await.and_then(|r| r);
        done.map_err(|e| {
            self.0.stop(&format!("cannot install a snapshot: {e}"));
            snapshot_error(&e)
        })
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        let current = self.0.snapshot.lock().clone();
        Ok(current.map(|(meta, file)| Snapshot { meta, snapshot: Box::new(file) }))
    }
}

/// Writes one checkpoint.
pub(crate) struct Builder<M: Machine> {
    cell: Arc<Cell<M>>,
    meta: SnapshotMeta,
    // The mutex only makes it Sync.
    frozen: Mutex<Option<Box<dyn Frozen>>>,
}

impl<M: Machine> RaftSnapshotBuilder<Types> for Builder<M> {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let Some(frozen) = self.frozen.get_mut().take() else {
            return Err(snapshot_error(&io::Error::other("a builder is used once")));
        };
        let (disk, key, meta) = (Arc::clone(&self.cell.disk), self.cell.key, self.meta.clone());
        let written = blocking(&self.cell.disk, move || checkpoint::write(disk.as_ref(), key, &meta, frozen.as_ref()))
            .await
            .and_then(|r| r);
        let file = written.map_err(|e| {
            self.cell.stop(&format!("cannot write a checkpoint: {e}"));
            snapshot_error(&e)
        })?;
        let meta = self.meta.clone();
        let mut current = self.cell.snapshot.lock();
        if current.as_ref().is_none_or(|(old, _)| old.last_log_id <= meta.last_log_id) {
            *current = Some((meta.clone(), file.clone()));
        }
        Ok(Snapshot { meta, snapshot: Box::new(file) })
    }
}
