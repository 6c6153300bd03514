//! The kernel connection as a client process uses it, over fuser until the own transport is there.

use crate::{Vfs, fuse::Adapter};
use bytes::Bytes;
use fuser::{Config, Session, SessionACL};
use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

/// Negotiated INIT.
pub struct InitRecord(pub Bytes);

/// How requests are served.
pub struct ServeSettings {
    /// Reading threads.
    pub readers: usize,
    /// Soft limit of waiting operations.
    pub io_timeout: Option<Duration>,
}

/// fuser shakes hands by itself.
pub fn handshake(
    _fd: BorrowedFd<'_>,
    keep: impl FnOnce(&InitRecord) -> io::Result<()>,
) -> io::Result<InitRecord> {
    let record = InitRecord(Bytes::from_static(b"fuser"));
    keep(&record)?;
    Ok(record)
}

/// A connection being served.
pub struct Serving(std::thread::JoinHandle<io::Result<()>>);

impl Serving {
    /// Until it ends.
    pub fn wait(self) -> io::Result<()> {
        self.0.join().unwrap_or_else(|_| Err(io::Error::other("the FUSE session's thread panicked")))
    }
}

/// Serves; fuser cannot resume.
pub fn serve(
    fd: OwnedFd,
    _init: InitRecord,
    resumed: bool,
    vfs: Arc<Vfs>,
    runtime: tokio::runtime::Handle,
    settings: ServeSettings,
) -> io::Result<Serving> {
    if resumed {
        return Err(io::Error::other("this transport cannot resume a connection"));
    }
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(settings.readers.max(1));
    let session = Session::from_fd(Adapter::new(vfs, runtime, settings.io_timeout), fd, SessionACL::All, config)?;
    Ok(Serving(std::thread::Builder::new().name("fuse-session".into()).spawn(move || session.run())?))
}

/// Answers everything with an error until the unmount.
pub fn poison(_fd: OwnedFd, _init: InitRecord) -> io::Result<()> {
    Err(io::Error::other("this transport cannot poison a connection"))
}
