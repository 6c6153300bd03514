//! flock and fcntl locks of several mounts. Time is paused: it moves only when nothing else can, so that "without waiting
//! for the poll" means that none has passed.

use crate::cluster::{Client, Cluster};
use async_trait::async_trait;
use fusefs_fuse_client::vfs::{FileLock, KernelCaches, LockFlags, Request};
use fusefs_types::{
    FsError, FsResult, Ino, SessionId,
    lock::{LOCK_END, LockOp},
};
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::{task::JoinHandle, time::Instant};

const P: u64 = 0x1111;
const Q: u64 = 0x2222;

fn all(owner: u64, op: LockOp) -> FileLock {
    FileLock { owner, start: 0, end: LOCK_END, op, pid: 42 }
}

fn part(owner: u64, start: u64, end: u64, op: LockOp) -> FileLock {
    FileLock { start, end, ..all(owner, op) }
}

impl Client {
    async fn setlk(&self, ino: Ino, lock: FileLock, flock: bool) -> FsResult<()> {
        self.vfs.setlk(&self.rq(), ino, 0, lock, flock, false).await
    }
    /// A blocking request in a task of its own, and its head (for interrupts).
    fn setlkw(self: &Arc<Self>, ino: Ino, lock: FileLock, flock: bool) -> (JoinHandle<FsResult<()>>, Arc<Request>) {
        let (client, rq) = (self.clone(), Arc::new(self.rq()));
        let head = rq.clone();
        (tokio::spawn(async move { client.vfs.setlk(&head, ino, 0, lock, flock, true).await }), rq)
    }
    /// close(2) as the kernel tells it.
    async fn flush_by(&self, ino: Ino, owner: u64) -> FsResult<()> {
        let mut rq = self.rq();
        rq.lock = LockFlags { flock: false, owner };
        self.vfs.flush(&rq, ino).await
    }
    fn counts(&self) -> Vec<(&'static str, u64)> {
        self.meta.take_counts().into_iter().collect()
    }
}

fn two(cluster: &Arc<Cluster>) -> (Arc<Client>, Arc<Client>) {
    (Arc::new(cluster.client()), Arc::new(cluster.client()))
}

