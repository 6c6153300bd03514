//! One file per command.

mod docs;

use crate::args::{Cli, Command};
use anyhow::{Result, bail};
use std::process::ExitCode;

/// Executes the command line.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Bench(a) => crate::bench::run(&a, None)?,
        Command::Completions { shell } => docs::completions(shell),
        Command::Man { dir } => docs::man(&dir)?,
        _ => bail!("not connected yet"),
    }
    Ok(ExitCode::SUCCESS)
}
