//! What only mounts can meet that are handed over: their journals when hosts, keeper and plugin die, and hosts that die
//! before the plugin knows what they have done.

use super::{on_runtime, seconds};
use anyhow::{Context, Result, anyhow, bail, ensure};
use fusefs_chaos_tests::{
    csi::{
        census,
        daemon::Daemon,
        driver::{Driver, Published, Staged},
        handed::HandedOver,
        pod::{OpenFile, Pod, View},
        process::{Node, Rig, Runtime},
    },
    replay::{nemesis::pause, now_ns},
    stack::eventually,
};
use fusefs_csi_driver::node::paths::hashed;
use fusefs_fuse_client::{
    keeper::sys,
    supervise::{ClientRecord, names},
};
use fusefs_proto::csi::volume_capability::access_mode::Mode;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

/// Recovery, unattended.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a host may take until it has a client, and a client until it has answered INIT.
const STARTED: Duration = Duration::from_secs(20);
/// Mounts that are tried until one of their hosts dies in the moment that is meant.
const TRIES: usize = 10;
/// Repetitions of a word that are written: as much as is not kept with the file's metadata, and fits into an argument.
const WORDS: usize = 20_000;
/// What an empty journal is said to be.
const EMPTY: &str = "nothing is pending";

/// One volume on one node whose files are written to and left open.
struct Dirty<'a> {
    rig: &'a Rig,
    node: &'a Node,
    handed: &'a HandedOver,
    staged: Staged,
    published: Published,
    pod: Pod,
}

