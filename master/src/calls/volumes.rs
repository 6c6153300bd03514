//! Volumes: create, look, expand, delete. The slow steps are the reconciler's; these calls start them and wait.

use super::stores::find_store;
use crate::{
    core::{Ask, Core, Halt, Step, halt, refuse},
    stores::unusable,
};
use fusefs_cluster_state::{Command, Outcome, command, placement, valid};
use fusefs_types::{
    FsError, VolumeId,
    cluster::{MasterReply, StoreRecord, VolumeRecord, VolumeSpec, VolumeState},
};
use std::time::Duration;
use tokio::time::timeout;

/// How long a waiting call sleeps without news.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

impl Core {
    pub(super) async fn create_volume(&self, spec: &VolumeSpec, _ask: &Ask) -> Step<MasterReply> {
        let id = {
            let _one = self.adding.lock().await;
            self.start_volume(spec).await?
        };
        self.kick.notify_waiters();
        self.wait_ready(id, &spec.name).await
    }

    /// Commits the first step, or finds the volume that an earlier call began.
    async fn start_volume(&self, spec: &VolumeSpec) -> Step<VolumeId> {
        valid::spec(spec)?;
        self.barrier().await?;
        let store = self.view(|s| find_store(s, &spec.store))?;
        let spec = VolumeSpec { store: store.name.clone(), ..spec.clone() };
        if let Some(id) = self.view(|s| s.existing_volume(&spec))? {
            return Ok(id);
        }
        self.check_store(&store).await?;
        while self.still_listening() {
            self.news().await;
            if !self.leads() {
                return Err(Halt::Again);
            }
        }
        let placed = placement::place(&self.candidates(), spec.partitions, spec.replicas);
        let placed = placed.map_err(|e| refuse(placement_code(&e), format!("volume {}: {e}", spec.name)))?;
        let mut hash_key = [0u8; 16];
        hash_key.copy_from_slice(&self.rng.next_u128().to_le_bytes());
        let create = command::CreateVolume {
            spec,
            placement: placed.partitions,
            redundancy: placed.redundancy,
            hash_key,
            at_ns: self.now_ns(),
        };
        match self.commit(Command::CreateVolume(create)).await? {
            Outcome::Volume(id) => Ok(id),
            _ => halt(FsError::Io, "the masters' log answered something else than was asked"),
        }
    }

    /// The store worked when it was added; does it now?
    async fn check_store(&self, store: &StoreRecord) -> Step<()> {
        let probe = self.stores.probe(store, self.named().await?, self.rng.next_u64()).await;
        let refusal = unusable(store, &probe);
        if probe != store.probe {
            self.commit(Command::SetProbe((store.id, probe))).await?;
        }
        refusal.map_or(Ok(()), |r| Err(r.into()))
    }

    async fn wait_ready(&self, id: VolumeId, name: &str) -> Step<MasterReply> {
        loop {
            match self.view(|s| s.volume(id).map(|v| v.state)) {
                Some(VolumeState::Ready) => return self.volume_reply(id),
                Some(VolumeState::Creating) if self.leads() => self.news().await,
                Some(VolumeState::Creating) => return Err(Halt::Again),
                Some(VolumeState::Deleting) | None => {
                    return halt(FsError::NotFound, format!("volume {name} was deleted meanwhile"));
                }
            }
        }
    }

    /// Waits until something has changed, or a moment.
    pub(crate) async fn news(&self) {
        let mut changed = self.changed.subscribe();
        let _ = timeout(LOOK_AGAIN, changed.changed()).await;
    }

    fn volume_reply(&self, id: VolumeId) -> Step<MasterReply> {
        match self.records(|v| v.id == id).pop() {
            Some(record) => Ok(MasterReply::Volume(record)),
            None => halt(FsError::NotFound, "the volume was deleted meanwhile"),
        }
    }

    /// Records of the ready volumes that match, in name order.
    pub(super) fn records(&self, wanted: impl Fn(&fusefs_cluster_state::record::Volume) -> bool) -> Vec<VolumeRecord> {
        let memory = self.memory.lock();
        let mut records: Vec<VolumeRecord> = self.view(|s| {
            let ready = s.volumes().filter(|v| v.state == VolumeState::Ready && wanted(v));
            ready.map(|v| v.record(memory.usage(&v.partitions))).collect()
        });
        records.sort_by(|a, b| a.name.cmp(&b.name));
        records
    }

    pub(super) async fn get_volume(&self, name: &str) -> Step<MasterReply> {
        self.barrier().await?;
        match self.records(|v| v.spec.name == name).pop() {
            Some(record) => Ok(MasterReply::Volume(record)),
            None => halt(
                FsError::NotFound,
                format!("no volume named {}; `fusefs volume list` shows them all", valid::clip(name)),
            ),
        }
    }

    pub(super) async fn list_volumes(&self) -> Step<MasterReply> {
        self.barrier().await?;
        Ok(MasterReply::Volumes(self.records(|_| true)))
    }

    pub(super) async fn expand_volume(&self, name: &str, capacity: u64, inodes: u64) -> Step<MasterReply> {
        let expand = command::ExpandVolume { name: name.to_owned(), capacity, inodes };
        match self.commit(Command::ExpandVolume(expand)).await? {
            Outcome::Volume(id) => self.volume_reply(id),
            _ => halt(FsError::Io, "the masters' log answered something else than was asked"),
        }
    }

    pub(super) async fn delete_volume(&self, name: &str, force: bool, ask: &Ask) -> Step<MasterReply> {
        let delete = command::DeleteVolume { name: name.to_owned(), force, at_ns: self.now_ns() };
        match self.commit(Command::DeleteVolume(delete)).await {
            // An earlier attempt of this call may have been executed although its answer was lost.
            Err(Halt::Refused(r)) if ask.repeated && r.error == FsError::NotFound => Ok(MasterReply::Ok),
            Err(e) => Err(e),
            Ok(_) => {
                self.kick.notify_waiters();
                Ok(MasterReply::Ok)
            }
        }
    }

    pub(super) async fn get_map(&self, volume: VolumeId) -> Step<MasterReply> {
        self.barrier().await?;
        match self.map(volume) {
            Some(map) => Ok(MasterReply::Map(map)),
            None => halt(FsError::NotFound, format!("no volume number {volume}; it may have been deleted")),
        }
    }
}

fn placement_code(e: &placement::PlacementError) -> FsError {
    match e {
        placement::PlacementError::NoNodes => FsError::Unavailable,
        placement::PlacementError::TooFew(..) => FsError::Invalid,
    }
}
