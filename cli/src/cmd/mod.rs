//! One file per command.

mod bench;
mod dev;
mod docs;
mod fsck;
mod helper;
mod mount;
mod serve;
mod status;
mod store;
mod volume;

use crate::args::{Cli, Command};
use anyhow::Result;
use std::process::ExitCode;

pub use helper::from_mount_helper;

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
        Command::Mount(a) => mount::run(*a).await.map(done),
        Command::Store(c) => store::run(c).await.map(done),
        Command::Volume(c) => volume::run(c).await.map(done),
        Command::Status(a) => status::run(a).await,
        Command::Fsck(a) => fsck::run(a).await,
        Command::Bench(_) | Command::Completions { .. } | Command::Man { .. } | Command::Umount(_) => {
            Ok(ExitCode::FAILURE)
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn logging(cli: &Cli) {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::try_new(&cli.log).unwrap_or_else(|_| EnvFilter::new("warn"));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second initialisation cannot happen; its error has nobody to be told to.
    let _ = if cli.log_json { builder.json().try_init() } else { builder.try_init() };
}
