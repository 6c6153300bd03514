//! A client's connections to the two processes that hold what it must not lose.
//!
//! What the client itself writes goes to both. After a restart of either it is pushed again, so that a holder that was
//! killed knows it soon, and the supervisor's pings are answered here.

use super::revive::{Copies, revive, start_supervisor};
use crate::{
    keeper::{Channel, Item, client::ANSWER_MS, protocol::Message},
    supervise::dirs::{keeper_socket, supervisor_socket},
};
use nix::poll::PollTimeout;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Between two tries to reach a holder that is being started again.
const RETRY_MS: u8 = 10;
/// Tries before a hand-over or a question counts as failed: both holders are dead for good then.
const TRIES: u32 = 3_000;

/// How long the second holder may take to confirm what the first one has.
const SECOND_MS: u16 = 200;

/// Tries after which a serving client starts both holders again: 2 s, in which either would have started the other.
const DESERTED: u32 = 200;
/// Tries after which a client starts the supervisor that a living keeper does not start: 10 s, in which the keeper would
/// have, whatever its pause.
const UNSUPERVISED: u32 = 1_000;

/// Answers whether the process does its work: it may block.
pub type Alive = Arc<dyn Fn() -> bool + Send + Sync>;

/// Both links.
pub struct Links {
    runtime: PathBuf,
    /// What this process wrote. Locked while it is being sent, so that an old value cannot overtake a new one.
    own: Mutex<BTreeMap<String, Vec<u8>>>,
    alive: Mutex<Option<Alive>>,
    copies: Mutex<Option<Copies>>,
    /// Which holder answered last, as an index of `sockets`: it is asked first.
    answers: AtomicUsize,
}

impl Links {
    /// Connects to both and says hello to the supervisor; the threads live as long as the process.
    pub fn start(runtime: &Path) -> io::Result<Arc<Links>> {
        let links = Arc::new(Links {
            runtime: runtime.into(),
            own: Mutex::default(),
            alive: Mutex::default(),
            copies: Mutex::default(),
            answers: AtomicUsize::new(0),
        });
        for (name, keeper) in [("link-keeper", true), ("link-super", false)] {
            let links = links.clone();
            std::thread::Builder::new().name(name.into()).spawn(move || links.keep(keeper))?;
        }
        Ok(links)
    }

    /// What answers the supervisor's pings from now on.
    pub fn set_alive(&self, alive: Alive) {
        *self.alive.lock() = Some(alive);
    }

    /// From now on this process may start both holders again if both are gone.
    pub fn set_copies(&self, copies: Copies) {
        *self.copies.lock() = Some(copies);
    }

    /// An item from whichever holder answers. None = it does not exist.
    pub fn get(&self, name: &str) -> io::Result<Option<Item>> {
        self.retry(|path| Channel::connect(path)?.get(name))
    }

    /// All items from whichever holder answers.
    pub fn all(&self) -> io::Result<crate::keeper::Store> {
        self.retry(|path| Channel::connect(path)?.all())
    }

    /// Hands an item to both holders; returns when at least one has it. The other gets it as soon as it is back.
    pub fn put(&self, name: &str, bytes: Vec<u8>) -> io::Result<()> {
        let mut own = self.own.lock();
        own.insert(name.to_owned(), bytes.clone());
        let item = Item { bytes, fd: None };
        let mut last = None;
        for _ in 0..TRIES {
            let first = self.answers.load(Ordering::Relaxed);
            let mut kept = false;
            for holder in [first, 1 - first] {
                // The other one has it in its queue: a stopped process must not stop us.
                let limit = if kept { SECOND_MS } else { ANSWER_MS };
                match Channel::connect(&self.sockets()[holder]).and_then(|c| c.put_within(name, &item, limit)) {
                    Ok(()) if !kept => {
                        kept = true;
                        self.answers.store(holder, Ordering::Relaxed);
                    }
                    Ok(()) => {}
                    Err(e) => last = Some(e),
                }
            }
            if kept {
                return Ok(());
            }
            pause();
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::TimedOut.into()))
    }

    /// An item from each holder that answers, at least one. An answer that it does not exist is none here.
    pub fn get_each(&self, name: &str) -> io::Result<Vec<Item>> {
        let mut found = vec![self.get(name)?];
        let other = &self.sockets()[1 - self.answers.load(Ordering::Relaxed)];
        found.extend(Channel::connect(other).and_then(|c| c.get(name)));
        Ok(found.into_iter().flatten().collect())
    }

    fn sockets(&self) -> [PathBuf; 2] {
        [keeper_socket(&self.runtime), supervisor_socket(&self.runtime)]
    }

    fn retry<T>(&self, ask: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
        let mut last = None;
        for _ in 0..TRIES {
            let first = self.answers.load(Ordering::Relaxed);
            for holder in [first, 1 - first] {
                match ask(&self.sockets()[holder]) {
                    Ok(found) => {
                        self.answers.store(holder, Ordering::Relaxed);
                        return Ok(found);
                    }
                    Err(e) => last = Some(e),
                }
            }
            pause();
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::TimedOut.into()))
    }

    /// One link's thread.
    fn keep(&self, keeper: bool) {
        let [keeper_path, supervisor_path] = self.sockets();
        let path = if keeper { keeper_path } else { supervisor_path };
        let mut tries = 0;
        loop {
            match Channel::connect(&path) {
                Ok(channel) => {
                    tries = 0;
                    if let Err(error) = self.attend(&channel, &path, keeper) {
                        tracing::debug!(%error, socket = %path.display(), "a holder of the mount went away");
                    }
                }
                Err(_) => tries += 1,
            }
            if keeper && tries >= DESERTED && Channel::connect(&supervisor_socket(&self.runtime)).is_err() {
                tries = 0;
                self.revive();
            }
            if !keeper && tries >= UNSUPERVISED && Channel::connect(&keeper_socket(&self.runtime)).is_ok() {
                tries = 0;
                tracing::error!("the supervisor is gone and the keeper does not start it; it is started again");
                if let Err(error) = start_supervisor() {
                    tracing::error!(%error, "the supervisor cannot be started again");
                }
            }
            pause();
        }
    }

    fn revive(&self) {
        let (own, copies) = (self.own.lock(), self.copies.lock());
        let Some(copies) = &*copies else { return };
        tracing::error!("keeper and supervisor are both gone; they are started again");
        if let Err(error) = revive(&self.runtime, copies, own.iter()) {
            tracing::error!(%error, "keeper and supervisor cannot be started again");
        }
    }

    /// While a connection lasts.
    fn attend(&self, channel: &Channel, path: &Path, keeper: bool) -> io::Result<()> {
        {
            let own = self.own.lock();
            let pushing = Channel::connect(path)?;
            for (name, bytes) in own.iter() {
                pushing.put(name, &Item { bytes: bytes.clone(), fd: None })?;
            }
        }
        if !keeper {
            channel.send(&Message::Hello, &[])?;
        }
        while let Some((message, _)) = channel.receive()? {
            let alive = self.alive.lock().clone();
            if let Message::Ping(n) = message
                && alive.is_none_or(|alive| alive())
            {
                channel.send(&Message::Pong(n), &[])?;
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Nothing tells when a killed process is back.
fn pause() {
    let _ = nix::poll::poll(&mut [], PollTimeout::from(RETRY_MS));
}
