//! Kubernetes for `fusefs csi`: fuse pods of the controller, events of the node.

use super::{
    CsiArgs,
    node::{NodeArgs, RuntimeArg},
};
use crate::{
    args::{CsiPodArgs, PullPolicyArg},
    cluster::components,
};
use anyhow::{Context, Result};
use fusefs_csi_driver::{
    Cluster, Controller, Masters,
    kube::{FusePods, KubeEvents, KubePods, PodSettings, connect, events::EventLimits, reconcile::Rhythm},
    node::engine::{Events, LogEvents},
};
use std::sync::Arc;

const NO_SERVER: &str = "finding the API server (in a pod, or KUBECONFIG)";

fn settings(a: &CsiPodArgs) -> Result<PodSettings> {
    let namespace = a.fuse_namespace.clone().context("--runtime pod needs --fuse-namespace")?;
    let image = a.fuse_image.clone().context("--runtime pod needs --fuse-image")?;
    let pull_policy = match a.fuse_image_pull_policy {
        PullPolicyArg::Always => "Always",
        PullPolicyArg::IfNotPresent => "IfNotPresent",
        PullPolicyArg::Never => "Never",
    };
    Ok(PodSettings {
        pull_policy: pull_policy.into(),
        pull_secrets: a.fuse_image_pull_secrets.clone(),
        priority_class: a.fuse_priority_class.clone(),
        memory: a.fuse_memory,
        cpu: a.fuse_cpu_request.clone(),
        grace_seconds: a.fuse_grace.into(),
        user_namespace: a.fuse_user_namespace,
        service_account: a.fuse_service_account.clone().unwrap_or_default(),
        ..PodSettings::new(namespace, image)
    })
}

/// With `--runtime pod`: a pod for each publication.
pub async fn attend(controller: Controller, a: &CsiArgs, masters: Arc<dyn Cluster>) -> Result<Controller> {
    if a.node.runtime != RuntimeArg::Pod {
        return Ok(controller);
    }
    let settings = settings(&a.pods)?;
    let pods = KubePods::new(connect().await.context(NO_SERVER)?, &settings.namespace);
    let maker = FusePods::start(Masters::new(masters), Arc::new(pods), settings, Rhythm::default());
    Ok(controller.with_pods(Arc::new(maker)))
}

/// Where events of the node go: in a pod to the API server and the log, elsewhere to the log.
pub async fn events(a: &NodeArgs) -> Result<Arc<dyn Events>> {
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_none() {
        return Ok(Arc::new(LogEvents));
    }
    let client = connect().await.context(NO_SERVER)?;
    Ok(Arc::new(KubeEvents::start(client, a.name()?.as_str(), components().clock, EventLimits::default())))
}
