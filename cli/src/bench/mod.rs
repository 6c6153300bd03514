//! `fusefs bench`: the rows of the published comparison table, for the measured directory, a local one and (with
//! `--floor`) a passthrough mount, in one run. Everything goes through plain system calls.

mod rows;
mod stats;
mod table;

use crate::args::BenchArgs;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

pub use stats::Sample;

/// One place that is measured.
pub struct Target {
    /// Column title.
    pub title: String,
    /// Fresh directory, removed afterwards.
    pub dir: PathBuf,
}

/// One measured cell.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Cell {
    /// Row, e.g. `create`.
    pub row: String,
    /// Threads.
    pub threads: usize,
    /// Column title.
    pub target: String,
    /// `ops/s`, `MiB/s` or `files/s`.
    pub unit: &'static str,
    /// Rate in that unit.
    pub rate: f64,
    /// Median latency in microseconds, 0 where a row has no single operation.
    pub p50_us: f64,
    /// 99th percentile in microseconds.
    pub p99_us: f64,
}

/// Runs every row on every target, row by row, so that drift of the machine hits all columns alike.
pub fn run(args: &BenchArgs, floor: Option<&Path>) -> Result<()> {
    ensure!(args.dir.is_dir(), "{} is not a directory", args.dir.display());
    ensure!(args.local.is_dir(), "{} is not a directory; choose another with --local", args.local.display());
    let mut targets = vec![target("fusefs", &args.dir)?, target("local", &args.local)?];
    if let Some(dir) = floor {
        targets.push(target("floor", dir)?);
    }
    let result = measure(args, &targets);
    for t in &targets {
        let _ = std::fs::remove_dir_all(&t.dir);
    }
    let cells = result?;
    if args.output.json {
        println!("{}", serde_json::to_string_pretty(&cells)?);
    } else {
        table::print(&cells, &targets);
    }
    Ok(())
}

fn target(title: &str, base: &Path) -> Result<Target> {
    let dir = base.join(format!("fusefs-bench-{}", std::process::id()));
    std::fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
    Ok(Target { title: title.to_owned(), dir })
}

fn measure(args: &BenchArgs, targets: &[Target]) -> Result<Vec<Cell>> {
    let mut cells = Vec::new();
    for &threads in &args.threads {
        for t in targets {
            std::fs::create_dir_all(t.dir.join(format!("t{threads}")))?;
        }
        for row in rows::METADATA {
            for t in targets {
                let sample = rows::metadata(row, &t.dir.join(format!("t{threads}")), args.files, threads)
                    .with_context(|| format!("row {row}, {} ({})", t.title, t.dir.display()))?;
                if row.contains(args.only.as_str()) {
                    eprintln!("  {row} x{threads} {}: {:.0}/s", t.title, sample.rate());
                    cells.push(sample.cell(row, threads, &t.title, "ops/s"));
                }
            }
        }
    }
    for row in rows::BULK.iter().filter(|r| r.contains(args.only.as_str())) {
        for t in targets {
            let (rate, unit) = rows::bulk(row, &t.dir, args)
                .with_context(|| format!("row {row}, {} ({})", t.title, t.dir.display()))?;
            eprintln!("  {row} {}: {rate:.0} {unit}", t.title);
            cells.push(Cell {
                row: (*row).into(),
                threads: 1,
                target: t.title.clone(),
                unit,
                rate,
                p50_us: 0.0,
                p99_us: 0.0,
            });
        }
    }
    Ok(cells)
}
