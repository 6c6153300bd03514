//! Volumes and their partitions: Creating -> Ready -> Deleting -> gone.

use crate::{ClusterState, command::*, record::*, valid};
use fusefs_types::{
    FsError, Ino, KeyRange, NodeId, PartitionId, ReplicaId, VolumeId,
    cluster::{VolumeSpec, VolumeState},
    limits,
};
use std::collections::BTreeSet;

/// The `n`th range of inode numbers of a volume; the first starts at the root.
pub fn ino_range(n: u64) -> KeyRange {
    let start = n.saturating_mul(limits::RANGE_INOS).max(Ino::ROOT.0);
    KeyRange::inos(start, n.saturating_add(1).saturating_mul(limits::RANGE_INOS))
}

/// Most ranges of one volume: inode numbers stay below 2^63.
const RANGES_MAX: u64 = (1 << 63) / limits::RANGE_INOS;

impl ClusterState {
    /// The volume of that name if it was asked for with the same parameters; a rejection if with others; None if the
    /// name is free.
    pub fn existing_volume(&self, spec: &VolumeSpec) -> Result<Option<VolumeId>, Reject> {
        let Some(v) = self.live_volume(&spec.name) else { return Ok(None) };
        let sorted = |s: &VolumeSpec| {
            let mut s = s.clone();
            s.labels.sort();
            s
        };
        if sorted(&v.spec) == sorted(spec) {
            return Ok(Some(v.id));
        }
        reject(
            FsError::Exists,
            format!("volume {} exists with other parameters ({})", spec.name, differences(&v.spec, spec)),
        )
    }

    pub(super) fn create_volume(&mut self, c: &CreateVolume) -> Applied {
        valid::spec(&c.spec)?;
        let Some(store) = self.store_by_name(&c.spec.store).map(|s| s.id) else {
            return reject(FsError::NotFound, format!("no store named {}", valid::clip(&c.spec.store)));
        };
        if let Some(id) = self.existing_volume(&c.spec)? {
            return Ok(Outcome::Volume(id));
        }
        self.check_placement(&c.placement)?;
        let id = VolumeId(self.next_volume);
        self.next_volume += 1;
        let mut volume = Volume {
            id,
            spec: c.spec.clone(),
            store,
            state: VolumeState::Creating,
            capacity: c.spec.capacity,
            inodes: c.spec.inodes,
            replicas: 0,
            hash_key: c.hash_key,
            redundancy: String::new(),
            partitions: Vec::new(),
            next_range: 0,
            generation: 0,
            created_ns: c.at_ns,
            served: false,
        };
        self.place(&mut volume, &c.placement, &c.redundancy);
        self.volumes.insert(id, volume);
        Ok(Outcome::Volume(id))
    }

    /// New partitions for `volume`, which has none. The numbers of ranges start again at 0: no file exists yet.
    fn place(&mut self, volume: &mut Volume, placement: &[Vec<NodeId>], redundancy: &str) {
        volume.partitions.clear();
        volume.redundancy = redundancy.to_owned();
        volume.replicas = placement.first().map_or(0, |p| p.len() as u32);
        volume.generation += 1;
        volume.next_range = placement.len() as u64;
        for (n, nodes) in (0u64..).zip(placement) {
            let id = PartitionId(self.next_partition);
            self.next_partition += 1;
            let mut members = Vec::with_capacity(nodes.len());
            for node in nodes {
                members.push((ReplicaId(self.next_replica), *node));
                self.next_replica += 1;
            }
            let ranges = vec![ino_range(n)];
            self.partitions.insert(id, Partition { id, volume: volume.id, members, ranges, undelivered: Vec::new() });
            volume.partitions.push(id);
        }
    }

    fn check_placement(&self, placement: &[Vec<NodeId>]) -> Result<(), Reject> {
        let replicas = placement.first().map_or(0, Vec::len);
        let whole = |nodes: &Vec<NodeId>| {
            nodes.len() == replicas
                && nodes.iter().collect::<BTreeSet<_>>().len() == replicas
                && nodes.iter().all(|n| self.nodes.contains_key(n))
        };
        let count = 1..=limits::PARTITIONS_MAX as usize;
        if replicas == 0 || !count.contains(&placement.len()) || !placement.iter().all(whole) {
            return reject(FsError::Invalid, "the placement names unknown or repeated metanodes");
        }
        Ok(())
    }

    pub(super) fn replace_volume(&mut self, c: &ReplaceVolume) -> Applied {
        self.check_placement(&c.placement)?;
        let found = self.volumes.get(&c.volume);
        let Some(v) = found.filter(|v| v.state == VolumeState::Creating && v.generation == c.generation) else {
            return reject(FsError::Conflict, "the volume is not being created any more");
        };
        let mut volume = v.clone();
        self.doom_partitions(&volume.partitions);
        self.place(&mut volume, &c.placement, &c.redundancy);
        self.volumes.insert(volume.id, volume);
        Ok(Outcome::Ok)
    }

    fn doom_partitions(&mut self, partitions: &[PartitionId]) {
        for id in partitions {
            let Some(p) = self.partitions.remove(id) else { continue };
            for (replica, node) in p.members {
                self.doomed.insert(replica, Doomed { partition: *id, node });
            }
        }
    }

