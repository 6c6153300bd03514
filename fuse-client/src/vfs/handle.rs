//! File handles and the table of open inodes.
//!
//! A handle is a packed word, so that a restarted client needs no handle table (PROTOCOL 45); the inode is the
//! request's nodeid. The table only counts, per inode, what is open here: it answers the cluster's holder questions.

use super::handle_file::{HandleFile, Slot};
use fusefs_types::Ino;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::Notify;

/// Bits of a handle's number.
const NUMBER_MASK: u32 = 0xff_ffff;

/// What a handle was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandleKind {
    /// open, create
    File,
    /// opendir
    Directory,
}

/// A packed handle: bits 0..32 open flags, 32..34 kind (1 file, 2 directory), 40..64 a number that tells soft state of
/// different opens apart (read-ahead of directory listings); losing that state costs only a repeated question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    /// Open flags as given by the kernel.
    pub flags: i32,
    /// Kind.
    pub kind: HandleKind,
    /// 24-bit number.
    pub number: u32,
}

impl Handle {
    /// The word that the kernel keeps.
    pub fn pack(self) -> u64 {
        let kind = match self.kind {
            HandleKind::File => 1u64,
            HandleKind::Directory => 2,
        };
        u64::from(self.flags as u32) | (kind << 32) | (u64::from(self.number & NUMBER_MASK) << 40)
    }
    /// From a word; None if no client of ours made it.
    pub fn unpack(fh: u64) -> Option<Handle> {
        let kind = match (fh >> 32) & 0xff {
            1 => HandleKind::File,
            2 => HandleKind::Directory,
            _ => return None,
        };
        Some(Handle { flags: fh as u32 as i32, kind, number: (fh >> 40) as u32 })
    }
    /// Opened for writing.
    pub fn writes(self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }
}

/// Open inodes of this mount. With a file behind it ([`HandleFile`]) it survives the process.
#[derive(Debug, Default)]
pub struct OpenTable {
    state: Mutex<State>,
    /// Something is in [`OpenTable::mistaken`], perhaps.
    corrected: Notify,
}

/// One open handle: the request that made it and its slot in the file.
#[derive(Debug, Clone, Copy)]
struct OpenHandle {
    fh: u64,
    unique: u64,
    slot: Option<u32>,
}

#[derive(Debug, Default)]
struct State {
    /// Per inode: handles, and opens under way.
    open: HashMap<Ino, (Vec<OpenHandle>, u32)>,
    /// Inodes that the cluster was told are held here: it waits to hear of their last close.
    told: HashSet<Ino>,
    /// Create-and-opens under way, whose inodes are not known yet, and requests of an earlier process that may be such.
    creating: u32,
    file: Option<HandleFile>,
}

impl State {
    fn insert(&mut self, ino: Ino, mut handle: OpenHandle) {
        if let Some(file) = &mut self.file {
            let slot = Slot { ino: ino.0, unique: handle.unique, fh: handle.fh };
            match file.insert(&slot) {
                Ok(n) => handle.slot = Some(n),
                // Worst case: after a restart of this process an unlinked open file is freed too early.
                Err(error) => tracing::error!(%ino, %error, "an open handle will not survive a restart of the client"),
            }
        }
        self.open.entry(ino).or_default().0.push(handle);
    }
    /// Takes a handle out; whether it was there.
    fn remove(&mut self, ino: Ino, chosen: impl Fn(&OpenHandle) -> bool) -> bool {
        let Some((handles, _)) = self.open.get_mut(&ino) else { return false };
        let Some(at) = handles.iter().position(chosen) else { return false };
        let handle = handles.swap_remove(at);
        if let (Some(slot), Some(file)) = (handle.slot, &mut self.file)
            && let Err(error) = file.remove(slot)
        {
            tracing::error!(%ino, %error, "a closed handle will look open after a restart of the client");
        }
        true
    }
    /// The last handle of an inode went: whether the cluster waits for that.
    fn closed(&mut self, ino: Ino) -> bool {
        match self.open.get(&ino) {
            Some((handles, opening)) if !handles.is_empty() || *opening > 0 => false,
            _ => {
                self.open.remove(&ino);
                self.told.remove(&ino)
            }
        }
    }
}

