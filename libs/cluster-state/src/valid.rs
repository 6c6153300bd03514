//! Checks of what people type: names, sizes, labels. Each refusal says what is allowed.

use crate::command::{Reject, reject};
use fusefs_types::{
    FsError,
    cluster::{NodeRecord, StoreKind, StoreRecord, VolumeSpec},
    limits,
};

/// Most labels of a volume.
pub const LABELS_MAX: usize = 64;
/// Longest label key or value in bytes.
pub const LABEL_BYTES_MAX: usize = 1024;
/// Longest text field of a record in bytes.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Most replicas of a partition.
pub const REPLICAS_MAX: u32 = 7;

/// Volume and store names: `[a-z0-9][a-z0-9-]{1,62}`.
pub fn name(what: &str, name: &str) -> Result<(), Reject> {
    let b = name.as_bytes();
    let plain = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ok = (2..=63).contains(&b.len()) && b.first().is_some_and(plain) && b.iter().all(|c| plain(c) || *c == b'-');
    if ok {
        return Ok(());
    }
    reject(
        FsError::Invalid,
        format!(
            "{what} name {:?} is not allowed: 2 to 63 characters a-z, 0-9 and '-', not starting with '-'",
            clip(name)
        ),
    )
}

/// Volume parameters.
pub fn spec(s: &VolumeSpec) -> Result<(), Reject> {
    name("volume", &s.name)?;
    if s.partitions > limits::PARTITIONS_MAX {
        return reject(FsError::Invalid, format!("at most {} partitions per volume", limits::PARTITIONS_MAX));
    }
    if s.replicas > REPLICAS_MAX {
        return reject(FsError::Invalid, format!("at most {REPLICAS_MAX} replicas per partition"));
    }
    let labels_ok = s.labels.len() <= LABELS_MAX
        && s.labels.iter().all(|(k, v)| !k.is_empty() && k.len() <= LABEL_BYTES_MAX && v.len() <= LABEL_BYTES_MAX);
    if !labels_ok {
        return reject(
            FsError::Invalid,
            format!("at most {LABELS_MAX} labels with keys and values of at most {LABEL_BYTES_MAX} bytes"),
        );
    }
    Ok(())
}

/// Store parameters, before anything is contacted.
pub fn store(s: &StoreRecord) -> Result<(), Reject> {
    name("store", &s.name)?;
    for (what, text) in [
        ("endpoint", &s.endpoint),
        ("region", &s.region),
        ("bucket", &s.bucket),
        ("prefix", &s.prefix),
        ("credential", &s.credential),
    ] {
        if text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
            return reject(FsError::Invalid, format!("the store's {what} is too long or has control characters"));
        }
    }
    let parts_ok = s.prefix.is_empty() || s.prefix.split('/').all(|p| !p.is_empty() && p != "." && p != "..");
    if !parts_ok {
        return reject(FsError::Invalid, "the store's prefix must look like 'a/b', without slashes at the ends");
    }
    match s.kind {
        StoreKind::S3 if s.bucket.is_empty() => reject(FsError::Invalid, "an S3 store needs a bucket"),
        StoreKind::Dir if !s.endpoint.starts_with('/') => {
            reject(FsError::Invalid, "a directory store needs an absolute path as its endpoint")
        }
        _ => Ok(()),
    }
}

/// Metanode record.
pub fn node(n: &NodeRecord) -> Result<(), Reject> {
    let port = n.addr.rsplit_once(':').map(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if n.id.0 == 0 || port != Some(true) || n.addr.len() > 300 || n.host.len() > 300 {
        return reject(FsError::Invalid, "a metanode registers with its id and its host:port");
    }
    Ok(())
}

/// At most 60 characters of a text from outside, for messages.
pub fn clip(s: &str) -> String {
    s.chars().take(60).collect()
}
