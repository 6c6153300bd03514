//! Sizes and characters of plain fields. Messages never repeat a value: it may be hostile or secret.

use crate::Fault;
use fusefs_types::limits;
use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
};

/// Longest string of the interface in bytes, unless a field says otherwise.
pub const TEXT_BYTES_MAX: usize = 128;
/// Longest node id in bytes.
pub const NODE_BYTES_MAX: usize = 256;
/// All keys and values of one map, and all mount flags together, in bytes.
pub const MAP_BYTES_MAX: usize = 4 << 10;

/// Refuses an empty required field.
pub fn present(field: &str, value: &str) -> Result<(), Fault> {
    if value.is_empty() { Err(Fault::invalid(format!("{field} is required"))) } else { Ok(()) }
}

/// Control characters that the interface bans from names; white space is allowed.
fn banned(c: char) -> bool {
    c.is_control() && !matches!(c, '\t' | '\n' | '\r')
}

/// A required string of at most `max` bytes without control characters.
pub fn text(field: &str, value: &str, max: usize) -> Result<(), Fault> {
    present(field, value)?;
    if value.len() > max {
        return Err(Fault::invalid(format!("{field} is longer than {max} bytes")));
    }
    if value.chars().any(banned) {
        return Err(Fault::invalid(format!("{field} has control characters")));
    }
    Ok(())
}

/// Refuses a map above the interface's limit. Works for secrets, too: nothing of the contents is repeated.
pub fn map_size(field: &str, map: &HashMap<String, String>) -> Result<(), Fault> {
    let bytes: usize = map.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes > MAP_BYTES_MAX {
        return Err(Fault::invalid(format!("{field} has {bytes} bytes, at most {MAP_BYTES_MAX} are allowed")));
    }
    Ok(())
}

/// An absolute path of the orchestrator: no `.`, no `..`, no doubled slash, no control character, not the root itself.
pub fn target_path(field: &str, value: &str) -> Result<PathBuf, Fault> {
    present(field, value)?;
    let refuse = |why: &str| Err(Fault::invalid(format!("{field} {why}")));
    if value.len() > limits::PATH_MAX {
        return refuse("is too long for a path");
    }
    if value.chars().any(char::is_control) {
        return refuse("has control characters");
    }
    let path = Path::new(value);
    let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    // `components` hides `.` and doubled slashes; kubelet never sends them.
    let clean = value.trim_end_matches('/').split('/').skip(1).all(|p| !matches!(p, "" | "." | ".."));
    if !value.starts_with('/') || !plain || !clean || path.components().count() < 2 {
        return refuse("must be an absolute path without `.`, `..` and doubled slashes");
    }
    if path.components().any(|c| c.as_os_str().len() > limits::NAME_MAX) {
        return refuse("has a component that is longer than a file name can be");
    }
    Ok(path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_paths() {
        for good in ["/a", "/var/lib/kubelet/pods/1/volumes/x/mount", "/a/", "/a/b c"] {
            assert!(target_path("target_path", good).is_ok(), "{good}");
        }
        for bad in ["", "/", "//", "a", "./a", "/a/../b", "/a/./b", "/a//b", "/..", "/a/..", "/a\0b", "/a\nb", "//a"] {
            assert_eq!(target_path("target_path", bad).expect_err(bad).code, tonic::Code::InvalidArgument);
        }
        assert!(target_path("target_path", &format!("/{}", "a".repeat(256))).is_err());
        assert!(target_path("target_path", &"/aaaaaaa".repeat(600)).is_err());
    }

    #[test]
    fn maps_have_a_size() {
        let map = |n: usize| HashMap::from([("k".to_owned(), "v".repeat(n))]);
        assert!(map_size("parameters", &map(MAP_BYTES_MAX - 1)).is_ok());
        let refused = map_size("secrets", &map(MAP_BYTES_MAX)).expect_err("too large");
        assert!(!refused.message.contains("vvv"));
    }
}