impl OpenTable {
    /// A table over a file that an earlier process of this mount may have left. What is open is held, and since nobody
    /// knows which of it the cluster was told of, it hears of every last close.
    ///
    /// # Errors
    /// See [`HandleFile::open`].
    pub fn restore(file: std::fs::File) -> std::io::Result<OpenTable> {
        let (file, used) = HandleFile::open(file)?;
        let mut state = State { file: Some(file), ..State::default() };
        for (n, slot) in used {
            let handle = OpenHandle { fh: slot.fh, unique: slot.unique, slot: Some(n) };
            state.open.entry(Ino(slot.ino)).or_default().0.push(handle);
            state.told.insert(Ino(slot.ino));
        }
        Ok(OpenTable { state: Mutex::new(state), corrected: Notify::new() })
    }
    /// Counts an open; call it before the cluster is asked, so that a holder question in between is answered right.
    pub fn opening(&self, ino: Ino) {
        self.state.lock().open.entry(ino).or_default().1 += 1;
    }
    /// Takes back an [`OpenTable::opening`] that failed. If the cluster was told of it, [`OpenTable::mistaken`] gives it
    /// later.
    pub fn abandon(&self, ino: Ino) {
        let mut s = self.state.lock();
        if let Some((_, opening)) = s.open.get_mut(&ino) {
            *opening = opening.saturating_sub(1);
        }
        if s.closed(ino) {
            s.told.insert(ino);
            self.corrected.notify_one();
        }
    }
    /// An open that the kernel sent again has failed: the handle that an earlier process may have made for the request
    /// `unique` belongs to nobody.
    pub fn disown(&self, unique: u64) {
        let mut s = self.state.lock();
        let made = |handles: &[OpenHandle]| handles.iter().any(|h| h.unique == unique && unique != 0);
        let Some(ino) = s.open.iter().find(|(_, (handles, _))| made(handles)).map(|(ino, _)| *ino) else { return };
        if s.remove(ino, |h| h.unique == unique) && s.closed(ino) {
            s.told.insert(ino);
            self.corrected.notify_one();
        }
    }
    /// The last close of this inode will be told to the cluster, which counts on it.
    pub fn awaited(&self, ino: Ino) {
        self.state.lock().told.insert(ino);
    }
    /// Makes the handle of an open that the request `unique` asked for; `was_opening` = [`OpenTable::opening`] was called.
    /// The same request gets the same handle again, also from a later process: a resent open is one open.
    pub fn opened(&self, ino: Ino, flags: i32, unique: u64, was_opening: bool) -> u64 {
        let mut s = self.state.lock();
        let entry = s.open.entry(ino).or_default();
        entry.1 -= u32::from(was_opening && entry.1 > 0);
        if let Some(known) = entry.0.iter().find(|h| h.unique == unique && unique != 0) {
            return known.fh;
        }
        // Numbers of requests are even.
        let mut handle = Handle { flags, kind: HandleKind::File, number: (unique >> 1) as u32 & NUMBER_MASK };
        while entry.0.iter().any(|h| h.fh == handle.pack()) {
            handle.number = handle.number.wrapping_add(1) & NUMBER_MASK;
        }
        let fh = handle.pack();
        s.insert(ino, OpenHandle { fh, unique, slot: None });
        fh
    }
    /// A handle is released; true when the cluster waits for this: it asked, was told "open here", and this was the last.
    /// Releasing it again (a resent release) does nothing.
    pub fn release(&self, ino: Ino, fh: u64) -> bool {
        let mut s = self.state.lock();
        s.remove(ino, |h| h.fh == fh) && s.closed(ino)
    }
    /// Whether a handle of the inode is open, or an open is under way.
    pub fn is_open(&self, ino: Ino) -> bool {
        self.state.lock().open.contains_key(&ino)
    }
    /// Whether the inode is open. While a create-and-open is under way its inode number is not known yet, so every
    /// answer is "yes" then; [`OpenTable::mistaken`] corrects it.
    pub fn holds(&self, ino: Ino) -> bool {
        let mut s = self.state.lock();
        let held = s.creating > 0 || s.open.contains_key(&ino);
        if held {
            s.told.insert(ino);
        }
        held
    }
    /// Inodes that the cluster was told are open here but are not, once nothing is being created. Each is given once:
    /// the caller sends a close for it.
    pub fn mistaken(&self) -> Vec<Ino> {
        let mut s = self.state.lock();
        if s.creating > 0 || s.told.is_empty() {
            return Vec::new();
        }
        let State { open, told, .. } = &mut *s;
        let mut wrong: Vec<Ino> = told.iter().filter(|i| !open.contains_key(i)).copied().collect();
        wrong.sort();
        told.retain(|i| open.contains_key(i));
        wrong
    }
    /// Number of open inodes.
    pub fn len(&self) -> usize {
        self.state.lock().open.len()
    }
    /// Nothing is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Returns when [`OpenTable::mistaken`] may have something.
    pub async fn wait_mistaken(&self) {
        self.corrected.notified().await;
    }
    /// Marks a create-and-open as under way until the guard is dropped.
    pub fn creating(self: &Arc<Self>) -> Creating {
        self.state.lock().creating += 1;
        Creating(self.clone())
    }
}

