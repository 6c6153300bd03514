//! Everything else.

use super::suite::Run;
use anyhow::Result;
use fusefs_chaos_tests::kube::Release;

/// All of it.
pub fn run(_: &mut Run<'_>, _: &mut Release<'_>) -> Result<()> {
    Ok(())
}
