//! The journal at the start of a client: locked, recognised, and, when an earlier mount left something in it, written to
//! the volume first (PROTOCOL 40, 41).

use super::WorkerError;
use crate::client::{Attach, ClientError, ClientSettings, Kept, after_reboot, file_system, open_session};
use fusefs_data_path::journal::{Header, Journal, JournalError, JournalSettings, Mode, Storage, inspect};
use fusefs_meta_client::Components;
use fusefs_types::{
    FsError, SessionId, Token,
    ids::{Incarnation, MountId},
};
use std::{fs::File, io};

/// The files of a mount's journal. They stay open until the process ends: closing any fd of the first one would free its
/// lock (PROTOCOL 41).
#[derive(Clone, Copy, Debug)]
pub struct Files(&'static [File]);

/// A file that nobody closes.
struct Open(&'static File);

impl Storage for Open {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        Storage::read_at(self.0, buffer, at)
    }
    fn write_at(&self, parts: &[&[u8]], at: u64) -> io::Result<()> {
        Storage::write_at(self.0, parts, at)
    }
    fn sync(&self) -> io::Result<()> {
        Storage::sync(self.0)
    }
    fn size(&self) -> io::Result<u64> {
        Storage::size(self.0)
    }
    fn clear(&self) -> io::Result<()> {
        Storage::clear(self.0)
    }
}

/// What the files are to this mount.
pub enum Found {
    /// The journal of this kernel connection, by an earlier process or just made.
    Own(Journal),
    /// An earlier mount's, with data that is not in the volume.
    Left(Header),
    /// None, or made void after its disk failed: writes are synchronous.
    Nothing,
}

impl Files {
    /// Takes the files for good and waits until the previous client is really dead. Blocks.
    pub fn lock(files: Vec<File>) -> io::Result<Files> {
        let files: &'static [File] = files.leak();
        if let Some(first) = files.first() {
            Journal::lock(first)?;
        }
        Ok(Files(files))
    }

    /// The files.
    pub fn files(self) -> &'static [File] {
        self.0
    }

    fn open(self) -> Result<Journal, JournalError> {
        Journal::open_storage(self.0.iter().map(|f| Box::new(Open(f)) as Box<dyn Storage>).collect())
    }

    fn format(self, mount: MountId, boot: u128) -> Result<Journal, JournalError> {
        let all: Vec<Open> = self.0.iter().map(Open).collect();
        Journal::format_storage(&all.iter().map(|f| f as &dyn Storage).collect::<Vec<_>>(), mount, boot)?;
        self.open()
    }

    /// Bytes that are in the journal only; at least 1 when it cannot be read.
    pub fn pending(self) -> u64 {
        match inspect(self.0) {
            Ok(summary) => summary.files.iter().map(|f| f.bytes.max(1)).sum(),
            Err(JournalError::NoHeader) => 0,
            Err(_) => u64::from(!self.0.is_empty()),
        }
    }

    /// Recognises the files; those of an earlier mount with nothing in them are made ours. `resumed`: this mount has served
    /// before, so the journal must be there unless its disk failed.
    pub fn recognise(self, mount: MountId, resumed: bool) -> Result<Found, JournalError> {
        if self.0.is_empty() {
            return Ok(Found::Nothing);
        }
        match self.open() {
            Ok(journal) if journal.header().mount == mount => Ok(Found::Own(journal)),
            Err(JournalError::NoHeader) if resumed => Ok(Found::Nothing),
            Err(JournalError::NoHeader) => Ok(Found::Own(self.format(mount, boot_id())?)),
            Err(e) if resumed => Err(e),
            Ok(journal) if resumed => Err(JournalError::Foreign(journal.header().mount)),
            Ok(journal) => match inspect(self.0) {
                Ok(summary) if summary.is_clean() => Ok(Found::Own(self.format(mount, boot_id())?)),
                _ => Ok(Found::Left(journal.header())),
            },
            // Unreadable for this version: put aside, so that nothing is lost and the mount can be used.
            Err(_) => Ok(Found::Left(Header::default())),
        }
    }

    /// Writes what an earlier mount left to the volume, through that mount's session, and makes the journal ours.
    /// Park = its session has ended, others changed its files, or the journal is damaged: only an administrator can decide
    /// then. Any other error may pass by itself, and everything is still in the journal.
    pub async fn replay_left(
        self,
        header: Header,
        mount: MountId,
        settings: &ClientSettings,
        components: Components,
    ) -> Result<Found, WorkerError> {
        // The sessions of an earlier attachment have ended with it, and a mount token would not be good for them.
        let detached = settings.attach != 0 && header.attach != settings.attach;
        if header.session.0 == 0 || detached {
            return Err(WorkerError::Park(header.session));
        }
        let written = replay(self.open().map_err(ClientError::Journal)?, header.session, settings, components).await;
        match written {
            Ok(bytes) => tracing::warn!(bytes, session = %header.session, "what an earlier mount left was written"),
            Err(ClientError::Master(r)) if super::ends_session(r.error) => {
                tracing::error!(session = %header.session, "an earlier mount left data: {}", r.message);
                return Err(WorkerError::Park(header.session));
            }
            Err(ClientError::Journal(e)) => {
                tracing::error!(session = %header.session, "an earlier mount's journal cannot be read: {e}");
                return Err(WorkerError::Park(header.session));
            }
            Err(e) => return Err(e.into()),
        }
        Ok(Found::Own(self.format(mount, boot_id()).map_err(ClientError::Journal)?))
    }
}

