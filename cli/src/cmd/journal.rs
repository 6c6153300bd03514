//! `fusefs journal`.

use crate::args::JournalCommand;
use anyhow::{Result, bail};

/// Runs one of the commands.
pub fn run(_command: JournalCommand) -> Result<()> {
    bail!("this build cannot read journals")
}
