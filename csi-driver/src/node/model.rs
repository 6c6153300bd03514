//! What the node half talks about: volumes, capabilities, requests after validation.

use super::options::MountOptions;
use crate::{Fault, valid::TEXT_BYTES_MAX};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

pub use crate::valid::AccessMode;

/// Longest path that the kernel takes.
const PATH_BYTES_MAX: usize = 4095;
/// Longest component of a subdirectory.
const NAME_BYTES_MAX: usize = 255;

/// Start of the source that mountinfo shows for our mounts; the volume's name follows.
pub const SOURCE_PREFIX: &str = "fusefs#";

/// Id of a volume as the orchestrator says it: opaque here, so no path is ever made from it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VolumeId(String);

impl VolumeId {
    /// Checks the length and refuses control characters (they would forge log lines).
    pub fn parse(text: &str) -> Result<VolumeId, Fault> {
        if text.is_empty() {
            return Err(Fault::invalid("volume_id is missing"));
        }
        if text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(Fault::invalid(format!("volume_id is not a name of at most {TEXT_BYTES_MAX} bytes")));
        }
        Ok(VolumeId(text.to_owned()))
    }
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for VolumeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Directory inside a volume: relative, without `.`, `..`, empty or overlong parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subdir(String);

impl Subdir {
    /// Empty = the volume's root.
    pub fn parse(text: &str) -> Result<Subdir, Fault> {
        if text.is_empty() {
            return Ok(Subdir::default());
        }
        let part_ok = |p: &str| {
            !p.is_empty() && p != "." && p != ".." && p.len() <= NAME_BYTES_MAX && !p.chars().any(char::is_control)
        };
        if text.len() > PATH_BYTES_MAX || !text.split('/').all(part_ok) {
            return Err(Fault::invalid("the subdirectory is not a plain relative path"));
        }
        Ok(Subdir(text.to_owned()))
    }
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// What mountinfo shows as the root of a mount of it.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/{}", self.0))
    }
}

/// A mode is recorded as its number in the specification.
mod mode {
    use super::AccessMode;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(mode: &AccessMode, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_u8(mode.code())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<AccessMode, D::Error> {
        AccessMode::from_code(u8::deserialize(from)?).ok_or_else(|| D::Error::custom("unknown access mode"))
    }
}

/// A volume capability (always of the mount kind).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// Who may use it.
    #[serde(with = "mode")]
    pub mode: AccessMode,
    /// Allowed mount options.
    pub options: MountOptions,
    /// Group that the volume's files belong to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
}

impl Capability {
    /// Nobody may write through it.
    pub fn read_only(&self) -> bool {
        self.mode.read_only() || self.options.read_only
    }
}

/// NodeStageVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageRequest {
    /// Volume.
    pub volume: VolumeId,
    /// Its name in the cluster.
    pub name: String,
    /// Where the one mount of this node goes; see [`super::paths`].
    pub staging: PathBuf,
    /// How.
    pub capability: Capability,
    /// Attach generation of the publish context.
    pub generation: u64,
}

/// NodePublishVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishRequest {
    /// Volume.
    pub volume: VolumeId,
    /// Where it is staged.
    pub staging: PathBuf,
    /// Where the pod wants it.
    pub target: PathBuf,
    /// How.
    pub capability: Capability,
    /// The pod may only read.
    pub readonly: bool,
    /// Part of the volume.
    pub subdir: Subdir,
}

impl PublishRequest {
    /// The bind mount refuses writes.
    pub fn bind_read_only(&self) -> bool {
        self.readonly || self.capability.read_only()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_subdirectories_are_refused() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for bad in ["/", "/etc", "..", "a/../b", "a/..", "./a", "a//b", "a/", "a\0b", "a\nb", "..\u{0}", &long] {
            assert!(Subdir::parse(bad).is_err(), "{bad:?}");
        }
        for good in ["", "a", "a/b", "..a", "a..", "...", "a b", "ü"] {
            assert_eq!(Subdir::parse(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn volume_ids_are_short_and_printable() {
        for bad in ["", "a\nb", "\u{7f}", &"x".repeat(TEXT_BYTES_MAX + 1)] {
            assert_eq!(VolumeId::parse(bad).unwrap_err().code, tonic::Code::InvalidArgument, "{bad:?}");
        }
        assert_eq!(VolumeId::parse("../x").unwrap().as_str(), "../x"); // opaque, never part of a path
    }
}
