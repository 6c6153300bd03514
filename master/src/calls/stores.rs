//! Object stores.

use crate::{
    core::{Core, Step, halt},
    stores::unusable,
};
use fusefs_cluster_state::{Command, Outcome, Reject, valid};
use fusefs_types::{
    FsError, StoreId, VolumeId,
    cluster::{MasterReply, StoreRecord},
};

impl Core {
    pub(super) async fn add_store(&self, store: &StoreRecord) -> Step<MasterReply> {
        let mut store = StoreRecord { id: StoreId(0), probe: Vec::new(), ..store.clone() };
        valid::store(&store)?;
        let _one = self.adding.lock().await;
        self.barrier().await?;
        if let Some(id) = self.view(|s| s.existing_store(&store))? {
            return self.store_reply(id);
        }
        // The number is part of every key below the prefix, so it is taken before the probe; a failed probe wastes it.
        let Outcome::Store(id) = self.commit(Command::ReserveStore).await? else {
            return halt(FsError::Io, "the masters' log answered something else than was asked");
        };
        store.id = id;
        store.probe = self.stores.probe(&store, self.named().await?, self.rng.next_u64()).await;
        if let Some(refusal) = unusable(&store, &store.probe) {
            return Err(refusal.into());
        }
        self.commit(Command::AddStore(store)).await?;
        self.store_reply(id)
    }

    fn store_reply(&self, id: StoreId) -> Step<MasterReply> {
        match self.view(|s| s.store(id).cloned()) {
            Some(store) => Ok(MasterReply::Store(store)),
            None => halt(FsError::NotFound, format!("no store number {id}")),
        }
    }

    pub(super) async fn list_stores(&self) -> Step<MasterReply> {
        self.barrier().await?;
        Ok(MasterReply::Stores(self.view(|s| s.stores().cloned().collect())))
    }

    pub(super) async fn probe_store(&self, name: &str) -> Step<MasterReply> {
        self.barrier().await?;
        let store = self.view(|s| find_store(s, name))?;
        let probe = self.stores.probe(&store, self.named().await?, self.rng.next_u64()).await;
        self.commit(Command::SetProbe((store.id, probe))).await?;
        self.store_reply(store.id)
    }

    pub(super) async fn store_access(&self, volume: VolumeId) -> Step<MasterReply> {
        self.barrier().await?;
        let store = self.view(|s| s.volume(volume).and_then(|v| s.store(v.store)).cloned());
        let Some(store) = store else { return halt(FsError::NotFound, format!("no volume number {volume}")) };
        let credentials = self.stores.credentials(&store).await?;
        Ok(MasterReply::StoreAccess(store, credentials))
    }
}

/// The store of that name; the only one for an empty name.
pub(super) fn find_store(s: &fusefs_cluster_state::ClusterState, name: &str) -> Result<StoreRecord, Reject> {
    let not_found = |message: String| Reject { error: FsError::NotFound, message };
    if !name.is_empty() {
        return s.store_by_name(name).cloned().ok_or_else(|| {
            not_found(format!("no store named {}; `fusefs store list` shows them all", valid::clip(name)))
        });
    }
    let mut stores = s.stores();
    match (stores.next(), stores.next()) {
        (Some(only), None) => Ok(only.clone()),
        (None, _) => Err(not_found("there is no object store yet; add one with `fusefs store add`".into())),
        (Some(_), Some(_)) => Err(Reject {
            error: FsError::Invalid,
            message: "there are several object stores; say which one (`fusefs store list` shows them)".into(),
        }),
    }
}
