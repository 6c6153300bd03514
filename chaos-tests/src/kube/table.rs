//! What a run tells.

use std::{fmt::Write, time::Duration};

struct Row {
    fault: String,
    times: usize,
    errors: usize,
    pause: Duration,
    op: String,
    note: String,
}

/// Faults, counts, errors and longest pauses.
#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Adds a line and prints it.
    pub fn add(&mut self, fault: &str, times: usize, errors: usize, longest: (Duration, String), note: &str) {
        let row = Row { fault: fault.into(), times, errors, pause: longest.0, op: longest.1, note: note.into() };
        println!("{}", line(&row));
        self.rows.push(row);
    }

    /// Sum of the errors.
    pub fn errors(&self) -> usize {
        self.rows.iter().map(|r| r.errors).sum()
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let mut out =
            String::from("| fault | times | application errors | longest operation | |\n|---|--:|--:|--:|---|\n");
        for row in &self.rows {
            out.push_str(&line(row));
            out.push('\n');
        }
        out
    }
}

fn line(r: &Row) -> String {
    let mut out = format!("| {} | {} | {} | ", r.fault, r.times, r.errors);
    if !r.pause.is_zero() {
        let _ = write!(out, "{:.2} s ({})", r.pause.as_secs_f64(), r.op); // into a String
    }
    let _ = write!(out, " | {} |", r.note);
    out
}
