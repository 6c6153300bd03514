//! One file per command.

mod bench;
mod csi;
mod dev;
mod docs;
mod fsck;
mod helper;
#[cfg(target_os = "linux")]
mod journal;
mod mount;
#[cfg(target_os = "linux")]
mod parts;
#[cfg(target_os = "linux")]
mod pods;
mod serve;
mod status;
mod store;
mod volume;

use crate::args::{Cli, Command};
use anyhow::Result;
use std::process::ExitCode;

pub use csi::CsiArgs;
pub use helper::from_mount_helper;
#[cfg(target_os = "linux")]
pub use parts::keeper_process;

/// Executes the command line.
pub fn run(cli: Cli) -> Result<ExitCode> {
    logging(&cli);
    match cli.command {
        Command::Bench(a) => bench::run(&a).map(done),
        Command::Completions { shell } => {
            docs::completions(shell);
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir } => docs::man(&dir).map(done),
        Command::Umount(a) => mount::umount(&a).map(done),
        Command::Mount(a) => mount::run(*a, common_args(&cli.log, cli.log_json)).map(done),
        #[cfg(target_os = "linux")]
        Command::Journal(c) => journal::run(c).map(done),
        #[cfg(target_os = "linux")]
        Command::Upgrade(a) => mount::upgrade(&a).map(done),
        #[cfg(target_os = "linux")]
        Command::Keeper(a) => parts::keeper(&a).map(done),
        #[cfg(target_os = "linux")]
        Command::NodeKeeper(a) => pods::node_keeper(&a).map(done),
        #[cfg(target_os = "linux")]
        Command::FusePod(a) => pods::fuse_pod(&a, common_args(&cli.log, cli.log_json)).map(done),
        #[cfg(target_os = "linux")]
        Command::Mountd(a) => pods::mountd(&a, &common_args(&cli.log, cli.log_json)).map(done),
        #[cfg(target_os = "linux")]
        Command::Adopt(a) => parts::adopt(&a, common_args(&cli.log, cli.log_json)).map(done),
        #[cfg(target_os = "linux")]
        Command::Client(a) => parts::client(&a),
        other => runtime()?.block_on(run_async(other)),
    }
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}

async fn run_async(command: Command) -> Result<ExitCode> {
    match command {
        Command::Dev(a) => dev::run(*a).await.map(done),
        Command::Master(a) => serve::master(a).await.map(done),
        Command::Metanode(a) => serve::metanode(a).await.map(done),
        Command::Csi(a) => csi::run(*a).await.map(done),
        Command::Store(c) => store::run(c).await.map(done),
        Command::Volume(c) => volume::run(c).await.map(done),
        Command::Status(a) => status::run(a).await,
        Command::Fsck(a) => fsck::run(a).await,
        // Those above, and on other systems than Linux those that need its /dev/fuse.
        _ => anyhow::bail!("this command does not exist on this system"),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// What every process of a mount gets, so that all log alike.
fn common_args(log: &str, json: bool) -> Vec<std::ffi::OsString> {
    let mut args = vec!["--log".into(), log.into()];
    if json {
        args.push("--log-json".into());
    }
    args
}

fn logging(cli: &Cli) {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::try_new(&cli.log).unwrap_or_else(|_| EnvFilter::new("warn"));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second initialisation cannot happen; its error has nobody to be told to.
    let _ = if cli.log_json { builder.json().try_init() } else { builder.try_init() };
}
