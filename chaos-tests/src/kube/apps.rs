//! Applications: pods that do verified I/O on a volume and say how it went.

use super::cluster::{APPS, Cluster, text, until};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;

const SCRIPT: &str = include_str!("workload.sh");

/// Where the volume of a pod comes from and how it is mounted.
#[derive(Clone, Debug, Default)]
pub struct Use {
    /// Name of the claim; empty = a generic ephemeral volume.
    pub claim: String,
    /// Only this directory of it.
    pub sub_path: String,
    /// Storage class and size of an ephemeral one.
    pub ephemeral: Option<(String, String)>,
}

/// A claim.
pub fn claim(name: &str, class: &str, mode: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": APPS},
        "spec": {
            "accessModes": [mode], "storageClassName": class,
            "resources": {"requests": {"storage": size}},
        },
    })
}

/// A pod on a node with a volume at /data and a directory of the node at /state.
pub fn pod(cluster: &Cluster, name: &str, node: &str, volume: &Use, command: &[&str]) -> Value {
    let source = match &volume.ephemeral {
        None => json!({"name": "data", "persistentVolumeClaim": {"claimName": volume.claim}}),
        Some((class, size)) => json!({"name": "data", "ephemeral": {"volumeClaimTemplate": {"spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": size}},
        }}}}),
    };
    let mut mount = json!({"name": "data", "mountPath": "/data"});
    if !volume.sub_path.is_empty() {
        mount["subPath"] = json!(volume.sub_path);
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": APPS, "labels": {"app": "load"}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 10,
            "automountServiceAccountToken": false,
            "tolerations": [{"operator": "Exists"}],
            "volumes": [source, {"name": "state", "emptyDir": {}}],
            "containers": [{
                "name": "app", "image": cluster.settings.toolbox, "imagePullPolicy": "IfNotPresent",
                "command": command,
                "volumeMounts": [mount, {"name": "state", "mountPath": "/state"}],
            }],
        },
    })
}

/// A pod with the workload.
pub struct App<'a> {
    cluster: &'a Cluster,
    /// Name of the pod.
    pub name: String,
    /// Where it is.
    pub node: String,
}

/// A moment in the life of a pod.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Which container of the pod: a container that waits for its start still shows the words of the one before.
    life: u64,
    lines: usize,
}

/// What a pod said since a mark.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// Operations that failed.
    pub errors: Vec<String>,
    /// Longest operation.
    pub longest: (Duration, String),
    /// Loops of the container that runs now.
    pub loops: u64,
    /// It is not the one of the mark.
    pub restarted: bool,
}

fn field<'t>(line: &'t str, key: &str) -> Option<&'t str> {
    line.split(' ').find_map(|w| w.strip_prefix(key)?.strip_prefix('='))
}

