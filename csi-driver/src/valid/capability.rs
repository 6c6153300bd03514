//! Volume capabilities and capacity ranges.

use super::{MountOptions, text::TEXT_BYTES_MAX};
use crate::Fault;
use fusefs_proto::csi::{self, volume_capability::AccessType};
pub use fusefs_types::cluster::AccessMode;

/// Most capabilities in one request.
const CAPABILITIES_MAX: usize = 64;
/// Largest volume in bytes: 1 EiB.
const CAPACITY_BYTES_MAX: u64 = 1 << 60;
/// File systems that a StorageClass may name; ours has one.
const FS_TYPES: &[&str] = &["", "fusefs"];

/// How a volume is to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Access mode.
    pub mode: AccessMode,
    /// Mount options.
    pub options: MountOptions,
    /// Group that files belong to.
    pub group: Option<u32>,
}

impl Capability {
    /// Parses a required capability.
    pub fn parse(capability: Option<&csi::VolumeCapability>) -> Result<Capability, Fault> {
        let Some(c) = capability else { return Err(Fault::invalid("volume_capability is required")) };
        let mount = match &c.access_type {
            Some(AccessType::Mount(m)) => m,
            Some(AccessType::Block(_)) => {
                return Err(Fault::invalid("fusefs volumes are file systems: block access is not supported"));
            }
            None => return Err(Fault::invalid("volume_capability has no access type")),
        };
        let mode = c.access_mode.as_ref().map_or(0, |m| m.mode);
        let Some(mode) = u8::try_from(mode).ok().and_then(AccessMode::from_code) else {
            return Err(Fault::invalid("volume_capability has no or an unknown access mode"));
        };
        if mount.fs_type.len() > TEXT_BYTES_MAX || !FS_TYPES.contains(&mount.fs_type.as_str()) {
            return Err(Fault::invalid("fs_type must be empty or fusefs"));
        }
        let group = match mount.volume_mount_group.as_str() {
            "" => None,
            g => Some(group(g)?),
        };
        Ok(Capability { mode, options: MountOptions::parse(&mount.mount_flags)?, group })
    }

    /// Parses a required list of capabilities.
    pub fn parse_all(list: &[csi::VolumeCapability]) -> Result<Vec<Capability>, Fault> {
        if list.is_empty() {
            return Err(Fault::invalid("volume_capabilities are required"));
        }
        if list.len() > CAPABILITIES_MAX {
            return Err(Fault::invalid(format!("at most {CAPABILITIES_MAX} volume_capabilities")));
        }
        list.iter().map(|c| Capability::parse(Some(c))).collect()
    }

    /// Whether pods may only read.
    pub fn read_only(&self) -> bool {
        self.mode.read_only() || self.options.read_only
    }
}

fn group(g: &str) -> Result<u32, Fault> {
    let digits = g.len() <= 10 && g.bytes().all(|b| b.is_ascii_digit());
    // u32::MAX means "unchanged" to the kernel.
    g.parse::<u32>()
        .ok()
        .filter(|n| digits && *n != u32::MAX)
        .ok_or_else(|| Fault::invalid("volume_mount_group must be the number of a group"))
}

/// Sizes that a volume may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapacityRange {
    /// At least; 0 = anything.
    pub required: u64,
    /// At most; `u64::MAX` = anything.
    pub limit: u64,
}

impl CapacityRange {
    /// Parses a range; a missing one allows every size.
    pub fn parse(range: Option<&csi::CapacityRange>) -> Result<CapacityRange, Fault> {
        let Some(r) = range else { return Ok(CapacityRange { required: 0, limit: u64::MAX }) };
        let (Ok(required), Ok(limit)) = (u64::try_from(r.required_bytes), u64::try_from(r.limit_bytes)) else {
            return Err(Fault::invalid("capacity_range has a negative size"));
        };
        let limit = if limit == 0 { u64::MAX } else { limit };
        if limit < required {
            return Err(Fault::invalid("capacity_range has a limit below the required size"));
        }
        if required > CAPACITY_BYTES_MAX {
            return Err(Fault::out_of_range(format!("volumes have at most {CAPACITY_BYTES_MAX} bytes")));
        }
        Ok(CapacityRange { required, limit })
    }

    /// Size of a new volume; 0 = unlimited. The same range gives the same size.
    pub fn choose(self) -> u64 {
        match (self.required, self.limit) {
            (0, u64::MAX) => 0,
            (0, limit) => limit.min(CAPACITY_BYTES_MAX),
            (required, _) => required,
        }
    }

    /// Whether a volume of `capacity` (0 = unlimited) is what was asked for.
    pub fn contains(self, capacity: u64) -> bool {
        if capacity == 0 { self.limit == u64::MAX } else { (self.required..=self.limit).contains(&capacity) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn range(required_bytes: i64, limit_bytes: i64) -> Result<CapacityRange, Fault> {
        CapacityRange::parse(Some(&csi::CapacityRange { required_bytes, limit_bytes }))
    }

    #[test]
    fn ranges() {
        for (required, limit, chosen) in [(0, 0, 0), (5, 0, 5), (0, 7, 7), (5, 7, 5), (5, 5, 5), (0, i64::MAX, 1 << 60)]
        {
            let r = range(required, limit).expect("valid");
            assert_eq!(r.choose(), chosen);
            assert!(r.contains(r.choose()), "{required} {limit}");
        }
        for (required, limit, code) in [
            (-1, 0, Code::InvalidArgument),
            (0, -1, Code::InvalidArgument),
            (7, 5, Code::InvalidArgument),
            (i64::MIN, i64::MIN, Code::InvalidArgument),
            (i64::MAX, 0, Code::OutOfRange),
        ] {
            assert_eq!(range(required, limit).expect_err("refused").code, code, "{required} {limit}");
        }
        assert!(!range(5, 7).expect("valid").contains(8) && !range(5, 7).expect("valid").contains(0));
    }

    #[test]
    fn groups() {
        assert_eq!(group("1000"), Ok(1000));
        for bad in ["-1", "+1", "root", "4294967295", "4294967296", "00000000001", "1 ", "١"] {
            assert!(group(bad).is_err(), "{bad}");
        }
    }
}
