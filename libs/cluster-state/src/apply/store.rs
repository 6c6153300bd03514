//! Object stores.

use crate::{ClusterState, command::*, valid};
use fusefs_types::{
    FsError, StoreId,
    cluster::{ProbeCheck, StoreRecord},
};

/// Everything that makes it the same store; number and probe do not count.
fn same(a: &StoreRecord, b: &StoreRecord) -> bool {
    let plain = |s: &StoreRecord| StoreRecord { id: StoreId(0), probe: Vec::new(), ..s.clone() };
    plain(a) == plain(b)
}

impl ClusterState {
    pub(super) fn reserve_store(&mut self) -> Applied {
        let Some(next) = self.next_store.checked_add(1) else {
            return reject(FsError::NoSpace, "all store numbers are used up");
        };
        let id = StoreId(self.next_store);
        self.next_store = next;
        Ok(Outcome::Store(id))
    }

    /// The store of that name if it has the same parameters; a rejection if it has others; None if the name is free.
    pub fn existing_store(&self, store: &StoreRecord) -> Result<Option<StoreId>, Reject> {
        match self.store_by_name(&store.name) {
            None => Ok(None),
            Some(old) if same(old, store) => Ok(Some(old.id)),
            Some(old) => reject(
                FsError::Exists,
                format!(
                    "a store named {} exists with other parameters ({}); choose another name",
                    old.name,
                    crate::view::store_place(old)
                ),
            ),
        }
    }

    pub(super) fn add_store(&mut self, store: &StoreRecord) -> Applied {
        valid::store(store)?;
        if let Some(id) = self.existing_store(store)? {
            return Ok(Outcome::Store(id));
        }
        if store.id.0 == 0 || store.id.0 >= self.next_store || self.stores.contains_key(&store.id) {
            return reject(FsError::Invalid, "the store's number was not reserved");
        }
        self.stores.insert(store.id, store.clone());
        Ok(Outcome::Store(store.id))
    }

    pub(super) fn set_probe(&mut self, store: StoreId, probe: &[ProbeCheck]) -> Applied {
        match self.stores.get_mut(&store) {
            Some(s) => {
                s.probe = probe.to_vec();
                Ok(Outcome::Ok)
            }
            None => reject(FsError::NotFound, format!("no store number {store}")),
        }
    }
}
