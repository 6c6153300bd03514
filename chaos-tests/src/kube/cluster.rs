//! kubectl, and what a run is told by its environment.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Between two looks at the cluster.
const LOOK: Duration = Duration::from_millis(300);
/// Namespace of what the tests bring: agents, S3 server, applications.
pub const APPS: &str = "fusefs-test";
/// Namespace of the release.
pub const RELEASE: &str = "fusefs";
/// Namespace of the fuse pods.
pub const FUSE: &str = "fusefs-fuse";

/// What the environment says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program.
    pub kubectl: PathBuf,
    /// Image of all roles.
    pub image: String,
    /// The same for upgrades.
    pub image_next: String,
    /// Image of agents and applications.
    pub toolbox: String,
    /// S3 server.
    pub s3_image: String,
    /// Cuts a node's power.
    pub reboot: Option<String>,
    /// `pod` or `mountd`.
    pub runtime: String,
    /// More than the smoke.
    pub full: bool,
    /// Leave the release.
    pub keep: bool,
    /// Only faults with this in their names.
    pub only: Option<String>,
    /// How often each server is deleted.
    pub rounds: usize,
}

fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// A program of `PATH`.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|d| d.join(name)).find(|p| p.is_file())
}

impl Settings {
    /// Reads the environment; Err says what is missing.
    pub fn from_env() -> Result<Settings, String> {
        let need = |name: &str, what: &str| var(name).ok_or_else(|| format!("{name} is not set ({what})"));
        need("KUBECONFIG", "the cluster to use")?;
        let image = need("FUSEFS_KUBE_IMAGE", "an image with the fusefs program that the nodes can get")?;
        let kubectl = var("FUSEFS_KUBECTL").map(PathBuf::from).or_else(|| in_path("kubectl"));
        Ok(Settings {
            kubectl: kubectl.ok_or("kubectl is not in PATH (or set FUSEFS_KUBECTL)")?,
            image_next: var("FUSEFS_KUBE_IMAGE_NEXT").unwrap_or_else(|| format!("{image}-next")),
            image,
            toolbox: need("FUSEFS_KUBE_TOOLBOX", "an image with bash, coreutils, sed, ps and nsenter")?,
            s3_image: need("FUSEFS_KUBE_S3_IMAGE", "an image whose entry point is versitygw")?,
            reboot: var("FUSEFS_KUBE_NODE_REBOOT"),
            runtime: var("FUSEFS_KUBE_RUNTIME").unwrap_or_else(|| "pod".into()),
            full: var("FUSEFS_KUBE_FULL").is_some(),
            keep: var("FUSEFS_KUBE_KEEP").is_some(),
            only: var("FUSEFS_KUBE_ONLY"),
            rounds: var("FUSEFS_KUBE_ROUNDS").and_then(|n| n.parse().ok()).unwrap_or(1),
        })
    }
}

/// The cluster.
pub struct Cluster {
    /// How it is used.
    pub settings: Settings,
    /// The two nodes whose processes are killed.
    pub nodes: Vec<String>,
}

impl Cluster {
    /// Looks for two Ready nodes.
    pub fn connect(settings: Settings) -> Result<Cluster> {
        let mut cluster = Cluster { settings, nodes: vec![] };
        let nodes = cluster.list("nodes", None, "")?;
        cluster.nodes = nodes.iter().filter(|n| condition(n, "Ready")).map(name).collect();
        cluster.nodes.sort();
        ensure!(cluster.nodes.len() >= 2, "two Ready nodes are needed, there are {:?}", cluster.nodes);
        cluster.nodes.truncate(2);
        Ok(cluster)
    }

    /// Runs kubectl; its output, or an error with what it said.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        self.with_input(args, "")
    }

    /// The same with something to read. No call may take more than 2 minutes.
    pub fn with_input(&self, args: &[&str], input: &str) -> Result<String> {
        let mut child = Command::new("timeout")
            .args(["--kill-after=5", "120"])
            .arg(&self.settings.kubectl)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| self.settings.kubectl.display().to_string())?;
        let mut pipe = child.stdin.take().context("stdin")?;
        let text = input.to_owned();
        let writer = std::thread::spawn(move || pipe.write_all(text.as_bytes()));
        let out = child.wait_with_output()?;
        drop(writer.join()); // a kubectl that fails need not read
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            bail!("kubectl {}: {} {}", args.join(" "), out.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Creates or changes objects.
    pub fn apply(&self, objects: &str) -> Result<()> {
        self.with_input(&["apply", "--server-side", "--force-conflicts", "-f", "-"], objects).map(drop)
    }

    /// The same for one.
    pub fn apply_json(&self, object: &Value) -> Result<()> {
        self.apply(&object.to_string())
    }

    /// Objects of a kind, with the labels if any are given.
    pub fn list(&self, kind: &str, namespace: Option<&str>, selector: &str) -> Result<Vec<Value>> {
        let mut args = vec!["get", kind, "-o", "json"];
        args.extend(namespace.iter().flat_map(|n| ["-n", n]));
        if !selector.is_empty() {
            args.extend(["-l", selector]);
        }
        let all: Value = serde_json::from_str(&self.run(&args)?)?;
        Ok(all["items"].as_array().cloned().unwrap_or_default())
    }

    /// An object, if it is there.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let text = self.run(&["get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found"])?;
        if text.trim().is_empty() { Ok(None) } else { Ok(Some(serde_json::from_str(&text)?)) }
    }

    /// Deletes without waiting; what is not there is fine.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        self.run(&["delete", kind, name, "-n", namespace, "--ignore-not-found", "--wait=false"]).map(drop)
    }

    /// Runs a program in a container.
    pub fn exec(&self, namespace: &str, pod: &str, container: &str, command: &[&str]) -> Result<String> {
        let mut args = vec!["exec", "-n", namespace, pod];
        if !container.is_empty() {
            args.extend(["-c", container]);
        }
        args.push("--");
        args.extend(command);
        self.run(&args)
    }

    /// Waits until a StatefulSet, DaemonSet or Deployment is as it should be.
    pub fn rolled_out(&self, namespace: &str, what: &str, patience: Duration) -> Result<()> {
        let mut said = String::new();
        let took = until(&format!("roll-out of {what}"), patience, || {
            match self.run(&["rollout", "status", "-n", namespace, what, "--timeout=10s"]) {
                Ok(_) => Ok(true),
                Err(e) => {
                    said = e.to_string();
                    Ok(false)
                }
            }
        });
        took.map(drop).context(said)
    }
}

/// Name of an object.
pub fn name(object: &Value) -> String {
    text(&object["metadata"]["name"])
}

/// A string of an object; empty if it is none.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Whether a condition of an object is True.
pub fn condition(object: &Value, kind: &str) -> bool {
    let all = object["status"]["conditions"].as_array();
    all.is_some_and(|c| c.iter().any(|c| c["type"] == kind && c["status"] == "True"))
}

/// Asks until it says yes. Errors are answers of a cluster in trouble: the last one is told in the end.
pub fn until(what: &str, patience: Duration, mut yes: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let began = Instant::now();
    let mut last = None;
    loop {
        match yes() {
            Ok(true) => return Ok(began.elapsed()),
            Ok(false) => {}
            Err(e) => last = Some(e),
        }
        if began.elapsed() > patience {
            let last = last.map(|e| format!("; last error: {e:#}")).unwrap_or_default();
            bail!("{what}: not within {patience:?}{last}");
        }
        std::thread::sleep(LOOK);
    }
}
