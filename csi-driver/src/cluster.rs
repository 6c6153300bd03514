//! The cluster as the driver sees it: the masters' calls behind one trait, so that tests need no masters.

use crate::valid::{NodeName, Subdir, VolumeHandle, VolumeName};
use async_trait::async_trait;
use bytes::Bytes;
use fusefs_meta_client::MasterClient;
use fusefs_types::{
    FsError, VolumeId,
    cluster::{AccessMode, MasterCall, MasterRefusal, MasterReply, Publication, PublishSpec, VolumeRecord, VolumeSpec},
};
use std::sync::Arc;

/// Whoever answers the masters' calls.
#[async_trait]
pub trait Cluster: Send + Sync + 'static {
    /// One call, retried as long as makes sense inside it.
    async fn call(&self, call: MasterCall) -> Result<MasterReply, MasterRefusal>;
}

#[async_trait]
impl Cluster for MasterClient {
    async fn call(&self, call: MasterCall) -> Result<MasterReply, MasterRefusal> {
        MasterClient::call(self, call).await
    }
}

/// Typed calls. Clones share the connection.
#[derive(Clone)]
pub struct Masters(Arc<dyn Cluster>);

/// Answer of a master.
type Answer<T> = Result<T, MasterRefusal>;

fn unexpected<T>() -> Answer<T> {
    let message = "the master answered something else than was asked; are the versions compatible?".to_owned();
    Err(MasterRefusal { error: FsError::Io, message, leader: None })
}

fn part(subdir: Option<&Subdir>) -> String {
    subdir.map_or_else(String::new, |s| s.as_str().to_owned())
}

impl Masters {
    /// Calls through `cluster`.
    pub fn new(cluster: Arc<dyn Cluster>) -> Masters {
        Masters(cluster)
    }

    async fn volume(&self, call: MasterCall) -> Answer<VolumeRecord> {
        match self.0.call(call).await? {
            MasterReply::Volume(v) => Ok(v),
            _ => unexpected(),
        }
    }

    async fn done(&self, call: MasterCall) -> Answer<()> {
        match self.0.call(call).await? {
            MasterReply::Ok => Ok(()),
            _ => unexpected(),
        }
    }

    /// A ready volume; None when there is none of that name.
    pub async fn find(&self, name: &VolumeName) -> Answer<Option<VolumeRecord>> {
        match self.volume(MasterCall::GetVolume(name.as_str().to_owned())).await {
            Ok(v) => Ok(Some(v)),
            Err(r) if r.error == FsError::NotFound => Ok(None),
            Err(r) => Err(r),
        }
    }

    /// Creates a volume and waits until it is ready.
    pub async fn create(&self, spec: VolumeSpec) -> Answer<VolumeRecord> {
        self.volume(MasterCall::CreateVolume(spec)).await
    }

    /// Deletes a volume; one that is gone is deleted.
    pub async fn delete(&self, name: &VolumeName) -> Answer<()> {
        match self.done(MasterCall::DeleteVolume(name.as_str().to_owned(), false)).await {
            Err(r) if r.error == FsError::NotFound => Ok(()),
            other => other,
        }
    }

    /// Larger limits.
    pub async fn expand(&self, name: &VolumeName, capacity: u64, inodes: u64) -> Answer<VolumeRecord> {
        self.volume(MasterCall::ExpandVolume(name.as_str().to_owned(), capacity, inodes)).await
    }

    /// All ready volumes.
    pub async fn list(&self) -> Answer<Vec<VolumeRecord>> {
        match self.0.call(MasterCall::ListVolumes).await? {
            MasterReply::Volumes(v) => Ok(v),
            _ => unexpected(),
        }
    }

    /// Announces a node that can mount volumes.
    pub async fn announce(&self, node: &NodeName) -> Answer<()> {
        self.done(MasterCall::AddMounter(node.as_str().to_owned())).await
    }

    /// Gives a node the right to mount.
    pub async fn publish(
        &self,
        handle: &VolumeHandle,
        node: &NodeName,
        mode: AccessMode,
        read_only: bool,
    ) -> Answer<Publication> {
        let spec = PublishSpec {
            volume: handle.volume.as_str().to_owned(),
            part: part(handle.subdir.as_ref()),
            node: node.as_str().to_owned(),
            mode,
            read_only,
        };
        match self.0.call(MasterCall::PublishVolume(spec)).await? {
            MasterReply::Published(p) => Ok(p),
            _ => unexpected(),
        }
    }

    /// Withdraws the right, of one node or all; answers when the node is fenced.
    pub async fn unpublish(&self, handle: &VolumeHandle, node: Option<&NodeName>) -> Answer<()> {
        let node = node.map_or_else(String::new, |n| n.as_str().to_owned());
        let volume = handle.volume.as_str().to_owned();
        self.done(MasterCall::UnpublishVolume(volume, part(handle.subdir.as_ref()), node)).await
    }

    /// A mount token; empty when the cluster has no token.
    pub async fn mount_token(&self, volume: &str, node: &NodeName, generation: u64) -> Answer<Bytes> {
        match self.0.call(MasterCall::MountToken(volume.to_owned(), node.as_str().to_owned(), generation)).await? {
            MasterReply::MountToken(token) => Ok(token),
            _ => unexpected(),
        }
    }

    /// Rights to mount, of one volume or of all.
    pub async fn publications(&self, volume: Option<VolumeId>) -> Answer<Vec<Publication>> {
        match self.0.call(MasterCall::ListPublications(volume.unwrap_or(VolumeId(0)))).await? {
            MasterReply::Publications(p) => Ok(p),
            _ => unexpected(),
        }
    }
}
