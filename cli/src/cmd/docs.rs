//! Shell completions and man pages, generated from the same definitions as `--help`.

use crate::args::Cli;
use anyhow::{Context, Result};
use clap::CommandFactory;
use std::path::Path;

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut Cli::command(), "fusefs", &mut std::io::stdout());
}

/// Writes `fusefs.1` and one page per subcommand.
pub fn man(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    clap_mangen::generate_to(Cli::command(), dir).with_context(|| format!("writing man pages to {}", dir.display()))?;
    println!("man pages written to {}; read one with: man {}/fusefs.1", dir.display(), dir.display());
    Ok(())
}
