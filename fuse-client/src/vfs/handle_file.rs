//! The file behind the table of open handles: a memfd that the keeper holds, so that a new client process knows what is
//! open (PROTOCOL 45: a handle itself needs no table; the cluster's holder questions do).
//!
//! Format (docs/FORMATS.md): 64 bytes of header, then slots of 32 bytes: inode, `unique` of the request that opened it,
//! handle, check word; all little-endian. A free slot is all zero. Written with pwrite, never mapped: a slot is one copy
//! inside the kernel, which a SIGKILL does not cut. Cost: one pwrite of 32 bytes per open and per release.

use std::{fs::File, io, os::unix::fs::FileExt};

const MAGIC: u64 = 0x6675_7365_6668_0001;
const HEADER: u64 = 64;
const SLOT: usize = 32;
/// Slots read at a time.
const BATCH: usize = 1024;

/// One open handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Inode.
    pub ino: u64,
    /// Number of the request that opened it.
    pub unique: u64,
    /// The handle.
    pub fh: u64,
}

impl Slot {
    fn check(&self) -> u64 {
        (self.ino.rotate_left(7) ^ self.unique.rotate_left(29) ^ self.fh.rotate_left(43)) | 1
    }
    fn encode(&self) -> [u8; SLOT] {
        let mut b = [0; SLOT];
        for (at, word) in [self.ino, self.unique, self.fh, self.check()].into_iter().enumerate() {
            b[at * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
        b
    }
    /// None = free, or not what any client of ours wrote.
    fn decode(b: &[u8]) -> Option<Slot> {
        let word = |at: usize| {
            let mut w = [0; 8];
            w.copy_from_slice(b.get(at * 8..at * 8 + 8)?);
            Some(u64::from_le_bytes(w))
        };
        let slot = Slot { ino: word(0)?, unique: word(1)?, fh: word(2)? };
        (word(3)? == slot.check()).then_some(slot)
    }
}

/// The slots of one mount.
#[derive(Debug)]
pub struct HandleFile {
    file: File,
    free: Vec<u32>,
    slots: u32,
}

impl HandleFile {
    /// Opens a table (an empty file is a new one) and returns what is open with the numbers of the slots.
    ///
    /// # Errors
    /// InvalidData: another version wrote it; what the file system says otherwise.
    pub fn open(file: File) -> io::Result<(HandleFile, Vec<(u32, Slot)>)> {
        let len = file.metadata()?.len();
        if len < HEADER {
            file.write_all_at(&MAGIC.to_le_bytes(), 0)?;
            file.set_len(HEADER)?;
            return Ok((HandleFile { file, free: Vec::new(), slots: 0 }, Vec::new()));
        }
        let mut magic = [0; 8];
        file.read_exact_at(&mut magic, 0)?;
        if u64::from_le_bytes(magic) != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the table of open handles is of another version"));
        }
        let slots = u32::try_from((len - HEADER).div_ceil(SLOT as u64)).unwrap_or(u32::MAX);
        let (mut free, mut used) = (Vec::new(), Vec::new());
        let mut bytes = vec![0; SLOT * BATCH];
        for first in (0..slots).step_by(BATCH) {
            let n = BATCH.min((slots - first) as usize);
            let part = &mut bytes[..n * SLOT];
            part.fill(0);
            read_up_to(&file, part, HEADER + u64::from(first) * SLOT as u64)?;
            for (i, b) in (first..).zip(part.chunks(SLOT)) {
                match Slot::decode(b) {
                    Some(slot) => used.push((i, slot)),
                    None => free.push(i),
                }
            }
        }
        free.reverse();
        Ok((HandleFile { file, free, slots }, used))
    }

    /// Writes a slot; its number. An error (memory is full) leaves nothing behind.
    pub fn insert(&mut self, slot: &Slot) -> io::Result<u32> {
        let number = match self.free.pop() {
            Some(n) => n,
            None => {
                self.slots = self.slots.checked_add(1).ok_or_else(|| io::Error::other("too many open handles"))?;
                self.slots - 1
            }
        };
        let written = self.file.write_all_at(&slot.encode(), at(number));
        if written.is_err() {
            self.free.push(number);
        }
        written.map(|()| number)
    }

    /// Frees a slot.
    pub fn remove(&mut self, number: u32) -> io::Result<()> {
        self.file.write_all_at(&[0; SLOT], at(number))?;
        self.free.push(number);
        Ok(())
    }
}

fn at(number: u32) -> u64 {
    HEADER + u64::from(number) * SLOT as u64
}

/// As `read_exact_at`, but a short file leaves the rest as it is.
fn read_up_to(file: &File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.read_at(buf, offset) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(n: u64) -> Slot {
        Slot { ino: n, unique: n * 2, fh: n << 40 | 1 << 32 }
    }

    #[test]
    fn what_is_open_survives_and_free_slots_are_used_again() {
        let file = tempfile::tempfile().unwrap();
        let (mut t, used) = HandleFile::open(file.try_clone().unwrap()).unwrap();
        assert!(used.is_empty());
        let numbers: Vec<u32> = (1..=3000).map(|n| t.insert(&slot(n)).unwrap()).collect();
        t.remove(numbers[4]).unwrap();
        t.remove(numbers[2999]).unwrap();
        drop(t);
        let (mut t, used) = HandleFile::open(file).unwrap();
        assert_eq!(used.len(), 2998);
        assert!(used.iter().all(|(i, s)| numbers[s.ino as usize - 1] == *i && *s == slot(s.ino)));
        assert_eq!(t.insert(&slot(9)).unwrap(), numbers[4]);
        assert_eq!(t.insert(&slot(10)).unwrap(), numbers[2999]);
        assert_eq!(t.insert(&slot(11)).unwrap(), 3000);
    }

    #[test]
    fn damage_is_not_taken_for_a_handle_and_foreign_files_are_refused() {
        let file = tempfile::tempfile().unwrap();
        let (mut t, _) = HandleFile::open(file.try_clone().unwrap()).unwrap();
        t.insert(&slot(1)).unwrap();
        t.insert(&slot(2)).unwrap();
        file.write_all_at(&[0xff], HEADER + 3).unwrap();
        assert_eq!(HandleFile::open(file.try_clone().unwrap()).unwrap().1, [(1, slot(2))]);
        file.write_all_at(&[0xff], 0).unwrap();
        assert!(HandleFile::open(file).is_err());
    }
}
