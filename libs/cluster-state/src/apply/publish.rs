//! Which node may mount which volume. Withdrawing that right fences: it ends when every session of it has ended at every
//! partition, and only then may a volume for one node go to another.

use crate::{ClusterState, apply::volume::no_volume, command::*, record::PublicationKey, valid};
use fusefs_types::{
    FsError, Token, VolumeId,
    cluster::{AccessMode, Publication, PublishSpec, VolumeState},
};

/// Most nodes that are remembered as able to mount; beyond it the one that was silent longest is forgotten.
pub const MOUNTERS_MAX: usize = 64 << 10;
/// Most rights to mount, of all volumes.
pub const PUBLICATIONS_MAX: usize = 1 << 20;
/// Longest node name in bytes.
pub const NODE_BYTES_MAX: usize = 256;

impl ClusterState {
    pub(super) fn add_mounter(&mut self, node: &str, at_ns: u64) -> Applied {
        if node.is_empty() || node.len() > NODE_BYTES_MAX || node.chars().any(char::is_control) {
            return reject(FsError::Invalid, format!("a node name has 1 to {NODE_BYTES_MAX} bytes"));
        }
        if !self.mounters.contains_key(node) && self.mounters.len() >= MOUNTERS_MAX {
            let used = |n: &String| self.publications.values().any(|p| p.node == *n);
            let oldest = self.mounters.iter().filter(|(n, _)| !used(n)).min_by_key(|(_, at)| **at);
            let Some(oldest) = oldest.map(|(n, _)| n.clone()) else {
                return reject(FsError::NoSpace, "too many nodes have volumes attached");
            };
            self.mounters.remove(&oldest);
        }
        self.mounters.insert(node.to_owned(), at_ns);
        Ok(Outcome::Ok)
    }

    pub(super) fn publish(&mut self, c: &PublishSpec) -> Applied {
        let found = self.live_volume(&c.volume).filter(|v| v.state == VolumeState::Ready).map(|v| v.id);
        let Some(volume) = found else { return reject(FsError::NotFound, no_volume(&c.volume)) };
        if !self.mounters.contains_key(&c.node) {
            return reject(FsError::NotFound, "no node of that name has announced itself");
        }
        if c.part.len() > valid::TEXT_BYTES_MAX {
            return reject(FsError::Invalid, "the subdirectory is too long");
        }
        let key = (volume, (c.node.clone(), c.part.clone()));
        if let Some(p) = self.publications.get(&key) {
            return same(p, c);
        }
        self.check_others(volume, c)?;
        if self.publications.len() >= PUBLICATIONS_MAX {
            return reject(FsError::NoSpace, format!("at most {PUBLICATIONS_MAX} volumes can be attached to nodes"));
        }
        let read_only = c.read_only || c.mode.read_only();
        let taken = c.mode == AccessMode::MultiNodeSingleWriter && self.parts(volume, &c.part).any(|p| p.writer);
        let publication = Publication {
            volume,
            part: c.part.clone(),
            node: c.node.clone(),
            mode: c.mode,
            read_only: c.read_only,
            writer: !read_only && !taken,
            generation: self.next_generation(volume, &c.node),
            ending: false,
        };
        self.publications.insert(key, publication.clone());
        Ok(Outcome::Publication(publication))
    }

    /// Rights to one part of a volume, on all nodes.
    fn parts<'a>(&'a self, volume: VolumeId, part: &'a str) -> impl Iterator<Item = &'a Publication> {
        self.publications_of(volume).filter(move |p| p.part == part)
    }

    /// A volume for one node is with one node.
    fn check_others(&self, volume: VolumeId, c: &PublishSpec) -> Result<(), Reject> {
        for p in self.parts(volume, &c.part).filter(|p| p.node != c.node) {
            if !(c.mode.single_node() || p.mode.single_node()) {
                continue;
            }
            if p.ending {
                return reject(FsError::Conflict, format!("node {} is still being fenced; try again", p.node));
            }
            return reject(FsError::InUse, format!("the volume is attached to node {}", p.node));
        }
        Ok(())
    }

    pub(super) fn unpublish(&mut self, c: &Unpublish) -> Applied {
        // A volume that is gone has no sessions: its deletion ended them.
        let Some(volume) = self.live_volume(&c.volume).map(|v| v.id) else { return Ok(Outcome::Ok) };
        let wanted = |p: &&mut Publication| p.part == c.part && (c.node.is_empty() || p.node == c.node);
        let mut generations = Vec::new();
        for p in self.publications.range_mut(of(volume)).map(|(_, p)| p).filter(wanted) {
            p.ending = true;
            generations.push(p.generation);
        }
        let sessions = self.sessions.values().filter(|s| s.volume == volume && generations.contains(&s.token.attach));
        for session in sessions.map(|s| s.id).collect::<Vec<_>>() {
            self.end_session(&EndSession { session, token: None, leftovers: 0, at_ns: c.at_ns })?;
        }
        self.withdraw(volume);
        Ok(Outcome::Ok)
    }

    /// Removes the rights whose sessions have all ended.
    pub(super) fn withdraw(&mut self, volume: VolumeId) {
        let fenced = |p: &Publication| {
            p.ending && !self.sessions.values().any(|s| s.volume == volume && s.token.attach == p.generation)
        };
        let gone: Vec<PublicationKey> =
            self.publications.range(of(volume)).filter(|(_, p)| fenced(p)).map(|(k, _)| k.clone()).collect();
        for key in gone {
            self.publications.remove(&key);
        }
    }

    /// A session with an attach generation needs the right that the generation stands for.
    pub(super) fn check_attach(&self, volume: VolumeId, token: Token) -> Result<(), Reject> {
        let known = |p: &Publication| p.generation == token.attach && !p.ending;
        if token.attach == 0 || self.publications_of(volume).any(known) {
            return Ok(());
        }
        reject(FsError::Fenced, "the volume is not attached to this node any more")
    }

    /// The next attach generation of a volume: above all older ones of it, so that it names one attachment.
    pub(super) fn next_generation(&mut self, volume: VolumeId, node: &str) -> u64 {
        let from = (volume, String::new());
        let to = (VolumeId(volume.0.saturating_add(1)), String::new());
        let last = self.attachments.range(from..to).map(|(_, g)| *g).max().unwrap_or(0);
        let next = last.saturating_add(1);
        self.attachments.insert((volume, node.to_owned()), next);
        next
    }
}

/// All keys of a volume.
pub(crate) fn of(volume: VolumeId) -> std::ops::Range<PublicationKey> {
    let first = |v| (VolumeId(v), (String::new(), String::new()));
    first(volume.0)..first(volume.0.saturating_add(1))
}

/// The answer to a repeated request.
fn same(p: &Publication, c: &PublishSpec) -> Applied {
    if p.ending {
        return reject(FsError::Conflict, "the node is still being fenced; try again");
    }
    if (p.mode, p.read_only) == (c.mode, c.read_only) {
        return Ok(Outcome::Publication(p.clone()));
    }
    reject(FsError::Exists, "the volume is attached to this node in another access mode")
}
