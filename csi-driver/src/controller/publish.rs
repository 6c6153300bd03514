//! Which node may mount which volume. The masters keep it: a volume for one node is with one node, across restarts of
//! everything, and a node that lost it is fenced before another one gets it.

use super::Controller;
use crate::{
    Outcome,
    step::step,
    valid::{Capability, NodeName, VolumeHandle, map_size, present},
};
use fusefs_proto::csi::*;

/// Key of the publish context: attach generation, a decimal number. Not a secret.
pub const PUBLISH_ATTACH: &str = "fusefs.io/attach";
/// Key of the publish context: what the node may do, [`ACCESS_WRITE`] or [`ACCESS_READ`].
pub const PUBLISH_ACCESS: &str = "fusefs.io/access";
/// Key of the publish context: `NAMESPACE/NAME` of the pod that serves the volume on the node, where there are such pods.
pub const PUBLISH_POD: &str = "fusefs.io/pod";
/// The node may write.
pub const ACCESS_WRITE: &str = "rw";
/// The node may only read.
pub const ACCESS_READ: &str = "ro";

impl Controller {
    pub(super) async fn publish(&self, r: &ControllerPublishVolumeRequest) -> Outcome<ControllerPublishVolumeResponse> {
        let handle = VolumeHandle::parse(&r.volume_id)?;
        let node = NodeName::parse(&r.node_id)?;
        let capability = Capability::parse(r.volume_capability.as_ref())?;
        map_size("volume_context", &r.volume_context)?;
        map_size("secrets", &r.secrets)?;
        let _busy = self.inflight.enter(handle.volume.as_str())?;
        step("controller.publish.entered");
        let read_only = r.readonly || capability.options.read_only;
        let (volume, pods) = (handle.to_string(), self.pods.as_ref());
        // Dropped at the end, whatever it was: publications are looked at, and the pod is made. Nobody waits for it here.
        let _claim = pods.map(|pods| pods.claim(&volume, node.as_str()));
        let p = self.masters.publish(&handle, &node, capability.mode, read_only).await?;
        step("controller.publish.published");
        let access = if p.writer { ACCESS_WRITE } else { ACCESS_READ };
        let context = [(PUBLISH_ATTACH, p.generation.to_string()), (PUBLISH_ACCESS, access.to_owned())];
        let pod = pods.map(|pods| (PUBLISH_POD, pods.pod(&volume, node.as_str())));
        let context = context.into_iter().chain(pod).map(|(k, v)| (k.to_owned(), v));
        Ok(ControllerPublishVolumeResponse { publish_context: context.collect() })
    }

    pub(super) async fn unpublish(
        &self,
        r: &ControllerUnpublishVolumeRequest,
    ) -> Outcome<ControllerUnpublishVolumeResponse> {
        present("volume_id", &r.volume_id)?;
        map_size("secrets", &r.secrets)?;
        // Nothing was ever published under an id or to a node that cannot be one.
        let done = ControllerUnpublishVolumeResponse {};
        let Ok(handle) = VolumeHandle::parse(&r.volume_id) else { return Ok(done) };
        let node = match r.node_id.as_str() {
            "" => None,
            id => match NodeName::parse(id) {
                Ok(node) => Some(node),
                Err(_) => return Ok(done),
            },
        };
        let _busy = self.inflight.enter(handle.volume.as_str())?;
        step("controller.unpublish.entered");
        let unpublished = self.masters.unpublish(&handle, node.as_ref()).await;
        step("controller.unpublish.unpublished");
        if let Some(pods) = &self.pods {
            pods.changed();
        }
        unpublished?;
        Ok(done)
    }
}
