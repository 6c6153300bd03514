//! The journal's files: made by whoever mounts, handed over as fds (PROTOCOL 40). What is in them is the client's
//! business.

use super::{SuperviseError, record::names};
use crate::keeper::{Item, Store};
use fusefs_data_path::journal::{FILE_BYTES_MIN, FILES, JournalError, create_files, inspect};
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// A header lies somewhere in here if there is one.
const HEAD_BYTES: usize = 64 << 10;

/// Path of journal file `n`.
pub fn path(state: &Path, n: usize) -> PathBuf {
    state.join(format!("journal.{n}"))
}

/// Opens the files of a journal of `bytes`, or makes and preallocates them (0600), and puts them into the store. An
/// existing journal keeps its size.
pub(super) fn open(state: &Path, bytes: u64, store: &mut Store) -> Result<(), SuperviseError> {
    let fail = |e| SuperviseError::File(format!("journal in {}", state.display()), e);
    for (n, file) in files(state, bytes).map_err(fail)?.into_iter().enumerate() {
        store.put(&format!("{}{n}", names::JOURNAL), Item { bytes: Vec::new(), fd: Some(file.into()) });
    }
    Ok(())
}

fn files(state: &Path, bytes: u64) -> io::Result<Vec<File>> {
    let open = |n| OpenOptions::new().read(true).write(true).open(path(state, n));
    let existing: Vec<File> = (0..FILES).map_while(|n| open(n).ok()).collect();
    let sizes = existing.iter().map(|f| f.metadata().map(|m| m.len())).collect::<io::Result<Vec<_>>>()?;
    if existing.len() == FILES && sizes.iter().all(|s| *s == sizes[0] && *s >= FILE_BYTES_MIN) {
        return Ok(existing);
    }
    if existing.first().map_or(Ok(true), never_used)? {
        // None yet, or their making was cut short.
        remove(state);
        return create_files(state, FILES, (bytes / FILES as u64).max(FILE_BYTES_MIN));
    }
    let text = format!("files are missing or cut; put the rest aside or see: fusefs journal list {}", state.display());
    Err(io::Error::other(text))
}

fn never_used(first: &File) -> io::Result<bool> {
    let mut head = vec![0; HEAD_BYTES];
    let n = first.read_at(&mut head, 0)?;
    Ok(head[..n].iter().all(|b| *b == 0))
}

/// Whether nothing is pending in a journal, or there is none.
pub(super) fn is_empty(state: &Path) -> bool {
    let files: Vec<File> = (0..FILES).map_while(|n| File::open(path(state, n)).ok()).collect();
    match inspect(&files) {
        Ok(summary) => summary.is_clean(),
        Err(JournalError::NoHeader) => true,
        Err(_) => files.is_empty(),
    }
}

/// Removes the files of a mount that ended with nothing left.
pub(super) fn remove(state: &Path) {
    for n in 0..FILES {
        let _ = std::fs::remove_file(path(state, n)); // made again by the next mount
    }
}
