//! Parameters of a StorageClass.

use super::{VolumeName, text::map_size};
use crate::Fault;
use fusefs_types::limits;
use std::collections::{BTreeMap, HashMap};

/// Keys of this prefix come from the orchestrator's provisioner. The three known ones become labels, others are ignored
/// so that a newer provisioner does not stop working.
const ORCHESTRATOR: &str = "csi.storage.k8s.io/";
/// Known keys of the provisioner and the labels they become.
const CLAIM: &[(&str, &str)] = &[
    ("csi.storage.k8s.io/pvc/name", "csi.fusefs.io/claim"),
    ("csi.storage.k8s.io/pvc/namespace", "csi.fusefs.io/namespace"),
    ("csi.storage.k8s.io/pv/name", "csi.fusefs.io/persistent-volume"),
];
/// Longest name of a claim, namespace or persistent volume.
const CLAIM_BYTES_MAX: usize = 253;
/// Most replicas per partition.
const REPLICAS_MAX: u32 = 7;
/// Most inodes of a volume.
const INODES_MAX: u64 = 1 << 48;

/// What a volume is made with besides its name and size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// Object store by name; empty = the only one.
    pub store: String,
    /// Inodes, 0 = unlimited.
    pub inodes: u64,
    /// Metadata partitions, 0 = default.
    pub partitions: u32,
    /// Replicas of each, 0 = default.
    pub replicas: u32,
    /// Who asked, for people: (label, value).
    pub claim: Vec<(String, String)>,
}

impl Parameters {
    /// Parses `parameters`, over which `mutable` wins. Unknown keys are refused: a typing error in a StorageClass must
    /// not give a volume other than the one that was meant.
    pub fn parse(parameters: &HashMap<String, String>, mutable: &HashMap<String, String>) -> Result<Parameters, Fault> {
        map_size("parameters", parameters)?;
        map_size("mutable_parameters", mutable)?;
        let merged: BTreeMap<&str, &str> =
            parameters.iter().chain(mutable).map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let mut out = Parameters::default();
        for (key, value) in merged {
            match key {
                "store" => out.store = store(value)?,
                "inodes" => out.inodes = number(key, value, INODES_MAX)?,
                "partitions" => out.partitions = small(key, value, limits::PARTITIONS_MAX)?,
                "replicas" => out.replicas = small(key, value, REPLICAS_MAX)?,
                _ if key.starts_with(ORCHESTRATOR) => out.claim.extend(claim(key, value)?),
                _ => {
                    return Err(Fault::invalid(
                        "unknown parameter in the StorageClass; known are store, inodes, partitions and replicas",
                    ));
                }
            }
        }
        Ok(out)
    }

    /// What two requests for one volume must agree on, as one line. Never changes its form: it is kept with the volume.
    pub fn canonical(&self) -> String {
        format!("store={} inodes={} partitions={} replicas={}", self.store, self.inodes, self.partitions, self.replicas)
    }
}

fn store(value: &str) -> Result<String, Fault> {
    VolumeName::parse(value)
        .map(|n| n.as_str().to_owned())
        .map_err(|_| Fault::invalid("the parameter store must be the name of an object store"))
}

fn claim(key: &str, value: &str) -> Result<Option<(String, String)>, Fault> {
    let Some((_, label)) = CLAIM.iter().find(|(k, _)| *k == key) else { return Ok(None) };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if value.is_empty() || value.len() > CLAIM_BYTES_MAX || !value.chars().all(plain) {
        return Err(Fault::invalid(format!("the parameter {key} is no name of an object")));
    }
    Ok(Some(((*label).to_owned(), value.to_owned())))
}

fn number(key: &str, value: &str, most: u64) -> Result<u64, Fault> {
    let digits = !value.is_empty() && value.len() <= 20 && value.bytes().all(|b| b.is_ascii_digit());
    value
        .parse::<u64>()
        .ok()
        .filter(|n| digits && *n <= most)
        .ok_or_else(|| Fault::invalid(format!("the parameter {key} must be a number of at most {most}")))
}

fn small(key: &str, value: &str, most: u32) -> Result<u32, Fault> {
    let n = number(key, value, u64::from(most))?;
    u32::try_from(n).map_err(|_| Fault::invalid(format!("the parameter {key} is too large")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn known_keys() {
        let p = Parameters::parse(
            &map(&[
                ("store", "main"),
                ("inodes", "1000"),
                ("replicas", "3"),
                ("csi.storage.k8s.io/pvc/name", "data"),
                ("csi.storage.k8s.io/tomorrow", "whatever"),
            ]),
            &map(&[("inodes", "2000")]),
        )
        .expect("known");
        assert_eq!(p.canonical(), "store=main inodes=2000 partitions=0 replicas=3");
        assert_eq!(p.claim, [("csi.fusefs.io/claim".to_owned(), "data".to_owned())]);
    }

    #[test]
    fn everything_else_is_refused() {
        for (key, value) in [
            ("Store", "main"),
            ("", ""),
            ("store", "../x"),
            ("store", ""),
            ("inodes", "-1"),
            ("inodes", "1e9"),
            ("inodes", ""),
            ("inodes", "99999999999999999999"),
            ("partitions", "1025"),
            ("replicas", "8"),
            ("password", "hunter2"),
            ("csi.storage.k8s.io/pvc/name", "../.."),
            ("csi.storage.k8s.io/pvc/name", "a\nb"),
        ] {
            let refused = Parameters::parse(&map(&[(key, value)]), &HashMap::new()).expect_err(key);
            assert_eq!(refused.code, tonic::Code::InvalidArgument, "{key}");
            assert!(!refused.message.contains("hunter2"));
        }
    }
}
