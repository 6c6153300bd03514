//! The few system calls of the keeper that no crate wraps safely: fds over sockets, pidfds, executables by fd.

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    connect, getsockopt, listen, recvmsg, sendmsg, setsockopt, socket, socketpair,
    sockopt::{PeerCredentials, SendTimeout},
};
use nix::sys::time::TimeVal;
use std::{
    ffi::CStr,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    process::Command,
};

/// The kernel passes at most this many fds with one message (SCM_MAX_FD); room for all of them, so that none can leak.
const KERNEL_FDS_MAX: usize = 253;
/// How long a listener may take to accept, and a peer to make room for a message.
const SEND_PATIENCE: TimeVal = TimeVal::new(1, 0);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// A connected pair of sockets that keep message boundaries.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Listens at `path`, which must not exist. Non-blocking.
pub fn listener(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(fd)
}

/// Connects to the listener at `path`. WouldBlock when it does not accept any more (a stopped process whose backlog is
/// full); the same for messages when it does not read.
pub fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, SendTimeout, &SEND_PATIENCE)?; // holds for connect(2), too
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// The next connection of a listener; None when nobody waits.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
        Ok(fd) => Ok(Some(own(fd))),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::ECONNABORTED | nix::errno::Errno::EINTR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Process and user at the other end.
pub fn peer(fd: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let who = getsockopt(&fd, PeerCredentials)?;
    Ok((u32::try_from(who.pid()).unwrap_or(0), who.uid()))
}

/// Sends one message with fds; never raises SIGPIPE.
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let sent = sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("a message was cut")) }
}

/// Receives one message into `buffer` with its fds; (0, none) when the other end has closed.
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; KERNEL_FDS_MAX]);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(fd.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for c in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = c {
            fds.extend(raw.into_iter().map(own));
        }
    }
    if message.flags.contains(MsgFlags::MSG_TRUNC) {
        return Err(io::Error::other("a message is longer than the limit"));
    }
    Ok((message.bytes, fds))
}

#[allow(unsafe_code)]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this fd for us (accept, SCM_RIGHTS, pidfd_open); nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// An fd that becomes readable when the process ends; close-on-exec.
#[allow(unsafe_code)]
pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0 as libc::c_long) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(fd).map(own).map_err(io::Error::other)
}

/// SIGKILL through a pidfd: never hits another process that got the number.
#[allow(unsafe_code)]
pub fn kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed; the fd is open while borrowed.
    let r = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, none, 0) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the process behind a pidfd has ended.
pub fn ended(pidfd: BorrowedFd<'_>) -> bool {
    readiness(pidfd, nix::poll::PollFlags::POLLIN, 0).is_some_and(|f| f.contains(nix::poll::PollFlags::POLLIN))
}

/// Whether the kernel connection behind a /dev/fuse fd is gone (unmounted or aborted). Never touches the mount.
pub fn connection_gone(fuse: BorrowedFd<'_>) -> bool {
    readiness(fuse, nix::poll::PollFlags::empty(), 0).is_some_and(|f| f.contains(nix::poll::PollFlags::POLLERR))
}

/// Waits up to `ms` for one fd; None when nothing happened.
pub fn readiness(fd: BorrowedFd<'_>, events: nix::poll::PollFlags, ms: u16) -> Option<nix::poll::PollFlags> {
    let mut one = [nix::poll::PollFd::new(fd, events)];
    match nix::poll::poll(&mut one, nix::poll::PollTimeout::from(ms)) {
        Ok(n) if n > 0 => one[0].revents(),
        _ => None,
    }
}

/// When a process started (clock ticks since boot): with the pid it names the process for good. None when it is gone.
pub fn start_time(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields after it are numbers. State is field 3, this is 22.
    let mut rest = text.rsplit_once(')')?.1.split_ascii_whitespace();
    if matches!(rest.next()?, "Z" | "X") {
        return None;
    }
    rest.nth(18)?.parse().ok()
}

/// A command that runs the executable behind `exe`, even when its file was replaced or deleted meanwhile.
pub fn command(exe: BorrowedFd<'_>) -> Command {
    use std::os::unix::process::CommandExt;
    let mut c = Command::new(PathBuf::from(format!("/proc/self/fd/{}", exe.as_raw_fd())));
    c.arg0("fusefs");
    c
}

/// Opens an executable for [`command`].
pub fn executable(path: &Path) -> io::Result<OwnedFd> {
    use nix::{fcntl::OFlag, sys::stat::Mode};
    Ok(nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// The name that ps and /proc show for this process (started through an fd it would be a number).
pub fn name_process(name: &CStr) {
    let _ = nix::sys::prctl::set_name(name); // cosmetic
}

/// An anonymous file, held by whoever has an fd of it.
pub fn memfd(name: &CStr) -> io::Result<OwnedFd> {
    Ok(nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?)
}

/// A second fd of the same open file.
pub fn duplicate(fd: impl AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}

/// Closes whatever the process inherited beyond its standard streams: an open file of an application on the mount would
/// be flushed when it is closed, by a process that the flush waits for. Call it first in `main`, before any fd of ours
/// exists.
#[allow(unsafe_code)]
pub fn close_inherited() {
    // SAFETY: nothing in this process has opened these, so nobody's fd is closed behind its back.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, 0 as libc::c_uint) };
}

/// Takes the standard input away from this process (it becomes /dev/null) and answers it.
pub fn take_stdin() -> io::Result<OwnedFd> {
    let taken = duplicate(io::stdin())?;
    let null = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(null)?;
    Ok(taken)
}
