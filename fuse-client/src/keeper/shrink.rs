//! A small process from a large executable: the pages of the program that only its start needed are given back.

use std::io;

/// Drops this process' view of clean, read-only file pages (the loader has touched megabytes of relocation tables, fault
/// around has mapped code that the keeper never runs). What is needed comes back from the page cache by itself. Mappings
/// with pages of our own (relocated data) stay as they are. Answers the bytes that were looked at.
pub fn give_back() -> io::Result<usize> {
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    let mut done = 0;
    for (start, end) in clean_mappings(&maps) {
        done += drop_pages(start, end)?;
    }
    Ok(done)
}

/// Address ranges of file mappings without write permission in which no page was ever written.
fn clean_mappings(smaps: &str) -> Vec<(usize, usize)> {
    let (mut found, mut last) = (Vec::new(), None);
    for line in smaps.lines() {
        match line.strip_prefix("Anonymous:") {
            Some(kib) if kib.split_ascii_whitespace().next() == Some("0") => found.extend(last.take()),
            Some(_) => last = None,
            None => last = file_mapping(line).or(last.filter(|_| line.contains("kB"))),
        }
    }
    found
}

/// `55d0-55f0 r-xp 00001000 08:01 1234   /path` of a file that is not writable there.
fn file_mapping(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (rights, inode, path) = (words.next()?, words.nth(2)?, words.next()?);
    if rights.len() != 4 || rights.contains('w') || !rights.ends_with('p') || inode == "0" || !path.starts_with('/') {
        return None;
    }
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

#[allow(unsafe_code)]
fn drop_pages(start: usize, end: usize) -> io::Result<usize> {
    let bytes = end.saturating_sub(start);
    // SAFETY: the range is one mapping of a file, private, not writable and without a page of its own, as the kernel has
    // just told; for such pages MADV_DONTNEED changes no content, the next access reads the same bytes from the file.
    let r = unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(start), bytes, libc::MADV_DONTNEED) };
    if r == 0 { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clean_read_only_file_mappings_are_taken() {
        let text = "1000-3000 r-xp 00000000 08:01 77   /bin/x\nRss: 8 kB\nAnonymous:             0 kB\nVmFlags: rd ex\n\
            3000-4000 r--p 00002000 08:01 77   /bin/x\nRss: 4 kB\nAnonymous:             4 kB\n\
            4000-5000 rw-p 00003000 08:01 77   /bin/x\nRss: 4 kB\nAnonymous:             0 kB\n\
            5000-6000 r--p 00000000 00:00 0\nRss: 4 kB\nAnonymous:             0 kB\n\
            6000-7000 r--p 00000000 00:00 0    [vvar]\nAnonymous:             0 kB\n\
            7000-8000 r--s 00000000 08:01 78   /lib/cache\nAnonymous:             0 kB\n\
            8000-9000 r--p 00000000 08:01 79   /lib/y\nRss: 0 kB\nAnonymous:             0 kB\n";
        assert_eq!(clean_mappings(text), [(0x1000, 0x3000), (0x8000, 0x9000)]);
    }

    #[test]
    fn the_process_works_afterwards() {
        assert!(give_back().unwrap() > 0);
        assert_eq!(format!("{:?}", vec![1, 2]), "[1, 2]");
    }
}
