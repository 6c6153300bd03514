//! Object stores of the volumes, for deleting dead objects (PROTOCOL 50: the secrets come from the master, in memory only).

use crate::node::Metanode;
use fusefs_data_path::object::{self, ObjectStore, StoreError};
use fusefs_types::{
    FsError, FsResult, ObjectId, VolumeId,
    cluster::{MasterCall, MasterReply, StoreCredentials, StoreRecord},
};
use std::sync::Arc;

/// Opens a store.
pub(crate) fn open(record: &StoreRecord, secrets: &StoreCredentials) -> Result<Arc<dyn ObjectStore>, StoreError> {
    object::open(record, secrets)
}

impl Metanode {
    /// Store of a volume; asks the master when it is not known (after a restart, or after it refused us).
    async fn store(&self, volume: VolumeId) -> FsResult<Arc<dyn ObjectStore>> {
        if let Some(store) = self.stores.lock().get(&volume).cloned() {
            return Ok(store);
        }
        match self.master(MasterCall::StoreAccess(volume)).await {
            Ok(MasterReply::StoreAccess(record, secrets)) => {
                let store = open(&record, &secrets).map_err(|error| {
                    tracing::warn!(%volume, %error, "object store cannot be opened");
                    FsError::Io
                })?;
                self.stores.lock().insert(volume, store.clone());
                Ok(store)
            }
            Ok(_) => Err(FsError::Io),
            Err(e) => Err(e.error),
        }
    }

    /// Deletes the bodies of dead objects; missing ones are fine.
    pub(crate) async fn delete_bodies(&self, volume: VolumeId, objects: &[ObjectId]) -> FsResult<()> {
        let store = self.store(volume).await?;
        let keys: Vec<String> = objects.iter().map(ObjectId::key).collect();
        if let Err(error) = store.delete(&keys).await {
            // Secrets may have expired: ask again next time.
            self.stores.lock().remove(&volume);
            tracing::warn!(%volume, %error, objects = keys.len(), "dead objects cannot be deleted yet");
            return Err(FsError::Unavailable);
        }
        Ok(())
    }
}
