//! One run: install, break, delete, look for leftovers.

use super::{foreign, full, smoke};
use anyhow::{Context, Result, ensure};
use fusefs_chaos_tests::kube::{
    Agent, App, Cluster, Mark, Part, Release, Settings, Table,
    cluster::{APPS, FUSE, text, until},
    deploy,
};
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

/// Loops that prove that a pod works again.
pub const LOOPS: u64 = 20;
/// Longest time that anything may need to work again.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Entry.
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--list") {
        println!("csi_kube: test");
        return ExitCode::SUCCESS;
    }
    let settings = Settings::from_env().and_then(|s| deploy::helm().map(|_| s));
    let settings = match settings {
        Ok(settings) => settings,
        Err(reason) => {
            println!("SKIPPED csi_kube: {reason}");
            return ExitCode::SUCCESS;
        }
    };
    match run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            println!("csi_kube FAILED: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(settings: Settings) -> Result<()> {
    let began = Instant::now();
    let cluster = Cluster::connect(settings)?;
    println!(
        "csi_kube: nodes {:?}, runtime {}, image {}",
        cluster.nodes, cluster.settings.runtime, cluster.settings.image
    );
    let agent = Agent::start(&cluster)?;
    let mut release = Release::install(&cluster, &agent)?;
    println!("installed after {:.0} s", began.elapsed().as_secs_f64());
    let mut run = Run { cluster: &cluster, agent, table: Table::default(), began, failures: 0 };
    let result = steps(&mut run, &mut release);
    println!("\n{}", run.table.markdown());
    result?;
    if !cluster.settings.keep {
        release.sweep(&run.agent)?;
        cluster.delete("namespace", "", APPS)?;
    }
    println!("csi_kube: all of it in {:.0} s", began.elapsed().as_secs_f64());
    ensure!(run.failures == 0, "{} steps failed", run.failures);
    ensure!(run.table.errors() == 0, "{} operations of applications failed", run.table.errors());
    Ok(())
}

fn steps<'a>(run: &mut Run<'a>, release: &mut Release<'a>) -> Result<()> {
    let (a, b) = smoke::start(run)?;
    let claim = cluster_volume(run.cluster)?;
    run.fault("a foreign pod without token", &[&a, &b], |r| foreign::refused(r.cluster, &claim))?;
    smoke::kills(run, &a, &b)?;
    run.total_loss(&b, &[&a])?;
    if run.cluster.settings.full {
        full::run(run, release, &a, &b)?;
    }
    smoke::end(run, &[&a, &b])?;
    run.leftovers(release)
}

/// Name in fusefs of the volume that both pods use.
fn cluster_volume(c: &Cluster) -> Result<String> {
    let claim = c.get("persistentvolumeclaim", APPS, smoke::CLAIM)?.context("claim")?;
    let volume = c.get("persistentvolume", "", &text(&claim["spec"]["volumeName"]))?.context("volume")?;
    Ok(text(&volume["spec"]["csi"]["volumeHandle"]))
}

/// What every step needs.
pub struct Run<'a> {
    /// Cluster.
    pub cluster: &'a Cluster,
    /// Agents.
    pub agent: Agent<'a>,
    /// Results.
    pub table: Table,
    /// Start.
    pub began: Instant,
    /// Steps that did not do what they should, whatever applications saw.
    pub failures: usize,
}

impl<'a> Run<'a> {
    /// Says where we are.
    pub fn step(&self, what: &str) {
        println!("[{:6.1} s] {what}", self.began.elapsed().as_secs_f64());
    }

    /// Whether the filter lets a fault pass.
    pub fn wanted(&self, fault: &str) -> bool {
        self.cluster.settings.only.as_ref().is_none_or(|only| fault.contains(only.as_str()))
    }

    /// The parts that hold mounts on a node.
    pub fn holders(&self) -> Vec<Part> {
        if self.cluster.settings.runtime == "pod" {
            vec![Part::Plugin, Part::Keeper, Part::Supervisor, Part::Worker]
        } else {
            vec![Part::Plugin, Part::Keeper, Part::Mountd, Part::Supervisor, Part::Worker]
        }
    }

