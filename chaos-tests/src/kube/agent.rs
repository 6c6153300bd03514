//! A privileged pod per node, through which processes of the node are found and killed and its mounts are read.

use super::cluster::{APPS, Cluster, name, text, until};
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};

/// What can be killed on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Node plugin.
    Plugin,
    /// Controller plugin.
    Controller,
    /// Node keeper.
    Keeper,
    /// PID 1 of fuse pods.
    Supervisor,
    /// Client of a mount.
    Worker,
    /// Mount daemon.
    Mountd,
    /// kubelet.
    Kubelet,
}

impl Part {
    fn is(self, args: &str) -> bool {
        let mut words = args.split_whitespace();
        let program = words.next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        let role = words.next().unwrap_or_default();
        match self {
            Part::Kubelet => program == "kubelet",
            _ if program != "fusefs" => false,
            Part::Plugin => role == "csi" && args.contains("--mode=node"),
            Part::Controller => role == "csi" && args.contains("--mode=controller"),
            Part::Keeper => role == "node-keeper",
            Part::Supervisor => role == "fuse-pod",
            Part::Worker => role == "client",
            Part::Mountd => role == "mountd",
        }
    }

    /// For the table.
    pub fn describe(self) -> &'static str {
        match self {
            Part::Plugin => "node plugin",
            Part::Controller => "controller",
            Part::Keeper => "node keeper",
            Part::Supervisor => "supervisor",
            Part::Worker => "worker",
            Part::Mountd => "mount daemon",
            Part::Kubelet => "kubelet",
        }
    }
}

/// A process of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// In the node's pid namespace.
    pub pid: u32,
    /// Command line.
    pub args: String,
}

/// The agents.
pub struct Agent<'a> {
    cluster: &'a Cluster,
    pods: BTreeMap<String, String>,
}

/// Where the node's files are seen in an agent.
pub const ROOT: &str = "/proc/1/root";

impl<'a> Agent<'a> {
    /// Starts them and waits.
    pub fn start(cluster: &'a Cluster) -> Result<Agent<'a>> {
        cluster.apply_json(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": APPS}}))?;
        cluster.apply_json(&json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent", "namespace": APPS},
            "spec": {
                "selector": {"matchLabels": {"app": "agent"}},
                "template": {
                    "metadata": {"labels": {"app": "agent"}},
                    "spec": {
                        "hostPID": true,
                        "terminationGracePeriodSeconds": 1,
                        "tolerations": [{"operator": "Exists"}],
                        "containers": [{
                            "name": "agent", "image": cluster.settings.toolbox, "imagePullPolicy": "IfNotPresent",
                            "command": ["bash", "-c", "trap exit TERM; while :; do sleep 3600 & wait; done"],
                            "securityContext": {"privileged": true},
                        }],
                    },
                },
            },
        }))?;
        cluster.rolled_out(APPS, "daemonset/agent", Duration::from_secs(120))?;
        let mut agent = Agent { cluster, pods: BTreeMap::new() };
        agent.find()?;
        Ok(agent)
    }

    /// Looks for the pods again, after a node was off.
    pub fn find(&mut self) -> Result<()> {
        let pods = self.cluster.list("pods", Some(APPS), "app=agent")?;
        self.pods = pods.iter().map(|p| (text(&p["spec"]["nodeName"]), name(p))).collect();
        ensure!(self.cluster.nodes.iter().all(|n| self.pods.contains_key(n)), "agents: {:?}", self.pods);
        Ok(())
    }

    /// Runs a script on a node, as root, in the node's pid namespace.
    pub fn sh(&self, node: &str, script: &str) -> Result<String> {
        let pod = self.pods.get(node).with_context(|| format!("no agent on {node}"))?;
        let mut last = String::new();
        let mut out = String::new();
        // kubelet may be away for a moment.
        until(&format!("agent of {node}"), Duration::from_secs(40), || {
            match self.cluster.exec(APPS, pod, "", &["bash", "-c", script]) {
                Ok(said) => out = said,
                Err(e) if e.to_string().contains("command terminated") => last = e.to_string(),
                Err(e) => return Err(e),
            }
            Ok(true)
        })?;
        if !last.is_empty() {
            bail!("{node}: {last}");
        }
        Ok(out)
    }

    /// Processes of a part on a node.
    pub fn processes(&self, node: &str, parts: &[Part]) -> Result<Vec<Process>> {
        let all = self.sh(node, "ps -e -ww -o pid=,stat=,args=")?;
        let parse = |line: &str| {
            let (pid, rest) = line.trim_start().split_once(' ')?;
            let (stat, args) = rest.trim_start().split_once(' ')?;
            let wanted = !stat.starts_with('Z') && parts.iter().any(|p| p.is(args.trim_start()));
            let process = Process { pid: pid.parse().ok()?, args: args.trim_start().to_owned() };
            wanted.then_some(process)
        };
        Ok(all.lines().filter_map(parse).collect())
    }

    /// Kills every process of the parts on a node, all at once; Err if there was none.
    pub fn kill(&self, node: &str, parts: &[Part]) -> Result<Vec<Process>> {
        let found = self.processes(node, parts)?;
        for part in parts {
            ensure!(found.iter().any(|p| part.is(&p.args)), "no {} runs on {node}", part.describe());
        }
        let pids: Vec<String> = found.iter().map(|p| p.pid.to_string()).collect();
        self.sh(node, &format!("kill -KILL {} 2>/dev/null; true", pids.join(" ")))?;
        Ok(found)
    }

    /// Waits until every part runs again on the node, as other processes than those that were killed.
    pub fn back(&self, node: &str, parts: &[Part], killed: &[Process], patience: Duration) -> Result<Duration> {
        until(&format!("{parts:?} again on {node}"), patience, || {
            let now = self.processes(node, parts)?;
            let fresh = |part: &&Part| now.iter().any(|p| part.is(&p.args) && killed.iter().all(|k| k.pid != p.pid));
            Ok(parts.iter().all(|part| fresh(&part)))
        })
    }

    /// Mounts of fusefs on a node: mount points, sorted; one that is mounted over itself comes twice.
    pub fn mounts(&self, node: &str) -> Result<Vec<String>> {
        let table = self.sh(node, "cat /proc/1/mountinfo")?;
        let mut points: Vec<String> = table
            .lines()
            .filter(|l| {
                l.split_once(" - ").is_some_and(|(_, after)| after.starts_with("fuse") && after.contains("fusefs"))
            })
            .filter_map(|l| l.split(' ').nth(4).map(str::to_owned))
            .collect();
        points.sort();
        Ok(points)
    }

    /// Runs a script on every node.
    pub fn everywhere(&self, script: &str) -> Result<String> {
        let mut out = String::new();
        for node in &self.cluster.nodes {
            for line in self.sh(node, script)?.lines() {
                out += &format!("{node}: {line}\n");
            }
        }
        Ok(out)
    }
}
