//! Every holder of a node's mounts is gone: everything is mounted and bound again, unattended.

use super::{on_runtime, seconds, seed};
use anyhow::{Context, Result, anyhow, bail, ensure};
use fusefs_chaos_tests::{
    csi::{
        census,
        daemon::Daemon,
        driver::{Driver, Published, Staged, Volume},
        pod::{Pod, View},
        process::{Rig, Runtime},
    },
    replay::{Rng, now_ns},
    stack::eventually,
};
use fusefs_proto::csi::volume_capability::access_mode::Mode;
use std::time::Duration;

/// Target of the recovery.
const LIMIT: Duration = Duration::from_secs(60);

/// Until the kernel has noticed that everybody who had a mount is dead.
const DEAD: Duration = Duration::from_secs(10);

/// What is lost at once.
#[derive(Clone, Copy, Debug)]
struct Loss {
    what: &'static str,
    /// All processes of all mounts; with mountd, where there is one.
    mounts: bool,
    /// The node's keeper, where there is one.
    keeper: bool,
    /// The plugin.
    plugin: bool,
    /// The plugin's records: only the masters know who may mount what.
    records: bool,
}

const fn loss(what: &'static str, [mounts, keeper, plugin, records]: [bool; 4]) -> Loss {
    Loss { what, mounts, keeper, plugin, records }
}

const LOSSES: &[Loss] = &[
    loss("mounts and plugin", [true, false, true, false]),
    loss("mounts", [true, false, false, false]),
    loss("mounts, plugin and records", [true, false, true, true]),
    loss("plugin and records", [false, false, true, true]),
    loss("mounts and plugin again", [true, false, true, false]),
];

/// Where mounts are handed over, somebody else may have them still.
const LOSSES_HANDED_OVER: &[Loss] = &[
    loss("mountd, hosts, keeper and plugin", [true, true, true, false]),
    loss("mountd, hosts and keeper", [true, true, false, false]),
    loss("mountd, hosts, keeper, plugin and records", [true, true, true, true]),
    loss("keeper, plugin and records", [false, true, true, true]),
    loss("mountd, hosts, plugin and records", [true, false, true, true]),
    loss("mountd, hosts, keeper, plugin and records again", [true, true, true, true]),
];

impl Loss {
    /// Nobody holds a mount any more.
    fn is_total(self, rig: &Rig) -> bool {
        self.mounts && (!rig.hands_over() || self.keeper && self.plugin)
    }
}

/// A published volume and a pod that survives the loss.
struct Held {
    published: Published,
    pod: Pod,
    view: View,
}

struct Place<'a> {
    rig: &'a Rig,
    volumes: Vec<Volume>,
    staged: Vec<Staged>,
    held: Vec<Held>,
}

