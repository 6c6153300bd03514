//! Everything of the CSI driver is killed while pods work and volumes come and go. Every test prints its seed.
//!
//! One test: `cargo test -p fusefs-chaos-tests --test csi_chaos NAME`; the same numbers: `FUSEFS_CSI_SEED=n`; more kills:
//! `FUSEFS_CSI_KILLS=n`; logs of a failure: `FUSEFS_CHAOS_LOGS=DIR`. Needs root (mount namespaces).

#[cfg(target_os = "linux")]
#[path = "csi/suite.rs"]
mod suite;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    suite::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("csi_chaos needs Linux");
}
