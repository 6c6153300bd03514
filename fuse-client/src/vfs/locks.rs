//! flock(2) and fcntl(2) locks across clients (`docs/design/0007-file-locks.md`, PROTOCOL 10-18, 38).
//!
//! The partition decides; this side waits, retries and remembers who may hold something, so that a close without locks
//! costs nothing. Every attempt is a task of its own: it ends with a definite answer even when the request that asked has
//! gone, and takes back what nobody heard of. Attempts of one owner on one inode go one after the other.

use super::{Request, Vfs, unexpected};
use crate::{Meta, meta::Holders};
use async_trait::async_trait;
use fusefs_data_path::DataPath;
use fusefs_types::{
    Attr, FsError, FsResult, Ino, SessionId,
    lock::{HeldLock, LOCK_END, LockOp, LockOwner, LockSpace, SetLock},
    ops::{Read, ReadReply, Write, WriteReply},
};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot, watch},
    time::Instant,
};

/// First and longest pause of a waiter between its own questions. It is told when a lock goes; the questions are for
/// events that got lost.
const POLL_FIRST: Duration = Duration::from_millis(200);
const POLL_MOST: Duration = Duration::from_secs(1);
/// How long an interrupted request waits for the answer of an attempt that is on its way.
const INTERRUPT_GRACE: Duration = Duration::from_secs(1);
/// How long the first grants after a resume wait for the way to the kernel's caches: its pages are older than this process.
const KERNEL_WAIT: Duration = Duration::from_secs(1);
/// Pause before the data of a closed, locked file is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// After a resume: inodes remembered as asked about; when full, they are asked about again.
const ASKED_MAX: usize = 1 << 16;

/// A lock as the kernel describes it (`fuse_file_lock` with its owner).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLock {
    /// The kernel's number: of the process' file table for fcntl, of the open file for flock.
    pub owner: u64,
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive; everything from `i64::MAX` on means "to the end".
    pub end: u64,
    /// Type.
    pub op: LockOp,
    /// Process in the kernel connection's pid namespace; 0 for a holder elsewhere.
    pub pid: u32,
}

/// The kernel's caches of this mount, as far as a lock must reach them.
#[async_trait]
pub trait KernelCaches: Send + Sync + 'static {
    /// Drops pages and attributes of an inode (FUSE_NOTIFY_INVAL_INODE, whole file). Resolves when the kernel has done
    /// it: the lock is granted to the application only then. The caller holds no lock of any kind (PROTOCOL 45).
    async fn inval_inode(&self, ino: Ino);
}

/// One owner on one inode.
#[derive(Default)]
struct Owner {
    turn: tokio::sync::Mutex<()>,
    /// It holds a lock, or nobody knows that it does not.
    may_hold: AtomicBool,
}

impl Owner {
    fn holds(&self) -> bool {
        self.may_hold.load(Ordering::Acquire)
    }
    fn set(&self, holds: bool) {
        self.may_hold.store(holds, Ordering::Release);
    }
}

#[derive(Default)]
struct State {
    owners: HashMap<(Ino, LockOwner), Arc<Owner>>,
    /// Requests that wait, by inode.
    waiting: HashMap<Ino, (usize, Arc<Notify>)>,
    /// Some after a resume: the inodes whose locks are known again.
    asked: Option<HashSet<Ino>>,
}

/// What this mount knows of its locks.
pub(super) struct Locks {
    meta: Arc<dyn Meta>,
    data: Arc<DataPath>,
    session: SessionId,
    runtime: Handle,
    /// How long the end of an owner's locks may hold a close up.
    patience: Duration,
    state: Mutex<State>,
    kernel: watch::Sender<Option<Arc<dyn KernelCaches>>>,
    resumed: bool,
}

/// Takes a waiter off the list.
struct Waiting<'a>(&'a Locks, Ino, Arc<Notify>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut s = self.0.state.lock();
        if let Some(entry) = s.waiting.get_mut(&self.1) {
            entry.0 -= 1;
            if entry.0 == 0 {
                s.waiting.remove(&self.1);
            }
        }
    }
}