impl<'a> Dirty<'a> {
    fn new(rig: &'a Rig) -> Result<Dirty<'a>> {
        let volume = rig.create("dirty", Mode::SingleNodeMultiWriter)?;
        let staged = rig.stage(&volume, 0)?;
        let published = rig.publish(&staged, "writer", false)?;
        let pod = rig.pod(&published, View::Parent)?;
        let node = &rig.nodes[0];
        let handed = node.handed.as_ref().context("mounts are handed over")?;
        Ok(Dirty { rig, node, handed, staged, published, pod })
    }

    /// Directory of the mount's journal.
    fn journal(&self) -> PathBuf {
        self.node.state.join("mounts").join(hashed(self.staged.volume.id.as_bytes()))
    }

    /// What is pending in a journal that nobody uses.
    fn pending(&self, journal: &Path) -> Result<String> {
        self.rig.stack.fusefs(&["journal", "list", &journal.display().to_string()])
    }

    /// One file that is synced, and one with the same text that is not.
    fn write(&self, round: &str) -> Result<OpenFile> {
        let text = round.repeat(WORDS);
        self.pod.writes(&format!("{round}-synced"), &text).map_err(|e| anyhow!("writing: {e}"))?;
        self.pod.leaves_open(&format!("{round}-open"), &text)
    }

    fn reads(&self, round: &str, kind: &str) -> Result<()> {
        let name = format!("{round}-{kind}");
        let text = self.pod.reads(&name).map_err(|e| anyhow!("{name}: {e}"))?;
        ensure!(text == round.repeat(WORDS), "{name} has {} other bytes", text.len());
        Ok(())
    }

    /// Worker, supervisor and keeper at once; the plugin holds the mount alone. Nobody comes back before it is told to.
    fn all_but_the_plugin(&self) -> Result<()> {
        let killed = self.handed.kill_mountd(true)?.len();
        ensure!(killed >= 3, "mountd, a host and its client were to be killed; there were {killed}");
        self.handed.keeper.kill().map(drop).context("the keeper did not run")
    }

    /// These and the plugin.
    fn everybody(&self, file: OpenFile) -> Result<()> {
        self.all_but_the_plugin()?;
        self.node.plugin.kill().context("the plugin did not run")?;
        census::kill_mounts(&self.node.namespace, &self.node.state.join("mounts"));
        drop(file);
        let said = self.pending(&self.journal())?;
        ensure!(!said.contains(EMPTY), "nothing was in the journal when everybody died: {said}");
        Ok(())
    }

    fn revive(&self) -> Result<()> {
        self.rig.daemons().into_iter().try_for_each(Daemon::revive)
    }

    fn parked(&self) -> Vec<PathBuf> {
        let all = fs::read_dir(self.journal()).into_iter().flatten().flatten().map(|e| e.path());
        all.filter(|p| p.display().to_string().contains("parked-")).collect()
    }

    /// The volume was taken from the node by force and given back: the old session has ended, so its journal may not be
    /// written any more.
    fn attached_anew(&mut self) -> Result<()> {
        self.rig.detach(&self.staged.volume.id, 0)?;
        self.staged = self.rig.attach(&self.staged.volume, 0)?;
        self.published.staged = self.staged.clone();
        self.revive()?;
        self.rig.node_stage(&self.staged)
    }

    fn end(self) -> Result<()> {
        drop(self.pod);
        self.rig.unpublish(&self.published)?;
        self.rig.unstage(&self.staged)?;
        self.rig.delete(&self.staged.volume)
    }
}

/// Open files of the daemons after a first volume.
fn warm(rig: &Rig) -> Result<Vec<usize>> {
    let warm = rig.create("warm", Mode::MultiNodeMultiWriter)?;
    rig.unstage(&rig.stage(&warm, 0)?)?;
    rig.delete(&warm)?;
    census::fds(rig)
}

/// Written and not synced: in the journal on the node's disk. It is there again after everybody who had it is gone, as long
/// as the session lives; a journal of a session that has ended is put aside, whole, and the volume can be used.
pub fn handed_over_journals_are_replayed_or_parked() -> Result<()> {
    on_runtime(Runtime::Mountd, 1, |rig| {
        let fds = warm(rig)?;
        let mut dirty = Dirty::new(rig)?;
        replayed(&dirty)?;
        parked(&mut dirty)?;
        dirty.end()?;
        println!("left: {}", census::nothing_left(rig, &fds)?);
        Ok(())
    })
}

fn replayed(dirty: &Dirty<'_>) -> Result<()> {
    let file = dirty.write("held")?;
    let start = now_ns();
    dirty.all_but_the_plugin()?;
    dirty.revive()?;
    ["synced", "open"].into_iter().try_for_each(|k| dirty.reads("held", k)).context("only the plugin had the mount")?;
    println!("hosts and keeper killed: read again after {:.2} s", seconds(start));
    drop(file);
    dirty.everybody(dirty.write("lost")?)?;
    let start = now_ns();
    dirty.revive()?;
    eventually(LIMIT, || ["synced", "open"].into_iter().try_for_each(|k| dirty.reads("lost", k)).map(|()| true))
        .context("after total loss")?;
    println!("everybody killed: replayed after {:.1} s", seconds(start));
    dirty.reads("held", "open")?;
    ensure!(dirty.parked().is_empty(), "put aside although its session lives: {:?}", dirty.parked());
    Ok(())
}

fn parked(dirty: &mut Dirty<'_>) -> Result<()> {
    dirty.everybody(dirty.write("late")?)?;
    let start = now_ns();
    dirty.attached_anew()?;
    eventually(LIMIT, || dirty.reads("late", "synced").map(|()| true)).context("after a new attachment")?;
    println!("everybody killed, another session: mounted after {:.1} s", seconds(start));
    ensure!(dirty.reads("late", "open").is_err(), "a journal of an ended session was written");
    let [parked] = &dirty.parked()[..] else { bail!("put aside: {:?}", dirty.parked()) };
    let said = dirty.pending(parked)?;
    ensure!(!said.contains(EMPTY), "what was put aside is empty: {said}");
    let (path, volume) = (parked.display().to_string(), &dirty.staged.volume.id);
    dirty.rig.stack.fusefs(&["journal", "replay", &path, volume, "--yes"])?;
    ensure!(dirty.pending(parked)?.contains(EMPTY), "what was put aside is still pending");
    eventually(LIMIT, || dirty.reads("late", "open").map(|()| true)).context("after a replay by hand")?;
    fs::remove_dir_all(parked)?; // as its owner does afterwards
    Ok(())
}

/// The kernel's INIT is answered once. Whoever comes after a host that answered it and died before anybody else knew cannot
/// serve the mount: nobody has used it, so it is taken away and made anew, also by another plugin.
pub fn a_host_that_dies_before_it_serves_leaves_no_mount() -> Result<()> {
    on_runtime(Runtime::Mountd, 1, |rig| {
        let fds = warm(rig)?;
        let (mut lost, mut tries) = ([0; 2], 0);
        while lost.contains(&0) {
            ensure!(tries < TRIES, "in {TRIES} mounts no host died between its answer and the plugin's look: {lost:?}");
            let with_plugin = lost[0] > 0;
            lost[usize::from(with_plugin)] += usize::from(one_early_death(rig, tries, with_plugin)?);
            tries += 1;
        }
        println!("left: {}", census::nothing_left(rig, &fds)?);
        Ok(())
    })
}

/// A volume whose first host dies early; whether it did.
fn one_early_death(rig: &Rig, i: usize, with_plugin: bool) -> Result<bool> {
    let volume = rig.create(&format!("early-{i}"), Mode::SingleNodeSingleWriter)?;
    let staged = rig.attach(&volume, 0)?;
    let start = now_ns();
    let hit = std::thread::scope(|scope| {
        let killer = scope.spawn(|| dies_early(rig, &volume.id, with_plugin));
        let staging = rig.node_stage(&staged);
        let hit = killer.join().map_err(|_| anyhow!("a panic"))??;
        staging.map(|()| hit).context("NodeStage")
    })?;
    let what = if hit { "INIT was lost" } else { "too late" };
    println!("staged after {:.1} s; plugin killed, too: {with_plugin}; {what}", seconds(start));
    let published = rig.publish(&staged, "after", false)?;
    let pod = rig.pod(&published, View::Private)?;
    pod.writes("file", "text").map_err(|e| anyhow!("the mount that was made then: {e}"))?;
    drop(pod);
    rig.unpublish(&published)?;
    rig.unstage(&staged)?;
    rig.delete(&volume)?;
    Ok(hit)
}

/// Stops the plugin as soon as the mount has a client, waits until that has answered INIT, and kills client and host.
/// Whether nobody else knew of the answer.
fn dies_early(rig: &Rig, volume: &str, with_plugin: bool) -> Result<bool> {
    let node = &rig.nodes[0];
    let handed = node.handed.as_ref().context("mounts are handed over")?;
    let item = |name: &str| -> Result<Option<Vec<u8>>> { Ok(handed.host(volume)?.get(name)?.map(|i| i.bytes)) };
    soon(|| item(names::CLIENT).is_ok_and(|c| c.is_some())).context("no client came")?;
    let plugin = Pid::from_raw(node.plugin.pid().context("the plugin does not run")? as i32);
    kill(plugin, Signal::SIGSTOP)?;
    let killed = (|| {
        soon(|| item(names::INIT).is_ok_and(|c| c.is_some())).context("INIT was not answered")?;
        let known = handed.keeper_knows(volume)?;
        let client = item(names::CLIENT)?.as_deref().and_then(ClientRecord::decode).context("no record")?;
        let (host, _) = sys::peer(handed.host(volume)?.as_fd())?;
        for pid in [host, client.pid] {
            kill(Pid::from_raw(pid as i32), Signal::SIGKILL)?;
        }
        Ok(!known)
    })();
    if with_plugin {
        node.plugin.kill().context("the plugin did not run")?;
    } else {
        kill(plugin, Signal::SIGCONT)?;
    }
    killed
}

/// Waits for something that takes milliseconds, with looks as often.
fn soon(there: impl Fn() -> bool) -> Result<()> {
    let start = now_ns();
    while !there() {
        ensure!(now_ns() - start < STARTED.as_nanos() as u64, "not within {STARTED:?}");
        pause(Duration::from_millis(1));
    }
    Ok(())
}
