//! The last resort: a client whose keeper and supervisor were both killed starts them again, from its own copies.

use crate::{
    keeper::{Channel, Item, protocol::Message, sys},
    supervise::{dirs::keeper_socket, names},
};
use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
};

/// What this process can give back besides what it wrote itself.
pub struct Copies {
    /// Items as the keeper had them.
    pub items: Vec<(String, Item)>,
    /// Journal files. Never duplicated here: closing a duplicate would free the journal's lock.
    pub journal: &'static [File],
}

/// Starts a keeper, hands everything over, makes it start a supervisor that adopts this process, and again if that dies
/// before it has said how. `own` = what the client wrote.
pub fn revive<'a>(
    runtime: &Path,
    copies: &Copies,
    own: impl Iterator<Item = (&'a String, &'a Vec<u8>)>,
) -> io::Result<()> {
    let exe = sys::executable(Path::new("/proc/self/exe"))?;
    let (ours, theirs) = sys::pair()?;
    let mut keeper = sys::command(exe.as_fd());
    keeper.arg("keeper").arg("--socket").arg(keeper_socket(runtime));
    start(keeper.stdin(Stdio::from(theirs)))?;
    let keeper = Channel::new(ours);
    for (name, item) in &copies.items {
        keeper.put(name, item)?;
    }
    for (n, file) in copies.journal.iter().enumerate() {
        lend(&keeper, &format!("{}{n}", names::JOURNAL), file.as_fd())?;
    }
    for (name, bytes) in own {
        keeper.put(name, &Item { bytes: bytes.clone(), fd: None })?;
    }
    let supervisor = start(sys::command(exe.as_fd()).args(supervisor_args()).stdin(Stdio::null()))?;
    keeper.watch(supervisor.as_fd(), exe.as_fd(), None, &supervisor_args())
}

/// Starts a supervisor that adopts this process from a living keeper. When there is one already, it gives way.
pub fn start_supervisor() -> io::Result<()> {
    let exe = sys::executable(Path::new("/proc/self/exe"))?;
    start(sys::command(exe.as_fd()).args(supervisor_args()).stdin(Stdio::null())).map(drop)
}

/// Our own command line is `client`, the runtime directory, how to log, and words for people: the supervisor's, too.
fn supervisor_args() -> Vec<OsString> {
    std::iter::once("adopt".into()).chain(std::env::args_os().skip(2)).collect()
}

/// Nobody waits for it but a thread: both outlive this process or are started again by each other. Answers its pidfd.
fn start(command: &mut Command) -> io::Result<OwnedFd> {
    let mut child = command.stdout(Stdio::null()).process_group(0).spawn()?;
    let pidfd = sys::pidfd(child.id())?;
    std::thread::Builder::new().name("reap".into()).spawn(move || child.wait())?;
    Ok(pidfd)
}

fn lend(keeper: &Channel, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    match keeper.call(&Message::Put { name: name.into(), bytes: Vec::new() }, &[fd])?.0 {
        Message::Ok => Ok(()),
        _ => Err(io::Error::other("the keeper refused a journal file")),
    }
}