impl<'a> Place<'a> {
    fn new(rig: &'a Rig) -> Result<Place<'a>> {
        let volumes = vec![
            rig.create("shared", Mode::MultiNodeMultiWriter)?,
            rig.create("own", Mode::SingleNodeMultiWriter)?,
            rig.create("alone", Mode::SingleNodeSingleWriter)?,
        ];
        let staged = volumes.iter().map(|v| rig.stage(v, 0)).collect::<Result<Vec<_>>>()?;
        let mut place = Place { rig, volumes, staged, held: Vec::new() };
        let pods = [
            (0, "a", false, View::Parent),
            (0, "b", true, View::Parent),
            (0, "c", false, View::Private),
            (1, "d", false, View::Parent),
            (1, "e", false, View::Slave),
            (2, "f", false, View::Parent),
        ];
        for (i, name, readonly, view) in pods {
            let published = rig.publish(&place.staged[i], name, readonly)?;
            let pod = rig.pod(&published, view)?;
            place.held.push(Held { published, pod, view });
        }
        Ok(place)
    }

    fn mounts(&self) -> usize {
        self.staged.len() + self.held.len()
    }

    /// Kills; how many processes.
    fn lose(&self, loss: Loss) -> Result<usize> {
        let node = &self.rig.nodes[0];
        let mut killed = 0;
        if loss.mounts {
            // First, so that it starts nobody again.
            let hosts = node.handed.as_ref().map_or_else(|| Ok(Default::default()), |h| h.kill_mountd(true))?;
            let mounts = hosts.len() + census::kill_mounts(&node.namespace, &node.state.join("mounts"));
            let each = if node.handed.is_some() { 2 } else { 3 };
            ensure!(mounts >= each * self.staged.len(), "only {mounts} processes of mounts were there");
            killed += mounts;
        }
        if let Some(handed) = node.handed.as_ref().filter(|_| loss.keeper) {
            handed.keeper.kill().context("the keeper did not run")?;
            killed += 1;
        }
        if loss.plugin {
            node.plugin.kill().context("the plugin did not run")?;
            killed += 1;
        }
        if loss.records {
            std::fs::remove_dir_all(node.state.join("records"))?;
        }
        // A plugin that lives repairs already.
        if loss.is_total(self.rig) && loss.plugin {
            let held = || self.staged.iter().find(|s| !self.is_dead(s));
            eventually(DEAD, || held().map_or(Ok(true), |s| bail!("somebody still has {}", s.volume.id)))?;
        }
        Ok(killed)
    }

    /// Everybody who was killed is started again, as an orchestrator does.
    fn revive(&self) -> Result<()> {
        self.rig.daemons().into_iter().try_for_each(Daemon::revive)
    }

    /// Whether the kernel has given the connection up: nobody has it open.
    fn is_dead(&self, staged: &Staged) -> bool {
        let node = &self.rig.nodes[0];
        let look = ["timeout", "-s", "KILL", "5", "stat", "-f", &staged.staging.display().to_string()];
        node.namespace.run(&look).is_ok_and(|(_, said)| said.contains("not connected"))
    }

    /// Everything is as promised: once, healthy, and the pods that look through the node's mounts work again; all pods when
    /// somebody had `kept` the mounts.
    fn is_back(&self, round: usize, kept: bool) -> Result<bool> {
        let node = &self.rig.nodes[0];
        ensure!(census::nothing_stacked(&node.namespace)? == self.mounts(), "mounts: {:#?}", node.namespace.mounts()?);
        for held in &self.held {
            let p = &held.published;
            let lines = node.namespace.at(&p.target)?;
            let staging = node.namespace.at(&p.staged.staging)?;
            let same = lines.len() == 1 && staging.len() == 1 && lines[0].device == staging[0].device;
            ensure!(same, "{}: {lines:?} of {staging:?}", p.target.display());
            ensure!(lines[0].options.split(',').any(|o| o == "ro") == p.readonly, "{}: {lines:?}", p.target.display());
            ensure!(self.rig.healthy(0, &p.staged.volume.id, &p.target)?, "{} is abnormal", p.target.display());
            if held.view == View::Parent || kept {
                self.works(held, round).with_context(|| format!("pod {} ({:?})", p.pod, held.view))?;
            }
        }
        Ok(true)
    }

    fn works(&self, held: &Held, round: usize) -> Result<()> {
        let name = format!("{}-{round}", held.published.pod);
        let written = held.pod.writes(&name, "new");
        if held.published.readonly {
            ensure!(written.is_err(), "a read-only pod could write");
        } else {
            written.map_err(|e| anyhow!("writing: {e}"))?;
        }
        self.reads_what_was_synced(held)
    }

    fn reads_what_was_synced(&self, held: &Held) -> Result<()> {
        let text = held.pod.reads("synced").map_err(|e| anyhow!("reading what was synced before: {e}"))?;
        ensure!(text == held.published.staged.volume.id, "synced before the loss, now {text:?}");
        Ok(())
    }

    /// Waits until every mount has all its holders.
    fn is_whole(&self) -> Result<()> {
        let missing = || self.staged.iter().find(|s| self.rig.whole(s).is_none());
        eventually(LIMIT, || missing().map_or(Ok(true), |s| bail!("{} is not whole", s.volume.id)))
    }

    /// One loss and what follows.
    fn survives(&mut self, loss: Loss, round: usize) -> Result<()> {
        let kept = !loss.is_total(self.rig);
        let killed = self.lose(loss)?;
        let start = now_ns();
        self.revive()?;
        if kept {
            // Not one error, whoever is still being started.
            self.held.iter().try_for_each(|h| self.works(h, round).context("a pod noticed something"))?;
        }
        eventually(LIMIT, || self.is_back(round, kept))?;
        let lost = if kept { "somebody had the mounts" } else { "nobody had the mounts" };
        println!("{}: {killed} processes killed, {lost}, everything back after {:.1} s", loss.what, seconds(start));
        if !kept {
            self.restart_others()?;
        }
        kubelet_comes_again(self).context("kubelet's calls")
    }

    /// A pod that bound the target itself has the dead mount until it is started again.
    fn restart_others(&mut self) -> Result<()> {
        for i in 0..self.held.len() {
            if self.held[i].view != View::Parent {
                let pod = self.rig.pod(&self.held[i].published, self.held[i].view)?;
                self.held[i].pod = pod;
                self.works(&self.held[i], 99).context("a pod that was started again")?;
            }
        }
        Ok(())
    }

    fn end(self) -> Result<()> {
        for held in self.held {
            drop(held.pod);
            self.rig.unpublish(&held.published)?;
        }
        self.staged.iter().try_for_each(|s| self.rig.unstage(s))?;
        self.volumes.iter().try_for_each(|v| self.rig.delete(v))
    }
}

/// All processes of a node's mounts, also with the plugin, also with its records: back in less than 60 s, nothing stacked,
/// pods that see the directory of their target with HostToContainer write again without a restart.
pub fn total_loss_converges() -> Result<()> {
    converges(Runtime::Process, seed(502), LOSSES)
}

/// The same where mounts are handed over. Who loses all but one of plugin, keeper and hosts loses nothing: no pod is
/// started again, and the first access works.
pub fn handed_over_total_loss_converges() -> Result<()> {
    converges(Runtime::Mountd, seed(504), LOSSES_HANDED_OVER)
}

fn converges(runtime: Runtime, seed: u64, losses: &[Loss]) -> Result<()> {
    println!("seed {seed}");
    on_runtime(runtime, 1, |rig| {
        let warm = rig.create("warm", Mode::MultiNodeMultiWriter)?;
        let staged = rig.stage(&warm, 0)?;
        rig.unstage(&staged)?;
        rig.delete(&warm)?;
        let fds = census::fds(rig)?;
        let mut place = Place::new(rig)?;
        for held in place.held.iter().filter(|h| !h.published.readonly) {
            held.pod.writes("synced", &held.published.staged.volume.id).map_err(|e| anyhow!("writing: {e}"))?;
        }
        place.is_back(0, true).context("before any loss")?;
        let mut rng = Rng::new(seed, 1);
        for (round, loss) in losses.iter().enumerate() {
            place.is_whole()?;
            fusefs_chaos_tests::replay::nemesis::pause(Duration::from_millis(rng.below(500)));
            place.survives(*loss, round + 1).with_context(|| format!("after the loss of {}", loss.what))?;
        }
        place.end()?;
        println!("left: {}", census::nothing_left(rig, &fds)?);
        Ok(())
    })
}

/// A restarted kubelet makes all calls again; nothing changes.
fn kubelet_comes_again(place: &Place<'_>) -> Result<()> {
    let node = &place.rig.nodes[0];
    let before = node.namespace.mounts()?;
    place.staged.iter().try_for_each(|s| place.rig.node_stage(s))?;
    for held in &place.held {
        let p = &held.published;
        place.rig.publish(&p.staged, &p.pod, p.readonly)?;
    }
    let after = node.namespace.mounts()?;
    ensure!(before == after, "mounts changed: {before:#?} {after:#?}");
    Ok(())
}
