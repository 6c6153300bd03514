//! The CSI driver on a real Kubernetes cluster: volumes, verified I/O in pods, and everything killed under them.
//!
//! `scripts/kube-smoke` runs it; the environment is described in `chaos-tests/src/kube/mod.rs`. Without a cluster it says
//! what is missing and passes.

// Processes of a real cluster: their times are the wall's, and no event tells what they do.
#![allow(clippy::disallowed_methods)]

#[path = "kube/foreign.rs"]
mod foreign;
#[path = "kube/full.rs"]
mod full;
#[path = "kube/smoke.rs"]
mod smoke;
#[path = "kube/suite.rs"]
mod suite;

fn main() -> std::process::ExitCode {
    suite::main()
}
