//! Arguments of the commands around mounts.

use super::ClusterArgs;
use clap::{Args, FromArgMatches, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Options of a mount.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Mount options")]
pub struct MountOptions {
    /// Mount read-only.
    #[arg(long)]
    pub read_only: bool,
    /// How long attributes and names may be served from cache, in milliseconds (other clients' changes show up at most
    /// this much later).
    #[arg(long, default_value_t = 1000, value_name = "MS")]
    pub attr_validity: u64,
    /// Inodes kept in the client's cache.
    #[arg(long, default_value_t = 200_000, value_name = "COUNT")]
    pub cache_inodes: usize,
    /// Memory for file data read from the store, in MiB.
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    pub cache_mib: u64,
    /// Memory for written data that is not yet in the store, in MiB; writers wait beyond it.
    #[arg(long, default_value_t = 128, value_name = "MIB")]
    pub write_buffer_mib: u64,
    /// Threads that read requests from the kernel.
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub threads: usize,
    /// Give up on metadata and data requests after this many seconds with EIO; 0 waits for the cluster to come back.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub io_timeout: u64,
    /// How long close(2) waits for the object store before EIO (the data is kept and retried).
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub close_timeout: u64,
    /// Let other users use the mount (default for root).
    #[arg(long)]
    pub allow_other: bool,
    /// The right to mount that the CSI controller gave this node (given by the CSI driver).
    #[arg(long, default_value_t = 0, value_name = "N", hide = true)]
    pub attach_generation: u64,
}

impl Default for MountOptions {
    /// What the command line says when nothing is given: a client of a newer version fills in its own options with it.
    fn default() -> MountOptions {
        let nothing = MountOptions::augment_args(clap::Command::new("mount")).no_binary_name(true);
        let parsed = nothing.try_get_matches_from(std::iter::empty::<&str>());
        match parsed.and_then(|m| MountOptions::from_arg_matches(&m)) {
            Ok(options) => options,
            Err(e) => e.exit(), // an option without a default: every start would end here
        }
    }
}

/// `fusefs mount`.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default)]
pub struct MountArgs {
    /// Volume name.
    pub volume: String,
    /// Directory to mount at.
    pub mountpoint: PathBuf,
    /// Cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// File with a mount token, in place of the cluster token: it opens sessions of one volume for one attach generation and
    /// nothing else (given by the CSI driver).
    #[arg(long, value_name = "FILE", hide = true)]
    pub mount_token_file: Option<PathBuf>,
    /// Mount options.
    #[command(flatten)]
    pub options: MountOptions,
    /// How the processes of the mount look after each other.
    #[command(flatten)]
    pub supervision: SupervisionArgs,
    /// Return to the shell once mounted and serve in the background; messages go to `mount.log` in the state directory.
    #[arg(long, short = 'b')]
    #[serde(skip)]
    pub background: bool,
    /// End when standard input closes.
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
    /// Say on standard output, too, that it is mounted.
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub announce: bool,
}

impl MountArgs {
    /// What proves to the cluster that this mount is allowed.
    pub fn credential_file(&self) -> Option<&Path> {
        self.mount_token_file.as_deref().or(self.cluster.token_file.as_deref())
    }
}

/// The crash-proof mount. `fusefs mount` runs three processes: itself (the supervisor), a keeper of a few MiB, and the
/// client that does the work. Any one of them may be killed: applications see a pause.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Crash-proof mount")]
pub struct SupervisionArgs {
    /// One process, no journal: simpler, but when it is killed its mount and unsynced writes are gone.
    #[arg(long)]
    pub no_keeper: bool,
    /// Directory of the journal, on a local disk that survives reboots. Default: /var/lib/fusefs/mounts/<mount point> for
    /// root, $XDG_STATE_HOME/fusefs/mounts/<mount point> (~/.local/state) for others.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Size of the journal in MiB, allocated at the first mount. Writers wait for the object store beyond it.
    #[arg(long, default_value_t = 256, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=65536))]
    pub journal_mib: u64,
    /// How requests survive the death of a client: `auto` lets the kernel send them again (Linux 6.9 and later), `slots`
    /// keeps them in memory that the keeper holds (what `auto` does on older kernels).
    #[arg(long, value_enum, default_value_t = RecoveryArg::Auto, value_name = "MODE")]
    pub recovery: RecoveryArg,
    /// Do not replace a client that gives no sign of life for 5 s (waiting requests are no reason; a stopped or stuck
    /// process is).
    #[arg(long)]
    pub no_watchdog: bool,
    /// Leave the directory underneath writable. Otherwise (as root, where the file system can) it is made immutable, so
    /// that applications cannot fill the local disk while the volume is not mounted; see chattr(1), flag i.
    #[arg(long)]
    pub no_protect: bool,
}

/// How requests survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecoveryArg {
    /// By kernel version.
    Auto,
    /// In slots.
    Slots,
}

