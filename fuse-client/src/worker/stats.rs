//! Counters for tests: a client that is killed cannot be asked, so it leaves them behind.

use crate::{Vfs, fuse::kernel::ServeStats};
use std::{
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// How often they are written.
const INTERVAL: Duration = Duration::from_millis(10);

/// With `FUSEFS_STATS_DIR=DIR` writes `DIR/client-PID` every 10 ms: lines `NAME VALUE`. Counters of this process only, so
/// the sum over all files is what happened to the mount.
pub(super) fn report(stats: Arc<ServeStats>, vfs: Arc<Vfs>) {
    let Some(dir) = std::env::var_os("FUSEFS_STATS_DIR").map(PathBuf::from) else { return };
    let path = dir.join(format!("client-{}", std::process::id()));
    let file = match std::fs::File::create(&path) {
        Ok(file) => file,
        Err(error) => return tracing::warn!(%error, "counters cannot be written"),
    };
    drop(tokio::spawn(async move {
        let mut turn = tokio::time::interval(INTERVAL);
        loop {
            turn.tick().await;
            // Over the last ones: numbers only grow, and a file that is cut first would be found empty after a kill.
            if let Err(error) = file.write_all_at(text(&stats, &vfs).as_bytes(), 0) {
                tracing::warn!(%error, "counters cannot be written");
                return;
            }
        }
    }));
}

fn text(s: &ServeStats, vfs: &Vfs) -> String {
    let r = vfs.data().replayed();
    let counters = [
        ("requests", s.requests.load(Ordering::Relaxed)),
        ("resent", s.resent.load(Ordering::Relaxed)),
        ("reserved", s.reserved.load(Ordering::Relaxed)),
        ("rewritten", s.rewritten.load(Ordering::Relaxed)),
        ("inline_answers", s.inline_answers.load(Ordering::Relaxed)),
        ("late_replies", s.late_replies.load(Ordering::Relaxed)),
        ("dropped_replies", s.dropped_replies.load(Ordering::Relaxed)),
        ("interrupted", s.interrupted.load(Ordering::Relaxed)),
        ("journal_scanned", r.scanned),
        ("journal_writes", r.writes),
        ("journal_bytes", r.bytes),
        ("journal_intents", r.intents),
        ("journal_torn", r.torn),
    ];
    counters.map(|(name, value)| format!("{name} {value}\n")).concat()
}
