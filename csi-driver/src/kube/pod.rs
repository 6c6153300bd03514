//! The pod of one volume on one node: no right to anything. It gets its mount, its session and its credentials from the node
//! plugin, which dials in through the pod's own directory on the node.

use super::names::{self, pod_name};
use k8s_openapi::{
    api::core::v1::{
        Affinity, Capabilities, Container, EmptyDirVolumeSource, LocalObjectReference, NodeAffinity, NodeSelector,
        NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSecurityContext, PodSpec, ResourceRequirements,
        SeccompProfile, SecurityContext, Toleration, Volume, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use std::collections::BTreeMap;

/// Name of the container.
pub const CONTAINER: &str = "fuse";
/// Name of the volume with the supervisor's socket; a part of its path on the node.
pub const SOCKET_VOLUME: &str = "comm";
/// User and group of the process.
pub const USER: i64 = 65532;
/// Room for sockets.
const SOCKET_VOLUME_SIZE: &str = "1Mi";
/// Room for temporary files.
const TEMPORARY_SIZE: &str = "256Mi";
const MIB: u64 = 1 << 20;

/// What fuse pods are like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSettings {
    /// Namespace, which only the driver writes to.
    pub namespace: String,
    /// Image with the `fusefs` program.
    pub image: String,
    /// `IfNotPresent`, `Always` or `Never`.
    pub pull_policy: String,
    /// Secrets for pulling, of that namespace.
    pub pull_secrets: Vec<String>,
    /// Empty = the cluster's default.
    pub priority_class: String,
    /// Memory in bytes: requested and never exceeded.
    pub memory: u64,
    /// Share of a processor that is requested; there is no limit.
    pub cpu: String,
    /// Seconds that a pod may take to end. It ends at once: this is for a busy node.
    pub grace_seconds: i64,
    /// A user namespace of its own, where the cluster has them.
    pub user_namespace: bool,
    /// Service account without rights; empty = the namespace's default. Its token is never mounted.
    pub service_account: String,
}

impl PodSettings {
    /// Defaults.
    pub fn new(namespace: impl Into<String>, image: impl Into<String>) -> PodSettings {
        PodSettings {
            namespace: namespace.into(),
            image: image.into(),
            pull_policy: "IfNotPresent".into(),
            pull_secrets: vec![],
            priority_class: "system-node-critical".into(),
            memory: 512 * MIB,
            cpu: "10m".into(),
            grace_seconds: 600,
            user_namespace: false,
            service_account: String::new(),
        }
    }
}

/// A volume on a node: what a pod is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seat {
    /// Node.
    pub node: String,
    /// Id of the volume, with the directory if it is a part of one.
    pub volume: String,
    /// Number of the volume.
    pub number: u64,
}

impl Seat {
    /// Name of the pod.
    pub fn pod(&self) -> String {
        pod_name(&self.node, &self.volume)
    }
}

/// A fuse pod: everything that is made in the cluster for a seat.
pub fn fuse_pod(settings: &PodSettings, seat: &Seat) -> Pod {
    let labels = [("app.kubernetes.io/name", "fusefs"), names::LABEL_COMPONENT, names::LABEL_MANAGER];
    let annotations = [
        (names::VOLUME, seat.volume.clone()),
        (names::VOLUME_NUMBER, seat.number.to_string()),
        (names::NODE, seat.node.clone()),
        // It may go with its node, as the pods of DaemonSets do.
        ("cluster-autoscaler.kubernetes.io/daemonset-pod", "true".to_owned()),
    ];
    Pod {
        metadata: ObjectMeta {
            name: Some(seat.pod()),
            namespace: Some(settings.namespace.clone()),
            labels: Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
            annotations: Some(annotations.map(|(k, v)| (k.to_owned(), v)).into()),
            ..ObjectMeta::default()
        },
        spec: Some(spec(settings, seat)),
        status: None,
    }
}

fn spec(settings: &PodSettings, seat: &Seat) -> PodSpec {
    let given = |s: &String| (!s.is_empty()).then(|| s.clone());
    let secrets = settings.pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() }).collect();
    PodSpec {
        affinity: Some(on_node(&seat.node)),
        automount_service_account_token: Some(false),
        containers: vec![container(settings)],
        enable_service_links: Some(false),
        host_users: settings.user_namespace.then_some(false),
        image_pull_secrets: (!settings.pull_secrets.is_empty()).then_some(secrets),
        priority_class_name: given(&settings.priority_class),
        restart_policy: Some("Always".into()),
        security_context: Some(PodSecurityContext {
            fs_group: Some(USER),
            run_as_group: Some(USER),
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), ..SeccompProfile::default() }),
            ..PodSecurityContext::default()
        }),
        service_account_name: given(&settings.service_account),
        termination_grace_period_seconds: Some(settings.grace_seconds),
        tolerations: Some(vec![Toleration { operator: Some("Exists".into()), ..Toleration::default() }]),
        volumes: Some(vec![
            directory(SOCKET_VOLUME, Some("Memory"), SOCKET_VOLUME_SIZE),
            directory("tmp", None, TEMPORARY_SIZE),
        ]),
        ..PodSpec::default()
    }
}

/// The scheduler places it, so that the node's resources are counted; there is one node it can choose.
fn on_node(node: &str) -> Affinity {
    let is_node = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![is_node]), ..NodeSelectorTerm::default() };
    Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector { node_selector_terms: vec![term] }),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    }
}

fn container(settings: &PodSettings) -> Container {
    let memory = Quantity(memory(settings.memory));
    let mount = |name: &str, path: &str| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    };
    Container {
        name: CONTAINER.into(),
        image: Some(settings.image.clone()),
        image_pull_policy: Some(settings.pull_policy.clone()),
        command: Some(vec!["fusefs".into()]),
        args: Some(["fuse-pod", "--runtime", "/comm"].map(str::to_owned).into()),
        resources: Some(ResourceRequirements {
            limits: Some(BTreeMap::from([("memory".to_owned(), memory.clone())])),
            requests: Some(BTreeMap::from([
                ("cpu".to_owned(), Quantity(settings.cpu.clone())),
                ("memory".to_owned(), memory),
            ])),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), ..Capabilities::default() }),
            privileged: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            ..SecurityContext::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some(vec![mount(SOCKET_VOLUME, "/comm"), mount("tmp", "/tmp")]),
        ..Container::default()
    }
}

fn memory(bytes: u64) -> String {
    if bytes > 0 && bytes.is_multiple_of(MIB) { format!("{}Mi", bytes / MIB) } else { bytes.to_string() }
}

fn directory(name: &str, medium: Option<&str>, size: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: medium.map(str::to_owned),
            size_limit: Some(Quantity(size.to_owned())),
        }),
        ..Volume::default()
    }
}
