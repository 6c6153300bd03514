//! What people do with a journal that no client works on: list, export, discard, park. Also making the files.
//!
//! Never call these from the process that holds the journal's lock: closing any descriptor of the first file frees it.

use super::{Header, Journal, JournalError, Mode, Recovered, ReplayStats, Storage, read_header, scan, whole_file};
use fusefs_types::{Ino, Time};
use nix::fcntl::{FcntlArg, fcntl};
use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// What one inode has pending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSummary {
    /// Inode.
    pub ino: Ino,
    /// Writes.
    pub writes: u64,
    /// Bytes of them; overwritten ones count again.
    pub bytes: u64,
    /// End of the furthest write.
    pub end: u64,
    /// Time of the newest write.
    pub mtime: Option<Time>,
    /// Commits on their way whose answer is not known.
    pub intents: u64,
}

/// What is in a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Whose it is.
    pub header: Header,
    /// Counters of the scan.
    pub stats: ReplayStats,
    /// Inodes with something pending, in order of their numbers.
    pub files: Vec<FileSummary>,
}

impl Summary {
    /// Nothing is pending: the journal may be thrown away.
    pub fn is_clean(&self) -> bool {
        self.files.is_empty()
    }
}

/// Makes `files` preallocated files of `bytes` each in `dir` (`journal.0`, `journal.1`, ...), readable by the owner only.
/// Errors: those of the disk, AlreadyExists.
pub fn create_files(dir: &Path, files: usize, bytes: u64) -> io::Result<Vec<File>> {
    (0..files)
        .map(|i| {
            let path = dir.join(format!("journal.{i}"));
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
            preallocate(&file, bytes)?;
            Ok(file)
        })
        .collect()
}

#[cfg(target_os = "linux")]
fn preallocate(file: &File, bytes: u64) -> io::Result<()> {
    let len = libc::off_t::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(nix::fcntl::posix_fallocate(file, 0, len)?)
}

#[cfg(not(target_os = "linux"))]
fn preallocate(file: &File, bytes: u64) -> io::Result<()> {
    file.set_len(bytes)
}

/// The process that holds the journal's lock now.
pub fn holder(first: &File) -> io::Result<Option<i32>> {
    let mut lock = whole_file();
    fcntl(first, FcntlArg::F_GETLK(&mut lock))?;
    Ok((lock.l_type != libc::F_UNLCK as libc::c_short).then_some(lock.l_pid))
}

fn read(files: &[File]) -> Result<(Header, Recovered), JournalError> {
    let views: Vec<&dyn Storage> = files.iter().map(|f| f as &dyn Storage).collect();
    let header = read_header(&views)?;
    let found = scan::scan(&views, &header, Mode::Prefix)?;
    let recovered = scan::settle(&views, &header, &found, false)?;
    Ok((header, recovered))
}

/// What is pending in a journal. Changes nothing. Errors: those of [`Journal::open`], Corrupt for damaged live records.
pub fn inspect(files: &[File]) -> Result<Summary, JournalError> {
    let (header, recovered) = read(files)?;
    Ok(Summary { header, stats: recovered.stats, files: summaries(&recovered) })
}

fn summaries(recovered: &Recovered) -> Vec<FileSummary> {
    let one = |(ino, p): (&Ino, &super::Pending)| FileSummary {
        ino: *ino,
        writes: p.writes.len() as u64,
        bytes: p.writes.iter().map(|w| w.bytes.len() as u64).sum(),
        end: p.writes.iter().map(|w| w.offset + w.bytes.len() as u64).max().unwrap_or(0),
        mtime: p.writes.iter().filter_map(|w| w.mtime).max(),
        intents: p.intents.len() as u64,
    };
    recovered.pending.iter().map(one).collect()
}

/// Writes the pending bytes of every inode to `dir/ino-<number>` (sparse: a byte that was not written is a hole) and a
/// listing of all writes to `dir/journal.txt`. `dir` is made if needed; existing files of these names are an error.
pub fn export(files: &[File], dir: &Path) -> Result<Summary, JournalError> {
    let (header, recovered) = read(files)?;
    fs::create_dir_all(dir)?;
    let mut list = format!(
        "mount {} session {} attach {} incarnation {}\ninode offset bytes record trunc_seq mtime_ns\n",
        header.mount, header.session, header.attach, header.incarnation
    );
    for (ino, pending) in &recovered.pending {
        let out =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(format!("ino-{}", ino.0)))?;
        for w in &pending.writes {
            out.write_all_at(&w.bytes, w.offset)?;
            let mtime = w.mtime.map_or("-".into(), |t| t.0.to_string());
            let _ = writeln!(list, "{} {} {} {} {} {mtime}", ino.0, w.offset, w.bytes.len(), w.lsn, w.trunc_seq);
        }
        for i in &pending.intents {
            let _ = writeln!(list, "{} commit {} covers records up to {}, answer unknown", ino.0, i.number, i.covers);
        }
        out.sync_all()?;
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join("journal.txt"))?;
    file.write_all_at(list.as_bytes(), 0)?;
    file.sync_all()?;
    Ok(Summary { header, stats: recovered.stats, files: summaries(&recovered) })
}

/// Forgets everything that is pending. The caller holds the journal's lock.
pub fn discard(files: Vec<File>) -> Result<(), JournalError> {
    let journal = Journal::open(files)?;
    journal.recover(Mode::Prefix, false)?;
    journal.make_void()?;
    Ok(())
}

/// Moves the journal's files out of the way, into `dir/parked-<mount>-<incarnation>`, where `fusefs journal` finds them;
/// returns that directory. For a journal whose session is gone or that is damaged.
pub fn park(dir: &Path) -> io::Result<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?.iter().map(|e| e.file_name()).collect();
    names.retain(|n| n.to_str().is_some_and(|n| n.starts_with("journal.")));
    names.sort();
    let first = names.iter().find(|n| *n == "journal.0").ok_or(io::ErrorKind::NotFound)?;
    let file = File::open(dir.join(first))?;
    let mut label = "unreadable".to_string();
    for slot in super::SLOTS {
        let mut bytes = [0; super::HEADER];
        Storage::read_at(&file, &mut bytes, slot)?;
        if let Some(Ok(h)) = Header::decode(&bytes) {
            label = format!("{}-{}", h.mount, h.incarnation);
        }
    }
    let mut to = dir.join(format!("parked-{label}"));
    let mut n = 1;
    while to.exists() {
        n += 1;
        to = dir.join(format!("parked-{label}.{n}"));
    }
    fs::create_dir(&to)?;
    for name in names {
        fs::rename(dir.join(&name), to.join(&name))?;
    }
    Ok(to)
}
