//! Rights to mount volumes on nodes.

use crate::{convert::common::text, master::v1 as pb};
use fusefs_types::{
    FsError, FsResult, VolumeId,
    cluster::{AccessMode, Publication, PublishSpec},
};

/// Request for a right to the wire.
pub fn publish_spec(s: &PublishSpec) -> pb::PublishSpec {
    pb::PublishSpec {
        volume: s.volume.clone(),
        part: s.part.clone(),
        node: s.node.clone(),
        mode: s.mode.code().into(),
        read_only: s.read_only,
    }
}

/// Request for a right from the wire.
pub fn from_publish_spec(s: pb::PublishSpec) -> FsResult<PublishSpec> {
    Ok(PublishSpec {
        volume: text(s.volume)?,
        part: text(s.part)?,
        node: text(s.node)?,
        mode: mode(s.mode)?,
        read_only: s.read_only,
    })
}

/// Right to the wire.
pub fn publication(p: &Publication) -> pb::Publication {
    pb::Publication {
        volume: p.volume.0,
        part: p.part.clone(),
        node: p.node.clone(),
        mode: p.mode.code().into(),
        read_only: p.read_only,
        writer: p.writer,
        generation: p.generation,
        ending: p.ending,
    }
}

/// Right from the wire.
pub fn from_publication(p: pb::Publication) -> FsResult<Publication> {
    Ok(Publication {
        volume: VolumeId(p.volume),
        part: text(p.part)?,
        node: text(p.node)?,
        mode: mode(p.mode)?,
        read_only: p.read_only,
        writer: p.writer,
        generation: p.generation,
        ending: p.ending,
    })
}

/// An unknown mode must not be taken for a weaker one.
fn mode(code: u32) -> FsResult<AccessMode> {
    u8::try_from(code).ok().and_then(AccessMode::from_code).ok_or(FsError::UpgradeNeeded)
}
