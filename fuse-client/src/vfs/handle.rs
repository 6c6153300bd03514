//! File handles and the table of open inodes.
//!
//! A handle is a packed word, so that a restarted client needs no handle table (PROTOCOL 45); the inode is the
//! request's nodeid. The table only counts, per inode, what is open here: it answers the cluster's holder questions.

use fusefs_types::Ino;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};

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
        u64::from(self.flags as u32) | (kind << 32) | (u64::from(self.number & 0xff_ffff) << 40)
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

/// Open inodes of this mount.
#[derive(Debug, Default)]
pub struct OpenTable {
    state: Mutex<State>,
    number: AtomicU32,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<Ino, u32>,
    /// Inodes that the cluster was told are held here: it waits to hear of their last close.
    told: HashSet<Ino>,
    /// Create-and-opens under way, whose inodes are not known yet.
    creating: u32,
}

impl OpenTable {
    /// Number for a new handle.
    pub fn next_number(&self) -> u32 {
        self.number.fetch_add(1, Ordering::Relaxed) & 0xff_ffff
    }
    /// Counts an open; call it before the cluster is asked, so that a holder question in between is answered right.
    pub fn add(&self, ino: Ino) {
        *self.state.lock().open.entry(ino).or_insert(0) += 1;
    }
    /// Takes one back; true when the cluster waits for this: it asked, was told "open here", and this was the last.
    pub fn remove(&self, ino: Ino) -> bool {
        let mut s = self.state.lock();
        match s.open.get_mut(&ino) {
            Some(n) if *n > 1 => {
                *n -= 1;
                return false;
            }
            Some(_) => _ = s.open.remove(&ino),
            None => {}
        }
        s.told.remove(&ino)
    }
    /// Takes back an open that failed. If the cluster was told of it, [`OpenTable::mistaken`] gives it later.
    pub fn abandon(&self, ino: Ino) {
        let told = self.remove(ino);
        if told {
            self.state.lock().told.insert(ino);
        }
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
    /// Marks a create-and-open as under way until the guard is dropped.
    pub fn creating(&self) -> Creating<'_> {
        self.state.lock().creating += 1;
        Creating(self)
    }
}

/// See [`OpenTable::creating`].
pub struct Creating<'a>(&'a OpenTable);

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        self.0.state.lock().creating -= 1;
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
        t.add(Ino(5));
        t.add(Ino(5));
        assert!(!t.remove(Ino(5)));
        assert!(t.holds(Ino(5)) && !t.holds(Ino(6)));
        assert!(t.remove(Ino(5)), "the cluster was told and wants to hear of the last close");
        assert!(!t.holds(Ino(5)));
        t.add(Ino(5));
        assert!(!t.remove(Ino(5)), "nobody asked");
    }

    #[test]
    fn while_creating_every_inode_may_be_ours_and_that_is_corrected() {
        let t = OpenTable::default();
        let g = t.creating();
        assert!(t.holds(Ino(6)) && t.holds(Ino(7)));
        t.add(Ino(7));
        assert!(t.mistaken().is_empty());
        drop(g);
        assert_eq!(t.mistaken(), [Ino(6)]);
        assert!(t.mistaken().is_empty());
        assert!(!t.holds(Ino(6)) && t.holds(Ino(7)));
        assert!(t.remove(Ino(7)));
    }
}
