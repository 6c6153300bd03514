//! Tests of the log on a simulated disk.