/// Everything that can run without time passing has run.
async fn quiet() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_is_woken_by_the_unlock_of_another_client() {
    let cluster = Cluster::new();
    let (a, b) = two(&cluster);
    let ino = a.put("f", b"x").await.unwrap();
    for flock in [true, false] {
        a.setlk(ino, all(P, LockOp::Write), flock).await.unwrap();
        assert_eq!(b.setlk(ino, all(P, LockOp::Read), flock).await, Err(FsError::WouldBlock));
        let (waiter, _) = b.setlkw(ino, all(P, LockOp::Write), flock);
        quiet().await;
        assert!(!waiter.is_finished());
        let since = Instant::now();
        a.setlk(ino, all(P, LockOp::Unlock), flock).await.unwrap();
        waiter.await.unwrap().unwrap();
        assert_eq!(since.elapsed(), Duration::ZERO, "the event came, not the poll");
        assert_eq!(a.setlk(ino, all(P, LockOp::Read), flock).await, Err(FsError::WouldBlock));
        b.setlk(ino, all(P, LockOp::Unlock), flock).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_event_costs_at_most_a_second() {
    let cluster = Cluster::new();
    let (a, b) = two(&cluster);
    let ino = a.put("f", b"x").await.unwrap();
    cluster.lose_events();
    a.setlk(ino, all(P, LockOp::Write), true).await.unwrap();
    let (waiter, _) = b.setlkw(ino, all(P, LockOp::Write), true);
    b.counts();
    tokio::time::sleep_until(Instant::now() + Duration::from_millis(10_100)).await;
    assert!(!waiter.is_finished());
    let asked = b.counts();
    assert!(matches!(asked[..], [("getlock", 8..=14), ("setlock", 1)]), "looking writes no log: {asked:?}");
    let since = Instant::now();
    a.setlk(ino, all(P, LockOp::Unlock), true).await.unwrap();
    waiter.await.unwrap().unwrap();
    assert!(since.elapsed() <= Duration::from_secs(1), "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_ends_a_wait_and_nothing_is_granted() {
    let cluster = Cluster::new();
    let (a, b) = two(&cluster);
    let ino = a.put("f", b"x").await.unwrap();
    a.setlk(ino, all(P, LockOp::Write), true).await.unwrap();
    let (waiter, rq) = b.setlkw(ino, all(Q, LockOp::Write), true);
    quiet().await;
    let since = Instant::now();
    rq.interrupt.raise();
    assert_eq!(waiter.await.unwrap(), Err(FsError::Interrupted));
    assert_eq!(since.elapsed(), Duration::ZERO);
    a.setlk(ino, all(P, LockOp::Unlock), true).await.unwrap();
    quiet().await;
    assert!(cluster.locks(ino).is_empty());
    assert_eq!(b.vfs.lock_owners(), 0);
    // Raised before it began.
    a.setlk(ino, all(P, LockOp::Write), true).await.unwrap();
    let rq = b.rq();
    rq.interrupt.raise();
    let result = b.vfs.setlk(&rq, ino, 0, all(Q, LockOp::Write), true, true).await;
    assert_eq!(result, Err(FsError::Interrupted));
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_races_an_interrupt_counts_or_is_taken_back() {
    let cluster = Cluster::new();
    let (a, b) = two(&cluster);
    let ino = a.put("f", b"x").await.unwrap();
    // Cut off for longer than an interrupt waits: EINTR; what arrives later is taken back.
    b.meta.cut(true);
    let (waiter, rq) = b.setlkw(ino, all(Q, LockOp::Write), false);
    quiet().await;
    let since = Instant::now();
    rq.interrupt.raise();
    assert_eq!(waiter.await.unwrap(), Err(FsError::Interrupted));
    assert!(since.elapsed() <= Duration::from_secs(1));
    b.meta.cut(false);
    quiet().await;
    assert!(cluster.locks(ino).is_empty(), "nothing is left granted");
    assert!(b.counts().contains(&("setlock", 2)), "it was granted, and taken back");
    a.setlk(ino, all(P, LockOp::Write), false).await.unwrap();
    a.setlk(ino, all(P, LockOp::Unlock), false).await.unwrap();
    // The answer comes within the grace: the lock is the application's.
    b.meta.cut(true);
    let (waiter, rq) = b.setlkw(ino, all(Q, LockOp::Write), false);
    quiet().await;
    rq.interrupt.raise();
    quiet().await;
    b.meta.cut(false);
    assert_eq!(waiter.await.unwrap(), Ok(()));
    assert_eq!(cluster.locks(ino).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_request_holds_no_acknowledgement_back() {
    let cluster = Cluster::new();
    let (a, b) = two(&cluster);
    let ino = a.put("f", b"x").await.unwrap();
    a.setlk(ino, all(P, LockOp::Write), false).await.unwrap();
    let rq = b.rq();
    b.vfs.register(&rq);
    b.meta.replied.lock().clear();
    let waiting = b.vfs.setlk(&rq, ino, 0, all(P, LockOp::Write), false, true);
    assert!(tokio::time::timeout(Duration::from_secs(5), waiting).await.is_err());
    assert!(b.meta.replied.lock().contains(&rq.unique), "it issues nothing under its own number");
}

#[tokio::test(start_paused = true)]
async fn a_close_drops_the_locks_of_its_process_only_and_costs_nothing_without() {
    let cluster = Cluster::new();
    let (a, b) = two(&cluster);
    let ino = a.put("f", b"x").await.unwrap();
    a.setlk(ino, part(P, 0, 4, LockOp::Write), false).await.unwrap();
    a.setlk(ino, part(Q, 5, 9, LockOp::Write), false).await.unwrap();
    a.setlk(ino, all(P, LockOp::Write), true).await.unwrap();
    a.counts();
    a.flush_by(ino, 0x3333).await.unwrap();
    a.setlk(ino, all(0x3333, LockOp::Unlock), false).await.unwrap();
    b.flush_by(ino, P).await.unwrap();
    b.vfs.release_flock(&b.rq(), ino, P).await;
    assert_eq!((a.counts(), b.rpcs()), (vec![], 0), "nobody there holds a lock");
    a.flush_by(ino, P).await.unwrap();
    assert_eq!(a.counts(), [("setlock", 1)]);
    assert_eq!(cluster.locks(ino).len(), 2, "Q's range and the flock stay");
    assert_eq!(b.setlk(ino, part(P, 0, 5, LockOp::Read), false).await, Err(FsError::WouldBlock));
    b.setlk(ino, part(P, 0, 4, LockOp::Read), false).await.unwrap();
    a.vfs.release_flock(&a.rq(), ino, P).await;
    a.flush_by(ino, Q).await.unwrap();
    assert_eq!(cluster.locks(ino).len(), 1);
    assert_eq!((a.vfs.lock_owners(), b.vfs.lock_owners()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn getlk_names_the_holder() {
    let cluster = Cluster::new();
    let (a, b) = two(&cluster);
    let ino = a.put("f", b"x").await.unwrap();
    a.setlk(ino, part(P, 3, 7, LockOp::Write), false).await.unwrap();
    let get = async |c: &Client, lock| c.vfs.getlk(&c.rq(), ino, 0, lock).await.unwrap();
    assert_eq!(get(&a, all(P, LockOp::Write)).await, None, "its own");
    let own = get(&a, all(Q, LockOp::Read)).await.unwrap();
    assert_eq!((own.start, own.end, own.op, own.pid), (3, 7, LockOp::Write, 42));
    assert_eq!(get(&b, all(P, LockOp::Read)).await.unwrap().pid, 0, "a process of another machine");
    assert_eq!(get(&b, part(P, 8, 9, LockOp::Write)).await, None);
}

#[tokio::test(start_paused = true)]
async fn the_locks_of_a_killed_client_go_with_its_session() {
    let cluster = Cluster::new();
    let (a, b) = two(&cluster);
    let ino = b.put("f", b"x").await.unwrap();
    a.setlk(ino, all(P, LockOp::Write), true).await.unwrap();
    let session = a.session();
    let (waiter, _) = b.setlkw(ino, all(P, LockOp::Write), true);
    drop(a);
    tokio::time::sleep_until(Instant::now() + Duration::from_secs(60)).await;
    assert!(!waiter.is_finished(), "dead is not the same as ended");
    let since = Instant::now();
    cluster.end(session);
    waiter.await.unwrap().unwrap();
    assert_eq!(since.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_takeover_keeps_the_locks_and_finds_them_again() {
    let cluster = Cluster::new();
    let (a, b) = two(&cluster);
    let ino = b.put("f", b"x").await.unwrap();
    a.setlk(ino, part(P, 0, 9, LockOp::Write), false).await.unwrap();
    a.setlk(ino, all(Q, LockOp::Write), true).await.unwrap();
    let session: SessionId = a.session();
    drop(a);
    let a = Arc::new(cluster.client_of(session, 2, |s| s.resumed = true));
    assert_eq!(b.setlk(ino, all(P, LockOp::Read), false).await, Err(FsError::WouldBlock));
    // The kernel sends the waiting request again: what was granted is granted again.
    let (again, _) = a.setlkw(ino, part(P, 0, 9, LockOp::Write), false);
    again.await.unwrap().unwrap();
    let (waiter, _) = b.setlkw(ino, part(P, 5, 5, LockOp::Read), false);
    quiet().await;
    a.counts();
    a.flush_by(ino, 0x3333).await.unwrap();
    assert_eq!(a.counts(), [("listlocks", 1)], "asked once per inode after a resume");
    a.flush_by(ino, P).await.unwrap();
    waiter.await.unwrap().unwrap();
    a.flush_by(ino, 0x3333).await.unwrap();
    assert_eq!(a.counts(), [("setlock", 1)]);
    a.vfs.release_flock(&a.rq(), ino, Q).await;
    assert_eq!(cluster.locks(ino).len(), 1, "b's");
    let other = b.put("g", b"x").await.unwrap();
    a.counts();
    a.flush_by(other, P).await.unwrap();
    a.flush_by(other, P).await.unwrap();
    assert_eq!(a.counts(), [("listlocks", 1)]);
}

/// Counts invalidations, and looks at what is cached when they come.
#[derive(Default)]
struct Caches(Mutex<Vec<Ino>>);

#[async_trait]
impl KernelCaches for Caches {
    async fn inval_inode(&self, ino: Ino) {
        self.0.lock().push(ino);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_written_under_a_lock_is_read_under_the_next() {
    let cluster = Cluster::new();
    let (a, b) = two(&cluster);
    let kernel = Arc::new(Caches::default());
    b.vfs.set_kernel_caches(kernel.clone());
    a.put("f", b"0000").await.unwrap();
    let (ino, fa) = a.open("f", libc::O_RDWR).await.unwrap();
    let (_, fb) = b.open("f", libc::O_RDWR).await.unwrap();
    assert_eq!(&b.pread(ino, fb, 0, 10).await.unwrap()[..], b"0000");
    for (round, flock) in [true, false, true, false].into_iter().enumerate() {
        let text = format!("{round:05}");
        a.setlk(ino, all(P, LockOp::Write), flock).await.unwrap();
        a.pwrite(ino, fa, 0, text.as_bytes(), 0).await.unwrap();
        let (waiter, _) = b.setlkw(ino, all(P, LockOp::Read), flock);
        quiet().await;
        // No fsync, no close, and no validity runs out: only the unlock commits, and only the grant invalidates.
        if round < 2 {
            a.setlk(ino, all(P, LockOp::Unlock), flock).await.unwrap();
        } else {
            a.setlk(ino, all(P, LockOp::Read), flock).await.unwrap();
        }
        waiter.await.unwrap().unwrap();
        assert_eq!(&b.pread(ino, fb, 0, 10).await.unwrap()[..], text.as_bytes(), "round {round}");
        assert_eq!(b.vfs.getattr(&b.rq(), ino).await.unwrap().0.size, 5);
        assert_eq!(std::mem::take(&mut *kernel.0.lock()), [ino], "the kernel dropped its pages before the grant");
        b.setlk(ino, all(P, LockOp::Unlock), flock).await.unwrap();
        a.setlk(ino, all(P, LockOp::Unlock), flock).await.unwrap();
        b.setlk(ino, all(P, LockOp::Read), flock).await.unwrap();
        assert!(kernel.0.lock().is_empty(), "nothing changed meanwhile");
        b.setlk(ino, all(P, LockOp::Unlock), flock).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_grant_after_a_resume_waits_for_the_way_to_the_kernels_pages() {
    let cluster = Cluster::new();
    let b = cluster.client();
    let ino = b.put("f", b"x").await.unwrap();
    let session = Arc::new(cluster.client()).session();
    let a = Arc::new(cluster.client_of(session, 2, |s| s.resumed = true));
    let (again, _) = a.setlkw(ino, all(P, LockOp::Write), true);
    quiet().await;
    assert!(!again.is_finished());
    let kernel = Arc::new(Caches::default());
    a.vfs.set_kernel_caches(kernel.clone());
    let since = Instant::now();
    again.await.unwrap().unwrap();
    assert_eq!((since.elapsed(), kernel.0.lock().clone()), (Duration::ZERO, vec![ino]));
}

#[tokio::test(start_paused = true)]
async fn closing_keeps_the_lock_until_the_data_is_committed() {
    let cluster = Cluster::new();
    let (a, b) = two(&cluster);
    a.put("f", b"old").await.unwrap();
    let (ino, fh) = a.open("f", libc::O_RDWR).await.unwrap();
    a.setlk(ino, all(P, LockOp::Write), false).await.unwrap();
    a.pwrite(ino, fh, 0, b"new", 0).await.unwrap();
    a.meta.cut(true);
    let since = Instant::now();
    assert_eq!(a.flush_by(ino, P).await, Err(FsError::Io));
    assert!(since.elapsed() <= Duration::from_secs(31), "kill -9 must end a process: {:?}", since.elapsed());
    assert_eq!(b.setlk(ino, all(P, LockOp::Read), false).await, Err(FsError::WouldBlock), "it would read old bytes");
    a.meta.cut(false);
    let (waiter, _) = b.setlkw(ino, all(P, LockOp::Read), false);
    waiter.await.unwrap().unwrap();
    assert_eq!(b.get("f").await.unwrap(), b"new");
}

#[tokio::test(start_paused = true)]
async fn many_clients_count_exactly() {
    const CLIENTS: usize = 4;
    const ROUNDS: u64 = 25;
    for flock in [true, false] {
        let cluster = Cluster::new();
        let clients: Vec<_> = (0..CLIENTS).map(|_| Arc::new(cluster.client())).collect();
        clients[0].put("n", &0u64.to_le_bytes()).await.unwrap();
        let mut tasks = Vec::new();
        for (i, c) in clients.iter().cloned().enumerate() {
            // Two processes on each client.
            for p in [P, Q] {
                let c = c.clone();
                tasks.push(tokio::spawn(async move {
                    let (ino, fh) = c.open("n", libc::O_RDWR).await.unwrap();
                    for _ in 0..ROUNDS {
                        let rq = c.rq();
                        c.vfs.setlk(&rq, ino, fh, all(p, LockOp::Write), flock, true).await.unwrap();
                        let bytes = c.pread(ino, fh, 0, 8).await.unwrap();
                        let n = u64::from_le_bytes(bytes[..].try_into().unwrap()) + 1;
                        for _ in 0..i {
                            tokio::task::yield_now().await;
                        }
                        c.pwrite(ino, fh, 0, &n.to_le_bytes(), 0).await.unwrap();
                        c.setlk(ino, all(p, LockOp::Unlock), flock).await.unwrap();
                    }
                }));
            }
        }
        for t in tasks {
            t.await.unwrap();
        }
        let n = u64::from_le_bytes(clients[0].get("n").await.unwrap().try_into().unwrap());
        assert_eq!(n, CLIENTS as u64 * 2 * ROUNDS, "flock {flock}");
        assert!(clients.iter().all(|c| c.vfs.lock_owners() == 0));
    }
}