fn number(line: &str, key: &str) -> u64 {
    field(line, key).and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// Number of the container that said this.
fn life(lines: &[String]) -> Option<u64> {
    lines.iter().find(|l| l.starts_with("BEGIN")).map(|l| number(l, "gen"))
}

fn loops(lines: &[String]) -> u64 {
    lines.iter().filter(|l| l.starts_with("LOOP")).map(|l| number(l, "n")).max().unwrap_or(0)
}

impl<'a> App<'a> {
    /// Creates the pod.
    pub fn start(cluster: &'a Cluster, name: &str, node: &str, volume: &Use, peer: &str) -> Result<App<'a>> {
        let mut object = pod(cluster, name, node, volume, &["bash", "-c", SCRIPT]);
        object["spec"]["containers"][0]["env"] =
            json!([{"name": "ME", "value": name}, {"name": "PEER", "value": peer}]);
        cluster.apply_json(&object)?;
        Ok(App { cluster, name: name.into(), node: node.into() })
    }

    fn logs(&self, previous: bool) -> Result<Vec<String>> {
        let mut args = vec!["logs", "-n", APPS, self.name.as_str()];
        if previous {
            args.push("--previous");
        }
        Ok(self.cluster.run(&args)?.lines().map(str::to_owned).collect())
    }

    /// Now.
    pub fn mark(&self) -> Result<Mark> {
        let mut mark = None;
        until(&format!("logs of {}", self.name), Duration::from_secs(60), || {
            let lines = self.logs(false)?;
            mark = life(&lines).map(|life| Mark { life, lines: lines.len() });
            Ok(mark.is_some())
        })?;
        mark.context("a mark")
    }

    /// What happened since.
    pub fn since(&self, mark: &Mark) -> Result<Said> {
        let now = self.logs(false)?;
        let lives = life(&now).unwrap_or(mark.life + 1).saturating_sub(mark.life);
        let mut lines: Vec<String> = vec![];
        if lives == 0 {
            lines.extend(now.iter().skip(mark.lines).cloned());
        } else {
            let before = self.logs(true)?;
            let skip = if life(&before) == Some(mark.life) { mark.lines } else { 0 };
            lines.extend(before.into_iter().skip(skip));
            lines.extend(now.iter().cloned());
        }
        let mut said = Said { loops: loops(&now), restarted: lives > 0, ..Said::default() };
        said.errors = lines.iter().filter(|l| l.starts_with("ERROR")).cloned().collect();
        let silent = lives.saturating_sub(said.errors.len() as u64);
        // kubelet may have removed the log; the next container has the last words.
        let words =
            lines.iter().find_map(|l| l.strip_prefix("BEFORE ")).unwrap_or("ERROR the container ended without a word");
        said.errors.extend((0..silent).map(|_| words.to_owned()));
        for line in lines.iter().filter(|l| l.starts_with("LOOP") || l.starts_with("END")) {
            let took = Duration::from_micros(number(line, "max"));
            if took > said.longest.0 {
                said.longest = (took, field(line, "op").unwrap_or_default().to_owned());
            }
        }
        Ok(said)
    }

    /// Waits for some more loops, those of another container included.
    pub fn progress(&self, mark: &Mark, more: u64, patience: Duration) -> Result<Duration> {
        let mut from = None;
        until(&format!("progress of {}", self.name), patience, || {
            let lines = self.logs(false)?;
            let (life, now) = (life(&lines), loops(&lines));
            if from.is_none_or(|(l, _)| l != life) {
                from = Some((life, if life == Some(mark.life) { now } else { 0 }));
            }
            Ok(life.is_some() && from.is_some_and(|(_, start)| now >= start + more))
        })
    }

    /// Waits until it works at all.
    pub fn works(&self, patience: Duration) -> Result<Duration> {
        let none = Mark { life: 0, lines: 0 };
        let result = until(&format!("first I/O of {}", self.name), patience, || {
            Ok(self.logs(false)?.iter().any(|l| l.starts_with("LOOP")))
        });
        result.with_context(|| self.trouble(&none))
    }

    /// What the cluster says of a pod in trouble.
    pub fn trouble(&self, since: &Mark) -> String {
        let said = self.since(since).map(|s| s.errors.join("\n")).unwrap_or_default();
        let events = self.cluster.run(&["get", "events", "-n", APPS, "--sort-by=.lastTimestamp"]).unwrap_or_default();
        let mine: Vec<&str> = events.lines().filter(|l| l.contains(&self.name)).collect();
        format!("{}\n{said}\n{}", self.name, mine.join("\n"))
    }

    /// Deletes it without waiting.
    pub fn delete(&self) -> Result<()> {
        self.cluster.delete("pod", APPS, &self.name)
    }
}

/// Waits until a pod has ended well.
pub fn ended(cluster: &Cluster, name: &str, patience: Duration) -> Result<()> {
    let mut phase = String::new();
    until(&format!("end of {name}"), patience, || {
        phase = text(&cluster.get("pod", APPS, name)?.context("gone")?["status"]["phase"]);
        Ok(phase == "Succeeded" || phase == "Failed")
    })?;
    let said = cluster.run(&["logs", "-n", APPS, name]).unwrap_or_default();
    ensure!(phase == "Succeeded", "{name}: {phase}: {said}");
    Ok(())
}
