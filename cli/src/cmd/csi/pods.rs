//! Kubernetes for `fusefs csi`: fuse pods of the controller, events of the node.

use super::{CsiArgs, node::RuntimeArg};
use crate::{
    args::{CsiPodArgs, PullPolicyArg},
    cluster::components,
};
use anyhow::{Context, Result};
use fusefs_csi_driver::{
    Cluster, Controller, Masters,
    kube::{
        Attachments, FusePods, KubeEvents, KubePodFinder, KubePods, PodSettings, cache::Pace, connect,
        events::EventLimits, reconcile::Rhythm,
    },
    node::{
        engine::{Events, LogEvents},
        found,
    },
    runtime::pod::HostFinder,
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

/// What the node's half has from Kubernetes.
pub struct Orchestrator {
    /// Where events go: in a pod to the API server and the log, elsewhere to the log.
    pub events: Arc<dyn Events>,
    /// With `--runtime pod`: who knows the fuse pods.
    pub finder: Option<Arc<dyn HostFinder>>,
    /// Who knows what is attached, when the masters do not answer.
    pub attachments: Option<Arc<dyn found::Attachments>>,
}

/// What there is for this node.
pub async fn of_node(a: &CsiArgs) -> Result<Orchestrator> {
    let pods = a.node.runtime == RuntimeArg::Pod;
    if !pods && std::env::var_os("KUBERNETES_SERVICE_HOST").is_none() {
        return Ok(Orchestrator { events: Arc::new(LogEvents), finder: None, attachments: None });
    }
    let client = connect().await.context(NO_SERVER)?;
    let name = a.node.name()?;
    let events = KubeEvents::start(client.clone(), name.as_str(), components().clock, EventLimits::default());
    let attachments: Arc<dyn found::Attachments> = Arc::new(Attachments::new(client.clone()));
    let mut orchestrator = Orchestrator { events: Arc::new(events), finder: None, attachments: Some(attachments) };
    if pods {
        let namespace = a.pods.fuse_namespace.as_deref().context("--runtime pod needs --fuse-namespace")?;
        let pods = KubePods::new(client, namespace).of_node(name.as_str());
        orchestrator.finder = Some(Arc::new(KubePodFinder::start(Arc::new(pods), name.as_str(), Pace::default())));
    }
    Ok(orchestrator)
}
