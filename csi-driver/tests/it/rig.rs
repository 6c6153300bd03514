//! A served driver, its clients, and short ways to make requests.

use crate::fake::Fake;
use fusefs_csi_driver::{Controller, Endpoint, Identity, Plugin, controller::Settings};
use fusefs_proto::csi::{
    controller_client::ControllerClient, identity_client::IdentityClient, volume_capability::access_mode::Mode, *,
};
use std::{collections::HashMap, sync::Arc};
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::{Code, Status, transport::Channel};

/// See the module.
pub struct Rig {
    /// The cluster.
    pub fake: Arc<Fake>,
    /// Controller client.
    pub controller: ControllerClient<Channel>,
    /// Identity client.
    pub identity: IdentityClient<Channel>,
    /// Where it serves.
    pub endpoint: Endpoint,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Rig {
    pub async fn new() -> Rig {
        Rig::with(Settings::default()).await
    }

    pub async fn with(settings: Settings) -> Rig {
        Rig::made(|fake| Controller::new(fake, settings)).await
    }

    pub async fn made(controller: impl FnOnce(Arc<Fake>) -> Controller) -> Rig {
        let dir = tempfile::tempdir().expect("dir");
        let uri = format!("unix://{}", dir.path().join("csi.sock").display());
        let endpoint = Endpoint::parse(&uri).expect("endpoint");
        let fake = Fake::new();
        let plugin = Plugin::new(Identity::new()).controller(controller(fake.clone()));
        let (stop, stopped) = oneshot::channel();
        let at = endpoint.clone();
        let served = tokio::spawn(async move {
            let end = async {
                let _ = stopped.await;
            };
            plugin.serve(&at, end).await.expect("serves");
        });
        while !endpoint.path().exists() {
            tokio::task::yield_now().await;
        }
        let channel = tonic::transport::Endpoint::from_shared(uri).expect("uri").connect().await.expect("connects");
        Rig {
            fake,
            controller: ControllerClient::new(channel.clone()),
            identity: IdentityClient::new(channel),
            endpoint,
            stop,
            served,
            _dir: dir,
        }
    }

    /// Ends the service as a signal does.
    pub async fn end(self) {
        self.stop.send(()).expect("it runs");
        self.served.await.expect("an orderly end");
        assert!(!self.endpoint.path().exists(), "the socket is removed");
    }

    pub async fn create(&self, r: CreateVolumeRequest) -> Result<Volume, Status> {
        let reply = self.controller.clone().create_volume(r).await?;
        Ok(reply.into_inner().volume.expect("a volume"))
    }

    pub async fn delete(&self, id: &str) -> Result<(), Status> {
        let r = DeleteVolumeRequest { volume_id: id.into(), ..Default::default() };
        self.controller.clone().delete_volume(r).await.map(|_| ())
    }

    pub async fn expand(&self, id: &str, required: i64, limit: i64) -> Result<i64, Status> {
        let r = ControllerExpandVolumeRequest {
            volume_id: id.into(),
            capacity_range: range(required, limit),
            ..Default::default()
        };
        let reply = self.controller.clone().controller_expand_volume(r).await?.into_inner();
        assert!(!reply.node_expansion_required);
        Ok(reply.capacity_bytes)
    }

    pub async fn publish(
        &self,
        id: &str,
        node: &str,
        mode: Mode,
        readonly: bool,
    ) -> Result<HashMap<String, String>, Status> {
        let r = ControllerPublishVolumeRequest {
            volume_id: id.into(),
            node_id: node.into(),
            volume_capability: Some(mount(mode)),
            readonly,
            ..Default::default()
        };
        Ok(self.controller.clone().controller_publish_volume(r).await?.into_inner().publish_context)
    }

    pub async fn unpublish(&self, id: &str, node: &str) -> Result<(), Status> {
        let r = ControllerUnpublishVolumeRequest { volume_id: id.into(), node_id: node.into(), ..Default::default() };
        self.controller.clone().controller_unpublish_volume(r).await.map(|_| ())
    }

    pub async fn list(&self, max: i32, token: &str) -> Result<ListVolumesResponse, Status> {
        let r = ListVolumesRequest { max_entries: max, starting_token: token.into() };
        Ok(self.controller.clone().list_volumes(r).await?.into_inner())
    }

    pub async fn get(&self, id: &str) -> Result<ControllerGetVolumeResponse, Status> {
        let r = ControllerGetVolumeRequest { volume_id: id.into() };
        Ok(self.controller.clone().controller_get_volume(r).await?.into_inner())
    }
}

/// A capability to mount.
pub fn mount(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(volume_capability::AccessType::Mount(Default::default())),
        access_mode: Some(volume_capability::AccessMode { mode: mode.into() }),
    }
}

/// A range.
pub fn range(required_bytes: i64, limit_bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange { required_bytes, limit_bytes })
}

/// A request that is valid.
pub fn request(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        volume_capabilities: vec![mount(Mode::SingleNodeWriter)],
        ..Default::default()
    }
}

/// The code of a refusal, which must say something and carry no details.
pub fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    match result {
        Ok(_) => Code::Ok,
        Err(status) => {
            assert!(!status.message().is_empty(), "{status:?}");
            assert!(status.details().is_empty(), "{status:?}");
            status.code()
        }
    }
}

/// A map.
pub fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}
