//! Identity, and what is and is not offered.

use crate::rig::{Rig, code};
use fusefs_csi_driver::{Identity, controller::Settings};
use fusefs_proto::csi::{
    controller_service_capability::{Type as CapabilityType, rpc::Type},
    identity_server::Identity as _,
    *,
};
use std::sync::atomic::Ordering;
use tonic::{Code, Request};

#[tokio::test]
async fn who_it_is_and_that_it_lives_without_a_cluster() {
    let rig = Rig::new().await;
    rig.fake.down.store(true, Ordering::Relaxed);
    let mut identity = rig.identity.clone();
    let info = identity.get_plugin_info(GetPluginInfoRequest {}).await.expect("info").into_inner();
    assert_eq!(info.name, "csi.fusefs.io");
    assert!(!info.vendor_version.is_empty());
    let probe = identity.probe(ProbeRequest {}).await.expect("a down backend is no reason to restart").into_inner();
    assert_eq!(probe.ready, Some(true));
    assert_eq!(rig.fake.calls.load(Ordering::Relaxed), 0, "and nobody is asked");
    let offered = identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.expect("offered");
    assert_eq!(offered.into_inner().capabilities.len(), 2);
    assert_eq!(code(rig.list(0, "").await), Code::Unavailable);
    rig.end().await;
}

#[tokio::test]
async fn starting_is_healthy() {
    let identity = Identity::new();
    identity.set_ready(false);
    let probe = identity.probe(Request::new(ProbeRequest {})).await.expect("healthy").into_inner();
    assert_eq!(probe.ready, Some(false));
}

async fn offered(rig: &Rig) -> Vec<Type> {
    let reply = rig.controller.clone().controller_get_capabilities(ControllerGetCapabilitiesRequest {}).await;
    let list = reply.expect("capabilities").into_inner().capabilities;
    list.into_iter()
        .map(|c| match c.r#type {
            Some(CapabilityType::Rpc(rpc)) => rpc.r#type(),
            None => panic!("no type"),
        })
        .collect()
}

#[tokio::test]
async fn what_is_not_offered_is_unimplemented() {
    let rig = Rig::new().await;
    let offered_without_pool = offered(&rig).await;
    for absent in [
        Type::CreateDeleteSnapshot,
        Type::ListSnapshots,
        Type::CloneVolume,
        Type::ModifyVolume,
        Type::GetSnapshot,
        Type::GetCapacity,
        Type::VolumeCondition,
    ] {
        assert!(!offered_without_pool.contains(&absent), "{absent:?}");
    }
    let mut c = rig.controller.clone();
    assert_eq!(code(c.create_snapshot(CreateSnapshotRequest::default()).await), Code::Unimplemented);
    assert_eq!(code(c.delete_snapshot(DeleteSnapshotRequest::default()).await), Code::Unimplemented);
    assert_eq!(code(c.list_snapshots(ListSnapshotsRequest::default()).await), Code::Unimplemented);
    assert_eq!(code(c.get_snapshot(GetSnapshotRequest::default()).await), Code::Unimplemented);
    assert_eq!(code(c.controller_modify_volume(ControllerModifyVolumeRequest::default()).await), Code::Unimplemented);
    assert_eq!(code(c.get_capacity(GetCapacityRequest::default()).await), Code::Unimplemented);
    assert_eq!(rig.fake.calls.load(Ordering::Relaxed), 0);
    let pool = Rig::with(Settings { capacity_pool: Some(1) }).await;
    assert!(offered(&pool).await.contains(&Type::GetCapacity));
}
