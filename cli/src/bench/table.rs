//! The table people read.

use super::{Cell, Target};

/// Prints one line per (row, threads): rate of each target, ratio to the local directory, latencies of fusefs.
pub fn print(cells: &[Cell], targets: &[Target]) {
    print!("{:<28}", "row (threads)");
    for t in targets {
        print!("{:>14}", t.title);
    }
    println!("{:>12}{:>12}{:>12}", "/ local", "p50 us", "p99 us");
    let mut seen = Vec::new();
    for c in cells {
        let key = (c.row.clone(), c.threads);
        if seen.contains(&key) {
            continue;
        }
        let of = |title: &str| cells.iter().find(|x| x.row == c.row && x.threads == c.threads && x.target == title);
        print!("{:<28}", format!("{} ({})", c.row, c.threads));
        for t in targets {
            match of(&t.title) {
                Some(x) => print!("{:>14}", format!("{:.0}", x.rate)),
                None => print!("{:>14}", "-"),
            }
        }
        let ours = of("fusefs");
        let ratio = match (ours, of("local")) {
            (Some(a), Some(b)) if b.rate > 0.0 => format!("{:.3}", a.rate / b.rate),
            _ => "-".into(),
        };
        let us = |f: fn(&Cell) -> f64| ours.map(f).filter(|v| *v > 0.0).map_or("-".to_owned(), |v| format!("{v:.0}"));
        println!("{ratio:>12}{:>12}{:>12}  {}", us(|x| x.p50_us), us(|x| x.p99_us), c.unit);
        seen.push(key);
    }
}
