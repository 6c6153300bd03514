//! Processes of a mount are killed while applications work; they must not notice. Every test prints its seed.
//!
//! One test: `cargo test -p fusefs-chaos-tests --test kill_replay NAME`; the same numbers: `FUSEFS_REPLAY_SEED=n`.
//! `FUSEFS_REPLAY_KILLS=10000` makes that many kills in each of the two long tests.

#[cfg(target_os = "linux")]
#[path = "replay/suite.rs"]
mod suite;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    suite::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("kill_replay needs Linux");
}