/// Whether a request removes everything that its owner has on the inode.
fn whole(x: &SetLock) -> bool {
    x.op == LockOp::Unlock && x.start == 0 && x.end == LOCK_END
}

fn all_of(ino: Ino, owner: LockOwner) -> SetLock {
    SetLock { ino, owner, start: 0, end: LOCK_END, op: LockOp::Unlock, pid: 0, wait: false }
}

impl Locks {
    /// Must be called inside a tokio runtime. `resumed`: an earlier process of this session may have left locks.
    pub fn new(
        (meta, data): (Arc<dyn Meta>, Arc<DataPath>),
        session: SessionId,
        patience: Duration,
        resumed: bool,
    ) -> Arc<Locks> {
        let asked = resumed.then(HashSet::new);
        Arc::new(Locks {
            meta,
            data,
            session,
            runtime: Handle::current(),
            patience,
            state: Mutex::new(State { asked, ..State::default() }),
            kernel: watch::Sender::new(None),
            resumed,
        })
    }

    fn wait_on(&self, ino: Ino) -> Waiting<'_> {
        let mut s = self.state.lock();
        let entry = s.waiting.entry(ino).or_default();
        entry.0 += 1;
        Waiting(self, ino, entry.1.clone())
    }

    fn freed(&self, inos: &[Ino]) {
        let s = self.state.lock();
        inos.iter().filter_map(|ino| s.waiting.get(ino)).for_each(|(_, bell)| bell.notify_waiters());
    }

    fn wake_all(&self) {
        self.state.lock().waiting.values().for_each(|(_, bell)| bell.notify_waiters());
    }

    fn owner(&self, key: (Ino, LockOwner)) -> Arc<Owner> {
        self.state.lock().owners.entry(key).or_default().clone()
    }

    /// Forgets an owner that holds nothing and that nobody else is busy with.
    fn settle(&self, key: (Ino, LockOwner), owner: Arc<Owner>) {
        let mut s = self.state.lock();
        // The table's and ours.
        if !owner.holds() && Arc::strong_count(&owner) == 2 {
            s.owners.remove(&key);
        }
    }

    /// Whether everything that this session holds on the inode is in the table.
    fn known(&self, ino: Ino) -> bool {
        self.state.lock().asked.as_ref().is_none_or(|asked| asked.contains(&ino))
    }

    /// Whether the owner surely has no lock and no attempt under way.
    fn surely_none(&self, ino: Ino, owner: LockOwner) -> bool {
        self.known(ino) && !self.state.lock().owners.contains_key(&(ino, owner))
    }

    /// After a resume: learns what this session holds on the inode. 1 RPC, once per inode.
    async fn learn(&self, ino: Ino) -> FsResult<()> {
        if self.known(ino) {
            return Ok(());
        }
        let held = match self.meta.read(Read::ListLocks { ino }).await {
            Ok(ReadReply::Locks(held)) => held,
            // No inode, no locks.
            Err(FsError::NotFound) => Vec::new(),
            Ok(_) => return Err(unexpected("listlocks")),
            Err(e) => return Err(e),
        };
        let mut s = self.state.lock();
        for lock in held.iter().filter(|l| l.session == self.session) {
            s.owners.entry((ino, lock.owner)).or_default().set(true);
        }
        if let Some(asked) = &mut s.asked {
            if asked.len() >= ASKED_MAX {
                asked.clear();
            }
            asked.insert(ino);
        }
        Ok(())
    }

    /// One attempt, to its end, whoever still listens. A grant that nobody heard of is taken back.
    fn send(self: &Arc<Self>, x: SetLock) -> oneshot::Receiver<FsResult<WriteReply>> {
        let (answer, receiver) = oneshot::channel();
        let key = (x.ino, x.owner);
        // In the table before anything runs: a close that comes now waits for its turn behind this.
        let (locks, owner) = (self.clone(), self.owner(key));
        self.runtime.spawn(async move {
            let turn = owner.turn.lock().await;
            // Nobody waits for a lock that was not asked for yet; an unlock is done all the same.
            if x.op == LockOp::Unlock || !answer.is_closed() {
                let fresh = locks.known(x.ino) && !owner.holds();
                owner.set(owner.holds() || x.op != LockOp::Unlock);
                let result = locks.meta.write_internal(Write::SetLock(x.clone())).await;
                let lost = match &result {
                    Ok(WriteReply::LockBlocked(_)) => fresh || (x.wait && x.owner.space == LockSpace::Flock),
                    Ok(_) => whole(&x),
                    // Refused for good, as opposed to not known.
                    Err(e) => fresh && e.code() < 1000,
                };
                if lost {
                    owner.set(false);
                }
                let granted = matches!(result, Ok(WriteReply::Locked(_))) && x.op != LockOp::Unlock;
                // An owner that had locks before keeps what it got until it closes: taking a range back could take
                // more than this attempt gave.
                if answer.send(result).is_err() && granted && fresh {
                    let undone = locks.meta.write_internal(Write::SetLock(all_of(x.ino, x.owner))).await;
                    owner.set(undone.is_err());
                }
            }
            drop(turn);
            locks.settle(key, owner);
        });
        receiver
    }

    /// The owner closed: everything it has on the inode goes, after the inode's dirty data is committed. Resolves when it
    /// has; goes on by itself if nobody waits. Until then nobody else gets the lock, and the same number of the kernel,
    /// given to another process, waits for its turn.
    fn release(self: &Arc<Self>, ino: Ino, key: LockOwner) -> oneshot::Receiver<FsResult<()>> {
        let (answer, receiver) = oneshot::channel();
        let (owner, weak) = (self.owner((ino, key)), Arc::downgrade(self));
        self.runtime.spawn(async move {
            let turn = owner.turn.lock().await;
            let result = loop {
                // The file system itself may end meanwhile; its session does then, and the locks with it.
                let Some(locks) = weak.upgrade() else { return };
                match locks.release_now(ino, key, &owner).await {
                    Err(e) if e != FsError::Stale && e != FsError::NotFound => {
                        tracing::debug!(%ino, error = %e, "locks of a closed file are kept until its data is committed");
                    }
                    other => break other,
                }
                drop(locks);
                tokio::time::sleep_until(Instant::now() + RETRY).await;
            };
            drop(turn);
            if let Some(locks) = weak.upgrade() {
                locks.settle((ino, key), owner);
            }
            let _ = answer.send(result);
        });
        receiver
    }

    async fn release_now(&self, ino: Ino, key: LockOwner, owner: &Owner) -> FsResult<()> {
        self.learn(ino).await?;
        if !owner.holds() {
            return Ok(());
        }
        self.commit(ino).await?;
        let done = self.meta.write_internal(Write::SetLock(all_of(ino, key))).await;
        if matches!(done, Ok(_) | Err(FsError::NotFound | FsError::Stale)) {
            owner.set(false);
        }
        done.map(drop)
    }

    /// The way to the kernel's caches, if there is one.
    async fn kernel(&self) -> Option<Arc<dyn KernelCaches>> {
        let mut known = self.kernel.subscribe();
        if self.resumed {
            // Its requests come again before the transport is set up completely.
            let _ = tokio::time::timeout(KERNEL_WAIT, known.wait_for(Option::is_some)).await;
        }
        let kernel = known.borrow();
        kernel.clone()
    }

    /// PROTOCOL 38: whoever gets the lock next must see what was written under it.
    async fn commit(&self, ino: Ino) -> FsResult<()> {
        if self.data.dirty_attr(ino).is_none() { Ok(()) } else { self.data.fsync(ino).await }
    }
}

