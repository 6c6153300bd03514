//! Starting the other two processes.

use super::{dirs::Dirs, record::ClientRecord};
use crate::keeper::{Channel, Store, server::now_ms, sys};
use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, ExitStatus, Stdio},
};

/// A process that is watched; `child` only if this process started it.
pub(super) struct Process {
    pub pid: u32,
    pub pidfd: OwnedFd,
    child: Option<Child>,
}

impl Process {
    fn of(child: Child) -> io::Result<Process> {
        Ok(Process { pid: child.id(), pidfd: sys::pidfd(child.id())?, child: Some(child) })
    }

    /// A process that another supervisor started; None when it is gone.
    pub fn adopt(record: &ClientRecord) -> Option<Process> {
        let pidfd = sys::pidfd(record.pid).ok()?;
        // The fd first: if the record still fits now, the fd is that process.
        record.alive().then_some(Process { pid: record.pid, pidfd, child: None })
    }

    /// How a process that has ended did so; None for adopted ones.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|c| c.wait().ok())
    }

    pub fn kill(&self) {
        if let Err(error) = sys::kill(self.pidfd.as_fd()) {
            tracing::debug!(pid = self.pid, %error, "kill");
        }
    }

    /// SIGKILL and reap.
    pub fn end(mut self) {
        self.kill();
        let _ = self.status();
    }
}

/// The keeper and the connection over which it was started.
pub(super) struct KeeperProcess {
    pub pidfd: OwnedFd,
    pub since_ms: u64,
    pub channel: Channel,
    child: Option<Child>,
}

impl KeeperProcess {
    /// Starts a keeper. It answers on the connection that it inherits, so nobody has to wait for its socket.
    pub fn start(exe: BorrowedFd<'_>, dirs: &Dirs, common: &[OsString]) -> io::Result<KeeperProcess> {
        let (ours, theirs) = sys::pair()?;
        let mut command = sys::command(exe);
        command.arg("keeper").arg("--socket").arg(dirs.keeper_socket()).args(common);
        let child =
            command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).process_group(0).current_dir("/").spawn()?;
        let pidfd = sys::pidfd(child.id())?;
        Ok(KeeperProcess { pidfd, since_ms: now_ms(), channel: Channel::new(ours), child: Some(child) })
    }

    /// The keeper that is there already.
    pub fn adopt(channel: Channel) -> io::Result<KeeperProcess> {
        let (pid, _) = sys::peer(channel.as_fd())?;
        Ok(KeeperProcess { pidfd: sys::pidfd(pid)?, since_ms: now_ms(), channel, child: None })
    }

    /// Hands everything over and asks to be watched; with the last answer the keeper has it all.
    pub fn entrust(
        &self,
        store: &Store,
        exe: BorrowedFd<'_>,
        stdin: Option<BorrowedFd<'_>>,
        args: &[OsString],
    ) -> io::Result<()> {
        for (name, item) in store.iter() {
            self.channel.put(name, item)?;
        }
        let own = sys::pidfd(std::process::id())?;
        self.channel.watch(own.as_fd(), exe, stdin, args)
    }

    /// SIGKILL, for one that does not answer; it must not start anybody any more.
    pub fn kill(mut self) {
        if let Err(error) = sys::kill(self.pidfd.as_fd()) {
            tracing::debug!(%error, "killing the keeper");
        }
        self.reap();
    }

    /// Ends it; its copies are closed when this returns.
    pub fn end(mut self) {
        if let Err(error) = self.channel.end() {
            tracing::debug!(%error, "the keeper is gone already");
        }
        match &mut self.child {
            Some(child) => drop(child.wait()),
            None => drop(sys::readiness(self.pidfd.as_fd(), nix::poll::PollFlags::POLLIN, 2_000)),
        }
    }

    /// Collects a keeper that has died.
    pub fn reap(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

/// Starts a client from an executable. `candidate`: it ends when it cannot go on with the mount, because another one can.
pub(super) fn start_client(
    exe: BorrowedFd<'_>,
    dirs: &Dirs,
    common: &[OsString],
    labels: &[OsString],
    candidate: bool,
) -> io::Result<Process> {
    let mut command = sys::command(exe);
    command.arg("client").arg("--runtime").arg(&dirs.runtime).args(candidate.then_some("--candidate"));
    command.args(common).arg("--").args(labels);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0).current_dir("/").spawn()?;
    Process::of(child)
}