    pub(super) fn volume_ready(&mut self, volume: VolumeId) -> Applied {
        match self.volumes.get_mut(&volume) {
            Some(v) if v.state != VolumeState::Deleting => {
                v.state = VolumeState::Ready;
                v.served = true;
                Ok(Outcome::Ok)
            }
            _ => reject(FsError::NotFound, "the volume was deleted"),
        }
    }

    pub(super) fn expand_volume(&mut self, c: &ExpandVolume) -> Applied {
        let Some(id) = self.live_volume(&c.name).filter(|v| v.state == VolumeState::Ready).map(|v| v.id) else {
            return reject(FsError::NotFound, no_volume(&c.name));
        };
        let Some(v) = self.volumes.get_mut(&id) else { return reject(FsError::NotFound, no_volume(&c.name)) };
        // 0 is "unlimited", the largest of all.
        let smaller = |new: u64, old: u64| new.wrapping_sub(1) < old.wrapping_sub(1);
        if smaller(c.capacity, v.capacity) || smaller(c.inodes, v.inodes) {
            return reject(
                FsError::Invalid,
                format!(
                    "volume {} can only grow: it has {} and {}",
                    c.name,
                    limit_text(v.capacity, "bytes"),
                    limit_text(v.inodes, "inodes")
                ),
            );
        }
        v.capacity = c.capacity;
        v.inodes = c.inodes;
        Ok(Outcome::Volume(id))
    }

    pub(super) fn delete_volume(&mut self, c: &DeleteVolume) -> Applied {
        let Some(id) = self.live_volume(&c.name).map(|v| v.id) else {
            return reject(FsError::NotFound, no_volume(&c.name));
        };
        let open: Vec<_> =
            self.sessions.values().filter(|s| s.volume == id && s.ending.is_none()).map(|s| s.id).collect();
        if let (Some(first), false) = (open.first().and_then(|s| self.sessions.get(s)), c.force) {
            return reject(
                FsError::InUse,
                format!(
                    "volume {} is mounted by {} client(s), for example {}; unmount, or force the deletion",
                    c.name,
                    open.len(),
                    if first.client.is_empty() { "an unnamed one" } else { &first.client }
                ),
            );
        }
        if let (Some(p), false) = (self.publications_of(id).next(), c.force) {
            return reject(FsError::InUse, format!("volume {} is attached to node {}", c.name, p.node));
        }
        if let Some(v) = self.volumes.get_mut(&id) {
            v.state = VolumeState::Deleting;
        }
        for session in open {
            self.end_session(&EndSession { session, token: None, leftovers: 0, at_ns: c.at_ns })?;
        }
        Ok(Outcome::Volume(id))
    }

    pub(super) fn volume_gone(&mut self, volume: VolumeId) -> Applied {
        let Some(v) = self.volumes.get(&volume) else { return Ok(Outcome::Ok) };
        if v.state != VolumeState::Deleting || self.sessions.values().any(|s| s.volume == volume) {
            return reject(FsError::InUse, "the volume is not being deleted or its sessions have not ended");
        }
        let partitions = v.partitions.clone();
        self.doom_partitions(&partitions);
        self.volumes.remove(&volume);
        self.attachments.retain(|(v, _), _| *v != volume);
        self.publications.retain(|(v, _), _| *v != volume);
        Ok(Outcome::Ok)
    }

    pub(super) fn grant_range(&mut self, partition: PartitionId) -> Applied {
        let gone = || reject(FsError::NotFound, format!("no partition {partition}"));
        let Some(p) = self.partitions.get_mut(&partition) else { return gone() };
        let Some(v) = self.volumes.get_mut(&p.volume) else { return gone() };
        if let Some(g) = p.undelivered.last() {
            // The last grant has not even arrived; asking again must not burn another range.
            return Ok(Outcome::Range(g.range, g.generation));
        }
        if v.next_range >= RANGES_MAX {
            return reject(FsError::NoSpace, "the volume has used up its inode numbers");
        }
        let range = ino_range(v.next_range);
        v.next_range += 1;
        v.generation += 1;
        p.ranges.push(range);
        p.undelivered.push(Grant { range, generation: v.generation });
        Ok(Outcome::Range(range, v.generation))
    }

    pub(super) fn bump_attach(&mut self, volume: VolumeId, node: &str) -> Applied {
        if node.len() > valid::TEXT_BYTES_MAX || !self.volumes.contains_key(&volume) {
            return reject(FsError::NotFound, format!("no volume number {volume}"));
        }
        Ok(Outcome::Generation(self.next_generation(volume, node)))
    }
}

pub(crate) fn no_volume(name: &str) -> String {
    format!("no volume named {}; `fusefs volume list` shows them all", valid::clip(name))
}

fn limit_text(n: u64, unit: &str) -> String {
    if n == 0 { format!("unlimited {unit}") } else { format!("{n} {unit}") }
}

fn differences(old: &VolumeSpec, new: &VolumeSpec) -> String {
    let mut words = Vec::new();
    let mut differ = |what: &str, old: String, new: String| {
        if old != new {
            words.push(format!("{what} {old}, not {new}"));
        }
    };
    differ("store", old.store.clone(), new.store.clone());
    differ("capacity", old.capacity.to_string(), new.capacity.to_string());
    differ("inodes", old.inodes.to_string(), new.inodes.to_string());
    differ("partitions", old.partitions.to_string(), new.partitions.to_string());
    differ("replicas", old.replicas.to_string(), new.replicas.to_string());
    if words.is_empty() {
        words.push("other labels".into());
    }
    words.join("; ")
}
