//! What the chart renders, for several value sets: every object is one that Kubernetes knows, field by field, and asks for no
//! more rights than it should.

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    batch::v1::Job,
    core::v1::{
        ConfigMap, Container, Namespace, PersistentVolume, PodSpec, ResourceQuota, Secret, Service, ServiceAccount,
    },
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding},
    storage::v1::{CSIDriver, StorageClass},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// One object of a file.
struct Object {
    file: PathBuf,
    value: Value,
}

impl Object {
    fn kind(&self) -> &str {
        self.value["kind"].as_str().unwrap_or_default()
    }
    fn name(&self) -> &str {
        self.value["metadata"]["name"].as_str().unwrap_or_default()
    }
    fn place(&self) -> String {
        format!("{}: {} {}", self.file.display(), self.kind(), self.name())
    }
    fn typed<T: DeserializeOwned>(&self) -> T {
        serde_json::from_value(self.value.clone()).unwrap_or_else(|e| panic!("{}: {e}", self.place()))
    }
    /// The pods it makes.
    fn pod(&self) -> Option<PodSpec> {
        let template = match self.kind() {
            "Deployment" => self.typed::<Deployment>().spec?.template,
            "DaemonSet" => self.typed::<DaemonSet>().spec?.template,
            "StatefulSet" => self.typed::<StatefulSet>().spec?.template,
            "Job" => self.typed::<Job>().spec?.template,
            _ => return None,
        };
        template.spec
    }
    fn rules(&self) -> Vec<PolicyRule> {
        match self.kind() {
            "ClusterRole" => self.typed::<ClusterRole>().rules.unwrap_or_default(),
            "Role" => self.typed::<Role>().rules.unwrap_or_default(),
            _ => Vec::new(),
        }
    }
}

/// Every rendered object: manifests and goldens.
fn objects() -> Vec<Object> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut out = Vec::new();
    for dir in ["deploy/manifests", "deploy/helm/fusefs/golden"] {
        let mut files: Vec<PathBuf> =
            fs::read_dir(root.join(dir)).expect(dir).map(|e| e.expect("entry").path()).collect();
        files.sort();
        let rendered = |f: &PathBuf| {
            let name = f.file_name().unwrap_or_default().to_string_lossy();
            name.ends_with(".yaml") && !name.ends_with("values.yaml")
        };
        for file in files.into_iter().filter(rendered) {
            let text = fs::read_to_string(&file).expect("a file");
            let values: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
            let file = file.strip_prefix(&root).expect("below the root").to_owned();
            out.extend(values.into_iter().map(|value| Object { file: file.clone(), value }));
        }
    }
    assert!(out.len() > 200, "only {} objects: are the manifests rendered?", out.len());
    out
}

fn round_trip<T: DeserializeOwned + Serialize>(o: &Object) {
    let again = serde_json::to_value(o.typed::<T>()).expect("JSON");
    let mut dropped = Vec::new();
    compare("", &o.value, &again, &mut dropped);
    assert!(dropped.is_empty(), "{}: dropped or changed: {}", o.place(), dropped.join(", "));
}

/// Names where `again` is not what was written. Fields that a type adds by itself do not count.
fn compare(at: &str, written: &Value, again: &Value, out: &mut Vec<String>) {
    match (written, again) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                compare(&format!("{at}.{key}"), value, b.get(key).unwrap_or(&Value::Null), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| compare(&format!("{at}[{i}]"), a, b, out));
        }
        // A number is a fine quantity; types keep quantities as text.
        (Value::Number(a), Value::String(b)) if a.to_string() == *b => {}
        (a, b) if a == b => {}
        (a, b) => out.push(format!("{at} ({a} -> {b})")),
    }
}

