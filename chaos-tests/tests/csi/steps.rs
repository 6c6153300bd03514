//! The plugin dies at each step of each call.

use super::{on, seconds};
use anyhow::{Context, Result, ensure};
use fusefs_chaos_tests::{
    csi::{
        census,
        driver::{Driver, Published, Staged, Volume},
        plugin::Plugin,
        pod::{Pod, View},
        process::Rig,
    },
    replay::now_ns,
    stack::eventually,
};
use fusefs_csi_driver::step::STEPS;
use fusefs_proto::csi::volume_capability::access_mode::Mode;
use std::{collections::BTreeMap, time::Duration};

/// Recovery and retries end within this.
const LIMIT: Duration = Duration::from_secs(60);

/// Calls in the order of a volume's life, and the steps in each.
const CALLS: &[(&str, &[&str])] = &[
    ("create", &["controller.create."]),
    ("expand", &["controller.expand."]),
    ("attach", &["controller.publish."]),
    ("stage", &["node.stage.", "node.mount.", "record.written"]),
    ("publish", &["node.publish.", "node.bind.", "record.renamed"]),
    ("repair", &["node.repair."]),
    ("find", &["node.found."]),
    ("unpublish", &["node.unpublish."]),
    ("unstage", &["node.unstage."]),
    ("detach", &["controller.unpublish."]),
    ("delete", &["controller.delete."]),
];

/// Steps that are still to be tried, by call.
struct Todo {
    left: BTreeMap<&'static str, Vec<&'static str>>,
    hit: Vec<(&'static str, f64)>,
}

impl Todo {
    fn new() -> Result<Todo> {
        let mut left = BTreeMap::<_, Vec<_>>::new();
        for step in STEPS {
            let call = CALLS.iter().find(|(_, prefixes)| prefixes.iter().any(|p| step.starts_with(p)));
            left.entry(call.with_context(|| format!("no call reaches {step}"))?.0).or_default().push(*step);
        }
        left.values_mut().for_each(|v| v.reverse());
        Ok(Todo { left, hit: Vec::new() })
    }
    fn is_empty(&self) -> bool {
        self.left.values().all(Vec::is_empty)
    }
    fn has(&self, call: &str) -> bool {
        self.left.get(call).is_some_and(|v| !v.is_empty())
    }
    /// Makes a call whose plugin dies at the next of its steps, if one is left.
    fn call<T>(&mut self, call: &'static str, plugin: &Plugin, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(step) = self.left.get_mut(call).and_then(Vec::pop) else { return make() };
        let (starts, start) = (plugin.starts(), now_ns());
        plugin.die_at(step)?;
        let done = make().with_context(|| format!("{call}, killed at {step}"));
        let hit = !plugin.armed();
        plugin.disarm();
        let done = done?;
        ensure!(hit, "{call} does not reach {step}");
        ensure!(plugin.starts() > starts, "{step}: nobody was started again");
        self.hit.push((step, seconds(start)));
        Ok(done)
    }
}

/// One life of a volume. Every call is tried with the plugin dying in it, repeated as kubelet does, and its result looked at.
fn life(rig: &Rig, todo: &mut Todo, i: usize) -> Result<()> {
    let (node, ctl) = (&rig.nodes[0], &rig.controller);
    let volume: Volume = todo.call("create", ctl, || rig.create(&format!("vol-{i}"), Mode::MultiNodeMultiWriter))?;
    let size = todo.call("expand", ctl, || rig.expand(&volume.id, 2 << 30))?;
    ensure!(size == 2 << 30, "expanded to {size}");
    let staged: Staged = todo.call("attach", ctl, || rig.attach(&volume, 0))?;
    todo.call("stage", &node.plugin, || rig.node_stage(&staged))?;
    let at = node.namespace.at(&staged.staging)?;
    ensure!(at.len() == 1, "staged: {at:?}");
    let published: Published =
        todo.call("publish", &node.plugin, || rig.publish(&staged, &format!("pod-{i}"), false))?;
    let pod = rig.pod(&published, View::Parent)?;
    works(&pod, "first")?;
    for (call, records) in [("repair", false), ("find", true)] {
        if todo.has(call) {
            todo.call(call, &node.plugin, || lose(rig, &published, records))?;
            works(&pod, call)?;
        }
    }
    drop(pod);
    todo.call("unpublish", &node.plugin, || rig.unpublish(&published))?;
    todo.call("unstage", &node.plugin, || rig.node_unstage(&staged))?;
    todo.call("detach", ctl, || rig.detach(&volume.id, 0))?;
    todo.call("delete", ctl, || rig.delete(&volume))
}

fn works(pod: &Pod, name: &str) -> Result<()> {
    pod.writes(name, "data").map_err(|e| anyhow::anyhow!("{name}: {e}"))
}

/// Everything is killed; the plugin repairs, dies in it, and repairs again.
fn lose(rig: &Rig, published: &Published, records: bool) -> Result<()> {
    let node = &rig.nodes[0];
    node.plugin.kill();
    census::kill_mounts(&node.namespace, &node.state.join("mounts"));
    if records {
        std::fs::remove_dir_all(node.state.join("records"))?;
    }
    node.plugin.revive()?;
    eventually(LIMIT, || {
        node.plugin.revive()?;
        ensure!(!node.plugin.armed(), "it has not died yet");
        let (id, path) = (&published.staged.volume.id, &published.target);
        ensure!(rig.healthy(0, id, path)?, "not healthy yet");
        ensure!(census::nothing_stacked(&node.namespace)? == 2, "{:?}", node.namespace.mounts()?);
        Ok(true)
    })
}

/// Each step of each call once: the call converges, its result is right, and at the end nothing is left.
pub fn every_step_of_every_call_may_be_the_last() -> Result<()> {
    on(1, |rig| {
        let mut todo = Todo::new()?;
        let mut none = Todo { left: BTreeMap::new(), hit: Vec::new() };
        life(rig, &mut none, 999).context("without a death")?;
        let fds = census::fds(rig)?;
        let mut lives = 0;
        while !todo.is_empty() {
            life(rig, &mut todo, lives).with_context(|| format!("life {lives}"))?;
            lives += 1;
        }
        let slowest = todo.hit.iter().max_by(|a, b| a.1.total_cmp(&b.1)).context("no steps")?;
        println!("{} of {} steps were the last, in {lives} lives; slowest {slowest:?}", todo.hit.len(), STEPS.len());
        println!("left: {}", census::nothing_left(rig, &fds)?);
        ensure!(todo.hit.len() == STEPS.len(), "not every step was reached");
        Ok(())
    })
}
