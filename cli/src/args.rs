//! Command line of `fusefs`: parsed here, resolved once in `resolve.rs`, executed in `cmd/`.

#[cfg(target_os = "linux")]
mod csi_pods;
mod mount;

#[cfg(target_os = "linux")]
pub use csi_pods::{CsiPodArgs, PullPolicyArg};
pub use mount::{
    FusePodArgs, JournalCommand, KeeperArgs, MountArgs, MountOptions, MountdArgs, PartArgs, RecoveryArg, UmountArgs,
    UpgradeArgs,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
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
    /// Hold duplicates of every mount of a node, so that the CSI node plugin and its fuse pods may die (a DaemonSet).
    #[command(hide = true)]
    NodeKeeper(KeeperArgs),
    /// Serve a mount that the CSI node plugin makes and hands over (the process of a fuse pod).
    #[command(hide = true)]
    FusePod(FusePodArgs),
    /// Serve all mounts of the CSI node plugin on this node from one daemon.
    #[command(hide = true)]
    Mountd(MountdArgs),
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
