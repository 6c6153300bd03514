//! The process `fusefs keeper`: holds the items of one mount, and starts the supervisor again when that dies.
//!
//! One thread, one poll(2), no runtime, no network, no look into the items. It is small so that nothing in it needs an
//! update while the mount lives.

use super::{
    client::Channel,
    protocol::{FDS_MAX, MESSAGE_BYTES_MAX, Message},
    store::Store,
    sys,
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::{WaitPidFlag, waitpid},
    unistd::{Pid, geteuid},
};
use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStringExt, process::CommandExt},
    },
    path::Path,
    process::{Command, Stdio},
};

/// Connections at once; more are closed at once.
const CONNECTIONS_MAX: usize = 32;
/// Items of all mounts of a node: some 300 mounts.
const SHARED_ITEMS_MAX: usize = 8192;
/// First and longest pause between two starts of a supervisor that dies again and again.
const BACKOFF_MS: (u32, u32) = (10, 5_000);
/// After this much silence the pages that the last messages needed are given back.
const IDLE_MS: u16 = 300;
/// A supervisor that registered this long ago was no false start.
const STEADY_MS: u64 = 10_000;

/// Who is started again.
struct Guard {
    pidfd: OwnedFd,
    exe: OwnedFd,
    stdin: Option<OwnedFd>,
    args: Vec<OsString>,
    since_ms: u64,
}

/// The keeper's state.
struct Keeper {
    listener: OwnedFd,
    connections: Vec<Channel>,
    /// The one of whoever started us, while it lasts.
    first: Option<RawFd>,
    store: Store,
    guard: Option<Guard>,
    backoff_ms: u32,
    /// When a dead supervisor is started again.
    restart_at_ms: Option<u64>,
    /// Worked since the last time that pages were given back.
    touched: bool,
    ending: bool,
    orphaned: bool,
}

/// Serves at `socket` until told to end. `first` is a connection that is there from the start: that of whoever starts this
/// process. When it closes before there is anybody to start again, this process ends: its starter was killed in the middle
/// of the hand-over, and half of a mount that nobody supervises would only keep others from noticing.
pub fn run(socket: &Path, first: Option<OwnedFd>) -> io::Result<()> {
    serve(socket, first, Store::default())
}

/// A keeper of all mounts of a node (`fusefs node-keeper`): started by itself, starts nobody, and ends only with its
/// process. Whoever mounts gives it duplicates and takes them away again (PROTOCOL 47).
pub fn run_shared(socket: &Path) -> io::Result<()> {
    serve(socket, None, Store::with_limit(SHARED_ITEMS_MAX))
}

fn serve(socket: &Path, first: Option<OwnedFd>, store: Store) -> io::Result<()> {
    sys::name_process(c"fusefs-keeper");
    let _ = std::fs::remove_file(socket); // of a keeper that was killed
    let mut keeper = Keeper {
        listener: sys::listener(socket)?,
        first: first.as_ref().map(AsRawFd::as_raw_fd),
        connections: first.map(Channel::new).into_iter().collect(),
        store,
        guard: None,
        backoff_ms: BACKOFF_MS.0,
        restart_at_ms: None,
        touched: true,
        ending: false,
        orphaned: false,
    };
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    while !keeper.ending {
        keeper.turn(&mut buffer)?;
        if keeper.orphaned {
            return Ok(()); // the socket may already be another keeper's
        }
    }
    let _ = std::fs::remove_file(socket); // the supervisor removes the whole directory anyway
    Ok(())
}

/// Milliseconds on a clock that only runs while the machine does.
pub(crate) fn now_ms() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |t| t.tv_sec().max(0) as u64 * 1000 + t.tv_nsec().max(0) as u64 / 1_000_000)
}

