//! Who the plugin is. Probe answers for this process only: a restart heals no backend.

use crate::{DRIVER_NAME, answer::answer};
use fusefs_proto::csi::{
    self, GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse,
    plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion},
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tonic::{Request, Response, Status};

/// The identity service. Clones share the readiness.
#[derive(Clone, Debug)]
pub struct Identity {
    name: String,
    ready: Arc<AtomicBool>,
}

impl Identity {
    /// Under the usual name, ready.
    pub fn new() -> Identity {
        Identity { name: DRIVER_NAME.to_owned(), ready: Arc::new(AtomicBool::new(true)) }
    }

    /// Ready or still starting (adopting mounts, for example): both are healthy.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }
}

impl Default for Identity {
    fn default() -> Identity {
        Identity::new()
    }
}

#[tonic::async_trait]
impl csi::identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        answer("GetPluginInfo", "", async {
            Ok(GetPluginInfoResponse {
                name: self.name.clone(),
                vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
                manifest: Default::default(),
            })
        })
        .await
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let service = Type::Service(Service { r#type: service::Type::ControllerService.into() });
        let online = Type::VolumeExpansion(VolumeExpansion { r#type: volume_expansion::Type::Online.into() });
        let capabilities = [service, online].map(|t| PluginCapability { r#type: Some(t) }).to_vec();
        answer("GetPluginCapabilities", "", async { Ok(GetPluginCapabilitiesResponse { capabilities }) }).await
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(self.ready.load(Ordering::Relaxed)) }))
    }
}
