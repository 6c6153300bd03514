//! The binary `fusefs`: every role and every tool as a subcommand.

mod args;
mod bench;
mod cluster;
mod cmd;
mod resolve;
mod show;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match command_line().and_then(cmd::run) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("fusefs: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The arguments; under the name `mount.fusefs` they come from mount(8).
fn command_line() -> anyhow::Result<args::Cli> {
    let args: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    let helper = args.first().is_some_and(|a| a.rsplit('/').next() == Some("mount.fusefs"));
    Ok(if helper { args::Cli::parse_from(cmd::from_mount_helper(&args[1..])?) } else { args::Cli::parse() })
}
