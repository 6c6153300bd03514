//! The release: an S3 server as a pod, and the chart.

use super::{
    agent::{Agent, ROOT},
    cluster::{APPS, Cluster, FUSE, RELEASE, in_path, text, until},
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const S3_DIR: &str = "/var/lib/fusefs-test/s3";
const DATA_DIR: &str = "/var/lib/fusefs-test";
const KEYS: (&str, &str) = ("rootkey", "rootsecret");
/// The cluster's token.
pub const TOKEN: &str = "a-token-for-tests-only";
/// Time for images to start and servers to elect.
const PATIENCE: Duration = Duration::from_secs(240);

/// What is installed.
pub struct Release<'a> {
    cluster: &'a Cluster,
    /// Rendered objects.
    objects: String,
    /// Values without the image's tag.
    values: Value,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The program helm.
pub fn helm() -> Result<PathBuf, String> {
    let own = root().join("target/tools/bin/helm");
    let given = std::env::var_os("FUSEFS_HELM").map(PathBuf::from);
    let found = given.or_else(|| in_path("helm")).or_else(|| own.is_file().then_some(own));
    found.ok_or_else(|| "helm is not installed (go install helm.sh/helm/v3/cmd/helm@latest)".into())
}

/// Repository and tag of a reference.
fn split(image: &str) -> (&str, &str) {
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (image, "latest"),
    }
}

impl<'a> Release<'a> {
    /// Installs everything and waits until it serves.
    pub fn install(cluster: &'a Cluster, agent: &Agent<'_>) -> Result<Release<'a>> {
        if !cluster.settings.keep {
            let mut old = Release { cluster, objects: String::new(), values: Value::Null };
            old.sweep(agent)?;
        }
        cluster.apply_json(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": APPS}}))?;
        let s3 = s3_server(cluster)?;
        let values = values(cluster, &s3)?;
        let mut release = Release { cluster, objects: String::new(), values };
        release.objects = release.render(&cluster.settings.image)?;
        cluster.apply(&release.objects)?;
        release.ready(PATIENCE)?;
        Ok(release)
    }

