//! /proc/self/mountinfo: what is mounted where, without touching any mount.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountLine {
    /// `major:minor` of the superblock (st_dev).
    pub device: String,
    /// Where.
    pub point: PathBuf,
    /// Type, e.g. `fuse.fusefs`.
    pub kind: String,
    /// Source as given to mount.
    pub source: String,
}

/// All mounts of this namespace, later ones on top.
pub fn read() -> std::io::Result<Vec<MountLine>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mount that lies on top at exactly this path.
pub fn at<'a>(lines: &'a [MountLine], point: &Path) -> Option<&'a MountLine> {
    lines.iter().rev().find(|l| l.point == point)
}

/// Parses the file; lines that do not fit are left out.
pub fn parse(text: &[u8]) -> Vec<MountLine> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
fn parse_line(line: &[u8]) -> Option<MountLine> {
    let mut words = line.split(|b| *b == b' ');
    let device = String::from_utf8(words.nth(2)?.to_vec()).ok()?;
    let point = PathBuf::from(OsString::from_vec(unescape(words.nth(1)?)));
    let mut rest = words.skip_while(|w| *w != b"-").skip(1);
    let kind = String::from_utf8_lossy(rest.next()?).into_owned();
    let source = String::from_utf8_lossy(&unescape(rest.next()?)).into_owned();
    Some(MountLine { device, point, kind, source })
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut i = 0;
    while i < word.len() {
        let octal = word.get(i + 1..i + 4).filter(|d| word[i] == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)));
        match octal {
            Some(d) => {
                out.push(d.iter().fold(0u8, |n, c| n.wrapping_mul(8).wrapping_add(c - b'0')));
                i += 4;
            }
            None => {
                out.push(word[i]);
                i += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let text = b"36 35 98:0 / /mnt\\0402 rw,noatime master:1 shared:2 - fuse.fusefs a\\134b rw,x=1\nrubbish\n\
            37 36 0:55 / /mnt\\0402 rw - tmpfs t rw\n";
        let lines = parse(text);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].point, Path::new("/mnt 2"));
        assert_eq!((&*lines[0].device, &*lines[0].kind, &*lines[0].source), ("98:0", "fuse.fusefs", "a\\b"));
        assert_eq!(at(&lines, Path::new("/mnt 2")).map(|l| &*l.device), Some("0:55"));
        assert_eq!(at(&lines, Path::new("/mnt")), None);
        for cut in 0..text.len() {
            parse(&text[..cut]);
        }
    }

    #[test]
    fn the_real_file_shows_the_root() {
        assert!(at(&read().unwrap(), Path::new("/")).is_some());
    }
}
