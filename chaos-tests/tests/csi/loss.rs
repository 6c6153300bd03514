//! Every holder of a node's mounts is gone: everything is mounted and bound again, unattended.

use super::{on, seconds, seed};
use anyhow::{Context, Result, anyhow, ensure};
use fusefs_chaos_tests::{
    csi::{
        census,
        driver::{Driver, Published, Staged, Volume},
        pod::{Pod, View},
        process::Rig,
    },
    replay::{Rng, now_ns},
    stack::eventually,
};
use fusefs_proto::csi::volume_capability::access_mode::Mode;
use std::time::Duration;

/// Target of the recovery.
const LIMIT: Duration = Duration::from_secs(60);

/// What is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// All processes of all mounts; the plugin lives.
    Mounts,
    /// These and the plugin.
    MountsAndPlugin,
    /// These, the plugin and its records: only the masters know who may mount what.
    MountsPluginAndRecords,
    /// The plugin and its records, while the mounts live.
    PluginAndRecords,
}

const LOSSES: [Loss; 5] =
    [Loss::MountsAndPlugin, Loss::Mounts, Loss::MountsPluginAndRecords, Loss::PluginAndRecords, Loss::MountsAndPlugin];

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
        if loss != Loss::Mounts {
            killed += usize::from(node.plugin.kill().is_some());
        }
        if loss != Loss::PluginAndRecords {
            let mounts = census::kill_mounts(&node.namespace, &node.state.join("mounts"));
            ensure!(mounts >= 3 * self.staged.len(), "only {mounts} processes of mounts were there");
            killed += mounts;
        }
        if matches!(loss, Loss::MountsPluginAndRecords | Loss::PluginAndRecords) {
            std::fs::remove_dir_all(node.state.join("records"))?;
        }
        Ok(killed)
    }

    /// Everything is as promised: once, healthy, and the pods that look through the node's mounts work again.
    fn is_back(&self, round: usize) -> Result<bool> {
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
            if held.view == View::Parent {
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
    let seed = seed(502);
    println!("seed {seed}");
    on(1, |rig| {
        let warm = rig.create("warm", Mode::MultiNodeMultiWriter)?;
        let staged = rig.stage(&warm, 0)?;
        rig.unstage(&staged)?;
        rig.delete(&warm)?;
        let fds = census::fds(rig)?;
        let mut place = Place::new(rig)?;
        for held in place.held.iter().filter(|h| !h.published.readonly) {
            held.pod.writes("synced", &held.published.staged.volume.id).map_err(|e| anyhow!("writing: {e}"))?;
        }
        place.is_back(0).context("before any loss")?;
        let mut rng = Rng::new(seed, 1);
        for (round, loss) in LOSSES.into_iter().enumerate() {
            fusefs_chaos_tests::replay::nemesis::pause(Duration::from_millis(rng.below(500)));
            let killed = place.lose(loss)?;
            let start = now_ns();
            rig.nodes[0].plugin.revive()?;
            eventually(LIMIT, || place.is_back(round + 1)).with_context(|| format!("after the loss of {loss:?}"))?;
            println!("{loss:?}: {killed} processes killed, everything back after {:.1} s", seconds(start));
            place.restart_others()?;
            kubelet_comes_again(&place).with_context(|| format!("kubelet's calls after the loss of {loss:?}"))?;
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
