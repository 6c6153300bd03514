//! The node service: parses requests, excludes calls on one volume from each other, and finishes what it began even when the
//! caller hangs up.

use super::{
    engine::Node,
    model::{Capability, PublishRequest, StageRequest, Subdir, VolumeId},
    paths,
};
use crate::{Fault, Outcome, valid};
use async_trait::async_trait;
use fusefs_proto::csi::{
    self, NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse,
    NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
    NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest,
    NodeUnstageVolumeResponse, Topology, VolumeCondition, VolumeUsage, node_server,
    node_service_capability::{Rpc, Type, rpc},
    volume_usage::Unit,
};
use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::watch, time::timeout};
use tonic::{Request, Response, Status};

/// Key of the publish context: attach generation.
const ATTACH: &str = "fusefs.io/attach";
/// Key of the publish context: `rw` or `ro` on this node.
const ACCESS: &str = "fusefs.io/access";
/// What we can do.
const CAPABILITIES: [rpc::Type; 6] = [
    rpc::Type::StageUnstageVolume,
    rpc::Type::GetVolumeStats,
    rpc::Type::ExpandVolume,
    rpc::Type::VolumeCondition,
    rpc::Type::SingleNodeMultiWriter,
    rpc::Type::VolumeMountGroup,
];

/// How long NodeGetInfo waits for the masters to hear of the node: kubelet registers a node with its answer, and volumes
/// are published to it from then on. Without masters it answers all the same.
const ANNOUNCE_PATIENCE: Duration = Duration::from_secs(3);

/// The gRPC service. Clones share the node.
#[derive(Clone)]
pub struct NodeService {
    node: Arc<Node>,
    known: Option<watch::Receiver<bool>>,
}

impl NodeService {
    /// Serves `node`.
    pub fn new(node: Arc<Node>) -> NodeService {
        NodeService { node, known: None }
    }

    /// `known` turns true when the masters know the node ([`super::announce`]).
    pub fn announced(self, known: watch::Receiver<bool>) -> NodeService {
        NodeService { known: Some(known), ..self }
    }

    /// Runs a call that changes something, alone on its volume. It goes on when the caller hangs up: a cancelled call never
    /// leaves anything half done that its record does not name.
    async fn alone<W, F>(&self, what: &'static str, volume: &VolumeId, work: W) -> Result<(), Status>
    where
        W: FnOnce(Arc<Node>) -> F,
        F: Future<Output = Outcome<()>> + Send + 'static,
    {
        let done = match self.node.enter(volume).await {
            Err(fault) => Err(fault),
            Ok(busy) => {
                let work = work(self.node.clone());
                let task = tokio::spawn(async move {
                    let done = work.await;
                    drop(busy);
                    done
                });
                task.await.unwrap_or_else(|_| Err(Fault::unavailable("the call ended unexpectedly; try again")))
            }
        };
        done.map_err(told(what))
    }
}

/// The one place where a failed call is logged. Volume ids are printable, or the message is about just that.
fn told(what: &'static str) -> impl Fn(Fault) -> Status {
    move |fault| {
        tracing::warn!(what, code = ?fault.code, message = %fault.message, "refused");
        fault.into()
    }
}

#[async_trait]
impl node_server::Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = stage_request(&request.into_inner()).map_err(told("NodeStageVolume"))?;
        let volume = request.volume.clone();
        let work = |node: Arc<Node>| async move { node.stage(&request).await };
        self.alone("NodeStageVolume", &volume, work).await?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let r = request.into_inner();
        let what = "NodeUnstageVolume";
        let volume = VolumeId::parse(&r.volume_id).map_err(told(what))?;
        let path = paths::resolve("staging_target_path", &r.staging_target_path).map_err(told(what))?;
        let (id, given) = (volume.clone(), PathBuf::from(r.staging_target_path));
        // Without its directory nothing can be mounted there, but a record may still name it.
        let work = |node: Arc<Node>| async move { node.unstage(&id, &path.unwrap_or(given)).await };
        self.alone(what, &volume, work).await?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = publish_request(&request.into_inner()).map_err(told("NodePublishVolume"))?;
        let volume = request.volume.clone();
        let work = |node: Arc<Node>| async move { node.publish(&request).await };
        self.alone("NodePublishVolume", &volume, work).await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let r = request.into_inner();
        let what = "NodeUnpublishVolume";
        let volume = VolumeId::parse(&r.volume_id).map_err(told(what))?;
        let path = paths::resolve("target_path", &r.target_path).map_err(told(what))?;
        let (id, given) = (volume.clone(), PathBuf::from(r.target_path));
        let work = |node: Arc<Node>| async move { node.unpublish(&id, &path.unwrap_or(given)).await };
        self.alone(what, &volume, work).await?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let r = request.into_inner();
        let what = "NodeGetVolumeStats";
        let (volume, path) = known(&r.volume_id, &r.volume_path).map_err(told(what))?;
        let stats = self.node.stats(&volume, &path).await.map_err(told(what))?;
        let usage = stats.space.map_or_else(Vec::new, |s| {
            vec![usage(Unit::Bytes, s.bytes, s.bytes_free), usage(Unit::Inodes, s.inodes, s.inodes_free)]
        });
        let condition = VolumeCondition {
            abnormal: stats.abnormal.is_some(),
            message: stats.abnormal.unwrap_or_else(|| "the mount serves".into()),
        };
        Ok(Response::new(NodeGetVolumeStatsResponse { usage, volume_condition: Some(condition) }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let r = request.into_inner();
        let what = "NodeExpandVolume";
        let (volume, path) = known(&r.volume_id, &r.volume_path).map_err(told(what))?;
        let range = valid::CapacityRange::parse(r.capacity_range.as_ref()).map_err(told(what))?;
        let known = self.node.expand(&volume, &path).await.map_err(told(what))?;
        // The quota is the cluster's and already raised; the mount shows it soon.
        let bytes = known.unwrap_or(0).max(range.required);
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: signed(bytes) }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let one = |c: rpc::Type| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: c.into() })) };
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: CAPABILITIES.into_iter().map(one).collect() }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        if let Some(mut known) = self.known.clone() {
            // Too late or for ever: the answer is the same.
            let _ = timeout(ANNOUNCE_PATIENCE, known.wait_for(|known| *known)).await;
        }
        let s = self.node.settings();
        let topology = (!s.topology.is_empty()).then(|| Topology { segments: s.topology.clone() });
        Ok(Response::new(NodeGetInfoResponse {
            node_id: s.node.clone(),
            max_volumes_per_node: s.max_volumes,
            accessible_topology: topology,
        }))
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn usage(unit: Unit, total: u64, available: u64) -> VolumeUsage {
    VolumeUsage {
        available: signed(available),
        total: signed(total),
        used: signed(total.saturating_sub(available)),
        unit: unit.into(),
    }
}

