//! Volumes, subdirectories and nodes.

use super::text::{NODE_BYTES_MAX, TEXT_BYTES_MAX, text};
use crate::Fault;
use fusefs_types::limits;
use sha2::{Digest, Sha256};
use std::fmt;

/// Longest volume name.
const VOLUME_NAME_BYTES_MAX: usize = 63;
/// Prefix of volume names made from orchestrators' names that are no volume names.
const HASHED: &str = "csi-";
/// Digits of such a name: 130 bits.
const HASH_DIGITS: usize = 26;
/// RFC 4648 in lower case.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Name of a volume of the cluster: `[a-z0-9][a-z0-9-]{1,62}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeName(String);

impl VolumeName {
    /// Parses a name.
    pub fn parse(s: &str) -> Result<VolumeName, Fault> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let b = s.as_bytes();
        let ok = (2..=VOLUME_NAME_BYTES_MAX).contains(&b.len())
            && b.first().is_some_and(|c| plain(*c))
            && b.iter().all(|&c| plain(c) || c == b'-');
        if ok {
            return Ok(VolumeName(s.to_owned()));
        }
        Err(Fault::invalid("a volume name has 2 to 63 characters a-z, 0-9 and '-', and does not start with '-'"))
    }

    /// The volume that an orchestrator's name stands for: itself where possible (`pvc-...`), else a hash of it. The
    /// volume's record keeps the original, so that two names can never share a volume unnoticed.
    pub fn for_request(name: &str) -> Result<VolumeName, Fault> {
        text("name", name, TEXT_BYTES_MAX)?;
        match VolumeName::parse(name) {
            Ok(same) if !name.starts_with(HASHED) => Ok(same),
            _ => Ok(VolumeName(format!("{HASHED}{}", base32(&Sha256::digest(name.as_bytes()), HASH_DIGITS)))),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The first `digits` base-32 digits of `bytes`.
pub(crate) fn base32(bytes: &[u8], digits: usize) -> String {
    let bit = |n: usize| bytes.get(n / 8).map_or(0, |b| (b >> (7 - n % 8)) & 1);
    (0..digits)
        .map(|d| {
            let value = (0..5).fold(0u8, |v, i| v << 1 | bit(d * 5 + i));
            char::from(BASE32[usize::from(value & 31)])
        })
        .collect()
}

/// Directory below a volume's root: names joined by single slashes, none of them `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subdir(String);

/// Characters of a directory's name besides letters and digits of any script.
const SUBDIR_MARKS: &str = "-_.+=@,~#() ";

impl Subdir {
    /// Parses a directory. Raw segments are looked at: nothing is cleaned, decoded or expanded before or after.
    pub fn parse(s: &str) -> Result<Subdir, Fault> {
        let refuse = |why: &str| Err(Fault::invalid(format!("the subdirectory {why}")));
        if s.is_empty() || s.len() > limits::PATH_MAX {
            return refuse("is empty or too long");
        }
        for part in s.split('/') {
            if part.is_empty() || part.len() > limits::NAME_MAX {
                return refuse("has an empty or too long name, or a slash at an end");
            }
            if part.chars().all(|c| c == '.') {
                return refuse("has a name of dots only");
            }
            if part.starts_with(' ') || part.ends_with(' ') || part.starts_with('-') {
                return refuse("has a name that starts or ends with a space, or starts with '-'");
            }
            if !part.chars().all(|c| c.is_alphanumeric() || SUBDIR_MARKS.contains(c)) {
                return refuse("has characters other than letters, digits, spaces and -_.+=@,~#()");
            }
        }
        Ok(Subdir(s.to_owned()))
    }

    /// The path, relative, for a walk that stays beneath the root.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A volume id: `VOLUME`, or `VOLUME/SUB/DIRECTORY` for a part of one (static persistent volumes).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeHandle {
    /// Volume.
    pub volume: VolumeName,
    /// Directory in it.
    pub subdir: Option<Subdir>,
}

impl VolumeHandle {
    /// Parses an id.
    pub fn parse(id: &str) -> Result<VolumeHandle, Fault> {
        text("volume_id", id, TEXT_BYTES_MAX)?;
        let (volume, subdir) = match id.split_once('/') {
            Some((volume, subdir)) => (volume, Some(Subdir::parse(subdir)?)),
            None => (id, None),
        };
        Ok(VolumeHandle { volume: VolumeName::parse(volume)?, subdir })
    }
}

impl fmt::Display for VolumeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.volume.as_str())?;
        match &self.subdir {
            Some(subdir) => write!(f, "/{}", subdir.as_str()),
            None => Ok(()),
        }
    }
}

/// Name of a node: letters, digits, `-`, `_`, `.` and `:`, at most 256 bytes, first and last a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(String);

impl NodeName {
    /// Parses a node id.
    pub fn parse(s: &str) -> Result<NodeName, Fault> {
        text("node_id", s, NODE_BYTES_MAX)?;
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let inner = s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c));
        if inner && ends(s.chars().next()) && ends(s.chars().next_back()) && !s.contains("..") {
            return Ok(NodeName(s.to_owned()));
        }
        Err(Fault::invalid("node_id may have letters, digits, '-', '_', '.' and ':', a letter or digit at each end"))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orchestrators_names_become_volume_names() {
        let of = |n: &str| VolumeName::for_request(n).expect(n).0;
        assert_eq!(of("pvc-0f1e2d3c-4b5a"), "pvc-0f1e2d3c-4b5a");
        for odd in ["Upper", "a", "csi-taken", "mit Leerzeichen", "ünïcode", "../../etc", "a/b", "tab\tand\nline"] {
            let name = of(odd);
            assert!(name.starts_with("csi-") && name.len() == 30, "{odd}: {name}");
            VolumeName::parse(&name).expect("a hash is a volume name");
            assert_eq!(name, of(odd), "the same name is the same volume");
        }
        assert_ne!(of("A"), of("B"));
        assert_eq!(of(&"a".repeat(64)).len(), 30);
        for bad in ["", "nul\0", "bell\u{7}", "c1\u{85}"] {
            assert!(VolumeName::for_request(bad).is_err(), "{bad:?}");
        }
        assert!(VolumeName::for_request(&"é".repeat(65)).is_err());
        assert!(VolumeName::for_request(&"é".repeat(64)).is_ok());
    }

    #[test]
    fn base32_is_rfc4648() {
        assert_eq!(base32(b"foobar", 9), "mzxw6ytbo");
    }

    #[test]
    fn handles() {
        let h = VolumeHandle::parse("home/users/jane doe").expect("a handle");
        assert_eq!((h.volume.as_str(), h.subdir.as_ref().map(Subdir::as_str)), ("home", Some("users/jane doe")));
        assert_eq!(h.to_string(), "home/users/jane doe");
        for good in ["pvc-1", "home/a.b", "home/.hidden", "home/été/日本"] {
            assert_eq!(VolumeHandle::parse(good).expect(good).to_string(), good);
        }
    }

    #[test]
    fn nodes() {
        for good in ["n", "node-1.example.org", "ip-10-0-0-1", "A_b:1"] {
            assert_eq!(NodeName::parse(good).expect(good).as_str(), good);
        }
        for bad in ["", "-a", "a-", ".", "..", "a..b", "a/b", "a b", "a\n", "ä"] {
            assert!(NodeName::parse(bad).is_err(), "{bad:?}");
        }
        assert!(NodeName::parse(&"n".repeat(256)).is_ok() && NodeName::parse(&"n".repeat(257)).is_err());
    }
}