impl Keeper {
    fn turn(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let wait = match self.restart_at_ms {
            Some(at) => PollTimeout::from(u16::try_from(at.saturating_sub(now_ms())).unwrap_or(u16::MAX)),
            None if self.touched => PollTimeout::from(IDLE_MS),
            None => PollTimeout::NONE,
        };
        let guard = self.guard.as_ref().filter(|_| self.restart_at_ms.is_none());
        let mut fds: Vec<_> = self.connections.iter().map(|c| PollFd::new(c.as_fd(), PollFlags::POLLIN)).collect();
        fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        fds.extend(guard.map(|g| PollFd::new(g.pidfd.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, wait) {
            Ok(n) => self.touched = n > 0,
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        if !self.touched {
            let _ = super::shrink::give_back(); // only memory
        }
        let ready: Vec<bool> = fds.iter().map(|f| f.revents().is_some_and(|r| !r.is_empty())).collect();
        let connections = self.connections.len();
        let mut closed = Vec::new();
        for (i, _) in ready.iter().enumerate().take(connections).filter(|(_, r)| **r) {
            if self.serve(i, buffer).is_err() {
                closed.push(i);
            }
        }
        for i in closed.into_iter().rev() {
            let gone = self.connections.swap_remove(i);
            if self.first.take_if(|fd| *fd == gone.as_fd().as_raw_fd()).is_some() && self.guard.is_none() {
                eprintln!("fusefs keeper: the process that started this one is gone");
                self.orphaned = true;
            }
        }
        if ready.get(connections) == Some(&true) {
            self.admit()?;
        }
        if ready.get(connections + 1) == Some(&true) {
            self.supervisor_died();
        }
        self.restart_if_due();
        Ok(())
    }

    fn admit(&mut self) -> io::Result<()> {
        while let Some(fd) = sys::accept(self.listener.as_fd())? {
            if self.connections.len() < CONNECTIONS_MAX && same_user(&fd) {
                self.connections.push(Channel::new(fd));
            }
        }
        Ok(())
    }

    /// One message of one connection; an error closes it.
    fn serve(&mut self, i: usize, buffer: &mut [u8]) -> io::Result<()> {
        let (message, mut fds) = self.connections[i].receive_into(buffer)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if fds.len() > FDS_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if let Some((answer, fd)) = self.store.answer(&message, &mut fds) {
            return self.connections[i].send(&answer, fd.as_slice());
        }
        let answer = match message {
            Message::Watch { args } => self.watch(args, fds),
            Message::End => {
                self.ending = true;
                Message::Ok
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        self.connections[i].send(&answer, &[])
    }

    fn watch(&mut self, args: Vec<Vec<u8>>, fds: Vec<OwnedFd>) -> Message {
        let mut fds = fds.into_iter();
        let (Some(pidfd), Some(exe)) = (fds.next(), fds.next()) else {
            return Message::Error("a pidfd and an executable are needed".into());
        };
        let args = args.into_iter().map(OsString::from_vec).collect();
        self.guard = Some(Guard { pidfd, exe, stdin: fds.next(), args, since_ms: now_ms() });
        self.restart_at_ms = None;
        Message::Ok
    }

    fn supervisor_died(&mut self) {
        // Those that we started are our children.
        while waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)).is_ok_and(|s| s.pid().is_some()) {}
        let Some(guard) = &self.guard else { return };
        let now = now_ms();
        let steady = now.saturating_sub(guard.since_ms) >= STEADY_MS;
        if steady {
            self.backoff_ms = BACKOFF_MS.0;
            self.restart_at_ms = Some(now);
        } else {
            self.restart_at_ms = Some(now + u64::from(self.backoff_ms));
            self.backoff_ms = (self.backoff_ms * 2).min(BACKOFF_MS.1);
        }
    }

    fn restart_if_due(&mut self) {
        let now = now_ms();
        if self.restart_at_ms.is_none_or(|at| at > now) {
            return;
        }
        self.restart_at_ms = None;
        let Some(guard) = &mut self.guard else { return };
        match start(guard) {
            Ok(pidfd) => (guard.pidfd, guard.since_ms) = (pidfd, now),
            Err(e) => {
                eprintln!("fusefs keeper: the supervisor cannot be started again: {e}");
                self.restart_at_ms = Some(now + u64::from(BACKOFF_MS.1));
            }
        }
    }
}

fn start(guard: &Guard) -> io::Result<OwnedFd> {
    let stdin = match &guard.stdin {
        Some(fd) => Stdio::from(fd.try_clone()?),
        None => Stdio::null(),
    };
    let mut command: Command = sys::command(guard.exe.as_fd());
    let child = command.args(&guard.args).stdin(stdin).stdout(Stdio::null()).process_group(0).spawn()?;
    sys::pidfd(child.id())
}

/// Only the user who mounted, and root, may talk to the processes of a mount.
pub(crate) fn same_user(fd: &OwnedFd) -> bool {
    let own = geteuid().as_raw();
    sys::peer(fd.as_fd()).is_ok_and(|(_, uid)| uid == own || uid == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::Item;

    #[test]
    fn a_keeper_lives_on_without_its_starter_only_if_it_can_start_a_supervisor() {
        for watched in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let socket = dir.path().join("keeper.sock");
            let (ours, theirs) = sys::pair().unwrap();
            let path = socket.clone();
            let keeper = std::thread::spawn(move || run(&path, Some(theirs)));
            let ours = Channel::new(ours);
            ours.put("fuse", &Item { bytes: vec![1], fd: None }).unwrap();
            let other = Channel::connect(&socket).unwrap();
            other.put("init", &Item { bytes: vec![2], fd: None }).unwrap();
            if watched {
                let own = sys::pidfd(std::process::id()).unwrap();
                let exe = sys::executable(Path::new("/bin/false")).unwrap();
                ours.watch(own.as_fd(), exe.as_fd(), None, &[]).unwrap();
            }
            drop(ours);
            if watched {
                // Twice: the closed connection is seen by the first at the latest.
                assert_eq!(other.get("fuse").unwrap().unwrap().bytes, [1]);
                assert_eq!(other.get("init").unwrap().unwrap().bytes, [2]);
                other.end().unwrap();
            }
            keeper.join().unwrap().unwrap();
            assert!(Channel::connect(&socket).is_err());
        }
    }
}
