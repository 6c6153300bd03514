//! Paths of staging and target directories: made absolute without a look at what is mounted there.

use crate::{Fault, valid::target_path};
use std::{
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// Bytes of a hash that make a name.
const HASH_BYTES: usize = 16;

/// Checks a path of a request and resolves its parent, as mountinfo shows it. The last component is never looked at: a
/// mount there may be dead or slow. `None` when the parent does not exist (then nothing is mounted there either).
pub fn resolve(field: &str, text: &str) -> Result<Option<PathBuf>, Fault> {
    let path = target_path(field, text)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Fault::invalid(format!("{field} is the root")));
    };
    match parent.canonicalize() {
        Ok(parent) => Ok(Some(parent.join(name))),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(super::io_fault(format_args!("the directory that holds {field}"), &e)),
    }
}

/// The same for a path whose parent has to exist.
pub fn existing(field: &str, text: &str) -> Result<PathBuf, Fault> {
    resolve(field, text)?.ok_or_else(|| Fault::precondition(format!("the directory that holds {field} does not exist")))
}

/// A short stable name for any bytes: files of ours are never named by what others say.
pub fn hashed(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(bytes);
    digest.iter().take(HASH_BYTES).fold(String::new(), |text, b| text + &format!("{b:02x}"))
}

/// [`hashed`] of a path.
pub fn hashed_path(path: &Path) -> String {
    hashed(path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_plain() {
        for bad in ["", "a/b", "some/path", "/", "/a/../b", "/..", "/a/./b", "/a\0b", &format!("/{}", "x".repeat(5000))]
        {
            assert_eq!(resolve("target_path", bad).unwrap_err().code, tonic::Code::InvalidArgument, "{bad:?}");
        }
        assert_eq!(resolve("target_path", "/no/such/parent/x").unwrap(), None);
        assert_eq!(existing("target_path", "/no/such/x").unwrap_err().code, tonic::Code::FailedPrecondition);
    }

    #[test]
    fn parents_are_resolved_and_the_end_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        std::os::unix::fs::symlink("/etc", real.join("end")).unwrap();
        let text = |p: PathBuf| p.to_str().unwrap().to_owned();
        assert_eq!(existing("x", &text(real.join("link/new"))).unwrap(), real.join("new"));
        assert_eq!(existing("x", &text(real.join("end"))).unwrap(), real.join("end"));
    }
}
