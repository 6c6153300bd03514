//! Names: directories, links, xattrs, listings.

use super::{Fd, Io, Plant, Step};
use rustix::fs::{self, AtFlags, CWD, Mode, RawDir, RenameFlags, XattrFlags};
use rustix::io::Errno;
use std::{mem::MaybeUninit, os::fd::AsRawFd, path::Path};

impl Io {
    /// rename(2).
    pub fn rename(&mut self, from: &Path, to: &Path) -> Step {
        if self.strikes(Plant::LostRename) {
            return Ok(());
        }
        if self.strikes(Plant::RenameTwice) {
            let _ = fs::rename(from, to); // its answer is lost
        }
        self.ok("rename", from, || fs::rename(from, to))
    }
    /// renameat2(2) with RENAME_NOREPLACE.
    pub fn rename_new(&mut self, from: &Path, to: &Path) -> Step {
        self.ok("rename", from, || fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE))
    }
    /// renameat2(2) with RENAME_NOREPLACE onto a name that exists.
    pub fn rename_refused(&mut self, from: &Path, to: &Path) -> Step {
        self.refused("rename", from, Errno::EXIST, || fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE))
    }
    /// unlink(2).
    pub fn unlink(&mut self, path: &Path) -> Step {
        if self.strikes(Plant::LostUnlink) {
            return Ok(());
        }
        if self.strikes(Plant::UnlinkTwice) {
            let _ = fs::unlink(path); // its answer is lost
        }
        self.ok("unlink", path, || fs::unlink(path))
    }
    /// mkdir(2) with mode 0755.
    pub fn mkdir(&mut self, path: &Path) -> Step {
        let mode = Mode::from_raw_mode(0o755);
        if self.strikes(Plant::MkdirTwice) {
            let _ = fs::mkdir(path, mode); // its answer is lost
        }
        self.ok("mkdir", path, || fs::mkdir(path, mode))
    }
    /// rmdir(2).
    pub fn rmdir(&mut self, path: &Path) -> Step {
        if self.strikes(Plant::LostRmdir) {
            return Ok(());
        }
        self.ok("rmdir", path, || fs::rmdir(path))
    }
    /// rmdir(2) of a directory that is not empty.
    pub fn rmdir_refused(&mut self, path: &Path) -> Step {
        self.refused("rmdir", path, Errno::NOTEMPTY, || fs::rmdir(path))
    }
    /// symlink(2).
    pub fn symlink(&mut self, target: &Path, path: &Path) -> Step {
        let mut target = target.to_path_buf();
        if self.strikes(Plant::WrongTarget) {
            target.push("x");
        }
        self.ok("symlink", path, || fs::symlink(&target, path))
    }
    /// readlink(2).
    pub fn readlink(&mut self, path: &Path) -> Step<Vec<u8>> {
        Ok(self.ok("readlink", path, || fs::readlink(path, Vec::with_capacity(256)))?.into_bytes())
    }
    /// link(2).
    pub fn link(&mut self, from: &Path, to: &Path) -> Step {
        if self.strikes(Plant::LostLink) {
            return Ok(());
        }
        self.ok("link", from, || fs::linkat(CWD, from, CWD, to, AtFlags::empty()))
    }
    /// linkat(2) of an open file that has no name.
    pub fn link_fd(&mut self, fd: &Fd, to: &Path) -> Step {
        let from = format!("/proc/self/fd/{}", fd.fd.as_raw_fd());
        self.ok("linkat", to, || fs::linkat(CWD, &from, CWD, to, AtFlags::SYMLINK_FOLLOW))
    }
    /// setxattr(2).
    pub fn set_xattr(&mut self, path: &Path, key: &str, value: &[u8], flags: XattrFlags) -> Step {
        if self.strikes(Plant::LostXattr) {
            return Ok(());
        }
        self.ok("setxattr", path, || fs::setxattr(path, key, value, flags))
    }
    /// getxattr(2): None without the attribute.
    pub fn get_xattr(&mut self, path: &Path, key: &str) -> Step<Option<Vec<u8>>> {
        let mut value = vec![0; 8192];
        match self.call("getxattr", path, false, || fs::getxattr(path, key, &mut value[..])) {
            Ok(n) => {
                value.truncate(n);
                Ok(Some(value))
            }
            Err(Errno::NODATA) => Ok(None),
            Err(e) => Err(self.error("getxattr", path, e)),
        }
    }
    /// removexattr(2).
    pub fn remove_xattr(&mut self, path: &Path, key: &str) -> Step {
        if self.strikes(Plant::KeptXattr) {
            return Ok(());
        }
        self.ok("removexattr", path, || fs::removexattr(path, key))
    }
    /// Names of all `user.` attributes, sorted.
    pub fn list_xattrs(&mut self, path: &Path) -> Step<Vec<String>> {
        let mut list = vec![0u8; 16384];
        let n = self.ok("listxattr", path, || fs::listxattr(path, &mut list[..]))?;
        let names = list[..n].split(|b| *b == 0).map(|n| String::from_utf8_lossy(n).into_owned());
        let mut names: Vec<_> = names.filter(|n| n.starts_with("user.")).collect();
        names.sort();
        Ok(names)
    }
    /// All names of an open directory, read with a small buffer so that one pass takes many calls. `between` runs before
    /// each of them.
    pub fn list(&mut self, dir: &Fd, buffer: usize, mut between: impl FnMut()) -> Step<Vec<Vec<u8>>> {
        let mut buf = vec![MaybeUninit::uninit(); buffer];
        let mut entries = RawDir::new(dir, &mut buf);
        let mut names = Vec::new();
        loop {
            let asks = entries.is_buffer_empty();
            if asks {
                between();
            }
            let next = |entries: &mut RawDir<'_, &Fd>| match entries.next() {
                None => Ok(None),
                Some(Ok(e)) => Ok(Some(e.file_name().to_bytes().to_vec())),
                Some(Err(e)) => Err(e),
            };
            let name = if asks {
                self.ok("getdents", &dir.path, || next(&mut entries))?
            } else {
                next(&mut entries).map_err(|e| self.error("getdents", &dir.path, e))?
            };
            let Some(name) = name else { return Ok(names) };
            if name == b"." || name == b".." || self.strikes(Plant::MissingName) {
                continue;
            }
            if self.strikes(Plant::DoubledName) {
                names.push(name.clone());
            }
            names.push(name);
        }
    }
}