/// Answers of this mount to the cluster: what it holds open, and whom a freed lock wakes.
pub(super) struct Listener {
    pub open: Arc<super::handle::OpenTable>,
    /// Weak: the metadata client keeps this, and the locks keep the metadata client.
    pub locks: Weak<Locks>,
}

impl Holders for Listener {
    fn holds(&self, ino: Ino) -> bool {
        self.open.holds(ino)
    }
    fn locks_freed(&self, inos: &[Ino]) {
        if let Some(locks) = self.locks.upgrade() {
            locks.freed(inos);
        }
    }
    fn stream_broken(&self) {
        if let Some(locks) = self.locks.upgrade() {
            locks.wake_all();
        }
    }
}

/// The operation, unless the application is interrupted first.
async fn unless_interrupted<T>(rq: &Request, op: impl Future<Output = FsResult<T>>) -> FsResult<T> {
    tokio::select! {
        biased;
        result = op => result,
        () = rq.interrupt.wait() => Err(FsError::Interrupted),
    }
}

fn space(flock: bool) -> LockSpace {
    if flock { LockSpace::Flock } else { LockSpace::Posix }
}

impl Vfs {
    /// Tells who drops the kernel's pages when a lock shows that they are old. Without it only our own caches are.
    pub fn set_kernel_caches(&self, caches: Arc<dyn KernelCaches>) {
        self.locks.kernel.send_replace(Some(caches));
    }

