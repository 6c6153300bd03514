//! Typed calls to a holder of items: the keeper, or the supervisor, which keeps the same items and answers the same
//! messages.

use super::{
    protocol::{MESSAGE_BYTES_MAX, Message},
    store::{Item, Store},
    sys,
};
use nix::poll::PollFlags;
use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// How long a holder may take for an answer. It only copies a few bytes; a stopped one must not stop its callers.
pub const ANSWER_MS: u16 = 2_000;

/// A connection that carries messages.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Channel {
    /// Wraps a connected socket.
    pub fn new(fd: OwnedFd) -> Channel {
        Channel { fd }
    }
    /// Connects to a listener.
    pub fn connect(path: &Path) -> io::Result<Channel> {
        sys::connect_to(path).map(Channel::new)
    }
    /// Sends a message with fds, which stay open here.
    pub fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        sys::send(self.as_fd(), &message.encode(), fds)
    }
    /// The next message; None when the other end closed. Blocks unless the socket does not.
    pub fn receive(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        self.receive_into(&mut buffer)
    }
    /// As [`Channel::receive`] with a buffer of [`MESSAGE_BYTES_MAX`] bytes that is used again and again.
    pub fn receive_into(&self, buffer: &mut [u8]) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let (n, fds) = sys::receive(self.as_fd(), buffer)?;
        if n == 0 {
            return Ok(None);
        }
        let message = Message::decode(&buffer[..n]).map_err(io::Error::other)?;
        Ok(Some((message, fds)))
    }
    /// Waits for a message, at most `ms`.
    pub fn receive_within(&self, ms: u16) -> io::Result<(Message, Vec<OwnedFd>)> {
        if sys::readiness(self.as_fd(), PollFlags::POLLIN, ms).is_none() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.receive()?.ok_or_else(|| io::ErrorKind::ConnectionReset.into())
    }
    /// Sends a question and waits for the answer. Refusals are errors.
    pub fn call(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<(Message, Vec<OwnedFd>)> {
        self.call_within(message, fds, ANSWER_MS)
    }
    fn call_within(&self, message: &Message, fds: &[BorrowedFd<'_>], ms: u16) -> io::Result<(Message, Vec<OwnedFd>)> {
        self.send(message, fds)?;
        match self.receive_within(ms)? {
            (Message::Error(text), _) => Err(io::Error::other(text)),
            answer => Ok(answer),
        }
    }

    /// Hands an item over; when this returns Ok the holder has it and the caller may let its copy go.
    pub fn put(&self, name: &str, item: &Item) -> io::Result<()> {
        self.put_within(name, item, ANSWER_MS)
    }
    /// As [`Channel::put`]; after `ms` it is not known whether the holder has it.
    pub fn put_within(&self, name: &str, item: &Item, ms: u16) -> io::Result<()> {
        let fd: Vec<_> = item.fd.iter().map(AsFd::as_fd).collect();
        expect_ok(self.call_within(&Message::Put { name: name.into(), bytes: item.bytes.clone() }, &fd, ms)?.0)
    }
    /// An item, with an fd of our own.
    pub fn get(&self, name: &str) -> io::Result<Option<Item>> {
        match self.call(&Message::Get { name: name.into() }, &[])? {
            (Message::Item { bytes }, mut fds) => Ok(Some(Item { bytes, fd: fds.pop() })),
            (Message::Missing, _) => Ok(None),
            _ => Err(unexpected()),
        }
    }
    /// Names of all items.
    pub fn list(&self) -> io::Result<Vec<String>> {
        match self.call(&Message::List, &[])?.0 {
            Message::Names(names) => Ok(names),
            _ => Err(unexpected()),
        }
    }
    /// Names of all items of a holder of many mounts.
    pub fn list_all(&self) -> io::Result<Vec<String>> {
        let mut all: Vec<String> = Vec::new();
        loop {
            let name = all.last().cloned().unwrap_or_else(|| "-".into());
            match self.call(&Message::ListAfter { name }, &[])?.0 {
                Message::Names(more) if more.is_empty() => return Ok(all),
                Message::Names(more) => all.extend(more),
                _ => return Err(unexpected()),
            }
        }
    }
    /// Makes a hosted supervisor serve what it was given.
    pub fn begin(&self) -> io::Result<()> {
        expect_ok(self.call(&Message::Begin, &[])?.0)
    }
    /// Everything the holder has.
    pub fn all(&self) -> io::Result<Store> {
        let mut store = Store::default();
        for name in self.list()? {
            if let Some(item) = self.get(&name)? {
                store.put(&name, item);
            }
        }
        Ok(store)
    }
    /// Makes the holder forget an item.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        expect_ok(self.call(&Message::Remove { name: name.into() }, &[])?.0)
    }
    /// Makes the keeper start `exe args` whenever the process behind `pidfd` ends.
    pub fn watch(
        &self,
        pidfd: BorrowedFd<'_>,
        exe: BorrowedFd<'_>,
        stdin: Option<BorrowedFd<'_>>,
        args: &[OsString],
    ) -> io::Result<()> {
        let args = args.iter().map(|a| a.as_bytes().to_vec()).collect();
        let fds: Vec<_> = [pidfd, exe].into_iter().chain(stdin).collect();
        expect_ok(self.call(&Message::Watch { args }, &fds)?.0)
    }
    /// Ends the keeper, which lets everything go; a hosted supervisor lets go and waits for another mount.
    pub fn end(&self) -> io::Result<()> {
        expect_ok(self.call(&Message::End, &[])?.0)
    }
}

fn expect_ok(answer: Message) -> io::Result<()> {
    if answer == Message::Ok { Ok(()) } else { Err(unexpected()) }
}

fn unexpected() -> io::Error {
    io::Error::other("the holder answered something else than was asked")
}
