//! A test of its own process and mount namespace.

use fusefs_csi_driver::node::helper::Helpers;
use std::process::Command;

/// Runs an ignored test of this file as root in a mount namespace of its own.
pub fn in_namespace(test: &str) {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "needs root");
        eprintln!("skipped: needs root");
        return;
    }
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .status()
        .unwrap();
    assert!(status.success(), "{test}: {status}");
}

/// Helpers that are this executable; it has an ignored test `helper_process`, which calls `helper::answer`.
pub fn helpers() -> Helpers {
    let arguments = ["--exact", "helper_process", "--ignored", "--nocapture"].map(Into::into).to_vec();
    Helpers::new(std::env::current_exe().unwrap(), arguments)
}
