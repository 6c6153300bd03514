//! The end of every call: one line in the log, one code on the wire.

use crate::Outcome;
use tokio::time::Instant;
use tonic::{Response, Status};

/// Longest id in a log line.
const SHOWN_MAX: usize = 128;

/// Does the work of a call and tells how it ended. `about` (a volume id, a name) is shown only when it is harmless;
/// nothing else of a request is logged, so no secret can be.
pub async fn answer<T>(
    rpc: &'static str,
    about: &str,
    work: impl Future<Output = Outcome<T>>,
) -> Result<Response<T>, Status> {
    let begin = Instant::now();
    let about = shown(about).to_owned();
    tracing::debug!(rpc, about, "called");
    let result = work.await;
    let ms = begin.elapsed().as_millis();
    match result {
        Ok(reply) => {
            tracing::info!(rpc, about, ms, "done");
            Ok(Response::new(reply))
        }
        Err(fault) => {
            tracing::warn!(rpc, about, ms, code = ?fault.code, "{}", fault.message);
            Err(fault.into())
        }
    }
}

/// An id for a log line.
fn shown(id: &str) -> &str {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/".contains(c);
    if id.len() <= SHOWN_MAX && id.chars().all(plain) { id } else { "(not shown)" }
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn log_lines_cannot_be_forged() {
        assert_eq!(shown("pvc-1/a"), "pvc-1/a");
        for bad in ["a\nERROR forged", "\u{1b}[2J", "a b", &"x".repeat(200)] {
            assert_eq!(shown(bad), "(not shown)");
        }
    }
}