    /// F_GETLK: a lock that would be in the way of `lock`, None if it would be granted. 1 RPC.
    pub async fn getlk(&self, rq: &Request, ino: Ino, _fh: u64, lock: FileLock) -> FsResult<Option<FileLock>> {
        let owner = LockOwner { space: space(rq.lock.flock), id: lock.owner };
        let (start, end) = (lock.start, lock.end.min(LOCK_END));
        unless_interrupted(rq, async {
            self.gate().await?;
            let read = Read::GetLock { ino, owner, start, end, write: lock.op == LockOp::Write, wait: false };
            match self.meta.read(read).await? {
                ReadReply::Lock(held) => Ok(held.map(|h| self.shown(&h))),
                _ => Err(unexpected("getlock")),
            }
        })
        .await
    }

    fn shown(&self, held: &HeldLock) -> FileLock {
        // Another machine's process numbers mean something else here.
        let pid = if held.session == self.locks.session { held.pid } else { 0 };
        let op = if held.write { LockOp::Write } else { LockOp::Read };
        FileLock { owner: held.owner.id, start: held.start, end: held.end, op, pid }
    }

    /// flock(2), F_SETLK (`wait`: F_SETLKW): sets, converts or removes. 1 RPC when granted at once; removing what is not
    /// held 0.
    ///
    /// Removing and downgrading commit the inode's dirty data first. When the file changed since this mount last looked,
    /// its cached attributes, extents and kernel pages are dropped before the lock is granted (PROTOCOL 38).
    /// Errors: WouldBlock (without `wait`), Interrupted (nothing was granted), NoLocks, Stale, those of fsync.
    pub async fn setlk(
        &self,
        rq: &Request,
        ino: Ino,
        _fh: u64,
        lock: FileLock,
        flock: bool,
        wait: bool,
    ) -> FsResult<()> {
        self.withdraw(rq);
        let owner = LockOwner { space: space(flock), id: lock.owner };
        let end = lock.end.min(LOCK_END);
        let x = SetLock { ino, owner, start: lock.start, end, op: lock.op, pid: lock.pid, wait };
        if x.op == LockOp::Unlock && self.locks.surely_none(ino, owner) {
            return Ok(());
        }
        unless_interrupted(rq, async {
            self.gate().await?;
            // Taking a first shared lock gives nothing up.
            let gives = x.op == LockOp::Unlock || (x.op == LockOp::Read && !self.locks.surely_none(ino, owner));
            if gives { self.locks.commit(ino).await } else { Ok(()) }
        })
        .await?;
        let sent = self.now();
        let attr = self.lock_loop(rq, x).await?;
        if lock.op != LockOp::Unlock {
            self.granted(&attr, sent).await;
        }
        Ok(())
    }

    /// Attempts until there is a grant, a refusal that nobody waits on, or an interrupt.
    async fn lock_loop(&self, rq: &Request, x: SetLock) -> FsResult<Attr> {
        let waiting = self.locks.wait_on(x.ino);
        let (mut pause, mut poll) = (POLL_FIRST, false);
        loop {
            let mut woken = std::pin::pin!(waiting.2.notified());
            // From here on nothing is missed: an unlock after the refusal is told after it.
            woken.as_mut().enable();
            if !poll || self.looks_free(rq, &x).await? {
                match self.lock_attempt(rq, &x).await? {
                    WriteReply::Locked(attr) => return Ok(attr),
                    WriteReply::LockBlocked(_) if !x.wait => return Err(FsError::WouldBlock),
                    WriteReply::LockBlocked(_) => {}
                    _ => return Err(unexpected("setlock")),
                }
            }
            tokio::select! {
                biased;
                () = rq.interrupt.wait() => return Err(FsError::Interrupted),
                () = woken => (pause, poll) = (POLL_FIRST, false),
                () = tokio::time::sleep_until(Instant::now() + pause) => {
                    (pause, poll) = ((pause * 2).min(POLL_MOST), true);
                }
            }
            unless_interrupted(rq, self.gate()).await?;
        }
    }