/// See [`OpenTable::creating`].
#[derive(Debug)]
pub struct Creating(Arc<OpenTable>);

impl Drop for Creating {
    fn drop(&mut self) {
        let mut s = self.0.state.lock();
        s.creating -= 1;
        if s.creating == 0 && !s.told.is_empty() {
            self.0.corrected.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_survive_packing() {
        for flags in [0, libc::O_RDWR | libc::O_APPEND, libc::O_WRONLY | libc::O_DIRECT | libc::O_SYNC, i32::MIN, -1] {
            for kind in [HandleKind::File, HandleKind::Directory] {
                let h = Handle { flags, kind, number: 0xab_cdef };
                assert_eq!(Handle::unpack(h.pack()), Some(h));
            }
        }
        assert_eq!(Handle::unpack(0), None);
        assert_eq!(Handle::unpack(u64::MAX), None);
    }

    #[test]
    fn an_inode_is_held_from_first_open_to_last_close() {
        let t = OpenTable::default();
        t.opening(Ino(5));
        assert!(t.holds(Ino(5)) && !t.holds(Ino(6)));
        let (a, b) = (t.opened(Ino(5), 0, 2, true), t.opened(Ino(5), 0, 4, false));
        assert!(!t.release(Ino(5), a));
        assert!(!t.release(Ino(5), a), "releasing again is nothing");
        assert!(t.release(Ino(5), b), "the cluster was told and wants to hear of the last close");
        assert!(!t.holds(Ino(5)));
        let c = t.opened(Ino(5), 0, 6, false);
        assert!(!t.release(Ino(5), c), "nobody asked");
    }

    #[test]
    fn while_creating_every_inode_may_be_ours_and_that_is_corrected() {
        let t = Arc::new(OpenTable::default());
        let g = t.creating();
        assert!(t.holds(Ino(6)) && t.holds(Ino(7)));
        let fh = t.opened(Ino(7), 0, 2, false);
        assert!(t.mistaken().is_empty());
        drop(g);
        assert_eq!(t.mistaken(), [Ino(6)]);
        assert!(t.mistaken().is_empty());
        assert!(!t.holds(Ino(6)) && t.holds(Ino(7)));
        assert!(t.release(Ino(7), fh));
    }

    #[test]
    fn a_failed_open_of_which_the_cluster_heard_is_corrected() {
        let t = OpenTable::default();
        t.opening(Ino(8));
        assert!(t.holds(Ino(8)));
        t.abandon(Ino(8));
        assert!(t.is_empty());
        assert_eq!(t.mistaken(), [Ino(8)]);
    }

    #[test]
    fn the_handle_of_a_resent_open_that_fails_goes() {
        let file = tempfile::tempfile().unwrap();
        let t = OpenTable::restore(file.try_clone().unwrap()).unwrap();
        t.opened(Ino(5), 0, 10, false);
        let kept = t.opened(Ino(6), 0, 12, false);
        drop(t);
        let t = OpenTable::restore(file.try_clone().unwrap()).unwrap();
        t.disown(14);
        assert_eq!(t.len(), 2, "of a request that was never here");
        t.opening(Ino(5));
        t.disown(10);
        assert!(t.holds(Ino(5)), "the open is still under way");
        t.abandon(Ino(5));
        assert_eq!(t.mistaken(), [Ino(5)]);
        drop(t);
        let t = OpenTable::restore(file).unwrap();
        assert_eq!(t.len(), 1, "it does not come back");
        assert!(t.release(Ino(6), kept));
    }

    #[test]
    fn handles_survive_the_process_and_a_resent_open_is_one_open() {
        let file = tempfile::tempfile().unwrap();
        let t = OpenTable::restore(file.try_clone().unwrap()).unwrap();
        let (a, b) = (t.opened(Ino(5), 2, 10, false), t.opened(Ino(5), 2, 10 + (2 << 24), false));
        let c = t.opened(Ino(6), 2, 12, false);
        assert_ne!(a, b, "numbers that wrapped around are told apart");
        t.release(Ino(6), c);
        drop(t);
        let t = OpenTable::restore(file.try_clone().unwrap()).unwrap();
        assert_eq!(t.opened(Ino(5), 2, 10, false), a, "the resent request");
        assert_eq!(t.opened(Ino(5), 2, 10 + (2 << 24), false), b);
        assert_eq!(t.len(), 1);
        assert!(!t.release(Ino(6), c), "a resent release");
        assert!(!t.release(Ino(5), a));
        drop(t);
        let t = OpenTable::restore(file).unwrap();
        assert!(!t.release(Ino(5), a));
        assert!(t.release(Ino(5), b), "whether the cluster was told is not known, so it is told");
    }
}