    /// Objects for an image.
    pub fn render(&self, image: &str) -> Result<String> {
        let mut values = self.values.clone();
        let (repository, tag) = split(image);
        values["image"] = json!({"repository": repository, "tag": tag, "pullPolicy": "IfNotPresent"});
        let file = std::env::temp_dir().join(format!("fusefs-kube-values-{}.json", std::process::id()));
        std::fs::write(&file, values.to_string())?;
        let chart = std::env::var_os("FUSEFS_KUBE_CHART").map(PathBuf::from);
        let chart = chart.unwrap_or_else(|| root().join("deploy/helm/fusefs"));
        let mut command = Command::new(helm().map_err(anyhow::Error::msg)?);
        command.args(["template", "fs"]).arg(chart).args(["-n", RELEASE, "-f"]).arg(&file);
        if let Some(more) = std::env::var_os("FUSEFS_KUBE_VALUES") {
            command.arg("-f").arg(more);
        }
        let out = command.output().context("helm")?;
        std::fs::remove_file(&file)?;
        ensure!(out.status.success(), "helm template: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8(out.stdout)?)
    }

    /// Applies the chart with another image.
    pub fn upgrade(&mut self, image: &str) -> Result<()> {
        self.objects = self.render(image)?;
        self.cluster.apply(&self.objects)
    }

    /// Kind and name of everything that rolls out.
    pub fn workloads(&self) -> Result<Vec<String>> {
        let mut all = vec![];
        for kind in ["statefulset", "daemonset", "deployment"] {
            let found = self.cluster.list(kind, Some(RELEASE), "app.kubernetes.io/part-of=fusefs")?;
            all.extend(found.iter().map(|o| format!("{kind}/{}", super::cluster::name(o))));
        }
        Ok(all)
    }

    /// Waits until servers, driver and store are there.
    pub fn ready(&self, patience: Duration) -> Result<()> {
        for one in self.workloads()? {
            // One that is only replaced by hand has no roll-out to wait for.
            if one.contains("keeper") || one.contains("mountd") {
                self.all_ready(&one, patience)?;
            } else {
                self.cluster.rolled_out(RELEASE, &one, patience)?;
            }
        }
        until("job of the store", patience, || {
            let jobs = self.cluster.list("jobs", Some(RELEASE), "app.kubernetes.io/component=store")?;
            Ok(jobs.iter().any(|j| j["status"]["succeeded"].as_u64() == Some(1)))
        })
        .map(drop)
    }

    fn all_ready(&self, what: &str, patience: Duration) -> Result<()> {
        let name = what.split('/').next_back().unwrap_or_default();
        until(&format!("pods of {what}"), patience, || {
            let set = self.cluster.get("daemonset", RELEASE, name)?.context("gone")?;
            Ok(set["status"]["numberReady"].as_u64() >= Some(self.cluster.nodes.len() as u64))
        })
        .map(drop)
    }

    /// Objects in the bucket, without the mark by which a cluster knows its store.
    pub fn bucket(&self) -> Result<Vec<String>> {
        let list = "cd /data/fusefs && find . -type f ! -name fusefs-marker";
        let all = self.cluster.exec(APPS, "s3", "tools", &["bash", "-c", list])?;
        Ok(all.lines().map(str::to_owned).collect())
    }

    /// Removes everything that an installation made, on the nodes, too.
    pub fn sweep(&mut self, agent: &Agent<'_>) -> Result<()> {
        let c = self.cluster;
        for kind in ["pods", "persistentvolumeclaims"] {
            c.run(&["delete", kind, "-n", APPS, "-l", "app!=agent", "--ignore-not-found", "--timeout=100s"])?;
        }
        until("end of volumes", PATIENCE, || Ok(driver_volumes(c)?.is_empty()))?;
        let part = "app.kubernetes.io/part-of=fusefs";
        let namespaced = "statefulsets,daemonsets,deployments,jobs,services,configmaps,secrets,serviceaccounts,\
             poddisruptionbudgets,resourcequotas,roles,rolebindings,pods,persistentvolumeclaims";
        for namespace in [RELEASE, FUSE] {
            c.run(&["delete", namespaced, "-n", namespace, "-l", part, "--ignore-not-found", "--timeout=100s"])?;
            c.run(&["delete", "namespace", namespace, "--ignore-not-found", "--timeout=100s"])?;
        }
        let global = "clusterroles,clusterrolebindings,csidrivers,storageclasses,persistentvolumes";
        c.run(&["delete", global, "-l", part, "--ignore-not-found", "--timeout=100s"])?;
        c.run(&["delete", "service", "s3", "-n", APPS, "--ignore-not-found"])?;
        agent.everywhere(&format!("rm -rf {ROOT}{DATA_DIR} {ROOT}/var/lib/fusefs-csi"))?;
        Ok(())
    }
}

/// Persistent volumes and attachments of the driver.
pub fn driver_volumes(cluster: &Cluster) -> Result<Vec<String>> {
    let volumes = cluster.list("persistentvolumes", None, "")?;
    let mut left: Vec<String> = volumes
        .iter()
        .filter(|v| v["spec"]["csi"]["driver"] == "csi.fusefs.io")
        .map(|v| format!("pv {}", super::cluster::name(v)))
        .collect();
    let attachments = cluster.list("volumeattachments", None, "")?;
    left.extend(attachments.iter().filter(|a| a["spec"]["attacher"] == "csi.fusefs.io").map(|a| {
        format!("attachment of {} to {}", a["spec"]["source"]["persistentVolumeName"], a["spec"]["nodeName"])
    }));
    Ok(left)
}

/// Starts the S3 server on the first node; its URL with the bucket.
fn s3_server(cluster: &Cluster) -> Result<String> {
    let tools = |name: &str, script: &str| {
        json!({
            "name": name, "image": cluster.settings.toolbox, "imagePullPolicy": "IfNotPresent",
            "command": ["bash", "-c", script], "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        })
    };
    cluster.apply_json(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s3", "namespace": APPS},
        "spec": {"selector": {"app": "s3"}, "ports": [{"port": 7070}]},
    }))?;
    cluster.apply_json(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "s3", "namespace": APPS, "labels": {"app": "s3"}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": cluster.nodes[0]},
            "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "data", "hostPath": {"path": S3_DIR, "type": "DirectoryOrCreate"}}],
            "initContainers": [tools("bucket", "mkdir -p /data/fusefs")],
            "containers": [
                {
                    "name": "s3", "image": cluster.settings.s3_image, "imagePullPolicy": "IfNotPresent",
                    "args": ["--port", ":7070", "posix", "/data"],
                    "env": [
                        {"name": "ROOT_ACCESS_KEY", "value": KEYS.0}, {"name": "ROOT_SECRET_KEY", "value": KEYS.1},
                    ],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                },
                tools("tools", "trap exit TERM; while :; do sleep 3600 & wait; done"),
            ],
        },
    }))?;
    cluster.run(&["wait", "--for=condition=Ready", "pod/s3", "-n", APPS, "--timeout=100s"])?;
    let service = cluster.get("service", APPS, "s3")?.context("service s3")?;
    Ok(format!("http://{}:7070/fusefs", text(&service["spec"]["clusterIP"])))
}

/// Values of the chart for any cluster, even one without DNS, storage or registry.
fn values(cluster: &Cluster, s3: &str) -> Result<Value> {
    let api = cluster.get("service", "default", "kubernetes")?.context("service kubernetes")?;
    let api = text(&api["spec"]["clusterIP"]);
    let Some((net, _)) = api.rsplit_once('.') else { bail!("the service network of {api} is not IPv4") };
    let addresses = |first: u32| (0..3).map(|i| format!("{net}.{}", first + i)).collect::<Vec<_>>();
    let storage = |role: &str| {
        let at = |i: usize| json!({"node": cluster.nodes[i % 2], "path": format!("{DATA_DIR}/{role}-{i}")});
        json!({"type": "hostPath", "size": "5Gi", "hostPaths": [at(0), at(1), at(2)]})
    };
    Ok(json!({
        "fullnameOverride": "fs",
        "namespace": {"create": true},
        "runtime": cluster.settings.runtime,
        "log": {"json": false},
        "token": {"value": TOKEN},
        "masters": {
            "clusterIPs": addresses(51), "storage": storage("master"),
            "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}},
        },
        "metanodes": {
            "clusterIPs": addresses(61), "storage": storage("metanode"), "failureDomainField": "metadata.name",
            "resources": {"requests": {"cpu": "20m", "memory": "128Mi"}, "limits": {"memory": "2Gi"}},
        },
        "fuse": {"memory": "512Mi"},
        "stores": [{"name": "main", "url": s3, "region": "us-east-1", "accessKey": KEYS.0, "secretKey": KEYS.1}],
    }))
}
