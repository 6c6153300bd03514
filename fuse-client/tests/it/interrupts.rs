//! Applications that are interrupted or killed while the cluster does not answer.

use crate::cluster::{Cluster, Hold};
use crate::kmount::Kept;
use crate::mounted::usable;
use crate::resume::{Process, until};
use async_trait::async_trait;
use fusefs_fuse_client::fuse::kernel::{FileLock, InitOptions, Locks};
use fusefs_fuse_client::vfs::Request;
use fusefs_types::{FsError, FsResult, Ino};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

fn run(program: &str, args: &[&str], path: &std::path::Path) -> Child {
    Command::new(program).args(args).arg(path).spawn().unwrap()
}

/// Kills it and says how it ended; the test's own deadline catches a child that cannot be killed.
fn kill(mut child: Child) -> std::process::ExitStatus {
    child.kill().unwrap();
    let mut ended = None;
    until("a killed application ends", || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    ended.unwrap()
}

#[test]
fn a_killed_application_ends_while_the_cluster_is_away() {
    if !usable() {
        return;
    }
    for slots in [false, true] {
        let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
        let mut kept = Kept::mount(dir.path(), slots).unwrap();
        // Nothing but the kill ends a wait here.
        let hour = Duration::from_secs(3600);
        let patient = |s: &mut fusefs_fuse_client::fuse::kernel::ServeSettings| {
            (s.interrupt_patience, s.close_timeout) = (hour, hour);
        };
        let process = Process::start_with(&cluster, &kept, patient);
        process.client.meta.hold(Hold { reads: true, writes: true, replies: false });
        cluster.clock.advance_ms(1001);
        let asking = run("cat", &[], &dir.path().join("absent"));
        until("the question waits", || process.serving.waiting() == 1);
        assert!(!kill(asking).success());
        until("nobody waits", || process.serving.waiting() == 0);

        process.client.meta.hold(Hold { writes: true, ..Hold::default() });
        let making = run("mkdir", &[], &dir.path().join("d"));
        until("the change waits", || process.serving.waiting() == 1);
        assert!(!kill(making).success());
        assert_eq!(process.serving.stats().interrupted.load(Relaxed), 2);
        // The change goes on and comes to its end.
        process.client.meta.hold(Hold::default());
        until("it is made", || {
            dir.path().join("d").is_dir() || {
                cluster.clock.advance_ms(1001);
                false
            }
        });
        process.end(&mut kept);
    }
}

/// The client of a mount that another process made, perhaps in another pid namespace, does not take "no such process" for
/// the end of an application: only time decides.
#[test]
fn numbers_of_foreign_processes_mean_nothing() {
    if !usable() {
        return;
    }
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut kept = Kept::mount(dir.path(), false).unwrap();
    let hour = Duration::from_secs(3600);
    let process = Process::start_with(&cluster, &kept, |s| {
        (s.interrupt_patience, s.close_timeout, s.foreign_pids) = (hour, hour, true);
    });
    process.client.meta.hold(Hold { writes: true, ..Hold::default() });
    let mut making = run("mkdir", &[], &dir.path().join("d"));
    until("the change waits", || process.serving.waiting() == 1);
    making.kill().unwrap();
    // The interrupt is delivered before this question is: the kernel sends interrupts first. It needs no lock of the
    // directory, which the change has.
    nix::sys::statvfs::statvfs(dir.path()).unwrap();
    assert_eq!((process.serving.waiting(), making.try_wait().unwrap()), (1, None));
    process.client.meta.hold(Hold::default());
    until("the application ends with its call", || {
        cluster.clock.advance_ms(1001);
        making.try_wait().unwrap().is_some()
    });
    assert_eq!(process.serving.stats().interrupted.load(Relaxed), 0);
    assert!(dir.path().join("d").is_dir());
    process.end(&mut kept);
}

extern "C" fn nothing(_: libc::c_int) {}

/// A signal that a program handles does not make its calls fail while the cluster answers soon.
#[test]
#[allow(unsafe_code)]
fn a_handled_signal_ends_a_question_only_after_a_patience() {
    if !usable() {
        return;
    }
    let action = nix::sys::signal::SigAction::new(
        nix::sys::signal::SigHandler::Handler(nothing),
        nix::sys::signal::SaFlags::empty(),
        nix::sys::signal::SigSet::empty(),
    );
    // SAFETY: the handler does nothing.
    unsafe { nix::sys::signal::sigaction(nix::sys::signal::SIGUSR1, &action) }.unwrap();
    for (patience, eintr) in [(Duration::from_secs(3600), false), (Duration::ZERO, true)] {
        let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
        let mut kept = Kept::mount(dir.path(), false).unwrap();
        let process = Process::start_with(&cluster, &kept, |s| s.interrupt_patience = patience);
        process.client.meta.hold(Hold { reads: true, ..Hold::default() });
        cluster.clock.advance_ms(1001);
        let (path, tell) = (dir.path().join("f"), std::sync::mpsc::channel());
        let asking = std::thread::spawn(move || {
            // SAFETY: asks for the calling thread's own number.
            tell.0.send(unsafe { libc::pthread_self() }).unwrap();
            std::fs::metadata(path).unwrap_err().raw_os_error()
        });
        let thread = tell.1.recv().unwrap();
        until("the question waits", || process.serving.waiting() == 1);
        // SAFETY: the thread is blocked and has not been joined.
        assert_eq!(unsafe { libc::pthread_kill(thread, libc::SIGUSR1) }, 0);
        if eintr {
            assert_eq!(asking.join().unwrap(), Some(libc::EINTR));
        } else {
            // The interrupt is delivered before this request is: the kernel sends interrupts first.
            let other = dir.path().join("g");
            let second = std::thread::spawn(move || std::fs::metadata(other).is_err());
            until("another question waits", || process.serving.waiting() == 2);
            process.client.meta.hold(Hold::default());
            assert_eq!(asking.join().unwrap(), Some(libc::ENOENT));
            assert!(second.join().unwrap());
        }
        process.end(&mut kept);
    }
}

/// Locks of one inode: everybody but the first owner waits for ever.
#[derive(Default)]
struct OneOwner {
    owner: AtomicU64,
    closed: AtomicU64,
}

#[async_trait]
impl Locks for OneOwner {
    async fn getlk(&self, _rq: &Request, _ino: Ino, lock: FileLock) -> FsResult<FileLock> {
        Ok(FileLock { kind: libc::F_WRLCK, pid: 77, ..lock })
    }
    async fn setlk(&self, rq: &Request, _ino: Ino, lock: FileLock, wait: bool) -> FsResult<()> {
        assert!(rq.lock.owner != 0);
        if lock.kind == libc::F_UNLCK {
            return Ok(());
        }
        match self.owner.compare_exchange(0, rq.lock.owner, Relaxed, Relaxed) {
            Ok(_) => Ok(()),
            Err(o) if o == rq.lock.owner => Ok(()),
            Err(_) if !wait => Err(FsError::WouldBlock),
            Err(_) => {
                rq.interrupt.wait().await;
                Err(FsError::Interrupted)
            }
        }
    }
    async fn closed(&self, rq: &Request, _ino: Ino) -> FsResult<()> {
        self.closed.fetch_add(1, Relaxed);
        let _ = self.owner.compare_exchange(rq.lock.owner, 0, Relaxed, Relaxed);
        Ok(())
    }
}

#[test]
fn locks_are_asked_for_waited_for_and_given_back() {
    if !usable() {
        return;
    }
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut kept = Kept::mount_with(dir.path(), false, InitOptions { locks: true }).unwrap();
    let locks = Arc::new(OneOwner::default());
    let process = Process::start_with(&cluster, &kept, |s| s.locks = Some(locks.clone()));
    let path = dir.path().join("f");
    let file = std::fs::File::create(&path).unwrap();
    file.lock().unwrap();
    assert!(locks.owner.load(Relaxed) != 0);
    let second = std::fs::File::open(&path).unwrap();
    assert!(matches!(second.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
    let mut command = Command::new("flock");
    let waiting = command.arg(&path).arg("true").process_group(0).spawn().unwrap();
    until("the lock is waited for", || process.serving.waiting() == 1);
    assert!(!kill(waiting).success());
    until("nobody waits", || process.serving.waiting() == 0);
    assert_eq!(process.serving.stats().dropped_replies.load(Relaxed), 0);
    drop((file, second));
    // RELEASE comes when it comes; it gives the flock back.
    until("the lock is free", || locks.owner.load(Relaxed) == 0);
    assert!(locks.closed.load(Relaxed) > 0);
    process.end(&mut kept);
}
