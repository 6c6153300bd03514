//! `fusefs bench`, with the built-in passthrough mount for `--floor`.

use crate::args::BenchArgs;
use anyhow::{Context, Result};
use fusefs_fuse_client::fuse::{MountSettings, mount_filesystem, passthrough::Passthrough};

/// Executes the command.
pub fn run(a: &BenchArgs) -> Result<()> {
    if !a.floor {
        return crate::bench::run(a, None);
    }
    let base = a.local.join(format!("fusefs-floor-{}", std::process::id()));
    let (backing, point) = (base.join("backing"), base.join("mnt"));
    std::fs::create_dir_all(&backing)?;
    std::fs::create_dir_all(&point)?;
    let result = floor(a, &backing, &point);
    std::fs::remove_dir_all(&base).with_context(|| format!("removing {}", base.display()))?;
    result
}

fn floor(a: &BenchArgs, backing: &std::path::Path, point: &std::path::Path) -> Result<()> {
    let mut mounted = mount_filesystem(&MountSettings::new(point, "fusefs#floor"), Passthrough::new(backing))
        .context("mounting the passthrough")?;
    let result = crate::bench::run(a, Some(point));
    mounted.unmount().context("unmounting the passthrough")?;
    result
}
