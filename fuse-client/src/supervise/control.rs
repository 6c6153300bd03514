//! What other commands ask of a running mount.

use super::dirs;
use crate::keeper::{Channel, protocol::Message, sys};
use nix::poll::PollFlags;
use std::{io, os::fd::AsFd, path::Path, time::Duration};

/// Process ids of one mount; None = not running at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// Keeper.
    pub keeper: Option<u32>,
    /// Supervisor.
    pub supervisor: Option<u32>,
    /// Client, once it has the journal.
    pub client: Option<u32>,
}

/// The processes of a mount by its runtime directory. Never touches the mount.
pub fn processes(runtime: &Path) -> Processes {
    let connect = |path: &Path| Channel::connect(path).ok();
    let pid = |c: &Channel| sys::peer(c.as_fd()).ok().map(|p| p.0);
    let keeper = connect(&dirs::keeper_socket(runtime));
    let supervisor = connect(&dirs::supervisor_socket(runtime));
    let ask = |c: &Option<Channel>| c.as_ref().and_then(|c| c.get(super::names::CLIENT).ok().flatten());
    let record = ask(&keeper).or_else(|| ask(&supervisor));
    let client = record.and_then(|i| super::ClientRecord::decode(&i.bytes)).filter(super::ClientRecord::alive);
    Processes {
        keeper: keeper.as_ref().and_then(pid),
        supervisor: supervisor.as_ref().and_then(pid),
        client: client.map(|c| c.pid),
    }
}

/// Replaces the client of a mount by another executable and waits for the outcome. An error means that the old one
/// serves again (or still).
pub fn request_upgrade(runtime: &Path, binary: &Path, timeout: Duration) -> io::Result<()> {
    let exe = sys::executable(binary)?;
    let channel = Channel::connect(&dirs::supervisor_socket(runtime))?;
    let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    channel.send(&Message::Upgrade { timeout_ms }, &[exe.as_fd()])?;
    match channel.receive()? {
        Some((Message::Ok, _)) => Ok(()),
        Some((Message::Error(text), _)) => Err(io::Error::other(text)),
        Some(_) => Err(io::Error::other("the supervisor answered something else than was asked")),
        None => Err(io::Error::other("the supervisor ended meanwhile; the keeper starts it again")),
    }
}

/// Waits until the supervisor of an unmounted mount has ended (everything flushed), at most `limit`. False when it still
/// runs.
pub fn wait_for_end(supervisor: &Channel, limit: Duration) -> bool {
    let mut left = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    while left > 0 {
        let slice = left.min(1_000);
        let flags = sys::readiness(supervisor.as_fd(), PollFlags::POLLIN, slice as u16);
        if flags.is_some_and(|f| f.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)) {
            return true;
        }
        left -= slice;
    }
    false
}
