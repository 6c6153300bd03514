//! What the API server says is attached to a node: the truth when the node's own records are gone and no master answers.

use super::api::{ApiError, ApiResult, list_all, within};
use crate::{
    Fault, Outcome,
    controller::{ACCESS_WRITE, PUBLISH_ACCESS, PUBLISH_ATTACH},
    node::found,
    valid::VolumeHandle,
};
use async_trait::async_trait;
use fusefs_types::cluster::AccessMode;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeSpec},
    storage::v1::VolumeAttachment,
};
use kube::{Api, Client};
use std::{collections::BTreeMap, time::Duration};

/// Persistent volumes that are asked for at once.
const PARALLEL: usize = 8;

/// A volume that is attached to the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// Id of the volume.
    pub volume: String,
    /// Persistent volume.
    pub persistent_volume: String,
    /// What the controller answered: the publish context, with the attach generation.
    pub context: BTreeMap<String, String>,
    /// The controller has answered.
    pub attached: bool,
    /// It is being detached.
    pub ending: bool,
    /// The persistent volume's modes: ReadWriteOnce and so on.
    pub access_modes: Vec<String>,
    /// Its mount options.
    pub mount_options: Vec<String>,
    /// Its volume attributes.
    pub attributes: BTreeMap<String, String>,
    /// Nobody may write.
    pub read_only: bool,
}

/// Asks for attachments.
#[derive(Clone)]
pub struct Attachments {
    client: Client,
    limit: Duration,
}

impl Attachments {
    /// Through a client.
    pub fn new(client: Client) -> Attachments {
        Attachments { client, limit: Duration::from_secs(5) }
    }

    /// How long a call may take; a list may take three times as long.
    pub fn patience(self, limit: Duration) -> Attachments {
        Attachments { limit, ..self }
    }

    /// All volumes of this driver that are attached to `node`, sorted by id. All or an error: a part would be taken for the whole.
    pub async fn of_node(&self, node: &str) -> ApiResult<Vec<Attachment>> {
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        let (all, _) = within(self.limit * 3, list_all(&api, None, None)).await?;
        let ours = all.into_iter().filter(|a| a.spec.attacher == crate::DRIVER_NAME && a.spec.node_name == node);
        let found = stream::iter(ours).map(|a| self.resolve(a)).buffer_unordered(PARALLEL);
        let mut found: Vec<_> = found.try_filter_map(|a| async { Ok(a) }).try_collect().await?;
        found.sort_by(|a, b| a.volume.cmp(&b.volume));
        Ok(found)
    }

    /// Ids of the volumes that should be mounted on `node`.
    pub async fn volumes_of_node(&self, node: &str) -> ApiResult<Vec<String>> {
        let all = self.of_node(node).await?;
        Ok(all.into_iter().filter(|a| a.attached && !a.ending).map(|a| a.volume).collect())
    }

    /// None: its persistent volume is gone, so nobody can use it.
    async fn resolve(&self, a: VolumeAttachment) -> ApiResult<Option<Attachment>> {
        let name = a.spec.source.persistent_volume_name.clone().unwrap_or_default();
        let spec = match a.spec.source.inline_volume_spec.clone() {
            Some(spec) => Some(spec),
            None => self.persistent_volume(&name).await?.and_then(|v| v.spec),
        };
        Ok(spec.and_then(|spec| attachment(a, name, spec)))
    }

    async fn persistent_volume(&self, name: &str) -> ApiResult<Option<PersistentVolume>> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        match within(self.limit, api.get_opt(name)).await {
            Err(ApiError::NotFound(_)) => Ok(None),
            other => other,
        }
    }
}

#[async_trait]
impl found::Attachments for Attachments {
    async fn of_node(&self, node: &str) -> Outcome<Vec<found::Attachment>> {
        let all = Attachments::of_node(self, node).await;
        let all = all.map_err(|e| Fault::unavailable(format!("asking the API server what is attached: {e}")))?;
        Ok(all.iter().filter(|a| a.attached && !a.ending).filter_map(right).collect())
    }
}

/// The right that the controller gave. None: it is not one of ours, or of a volume whose modes we do not know.
fn right(a: &Attachment) -> Option<found::Attachment> {
    let handle = VolumeHandle::parse(&a.volume).ok()?;
    Some(found::Attachment {
        name: handle.volume.as_str().to_owned(),
        part: handle.subdir.as_ref().map_or(String::new(), |s| s.as_str().to_owned()),
        mode: mode(a.access_modes.first()?)?,
        writer: a.context.get(PUBLISH_ACCESS).is_some_and(|access| access == ACCESS_WRITE) && !a.read_only,
        generation: a.context.get(PUBLISH_ATTACH)?.parse().ok()?,
    })
}

/// As kubelet translates the first mode of a persistent volume for drivers that know SINGLE_NODE_MULTI_WRITER.
fn mode(name: &str) -> Option<AccessMode> {
    Some(match name {
        "ReadWriteOnce" => AccessMode::SingleNodeMultiWriter,
        "ReadWriteOncePod" => AccessMode::SingleNodeSingleWriter,
        "ReadOnlyMany" => AccessMode::MultiNodeReader,
        "ReadWriteMany" => AccessMode::MultiNodeMultiWriter,
        _ => return None,
    })
}

fn attachment(a: VolumeAttachment, persistent_volume: String, spec: PersistentVolumeSpec) -> Option<Attachment> {
    let csi = spec.csi.filter(|csi| csi.driver == crate::DRIVER_NAME)?;
    let status = a.status.unwrap_or_default();
    Some(Attachment {
        volume: csi.volume_handle,
        persistent_volume,
        context: status.attachment_metadata.unwrap_or_default(),
        attached: status.attached,
        ending: a.metadata.deletion_timestamp.is_some(),
        access_modes: spec.access_modes.unwrap_or_default(),
        mount_options: spec.mount_options.unwrap_or_default(),
        attributes: csi.volume_attributes.unwrap_or_default(),
        read_only: csi.read_only.unwrap_or_default(),
    })
}