/// Writes everything pending in a journal to the volume: as the mount and session that it names (`session`), or in a new
/// session (0). The journal is empty afterwards. Answers the bytes that were pending. Must be called inside a tokio
/// runtime; the caller holds the lock.
pub async fn replay(
    journal: Journal,
    session: SessionId,
    settings: &ClientSettings,
    components: Components,
) -> Result<u64, ClientError> {
    let header = journal.header();
    let (mode, incarnation) = journal.begin_replay(boot_id())?;
    let token = match session.0 {
        0 => Token { attach: settings.attach, incarnation: Incarnation(1) },
        _ => Token { attach: header.attach, incarnation },
    };
    let attach = Attach { mount: header.mount, session, token };
    let clock = components.clock.clone();
    let meta = open_session(settings, components, attach).await?;
    let journal = JournalSettings { mode, ..JournalSettings::new(journal) };
    // Others may have written since, when the machine was down or when the session had ended.
    let (data, left) = match mode {
        _ if session.0 == 0 => after_reboot(settings, &meta, clock, attach, journal).await?,
        Mode::Prefix => after_reboot(settings, &meta, clock, attach, journal).await?,
        Mode::SameBoot => {
            let kept = Kept { journal: Some(journal), ..Kept::default() };
            let vfs = file_system(settings, &meta, clock, attach, kept)?;
            vfs.resumed(); // the kernel that would send requests again is gone
            (vfs.data().clone(), Vec::new())
        }
    };
    meta.resumed(); // all numbers of the processes before are known: what is settled from here on is acknowledged
    let bytes = data.replayed().bytes;
    let end = data.shutdown(settings.flush_timeout).await;
    if end.unflushed > 0 {
        return Err(ClientError::Unwritten(end.unflushed)); // the session stays open for the next try
    }
    if !left.is_empty() {
        let text = format!("{} files were changed by others since", left.len());
        return Err(ClientError::Journal(JournalError::Io(io::Error::other(text))));
    }
    if let Some(journal) = data.journal() {
        journal.make_void().map_err(JournalError::Io)?;
    }
    if let Err(refusal) = meta.close(end.leftovers.max(1)).await
        && refusal.error != FsError::Stale
    {
        tracing::warn!(reason = %refusal.message, "closing the session failed; the cluster ends it when its time is up");
    }
    Ok(bytes)
}

/// This start of the machine.
pub fn boot_id() -> u128 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0)
}