    /// A question instead of an attempt: nothing is logged for waiters that only look. Also puts a new leader in the
    /// picture that somebody waits.
    async fn looks_free(&self, rq: &Request, x: &SetLock) -> FsResult<bool> {
        let SetLock { ino, owner, start, end, .. } = *x;
        let read = Read::GetLock { ino, owner, start, end, write: x.op == LockOp::Write, wait: true };
        match unless_interrupted(rq, self.meta.read(read)).await? {
            ReadReply::Lock(held) => Ok(held.is_none()),
            _ => Err(unexpected("getlock")),
        }
    }

    /// One attempt. An interrupt waits a moment for its answer, which counts if it comes; else it is taken back.
    async fn lock_attempt(&self, rq: &Request, x: &SetLock) -> FsResult<WriteReply> {
        let mut answer = self.locks.send(x.clone());
        let result = tokio::select! {
            biased;
            result = &mut answer => result,
            () = rq.interrupt.wait() => match tokio::time::timeout(INTERRUPT_GRACE, answer).await {
                Ok(result) => result,
                Err(_) => return Err(FsError::Interrupted),
            },
        };
        // The task is gone only if the runtime is.
        result.unwrap_or(Err(FsError::Io))
    }

    /// What was cached of another version than the one under the lock is void.
    async fn granted(&self, attr: &Attr, sent: u64) {
        self.learn_attr(attr, sent);
        if self.inodes.pages(attr.ino) == Some(attr.change) {
            return;
        }
        if let Some(kernel) = self.locks.kernel().await {
            kernel.inval_inode(attr.ino).await;
            self.inodes.set_pages(attr.ino, attr.change);
        }
    }

    /// FLUSH: a process closed a descriptor of the inode, so all its fcntl locks on it go. 0 RPCs unless it may hold some.
    /// Waits at most the close timeout; then it goes on in the background.
    pub async fn unlock_owner(&self, _rq: &Request, ino: Ino, owner: u64) {
        let owner = LockOwner { space: LockSpace::Posix, id: owner };
        self.release_locks(ino, owner, self.locks.patience).await;
    }

    /// The same after the flush of the data, which began at `since`. When that failed the locks stay until the data is
    /// committed, and nobody waits for it.
    pub(super) async fn unlock_after_flush(&self, rq: &Request, ino: Ino, since: Instant, flushed: bool) {
        let left = self.locks.patience.saturating_sub(since.elapsed());
        let owner = LockOwner { space: LockSpace::Posix, id: rq.lock.owner };
        self.release_locks(ino, owner, if flushed { left } else { Duration::ZERO }).await;
    }

    /// RELEASE with FUSE_RELEASE_FLOCK_UNLOCK: the last descriptor of an open file is gone, and its flock with it.
    pub async fn release_flock(&self, _rq: &Request, ino: Ino, owner: u64) {
        let owner = LockOwner { space: LockSpace::Flock, id: owner };
        self.release_locks(ino, owner, self.locks.patience).await;
    }

    async fn release_locks(&self, ino: Ino, owner: LockOwner, patience: Duration) {
        if owner.id == 0 || self.locks.surely_none(ino, owner) {
            return;
        }
        let done = self.locks.release(ino, owner);
        if tokio::time::timeout(patience, done).await.is_err() {
            tracing::warn!(%ino, "locks of a closed file are not released yet; that goes on in the background");
        }
    }

    /// Owners on inodes that hold or may hold locks here.
    pub fn lock_owners(&self) -> usize {
        self.locks.state.lock().owners.len()
    }
}