    /// Marks of all.
    pub fn marks(&self, apps: &[&App<'a>]) -> Result<Vec<Mark>> {
        apps.iter().map(|a| a.mark()).collect()
    }

    /// Adds a line to the table from what the applications said since; fails if one does not go on.
    pub fn judge(&mut self, fault: &str, times: usize, apps: &[&App<'a>], marks: &[Mark], note: &str) -> Result<()> {
        let mut errors = vec![];
        let mut longest = (Duration::ZERO, String::new());
        for (app, mark) in apps.iter().zip(marks) {
            app.progress(mark, LOOPS, PATIENCE).with_context(|| app.trouble(mark))?;
            let said = app.since(mark)?;
            errors.append(&mut said.errors.iter().map(|e| format!("{}: {e}", app.name)).collect());
            if said.longest.0 > longest.0 {
                longest = said.longest;
            }
        }
        for error in &errors {
            println!("    {error}");
        }
        self.table.add(fault, times, errors.len(), longest, note);
        Ok(())
    }

    /// Kills parts of a node at once, waits until they are back and the applications went on.
    pub fn kill(&mut self, node: &str, parts: &[Part], apps: &[&App<'a>]) -> Result<()> {
        let names: Vec<&str> = parts.iter().map(|p| p.describe()).collect();
        let fault = format!("SIGKILL {}", names.join(" + "));
        if !self.wanted(&fault) {
            return Ok(());
        }
        self.step(&fault);
        let marks = self.marks(apps)?;
        let killed = self.agent.kill(node, parts)?;
        let back = self.agent.back(node, parts, &killed, PATIENCE)?;
        let note = format!("{} back after {:.1} s", processes(killed.len()), back.as_secs_f64());
        self.judge(&fault, 1, apps, &marks, &note)
    }

    /// Does something else to the cluster.
    pub fn fault(
        &mut self,
        fault: &str,
        apps: &[&App<'a>],
        act: impl FnOnce(&mut Run<'a>) -> Result<String>,
    ) -> Result<()> {
        if !self.wanted(fault) {
            return Ok(());
        }
        self.step(fault);
        let marks = self.marks(apps)?;
        let began = Instant::now();
        let note = match act(self) {
            Ok(note) if note.is_empty() => format!("{:.1} s", began.elapsed().as_secs_f64()),
            Ok(note) => note,
            Err(e) => {
                println!("    FAILED: {e:#}");
                self.failures += 1;
                format!("FAILED: {}", e.to_string().lines().next().unwrap_or_default())
            }
        };
        self.judge(fault, 1, apps, &marks, &note)
    }

    /// Every holder of a node at once: mounts are lost, applications see errors, and all works again unattended.
    pub fn total_loss(&mut self, lost: &App<'a>, others: &[&App<'a>]) -> Result<()> {
        if !self.wanted("total loss") {
            return Ok(());
        }
        self.step("total loss");
        let holders = self.holders();
        let marks = self.marks(others)?;
        let mark = lost.mark()?;
        let began = Instant::now();
        let before = self.agent.mounts(&lost.node)?;
        let killed = self.agent.kill(&lost.node, &holders)?;
        until("errors of the applications", PATIENCE, || Ok(!lost.since(&mark)?.errors.is_empty()))?;
        let again = until(&format!("I/O of {} after the loss", lost.name), PATIENCE, || {
            let said = lost.since(&mark)?;
            Ok(said.restarted && said.loops > 0)
        });
        again.with_context(|| lost.trouble(&mark))?;
        let took = began.elapsed();
        self.agent.back(&lost.node, &holders, &killed, PATIENCE)?;
        let after = self.agent.mounts(&lost.node)?;
        ensure!(before == after, "mounts before {before:#?} and after {after:#?}");
        let said = lost.since(&mark)?;
        for error in &said.errors {
            println!("    expected: {}: {error}", lost.name);
        }
        let note = format!(
            "{} at once; lost pod: {} errors, its container writes again after {:.1} s, synced data intact; other node:",
            processes(killed.len()),
            said.errors.len(),
            took.as_secs_f64()
        );
        self.judge("total loss: every holder of a node", 1, others, &marks, &note)
    }

    /// Nothing may be left of volumes.
    pub fn leftovers(&mut self, release: &Release<'_>) -> Result<()> {
        self.step("looking for leftovers");
        let mut left = vec![];
        let took = until("an end without leftovers", PATIENCE, || {
            left = self.left(release)?;
            Ok(left.is_empty())
        });
        let took = took.with_context(|| format!("left over: {left:#?}"))?;
        let none = (Duration::ZERO, String::new());
        let note = format!(
            "after {:.1} s no PV, VolumeAttachment, fuse pod, process, mount, staging directory, target, record, object",
            took.as_secs_f64()
        );
        self.table.add("everything deleted", 1, 0, none, &note);
        Ok(())
    }

    fn left(&self, release: &Release<'_>) -> Result<Vec<String>> {
        let mut left = deploy::driver_volumes(self.cluster)?;
        let pods = self.cluster.list("pods", Some(FUSE), "").unwrap_or_default();
        left.extend(pods.iter().map(|p| format!("fuse pod {}", p["metadata"]["name"])));
        for node in &self.cluster.nodes {
            left.extend(self.agent.mounts(node)?.iter().map(|m| format!("{node}: mount {m}")));
            let running = self.agent.processes(node, &[Part::Supervisor, Part::Worker])?;
            left.extend(running.iter().map(|p| format!("{node}: process {} {}", p.pid, p.args)));
        }
        left.extend(self.agent.everywhere(LEFT)?.lines().map(str::to_owned));
        left.extend(release.bucket()?.iter().map(|o| format!("object {o}")));
        Ok(left)
    }
}

/// Lists what volumes leave on a node: staging directories, targets, records, journals.
const LEFT: &str = "cd /proc/1/root/var/lib
    find kubelet/plugins/kubernetes.io/csi/csi.fusefs.io -mindepth 1 -maxdepth 1 2>/dev/null
    find kubelet/pods -maxdepth 4 -path '*/volumes/kubernetes.io~csi/*' 2>/dev/null | while read -r d; do
        [ ! -e \"$d/vol_data.json\" ] || ! grep -q csi.fusefs.io \"$d/vol_data.json\" || echo \"$d\"; done
    find fusefs-csi/records fusefs-csi/mounts fusefs-csi/hosts -mindepth 1 2>/dev/null; true";

fn processes(n: usize) -> String {
    if n == 1 { "1 process,".into() } else { format!("{n} processes,") }
}