impl Default for SupervisionArgs {
    fn default() -> SupervisionArgs {
        let nothing = SupervisionArgs::augment_args(clap::Command::new("mount")).no_binary_name(true);
        let parsed = nothing.try_get_matches_from(std::iter::empty::<&str>());
        match parsed.and_then(|m| SupervisionArgs::from_arg_matches(&m)) {
            Ok(options) => options,
            Err(e) => e.exit(), // an option without a default: every start would end here
        }
    }
}

/// `fusefs upgrade`.
#[derive(Debug, Args)]
pub struct UpgradeArgs {
    /// Mount point.
    pub mountpoint: PathBuf,
    /// The new `fusefs` executable; default: the one that runs this command.
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    /// How long the new client may take until it serves, in seconds; then the old version comes back.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub timeout: u32,
}

/// `fusefs journal`. A journal is a directory with `journal.*` files: the state directory of a mount that is not
/// mounted, or a `parked-*` directory in it.
#[derive(Debug, Subcommand)]
pub enum JournalCommand {
    /// What is in journals: of one directory, or of every mount of this user on this machine.
    List {
        /// Directory with the journal files.
        dir: Option<PathBuf>,
    },
    /// Write the pending bytes of every file into a directory, for rescue by hand.
    Export {
        /// Directory with the journal files.
        dir: PathBuf,
        /// Where to; made if missing.
        target: PathBuf,
    },
    /// Write the pending bytes to the volume through a new session. Files that others changed meanwhile are overwritten
    /// where the journal has bytes.
    Replay {
        /// Directory with the journal files.
        dir: PathBuf,
        /// Volume.
        volume: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Forget what is pending.
    Discard {
        /// Directory with the journal files.
        dir: PathBuf,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// `fusefs keeper`.
#[derive(Debug, Args)]
pub struct KeeperArgs {
    /// Socket to listen at.
    #[arg(long)]
    pub socket: PathBuf,
}

/// `fusefs fuse-pod`.
#[derive(Debug, Args)]
pub struct FusePodArgs {
    /// Directory for the sockets of this mount's processes; the node plugin dials in there.
    #[arg(long, value_name = "DIR")]
    pub runtime: PathBuf,
}

/// `fusefs mountd`.
#[derive(Debug, Args)]
pub struct MountdArgs {
    /// Directory that the node plugin fills: one directory per volume to be served.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fusefs-csi/hosts")]
    pub hosts: PathBuf,
}

/// `fusefs adopt` and `fusefs client`.
#[derive(Debug, Args)]
pub struct PartArgs {
    /// Runtime directory of the mount.
    #[arg(long)]
    pub runtime: PathBuf,
    /// End instead of answering with errors when this version cannot go on with the mount (client only).
    #[arg(long)]
    pub candidate: bool,
    /// Volume and mount point, for people who look at ps.
    #[arg(last = true)]
    pub labels: Vec<String>,
}

/// `fusefs umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Mount point.
    pub mountpoint: PathBuf,
    /// Detach even while files are open; they keep working until closed.
    #[arg(long, short = 'l')]
    pub lazy: bool,
}
