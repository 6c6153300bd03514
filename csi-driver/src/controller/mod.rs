//! The controller service: volumes of the cluster and the nodes that may mount them. It keeps nothing: every answer
//! comes from the masters, so it may be restarted, run twice, or lose an answer at any time.

mod list;
mod pods;
mod publish;
mod volume;

use crate::{
    Outcome,
    answer::answer,
    cluster::{Cluster, Masters},
    fault::Fault,
    inflight::Inflight,
};
use fusefs_proto::csi::{self, controller_service_capability as capability, *};
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub use pods::{Claim, PodMaker};
pub use publish::{ACCESS_READ, ACCESS_WRITE, PUBLISH_ACCESS, PUBLISH_ATTACH, PUBLISH_POD};

/// Settings of the controller.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Bytes that all volumes together may have. An object store has no size of its own, so without this nothing is
    /// reported as free space.
    pub capacity_pool: Option<u64>,
}

/// The controller service. Clones share the calls in flight.
#[derive(Clone)]
pub struct Controller {
    masters: Masters,
    inflight: Inflight,
    settings: Settings,
    pods: Option<Arc<dyn PodMaker>>,
}

type Reply<T> = Result<Response<T>, Status>;

impl Controller {
    /// A controller of `cluster`.
    pub fn new(cluster: Arc<dyn Cluster>, settings: Settings) -> Controller {
        Controller { masters: Masters::new(cluster), inflight: Inflight::default(), settings, pods: None }
    }

    /// The same, with a pod for each publication.
    pub fn with_pods(self, pods: Arc<dyn PodMaker>) -> Controller {
        Controller { pods: Some(pods), ..self }
    }

    /// Calls that run now.
    pub fn inflight(&self) -> &Inflight {
        &self.inflight
    }

    fn capabilities(&self) -> Vec<ControllerServiceCapability> {
        use capability::rpc::Type;
        let pool = self.settings.capacity_pool.map(|_| Type::GetCapacity);
        [
            Type::CreateDeleteVolume,
            Type::PublishUnpublishVolume,
            Type::PublishReadonly,
            Type::ListVolumes,
            Type::ListVolumesPublishedNodes,
            Type::GetVolume,
            Type::ExpandVolume,
            Type::SingleNodeMultiWriter,
        ]
        .into_iter()
        .chain(pool)
        .map(|t| ControllerServiceCapability {
            r#type: Some(capability::Type::Rpc(capability::Rpc { r#type: t.into() })),
        })
        .collect()
    }
}

async fn not_offered<T>(rpc: &'static str, what: &str) -> Reply<T> {
    answer(rpc, "", async { Outcome::Err(Fault::unimplemented(format!("{what} not supported by fusefs"))) }).await
}

#[tonic::async_trait]
impl csi::controller_server::Controller for Controller {
    async fn create_volume(&self, r: Request<CreateVolumeRequest>) -> Reply<CreateVolumeResponse> {
        let r = r.into_inner();
        answer("CreateVolume", &r.name, self.create(&r)).await
    }

    async fn delete_volume(&self, r: Request<DeleteVolumeRequest>) -> Reply<DeleteVolumeResponse> {
        let r = r.into_inner();
        answer("DeleteVolume", &r.volume_id, self.delete(&r)).await
    }

    async fn controller_publish_volume(
        &self,
        r: Request<ControllerPublishVolumeRequest>,
    ) -> Reply<ControllerPublishVolumeResponse> {
        let r = r.into_inner();
        answer("ControllerPublishVolume", &r.volume_id, self.publish(&r)).await
    }

    async fn controller_unpublish_volume(
        &self,
        r: Request<ControllerUnpublishVolumeRequest>,
    ) -> Reply<ControllerUnpublishVolumeResponse> {
        let r = r.into_inner();
        answer("ControllerUnpublishVolume", &r.volume_id, self.unpublish(&r)).await
    }

    async fn validate_volume_capabilities(
        &self,
        r: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Reply<ValidateVolumeCapabilitiesResponse> {
        let r = r.into_inner();
        answer("ValidateVolumeCapabilities", &r.volume_id, self.validate(&r)).await
    }

    async fn list_volumes(&self, r: Request<ListVolumesRequest>) -> Reply<ListVolumesResponse> {
        let r = r.into_inner();
        answer("ListVolumes", "", self.list(&r)).await
    }

    async fn get_capacity(&self, r: Request<GetCapacityRequest>) -> Reply<GetCapacityResponse> {
        let r = r.into_inner();
        answer("GetCapacity", "", self.capacity(&r)).await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Reply<ControllerGetCapabilitiesResponse> {
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities: self.capabilities() }))
    }

    async fn controller_expand_volume(
        &self,
        r: Request<ControllerExpandVolumeRequest>,
    ) -> Reply<ControllerExpandVolumeResponse> {
        let r = r.into_inner();
        answer("ControllerExpandVolume", &r.volume_id, self.expand(&r)).await
    }

    async fn controller_get_volume(
        &self,
        r: Request<ControllerGetVolumeRequest>,
    ) -> Reply<ControllerGetVolumeResponse> {
        let r = r.into_inner();
        answer("ControllerGetVolume", &r.volume_id, self.get(&r)).await
    }

    async fn create_snapshot(&self, _: Request<CreateSnapshotRequest>) -> Reply<CreateSnapshotResponse> {
        not_offered("CreateSnapshot", "snapshots are").await
    }

    async fn delete_snapshot(&self, _: Request<DeleteSnapshotRequest>) -> Reply<DeleteSnapshotResponse> {
        not_offered("DeleteSnapshot", "snapshots are").await
    }

    async fn list_snapshots(&self, _: Request<ListSnapshotsRequest>) -> Reply<ListSnapshotsResponse> {
        not_offered("ListSnapshots", "snapshots are").await
    }

    async fn get_snapshot(&self, _: Request<GetSnapshotRequest>) -> Reply<GetSnapshotResponse> {
        not_offered("GetSnapshot", "snapshots are").await
    }

    async fn controller_modify_volume(
        &self,
        _: Request<ControllerModifyVolumeRequest>,
    ) -> Reply<ControllerModifyVolumeResponse> {
        not_offered("ControllerModifyVolume", "modifying a volume is").await
    }
}
