//! The binary `fusefs`: every role and every tool as a subcommand.

mod args;
mod bench;
mod cmd;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    match cmd::run(cli) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("fusefs: {e:#}");
            ExitCode::FAILURE
        }
    }
}
