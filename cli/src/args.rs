//! Command line of `fusefs`: parsed here, resolved once in `resolve.rs`, executed in `cmd/`.

use clap::{Args, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// fusefs: a distributed POSIX file system. Metadata in raft groups, data in any S3 store, mounted through FUSE.
///
/// First steps:  `fusefs dev ~/fusefs` runs and mounts a complete system on this machine.
#[derive(Debug, Parser)]
#[command(
    name = "fusefs",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What to log: error, warn, info, debug, or a filter such as `fusefs_metanode=debug`.
    #[arg(long, global = true, env = "FUSEFS_LOG", default_value = "warn,openraft=error", value_name = "FILTER")]
    pub log: String,
    /// Log as JSON lines.
    #[arg(long, global = true, env = "FUSEFS_LOG_JSON")]
    pub log_json: bool,
    /// Command.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a complete fusefs on this machine and mount it, in the foreground. Ctrl-C unmounts.
    Dev(Box<DevArgs>),
    /// Run a master.
    Master(MasterArgs),
    /// Run a metanode.
    Metanode(MetanodeArgs),
    /// Mount a volume.
    Mount(Box<MountArgs>),
    /// Unmount a fusefs mount point, also a dead one.
    Umount(UmountArgs),
    /// Replace the client of a mount by another version while applications use it.
    Upgrade(UpgradeArgs),
    /// Journals of mounts: list, export, replay or discard what did not get into the object store.
    #[command(subcommand)]
    Journal(JournalCommand),
    /// Hold a mount's files so that its other processes may die (started by `fusefs mount`).
    #[command(hide = true)]
    Keeper(KeeperArgs),
    /// Take a living mount over from its keeper (started by the keeper).
    #[command(hide = true)]
    Adopt(PartArgs),
    /// Serve a mount (started by `fusefs mount`).
    #[command(hide = true)]
    Client(PartArgs),
    /// Run the CSI driver: volumes for orchestrators such as Kubernetes.
    Csi(Box<crate::cmd::CsiArgs>),
    /// Object stores: add, list, show, probe.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Volumes: create, list, show, expand, delete.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Is everything running, and is the data safe? One screen.
    Status(StatusArgs),
    /// Check a volume's metadata and objects against each other, online.
    Fsck(FsckArgs),
    /// Measure a directory on fusefs (or any file system) beside a local one.
    Bench(Box<BenchArgs>),
    /// Print a shell completion script.
    Completions {
        /// Shell.
        shell: clap_complete::Shell,
    },
    /// Write man pages into a directory.
    Man {
        /// Directory, created if missing.
        dir: PathBuf,
    },
}

/// How to reach a cluster.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterArgs {
    /// Master addresses, host:port, separated by commas; any one that lives is enough.
    #[arg(long, env = "FUSEFS_MASTER", value_delimiter = ',', required = true, value_name = "ADDR,...")]
    pub master: Vec<String>,
    /// File with the cluster token. Needed for clusters that do not run on loopback only.
    #[arg(long, env = "FUSEFS_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// `fusefs dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Directory to mount at; created if missing.
    pub mountpoint: PathBuf,
    /// Where masters, metanodes and (without --s3) file data live. The same directory brings everything back.
    /// Default: ~/.local/share/fusefs/dev
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Masters (1 or 3).
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=7))]
    pub masters: u32,
    /// Metanodes; with 3 or more every partition has 3 replicas.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub metanodes: u32,
    /// Run every role as a process of its own instead of in this one.
    #[arg(long)]
    pub processes: bool,
    /// Keep file data in this S3 bucket: http(s)://HOST[:PORT]/BUCKET[/PREFIX]. Credentials come from the standard AWS
    /// chain (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, profiles).
    #[arg(long, value_name = "URL")]
    pub s3: Option<String>,
    /// Region of the bucket.
    #[arg(long, default_value = "us-east-1", env = "AWS_REGION", value_name = "REGION")]
    pub s3_region: String,
    /// Volume to create and mount.
    #[arg(long, default_value = "dev", value_name = "NAME")]
    pub volume: String,
    /// Mount options.
    #[command(flatten)]
    pub options: MountOptions,
}

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