#[test]
fn every_object_is_known_to_kubernetes_with_all_its_fields() {
    let mut seen = BTreeSet::new();
    for o in objects() {
        let version = o.value["apiVersion"].as_str().unwrap_or_default().to_owned();
        match (version.as_str(), o.kind()) {
            ("v1", "ConfigMap") => round_trip::<ConfigMap>(&o),
            ("v1", "Namespace") => round_trip::<Namespace>(&o),
            ("v1", "PersistentVolume") => round_trip::<PersistentVolume>(&o),
            ("v1", "ResourceQuota") => round_trip::<ResourceQuota>(&o),
            ("v1", "Secret") => round_trip::<Secret>(&o),
            ("v1", "Service") => round_trip::<Service>(&o),
            ("v1", "ServiceAccount") => round_trip::<ServiceAccount>(&o),
            ("apps/v1", "DaemonSet") => round_trip::<DaemonSet>(&o),
            ("apps/v1", "Deployment") => round_trip::<Deployment>(&o),
            ("apps/v1", "StatefulSet") => round_trip::<StatefulSet>(&o),
            ("batch/v1", "Job") => round_trip::<Job>(&o),
            ("networking.k8s.io/v1", "NetworkPolicy") => round_trip::<NetworkPolicy>(&o),
            ("policy/v1", "PodDisruptionBudget") => round_trip::<PodDisruptionBudget>(&o),
            ("rbac.authorization.k8s.io/v1", "ClusterRole") => round_trip::<ClusterRole>(&o),
            ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => round_trip::<ClusterRoleBinding>(&o),
            ("rbac.authorization.k8s.io/v1", "Role") => round_trip::<Role>(&o),
            ("rbac.authorization.k8s.io/v1", "RoleBinding") => round_trip::<RoleBinding>(&o),
            ("storage.k8s.io/v1", "CSIDriver") => round_trip::<CSIDriver>(&o),
            ("storage.k8s.io/v1", "StorageClass") => round_trip::<StorageClass>(&o),
            // The one type of somebody else.
            ("monitoring.coreos.com/v1", "PodMonitor") => {}
            (version, _) => panic!("{}: {version} is not expected", o.place()),
        }
        seen.insert(o.kind().to_owned());
    }
    assert_eq!(seen.len(), 20, "{seen:?}");
}

#[test]
fn a_misspelt_field_is_noticed() {
    let good =
        json!({"kind": "Service", "metadata": {"name": "s"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}});
    let check = |value: Value| {
        let o = Object { file: "test".into(), value };
        std::panic::catch_unwind(|| round_trip::<Service>(&o)).is_ok()
    };
    let mut bad = good.clone();
    assert!(check(json!({"apiVersion": "v1", "kind": "Service", "metadata": good["metadata"], "spec": good["spec"]})));
    bad["apiVersion"] = json!("v1");
    bad["spec"]["ports"][0]["tagretPort"] = json!("grpc");
    assert!(!check(bad));
}

/// Init containers and containers.
fn containers(pod: &PodSpec) -> impl Iterator<Item = &Container> {
    pod.init_containers.iter().flatten().chain(&pod.containers)
}

#[test]
fn only_the_mounting_containers_are_privileged() {
    for o in objects() {
        let Some(pod) = o.pod() else { continue };
        assert_eq!(pod.automount_service_account_token, Some(false), "{}", o.place());
        assert_eq!(pod.host_network, None, "{}", o.place());
        for c in containers(&pod) {
            let at = format!("{}, container {}", o.place(), c.name);
            let s = c.security_context.as_ref().unwrap_or_else(|| panic!("{at}: no security context"));
            let mounts = o.name().ends_with("-csi-node") && c.name == "driver";
            assert_eq!(s.privileged.unwrap_or(false), mounts, "{at}");
            assert_eq!(s.read_only_root_filesystem, Some(true), "{at}");
            if !mounts {
                let capabilities = s.capabilities.clone().unwrap_or_default();
                assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]), "{at}");
                let chown = c.name.starts_with("own-").then(|| vec!["CHOWN".to_owned()]);
                assert_eq!(capabilities.add, chown, "{at}");
                assert_eq!(s.allow_privilege_escalation, Some(false), "{at}");
            }
            let propagated = c.volume_mounts.iter().flatten().any(|m| m.mount_propagation.is_some());
            assert_eq!(propagated, mounts, "{at}");
            assert!(c.resources.as_ref().is_some_and(|r| r.requests.is_some()) || c.name.starts_with("own-"), "{at}");
        }
    }
}

