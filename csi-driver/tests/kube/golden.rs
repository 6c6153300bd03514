//! The pods that the driver makes, word for word, and the rules of the `restricted` pod security standard.
//! `UPDATE_GOLDEN=1 cargo test -p fusefs-csi-driver --test kube golden` writes the files anew.

use fusefs_csi_driver::kube::{PodSettings, Seat, fuse_pod};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::path::Path;

fn seat() -> Seat {
    Seat { node: "node-1.example.org".into(), volume: "home/users/jane doe".into(), number: 7 }
}

fn plain() -> PodSettings {
    PodSettings::new("fusefs-fuse", "registry.example.org/fusefs:1.0")
}

fn everything() -> PodSettings {
    PodSettings {
        pull_policy: "Always".into(),
        pull_secrets: vec!["registry".into()],
        priority_class: "fuse".into(),
        memory: 1_000_000_001,
        cpu: "100m".into(),
        grace_seconds: 30,
        user_namespace: true,
        service_account: "fusefs-fuse".into(),
        ..plain()
    }
}

fn golden(name: &str, pod: &Pod) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let text = serde_json::to_string_pretty(pod).expect("json") + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).expect("written");
    }
    let wanted = std::fs::read_to_string(&path).expect("the golden file");
    assert!(text == wanted, "{} differs; look at it and set UPDATE_GOLDEN=1:\n{text}", path.display());
}

#[test]
fn pods_are_as_in_the_golden_files() {
    golden("fuse-pod.json", &fuse_pod(&plain(), &seat()));
    golden("fuse-pod-everything.json", &fuse_pod(&everything(), &seat()));
}

#[test]
fn nothing_is_dropped_on_the_way_through_the_api_types() {
    for settings in [plain(), everything()] {
        let pod = fuse_pod(&settings, &seat());
        let value = serde_json::to_value(&pod).expect("json");
        assert_eq!(value["kind"], "Pod");
        let back: Pod = serde_json::from_value(value.clone()).expect("a pod");
        assert_eq!(back, pod);
        assert_eq!(serde_json::to_value(&back).expect("json"), value);
    }
}

/// The rules of the pod security standard `restricted`, version 1.36.
#[test]
fn pods_are_restricted() {
    for settings in [plain(), everything()] {
        let pod = serde_json::to_value(fuse_pod(&settings, &seat())).expect("json");
        let spec = &pod["spec"];
        for absent in ["hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers", "hostAliases"] {
            assert!(spec[absent].is_null(), "{absent}");
        }
        assert!([Value::Null, json!(false)].contains(&spec["hostUsers"]), "never the host's users by name");
        for volume in spec["volumes"].as_array().expect("volumes") {
            let kinds: Vec<_> = volume.as_object().expect("a volume").keys().filter(|k| *k != "name").collect();
            assert_eq!(kinds, ["emptyDir"]);
            assert!(volume["emptyDir"]["sizeLimit"].is_string(), "every volume has a limit");
        }
        let security = &spec["securityContext"];
        assert_eq!(security["runAsNonRoot"], true);
        assert_eq!((&security["runAsUser"], &security["runAsGroup"]), (&json!(65532), &json!(65532)));
        assert_eq!(security["seccompProfile"], json!({ "type": "RuntimeDefault" }));
        assert!(security["sysctls"].is_null() && security["seLinuxOptions"].is_null());
        let containers = spec["containers"].as_array().expect("containers");
        assert_eq!(containers.len(), 1);
        for c in containers {
            let security = &c["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["privileged"], false);
            assert_eq!(security["capabilities"], json!({ "drop": ["ALL"] }));
            assert_eq!(security["readOnlyRootFilesystem"], true);
            assert!(
                security["procMount"].is_null()
                    && security["runAsUser"].is_null()
                    && security["seccompProfile"].is_null()
            );
            assert!(c["ports"].is_null() && c["volumeDevices"].is_null());
            // No secrets, not even by reference.
            assert!(c["env"].is_null() && c["envFrom"].is_null());
            assert_eq!(c["resources"]["limits"]["memory"], c["resources"]["requests"]["memory"]);
        }
        assert_eq!(spec["automountServiceAccountToken"], false);
        assert_eq!(spec["enableServiceLinks"], false);
    }
}