/// `fusefs master`.
#[derive(Debug, Args)]
pub struct MasterArgs {
    /// Settings as TOML; flags and environment win over it.
    #[arg(long, env = "FUSEFS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on (gRPC, HTTP/JSON, raft: one port).
    #[arg(long, env = "FUSEFS_LISTEN", value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Data directory.
    #[arg(long, env = "FUSEFS_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// All masters in the same order everywhere, this one included: host:port,...
    #[arg(long, env = "FUSEFS_PEERS", value_delimiter = ',', value_name = "ADDR,...")]
    pub peers: Vec<String>,
    /// File with the cluster token; required when --listen is not loopback.
    #[arg(long, env = "FUSEFS_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Directory of credential files for object stores: NAME.toml with access_key and secret_key.
    #[arg(long, env = "FUSEFS_CREDENTIALS_DIR", value_name = "DIR")]
    pub credentials_dir: Option<PathBuf>,
    /// End when standard input closes (used by `fusefs dev --processes`).
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

/// `fusefs metanode`.
#[derive(Debug, Args)]
pub struct MetanodeArgs {
    /// Settings as TOML; flags and environment win over it.
    #[arg(long, env = "FUSEFS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on (clients, raft, metrics: one port).
    #[arg(long, env = "FUSEFS_LISTEN", value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Data directory.
    #[arg(long, env = "FUSEFS_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Masters.
    #[arg(long, env = "FUSEFS_MASTER", value_delimiter = ',', value_name = "ADDR,...")]
    pub master: Vec<String>,
    /// File with the cluster token; required when --listen is not loopback.
    #[arg(long, env = "FUSEFS_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Failure domain for placement (default: the host of --listen).
    #[arg(long, env = "FUSEFS_HOST", value_name = "NAME")]
    pub host: Option<String>,
    /// End when standard input closes (used by `fusefs dev --processes`).
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
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

/// `fusefs adopt` and `fusefs client`.
#[derive(Debug, Args)]
pub struct PartArgs {
    /// Runtime directory of the mount.
    #[arg(long)]
    pub runtime: PathBuf,
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

/// Output choice.
#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
    /// Print JSON for scripts.
    #[arg(long)]
    pub json: bool,
}

/// Kind of store on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum StoreKindArg {
    /// S3 API.
    S3,
    /// A directory that every client and metanode sees (development).
    Dir,
}

/// `fusefs store`.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Add an object store; it is probed first and refused when unreachable or unsafe.
    Add {
        /// Name for people.
        name: String,
        /// S3: http(s)://HOST[:PORT]/BUCKET[/PREFIX], or s3://BUCKET[/PREFIX] for AWS. Dir: an absolute path.
        url: String,
        /// Region.
        #[arg(long, default_value = "us-east-1")]
        region: String,
        /// Name of the credential that each master reads from its credentials directory; empty = the masters' standard
        /// AWS chain.
        #[arg(long, default_value = "")]
        credential: String,
        /// Use virtual-hosted addressing instead of path style.
        #[arg(long)]
        virtual_hosted: bool,
        /// Cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Output.
        #[command(flatten)]
        output: Output,
    },
    /// List object stores.
    List {
        /// Cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Output.
        #[command(flatten)]
        output: Output,
    },
    /// Show one store with its last probe.
    Show {
        /// Name.
        name: String,
        /// Cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Output.
        #[command(flatten)]
        output: Output,
    },
    /// Probe a store again: write, read back, range read, delete, conditional create.
    Probe {
        /// Name.
        name: String,
        /// Cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Output.
        #[command(flatten)]
        output: Output,
    },
}

