//! Latency samples of one row.

use super::Cell;
use std::time::Duration;

/// What one row measured.
pub struct Sample {
    /// Wall time of the whole row.
    pub wall: Duration,
    /// Latency of each operation.
    pub each: Vec<Duration>,
}

impl Sample {
    /// Operations per second over the wall time.
    pub fn rate(&self) -> f64 {
        self.each.len() as f64 / self.wall.as_secs_f64().max(1e-9)
    }

    fn percentile(&self, p: f64) -> f64 {
        let mut v = self.each.clone();
        v.sort_unstable();
        let i = ((v.len() as f64 - 1.0) * p).round() as usize;
        v.get(i).map_or(0.0, |d| d.as_secs_f64() * 1e6)
    }

    /// As a cell.
    pub fn cell(&self, row: &str, threads: usize, target: &str, unit: &'static str) -> Cell {
        Cell {
            row: row.to_owned(),
            threads,
            target: target.to_owned(),
            unit,
            rate: self.rate(),
            p50_us: self.percentile(0.5),
            p99_us: self.percentile(0.99),
        }
    }
}