/// A volume and a path that have to be here: what cannot be is simply not found.
fn known(volume: &str, path: &str) -> Outcome<(VolumeId, PathBuf)> {
    let volume = VolumeId::parse(volume)?;
    valid::present("volume_path", path)?;
    let found = paths::resolve("volume_path", path).ok().flatten();
    Ok((volume, found.ok_or_else(|| Fault::not_found("the volume is not at volume_path on this node"))?))
}

/// Attach generation and whether this node may write.
fn attachment(context: &HashMap<String, String>) -> Outcome<(u64, bool)> {
    valid::map_size("publish_context", context)?;
    let generation = context.get(ATTACH).map_or(Ok(0), |n| n.parse());
    let generation = generation.map_err(|_| Fault::invalid(format!("{ATTACH} in publish_context is not a number")))?;
    let writable = match context.get(ACCESS).map(String::as_str) {
        None | Some("rw") => true,
        Some("ro") => false,
        Some(_) => return Err(Fault::invalid(format!("{ACCESS} in publish_context is neither rw nor ro"))),
    };
    Ok((generation, writable))
}

fn capability(given: Option<&csi::VolumeCapability>, writable: bool) -> Outcome<Capability> {
    let parsed = valid::Capability::parse(given)?;
    let mut capability = Capability { mode: parsed.mode, options: (&parsed.options).try_into()?, group: parsed.group };
    capability.options.read_only |= !writable;
    Ok(capability)
}

fn stage_request(r: &NodeStageVolumeRequest) -> Outcome<StageRequest> {
    let volume = VolumeId::parse(&r.volume_id)?;
    valid::present("staging_target_path", &r.staging_target_path)?;
    valid::map_size("secrets", &r.secrets)?;
    valid::map_size("volume_context", &r.volume_context)?;
    let (generation, writable) = attachment(&r.publish_context)?;
    let capability = capability(r.volume_capability.as_ref(), writable)?;
    let handle = valid::VolumeHandle::parse(&r.volume_id)?;
    let staging = paths::existing("staging_target_path", &r.staging_target_path)?;
    let name = handle.volume.as_str().to_owned();
    Ok(StageRequest { volume, name, staging, capability, generation })
}

fn publish_request(r: &NodePublishVolumeRequest) -> Outcome<PublishRequest> {
    let volume = VolumeId::parse(&r.volume_id)?;
    valid::present("target_path", &r.target_path)?;
    valid::map_size("secrets", &r.secrets)?;
    valid::map_size("volume_context", &r.volume_context)?;
    let (_, writable) = attachment(&r.publish_context)?;
    let capability = capability(r.volume_capability.as_ref(), writable)?;
    let subdir = match valid::VolumeHandle::parse(&r.volume_id)?.subdir {
        Some(subdir) => Subdir::parse(subdir.as_str())?,
        None => Subdir::default(),
    };
    if r.staging_target_path.is_empty() {
        return Err(Fault::precondition("staging_target_path is missing: the volume has to be staged first"));
    }
    let staging = paths::existing("staging_target_path", &r.staging_target_path)?;
    let target = paths::existing("target_path", &r.target_path)?;
    if staging == target {
        return Err(Fault::invalid("target_path and staging_target_path are the same"));
    }
    Ok(PublishRequest { volume, staging, target, capability, readonly: r.readonly, subdir })
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