/// `fusefs volume`.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Create a volume and wait until it is ready.
    Create {
        /// Name: a-z, 0-9 and -, 2 to 63 characters.
        name: String,
        /// Object store; may be left out when there is only one.
        #[arg(long, default_value = "")]
        store: String,
        /// Capacity, e.g. 10GiB; 0 = unlimited.
        #[arg(long, default_value = "0", value_parser = parse_size)]
        capacity: u64,
        /// Most inodes; 0 = unlimited.
        #[arg(long, default_value_t = 0)]
        inodes: u64,
        /// Metadata partitions; 0 = 3.
        #[arg(long, default_value_t = 0)]
        partitions: u32,
        /// Replicas of each partition; 0 = 3, or as many as there are metanodes.
        #[arg(long, default_value_t = 0)]
        replicas: u32,
        /// Cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Output.
        #[command(flatten)]
        output: Output,
    },
    /// List volumes.
    List {
        /// Cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Output.
        #[command(flatten)]
        output: Output,
    },
    /// Show a volume: state, redundancy, partitions, sessions, probe of its store.
    Show {
        /// Name.
        name: String,
        /// Cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Output.
        #[command(flatten)]
        output: Output,
    },
    /// Raise a volume's capacity.
    Expand {
        /// Name.
        name: String,
        /// New capacity, e.g. 20GiB.
        #[arg(value_parser = parse_size)]
        capacity: u64,
        /// New inode limit; 0 keeps it.
        #[arg(long, default_value_t = 0)]
        inodes: u64,
        /// Cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Output.
        #[command(flatten)]
        output: Output,
    },
    /// Delete a volume with everything in it.
    Delete {
        /// Name.
        name: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Even while it is mounted somewhere.
        #[arg(long)]
        force: bool,
        /// Cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

/// `fusefs status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Output.
    #[command(flatten)]
    pub output: Output,
}

/// `fusefs fsck`.
#[derive(Debug, Args)]
pub struct FsckArgs {
    /// Volume.
    pub volume: String,
    /// Also read every object and verify its checksums (slow, costs GETs).
    #[arg(long)]
    pub read_data: bool,
    /// Cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Output.
    #[command(flatten)]
    pub output: Output,
}

/// `fusefs bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Directory on the file system to measure; a fresh subdirectory is used and removed.
    pub dir: PathBuf,
    /// Local directory measured in the same run for the ratios.
    #[arg(long, default_value = "/tmp", value_name = "DIR")]
    pub local: PathBuf,
    /// Files per metadata row.
    #[arg(long, default_value_t = 2000, value_name = "N")]
    pub files: usize,
    /// MiB of the big file.
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    pub big_mib: u64,
    /// Files in the tar row.
    #[arg(long, default_value_t = 5000, value_name = "N")]
    pub tar_files: usize,
    /// Thread counts of the metadata rows.
    #[arg(long, default_value = "1,8", value_delimiter = ',', value_name = "N,...")]
    pub threads: Vec<usize>,
    /// Only rows whose name contains this.
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub only: String,
    /// Also mount a built-in passthrough through the same FUSE adapter and measure it: the floor any FUSE file system has.
    #[arg(long)]
    pub floor: bool,
    /// Output.
    #[command(flatten)]
    pub output: Output,
}

/// Bytes from `10GiB`, `512MiB`, `1T`, `4096`. Decimal and binary suffixes both mean powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.chars().take_while(|c| c.is_ascii_digit()).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is not a size; try 10GiB"))?;
    let shift = match unit.trim().to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(format!("unknown unit in `{text}`; use KiB, MiB, GiB, TiB")),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_every_flag_is_documented() {
        Cli::command().debug_assert();
        fn walk(c: &clap::Command) {
            for a in c.get_arguments().filter(|a| !a.is_hide_set() && a.get_id() != "help" && a.get_id() != "version") {
                assert!(a.get_help().is_some() || a.get_long_help().is_some(), "{} {}", c.get_name(), a.get_id());
            }
            c.get_subcommands().filter(|s| s.get_name() != "help").for_each(walk);
        }
        walk(&Cli::command());
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("10GiB"), Ok(10 << 30));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("1T"), Ok(1 << 40));
        assert!(parse_size("x").is_err());
        assert!(parse_size("9999999999T").is_err());
    }
}
