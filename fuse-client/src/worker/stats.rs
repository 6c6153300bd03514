//! What a client process counted, in a file that survives it: for tests and for people who look into a resume.

use crate::fuse::kernel::ServeStats;
use serde_json::json;
use std::{
    fs::{File, OpenOptions},
    io::Write,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// Names the file (`FUSEFS_STATS_FILE`).
const ENV: &str = "FUSEFS_STATS_FILE";
/// How often a change is written: what a killed process counted last may be missing for this long.
const INTERVAL: Duration = Duration::from_millis(5);

/// Appends a JSON line whenever something changed, if the environment names a file. Must be called inside a runtime.
pub(super) fn publish(stats: Arc<ServeStats>, resumed: bool, replayed: u64) {
    let Some(path) = std::env::var_os(ENV) else { return };
    let file = match OpenOptions::new().create(true).append(true).open(&path) {
        Ok(file) => file,
        Err(error) => return tracing::warn!(%error, "{ENV} cannot be written"),
    };
    write(&file, &stats, resumed, replayed);
    tokio::spawn(async move {
        let (mut turn, mut last) = (tokio::time::interval(INTERVAL), 0);
        loop {
            turn.tick().await;
            let now = stats.requests.load(Ordering::Relaxed) + stats.rewritten.load(Ordering::Relaxed);
            if now != last {
                last = now;
                write(&file, &stats, resumed, replayed);
            }
        }
    });
}

fn write(mut file: &File, stats: &ServeStats, resumed: bool, replayed: u64) {
    let get = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    let line = json!({
        "pid": std::process::id(),
        "resumed": resumed,
        "requests": get(&stats.requests),
        "resent": get(&stats.resent),
        "reserved": get(&stats.reserved),
        "rewritten": get(&stats.rewritten),
        "late_replies": get(&stats.late_replies),
        "dropped_replies": get(&stats.dropped_replies),
        "interrupted": get(&stats.interrupted),
        "replayed": replayed,
    });
    // One write per line, so that lines of successive processes do not mix. Only a report: an error changes nothing.
    let _ = file.write_all(format!("{line}\n").as_bytes());
}