#[test]
fn the_keeper_has_neither_token_nor_network() {
    let keepers: Vec<Object> = objects().into_iter().filter(|o| o.name().ends_with("-keeper")).collect();
    assert!(!keepers.is_empty());
    for o in keepers {
        if o.kind() == "NetworkPolicy" {
            let spec = o.typed::<NetworkPolicy>().spec.expect("a spec");
            assert_eq!(spec.policy_types, Some(vec!["Ingress".to_owned(), "Egress".to_owned()]));
            assert!(spec.ingress.is_none() && spec.egress.is_none());
            continue;
        }
        let set: DaemonSet = o.typed();
        assert_eq!(set.spec.and_then(|s| s.update_strategy).and_then(|u| u.type_).as_deref(), Some("OnDelete"));
        let pod = o.pod().expect("pods");
        let user = pod.security_context.expect("a security context");
        assert_eq!(user.run_as_non_root, Some(true));
        assert_ne!(user.run_as_user, Some(0));
        let volumes: Vec<String> = pod.volumes.unwrap_or_default().into_iter().map(|v| v.name).collect();
        assert_eq!(volumes, ["socket"], "{}", o.file.display());
        let mut env = pod.containers.iter().flat_map(|c| c.env.iter().flatten());
        assert!(env.all(|e| e.name.starts_with("FUSEFS_LOG")));
    }
}

/// Rules as `group/resource verb`.
fn grants(o: &Object) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for rule in o.rules() {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                out.extend(rule.verbs.iter().map(|verb| format!("{group}/{resource} {verb}")));
            }
        }
    }
    out
}

#[test]
fn nobody_reads_secrets_and_nodes_change_no_pods() {
    let (mut of_nodes, mut of_controllers) = (0, 0);
    for o in objects() {
        let grants = grants(&o);
        let has = |what: &str| grants.iter().any(|g| g.contains(what));
        assert!(!has("*") && !has("/secrets"), "{}", o.place());
        let cluster = o.kind() == "ClusterRole";
        assert!(!(cluster && has("/pods")), "pods of all namespaces: {}", o.place());
        if grants.is_empty() {
            continue;
        }
        if o.name().ends_with("-csi-node") {
            of_nodes += 1;
            let expected: &[&str] = if cluster {
                &[
                    "storage.k8s.io/volumeattachments get",
                    "storage.k8s.io/volumeattachments list",
                    "storage.k8s.io/volumeattachments watch",
                    "/persistentvolumes get",
                    "/persistentvolumes list",
                    "/nodes get",
                    "/events create",
                    "/events patch",
                ]
            } else {
                &["/pods get", "/pods list", "/pods watch"]
            };
            assert_eq!(grants, expected.iter().map(|g| (*g).to_owned()).collect(), "{}", o.place());
        } else {
            of_controllers += 1;
            let makes_pods = has("/pods create");
            assert_eq!(makes_pods, !cluster && has("/pods delete"), "{}", o.place());
        }
    }
    assert!(of_nodes >= 10 && of_controllers >= 15, "{of_nodes} {of_controllers}");
}

#[test]
fn fuse_pods_live_under_the_restricted_policy() {
    let mut seen = 0;
    for o in objects().iter().filter(|o| o.kind() == "Namespace") {
        let labels = o.typed::<Namespace>().metadata.labels.unwrap_or_default();
        let fuse = labels.get("app.kubernetes.io/component").is_some_and(|c| c == "fuse");
        let level = if fuse { "restricted" } else { "privileged" };
        for mode in ["enforce", "audit", "warn"] {
            assert_eq!(labels.get(&format!("pod-security.kubernetes.io/{mode}")).map(String::as_str), Some(level));
        }
        seen += usize::from(fuse);
    }
    assert!(seen >= 4);
}

#[test]
fn secrets_are_in_no_argument_and_no_variable() {
    for o in objects() {
        let Some(pod) = o.pod() else { continue };
        let text = serde_json::to_string(&pod).expect("JSON");
        for secret in ["not-a-secret-not-a-secret", "rootsecret", "rootkey"] {
            assert!(!text.contains(secret), "{}", o.place());
        }
        assert!(!text.contains("secretKeyRef"), "{}", o.place());
    }
}
