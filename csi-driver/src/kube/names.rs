//! Names of fuse pods, and what marks a pod as one.

use crate::valid::base32;
use sha2::{Digest, Sha256};

/// Start of a fuse pod's name.
const PREFIX: &str = "fusefs-";
/// Digits after it: 130 bits.
const DIGITS: usize = 26;

/// Label and value that every fuse pod has.
pub const LABEL_COMPONENT: (&str, &str) = ("app.kubernetes.io/component", "fuse-pod");
/// The other one: who made it.
pub const LABEL_MANAGER: (&str, &str) = ("app.kubernetes.io/managed-by", crate::DRIVER_NAME);
/// Annotation: id of the volume. Ids are no label values.
pub const VOLUME: &str = "fusefs.io/volume";
/// Annotation: number of the volume, which is never used twice.
pub const VOLUME_NUMBER: &str = "fusefs.io/volume-number";
/// Annotation: node.
pub const NODE: &str = "fusefs.io/node";
/// Annotation of a pod whose image was changed: how often its container had been started before.
pub const RESTARTS: &str = "fusefs.io/restarts-before-update";

/// Name of the pod that serves `volume` (an id) on `node`. The same through detaching and attaching again, so that a pod that
/// somebody deleted comes back under its name and two creators cannot make two.
pub fn pod_name(node: &str, volume: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(node.as_bytes());
    hash.update([0]);
    hash.update(volume.as_bytes());
    format!("{PREFIX}{}", base32(&hash.finalize(), DIGITS))
}

/// What lists fuse pods.
pub fn selector() -> String {
    [LABEL_COMPONENT, LABEL_MANAGER].map(|(key, value)| format!("{key}={value}")).join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_separate_node_and_volume() {
        let name = pod_name("node-1", "pvc-1");
        assert_eq!(name, "fusefs-5i3bwaigo4jgr5hczrnzrpp26r");
        assert_eq!(name.len(), PREFIX.len() + DIGITS);
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
        assert_ne!(pod_name("a", "bc"), pod_name("ab", "c"));
        assert_ne!(pod_name("a", "b"), pod_name("b", "a"));
        assert_eq!(pod_name(&"n".repeat(256), &"v/".repeat(60)).len(), name.len());
    }
}
