//! Mounts that the node's plugin makes and hands over (`--runtime mountd`): its keeper and its `fusefs mountd` with the hosts
//! that serve, all processes of the node.

use super::{
    census,
    daemon::{Daemon, Wish},
    driver::Staged,
    holders::{Holders, NEEDED, connections, has_connection},
    namespace::Namespace,
};
use anyhow::{Context, Result};
use fusefs_csi_driver::{node::paths::hashed, runtime::pod::dial::SOCKET};
use fusefs_fuse_client::{
    keeper::{Channel, sys},
    supervise::{ClientRecord, Held, Phase, names},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::BTreeSet,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

/// What a node with handed-over mounts runs besides its plugin.
pub struct HandedOver {
    /// Holds duplicates of every mount of the node.
    pub keeper: Daemon,
    /// Runs the hosts.
    pub mountd: Daemon,
    socket: PathBuf,
    hosts: PathBuf,
}

impl HandedOver {
    /// Starts both for the node whose directory is `root`; the plugin keeps its state in `state`.
    pub fn start(node: &str, program: &Path, inside: &Namespace, root: &Path, state: &Path) -> Result<HandedOver> {
        let (socket, hosts) = (root.join("keeper/keeper.sock"), state.join("hosts"));
        let dir = root.parent().context("a parent")?;
        let daemon = |role: &str, option: &str, path: &Path| {
            let (name, inside) = (format!("{node}-{role}"), Some(inside));
            let arguments = vec![role.into(), option.into(), path.display().to_string()];
            let daemon = Daemon::new(Wish { name: &name, program, inside, arguments, dir }, &[])?;
            daemon.revive().map(|()| daemon)
        };
        let (keeper, mountd) = (daemon("node-keeper", "--socket", &socket)?, daemon("mountd", "--hosts", &hosts)?);
        Ok(HandedOver { keeper, mountd, socket, hosts })
    }

    /// What the plugin is told.
    pub fn arguments(&self) -> Vec<String> {
        let socket = self.socket.display().to_string();
        ["--runtime", "mountd", "--host-user", "0:0", "--keeper-socket", &socket].map(String::from).into()
    }

    /// Directories that mountd is to serve.
    pub fn served(&self) -> Vec<PathBuf> {
        super::holders::entries(&self.hosts)
    }

    /// Items that the keeper has, of all mounts.
    pub fn kept(&self) -> Result<Vec<String>> {
        Ok(Channel::connect(&self.socket)?.list_all()?)
    }

    /// A connection to whoever serves the volume.
    pub fn host(&self, volume: &str) -> Result<Channel> {
        Ok(Channel::connect(&self.hosts.join(hashed(volume.as_bytes())).join(SOCKET))?)
    }

    /// Whether the keeper knows what was negotiated with the kernel for the volume's mount.
    pub fn keeper_knows(&self, volume: &str) -> Result<bool> {
        let kept = Held::shared_items(&Channel::connect(&self.socket)?, &hashed(volume.as_bytes()))?;
        Ok(kept.get(names::INIT).is_some())
    }

    /// The processes of a mount, when all are there, each has the connection, both holders besides the plugin have
    /// everything that a successor needs, the client serves, and every other mount of the node is held by as many.
    pub fn whole(&self, node: &Namespace, plugin: u32, staged: &Staged) -> Option<Holders> {
        let host = self.host(&staged.volume.id).ok()?;
        let bytes = |name| host.get(name).ok().flatten().map(|i| i.bytes);
        let client = ClientRecord::decode(&bytes(names::CLIENT)?).filter(|c| c.phase == Phase::Serving && c.alive())?;
        let keeper = Channel::connect(&self.socket).ok()?;
        let kept = Held::shared_items(&keeper, &hashed(staged.volume.id.as_bytes())).ok()?;
        let lives = kept.fd(names::FUSE).is_some_and(|fd| !sys::connection_gone(fd));
        let same = kept.bytes(names::MOUNT) == bytes(names::MOUNT).as_deref();
        let there = host.list().ok()?;
        let complete = NEEDED
            .iter()
            .filter(|n| **n != names::CLIENT)
            .all(|n| kept.get(n).is_some() && there.iter().any(|h| h == n));
        let pid = |c: &Channel| sys::peer(c.as_fd()).ok().map(|p| p.0);
        let holders =
            Holders { keeper: pid(&keeper)?, supervisor: pid(&host)?, client: client.pid, plugin: Some(plugin) };
        drop(kept); // nobody but they may hold the mount
        let all = lives && same && complete && holders.pids().into_iter().all(has_connection);
        (all && self.all_held(node, plugin, holders.keeper)).then_some(holders)
    }

    /// Whether plugin, keeper and hosts each have as many connections as the node has mounts.
    fn all_held(&self, node: &Namespace, plugin: u32, keeper: u32) -> bool {
        let Ok(mounts) = node.mounts() else { return false };
        let devices: BTreeSet<_> = mounts.iter().map(|m| &m.device).collect();
        let hosts = self.processes().into_iter().filter(|p| census::role(*p) == "fuse-pod" && has_connection(*p));
        [connections(plugin), connections(keeper), hosts.count()].into_iter().all(|n| n >= devices.len())
    }

    /// Hosts and their clients.
    pub fn processes(&self) -> BTreeSet<u32> {
        census::processes(&self.hosts.join("")) // the daemon's own command line has no slash at the end
    }

    /// SIGKILL to mountd, and to everybody that it started (`all`: as when its container is killed); who was killed. Not
    /// started again.
    pub fn kill_mountd(&self, all: bool) -> Result<BTreeSet<u32>> {
        let daemon = self.mountd.pid().context("mountd does not run")?;
        // So that nobody is started meanwhile.
        kill(Pid::from_raw(daemon as i32), Signal::SIGSTOP)?;
        let hosts = if all { self.processes() } else { BTreeSet::new() };
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for pid in &hosts {
                let _ = kill(Pid::from_raw(*pid as i32), signal); // it may have ended
            }
        }
        let killed = self.mountd.kill().context("mountd had ended")?;
        Ok(hosts.into_iter().chain([killed]).collect())
    }

    /// Starts whoever is dead.
    pub fn revive(&self) -> Result<()> {
        self.keeper.revive()?;
        self.mountd.revive()
    }
}
